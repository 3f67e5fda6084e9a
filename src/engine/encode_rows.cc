#include "engine/encode_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/text.h"
#include "codec/better_blocks.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

/// Scales are float16 at most in most types and never above the values: below this there is none that could overflow.
constexpr float kSafeMagnitude = 16384;

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  return largest;
}

}  // namespace

void EncodingErrors::add(std::size_t tensor, std::uint64_t first_element, const std::vector<Sums>& rows) {
  const std::lock_guard lock(mutex_);
  rows_[tensor][first_element] = rows;
}

std::optional<double> EncodingErrors::relative(std::size_t tensor) const {
  const std::lock_guard lock(mutex_);
  const auto found = rows_.find(tensor);
  if (found == rows_.end()) return std::nullopt;
  Sums total;
  for (const auto& [first, rows] : found->second)
    for (const Sums& row : rows) {
      total.error += row.error;
      total.square += row.square;
    }
  return total.square > 0 ? total.error / total.square : 0;
}

void encode_rows(const GgufTensorSpec& tensor, const Encoding& encoding, std::size_t number, std::uint64_t first_element,
                 std::span<const float> values, EncodingErrors* errors, std::vector<std::uint8_t>& blocks) {
  const codec::BlockCodec& codec = *tensor.codec;
  blocks.resize(values.size() / codec.block_elements * codec.block_bytes);
  if (values.empty()) return;
  // Where rows are alike to the encoder there is no need for whole ones.
  const bool by_row = encoding.column_weights != nullptr || encoding.better || errors != nullptr;
  const std::size_t row_length = by_row ? static_cast<std::size_t>(tensor.shape.back()) : values.size();
  WEFT_ASSERT(!by_row || (first_element % row_length == 0 && values.size() % row_length == 0));
  std::uint64_t num_rows = 1;
  for (std::size_t i = 0; i + 1 < tensor.shape.size(); ++i) num_rows *= static_cast<std::uint64_t>(tensor.shape[i]);
  const std::uint64_t rows_per_matrix = std::max<std::uint64_t>(1, num_rows / encoding.num_matrices);
  const std::size_t row_bytes = row_length / codec.block_elements * codec.block_bytes;
  std::vector<EncodingErrors::Sums> sums;
  std::vector<float> decoded;
  for (std::size_t row = 0; row < values.size() / row_length; ++row) {
    const std::span<const float> own = values.subspan(row * row_length, row_length);
    std::uint8_t* out = blocks.data() + row * row_bytes;
    codec::Metric metric;
    if (encoding.column_weights != nullptr) {
      const std::uint64_t matrix = std::min(encoding.num_matrices - 1, (first_element / row_length + row) / rows_per_matrix);
      metric.column_weights = std::span(*encoding.column_weights).subspan(static_cast<std::size_t>(matrix) * row_length, row_length);
    }
    if (encoding.better)
      codec::encode_row_better(codec, own, metric, out);
    else
      codec.encode_row(own, metric, out);
    const bool may_overflow = !(largest_magnitude(own) < kSafeMagnitude);
    if (errors == nullptr && !may_overflow) continue;
    decoded.resize(row_length);
    codec.decode(out, row_length / codec.block_elements, decoded.data());
    if (may_overflow)
      for (std::size_t i = 0; i < row_length; ++i)
        if (!std::isfinite(decoded[i]) && std::isfinite(own[i]))
          throw Error(ErrorCode::unsupported,
                      fmt::format("tensor '{}' has values up to {}, for which blocks of {} have no scale", printable(tensor.name),
                                  largest_magnitude(own), codec.name),
                      {.tensor = tensor.name}, "keep this tensor in another type with --tensor-type, or scale the model");
    if (errors == nullptr) continue;
    EncodingErrors::Sums& sum = sums.emplace_back();
    for (std::size_t i = 0; i < row_length; ++i) {
      const double weight = metric.column_weights.empty() ? 1.0 : static_cast<double>(metric.column_weights[i]);
      const double difference = static_cast<double>(decoded[i]) - static_cast<double>(own[i]);
      sum.error += weight * difference * difference;
      sum.square += weight * static_cast<double>(own[i]) * static_cast<double>(own[i]);
    }
  }
  if (errors != nullptr) errors->add(number, first_element, sums);
}

}  // namespace weft::engine
