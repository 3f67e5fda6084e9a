#include <cmath>

#include "codec/families.h"
#include "codec/read_fields.h"
#include "math/blocks.h"
#include "math/encode_blocks.h"
#include "math/quant_search.h"

// Plain integer grids with one scale a block. Q8_1 and Q8_K hold activations; files do not have them, but their ids are valid.
namespace weft::codec::detail {
namespace {

/// 1 / scale; 0 for no scale.
float inverse_of(float scale) { return scale != 0 ? 1.0F / scale : 0.0F; }

/// Towards zero, held within [0, most]. What is no number, as where a scale is too small to be inverted, gives 0: such a scale is zero when stored.
std::uint8_t cut(float value, int most) {
  return static_cast<std::uint8_t>(!(value > 0) || !std::isfinite(value) ? 0 : value < static_cast<float>(most) ? static_cast<int>(value) : most);
}

void put_nibbles(const std::uint8_t* codes, std::uint8_t* out) {
  for (int i = 0; i < 16; ++i) out[i] = static_cast<std::uint8_t>((codes[i] & 15) | (codes[16 + i] & 15) << 4);
}

void put_fifth_bits(const std::uint8_t* codes, std::uint8_t* out) {
  std::uint32_t high = 0;
  for (int i = 0; i < 32; ++i) high |= static_cast<std::uint32_t>(codes[i] >> 4 & 1) << i;
  put_u32(high, out);
}

/// The value of the largest magnitude, the first of them, becomes -half: a grid from -half to half - 1.
float signed_codes(const float* x, int half, std::uint8_t* codes) {
  const float scale = math::furthest_from_zero(x, 32) / static_cast<float>(-half);
  const float inverse = inverse_of(scale);
  for (int i = 0; i < 32; ++i) codes[i] = cut(x[i] * inverse + (static_cast<float>(half) + 0.5F), 2 * half - 1);
  return scale;
}

/// Codes from 0 at the smallest value to `most` at the largest.
struct Range {
  float scale, minimum;
};
Range range_codes(const float* x, int most, std::uint8_t* codes) {
  float low = x[0];
  float high = x[0];
  for (int i = 0; i < 32; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float scale = (high - low) / static_cast<float>(most);
  const float inverse = inverse_of(scale);
  for (int i = 0; i < 32; ++i) codes[i] = cut((x[i] - low) * inverse + 0.5F, most);
  return {scale, low};
}

}  // namespace

void decode_q8_1(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  for (; num_blocks != 0; --num_blocks, blocks += 36, out += 32) {
    const float d = f16_at(blocks);
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<std::int8_t>(blocks[4 + i])) * d;
  }
}

void decode_q8_k(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  for (; num_blocks != 0; --num_blocks, blocks += 292, out += 256) {
    const float d = f32_at(blocks);
    for (int i = 0; i < 256; ++i) out[i] = d * static_cast<float>(static_cast<std::int8_t>(blocks[4 + i]));
  }
}

void encode_q4_0(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  if (!metric.column_weights.empty()) return math::encode_q4_0_weighted(row.data(), metric.column_weights.data(), row.size() / 32, out);
  math::encode_q4_0(row.data(), row.size() / 32, out);
}

void encode_q4_1(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  if (!metric.column_weights.empty()) return math::encode_q4_1_weighted(row.data(), metric.column_weights.data(), row.size() / 32, out);
  std::uint8_t codes[32];
  for (std::size_t b = 0; b < row.size() / 32; ++b, out += 20) {
    const Range range = range_codes(row.data() + 32 * b, 15, codes);
    put_half(range.scale, out);
    put_half(range.minimum, out + 2);
    put_nibbles(codes, out + 4);
  }
}

void encode_q5_0(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  if (!metric.column_weights.empty()) return math::encode_q5_0_weighted(row.data(), metric.column_weights.data(), row.size() / 32, out);
  std::uint8_t codes[32];
  for (std::size_t b = 0; b < row.size() / 32; ++b, out += 22) {
    put_half(signed_codes(row.data() + 32 * b, 16, codes), out);
    put_fifth_bits(codes, out + 2);
    put_nibbles(codes, out + 6);
  }
}

void encode_q5_1(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  if (!metric.column_weights.empty()) return math::encode_q5_1_weighted(row.data(), metric.column_weights.data(), row.size() / 32, out);
  std::uint8_t codes[32];
  for (std::size_t b = 0; b < row.size() / 32; ++b, out += 24) {
    const Range range = range_codes(row.data() + 32 * b, 31, codes);
    put_half(range.scale, out);
    put_half(range.minimum, out + 2);
    put_fifth_bits(codes, out + 4);
    put_nibbles(codes, out + 8);
  }
}

void encode_q8_0(std::span<const float> row, const Metric&, std::uint8_t* out) { math::encode_q8_0(row.data(), row.size() / 32, out); }

namespace {
const float* weights_of(const Metric& metric) { return metric.column_weights.empty() ? nullptr : metric.column_weights.data(); }
}  // namespace

void encode_q2_k(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  math::encode_q2_k(row.data(), weights_of(metric), row.size() / 256, out);
}
void encode_q3_k(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  math::encode_q3_k(row.data(), weights_of(metric), row.size() / 256, out);
}
void encode_q4_k(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  math::encode_q4_k(row.data(), weights_of(metric), row.size() / 256, out);
}
void encode_q5_k(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  math::encode_q5_k(row.data(), weights_of(metric), row.size() / 256, out);
}
void encode_q6_k(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  math::encode_q6_k(row.data(), weights_of(metric), row.size() / 256, out);
}

}  // namespace weft::codec::detail
