#pragma once
#include <cstddef>
#include <cstdint>

// Float32 to the block types whose scales are searched for, as vectors whose lanes are blocks: each lane adds in the order of the format's reference,
// so the bytes are its bytes on every CPU target. Class A.
namespace weft::math {

/// values: 256 a block. weights: how much the error of each value counts, as many; null: the types' own rules.
void encode_q2_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out);
void encode_q3_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out);
void encode_q4_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out);
void encode_q5_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out);
void encode_q6_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out);

/// One row of blocks of 32 with weights.
void encode_q4_0_weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out);
void encode_q4_1_weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out);
void encode_q5_0_weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out);
void encode_q5_1_weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out);

}  // namespace weft::math
