#include "quantize/low_rank.h"

#include <algorithm>
#include <cmath>

#include "math/lapack.h"

namespace weft::quantize {

LowRank repair(std::span<const float> residual, std::int64_t rows, std::int64_t columns, std::int64_t rank, std::span<const double> gram) {
  const auto n = static_cast<std::size_t>(columns), m = static_cast<std::size_t>(rows);
  LowRank out;
  out.rank = std::min({rank, rows, columns});
  std::vector<double> matrix(residual.begin(), residual.end());
  // In the metric H = V diag(l) V^T a residual R is as long as R V sqrt(l).
  std::vector<double> vectors, roots(n, 1);
  if (!gram.empty()) {
    constexpr double kFloor = 1e-6;  // of the mean: what was hardly ever read must not blow up the way back
    vectors.assign(gram.begin(), gram.end());
    const std::vector<double> values = math::symmetric_eigen(vectors, columns, math::Vectors::yes);
    double mean = 0;
    for (const double value : values) mean += std::max(value, 0.0) / static_cast<double>(n);
    if (!(mean > 0)) {
      vectors.clear();
    } else {
      for (std::size_t i = 0; i < n; ++i) roots[i] = std::sqrt(std::max(values[i], kFloor * mean));
      std::vector<double> turned(m * n);
      math::gemm(math::Transpose::no, math::Transpose::yes, rows, columns, columns, 1.0, matrix.data(), columns, vectors.data(), columns, 0.0,
                 turned.data(), columns);
      for (std::size_t i = 0; i < turned.size(); ++i) turned[i] *= roots[i % n];
      matrix = std::move(turned);
    }
  }
  const math::Svd parts = math::svd(matrix, rows, columns);
  const std::size_t k = std::min(m, n), r = static_cast<std::size_t>(out.rank);
  out.left.resize(m * r);
  out.right.resize(r * n);
  std::vector<double> right(r * n);
  for (std::size_t q = 0; q < r; ++q) {
    const double root = std::sqrt(parts.values[q]);
    for (std::size_t i = 0; i < m; ++i) out.left[i * r + q] = static_cast<float>(parts.left[i * k + q] * root);
    for (std::size_t j = 0; j < n; ++j) right[q * n + j] = parts.right[q * n + j] * root / roots[j];
  }
  if (!vectors.empty()) {
    std::vector<double> back(r * n);
    math::gemm(math::Transpose::no, math::Transpose::no, out.rank, columns, columns, 1.0, right.data(), columns, vectors.data(), columns, 0.0,
               back.data(), columns);
    right = std::move(back);
  }
  std::transform(right.begin(), right.end(), out.right.begin(), [](double value) { return static_cast<float>(value); });
  return out;
}

}  // namespace weft::quantize
