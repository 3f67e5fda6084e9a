#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

// Selection by magnitude within a row that is in memory. Class A. Of equal magnitudes the lower index is the smaller in ascending order, and the
// larger where the largest are wanted.
namespace weft::math {

/// keys[i] = the bits of |values[i]|, which are ordered as the magnitudes are. Returns the largest (0 when empty).
std::uint32_t magnitude_keys(std::span<const float> values, std::span<std::uint32_t> keys);

/// The keys of changes[i] = values[i] - origin[i]; 0 where taken[i] has all bits set (it has all or none). Returns the largest.
std::uint32_t change_keys(std::span<const float> values, std::span<const float> origin, std::span<const std::uint32_t> taken,
                          std::span<std::uint32_t> keys);

/// The count-th largest of the keys, and the index of the last of its equals that belongs to the count largest. 1 <= count <= keys.size(); keys below
/// 2^31, the largest as given. hint: where to look first, such as the threshold of a similar row.
struct LargestKeys {
  std::uint32_t threshold = 0;
  std::uint32_t last_tie = 0;
};
[[nodiscard]] LargestKeys largest_keys(std::span<const std::uint32_t> keys, std::size_t count, std::uint32_t largest, std::uint32_t hint);

/// Where keys[i] is one of those: sets taken[i], and result[i] to base + factor (value - base) in float64, rounded once (the value itself when factor
/// is 1). Others stay as they are.
void take_largest(std::span<const std::uint32_t> keys, const LargestKeys& which, std::span<const float> values, std::span<const float> base,
                  double factor, std::span<std::uint32_t> taken, std::span<float> result);

/// The smallest multiple of 2^-24 that is not below p (p <= 1). Uniform numbers are such multiples, so u < p exactly when u < this; p itself rounded
/// to float32 could be off by one.
[[nodiscard]] float as_threshold(double p) noexcept;

/// Drops entries of a row at random, the smaller ones more often (DELLA). The entry of rank r = 0 .. R-1, ascending by magnitude, stays when its
/// uniform number is below p(r) = (density - epsilon) + 2 epsilon r / (R - 1); a row of one uses density.
/// Exact, as a rule without sorting: most numbers decide whatever the rank; a histogram of the magnitudes bounds the ranks of the others, and only
/// entries whose number falls between the bounds' probabilities are ranked. Time O(R) for the usual, O(R log R) for the worst row.
class RowRankMask {
 public:
  /// 0 < density - epsilon, density + epsilon < 1, epsilon >= 0.
  RowRankMask(double density, double epsilon) noexcept : density_(density), epsilon_(epsilon) {}

  /// What an entry of a row takes of that memory at most, its line and numbers in float32 and its share of the bins included.
  static constexpr std::uint64_t kScratchBytes = 96;

  /// Memory that calls reuse.
  struct Scratch {
    std::vector<std::uint32_t> keys;
    std::vector<std::uint32_t> bins;    ///< of each entry
    std::vector<std::uint32_t> places;  ///< of each entry among those of its bin
    std::vector<std::uint32_t> counts;  ///< of each fine bin, by halves of the row
    std::vector<std::int32_t> begins;   ///< of each coarse bin: the rank of its first entry
    std::vector<float> keep_below;      ///< of each coarse bin: its entries stay when their number is below this,
    std::vector<float> drop_from;       ///< go when it is not below this, else their rank decides
    std::vector<std::uint32_t> candidates;
    std::vector<float> numbers;  ///< of the candidates
    std::vector<std::uint32_t> dropped;
    std::vector<std::uint32_t> listed;
    std::vector<std::uint32_t> order;
  };

  /// Zeroes what is dropped. values, uniform: [R], R < 2^31.
  void apply(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const;
  /// The same, and divides what stays by its p(r). O(R log R).
  void apply_unbiased(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const;

  [[nodiscard]] double probability(std::uint64_t rank, std::uint64_t row_length) const noexcept {
    if (row_length < 2) return density_;
    return (density_ - epsilon_) + 2 * epsilon_ * static_cast<double>(rank) / static_cast<double>(row_length - 1);
  }

 private:
  /// The indices of scratch.keys, smallest key first.
  static std::span<const std::uint32_t> ascending(Scratch& scratch);

  double density_;
  double epsilon_;
};

}  // namespace weft::math
