#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "quantize/solver.h"

// A second scale of a matrix, one for each column, that costs no bits where what writes the columns' inputs can take it over (D2Quant's DSQ); and the
// shift of means that a block's rounding leaves behind (its DAC).
namespace weft::quantize {

struct DualScale {
  std::vector<float> channel;       ///< W[:, j] is channel[j] times what is rounded; within [1/8, 8], balanced about 1. All 1 where none helps.
  double loss = 0, plain_loss = 0;  ///< of the outputs with it and with none
};
/// Codes and the columns' scales in turn, from three beginnings; what loses least of the outputs is kept. gram: second moment of the inputs.
[[nodiscard]] DualScale search_dual_scale(std::span<const float> weights, std::int64_t rows, std::int64_t columns, std::span<const double> gram,
                                          const SolverOptions& options, int rounds = 6);

/// Mean of what the unchanged model has there less what the changed one has, drawn towards 0 where few tokens were seen: times n / (n + 256).
[[nodiscard]] std::vector<double> mean_shift(std::span<const double> original_sum, std::span<const double> changed_sum, std::uint64_t num_tokens,
                                             double prior_tokens = 256);
/// W shift: what the rows' biases take over.
[[nodiscard]] std::vector<double> shifted_bias(std::span<const float> weights, std::int64_t rows, std::int64_t columns,
                                               std::span<const double> shift);

}  // namespace weft::quantize
