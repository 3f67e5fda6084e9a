#include "edit/token_spaces.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "math/lapack.h"

namespace weft::edit {
namespace {

using math::Transpose;

/// Rows that are widened at a time.
constexpr std::size_t kStrip = 1024;

std::int64_t n(std::size_t size) { return static_cast<std::int64_t>(size); }

/// Rows [first, first + count) less a vector.
void centred(Rows rows, std::size_t first, std::size_t count, std::span<const double> mean, std::vector<double>& out) {
  out.resize(count * rows.width);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<double>(rows.values[first * rows.width + i]) - mean[i % rows.width];
}

/// [a.width, b.width]: the sum over rows of a^T b, each centred.
std::vector<double> cross(Rows a, std::span<const double> a_mean, Rows b, std::span<const double> b_mean) {
  std::vector<double> sum(a.width * b.width, 0.0), left, right;
  for (std::size_t first = 0; first < a.count(); first += kStrip) {
    const std::size_t count = std::min(kStrip, a.count() - first);
    centred(a, first, count, a_mean, left);
    centred(b, first, count, b_mean, right);
    math::gemm(Transpose::yes, Transpose::no, n(a.width), n(b.width), n(count), 1, left.data(), n(a.width), right.data(), n(b.width), 1, sum.data(),
               n(b.width));
  }
  return sum;
}

std::vector<double> gram(Rows rows, std::span<const double> mean) {
  std::vector<double> sum(rows.width * rows.width, 0.0), strip;
  for (std::size_t first = 0; first < rows.count(); first += kStrip) {
    const std::size_t count = std::min(kStrip, rows.count() - first);
    centred(rows, first, count, mean, strip);
    math::add_gram(math::GramOf::columns, strip.data(), n(count), n(rows.width), sum);
  }
  return sum;
}

/// The directions in which the rows differ most, as rows [count, width], the first one first.
std::vector<double> principal_directions(Rows rows, std::span<const double> mean, std::size_t count) {
  std::vector<double> directions = gram(rows, mean);
  (void)math::symmetric_eigen(directions, n(rows.width), math::Vectors::yes);
  std::vector<double> out(count * rows.width);
  for (std::size_t k = 0; k < count; ++k)
    std::copy_n(directions.begin() + n((rows.width - 1 - k) * rows.width), rows.width, out.begin() + n(k * rows.width));
  return out;
}

std::vector<double> product(Transpose a_form, Transpose b_form, std::size_t rows, std::size_t columns, std::size_t inner,
                            const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> out(rows * columns);
  math::gemm(a_form, b_form, n(rows), n(columns), n(inner), 1, a.data(), n(a_form == Transpose::no ? inner : rows), b.data(),
             n(b_form == Transpose::no ? columns : inner), 0, out.data(), n(columns));
  return out;
}

}  // namespace

void AffineMap::apply(Rows rows, std::span<float> out) const {
  WEFT_ASSERT(rows.width == from.size() && out.size() == rows.count() * to.size());
  std::vector<double> strip, mapped;
  for (std::size_t first = 0; first < rows.count(); first += kStrip) {
    const std::size_t count = std::min(kStrip, rows.count() - first);
    centred(rows, first, count, from, strip);
    mapped.resize(count * to.size());
    math::gemm(Transpose::no, Transpose::no, n(count), n(to.size()), n(from.size()), 1, strip.data(), n(from.size()), matrix.data(), n(to.size()), 0,
               mapped.data(), n(to.size()));
    for (std::size_t i = 0; i < mapped.size(); ++i) out[first * to.size() + i] = static_cast<float>(mapped[i] + to[i % to.size()]);
  }
}

std::vector<double> mean_of(Rows rows) {
  std::vector<double> mean(rows.width, 0.0);
  for (std::size_t i = 0; i < rows.values.size(); ++i) mean[i % rows.width] += static_cast<double>(rows.values[i]);
  for (double& x : mean) x /= static_cast<double>(std::max<std::size_t>(1, rows.count()));
  return mean;
}

AffineMap principal_turn(Rows there, Rows here) {
  WEFT_ASSERT(there.count() == here.count());
  AffineMap map{mean_of(there), {}, mean_of(here)};
  const std::size_t shared = std::min(there.width, here.width);
  const std::vector<double> from = principal_directions(there, map.from, shared), to = principal_directions(here, map.to, shared);
  // The best turn of A toward B is U V^T for A^T B = U S V^T, both in their principal directions.
  const std::vector<double> both = cross(there, map.from, here, map.to);
  std::vector<double> between = product(Transpose::no, Transpose::yes, shared, shared, here.width,
                                        product(Transpose::no, Transpose::no, shared, here.width, there.width, from, both), to);
  const math::Svd parts = math::svd(between, n(shared), n(shared));
  const std::vector<double> turn = product(Transpose::no, Transpose::no, shared, shared, shared, parts.left, parts.right);
  map.matrix = product(Transpose::yes, Transpose::no, there.width, here.width, shared, from,
                       product(Transpose::no, Transpose::no, shared, here.width, shared, turn, to));
  return map;
}

AffineMap token_basis(Rows there, Rows here, std::size_t k, std::vector<double> there_mean, std::vector<double> here_mean,
                      const std::function<void(std::size_t count, const std::function<void(std::size_t)>& one)>& pursue) {
  WEFT_ASSERT(there.count() == here.count() && k >= 1 && k <= there.count());
  const Rows source = there.width < here.width ? there : here;
  const std::size_t count = std::min(there.width, here.width);
  const std::vector<double> mean = mean_of(source);
  const std::vector<double> directions = principal_directions(source, mean, count);
  std::vector<float> points(source.values.begin(), source.values.end());
  for (std::size_t i = 0; i < points.size(); ++i) points[i] = static_cast<float>(static_cast<double>(points[i]) - mean[i % source.width]);
  std::vector<double> from(count * there.width, 0.0), to(count * here.width, 0.0);
  const auto fill = [](const Combination& sum, Rows rows, double* out) {
    for (std::size_t i = 0; i < sum.points.size(); ++i)
      for (std::size_t c = 0; c < rows.width; ++c) out[c] += sum.weights[i] * static_cast<double>(rows.row(sum.points[i])[c]);
  };
  pursue(count, [&](std::size_t direction) {
    const std::vector<float> target(directions.begin() + n(direction * source.width), directions.begin() + n((direction + 1) * source.width));
    const Combination sum = orthogonal_matching_pursuit({target, source.width}, {points, source.width}, k).front();
    fill(sum, there, from.data() + direction * there.width);
    fill(sum, here, to.data() + direction * here.width);
  });
  // x = c F in least squares, with F = U S V: c = x V^T S^-1 U^T.
  math::Svd parts = math::svd(from, n(count), n(there.width));
  const std::size_t rank = parts.values.size();
  const double floor = parts.values.empty() ? 0
                                            : parts.values.front() * static_cast<double>(std::numeric_limits<float>::epsilon()) *
                                                  static_cast<double>(std::max(count, there.width));
  std::vector<double> inner = product(Transpose::yes, Transpose::no, rank, here.width, count, parts.left, to);
  for (std::size_t i = 0; i < rank; ++i)
    for (std::size_t c = 0; c < here.width; ++c)
      inner[i * here.width + c] = parts.values[i] > floor ? inner[i * here.width + c] / parts.values[i] : 0;
  return {std::move(there_mean), product(Transpose::yes, Transpose::no, there.width, here.width, rank, parts.right, inner), std::move(here_mean)};
}

std::vector<double> covariance_root(Rows rows, std::span<const double> mean) {
  std::vector<double> covariance = gram(rows, mean);
  math::mirror_upper(covariance, n(rows.width));
  for (double& x : covariance) x /= static_cast<double>(std::max<std::size_t>(1, rows.count()));
  if (!math::cholesky(covariance, n(rows.width))) return {};
  for (std::size_t i = 0; i < rows.width; ++i)
    for (std::size_t j = i + 1; j < rows.width; ++j) covariance[i * rows.width + j] = 0;
  return covariance;
}

}  // namespace weft::edit
