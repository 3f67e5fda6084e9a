#pragma once
#include <span>

// Elementary functions of our own, from additions, multiplications, divisions and square roots only, so that they give the same bits whatever the C
// library and the CPU. Class A. Error at most 1e-15 relative (2 ulp), except near zeros of sin where it is absolute.
namespace weft::math {

[[nodiscard]] double sin(double x) noexcept;   ///< |x| <= 2^20; NaN beyond
[[nodiscard]] double cos(double x) noexcept;   ///< |x| <= 2^20; NaN beyond
[[nodiscard]] double acos(double x) noexcept;  ///< x in [-1, 1]; NaN outside
[[nodiscard]] double exp(double x) noexcept;   ///< overflow: infinity; underflow: 0
[[nodiscard]] double log(double x) noexcept;   ///< x > 0; log(0) = -infinity; NaN below

/// out[i] = exp(x[i] + shift) in float64, vectorised; bit-identical to the scalar one. Spans of one length.
void exp_shifted(std::span<const float> x, double shift, std::span<double> out);
/// out[i] = log(x[i]), vectorised; bit-identical to the scalar one.
void log_of(std::span<const double> x, std::span<double> out);

}  // namespace weft::math
