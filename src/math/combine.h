#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

// Element-wise kernels on float32. All class A: each element by the same sequence of separately rounded operations on every target. Inputs may
// be misaligned (buffers that begin at a cache line are faster); out may be one of the inputs unless said otherwise; all spans have the same length.
// Weighted sums leave out inputs of weight 0: they are not read, and their pointers may be null.
namespace weft::math {

/// out[i] = ((w0 x0[i] + w1 x1[i]) + w2 x2[i]) + ...; no inputs: zeros. float32, in this order.
void weighted_sum(std::span<const float* const> inputs, std::span<const float> weights, std::span<float> out);
/// The same with products and sums in float64, rounded once: averaging copies of one input is exact.
/// out[i] = float((sum_k w_k x_k[i]) * scale).
void weighted_sum_f64(std::span<const float* const> inputs, std::span<const double> weights, double scale, std::span<float> out);
/// out[i] = float(double(base[i]) + scale * (sum_k w_k (double(x_k[i]) - double(base[i])))).
void add_weighted_deltas_f64(std::span<const float> base, std::span<const float* const> inputs, std::span<const double> weights, double scale,
                             std::span<float> out);
/// out = a - b, rounded to float32.
void subtract(std::span<const float> a, std::span<const float> b, std::span<float> out);
/// out = a + b.
void add(std::span<const float> a, std::span<const float> b, std::span<float> out);
/// out = a * scale.
void scale(std::span<const float> a, float factor, std::span<float> out);

/// Sign-consensus sum of TIES. values: the weighted deltas v_k; weights: w_k. s = +1 where sum v_k >= 0, else -1; those with sign(v_k) == s are
/// summed (an exact zero never matches). mixed[i] = that sum; divisor[i] = the sum of their weights (no guard applied).
void sign_consensus(std::span<const float* const> values, std::span<const float> weights, std::span<float> mixed, std::span<float> divisor);

/// Keeps values[i] where the key (|values[i]|, then lower index first) is among the largest: |v| > threshold, or |v| == threshold and
/// first_index + i <= last_tie_index; zero elsewhere. NaN-free.
void keep_at_least(std::span<float> values, float threshold, std::uint64_t first_index, std::uint64_t last_tie_index);
/// Zeroes values[i] where uniform[i] >= probability.
void keep_where_below(std::span<float> values, std::span<const float> uniform, float probability);

/// Moves base[i] toward other[i]: by `step`, or all the way where that is nearer; in float64, rounded once. NaN where either is.
void step_toward(std::span<const float> base, std::span<const float> other, double step, std::span<float> out);
/// The same by min(step / max(|other - base|, smallest), 1) of the way, for a step below `smallest`.
void step_part_way(std::span<const float> base, std::span<const float> other, double step, double smallest, std::span<float> out);

/// u[i] = RandomStream{key, model, stream}.uniform(first_element + i), vectorised. The same numbers as base/philox.h.
void philox_uniform(std::uint64_t key, std::uint32_t model, std::uint32_t stream, std::uint64_t first_element, std::span<float> out);

}  // namespace weft::math
