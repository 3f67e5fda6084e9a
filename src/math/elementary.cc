#include "math/elementary.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "base/check.h"
#include "math/elementary_constants.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/elementary-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/elementary-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(ExpShifted);
HWY_EXPORT(LogOf);

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <std::size_t N>
double horner(const std::array<double, N>& highest_first, double x) noexcept {
  double sum = highest_first[0];
  for (std::size_t k = 1; k < N; ++k) sum = sum * x + highest_first[k];
  return sum;
}

// ---- sin and cos

// pi/2 in three parts. The first two have 33 bits: their products with a quotient below 2^20 are exact. Together 119 bits.
constexpr double kHalfPi1 = 0x1.921fb544p+0;
constexpr double kHalfPi2 = 0x1.0b4611a6p-34;
constexpr double kHalfPi3 = 0x1.3198a2e037073p-69;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
constexpr double kMaxAngle = 0x1p20;

/// (sin x - x) / x^3: -1/3!, 1/5!, ..., 1/17!, highest first but without -1/3!. What is left out (x^19/19!) is below 1e-19 where |x| <= pi/4.
constexpr std::array<double, 7> kSinSeries = {1.0 / 355687428096000, -1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800,
                                              1.0 / 362880,          -1.0 / 5040,          1.0 / 120};
/// 1/4!, -1/6!, ..., 1/16!, highest first. What is left out (x^18/18!) is below 3e-18.
constexpr std::array<double, 7> kCosSeries = {1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800,
                                              1.0 / 40320,          -1.0 / 720,         1.0 / 24};

/// A number as the sum of two doubles, the second a correction.
struct Pair {
  double high;
  double low;
};

/// a + b, exactly, whichever is larger.
Pair two_sum(double a, double b) noexcept {
  const double sum = a + b;
  const double b_part = sum - a;
  return {sum, (a - (sum - b_part)) + (b - b_part)};
}

/// x - quotient * pi/2, |result| <= pi/4 (and a little).
struct Reduced {
  Pair angle;
  unsigned quadrant;
};

Reduced reduce(double x) noexcept {
  namespace e = elementary;
  const double shifted = x * kTwoOverPi + e::kRoundingShift;
  const double n = shifted - e::kRoundingShift;
  // Exact: both are multiples of 2^-53 and the difference is below 1.
  const double first = x - n * kHalfPi1;
  const Pair second = two_sum(first, -(n * kHalfPi2));
  const Pair third = two_sum(second.high, -(n * kHalfPi3));
  return {{third.high, third.low + second.low}, static_cast<unsigned>(std::bit_cast<std::uint64_t>(shifted) & 3)};
}

// |x| <= pi/4; x.low is below half an ulp of x.high, so its square does not matter.
double sin_reduced(Pair x) noexcept {
  const double z = x.high * x.high;
  const double cube = z * x.high;
  const double series = horner(kSinSeries, z);
  return x.high - ((z * (0.5 * x.low - cube * series) - x.low) + cube * (1.0 / 6));
}

double cos_reduced(Pair x) noexcept {
  const double z = x.high * x.high;
  const double half = 0.5 * z;
  const double rounded = 1 - half;
  // (1 - rounded) - half is what rounding lost.
  return rounded + (((1 - rounded) - half) + (z * z * horner(kCosSeries, z) - x.high * x.low));
}

// ---- acos

constexpr double kHalfPiHigh = 0x1.921fb54442d18p+0;
constexpr double kHalfPiLow = 0x1.1a62633145c07p-54;

/// ((asin(x) / x) - 1) / x^2 as a polynomial in z = x^2, highest first: interpolation at the 13 Chebyshev nodes of z in [0, 1/4], computed with 60
/// digits. Error times z: below 6e-18.
constexpr std::array<double, 13> kAsinSeries = {0x1.d72b2bc8155f8p-6, -0x1.e6aaa8a0a04ccp-7, 0x1.1d189408314eep-6, 0x1.65a9c4dfcf8b2p-8,
                                                0x1.52420b04b37bep-7, 0x1.782651caa6547p-7,  0x1.c9cf07674736ap-7, 0x1.1c4d35cf95421p-6,
                                                0x1.6e8bb1c8209a2p-6, 0x1.f1c71c1db0623p-6,  0x1.6db6db6e31f13p-5, 0x1.3333333332ecap-4,
                                                0x1.5555555555556p-3};

/// asin(sqrt(z)) / sqrt(z) - 1, z <= 1/4.
double asin_excess(double z) noexcept { return z * horner(kAsinSeries, z); }

}  // namespace

double sin(double x) noexcept {
  if (!(std::abs(x) <= kMaxAngle)) return kNaN;
  // Below this x^3/6 is less than half an ulp, and x itself may be too small to square.
  if (std::abs(x) < 0x1p-27) return x;
  const Reduced r = reduce(x);
  const double value = r.quadrant % 2 == 0 ? sin_reduced(r.angle) : cos_reduced(r.angle);
  return r.quadrant < 2 ? value : -value;
}

double cos(double x) noexcept {
  if (!(std::abs(x) <= kMaxAngle)) return kNaN;
  const Reduced r = reduce(x);
  const double value = r.quadrant % 2 == 0 ? cos_reduced(r.angle) : sin_reduced(r.angle);
  return r.quadrant == 0 || r.quadrant == 3 ? value : -value;
}

double acos(double x) noexcept {
  if (!(std::abs(x) <= 1)) return kNaN;
  if (std::abs(x) <= 0.5) return kHalfPiHigh - (x - (kHalfPiLow - x * asin_excess(x * x)));
  if (x < 0) {
    // acos(x) = pi - 2 asin(sqrt((1 + x) / 2))
    const double z = (1 + x) * 0.5;
    const double s = std::sqrt(z);
    return 2 * (kHalfPiHigh - (s + (asin_excess(z) * s - kHalfPiLow)));
  }
  // acos(x) = 2 asin(sqrt((1 - x) / 2)); the root in two parts, since the result may be as small as it.
  const double z = (1 - x) * 0.5;
  if (z == 0) return 0;
  const double s = std::sqrt(z);
  const double high = std::bit_cast<double>(std::bit_cast<std::uint64_t>(s) & 0xFFFFFFFF00000000ULL);
  const double low = (z - high * high) / (s + high);
  return 2 * (high + (asin_excess(z) * s + low));
}

double exp(double x) noexcept {
  namespace e = elementary;
  double bounded = x > e::kExpMax ? e::kExpMax : x;
  bounded = bounded < e::kExpMin ? e::kExpMin : bounded;
  const double shifted = bounded * e::kLog2E + e::kRoundingShift;
  const double n = shifted - e::kRoundingShift;
  const double r = (bounded - n * e::kLn2High) - n * e::kLn2Low;
  const double mantissa = 1.0 + (r + (r * r) * horner(e::kExpSeries, r));
  const std::uint64_t exponent = (std::bit_cast<std::uint64_t>(shifted) + e::kExponentOffset) & 0xFFFF;
  const std::uint64_t half = exponent >> 1;
  constexpr std::uint64_t kBias = e::kExponentOffset / 2 - 1023;
  const double factor0 = std::bit_cast<double>((half - kBias) << 52);
  const double factor1 = std::bit_cast<double>(((exponent - half) - kBias) << 52);
  return x != x ? kNaN : (mantissa * factor0) * factor1;
}

double log(double x) noexcept {
  namespace e = elementary;
  if (!(x >= 0)) return kNaN;
  if (x == 0) return -kInfinity;
  if (x == kInfinity) return kInfinity;
  const bool subnormal = x < std::numeric_limits<double>::min();
  // x = 2^k m with m in [sqrt(1/2), sqrt(2)).
  const std::uint64_t above = std::bit_cast<std::uint64_t>(subnormal ? x * 0x1p54 : x) - e::kSqrtHalfBits;
  double k = static_cast<double>((above + e::kOneBits) >> 52) - 1023.0;
  if (subnormal) k -= 54.0;
  const double m = std::bit_cast<double>((above & 0x000FFFFFFFFFFFFFULL) + e::kSqrtHalfBits);
  const double f = m - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double remainder = horner(e::kLogSeries, z) * z;
  const double half_square = (0.5 * f) * f;
  // log(1 + f) = f - f^2/2 + s (f^2/2 + remainder), which keeps f, the largest term, exact.
  const double tail = s * (half_square + remainder) + k * e::kLn2Low;
  return k * e::kLn2High - ((half_square - tail) - f);
}

void exp_shifted(std::span<const float> x, double shift, std::span<double> out) {
  WEFT_ASSERT(x.size() == out.size());
  HWY_DYNAMIC_DISPATCH(ExpShifted)(x.data(), shift, out.size(), out.data());
}

void log_of(std::span<const double> x, std::span<double> out) {
  WEFT_ASSERT(x.size() == out.size());
  HWY_DYNAMIC_DISPATCH(LogOf)(x.data(), out.size(), out.data());
}

}  // namespace weft::math
#endif
