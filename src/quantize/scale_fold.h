#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "quantize/solver.h"

// Scales of channels that are folded into what writes them, so that the weights which read them lose less when they are rounded: AWQ and SmoothQuant.
namespace weft::quantize {

/// A matrix that reads the channels.
struct Reader {
  std::span<const float> weights;  ///< [rows, columns]
  std::int64_t rows = 0;
};

struct ScaleChoice {
  std::vector<float> scales;        ///< of each channel: the readers' columns are multiplied by them, what writes them is divided
  double exponent = 0;              ///< that won
  double loss = 0, plain_loss = 0;  ///< with it, and without any
};

/// AWQ: scales mean |x|^a, balanced, for a = 0, 0.05, ... 0.95; the one with the least loss of all readers' outputs after rounding. a = 0 changes
/// nothing and is always tried. mean_abs: [columns]; gram: of the channels.
[[nodiscard]] ScaleChoice search_awq(std::span<const Reader> readers, std::int64_t columns, std::span<const double> mean_abs,
                                     std::span<const double> gram, const SolverOptions& options);
/// SmoothQuant: max |x|^a / max |W|^(1-a).
[[nodiscard]] std::vector<float> smooth_scales(std::span<const Reader> readers, std::int64_t columns, std::span<const float> max_abs,
                                               double exponent);

/// Column j of a matrix times scales[j]; row i divided by scales[i]; a second moment of channels divided by the scales of both.
void scale_columns(std::span<float> weights, std::int64_t columns, std::span<const float> scales);
void divide_rows(std::span<float> weights, std::int64_t columns, std::span<const float> scales);
void divide_gram(std::span<double> gram, std::span<const float> scales);

/// AWQ's clipping: every group's values are held to the share of their largest, 1 to 0.55, at which rounding loses least of the outputs that the
/// group adds to.
void clip_groups(std::span<float> weights, std::int64_t rows, std::int64_t columns, std::span<const double> gram, const SolverOptions& options);

}  // namespace weft::quantize
