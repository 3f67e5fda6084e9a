#include <cmath>

#include "codec/families.h"
#include "codec/read_fields.h"

// One and two bits a value with one scale a block.
namespace weft::codec::detail {
namespace {

float largest_of(const float* x, int count) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
  return largest;
}

float inverse_of(float scale) {
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  return std::isfinite(inverse) ? inverse : 0.0F;
}

/// -1, 0 or 1 as 0, 1 or 2, halves away from zero.
std::uint8_t trit_of(float value) { return value >= 0.5F ? 2 : value <= -0.5F ? 0 : 1; }

}  // namespace

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

void encode_tq1_0(std::span<const float> row, const Metric&, std::uint8_t* out) {
  for (std::size_t b = 0; b < row.size() / 256; ++b, out += 54) {
    const float* x = row.data() + 256 * b;
    const float d = largest_of(x, 256);
    const float inverse = inverse_of(d);
    // Digits of base 3, first to last, as a fraction of 256 that is rounded up so that multiplying brings each back on top.
    const auto byte_of = [&](const float* first, int digits, int apart) {
      unsigned number = 0;
      for (int k = 0; k < 5; ++k) number = 3 * number + (k < digits ? trit_of(first[k * apart] * inverse) : 0U);
      return static_cast<std::uint8_t>((number * 256 + 242) / 243);
    };
    for (int i = 0; i < 32; ++i) out[i] = byte_of(x + i, 5, 32);
    for (int i = 0; i < 16; ++i) out[32 + i] = byte_of(x + 160 + i, 5, 16);
    for (int i = 0; i < 4; ++i) out[48 + i] = byte_of(x + 240 + i, 4, 4);
    put_half(d, out + 52);
  }
}

void encode_tq2_0(std::span<const float> row, const Metric&, std::uint8_t* out) {
  for (std::size_t b = 0; b < row.size() / 256; ++b, out += 66) {
    const float* x = row.data() + 256 * b;
    const float d = largest_of(x, 256);
    const float inverse = inverse_of(d);
    for (int half = 0; half < 2; ++half)
      for (int l = 0; l < 32; ++l) {
        unsigned byte = 0;
        for (int j = 0; j < 4; ++j) byte |= static_cast<unsigned>(trit_of(x[128 * half + 32 * j + l] * inverse)) << (2 * j);
        out[32 * half + l] = static_cast<std::uint8_t>(byte);
      }
    put_half(d, out + 64);
  }
}

void encode_q1_0(std::span<const float> row, const Metric&, std::uint8_t* out) {
  for (std::size_t b = 0; b < row.size() / 128; ++b, out += 18) {
    const float* x = row.data() + 128 * b;
    float sum = 0;
    for (int i = 0; i < 128; ++i) sum += std::fabs(x[i]);
    put_half(sum / 128, out);
    for (int i = 0; i < 16; ++i) {
      unsigned byte = 0;
      for (int j = 0; j < 8; ++j) byte |= (x[8 * i + j] >= 0 ? 1U : 0U) << j;
      out[2 + i] = static_cast<std::uint8_t>(byte);
    }
  }
}

void encode_q2_0(std::span<const float> row, const Metric&, std::uint8_t* out) {
  for (std::size_t b = 0; b < row.size() / 64; ++b, out += 18) {
    const float* x = row.data() + 64 * b;
    const float d = largest_of(x, 64);
    // A scale too small to be inverted is zero when stored, and all codes are 0, as the reference's conversion happens to give them.
    const bool too_small = d != 0 && !std::isfinite(1 / d);
    const float inverse = inverse_of(d);
    put_half(d, out);
    for (int i = 0; i < 16; ++i) {
      unsigned byte = 0;
      for (int j = 0; j < 4; ++j) byte |= too_small ? 0U : static_cast<unsigned>(trit_of(x[4 * i + j] * inverse)) << (2 * j);
      out[2 + i] = static_cast<std::uint8_t>(byte);
    }
  }
}

}  // namespace weft::codec::detail
