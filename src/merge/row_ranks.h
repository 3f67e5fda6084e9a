#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace weft::merge {

/// Drops entries of a row at random, the smaller ones more often (DELLA). The entry of rank r = 0 .. R-1, ascending by magnitude (of equal ones the
/// lower index first), stays when its uniform number is below p(r) = (density - epsilon) + 2 epsilon r / (R - 1); a row of one uses density. Exact,
/// but without sorting: a histogram of the magnitudes bounds every rank, and only entries whose number falls between the bounds' probabilities are
/// ranked. Time O(R) for the usual, O(R log R) for the worst row.
class RowRankMask {
 public:
  /// 0 < density - epsilon, density + epsilon < 1, epsilon >= 0.
  RowRankMask(double density, double epsilon) noexcept : density_(density), epsilon_(epsilon) {}

  /// Memory that calls reuse.
  struct Scratch {
    std::vector<std::uint32_t> keys;
    std::vector<std::uint32_t> counts;  ///< of each bucket
    std::vector<std::uint32_t> next;
    std::vector<float> keep_below;  ///< of each bucket: kept when the number is below this,
    std::vector<float> drop_from;   ///< dropped when not below this, else its rank decides
    std::vector<std::uint32_t> undecided;
    std::vector<std::uint32_t> members;
    std::vector<std::uint32_t> ranks;
  };

  /// Zeroes what is dropped. values, uniform: [R].
  void apply(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const;
  /// The same, and divides what stays by its p(r). O(R log R).
  void apply_unbiased(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const;

  [[nodiscard]] double probability(std::uint64_t rank, std::uint64_t row_length) const noexcept {
    if (row_length < 2) return density_;
    return (density_ - epsilon_) + 2 * epsilon_ * static_cast<double>(rank) / static_cast<double>(row_length - 1);
  }

 private:
  double density_;
  double epsilon_;
};

/// The smallest multiple of 2^-24 that is not below p (p <= 1). Uniform numbers are such multiples, so u < p exactly when u < this; p itself rounded
/// to float32 could be off by one.
[[nodiscard]] float as_threshold(double p) noexcept;

}  // namespace weft::merge
