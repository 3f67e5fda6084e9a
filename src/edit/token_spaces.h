#pragma once
#include <cstddef>
#include <functional>
#include <vector>

#include "edit/token_rows.h"

// Maps between the spaces of two models' embeddings, learned from the tokens that both know.
namespace weft::edit {

/// row -> (row - from) matrix + to.
struct AffineMap {
  std::vector<double> from;    ///< [inputs]
  std::vector<double> matrix;  ///< [inputs, outputs]
  std::vector<double> to;      ///< [outputs]
  /// out: [rows.count(), outputs]. Thread-safe.
  void apply(Rows rows, std::span<float> out) const;
};

/// The turn of one cloud of points, about its mean and in its principal directions (as many as the narrower space has), that comes nearest to the
/// other: orthogonal Procrustes. there[i] and here[i] are the same token. Class C.
/// As mergekit-tokensurgeon's landmark_pca, but for the turn itself: the peer applies its inverse, so that the two agree only where it is symmetric.
[[nodiscard]] AffineMap principal_turn(Rows there, Rows here);

/// Directions that both spaces have: the principal ones of the narrower space, each as a sum of k tokens (orthogonal matching pursuit over centred
/// rows), and the same sums in the other. A row is written in the one set of directions by least squares and read in the other.
/// there_mean, here_mean: of all rows. pursue: carries out work on a range of directions, in threads perhaps. Class C. As mergekit-tokensurgeon's
/// stb.
[[nodiscard]] AffineMap token_basis(Rows there, Rows here, std::size_t k, std::vector<double> there_mean, std::vector<double> here_mean,
                                    const std::function<void(std::size_t count, const std::function<void(std::size_t)>& one)>& pursue);

/// A lower triangle L [width, width] with L L^T the covariance of rows; empty where that is not positive definite. mean: of the rows.
[[nodiscard]] std::vector<double> covariance_root(Rows rows, std::span<const double> mean);
[[nodiscard]] std::vector<double> mean_of(Rows rows);

}  // namespace weft::edit
