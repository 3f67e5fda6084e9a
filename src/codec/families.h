#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/block_codec.h"

// The functions that the table of block codecs names, a file a family.
namespace weft::codec::detail {

// legacy_blocks.cc
void decode_q8_1(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_q8_k(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void encode_q4_0(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q4_1(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q5_0(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q5_1(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q8_0(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q2_k(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q3_k(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q4_k(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q5_k(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q6_k(std::span<const float> row, const Metric& metric, std::uint8_t* out);

// fp4_blocks.cc
void decode_mxfp4(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_nvfp4(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void encode_mxfp4(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_nvfp4(std::span<const float> row, const Metric& metric, std::uint8_t* out);

// ternary_blocks.cc
void decode_tq1_0(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_tq2_0(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_q1_0(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_q2_0(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void encode_tq1_0(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_tq2_0(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q1_0(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_q2_0(std::span<const float> row, const Metric& metric, std::uint8_t* out);

// iq_blocks.cc
void decode_iq1_s(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_iq1_m(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_iq2_xxs(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_iq2_xs(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_iq2_s(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_iq3_xxs(const std::uint8_t* blocks, std::size_t num_blocks, float* out);
void decode_iq3_s(const std::uint8_t* blocks, std::size_t num_blocks, float* out);

// iq4_blocks.cc
void encode_iq4_nl(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_iq4_xs(std::span<const float> row, const Metric& metric, std::uint8_t* out);

// iq_encoders.cc
void encode_iq2_xxs(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_iq2_xs(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_iq2_s(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_iq3_xxs(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_iq3_s(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_iq1_s(std::span<const float> row, const Metric& metric, std::uint8_t* out);
void encode_iq1_m(std::span<const float> row, const Metric& metric, std::uint8_t* out);

}  // namespace weft::codec::detail
