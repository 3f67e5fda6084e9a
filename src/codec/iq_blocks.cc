#include <bit>

#include "codec/families.h"
#include "codec/iq_grids.h"
#include "codec/read_fields.h"

// Codes that name points of a lattice (see iq_grids.h), with signs and scales beside them. A block of 256 has eight sub-blocks of 32 values.
namespace weft::codec::detail {
namespace {

/// Seven signs; the eighth makes their number even.
std::uint8_t with_parity(std::uint32_t seven) {
  return static_cast<std::uint8_t>(seven | (static_cast<std::uint32_t>(std::popcount(seven)) & 1) << 7);
}

/// out = scale * magnitude, negative where the bit of its place is set.
template <int kCount>
void signed_values(const std::int8_t* magnitudes, std::uint32_t signs, float scale, float* out) {
  for (int j = 0; j < kCount; ++j) out[j] = scale * static_cast<float>(magnitudes[j]) * ((signs >> j) & 1 ? -1.0F : 1.0F);
}

template <int kWidth, std::size_t kRows>
void unpack(const std::uint16_t (&packed)[kRows], const std::int8_t* levels, int bits, std::int8_t (&out)[kRows][kWidth]) {
  for (std::size_t r = 0; r < kRows; ++r)
    for (int j = 0; j < kWidth; ++j) out[r][j] = levels[(packed[r] >> (bits * j)) & ((1 << bits) - 1)];
}

}  // namespace

const IqGrids& iq_grids() {
  static const IqGrids kGrids = [] {
    constexpr std::int8_t kTernary[4] = {-1, 0, 1, 0};
    constexpr std::int8_t kThree[4] = {8, 25, 43, 0};
    constexpr std::int8_t kOdd[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    constexpr std::int8_t kEight[8] = {4, 12, 20, 28, 36, 44, 52, 62};
    IqGrids grids;
    unpack(kIq1Packed, kTernary, 2, grids.iq1);
    unpack(kIq2SPacked, kThree, 2, grids.iq2_s);
    unpack(kIq2XsPacked, kThree, 2, grids.iq2_xs);
    unpack(kIq2XxsPacked, kThree, 2, grids.iq2_xxs);
    unpack(kIq3SPacked, kOdd, 3, grids.iq3_s);
    unpack(kIq3XxsPacked, kEight, 3, grids.iq3_xxs);
    return grids;
  }();
  return kGrids;
}

void decode_iq1_s(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  const IqGrids& grids = iq_grids();
  for (; num_blocks != 0; --num_blocks, blocks += 50, out += 256) {
    const float d = f16_at(blocks);
    for (int s = 0; s < 8; ++s) {
      const std::uint32_t high = u16_at(blocks + 34 + 2 * s);
      const float scale = d * static_cast<float>(2 * ((high >> 12) & 7) + 1);
      const float shift = high & 0x8000 ? -0.125F : 0.125F;
      for (int g = 0; g < 4; ++g) {
        const std::int8_t* point = grids.iq1[blocks[2 + 4 * s + g] | ((high >> (3 * g)) & 7) << 8];
        for (int j = 0; j < 8; ++j) out[32 * s + 8 * g + j] = scale * (static_cast<float>(point[j]) + shift);
      }
    }
  }
}

void decode_iq1_m(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  const IqGrids& grids = iq_grids();
  for (; num_blocks != 0; --num_blocks, blocks += 56, out += 256) {
    std::uint16_t scales[4];
    std::uint32_t half = 0;
    for (int i = 0; i < 4; ++i) {
      scales[i] = u16_at(blocks + 48 + 2 * i);
      half |= static_cast<std::uint32_t>(scales[i] >> 12) << (4 * i);
    }
    const float d = half_to_float(static_cast<std::uint16_t>(half));
    for (int g = 0; g < 32; ++g) {
      const std::uint32_t high = (blocks[32 + g / 2] >> (4 * (g % 2))) & 15;
      const float scale = d * static_cast<float>(2 * ((scales[g / 8] >> (3 * ((g / 2) % 4))) & 7) + 1);
      const float shift = high & 8 ? -0.125F : 0.125F;
      const std::int8_t* point = grids.iq1[blocks[g] | (high & 7) << 8];
      for (int j = 0; j < 8; ++j) out[8 * g + j] = scale * (static_cast<float>(point[j]) + shift);
    }
  }
}

void decode_iq2_xxs(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  const IqGrids& grids = iq_grids();
  for (; num_blocks != 0; --num_blocks, blocks += 66, out += 256) {
    const float d = f16_at(blocks);
    for (int s = 0; s < 8; ++s) {
      const std::uint8_t* codes = blocks + 2 + 8 * s;
      const std::uint32_t rest = u32_at(codes + 4);
      const float scale = d * (0.5F + static_cast<float>(rest >> 28)) * 0.25F;
      for (int g = 0; g < 4; ++g) signed_values<8>(grids.iq2_xxs[codes[g]], with_parity((rest >> (7 * g)) & 127), scale, out + 32 * s + 8 * g);
    }
  }
}

void decode_iq2_xs(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  const IqGrids& grids = iq_grids();
  for (; num_blocks != 0; --num_blocks, blocks += 74, out += 256) {
    const float d = f16_at(blocks);
    for (int g = 0; g < 32; ++g) {
      const std::uint32_t code = u16_at(blocks + 2 + 2 * g);
      const int scale4 = (blocks[66 + g / 4] >> (4 * ((g / 2) % 2))) & 15;
      signed_values<8>(grids.iq2_xs[code & 511], with_parity(code >> 9), d * (0.5F + static_cast<float>(scale4)) * 0.25F, out + 8 * g);
    }
  }
}

void decode_iq2_s(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  const IqGrids& grids = iq_grids();
  for (; num_blocks != 0; --num_blocks, blocks += 82, out += 256) {
    const float d = f16_at(blocks);
    for (int g = 0; g < 32; ++g) {
      const std::uint32_t code = blocks[2 + g] | static_cast<std::uint32_t>((blocks[66 + g / 4] >> (2 * (g % 4))) & 3) << 8;
      const int scale4 = (blocks[74 + g / 4] >> (4 * ((g / 2) % 2))) & 15;
      signed_values<8>(grids.iq2_s[code], blocks[34 + g], d * (0.5F + static_cast<float>(scale4)) * 0.25F, out + 8 * g);
    }
  }
}

void decode_iq3_xxs(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  const IqGrids& grids = iq_grids();
  for (; num_blocks != 0; --num_blocks, blocks += 98, out += 256) {
    const float d = f16_at(blocks);
    for (int s = 0; s < 8; ++s) {
      const std::uint32_t rest = u32_at(blocks + 66 + 4 * s);
      const float scale = d * (0.5F + static_cast<float>(rest >> 28)) * 0.5F;
      for (int g = 0; g < 4; ++g) {
        const std::uint32_t signs = with_parity((rest >> (7 * g)) & 127);
        const std::uint8_t* codes = blocks + 2 + 8 * s + 2 * g;
        signed_values<4>(grids.iq3_xxs[codes[0]], signs, scale, out + 32 * s + 8 * g);
        signed_values<4>(grids.iq3_xxs[codes[1]], signs >> 4, scale, out + 32 * s + 8 * g + 4);
      }
    }
  }
}

void decode_iq3_s(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  const IqGrids& grids = iq_grids();
  for (; num_blocks != 0; --num_blocks, blocks += 110, out += 256) {
    const float d = f16_at(blocks);
    for (int g = 0; g < 64; ++g) {
      const std::uint32_t code = blocks[2 + g] | static_cast<std::uint32_t>((blocks[66 + g / 8] >> (g % 8)) & 1) << 8;
      const int scale4 = (blocks[106 + g / 16] >> (4 * ((g / 8) % 2))) & 15;
      signed_values<4>(grids.iq3_s[code], static_cast<std::uint32_t>(blocks[74 + g / 2]) >> (4 * (g % 2)), d * static_cast<float>(1 + 2 * scale4),
                       out + 4 * g);
    }
  }
}

}  // namespace weft::codec::detail
