#include "math/blocks.h"

#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/blocks-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/blocks-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(DecodeQ4_0);
HWY_EXPORT(DecodeQ4_1);
HWY_EXPORT(DecodeQ5_0);
HWY_EXPORT(DecodeQ5_1);
HWY_EXPORT(DecodeQ8_0);
HWY_EXPORT(DecodeQ2K);
HWY_EXPORT(DecodeQ3K);
HWY_EXPORT(DecodeQ4K);
HWY_EXPORT(DecodeQ5K);
HWY_EXPORT(DecodeQ6K);
HWY_EXPORT(DecodeIq4Nl);
HWY_EXPORT(DecodeIq4Xs);
HWY_EXPORT(EncodeQ8_0);
HWY_EXPORT(EncodeQ4_0);

void decode_q4_0(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ4_0)(in, num_blocks, out); }
void decode_q4_1(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ4_1)(in, num_blocks, out); }
void decode_q5_0(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ5_0)(in, num_blocks, out); }
void decode_q5_1(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ5_1)(in, num_blocks, out); }
void decode_q8_0(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ8_0)(in, num_blocks, out); }
void decode_q2_k(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ2K)(in, num_blocks, out); }
void decode_q3_k(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ3K)(in, num_blocks, out); }
void decode_q4_k(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ4K)(in, num_blocks, out); }
void decode_q5_k(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ5K)(in, num_blocks, out); }
void decode_q6_k(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeQ6K)(in, num_blocks, out); }
void decode_iq4_nl(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeIq4Nl)(in, num_blocks, out); }
void decode_iq4_xs(const std::uint8_t* in, std::size_t num_blocks, float* out) { HWY_DYNAMIC_DISPATCH(DecodeIq4Xs)(in, num_blocks, out); }
void encode_q4_0(const float* values, std::size_t num_blocks, std::uint8_t* out) { HWY_DYNAMIC_DISPATCH(EncodeQ4_0)(values, num_blocks, out); }
void encode_q8_0(const float* values, std::size_t num_blocks, std::uint8_t* out) { HWY_DYNAMIC_DISPATCH(EncodeQ8_0)(values, num_blocks, out); }

}  // namespace weft::math
#endif
