#include "measure/powerlaw.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/philox.h"

namespace weft::measure {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::size_t kFewValues = 20;  // WeightWatcher changes its rule here
constexpr std::size_t kLeastTail = 8;

/// Distance between the tail from i on and its power law; gives up once it exceeds `bound`.
double distance(std::span<const double> logs, std::size_t i, double alpha, double bound) {
  const std::size_t m = logs.size() - i;
  const auto gap = [&](std::size_t j) {
    const double law = 1 - std::exp((1 - alpha) * (logs[j] - logs[i]));
    return std::abs(law - static_cast<double>(j - i) / static_cast<double>(m));
  };
  // A bad fit is bad nearly everywhere: a few values show it before all are looked at.
  constexpr std::size_t kProbes = 16;
  if (bound < kInfinity && m > 4 * kProbes) {
    for (std::size_t probe = 1; probe < kProbes; ++probe)
      if (const double at = gap(i + probe * m / kProbes); at > bound) return at;
  }
  double largest = 0;
  for (std::size_t j = i; j < logs.size(); ++j) {
    largest = std::max(largest, gap(j));
    if (largest > bound) return largest;
  }
  return largest;
}

}  // namespace

PowerLawFit fit_powerlaw(std::span<const double> eigenvalues, double cut, SmallRule rule, std::size_t drop, RunnerUp runner_up) {
  PowerLawFit fit;
  const auto kept = std::upper_bound(eigenvalues.begin(), eigenvalues.end(), cut);
  std::span<const double> x(kept, eigenvalues.end());
  x = x.first(x.size() - std::min(drop, x.size()));
  fit.kept = x.size();
  if (x.size() < 2 || x.back() < x.front() * (1 + 1e-5)) {
    fit.reason = "too few distinct eigenvalues";
    return fit;
  }
  fit.small = rule == SmallRule::as_weightwatcher && x.size() < kFewValues;
  const std::size_t n = x.size();
  std::vector<double> logs(n), alpha(n - 1, kInfinity), D(n - 1, 1.0);
  for (std::size_t i = 0; i < n; ++i) logs[i] = std::log(x[i]);
  double sum = logs[n - 1];  // of logs from i on
  std::vector<double> gaps(n - 1);
  for (std::size_t i = n - 1; i-- > 0;) {
    sum += logs[i];
    gaps[i] = sum - static_cast<double>(n - i) * logs[i];
  }
  double best = kInfinity;
  const auto try_at = [&](std::size_t i) {
    const std::size_t m = n - i;
    // A tail of equal values: rounding of the sums must not make a law of it.
    if (x[n - 1] == x[i] || gaps[i] <= 0) return;
    alpha[i] = 1 + static_cast<double>(fit.small ? m - 1 : m) / gaps[i];
    const bool counts = !fit.small || m >= kLeastTail || i == 0;
    if (alpha[i] > 1 && counts) D[i] = distance(logs, i, alpha[i], runner_up == RunnerUp::wanted ? kInfinity : best);
    best = std::min(best, D[i]);
  };
  // A few cuts all over first: what the others must beat is then small, and most give up early.
  constexpr std::size_t kScouts = 32;
  if (runner_up == RunnerUp::not_wanted && n > 2 * kScouts)
    for (std::size_t i = 0; i + 1 < n; i += n / kScouts) try_at(i);
  for (std::size_t i = 0; i + 1 < n; ++i) try_at(i);
  const auto at = static_cast<std::size_t>(std::min_element(D.begin(), D.end()) - D.begin());
  fit.alpha = alpha[at];
  fit.D = D[at];
  fit.xmin = x[at];
  fit.xmax = x.back();
  fit.sigma = (fit.alpha - 1) / std::sqrt(static_cast<double>(n - at));
  fit.tail = static_cast<std::uint64_t>(x.end() - std::lower_bound(x.begin(), x.end(), x[at]));
  if (!std::isfinite(fit.alpha)) {
    fit.reason = "too few distinct eigenvalues";
    return fit;
  }
  if (runner_up == RunnerUp::wanted) {
    std::optional<std::size_t> second;
    for (std::size_t j = 0; j < D.size(); ++j) {
      const bool is_minimum = (j == 0 || D[j] < D[j - 1]) && (j + 1 == D.size() || D[j] <= D[j + 1]) && j != at;
      if (is_minimum && (!second || D[j] < D[*second])) second = j;
    }
    if (second) fit.runner_up = PowerLawFit::Minimum{x[*second], alpha[*second], D[*second]};
  }
  return fit;
}

const char* powerlaw_warning(const PowerLawFit& fit) { return fit.alpha < 2 ? "over-trained" : fit.alpha > 6 ? "under-trained" : ""; }

std::optional<ClippedFit> fit_clipped(std::span<const double> eigenvalues, double cut) {
  ClippedFit result;
  result.fit = fit_powerlaw(eigenvalues, cut);
  if (result.fit.reason != nullptr || result.fit.kept < 16) return std::nullopt;
  result.raw_alpha = result.fit.alpha;
  for (std::size_t removed = 2; removed < 10; ++removed) {
    const PowerLawFit fit = fit_powerlaw(eigenvalues, cut, SmallRule::as_weightwatcher, removed);
    if (fit.reason != nullptr) break;
    if (fit.alpha + 1 < result.raw_alpha) {
      result.fit = fit;
      result.num_fingers = removed - 1;  // as WeightWatcher counts them
      result.removed = removed;
      break;
    }
    if (fit.alpha <= 2) break;
  }
  return result;
}

namespace {

void put_fit(const PowerLawFit& fit, const std::string& group, Measures& out) {
  put(out, group + ".kept", static_cast<double>(fit.kept));
  if (fit.reason != nullptr) {
    for (const char* key : {"alpha", "D", "xmin", "xmax", "sigma", "tail"}) out.skipped.emplace_back(group + "." + key, fit.reason);
    return;
  }
  put(out, group + ".alpha", fit.alpha);
  put(out, group + ".D", fit.D);
  put(out, group + ".xmin", fit.xmin);
  put(out, group + ".xmax", fit.xmax);
  put(out, group + ".sigma", fit.sigma);
  put(out, group + ".tail", static_cast<double>(fit.tail));
  if (fit.runner_up) {
    put(out, group + ".runner_up.xmin", fit.runner_up->xmin);
    put(out, group + ".runner_up.alpha", fit.runner_up->alpha, "the tail's values are equal");
    put(out, group + ".runner_up.D", fit.runner_up->D);
  }
  out.labels.emplace_back(group + ".rule", fit.small ? "small" : "standard");
  out.labels.emplace_back(group + ".warning", powerlaw_warning(fit));
}

}  // namespace

void measure_powerlaw(std::span<const double> l, const Selection& selection, Measures& out) {
  if (selection.wants("powerlaw")) {
    const PowerLawFit fit = fit_powerlaw(l, kAbsoluteCut, SmallRule::as_weightwatcher, 0, RunnerUp::wanted);
    put_fit(fit, "powerlaw", out);
    if (fit.kept > 0 && fit.kept < kFewValues)
      put_fit(fit_powerlaw(l, kAbsoluteCut, SmallRule::never, 0, RunnerUp::wanted), "powerlaw_standard", out);
    // The absolute cut deletes real values of matrices that are small all over.
    const PowerLawFit relative = fit_powerlaw(l, 1e-12 * l.back(), SmallRule::as_weightwatcher, 0, RunnerUp::wanted);
    if (relative.kept != fit.kept) put_fit(relative, "powerlaw_relative", out);
  }
  if (selection.wants("clip_xmax")) {
    const std::optional<ClippedFit> clipped = fit_clipped(l);
    if (!clipped) return skip_group(out, "clip_xmax", "fewer than 16 eigenvalues above 1e-5, or no fit");
    put(out, "clip_xmax.raw_alpha", clipped->raw_alpha);
    put(out, "clip_xmax.alpha", clipped->fit.alpha);
    put(out, "clip_xmax.num_fingers", static_cast<double>(clipped->num_fingers));
    put(out, "clip_xmax.removed", static_cast<double>(clipped->removed));
  }
}

double powerlaw_p_value(std::span<const double> eigenvalues, const PowerLawFit& fit, std::uint64_t seed, int samples) {
  const auto kept = std::upper_bound(eigenvalues.begin(), eigenvalues.end(), kAbsoluteCut);
  const std::span<const double> x(kept, eigenvalues.end());
  const auto body = static_cast<std::size_t>(std::lower_bound(x.begin(), x.end(), fit.xmin) - x.begin());
  const double tail_share = static_cast<double>(x.size() - body) / static_cast<double>(x.size());
  int worse = 0;
  std::vector<double> sample(x.size());
  for (int round = 0; round < samples; ++round) {
    const RandomStream random = RandomStream::of(seed, "power law", static_cast<std::uint32_t>(round), 0);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double in_tail = random.uniform(2 * i), u = random.uniform(2 * i + 1);
      sample[i] = body == 0 || in_tail < tail_share ? fit.xmin * std::pow(1 - u, -1 / (fit.alpha - 1))
                                                    : x[std::min(body - 1, static_cast<std::size_t>(u * static_cast<double>(body)))];
    }
    std::sort(sample.begin(), sample.end());
    worse += fit_powerlaw(sample, 0).D >= fit.D;
  }
  return static_cast<double>(worse) / samples;
}

}  // namespace weft::measure
