#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "quantize/solver.h"

// Codes and scales that are there already, moved one at a time to where the layer's outputs lose less: what compensation, which decides about each
// column once and about scales before it begins, leaves on the table. Pure functions on matrices.
namespace weft::quantize {

/// H for the columns of groups one behind the other.
struct RefineBasis {
  std::vector<std::int64_t> order;  ///< column at each position
  std::vector<double> moment;       ///< H, ordered and damped
  std::vector<bool> dead;           ///< by position: never anything but 0 is read there
};
/// gram: sum x^T x. group_of: as in QuantizedLinear. damping: of the mean of H's diagonal; the more, the nearer codes stay to plain rounding.
[[nodiscard]] RefineBasis refine_basis(std::span<const double> gram, std::int64_t columns, double damping,
                                       std::span<const std::int32_t> group_of = {});

/// Changes codes, scales and zero points that are no integers of rows [first, first + count): each code to the one that loses least while all else
/// stays, a column after another; then the scale of each group in closed form, rounded as it is stored, where that loses less. At most `rounds`
/// times, fewer when nothing changes any more. No change raises the loss tr((Q - W) H (Q - W)^T). Rows do not depend on each other.
void refine_rows(std::span<const float> weights, const RefineBasis& basis, const SolverOptions& options, int rounds, std::int64_t first,
                 std::int64_t count, codec::QuantizedLinear& out);

}  // namespace weft::quantize
