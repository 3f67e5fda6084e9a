#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// Minimising a function of a few dozen numbers by its values alone.
namespace weft::math {

/// CMA-ES with full covariance, weighted recombination, rank-one and rank-mu updates and cumulative step-size adaptation (Hansen, arXiv:1604.00772,
/// with the constants recommended there). Ask for a generation, tell its values; deterministic for a seed.
class CmaEs {
 public:
  /// start: the first mean; sigma: the first step, the same in all directions. population 0: 4 + 3 ln n.
  CmaEs(std::span<const double> start, double sigma, std::uint64_t seed, std::size_t population = 0);

  [[nodiscard]] std::size_t population() const noexcept { return population_; }
  [[nodiscard]] double sigma() const noexcept { return sigma_; }
  [[nodiscard]] const std::vector<double>& mean() const noexcept { return mean_; }
  /// The candidates of the next generation, [population, n].
  [[nodiscard]] std::vector<std::vector<double>> ask();
  /// Their values, lower is better; NaN counts as worst. Ties go to the earlier one.
  void tell(const std::vector<std::vector<double>>& candidates, std::span<const double> values);

 private:
  void decompose();
  [[nodiscard]] double normal();

  std::size_t n_, population_, parents_;
  double sigma_;
  std::uint64_t seed_, drawn_ = 0;
  std::vector<double> weights_;
  double mu_eff_ = 0, c_sigma_ = 0, d_sigma_ = 0, c_c_ = 0, c_1_ = 0, c_mu_ = 0, chi_ = 0;
  std::vector<double> mean_, path_sigma_, path_c_;
  std::vector<double> covariance_, axes_, lengths_;  ///< covariance = axes^T lengths^2 axes; axes by rows
  std::uint64_t generation_ = 0;
};

}  // namespace weft::math
