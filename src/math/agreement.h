#pragma once
#include <cstddef>
#include <span>

// Where models changed a base differently, and the mean of those that agree. Class A, element by element. All spans have the same length; out may be
// none of the inputs.
namespace weft::math {

/// out[i] = the population variance over the models (one at least) of x_k[i] - base[i] (float32), in float64, rounded once. 0 exactly where all are
/// equal; one that exists is never rounded to zero or infinity.
void delta_variances(std::span<const float> base, std::span<const float* const> models, std::span<float> out);

/// out[i] = base[i] + sum of w_k (x_k[i] - base[i]) / max(sum of w_k, smallest_divisor) in float64, over the models whose change has the sign of the
/// float32 sum of all changes (>= 0: positive); no change at all never agrees.
void add_agreeing_mean(std::span<const float> base, std::span<const float* const> models, std::span<const double> weights, double smallest_divisor,
                       std::span<float> out);

}  // namespace weft::math
