#include "support/tiny_runs.h"

#include <cmath>
#include <cstdint>
#include <span>

#include "engine/running_model.h"
#include "math/convert.h"

namespace weft::testing {

std::shared_ptr<const engine::CalibrationTokens> some_tokens(std::size_t num_sequences, std::size_t length) {
  auto tokens = std::make_shared<engine::CalibrationTokens>();
  std::uint32_t state = 1;
  for (std::size_t s = 0; s < num_sequences; ++s) {
    auto& sequence = tokens->sequences.emplace_back();
    for (std::size_t t = 0; t < length; ++t) {
      state = state * 1664525U + 1013904223U;
      sequence.push_back((state >> 8) % 1000);
    }
  }
  return tokens;
}

std::vector<float> logits_of(const std::string& model, std::size_t num_tokens) {
  engine::RunningModel running(model, {});
  const std::vector<std::uint32_t> ids = some_tokens(1, num_tokens)->sequences.front();
  const model::TokenChunk chunk{nullptr, ids, {}};
  std::vector<float> rows = running.network().run(std::span(&chunk, 1));
  running.network().normalise(rows);
  const auto hidden = static_cast<std::size_t>(running.config().hidden);
  std::vector<float> out(ids.size() * static_cast<std::size_t>(running.config().vocab));
  running.network().logits({rows.data(), ids.size(), hidden, hidden}, out);
  return out;
}

std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<std::byte> bytes(tensor.size_bytes);
  checkpoint.read_bytes(tensor, 0, bytes);
  std::vector<float> values(tensor.num_elements);
  math::decode(tensor.dtype, bytes, values);
  return values;
}

double relative(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(a[i]), 2);
  }
  return std::sqrt(difference / size);
}

}  // namespace weft::testing
