#include "quantize/key_smoothing.h"

#include <algorithm>
#include <cmath>

namespace weft::quantize {

std::vector<double> channel_scales(std::span<const float> max_abs, double exponent) {
  std::vector<double> scales(max_abs.size(), 1);
  double logarithms = 0;
  std::size_t counted = 0;
  for (const float largest : max_abs) {
    if (!(largest > 0) || !std::isfinite(largest)) continue;
    logarithms += std::log(static_cast<double>(largest));
    ++counted;
  }
  if (counted == 0) return scales;
  const double centre = logarithms / static_cast<double>(counted);
  for (std::size_t i = 0; i < scales.size(); ++i)
    if (max_abs[i] > 0 && std::isfinite(max_abs[i])) scales[i] = std::exp(exponent * (std::log(static_cast<double>(max_abs[i])) - centre));
  return scales;
}

std::vector<double> pair_scales(std::span<const float> max_abs, double exponent) {
  const std::size_t pairs = max_abs.size() / 2;
  std::vector<float> largest(pairs);
  for (std::size_t i = 0; i < pairs; ++i) largest[i] = std::max(max_abs[i], max_abs[pairs + i]);
  return channel_scales(largest, exponent);
}

}  // namespace weft::quantize
