#pragma once
#include <cstdint>
#include <span>
#include <vector>

// What rounding took away, given back as a product of two thin matrices (LoRC).
namespace weft::quantize {

struct LowRank {
  std::int64_t rank = 0;
  std::vector<float> left;   ///< [rows, rank]
  std::vector<float> right;  ///< [rank, columns]
};
/// The product of that rank nearest to the residual [rows, columns]: with gram, the one that loses least of the outputs, tr((R - LR) H (R - LR)^T);
/// without, of the residual itself. A larger rank than the matrix has becomes its own.
[[nodiscard]] LowRank repair(std::span<const float> residual, std::int64_t rows, std::int64_t columns, std::int64_t rank,
                             std::span<const double> gram = {});

}  // namespace weft::quantize
