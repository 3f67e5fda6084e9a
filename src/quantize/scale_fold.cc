#include "quantize/scale_fold.h"

#include <algorithm>
#include <cmath>

namespace weft::quantize {
namespace {

constexpr float kLeastScale = 1e-4F;

/// Balanced about 1: sqrt(largest * smallest) becomes 1.
void balance(std::vector<float>& scales) {
  if (scales.empty()) return;
  const auto [least, most] = std::minmax_element(scales.begin(), scales.end());
  const float centre = std::sqrt(*least * *most);
  if (!(centre > 0) || !std::isfinite(centre)) return;
  for (float& scale : scales) scale /= centre;
}

}  // namespace

void scale_columns(std::span<float> weights, std::int64_t columns, std::span<const float> scales) {
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] *= scales[i % static_cast<std::size_t>(columns)];
}

void divide_rows(std::span<float> weights, std::int64_t columns, std::span<const float> scales) {
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] /= scales[i / static_cast<std::size_t>(columns)];
}

void divide_gram(std::span<double> gram, std::span<const float> scales) {
  const std::size_t n = scales.size();
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) gram[i * n + j] /= static_cast<double>(scales[i]) * static_cast<double>(scales[j]);
}

ScaleChoice search_awq(std::span<const Reader> readers, std::int64_t columns, std::span<const double> mean_abs, std::span<const double> gram,
                       const SolverOptions& options) {
  constexpr int kSteps = 20;
  ScaleChoice best;
  best.scales.assign(static_cast<std::size_t>(columns), 1);
  std::vector<float> scaled, scales(static_cast<std::size_t>(columns));
  for (int step = 0; step < kSteps; ++step) {
    const double exponent = static_cast<double>(step) / kSteps;
    for (std::size_t j = 0; j < scales.size(); ++j)
      scales[j] = std::max(static_cast<float>(std::pow(std::max(mean_abs[j], 0.0), exponent)), kLeastScale);
    balance(scales);
    double loss = 0;
    for (const Reader& reader : readers) {
      scaled.assign(reader.weights.begin(), reader.weights.end());
      scale_columns(scaled, columns, scales);
      std::vector<float> difference = round_to_nearest(scaled, reader.rows, columns, options).decoded();
      for (std::size_t i = 0; i < difference.size(); ++i)
        difference[i] = difference[i] / scales[i % static_cast<std::size_t>(columns)] - reader.weights[i];
      loss += quadratic_form(difference, reader.rows, columns, gram);
    }
    if (step == 0) best.loss = best.plain_loss = loss;
    if (loss < best.loss) {
      best.loss = loss;
      best.exponent = exponent;
      best.scales = scales;
    }
  }
  return best;
}

std::vector<float> smooth_scales(std::span<const Reader> readers, std::int64_t columns, std::span<const float> max_abs, double exponent) {
  constexpr double kLeast = 1e-5;
  std::vector<double> largest(static_cast<std::size_t>(columns), kLeast);
  for (const Reader& reader : readers)
    for (std::size_t i = 0; i < reader.weights.size(); ++i) {
      double& own = largest[i % static_cast<std::size_t>(columns)];
      own = std::max(own, std::fabs(static_cast<double>(reader.weights[i])));
    }
  std::vector<float> scales(largest.size());
  for (std::size_t j = 0; j < scales.size(); ++j)
    scales[j] = static_cast<float>(
        std::max(std::pow(std::max(static_cast<double>(max_abs[j]), kLeast), exponent) / std::pow(largest[j], 1 - exponent), kLeast));
  return scales;
}

void clip_groups(std::span<float> weights, std::int64_t rows, std::int64_t columns, std::span<const double> gram, const SolverOptions& options) {
  constexpr int kSteps = 10;
  const std::int64_t group = options.group <= 0 || options.group > columns ? columns : options.group;
  std::vector<float> clipped, difference;
  std::vector<double> own;
  for (std::int64_t first = 0; first < columns; first += group) {
    const std::int64_t width = std::min(group, columns - first);
    own.resize(static_cast<std::size_t>(width * width));
    for (std::int64_t i = 0; i < width; ++i)
      for (std::int64_t j = 0; j < width; ++j)
        own[static_cast<std::size_t>(i * width + j)] = gram[static_cast<std::size_t>((first + i) * columns + first + j)];
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto slice = weights.subspan(static_cast<std::size_t>(r * columns + first), static_cast<std::size_t>(width));
      float largest = 0;
      for (const float value : slice) largest = std::max(largest, std::fabs(value));
      if (largest == 0) continue;
      float best_limit = largest;
      double least = 0;
      for (int step = 0; step < kSteps; ++step) {
        const float limit = largest * (1 - 0.05F * static_cast<float>(step));
        clipped.assign(slice.begin(), slice.end());
        for (float& value : clipped) value = std::clamp(value, -limit, limit);
        const codec::SliceScale scale = codec::fit_slice(clipped, {}, options.format);
        difference.resize(clipped.size());
        for (std::size_t i = 0; i < clipped.size(); ++i) difference[i] = codec::round_trip(clipped[i], scale, options.format) - slice[i];
        double loss = 0;
        for (std::size_t i = 0; i < difference.size(); ++i) {
          double sum = 0;
          for (std::size_t j = 0; j < difference.size(); ++j) sum += own[i * difference.size() + j] * difference[j];
          loss += sum * difference[i];
        }
        if (step == 0 || loss < least) {
          least = loss;
          best_limit = limit;
        }
      }
      for (float& value : slice) value = std::clamp(value, -best_limit, best_limit);
    }
  }
}

}  // namespace weft::quantize
