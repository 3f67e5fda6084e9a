#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "weft/dtype.h"

// Kernels of a forward pass on float32 rows. Sums are in float32 over the lanes of a vector, elementary functions are Highway's: class B (the same
// bits for any number of threads on one SIMD target). Pointers may be misaligned.
namespace weft::math {

/// Types that row_products reads as they are stored.
[[nodiscard]] constexpr bool has_row_products(DType dtype) noexcept {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::i8;
}

/// out[t * out_stride + r] = sum_k weights[r, k] x[t * x_stride + k] for r < rows, t < tokens: a matrix with few rows of x, as one token has, at the
/// speed at which the weights are read. weights: [rows, columns] packed, of a type that has_row_products.
void row_products(DType dtype, const std::byte* weights, std::size_t rows, std::size_t columns, const float* x, std::size_t x_stride,
                  std::size_t tokens, float* out, std::size_t out_stride);

/// out[i] = round(x[i] / step), -127 to 127; returns step, the largest |x[i]| / 127 (NaN when some x[i] is NaN or infinite, and 0 for zeros).
[[nodiscard]] float quantize_int8(const float* x, std::int8_t* out, std::size_t n);
/// The same with 128 added.
[[nodiscard]] float quantize_uint8(const float* x, std::uint8_t* out, std::size_t n);
/// out[i] = (sums[i] - offsets[i]) * (factor * steps[i]).
void rescale(const std::int32_t* sums, const std::int32_t* offsets, float factor, const float* steps, float* out, std::size_t n);
/// x[i] *= factors[i].
void multiply_by(const float* factors, float* x, std::size_t n);

/// sum_k x[k] y[k] in float32.
[[nodiscard]] float dot_f32(const float* x, const float* y, std::size_t n);
/// out += factor * x.
void add_scaled(float factor, const float* x, float* out, std::size_t n);
/// out += x.
void add_to(const float* x, float* out, std::size_t n);

/// out = x / sqrt(mean(x^2) + eps) * (offset + weight). out may be x.
void rms_norm(const float* x, const float* weight, float offset, float eps, float* out, std::size_t n);
/// out = (x - mean) / sqrt(var + eps) * weight + bias; the variance is divided by n. out may be x; bias may be null.
void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* out, std::size_t n);

enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, quick_gelu, relu, tanh, sigmoid };
/// x = f(x). gelu is the one with erf.
void activate(Activation activation, float* x, std::size_t n);
/// gate = f(gate) * up.
void activate_gated(Activation activation, float* gate, const float* up, std::size_t n);

/// x = exp(x - max) / sum. Entries of -infinity become 0; some entry is finite.
void softmax(float* x, std::size_t n);
/// x = cap * tanh(x / cap).
void soft_cap(float cap, float* x, std::size_t n);
/// Turns the pairs (x[j], x[j + half]), j < half, by the angles whose cosine and sine are given.
void rotate_pairs(float* x, const float* cosine, const float* sine, std::size_t half);

/// log(sum(exp(x))) in float64.
[[nodiscard]] double log_sum_exp(const float* x, std::size_t n);

}  // namespace weft::math
