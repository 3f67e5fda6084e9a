#include "quantize/statistic_repair.h"

#include <algorithm>
#include <cmath>

#include "math/lapack.h"

namespace weft::quantize {
namespace {

/// Adds a^T b to out, a, b: [rows, columns].
void add_transposed_product(std::span<const float> a, std::span<const float> b, std::int64_t rows, std::int64_t columns, std::span<double> out) {
  constexpr std::int64_t kRows = 256;
  std::vector<double> x, y;
  for (std::int64_t first = 0; first < rows; first += kRows) {
    const std::int64_t count = std::min(kRows, rows - first);
    x.assign(a.begin() + first * columns, a.begin() + (first + count) * columns);
    y.assign(b.begin() + first * columns, b.begin() + (first + count) * columns);
    math::gemm(math::Transpose::yes, math::Transpose::no, columns, columns, count, 1.0, x.data(), columns, y.data(), columns, 1.0, out.data(),
               columns);
  }
}

}  // namespace

std::vector<double> mean_shift(std::span<const float> weights, std::span<const float> quantized, std::int64_t rows, std::int64_t columns,
                               std::span<const double> mean) {
  std::vector<double> shift(static_cast<std::size_t>(rows));
  const auto width = static_cast<std::size_t>(columns);
  for (std::size_t r = 0; r < shift.size(); ++r) {
    double sum = 0;
    for (std::size_t c = 0; c < width; ++c)
      sum += (static_cast<double>(weights[r * width + c]) - static_cast<double>(quantized[r * width + c])) * mean[c];
    shift[r] = sum;
  }
  return shift;
}

TunedGains tune_gains(std::span<const TunedReader> readers, std::int64_t columns, std::span<const double> gram, std::span<const double> cross,
                      double damping) {
  const auto n = static_cast<std::size_t>(columns);
  TunedGains tuned;
  tuned.factors.assign(n, 1);
  std::vector<double> own(n * n), mixed(n * n);
  for (const TunedReader& reader : readers) {
    add_transposed_product(reader.quantized, reader.quantized, reader.rows, columns, own);
    add_transposed_product(reader.quantized, reader.weights, reader.rows, columns, mixed);
  }
  // d/dt_j: sum_i (Q^T Q)_ji (sum x x^T)_ji t_i = sum_i (Q^T W)_ji (sum y x^T)_ij.
  std::vector<double> right(n);
  double mean = 0;
  for (std::size_t j = 0; j < n; ++j) {
    for (std::size_t i = 0; i < n; ++i) {
      right[j] += mixed[j * n + i] * (gram[j * n + i] + (cross.empty() ? 0.0 : cross[i * n + j]));
      own[j * n + i] *= gram[j * n + i];
    }
    mean += own[j * n + j] / static_cast<double>(n);
  }
  if (!(mean > 0) || !std::isfinite(mean)) return tuned;
  /// The loss less that of no outputs at all.
  const auto loss = [&](const std::vector<double>& t) {
    double sum = 0;
    for (std::size_t j = 0; j < n; ++j) {
      double product = 0;
      for (std::size_t i = 0; i < n; ++i) product += own[j * n + i] * t[i];
      sum += t[j] * (product - 2 * right[j]);
    }
    return sum;
  };
  std::vector<double> factor = own, solution = right;
  const double pull = std::max(damping, 1e-9) * mean;
  for (std::size_t j = 0; j < n; ++j) {
    factor[j * n + j] += pull;
    solution[j] += pull;
  }
  if (!math::cholesky(factor, columns)) return tuned;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < i; ++j) solution[i] -= factor[i * n + j] * solution[j];
    solution[i] /= factor[i * n + i];
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t j = i + 1; j < n; ++j) solution[i] -= factor[j * n + i] * solution[j];
    solution[i] /= factor[i * n + i];
  }
  const double saved = loss(tuned.factors) - loss(solution);
  if (!(saved > 0) || !std::isfinite(saved)) return tuned;
  tuned.saved = saved;
  tuned.factors = std::move(solution);
  return tuned;
}

void clip_to_deviation(std::span<float> weights, std::int64_t rows, std::int64_t columns, std::int64_t group, double multiple) {
  if (group <= 0 || group > columns) group = columns;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t first = 0; first < columns; first += group) {
      const auto slice = weights.subspan(static_cast<std::size_t>(r * columns + first), static_cast<std::size_t>(std::min(group, columns - first)));
      const auto size = static_cast<double>(slice.size());
      double mean = 0, squares = 0;
      for (const float value : slice) mean += std::fabs(static_cast<double>(value)) / size;
      for (const float value : slice) {
        const double difference = std::fabs(static_cast<double>(value)) - mean;
        squares += difference * difference / size;
      }
      const auto limit = static_cast<float>(mean + multiple * std::sqrt(squares));
      for (float& value : slice) value = std::clamp(value, -limit, limit);
    }
}

}  // namespace weft::quantize
