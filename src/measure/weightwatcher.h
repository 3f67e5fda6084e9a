#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "measure/powerlaw.h"
#include "measure/spectrum.h"
#include "measure/table.h"

// The details table of WeightWatcher 0.7.7, column for column. Its "norm" and "spectral_norm" are squared; its cuts are absolute.
namespace weft::measure {

/// slices: of a convolution the spectra of its height x width positions, else one. The group `weightwatcher`.
void measure_weightwatcher(std::span<const Spectrum> slices, const WeightWatcherSettings& settings, Measures& out);

}  // namespace weft::measure
