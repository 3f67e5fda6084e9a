#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "measure/table.h"

// Power laws in the tail of a spectrum, as WeightWatcher 0.7.7 fits them.
namespace weft::measure {

struct PowerLawFit {
  const char* reason = nullptr;  ///< why there is none
  bool small = false;            ///< by the rule for few values
  std::uint64_t kept = 0;
  double alpha = 0, D = 0, xmin = 0, xmax = 0, sigma = 0;
  std::uint64_t tail = 0;  ///< values that are fitted
  struct Minimum {
    double xmin, alpha, D;
  };
  std::optional<Minimum> runner_up;  ///< the next best local minimum of D
};

enum class SmallRule : std::uint8_t { as_weightwatcher, never };
/// Whether the runner-up is wanted: without it most of the search can be cut short.
enum class RunnerUp : std::uint8_t { wanted, not_wanted };

/// eigenvalues: ascending; those at or below cut are left out, and the `drop` largest.
[[nodiscard]] PowerLawFit fit_powerlaw(std::span<const double> eigenvalues, double cut, SmallRule rule = SmallRule::as_weightwatcher,
                                       std::size_t drop = 0, RunnerUp runner_up = RunnerUp::not_wanted);
/// WeightWatcher's cut.
inline constexpr double kAbsoluteCut = 1e-5;
/// "over-trained" below 2, "under-trained" above 6, else "".
[[nodiscard]] const char* powerlaw_warning(const PowerLawFit& fit);

/// Refits without the 2, 3, .. 9 largest values, until alpha falls by one.
struct ClippedFit {
  double raw_alpha = 0;
  PowerLawFit fit;
  std::uint64_t num_fingers = 0, removed = 0;
};
/// Nothing where there are fewer than 16 values.
[[nodiscard]] std::optional<ClippedFit> fit_clipped(std::span<const double> eigenvalues, double cut = kAbsoluteCut);

/// The groups `powerlaw` (with `powerlaw_standard` and `powerlaw_relative` where they differ) and `clip_xmax`.
void measure_powerlaw(std::span<const double> eigenvalues, const Selection& selection, Measures& out);

/// Share of samples drawn from the fit (and, below xmin, from the values themselves) that fit worse than this: below 0.1 it is no power law.
[[nodiscard]] double powerlaw_p_value(std::span<const double> eigenvalues, const PowerLawFit& fit, std::uint64_t seed, int samples = 100);

}  // namespace weft::measure
