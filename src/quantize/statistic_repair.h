#pragma once
#include <cstdint>
#include <span>
#include <vector>

// What rounding does to the statistics of outputs, made good beside the codes: the mean in a bias, the sizes of channels in the gains of a norm.
namespace weft::quantize {

/// What the outputs lose on average, (W - Q) mean: to be added to a bias. weights, quantized: [rows, columns]; mean: [columns], of what is read.
[[nodiscard]] std::vector<double> mean_shift(std::span<const float> weights, std::span<const float> quantized, std::int64_t rows,
                                             std::int64_t columns, std::span<const double> mean);

/// A matrix that reads what a norm writes, before and after.
struct TunedReader {
  std::span<const float> weights, quantized;  ///< [rows, columns]
  std::int64_t rows = 0;
};
struct TunedGains {
  std::vector<double> factors;  ///< of each gain
  double saved = 0;             ///< less lost than without them
};
/// Factors t of a norm's gains with which all readers together lose least of their outputs, the sum over tokens of |Q diag(t) x - W y|^2 in closed
/// form, held to 1 by `damping` times the mean of the system's diagonal. gram: sum x x^T of what the norm writes now. cross: sum (y - x) x^T of what
/// it wrote in the unchanged model; empty: the same. All 1 where the system is singular or nothing is saved.
[[nodiscard]] TunedGains tune_gains(std::span<const TunedReader> readers, std::int64_t columns, std::span<const double> gram,
                                    std::span<const double> cross, double damping);

/// Holds the values of each group to the mean of their sizes and `multiple` times their deviation, so that a few large ones (which are kept
/// elsewhere) do not set the scale. group: columns; 0: the row.
void clip_to_deviation(std::span<float> weights, std::int64_t rows, std::int64_t columns, std::int64_t group, double multiple);

}  // namespace weft::quantize
