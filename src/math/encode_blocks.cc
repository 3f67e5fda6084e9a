#include "math/encode_blocks.h"

#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/encode_blocks-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/encode_blocks-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(EncodeQ2K);
HWY_EXPORT(EncodeQ3K);
HWY_EXPORT(EncodeQ4K);
HWY_EXPORT(EncodeQ5K);
HWY_EXPORT(EncodeQ6K);
HWY_EXPORT(EncodeQ4_0Weighted);
HWY_EXPORT(EncodeQ4_1Weighted);
HWY_EXPORT(EncodeQ5_0Weighted);
HWY_EXPORT(EncodeQ5_1Weighted);

void encode_q2_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ2K)(values, weights, num_blocks, out);
}
void encode_q3_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ3K)(values, weights, num_blocks, out);
}
void encode_q4_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ4K)(values, weights, num_blocks, out);
}
void encode_q5_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ5K)(values, weights, num_blocks, out);
}
void encode_q6_k(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ6K)(values, weights, num_blocks, out);
}
void encode_q4_0_weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ4_0Weighted)(row, weights, num_blocks, out);
}
void encode_q4_1_weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ4_1Weighted)(row, weights, num_blocks, out);
}
void encode_q5_0_weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ5_0Weighted)(row, weights, num_blocks, out);
}
void encode_q5_1_weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeQ5_1Weighted)(row, weights, num_blocks, out);
}

}  // namespace weft::math
#endif
