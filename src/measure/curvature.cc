#include "measure/curvature.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "base/check.h"
#include "math/lapack.h"
#include "measure/structure.h"

namespace weft::measure {
namespace {

double dot(std::span<const double> a, std::span<const double> b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

double dot(std::span<const float> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

double length(std::span<const double> a) { return std::sqrt(dot(a, a)); }

void subtract(double factor, std::span<const float> from, std::span<double> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] -= factor * static_cast<double>(from[i]);
}

constexpr std::string_view kNormalisations[] = {"none", "weight", "layer", "filter", "model"};

}  // namespace

std::vector<double> random_signs(std::uint64_t seed, std::string_view name, std::uint32_t stream, std::size_t n) {
  std::vector<double> signs(n);
  NormalStream(seed, name, stream).fill(signs);
  for (double& value : signs) value = value < 0 ? -1 : 1;
  return signs;
}

Lanczos::Lanczos(const HessianProduct& product, std::span<const double> start, std::size_t steps, std::size_t kept) : n_(start.size()) {
  WEFT_ASSERT(steps > 0 && kept > 0 && n_ > 0);
  steps = std::min(steps, n_);
  std::vector<double> q(start.begin(), start.end()), w(n_);
  const double size = length(q);
  WEFT_ASSERT(size > 0);
  for (double& value : q) value /= size;
  std::vector<double> alphas, betas;
  double largest = 0, apart = 0;
  while (alphas.size() < steps) {
    // What is kept is what is multiplied, so that rounding the basis rounds no product.
    basis_.emplace_back(q.begin(), q.end());
    std::copy(basis_.back().begin(), basis_.back().end(), q.begin());
    product(q, w);
    const double alpha = dot(std::span<const double>(q), w);
    if (alphas.empty()) first_product_ = alpha;
    if (!betas.empty()) apart = std::max(apart, std::abs(dot(std::span<const float>(basis_[basis_.size() - 2]), w) - betas.back()));
    alphas.push_back(alpha);
    largest = std::max(largest, std::abs(alpha));
    // Twice: one round leaves what cancels in it.
    for (int round = 0; round < 2; ++round)
      for (const std::vector<float>& old : basis_) subtract(dot(std::span<const float>(old), w), old, w);
    const double beta = length(w);
    betas.push_back(beta);
    largest = std::max(largest, beta);
    // Nothing is left but rounding: all that the start vector reaches has been seen.
    if (!(beta > 1e-6 * largest) || alphas.size() == n_) break;
    for (std::size_t i = 0; i < n_; ++i) q[i] = w[i] / beta;
    if (basis_.size() >= std::max<std::size_t>(2, kept) && alphas.size() < steps) {
      basis_.erase(basis_.begin());
      whole_ = false;
    }
  }
  const std::size_t m = alphas.size();
  vectors_.assign(m * m, 0);
  for (std::size_t i = 0; i < m; ++i) {
    vectors_[i * m + i] = alphas[i];
    if (i + 1 < m) vectors_[i * m + i + 1] = betas[i];
  }
  values_ = math::symmetric_eigen(vectors_, static_cast<std::int64_t>(m), math::Vectors::yes);
  for (std::size_t i = 0; i < m; ++i) {
    weights_.push_back(vectors_[i * m] * vectors_[i * m]);
    errors_.push_back(m == n_ ? 0 : std::abs(betas[m - 1] * vectors_[i * m + m - 1]));
  }
  const double scale = std::max(std::abs(values_.front()), std::abs(values_.back()));
  asymmetry_ = scale > 0 ? apart / scale : 0;
}

std::optional<std::vector<double>> Lanczos::vector(std::size_t i) const {
  if (!whole_) return std::nullopt;
  const std::size_t m = values_.size();
  std::vector<double> result(n_);
  for (std::size_t j = 0; j < m; ++j) subtract(-vectors_[i * m + j], basis_[j], result);
  const double size = length(result);
  for (double& value : result) value /= size;
  return result;
}

TraceEstimate estimate_trace(const HessianProduct& product, std::size_t n, std::size_t most_samples, double tolerance, std::uint64_t seed) {
  TraceEstimate result;
  double sum = 0, squares = 0;
  std::vector<double> out(n);
  while (result.samples < most_samples) {
    const std::vector<double> signs = random_signs(seed, "trace", static_cast<std::uint32_t>(result.samples), n);
    product(signs, out);
    const double sample = dot(std::span<const double>(signs), out);
    ++result.samples;
    sum += sample;
    squares += sample * sample;
    const auto count = static_cast<double>(result.samples);
    result.trace = sum / count;
    if (result.samples < 2) continue;
    result.error = std::sqrt(std::max(0.0, squares / count - result.trace * result.trace) / (count - 1));
    // What is left of equal samples is rounding.
    if (result.error < 1e-12 * std::abs(result.trace)) result.error = 0;
    if (result.error <= tolerance * std::abs(result.trace)) break;
  }
  return result;
}

double negative_ratio(const Density& density) {
  const auto [least, most] = std::minmax_element(density.nodes.begin(), density.nodes.end());
  return std::abs(*least / *most);
}

double negative_share(const Density& density, double n) {
  double below = 0, above = 0;
  for (std::size_t i = 0; i < density.nodes.size(); ++i)
    (density.nodes[i] < 0 ? below : above) += std::pow(std::abs(density.nodes[i]) * density.weights[i], n);
  return below / above;
}

MeasuredCurve smooth_density(const Density& density, std::string name) {
  MeasuredCurve curve{std::move(name), {}, {}};
  if (density.nodes.empty()) return curve;
  const auto [least, most] = std::minmax_element(density.nodes.begin(), density.nodes.end());
  const double variance = 1e-5 * std::max(1.0, *most - *least), sigma = std::sqrt(variance);
  std::vector<double> at;
  constexpr int kEven = 64;
  for (int i = 0; i <= kEven; ++i) at.push_back(*least - 5 * sigma + (*most - *least + 10 * sigma) * i / kEven);
  for (const double node : density.nodes)
    for (const double step : {-4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0}) at.push_back(node + step * sigma);
  std::sort(at.begin(), at.end());
  for (const double x : at) {
    double sum = 0;
    for (std::size_t i = 0; i < density.nodes.size(); ++i) {
      const double away = x - density.nodes[i];
      sum += density.weights[i] * std::exp(-away * away / (2 * variance));
    }
    curve.x.push_back(static_cast<float>(x));
    curve.y.push_back(static_cast<float>(sum / (sigma * std::sqrt(2 * std::numbers::pi))));
  }
  return curve;
}

std::optional<Normalisation> normalisation_of(std::string_view name) {
  for (std::size_t i = 0; i < std::size(kNormalisations); ++i)
    if (kNormalisations[i] == name) return static_cast<Normalisation>(i);
  return std::nullopt;
}

const char* to_string(Normalisation normalisation) noexcept { return kNormalisations[static_cast<std::size_t>(normalisation)].data(); }

void normalise_direction(Normalisation normalisation, std::span<const float> weights, std::span<const Part> parts, std::span<double> direction) {
  // Makes a stretch of the direction as long as the same stretch of the weights.
  const auto fit = [&](std::size_t begin, std::size_t count) {
    double have = 0, want = 0;
    for (std::size_t i = begin; i < begin + count; ++i) {
      have += direction[i] * direction[i];
      want += static_cast<double>(weights[i]) * static_cast<double>(weights[i]);
    }
    const double factor = have > 0 ? std::sqrt(want / have) : 0;
    for (std::size_t i = begin; i < begin + count; ++i) direction[i] *= factor;
  };
  switch (normalisation) {
    case Normalisation::none:
      return;
    case Normalisation::model:
      return fit(0, direction.size());
    case Normalisation::weight:
      for (std::size_t i = 0; i < direction.size(); ++i) direction[i] = std::copysign(std::abs(static_cast<double>(weights[i])), direction[i]);
      return;
    case Normalisation::layer:
      for (const Part& part : parts) fit(part.begin, part.count);
      return;
    case Normalisation::filter:
      for (const Part& part : parts) {
        if (part.rows == 0) {
          std::fill_n(direction.begin() + static_cast<std::ptrdiff_t>(part.begin), part.count, 0.0);
          continue;
        }
        const std::size_t columns = part.count / part.rows;
        for (std::size_t r = 0; r < part.rows; ++r) fit(part.begin + r * columns, columns);
      }
      return;
  }
}

std::vector<double> landscape_positions(std::size_t n) {
  std::vector<double> positions;
  for (std::size_t i = 0; i < n; ++i) positions.push_back(2 * static_cast<double>(i) / static_cast<double>(n - 1) - 1);
  return positions;
}

void measure_line(const std::string& name, std::span<const double> positions, std::span<const double> losses, Measures& out) {
  WEFT_ASSERT(positions.size() == losses.size() && losses.size() % 2 == 1 && losses.size() >= 3);
  constexpr const char* kReason = "the loss is not finite there";
  std::size_t lowest = losses.size();
  for (std::size_t i = 0; i < losses.size(); ++i) {
    put(out, fmt::format("{}.loss.{}", name, i), losses[i], kReason);
    if (std::isfinite(losses[i]) && (lowest == losses.size() || losses[i] < losses[lowest])) lowest = i;
  }
  const std::size_t middle = losses.size() / 2;
  const double h = positions[middle + 1] - positions[middle];
  put(out, name + ".curvature", (losses[middle - 1] - 2 * losses[middle] + losses[middle + 1]) / (h * h), kReason);
  put(out, name + ".rise", (losses.front() + losses.back()) / 2 - losses[middle], kReason);
  put(out, name + ".lowest_at", lowest < losses.size() ? positions[lowest] : std::numeric_limits<double>::quiet_NaN(), kReason);
}

}  // namespace weft::measure
