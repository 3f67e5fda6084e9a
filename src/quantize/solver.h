#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "codec/packed_linear.h"
#include "codec/scalar_grid.h"

// Codes for the weights of one linear layer, W [rows, columns]: rounding, and rounding with the error of each column made good by those that follow.
// Pure functions on matrices. H is the second moment of what the layer reads, [columns, columns]; its scale does not matter.
namespace weft::quantize {

enum class Order : std::uint8_t {
  as_stored,
  by_activation,  ///< the loudest first
  by_group,       ///< the group with the loudest first, and within it the loudest first: a group is done before the next begins
};

/// What scales may be, so that codes of few bits become numbers of a larger floating-point type by arithmetic on exponents alone (ZeroQuant-FP).
enum class ScaleRule : std::uint8_t {
  any,
  powers,  ///< of two, rounded up: nothing is clipped (M1)
  ratios,  ///< a row's largest scale over powers of two, whichever of the two nearest loses less (M2)
};

struct SolverOptions {
  codec::SliceFormat format;
  std::int64_t group = 128;  ///< columns a scale; 0: a row
  /// AdaDim: a scale stands for `group` rows of one column instead (0: the whole column), and is found when the column's turn comes.
  bool by_output = false;
  Order order = Order::by_activation;
  /// Groups of neighbouring columns, with scales from the weights as they came: needs no map of groups in the file. Otherwise scales are from what is
  /// left of a group when its turn comes, and groups are of columns as they are worked on (by_group: of neighbouring ones all the same).
  bool static_groups = true;
  ScaleRule scale_rule = ScaleRule::any;  ///< of groups that do not move
  double damping = 0.01;                  ///< of the mean of H's diagonal
  /// What an error of a column counts when scales are searched: by H's diagonal, or by what is left of it once the columns that follow have made good
  /// what they can.
  bool leftover = false;
  std::int64_t block = 128;  ///< columns whose effect on the rest is added up; changes speed only
  /// Shares of the two terms for inputs that have drifted away from those of the unchanged model; need `cross`.
  double drift = 0, residual = 0;
};

/// Brings the scales of a row's groups to what the rule allows. values: the row's; zeros: like scales, or empty; importance: of errors, [columns] or
/// empty.
void constrain_scales(std::span<float> scales, std::span<const float> zeros, std::span<const float> values, std::span<const float> importance,
                      const SolverOptions& options);

/// Rounds. importance: [columns], of errors; empty: all alike.
[[nodiscard]] codec::QuantizedLinear round_to_nearest(std::span<const float> weights, std::int64_t rows, std::int64_t columns,
                                                      const SolverOptions& options, std::span<const float> importance = {});

/// What compensation needs of H, for all layers that read the same.
struct Factor {
  std::vector<std::int64_t> order;      ///< column at each position
  std::vector<double> upper;            ///< U, with the inverse of H (ordered, damped) = U^T U
  std::vector<float> diagonal;          ///< of H, by column
  std::vector<float> importance;        ///< of an error, by column
  std::vector<bool> dead;               ///< by column: never anything but 0 is read there
  std::vector<double> drift, residual;  ///< the two terms, strictly above the diagonal, ordered; empty: none
  double damping = 0;                   ///< that it took
  bool usable = false;                  ///< false: H is beyond repair, and rounding is left
};
/// gram: sum x^T x. cross: sum (original - x)^T x; empty: none. The damping grows tenfold until the matrix is positive definite.
[[nodiscard]] Factor factorise(std::span<const double> gram, std::int64_t columns, const SolverOptions& options, std::span<const double> cross = {});

/// Compensated codes of rows [first, first + count) into `out`, which prepare() made. Rows do not depend on each other, but for those that share a
/// scale (by_output): they are done together. weights: the whole matrix.
[[nodiscard]] codec::QuantizedLinear prepare(std::int64_t rows, std::int64_t columns, const SolverOptions& options, const Factor& factor);
void compensate_rows(std::span<const float> weights, const Factor& factor, const SolverOptions& options, std::int64_t first, std::int64_t count,
                     codec::QuantizedLinear& out);
/// All rows at once.
[[nodiscard]] codec::QuantizedLinear compensate(std::span<const float> weights, std::int64_t rows, std::int64_t columns, const Factor& factor,
                                                const SolverOptions& options);

/// tr((Q - W) H (Q - W)^T) / tr(W H W^T); 0 where nothing is lost, 1 where W H W^T is 0 and something is.
[[nodiscard]] double relative_loss(std::span<const float> weights, std::span<const float> quantized, std::int64_t rows, std::int64_t columns,
                                   std::span<const double> gram);
/// tr(D H D^T), D [rows, columns].
[[nodiscard]] double quadratic_form(std::span<const float> difference, std::int64_t rows, std::int64_t columns, std::span<const double> gram);

}  // namespace weft::quantize
