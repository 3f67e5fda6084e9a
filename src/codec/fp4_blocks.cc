#include <array>
#include <bit>
#include <cmath>

#include "codec/families.h"
#include "codec/read_fields.h"

// Four-bit floats (E2M1) with a scale a block: a power of two for MXFP4, an E4M3 without sign for each 16 of NVFP4.
namespace weft::codec::detail {
namespace {

/// E2M1, doubled: the scales are halved instead.
constexpr float kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// 2^(e - 128); e = 0 and 1 are subnormal.
float half_power(std::uint8_t e) {
  const std::uint32_t bits = e < 2 ? std::uint32_t{0x00200000} << e : (std::uint32_t{e} - 1) << 23;
  return std::bit_cast<float>(bits);
}

/// Half of each E4M3 code, its sign bit ignored; NaN counts as zero.
constexpr auto kHalfScale = [] {
  std::array<float, 256> table{};
  for (std::uint32_t code = 0; code < 256; ++code) {
    const std::uint32_t magnitude = code & 0x7F;
    table[code] = magnitude == 0x7F ? 0.0F : 0.5F * std::bit_cast<float>(math::decode_small(math::kF8E4M3, magnitude));
  }
  return table;
}();

/// The code whose value is nearest; of two as near the smaller.
std::uint8_t nearest_code(float x, float scale) {
  std::uint8_t best = 0;
  float best_error = std::fabs(kDoubled[0] * scale - x);
  for (std::uint8_t code = 1; code < 16; ++code) {
    const float error = std::fabs(kDoubled[code] * scale - x);
    if (error < best_error) {
      best_error = error;
      best = code;
    }
  }
  return best;
}

/// E4M3 without sign: halves of the last mantissa bit go up, what is too large becomes the largest.
std::uint8_t unsigned_e4m3(float x) {
  if (!(x > 0)) return 0;
  if (x > 448.0F) x = 448.0F;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const int exponent = static_cast<int>(bits >> 23) - 127 + 7;
  if (exponent <= 0) {
    const int mantissa = static_cast<int>(x * 512.0F + 0.5F);
    return static_cast<std::uint8_t>(mantissa < 7 ? mantissa : 7);
  }
  const std::uint32_t code = (static_cast<std::uint32_t>(exponent) << 3 | (bits >> 20 & 7)) + (bits >> 19 & 1);
  return static_cast<std::uint8_t>(code < 0x7E ? code : 0x7E);
}

}  // namespace

void decode_mxfp4(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  for (; num_blocks != 0; --num_blocks, blocks += 17, out += 32) {
    const float scale = half_power(blocks[0]);
    for (int i = 0; i < 16; ++i) {
      out[i] = kDoubled[blocks[1 + i] & 15] * scale;
      out[16 + i] = kDoubled[blocks[1 + i] >> 4] * scale;
    }
  }
}

void decode_nvfp4(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  for (; num_blocks != 0; --num_blocks, blocks += 36) {
    for (int group = 0; group < 4; ++group, out += 16) {
      const float scale = kHalfScale[blocks[group]];
      const std::uint8_t* qs = blocks + 4 + 8 * group;
      for (int i = 0; i < 8; ++i) {
        out[i] = kDoubled[qs[i] & 15] * scale;
        out[8 + i] = kDoubled[qs[i] >> 4] * scale;
      }
    }
  }
}

void encode_mxfp4(std::span<const float> row, const Metric&, std::uint8_t* out) {
  for (std::size_t b = 0; b < row.size() / 32; ++b, out += 17) {
    const float* x = row.data() + 32 * b;
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    // Half of the scale of E2M1, whose largest magnitude is 6: floor(log2) - 2. Where that would be below the smallest, it is the smallest.
    const int exponent = largest > 0 && std::isfinite(largest) ? std::ilogb(largest) - 2 + 127 : 0;
    out[0] = static_cast<std::uint8_t>(exponent > 0 ? exponent : 0);
    const float scale = half_power(out[0]);
    for (int i = 0; i < 16; ++i) out[1 + i] = static_cast<std::uint8_t>(nearest_code(x[i], scale) | nearest_code(x[16 + i], scale) << 4);
  }
}

void encode_nvfp4(std::span<const float> row, const Metric&, std::uint8_t* out) {
  for (std::size_t b = 0; b < row.size() / 64; ++b, out += 36) {
    for (int group = 0; group < 4; ++group) {
      const float* x = row.data() + 64 * b + 16 * static_cast<std::size_t>(group);
      float largest = 0;
      for (int i = 0; i < 16; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
      out[group] = unsigned_e4m3(largest / 6.0F);
      const float scale = kHalfScale[out[group]];
      for (int i = 0; i < 8; ++i) out[4 + 8 * group + i] = static_cast<std::uint8_t>(nearest_code(x[i], scale) | nearest_code(x[8 + i], scale) << 4);
    }
  }
}

}  // namespace weft::codec::detail
