#include "quantize/scale_fold.h"

#include <algorithm>
#include <cmath>

#include "math/lapack.h"

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
  constexpr std::int64_t kRows = 64;
  const std::int64_t group = options.group <= 0 || options.group > columns ? columns : options.group;
  std::vector<float> clipped;
  std::vector<double> difference, product;
  struct Best {
    float largest = 0, limit = 0;
    double least = 0;
  };
  std::vector<Best> best;
  for (std::int64_t first = 0; first < columns; first += group) {
    const std::int64_t width = std::min(group, columns - first);
    for (std::int64_t top = 0; top < rows; top += kRows) {
      const std::int64_t count = std::min(kRows, rows - top);
      const auto slice_of = [&](std::int64_t r) {
        return weights.subspan(static_cast<std::size_t>((top + r) * columns + first), static_cast<std::size_t>(width));
      };
      best.assign(static_cast<std::size_t>(count), {});
      for (std::int64_t r = 0; r < count; ++r) {
        Best& own = best[static_cast<std::size_t>(r)];
        for (const float value : slice_of(r)) own.largest = std::max(own.largest, std::fabs(value));
        own.limit = own.largest;
      }
      difference.resize(static_cast<std::size_t>(count * width));
      product.resize(difference.size());
      for (int step = 0; step < kSteps; ++step) {
        for (std::int64_t r = 0; r < count; ++r) {
          const auto slice = slice_of(r);
          const float limit = best[static_cast<std::size_t>(r)].largest * (1 - 0.05F * static_cast<float>(step));
          clipped.assign(slice.begin(), slice.end());
          for (float& value : clipped) value = std::clamp(value, -limit, limit);
          const codec::SliceScale scale = codec::fit_slice(clipped, {}, options.format);
          double* own = difference.data() + r * width;
          for (std::size_t i = 0; i < clipped.size(); ++i)
            own[i] = static_cast<double>(codec::round_trip(clipped[i], scale, options.format) - slice[i]);
        }
        math::gemm(math::Transpose::no, math::Transpose::no, count, width, width, 1.0, difference.data(), width,
                   gram.data() + first * columns + first, columns, 0.0, product.data(), width);
        for (std::int64_t r = 0; r < count; ++r) {
          double loss = 0;
          for (std::int64_t i = r * width; i < (r + 1) * width; ++i)
            loss += difference[static_cast<std::size_t>(i)] * product[static_cast<std::size_t>(i)];
          Best& own = best[static_cast<std::size_t>(r)];
          if (step > 0 && !(loss < own.least)) continue;
          own.least = loss;
          own.limit = own.largest * (1 - 0.05F * static_cast<float>(step));
        }
      }
      for (std::int64_t r = 0; r < count; ++r) {
        const float limit = best[static_cast<std::size_t>(r)].limit;
        for (float& value : slice_of(r)) value = std::clamp(value, -limit, limit);
      }
    }
  }
}

}  // namespace weft::quantize
