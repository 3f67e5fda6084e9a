#include "math/beta.h"

#include <cmath>
#include <limits>

namespace weft::math {
namespace {

/// The continued fraction by Lentz's method; converges fast for x < (a + 1) / (a + b + 2).
double fraction(double x, double a, double b) {
  constexpr double kTiny = 1e-300;
  double c = 1, d = 1 - (a + b) * x / (a + 1);
  d = 1 / (std::abs(d) < kTiny ? kTiny : d);
  double value = d;
  for (int m = 1; m < 10000; ++m) {
    const auto step = [&](double numerator) {
      d = 1 + numerator * d;
      d = 1 / (std::abs(d) < kTiny ? kTiny : d);
      c = 1 + numerator / c;
      if (std::abs(c) < kTiny) c = kTiny;
      value *= d * c;
    };
    step(m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)));
    step(-(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)));
    if (std::abs(d * c - 1) < 1e-16) break;
  }
  return value;
}

}  // namespace

double incomplete_beta(double x, double a, double b) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  return x < (a + 1) / (a + b + 2) ? front * fraction(x, a, b) / a : 1 - front * fraction(1 - x, b, a) / b;
}

double cosine_quantile(double p, double d) {
  // cos = 2 B - 1 with B of the symmetric beta distribution with both parameters (d - 1) / 2.
  const double a = (d - 1) / 2;
  double low = 0, high = 1;
  for (int i = 0; i < 200 && high - low > std::numeric_limits<double>::epsilon() / 4; ++i) {
    const double middle = (low + high) / 2;
    (incomplete_beta(middle, a, a) < p ? low : high) = middle;
  }
  return low + high - 1;
}

}  // namespace weft::math
