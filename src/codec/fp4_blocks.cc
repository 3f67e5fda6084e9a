#include <array>
#include <bit>

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

}  // namespace weft::codec::detail
