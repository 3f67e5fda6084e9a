#include "math/neural.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "math/elementary.h"
#include "math/simd_config.h"
#include "weft/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/neural-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/neural-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(RowProductsF32);
HWY_EXPORT(RowProductsBf16);
HWY_EXPORT(RowProductsF16);
HWY_EXPORT(RowProductsI8);
HWY_EXPORT(Quantize);
HWY_EXPORT(Rescale);
HWY_EXPORT(MultiplyBy);
HWY_EXPORT(DotF32);
HWY_EXPORT(AddScaled);
HWY_EXPORT(RmsNorm);
HWY_EXPORT(LayerNorm);
HWY_EXPORT(Activate);
HWY_EXPORT(Softmax);
HWY_EXPORT(RotatePairs);

void row_products(DType dtype, const std::byte* weights, std::size_t rows, std::size_t columns, const float* x, std::size_t x_stride,
                  std::size_t tokens, float* out, std::size_t out_stride) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(weights);
  switch (dtype) {
    case DType::f32:
      return HWY_DYNAMIC_DISPATCH(RowProductsF32)(bytes, rows, columns, x, x_stride, tokens, out, out_stride);
    case DType::bf16:
      return HWY_DYNAMIC_DISPATCH(RowProductsBf16)(bytes, rows, columns, x, x_stride, tokens, out, out_stride);
    case DType::f16:
      return HWY_DYNAMIC_DISPATCH(RowProductsF16)(bytes, rows, columns, x, x_stride, tokens, out, out_stride);
    case DType::i8:
      return HWY_DYNAMIC_DISPATCH(RowProductsI8)(bytes, rows, columns, x, x_stride, tokens, out, out_stride);
    default:
      throw Error(ErrorCode::internal, "no product with rows of type " + std::string(to_string(dtype)));
  }
}

float quantize_int8(const float* x, std::int8_t* out, std::size_t n) {
  return HWY_DYNAMIC_DISPATCH(Quantize)(x, reinterpret_cast<std::uint8_t*>(out), 0, n);
}
float quantize_uint8(const float* x, std::uint8_t* out, std::size_t n) { return HWY_DYNAMIC_DISPATCH(Quantize)(x, out, 128, n); }
void rescale(const std::int32_t* sums, const std::int32_t* offsets, float factor, const float* steps, float* out, std::size_t n) {
  HWY_DYNAMIC_DISPATCH(Rescale)(sums, offsets, factor, steps, out, n);
}
void multiply_by(const float* factors, float* x, std::size_t n) { HWY_DYNAMIC_DISPATCH(MultiplyBy)(factors, x, n); }

float dot_f32(const float* x, const float* y, std::size_t n) { return HWY_DYNAMIC_DISPATCH(DotF32)(x, y, n); }
void add_scaled(float factor, const float* x, float* out, std::size_t n) { HWY_DYNAMIC_DISPATCH(AddScaled)(factor, x, out, n); }
void add_to(const float* x, float* out, std::size_t n) { HWY_DYNAMIC_DISPATCH(AddScaled)(1.0F, x, out, n); }

void rms_norm(const float* x, const float* weight, float offset, float eps, float* out, std::size_t n) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, offset, eps, out, n);
}
void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* out, std::size_t n) {
  HWY_DYNAMIC_DISPATCH(LayerNorm)(x, weight, bias, eps, out, n);
}

void activate(Activation activation, float* x, std::size_t n) { HWY_DYNAMIC_DISPATCH(Activate)(static_cast<int>(activation), x, nullptr, n); }
void activate_gated(Activation activation, float* gate, const float* up, std::size_t n) {
  HWY_DYNAMIC_DISPATCH(Activate)(static_cast<int>(activation), gate, up, n);
}

void softmax(float* x, std::size_t n) {
  if (n > 0) HWY_DYNAMIC_DISPATCH(Softmax)(x, n);
}
void soft_cap(float cap, float* x, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) x[i] = cap * std::tanh(x[i] / cap);
}
void rotate_pairs(float* x, const float* cosine, const float* sine, std::size_t half) { HWY_DYNAMIC_DISPATCH(RotatePairs)(x, cosine, sine, half); }

double log_sum_exp(const float* x, std::size_t n) {
  constexpr std::size_t kAtOnce = 256;
  float largest = -INFINITY;
  for (std::size_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  double sum = 0;
  std::array<double, kAtOnce> exponentials;
  for (std::size_t i = 0; i < n; i += kAtOnce) {
    const std::size_t count = std::min(kAtOnce, n - i);
    exp_shifted({x + i, count}, -static_cast<double>(largest), {exponentials.data(), count});
    for (std::size_t j = 0; j < count; ++j) sum += exponentials[j];
  }
  return static_cast<double>(largest) + log(sum);
}

}  // namespace weft::math
#endif
