#include "merge/regmean.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "math/lapack.h"

namespace weft::merge {
namespace {

constexpr std::size_t kPanel = 64;

/// Pivots below this share of the mean diagonal element make the system singular for all that float64 knows, ...
constexpr double kLeastPivot = 1e-10;
/// ... and this share is added then.
constexpr double kRidge = 1e-6;

}  // namespace

double factor_lower(std::span<double> matrix, std::size_t n) {
  double least = std::numeric_limits<double>::infinity();
  double* m = matrix.data();
  std::vector<double> panel;
  for (std::size_t p = 0; p < n; p += kPanel) {
    const std::size_t width = std::min(kPanel, n - p), end = p + width;
    for (std::size_t j = p; j < end; ++j) {
      double pivot = m[j * n + j];
      for (std::size_t k = p; k < j; ++k) pivot -= m[j * n + k] * m[j * n + k];
      least = std::min(least, pivot);
      if (!(pivot > 0)) return pivot;
      const double root = std::sqrt(pivot);
      m[j * n + j] = root;
      for (std::size_t i = j + 1; i < n; ++i) {
        double sum = m[i * n + j];
        for (std::size_t k = p; k < j; ++k) sum -= m[i * n + k] * m[j * n + k];
        m[i * n + j] = sum / root;
      }
    }
    if (end == n) break;
    // What lies behind loses the panel's products.
    const auto rest = static_cast<std::int64_t>(n - end);
    math::gemm(math::Transpose::no, math::Transpose::yes, rest, rest, static_cast<std::int64_t>(width), -1.0, m + end * n + p,
               static_cast<std::int64_t>(n), m + end * n + p, static_cast<std::int64_t>(n), 1.0, m + end * n + end, static_cast<std::int64_t>(n));
  }
  return least;
}

RegMean::RegMean(std::span<const Inputs> models, std::size_t columns, double off_diagonal) : columns_(columns) {
  std::vector<double> sum(columns * columns, 0.0);
  for (const Inputs& model : models) {
    WEFT_ASSERT(model.gram.size() == columns * columns);
    std::vector<double>& own = moments_.emplace_back(model.gram.begin(), model.gram.end());
    const double rows = static_cast<double>(std::max<std::uint64_t>(model.num_tokens, 1));
    for (std::size_t i = 0; i < columns; ++i)
      for (std::size_t j = 0; j < columns; ++j) {
        double& value = own[i * columns + j];
        value = value / rows * (i == j ? 1.0 : off_diagonal);
        sum[i * columns + j] += value;
      }
  }
  double trace = 0;
  for (std::size_t i = 0; i < columns; ++i) trace += sum[i * columns + i];
  if (!(trace > 0)) return;
  const double mean = trace / static_cast<double>(columns);
  factor_ = sum;
  if (!(factor_lower(factor_, columns) >= kLeastPivot * mean)) {
    ridged_ = true;
    // Rounding in the sums themselves may ask for more than the first step.
    double ridge = kRidge * mean;
    for (;; ridge *= 10) {
      factor_ = sum;
      for (std::size_t i = 0; i < columns; ++i) factor_[i * columns + i] += ridge;
      if (factor_lower(factor_, columns) > 0) break;
    }
    // Shared out among the models, so that directions which no input reaches become the mean of the weights there, not zero.
    for (std::vector<double>& own : moments_)
      for (std::size_t i = 0; i < columns; ++i) own[i * columns + i] += ridge / static_cast<double>(moments_.size());
  }
}

void RegMean::merge(std::span<const std::span<const float>> weights, std::size_t rows, std::span<float> out) const {
  WEFT_ASSERT(weights.size() == moments_.size() && out.size() == rows * columns_);
  const std::size_t n = columns_;
  std::vector<double> sum(rows * n, 0.0);
  if (is_mean()) {
    for (const auto& weight : weights)
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(weight[i]);
    for (std::size_t i = 0; i < sum.size(); ++i) out[i] = static_cast<float>(sum[i] / static_cast<double>(weights.size()));
    return;
  }
  // sum_k W_k G_k
  std::vector<double> weight(rows * n);
  for (std::size_t k = 0; k < weights.size(); ++k) {
    for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<double>(weights[k][i]);
    const auto r = static_cast<std::int64_t>(rows), c = static_cast<std::int64_t>(n);
    math::gemm(math::Transpose::no, math::Transpose::no, r, c, c, 1.0, weight.data(), c, moments_[k].data(), c, 1.0, sum.data(), c);
  }
  // Each row b becomes x with x L L^T = b.
  const double* l = factor_.data();
  for (std::size_t r = 0; r < rows; ++r) {
    double* b = sum.data() + r * n;
    for (std::size_t j = 0; j < n; ++j) {
      double value = b[j];
      for (std::size_t k = 0; k < j; ++k) value -= b[k] * l[j * n + k];
      b[j] = value / l[j * n + j];
    }
    for (std::size_t j = n; j-- > 0;) {
      b[j] /= l[j * n + j];
      for (std::size_t k = 0; k < j; ++k) b[k] -= b[j] * l[j * n + k];
    }
    for (std::size_t j = 0; j < n; ++j) out[r * n + j] = static_cast<float>(b[j]);
  }
}

}  // namespace weft::merge
