#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "codec/packed_linear.h"
#include "quantize/solver.h"

// Codes and scales by turns, each the best for the other in the metric of what the layer reads (decoupleQ): what makes 2 bits with plain scales
// usable. Pure functions on matrices, see solver.h.
namespace weft::quantize {

struct DecoupleOptions {
  SolverOptions solver;  ///< static groups; any levels, any zero points. Zero::offset finds scale and offset together
  int rounds = 4;        ///< 1: codes alone, by GPTQ and then one by one; each more: scales, then codes
  int sweeps = 5;        ///< over single codes in a round, while any changes
  int shrinks = 20;      ///< ranges of a row that are tried at first by the whole metric
};

/// What it needs of H, for all layers that read the same.
struct DecoupleMetric {
  std::vector<double> matrix;  ///< H, damped
  Factor factor;
};
/// gram: sum x^T x. metric.factor.usable is false where H is beyond repair.
[[nodiscard]] DecoupleMetric decouple_metric(std::span<const double> gram, std::int64_t columns, const SolverOptions& options);

/// Rows [first, first + count) into `out`, which prepare() made. Rows do not depend on each other. weights: the whole matrix.
void decouple_rows(std::span<const float> weights, const DecoupleMetric& metric, const DecoupleOptions& options, std::int64_t first,
                   std::int64_t count, codec::QuantizedLinear& out);
/// All rows at once.
[[nodiscard]] codec::QuantizedLinear decouple(std::span<const float> weights, std::int64_t rows, std::int64_t columns, const DecoupleMetric& metric,
                                              const DecoupleOptions& options);

/// tr(D H D^T) of each row, D [rows, columns].
[[nodiscard]] std::vector<double> row_losses(std::span<const double> difference, std::int64_t rows, std::int64_t columns,
                                             std::span<const double> matrix);

/// The scales (with Zero::offset: and offsets) that lose least with the codes as they are, all groups of a row together; rounded to what they are
/// stored as. A row whose system is singular, or whose scales their type cannot hold, stays as it is. Groups of one code keep their scale where the
/// offset says it all. matrix: positive definite. Codes of a group are turned round where its scale would be negative.
void fit_scales(std::span<const double> weights, std::span<const double> matrix, const codec::SliceFormat& format, codec::QuantizedLinear& linear);

/// What a layer should be for its outputs to stay near those of the unchanged model although its inputs have drifted:
/// W + share W C H^-1, with cross C = sum (original - x)^T x.
[[nodiscard]] std::vector<float> drifted_target(std::span<const float> weights, std::int64_t rows, std::int64_t columns,
                                                std::span<const double> cross, const Factor& factor, double share);

}  // namespace weft::quantize
