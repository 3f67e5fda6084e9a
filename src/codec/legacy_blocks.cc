#include "codec/families.h"
#include "codec/read_fields.h"
#include "math/blocks.h"

// Plain integer grids with one scale a block. Q8_1 and Q8_K hold activations; files do not have them, but their ids are valid.
namespace weft::codec::detail {

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

void encode_q8_0(std::span<const float> row, const Metric&, std::uint8_t* out) { math::encode_q8_0(row.data(), row.size() / 32, out); }

}  // namespace weft::codec::detail
