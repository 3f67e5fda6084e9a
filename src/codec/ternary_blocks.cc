#include "codec/families.h"
#include "codec/read_fields.h"

// One and two bits a value with one scale a block.
namespace weft::codec::detail {

void decode_tq1_0(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  // Five digits of base 3 a byte, scaled so that each comes out on top when the byte, times a power of three modulo 256, is multiplied by three.
  constexpr std::uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  const auto trit = [&](std::uint8_t byte, int digit) {
    const auto shifted = static_cast<std::uint8_t>(byte * kPowers[digit]);
    return static_cast<float>((shifted * 3 >> 8) - 1);
  };
  for (; num_blocks != 0; --num_blocks, blocks += 54, out += 256) {
    const float d = f16_at(blocks + 52);
    for (int k = 0; k < 5; ++k)
      for (int i = 0; i < 32; ++i) out[32 * k + i] = trit(blocks[i], k) * d;
    for (int k = 0; k < 5; ++k)
      for (int i = 0; i < 16; ++i) out[160 + 16 * k + i] = trit(blocks[32 + i], k) * d;
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < 4; ++i) out[240 + 4 * k + i] = trit(blocks[48 + i], k) * d;
  }
}

void decode_tq2_0(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  for (; num_blocks != 0; --num_blocks, blocks += 66, out += 256) {
    const float d = f16_at(blocks + 64);
    for (int half = 0; half < 2; ++half)
      for (int j = 0; j < 4; ++j)
        for (int l = 0; l < 32; ++l) out[128 * half + 32 * j + l] = static_cast<float>(((blocks[32 * half + l] >> (2 * j)) & 3) - 1) * d;
  }
}

void decode_q1_0(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  for (; num_blocks != 0; --num_blocks, blocks += 18, out += 128) {
    const float d = f16_at(blocks);
    for (int i = 0; i < 128; ++i) out[i] = (blocks[2 + i / 8] >> (i % 8)) & 1 ? d : -d;
  }
}

void decode_q2_0(const std::uint8_t* blocks, std::size_t num_blocks, float* out) {
  for (; num_blocks != 0; --num_blocks, blocks += 18, out += 64) {
    const float d = f16_at(blocks);
    for (int i = 0; i < 64; ++i) out[i] = static_cast<float>(((blocks[2 + i / 4] >> (2 * (i % 4))) & 3) - 1) * d;
  }
}

}  // namespace weft::codec::detail
