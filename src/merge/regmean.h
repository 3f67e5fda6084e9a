#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// RegMean: the matrix that best reproduces, in the sum of squares, what every model's own matrix answers to its own inputs. (Jin et al. 2023,
// arXiv:2212.09849; RegMean++ gives it other inputs, arXiv:2508.03121.)
namespace weft::merge {

/// For matrices of several models that read the same inputs. Class C, in float64.
class RegMean {
 public:
  /// What one model's inputs were: sum x^T x over the tokens, [columns, columns], and how many tokens.
  struct Inputs {
    std::span<const double> gram;
    std::uint64_t num_tokens = 0;
  };
  /// off_diagonal: factor of what does not stand on the diagonal of each model's mean of x^T x; 1 leaves them whole, 0 gives means weighted by
  /// column.
  RegMean(std::span<const Inputs> models, std::size_t columns, double off_diagonal);

  /// The sum of second moments had next to no extent in some direction, so a little was added to its diagonal.
  [[nodiscard]] bool is_ridged() const noexcept { return ridged_; }
  /// No model saw any input: the result is the plain mean.
  [[nodiscard]] bool is_mean() const noexcept { return factor_.empty(); }

  /// weights: the same rows of each model's matrix, [rows, columns]. out: [rows, columns]. Thread-safe: rows may be shared out.
  void merge(std::span<const std::span<const float>> weights, std::size_t rows, std::span<float> out) const;

 private:
  std::size_t columns_;
  std::vector<std::vector<double>> moments_;  ///< G of each model
  std::vector<double> factor_;                ///< L of their sum, below and on the diagonal
  bool ridged_ = false;
};

/// Turns the lower triangle of a symmetric matrix [n, n] into its Cholesky factor. Returns the smallest pivot (the square of a diagonal element);
/// not above 0 when the matrix is not positive definite, and the matrix is then useless.
[[nodiscard]] double factor_lower(std::span<double> matrix, std::size_t n);

}  // namespace weft::merge
