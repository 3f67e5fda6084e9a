#include "measure/weightwatcher.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace weft::measure {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

/// log10 of sum l^alpha, which itself may overflow.
double log_alpha_norm(std::span<const double> l, double alpha) {
  double sum = 0;
  for (const double value : l) sum += std::pow(value / l.back(), alpha);
  return std::log10(sum) + alpha * std::log10(l.back());
}

}  // namespace

void measure_weightwatcher(std::span<const Spectrum> slices, const WeightWatcherSettings& settings, Measures& out) {
  const auto name = [](const char* key) { return std::string("weightwatcher.") + key; };
  const double N = slices.front().longer(), M = slices.front().shorter(), rf = static_cast<double>(slices.size());
  std::vector<double> l;
  double sv_max = 0, sv_min = 0, rank = 0;
  // Slices of a convolution are multiplied by sqrt(1/2) before their spectra are pooled (conv2d_norm).
  const double scale = slices.size() > 1 ? std::sqrt(0.5) : 1;
  for (const Spectrum& slice : slices) {
    const double limit = slice.s.front() * N * kEps;
    for (const double s : slice.s) {
      l.push_back(s * scale * (s * scale));
      rank += s > limit;
    }
    sv_max = std::max(sv_max, slice.s.front() * scale);
    sv_min = std::max(sv_min, slice.s.back() * scale);
  }
  std::sort(l.begin(), l.end());
  if (l.size() < settings.min_evals)
    return skip_group(out, "weightwatcher", "fewer than " + std::to_string(settings.min_evals) + " eigenvalues (min_evals)");
  if (!(l.back() > 0)) return skip_group(out, "weightwatcher", "zero tensor");
  double total = 0, weak = 0;
  for (const double value : l) {
    total += value;
    weak += value < 1e-6;
  }
  double entropy = 0;
  for (const double value : l) {
    const double p = value / total + 1e-10;
    entropy -= p * std::log(p);
  }
  put(out, name("num_evals"), static_cast<double>(l.size()));
  put(out, name("N"), N);
  put(out, name("M"), M);
  put(out, name("Q"), N / M);
  put(out, name("rf"), rf);
  put(out, name("norm"), total);
  put(out, name("log_norm"), std::log10(total));
  put(out, name("spectral_norm"), l.back());
  put(out, name("log_spectral_norm"), std::log10(l.back()));
  put(out, name("lambda_max"), l.back());
  put(out, name("sv_max"), sv_max);
  put(out, name("sv_min"), sv_min);
  put(out, name("stable_rank"), total / l.back());
  put(out, name("matrix_rank"), rank);
  put(out, name("rank_loss"), static_cast<double>(l.size()) - rank);
  put(out, name("weak_rank_loss"), weak);
  put(out, name("entropy"), rank > 1 ? entropy / std::log(rank) : kNone, "undefined (rank one)");

  std::optional<PowerLawFit> fit;
  if (settings.clip_fingers) {
    if (const std::optional<ClippedFit> clipped = fit_clipped(l)) {
      fit = clipped->fit;
      put(out, name("raw_alpha"), clipped->raw_alpha);
      put(out, name("num_fingers"), static_cast<double>(clipped->num_fingers));
    }
  }
  if (!fit) fit = fit_powerlaw(l, kAbsoluteCut, SmallRule::as_weightwatcher, settings.drop_largest);
  // Those that the fit was told to drop do not count; those that clip_xmax drops do.
  const double spikes = fit->reason != nullptr ? 0
                                               : static_cast<double>(l.end() - std::lower_bound(l.begin(), l.end(), fit->xmin)) -
                                                     (settings.clip_fingers ? 0 : static_cast<double>(settings.drop_largest));
  const DetX detx = find_detx(l);
  if (fit->reason != nullptr) {
    for (const char* key : {"alpha", "alpha_weighted", "log_alpha_norm", "D", "xmin", "xmax", "sigma", "num_pl_spikes", "ERG_gap"})
      out.skipped.emplace_back(name(key), fit->reason);
  } else {
    put(out, name("alpha"), fit->alpha);
    put(out, name("alpha_weighted"), fit->alpha * std::log10(l.back()));
    put(out, name("log_alpha_norm"), log_alpha_norm(l, fit->alpha));
    put(out, name("D"), fit->D);
    put(out, name("xmin"), fit->xmin);
    put(out, name("xmax"), fit->xmax);
    put(out, name("sigma"), fit->sigma);
    put(out, name("num_pl_spikes"), spikes);
    out.labels.emplace_back(name("warning"), powerlaw_warning(*fit));
    if (detx.found) put(out, name("ERG_gap"), static_cast<double>(detx.num) - spikes);
  }
  if (detx.found) {
    put(out, name("detX_num"), static_cast<double>(detx.num));
    put(out, name("detX_val"), detx.value, "rounding noise");
    put(out, name("detX_val_unrescaled"), detx.rescaled);
    put(out, name("num_ERG_spikes"), static_cast<double>(detx.num));
  }
}

}  // namespace weft::measure
