#pragma once
#include <cstdint>
#include <span>

#include "measure/spectrum.h"
#include "measure/table.h"

// How much of a spectrum is what a random matrix would show.
namespace weft::measure {

/// Share of the eigenvalues (divided by the number of rows, variance 1) of a random matrix of aspect ratio Q >= 1 that lie at or below x.
[[nodiscard]] double mp_cdf(double x, double Q);
[[nodiscard]] double mp_median(double Q);

/// Element variance from the median eigenvalue, and what sticks out of the bulk.
struct MpRobust {
  double Q = 0, median = 0, sigma = 0, bulk_min = 0, bulk_max = 0, spike_bar = 0, softrank = 0;
  std::uint64_t spikes = 0;
};
[[nodiscard]] MpRobust fit_mp_robust(const Spectrum& spectrum);
/// The group `mp`. element_std: of the matrix; NaN when it is not known.
void measure_mp(const Spectrum& spectrum, double element_std, Measures& out);

/// WeightWatcher's fit of the law to a smoothed density.
struct MpFit {
  bool valid = false;
  double W_scale = 0, sigma = 0, bulk_min = 0, bulk_max = 0, softrank = 0;
  std::uint64_t spikes = 0;
};
/// eigenvalues: ascending, not divided by anything.
[[nodiscard]] MpFit fit_mp_density(std::span<const double> eigenvalues, double longer, double shorter);
void measure_mp_fit(const Spectrum& spectrum, Measures& out);

}  // namespace weft::measure
