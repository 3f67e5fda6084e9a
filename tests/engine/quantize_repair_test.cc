#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "checkpoint/json.h"
#include "engine/quantize_linear.h"
#include "engine/running_model.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/read_all.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"

// Methods that fit scales, keep single weights, and make statistics good again, from the options to a model that runs.
namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";

std::shared_ptr<const CalibrationTokens> some_tokens(std::size_t num_sequences, std::size_t length) {
  auto tokens = std::make_shared<CalibrationTokens>();
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

/// Logits of the first calibration sequence.
std::vector<float> logits_of(const std::string& model) {
  RunningModel running(model, {});
  const std::vector<std::uint32_t> ids = some_tokens(1, 60)->sequences.front();
  const model::TokenChunk chunk{nullptr, ids, {}};
  std::vector<float> rows = running.network().run(std::span(&chunk, 1));
  running.network().normalise(rows);
  const auto hidden = static_cast<std::size_t>(running.config().hidden);
  std::vector<float> out(ids.size() * static_cast<std::size_t>(running.config().vocab));
  running.network().logits({rows.data(), ids.size(), hidden, hidden}, out);
  return out;
}
double relative(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += std::pow(static_cast<double>(a[i]), 2);
  }
  return std::sqrt(difference / size);
}

TEST(QuantizeRepair, codes_and_scales_by_turns_lose_less_than_compensation_in_every_format) {
  const TemporaryFolder folder;
  const std::vector<float> plain = logits_of(kModel);
  for (const char* format : {"weft", "gptq_v2", "gptq", "compressed-tensors"}) {
    SCOPED_TRACE(format);
    std::map<std::string, double> drift, loss;
    for (const char* method : {"gptq", "decoupleq"}) {
      LinearQuantizeOptions options;
      options.method = method;
      options.format = format;
      options.bits = 2;
      options.group = 64;
      // Three layers of the first block tell as much as all.
      options.rules = {{"layers\\.1|self_attn\\.[qo]|down|up", true, {}, {}}};
      options.tokens = some_tokens(6, 64);
      if (method == std::string("decoupleq")) options.parameters = {{"decoupleq.drift", 0}, {"decoupleq.rounds", 2}};
      const fs::path output = folder / fmt::format("{}-{}", format, method);
      const LinearQuantizeReport report = quantize_linear(kModel, output, options);
      ASSERT_EQ(report.layers.size(), 3u);
      loss[method] = report.layers.front().relative_loss;
      drift[method] = relative(plain, logits_of(output.string()));
      if (std::string(format) == "weft") {
        EXPECT_NEAR(report.linear_bits, 2.5, 0.15);
      }
    }
    EXPECT_LT(loss["decoupleq"], 0.9 * loss["gptq"]);
    EXPECT_LT(drift["decoupleq"], drift["gptq"]);
  }
}

TEST(QuantizeRepair, parameters_of_steps_are_checked_and_count) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.method = "decoupleq";
  options.format = "gptq_v2";
  options.tokens = some_tokens(2, 32);
  options.parameters = {{"decoupleq.turns", 1}};
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "decoupleq.turns");
  options.parameters = {{"decoupleq.rounds", 0}};
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "decoupleq.rounds");
  options.parameters = {};
  options.order = "dynamic";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "neighbouring inputs");
}

TEST(QuantizeRepair, drift_of_inputs_is_made_good_by_turns) {
  const TemporaryFolder folder;
  const std::vector<float> plain = logits_of(kModel);
  std::map<double, double> off;
  for (const double drift : {0.0, 0.5}) {
    LinearQuantizeOptions options;
    options.method = "decoupleq";
    options.format = "weft";
    options.bits = 2;
    options.group = 64;
    options.rules = {{"down", true, {}, {}}};
    options.tokens = some_tokens(10, 64);
    options.parameters = {{"decoupleq.drift", drift}, {"decoupleq.rounds", 1}, {"decoupleq.sweeps", 1}};
    const fs::path output = folder / fmt::format("drift-{}", drift);
    static_cast<void>(quantize_linear(kModel, output, options));
    off[drift] = relative(plain, logits_of(output.string()));
  }
  EXPECT_LT(off[0.5], off[0.0]);
}

}  // namespace
}  // namespace weft::engine
