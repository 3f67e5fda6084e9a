#include "measure/marchenko_pastur.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

namespace weft::measure {
namespace {

/// With x = c + r cos t the density's integral over t from the upper edge has a closed form:
/// I(t) = -sin(t)/r + c t/r^2 - 2 sqrt(c^2 - r^2)/r^2 atan(sqrt((c - r)/(c + r)) tan(t/2)), and the share above x is Q r^2/(2 pi) I(t).
double share_above(double t, double Q) {
  const double c = 1 + 1 / Q, r = 2 / std::sqrt(Q), root = 1 - 1 / Q;  // root^2 = c^2 - r^2
  const double half = root == 0 ? 0 : std::atan(std::sqrt((c - r) / (c + r)) * std::tan(t / 2));
  return Q / (2 * std::numbers::pi) * (-r * std::sin(t) + c * t - 2 * root * half);
}

double median_of(std::span<const double> ascending) {
  const std::size_t n = ascending.size();
  return n % 2 == 1 ? ascending[n / 2] : (ascending[n / 2 - 1] + ascending[n / 2]) / 2;
}

}  // namespace

double mp_cdf(double x, double Q) {
  const double c = 1 + 1 / Q, r = 2 / std::sqrt(Q);
  if (x <= c - r) return 0;
  if (x >= c + r) return 1;
  return 1 - share_above(std::acos((x - c) / r), Q);
}

double mp_median(double Q) {
  double low = 0, high = std::numbers::pi;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (share_above(middle, Q) < 0.5 ? low : high) = middle;
  }
  return 1 + 1 / Q + 2 / std::sqrt(Q) * std::cos((low + high) / 2);
}

MpRobust fit_mp_robust(const Spectrum& spectrum) {
  MpRobust fit;
  const std::vector<double> l = spectrum.eigenvalues();
  const double N = spectrum.longer(), M = spectrum.shorter();
  fit.Q = N / M;
  fit.median = mp_median(fit.Q);
  const double variance = median_of(l) / (N * fit.median), inverse = 1 / std::sqrt(fit.Q);
  fit.sigma = std::sqrt(variance);
  fit.bulk_min = N * variance * (1 - inverse) * (1 - inverse);
  fit.bulk_max = N * variance * (1 + inverse) * (1 + inverse);
  // The largest eigenvalue of a random matrix follows the law of Tracy and Widom around mu, at scale tau; 2.02 is its 99 % point.
  const double a = std::sqrt(N - 1), b = std::sqrt(M);
  const double mu = (a + b) * (a + b), tau = N > 1 ? (a + b) * std::cbrt(1 / a + 1 / b) : 0;
  fit.spike_bar = variance * (mu + 2.02 * tau);
  fit.spikes = static_cast<std::uint64_t>(l.end() - std::upper_bound(l.begin(), l.end(), fit.spike_bar));
  fit.softrank = fit.bulk_max / l.back();
  return fit;
}

void measure_mp(const Spectrum& spectrum, double element_std, Measures& out) {
  if (spectrum.s.size() < 20) return skip_group(out, "mp", "too small: fewer than 20 eigenvalues");
  const std::vector<double> l = spectrum.eigenvalues();
  if (!(median_of(l) > 1e-12 * l.back())) return skip_group(out, "mp", "more than half of the spectrum is zero");
  const MpRobust fit = fit_mp_robust(spectrum);
  put(out, "mp.Q", fit.Q);
  put(out, "mp.mp_median", fit.median);
  put(out, "mp.sigma", fit.sigma);
  put(out, "mp.bulk_min", fit.bulk_min);
  put(out, "mp.bulk_max", fit.bulk_max);
  put(out, "mp.spike_bar", fit.spike_bar);
  put(out, "mp.spikes", static_cast<double>(fit.spikes));
  put(out, "mp.softrank", fit.softrank);
  put(out, "mp.element_std", element_std, "not known");
}

// ---- WeightWatcher's fit ----

namespace {

constexpr std::size_t kGrid = 1000;
constexpr double kBandwidth = 0.1;

/// Density of the rescaled eigenvalues, smoothed by triangles.
struct Density {
  std::vector<double> x, y;
};

Density smooth(std::span<const double> l) {
  Density density;
  const double top = l.back() + 0.5;
  for (std::size_t i = 0; i < kGrid; ++i) {
    const double x = top * static_cast<double>(i) / static_cast<double>(kGrid - 1);
    const auto begin = std::lower_bound(l.begin(), l.end(), x - kBandwidth), end = std::upper_bound(l.begin(), l.end(), x + kBandwidth);
    double sum = 0;
    for (auto at = begin; at != end; ++at) sum += std::max(0.0, 1 - std::abs(*at - x) / kBandwidth);
    const double y = sum / (static_cast<double>(l.size()) * kBandwidth);
    if (y < 0.01) continue;
    density.x.push_back(x);
    density.y.push_back(y);
  }
  return density;
}

double law(double x, double Q, double sigma) {
  if (Q == 1) {
    // The quarter circle, of which WeightWatcher scales only the height.
    return x * x <= 4 ? std::sqrt(4 - x * x) / (std::numbers::pi * sigma * sigma) : 0;
  }
  const double inverse = 1 / std::sqrt(Q), a = sigma * sigma * (1 - inverse) * (1 - inverse), b = sigma * sigma * (1 + inverse) * (1 + inverse);
  return x > a && x < b ? Q / (2 * std::numbers::pi * sigma * sigma * x) * std::sqrt((b - x) * (x - a)) : 0;
}

}  // namespace

MpFit fit_mp_density(std::span<const double> eigenvalues, double longer, double shorter) {
  MpFit fit;
  const double Q = longer / shorter, inverse = 1 / std::sqrt(Q);
  double total = 0;
  for (const double value : eigenvalues) total += value;
  if (!(total > 0)) return fit;
  const double scale = static_cast<double>(eigenvalues.size()) / total;
  fit.W_scale = std::sqrt(scale);
  std::vector<double> l(eigenvalues.begin(), eigenvalues.end());
  for (double& value : l) value *= scale;
  std::vector<double> fitted = l;
  if (Q == 1)
    for (double& value : fitted) value = std::sqrt(value);
  const Density density = smooth(fitted);
  if (density.x.empty()) return fit;
  const double mode = density.x[static_cast<std::size_t>(std::max_element(density.y.begin(), density.y.end()) - density.y.begin())];
  const auto loss = [&](double sigma) {
    if (Q != 1) {
      const double a = sigma * sigma * (1 - inverse) * (1 - inverse), b = sigma * sigma * (1 + inverse) * (1 + inverse);
      if (b < mode || b > density.x.back() || a > mode) return std::numeric_limits<double>::infinity();
    }
    double sum = 0;
    for (std::size_t i = 0; i < density.x.size(); ++i) {
      const double residual = density.y[i] - law(density.x[i], Q, sigma);
      sum += residual * residual;
    }
    return sum;
  };
  const double sigma0 = std::sqrt(fitted.back()) / (1 + inverse);
  double best = std::numeric_limits<double>::quiet_NaN(), least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 195; ++i) {
    const double sigma = (0.05 + 0.01 * i) * sigma0, value = loss(sigma);
    if (value < least) {
      least = value;
      best = sigma;
    }
  }
  if (!std::isfinite(best)) return fit;
  // The simplex of Nelder and Mead in one dimension: two points that reflect, grow and shrink, started five percent apart.
  double x0 = best, f0 = least, x1 = best * 1.05, f1 = loss(x1);
  for (int step = 0; step < 200; ++step) {
    if (f1 < f0) {
      std::swap(x0, x1);
      std::swap(f0, f1);
    }
    if (std::abs(x1 - x0) <= 1e-4 && std::abs(f1 - f0) <= 1e-4) break;
    const double reflected = 2 * x0 - x1, fr = loss(reflected);
    if (fr < f0) {
      const double expanded = 3 * x0 - 2 * x1, fe = loss(expanded);
      x1 = fe < fr ? expanded : reflected;
      f1 = std::min(fe, fr);
      continue;
    }
    if (fr < f1) {
      const double outside = 1.5 * x0 - 0.5 * x1, fo = loss(outside);
      x1 = fo <= fr ? outside : x0 + 0.5 * (x1 - x0);
      f1 = fo <= fr ? fo : loss(x1);
    } else {
      x1 = 0.5 * (x0 + x1);
      f1 = loss(x1);
    }
  }
  fit.sigma = f1 < f0 ? x1 : x0;
  fit.valid = true;
  const double edge = fit.sigma * fit.sigma * (1 + inverse) * (1 + inverse);
  const double tw = std::pow(edge, 2.0 / 3) * std::pow(shorter, -2.0 / 3) / std::sqrt(Q);
  fit.spikes = static_cast<std::uint64_t>(l.end() - std::upper_bound(l.begin(), l.end(), edge + std::sqrt(tw)));
  fit.softrank = edge / l.back();
  fit.bulk_max = edge / scale;
  fit.bulk_min = fit.sigma * fit.sigma * (1 - inverse) * (1 - inverse) / scale;
  return fit;
}

void measure_mp_fit(const Spectrum& spectrum, Measures& out) {
  if (spectrum.s.size() < 8) return skip_group(out, "mp_fit", "fewer than 8 eigenvalues");
  const MpFit fit = fit_mp_density(spectrum.eigenvalues(), spectrum.longer(), spectrum.shorter());
  if (!fit.valid) return skip_group(out, "mp_fit", "no width of the law fits");
  put(out, "mp_fit.W_scale", fit.W_scale);
  put(out, "mp_fit.sigma_mp", fit.sigma);
  put(out, "mp_fit.bulk_min", fit.bulk_min);
  put(out, "mp_fit.bulk_max", fit.bulk_max);
  put(out, "mp_fit.num_spikes", static_cast<double>(fit.spikes));
  put(out, "mp_fit.mp_softrank", fit.softrank);
}

}  // namespace weft::measure
