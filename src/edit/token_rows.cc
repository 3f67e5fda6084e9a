#include "edit/token_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "math/gemm.h"
#include "math/lapack.h"

namespace weft::edit {
namespace {

constexpr double kTiny = 1e-8;
constexpr double kLeastDistance = 1e-6;

/// Points whose inner products are worked out at a time, so that a call holds a few MiB.
constexpr std::size_t kBlock = 8192;

double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double length(std::span<const double> x) { return std::sqrt(dot(x, x)); }

std::vector<double> widened(std::span<const float> x) { return {x.begin(), x.end()}; }

/// The w of least length for which a w comes nearest to b; a: [rows, columns], destroyed.
std::vector<double> least_squares(std::vector<double>& a, std::size_t rows, std::size_t columns, std::span<const double> b) {
  const math::Svd parts = math::svd(a, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns));
  const std::size_t rank = parts.values.size();
  // What float32 data cannot tell from zero.
  const double floor =
      parts.values.front() * static_cast<double>(std::numeric_limits<float>::epsilon()) * static_cast<double>(std::max(rows, columns));
  std::vector<double> w(columns, 0.0);
  for (std::size_t i = 0; i < rank; ++i) {
    if (parts.values[i] <= floor) continue;
    double sum = 0;
    for (std::size_t r = 0; r < rows; ++r) sum += parts.left[r * rank + i] * b[r];
    sum /= parts.values[i];
    for (std::size_t c = 0; c < columns; ++c) w[c] += sum * parts.right[i * columns + c];
  }
  return w;
}

}  // namespace

std::vector<Combination> orthogonal_matching_pursuit(Rows targets, Rows points, std::size_t k) {
  const std::size_t count = targets.count(), width = targets.width, num_points = points.count();
  WEFT_ASSERT(points.width == width && k >= 1 && k <= num_points);
  std::vector<Combination> out(count);
  std::vector<std::vector<double>> basis(count), triangle(count), coordinates(count), left(count);
  std::vector<float> residuals(targets.values.begin(), targets.values.end());
  for (std::size_t b = 0; b < count; ++b) {
    basis[b].resize(k * width);      // orthonormal, one after another
    triangle[b].assign(k * k, 0.0);  // of each point in the basis, upper
    coordinates[b].assign(k, 0.0);   // of the target in the basis
    left[b] = widened(targets.row(b));
  }
  std::vector<float> inner(count * std::min(kBlock, num_points));
  std::vector<double> best(count);
  std::vector<std::uint32_t> chosen(count);
  for (std::size_t t = 0; t < k; ++t) {
    std::fill(best.begin(), best.end(), -1.0);
    for (std::size_t first = 0; first < num_points; first += kBlock) {
      const std::size_t size = std::min(kBlock, num_points - first);
      math::gemm_nt(count, size, width, residuals.data(), width, points.values.data() + first * width, width, inner.data(), size);
      for (std::size_t b = 0; b < count; ++b) {
        const std::vector<std::uint32_t>& taken = out[b].points;
        for (std::size_t i = 0; i < size; ++i) {
          const double value = std::abs(static_cast<double>(inner[b * size + i]));
          if (!(value > best[b])) continue;
          const auto point = static_cast<std::uint32_t>(first + i);
          if (std::find(taken.begin(), taken.end(), point) != taken.end()) continue;
          best[b] = value;
          chosen[b] = point;
        }
      }
    }
    for (std::size_t b = 0; b < count; ++b) {
      out[b].points.push_back(chosen[b]);
      std::vector<double> atom = widened(points.row(chosen[b]));
      for (std::size_t j = 0; j < t; ++j) {
        const std::span<const double> q = std::span<const double>(basis[b]).subspan(j * width, width);
        const double along = dot(q, atom);
        triangle[b][j * k + t] += along;
        for (std::size_t i = 0; i < width; ++i) atom[i] -= along * q[i];
      }
      const double norm = std::max(length(atom), kTiny);
      triangle[b][t * k + t] = norm;
      const std::span<double> q = std::span<double>(basis[b]).subspan(t * width, width);
      for (std::size_t i = 0; i < width; ++i) q[i] = atom[i] / norm;
      // What is left is orthogonal to the basis so far, so this equals the target's coordinate.
      coordinates[b][t] = dot(q, left[b]);
      for (std::size_t i = 0; i < width; ++i) {
        left[b][i] -= coordinates[b][t] * q[i];
        residuals[b * width + i] = static_cast<float>(left[b][i]);
      }
    }
  }
  for (std::size_t b = 0; b < count; ++b) {
    out[b].weights.assign(k, 0.0);
    for (std::size_t t = k; t-- > 0;) {
      double sum = coordinates[b][t];
      for (std::size_t j = t + 1; j < k; ++j) sum -= triangle[b][t * k + j] * out[b].weights[j];
      out[b].weights[t] = sum / triangle[b][t * k + t];
    }
  }
  return out;
}

std::vector<Combination> nearest_points(Rows targets, Rows points, std::size_t k, Distance distance, Weighting weighting) {
  const std::size_t count = targets.count(), width = targets.width, num_points = points.count();
  WEFT_ASSERT(points.width == width && k >= 1 && k <= num_points);
  const auto squared_length = [](std::span<const float> x) {
    double sum = 0;
    for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
    return sum;
  };
  std::vector<double> point_squares(num_points);
  for (std::size_t i = 0; i < num_points; ++i) point_squares[i] = squared_length(points.row(i));
  std::vector<std::vector<double>> distances(count, std::vector<double>(num_points));
  std::vector<float> inner(count * std::min(kBlock, num_points));
  for (std::size_t first = 0; first < num_points; first += kBlock) {
    const std::size_t size = std::min(kBlock, num_points - first);
    math::gemm_nt(count, size, width, targets.values.data(), width, points.values.data() + first * width, width, inner.data(), size);
    for (std::size_t b = 0; b < count; ++b) {
      const double own = squared_length(targets.row(b));
      for (std::size_t i = 0; i < size; ++i) {
        const double product = static_cast<double>(inner[b * size + i]), other = point_squares[first + i];
        distances[b][first + i] = distance == Distance::euclidean ? std::max(0.0, own + other - 2 * product)
                                                                  : 1 - product / std::max(std::sqrt(own * other), kLeastDistance);
      }
    }
  }
  std::vector<Combination> out(count);
  std::vector<std::uint32_t> order(num_points);
  for (std::size_t b = 0; b < count; ++b) {
    std::iota(order.begin(), order.end(), 0u);
    const std::vector<double>& d = distances[b];
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
                      [&d](std::uint32_t x, std::uint32_t y) { return d[x] != d[y] ? d[x] < d[y] : x < y; });
    out[b].points.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k));
    std::vector<double>& weights = out[b].weights;
    const std::vector<double> target = widened(targets.row(b));
    if (weighting == Weighting::distance_proportional) {
      double sum = 0;
      for (const std::uint32_t p : out[b].points) {
        // The expansion above loses digits where points nearly meet.
        double exact = d[p];
        if (distance == Distance::euclidean) {
          exact = 0;
          for (std::size_t i = 0; i < width; ++i) exact += std::pow(target[i] - static_cast<double>(points.row(p)[i]), 2);
          exact = std::sqrt(exact);
        }
        weights.push_back(distance == Distance::cosine ? 1 - exact : 1 / std::max(exact, kLeastDistance));
        sum += weights.back();
      }
      for (double& w : weights) w /= std::max(sum, kLeastDistance);
      continue;
    }
    // Columns are points; for barycentric weights the normal equations, bordered by the condition that they sum to one.
    const bool bordered = weighting == Weighting::barycentric;
    const std::size_t rows = bordered ? k + 1 : width, columns = bordered ? k + 1 : k;
    std::vector<double> a(rows * columns, 0.0), right(rows, 0.0);
    for (std::size_t j = 0; j < k; ++j) {
      const std::vector<double> point = widened(points.row(out[b].points[j]));
      if (!bordered) {
        for (std::size_t i = 0; i < width; ++i) a[i * columns + j] = point[i];
        continue;
      }
      for (std::size_t i = 0; i <= j; ++i) a[i * columns + j] = a[j * columns + i] = dot(point, widened(points.row(out[b].points[i])));
      a[j * columns + k] = a[k * columns + j] = 1;
      right[j] = dot(point, target);
    }
    if (bordered)
      right[k] = 1;
    else
      right = target;
    weights = least_squares(a, rows, columns, right);
    weights.resize(k);
  }
  return out;
}

}  // namespace weft::edit
