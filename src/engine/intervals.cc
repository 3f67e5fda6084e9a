#include "engine/intervals.h"

#include <cmath>
#include <limits>

namespace weft::engine {
namespace {

/// The 97.5 % point of Student's t: exact for few degrees of freedom, where the expansion around the normal distribution's is not.
double t_point(std::size_t degrees) {
  constexpr std::array<double, 5> kExact = {12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818};
  if (degrees <= kExact.size()) return kExact[degrees - 1];
  const double z = 1.959963984540054, n = static_cast<double>(degrees);
  return z + (z * z * z + z) / (4 * n) + (5 * std::pow(z, 5) + 16 * z * z * z + 3 * z) / (96 * n * n) +
         (3 * std::pow(z, 7) + 19 * std::pow(z, 5) + 17 * z * z * z - 15 * z) / (384 * n * n * n);
}

}  // namespace

std::array<double, 2> mean_interval95(std::span<const double> values, std::span<const double> weights) {
  const std::size_t n = values.size();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (n < 2) return {-kInfinity, kInfinity};
  double total = 0, sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    total += weights[i];
    sum += weights[i] * values[i];
  }
  const double mean = sum / total;
  double spread = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double part = weights[i] / total * (values[i] - mean);
    spread += part * part;
  }
  const double half = t_point(n - 1) * std::sqrt(spread * static_cast<double>(n) / static_cast<double>(n - 1));
  return {mean - half, mean + half};
}

}  // namespace weft::engine
