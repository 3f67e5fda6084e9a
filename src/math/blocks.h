#pragma once
#include <cstddef>
#include <cstdint>

// Blocks of quantized values to float32 and back, as vectors: the types of which GGUF files are full. Layouts and order of operations are those of
// the format's reference; see codec/block_codec.h for the table of all types.
namespace weft::math {

/// in: num_blocks blocks, at any address. out: 32 values a block (256 for the K types and IQ4_XS). Class A.
void decode_q4_0(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q4_1(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q5_0(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q5_1(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q8_0(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q2_k(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q3_k(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q4_k(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q5_k(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_q6_k(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_iq4_nl(const std::uint8_t* in, std::size_t num_blocks, float* out);
void decode_iq4_xs(const std::uint8_t* in, std::size_t num_blocks, float* out);

/// values: 32 a block. Scale: largest magnitude / 127; halves are rounded away from zero. A block too small for its scale (below about 1e-36) becomes
/// zero; one whose values are not finite gets a scale that is not finite. Class A.
void encode_q8_0(const float* values, std::size_t num_blocks, std::uint8_t* out);
/// The first value of the largest magnitude becomes -8 of the codes from -8 to 7. What is too small or not finite as above. Class A.
void encode_q4_0(const float* values, std::size_t num_blocks, std::uint8_t* out);

}  // namespace weft::math
