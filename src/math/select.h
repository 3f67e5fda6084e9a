#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

// Exact order statistics over more elements than fit in memory, by passes over the data. The key of element i is (|x_i| as float32, then index: of two
// equal magnitudes the lower index is the larger, or the smaller when asked for), so every element has its own rank and the answer does not depend on
// chunks, threads or order.
namespace weft::math {

/// The element of a given rank: its magnitude and its index, so that "is this one at or above it" needs no more than the pair.
struct RankedElement {
  float magnitude = 0;
  std::uint64_t index = 0;
};
/// Whether element (magnitude, index) ranks at or above `threshold` (is at least as large), where the lower index is the larger.
[[nodiscard]] constexpr bool at_or_above(float magnitude, std::uint64_t index, const RankedElement& threshold) noexcept {
  return magnitude > threshold.magnitude || (magnitude == threshold.magnitude && index <= threshold.index);
}

/// Finds the elements of the given ranks (0 = the largest) among num_elements. Usage: while next_pass() is not done, make one Tally for each worker,
/// add every element (all, or those of the wanted blocks) once, in any order and split, merge the tallies, call finish_pass(). Usually one sampled and one
/// whole pass, or one whole pass for small tensors; when the answer is one of many equal elements a pass over the few blocks that hold it follows; never
/// more than seven. add() may be called from many threads, each with its own tally; the others from one.
/// Memory: 4 to 8 bytes an element up to 2^22 elements; above that as a rule 16 MiB, never more than 64 MiB; plus 0.5 MiB a rank and worker; less when
/// limit_memory() says so. Cost: 0.4 to 1 ns an element and pass on one core with AVX2.
/// Errors: internal for a rank that is not below num_elements and for a whole pass that was not shown every element.
class RankSelector {
 public:
  /// sample: only blocks that wants_block() names (others may be added and are ignored); whole: every element.
  enum class Pass { done, sample, whole };
  static constexpr std::uint64_t kSampleBlock = 8192;

  /// Which of two equal magnitudes is the larger: the first when the largest are wanted, the second as in a stable ascending sort.
  enum class Ties { lower_index_is_larger, lower_index_is_smaller };

  RankSelector(std::uint64_t num_elements, std::vector<std::uint64_t> ranks, Ties ties = Ties::lower_index_is_larger);
  /// Finds the last of the int(share * m) largest, 0 <= share <= 1, where m is how many are not zero: which rank that is comes out on the way, without
  /// a pass of its own. No result where int(share * m) is 0.
  [[nodiscard]] static RankSelector of_share_of_nonzero(std::uint64_t num_elements, double share);
  ~RankSelector();
  RankSelector(RankSelector&&) noexcept;
  RankSelector& operator=(RankSelector&&) noexcept;

  /// Before the first pass: to keep to about this many bytes, those of the tallies of so many workers included, with a smaller sample and fewer
  /// candidates and so perhaps more passes. Returns the most that will be held, which is more where the bytes do not suffice (a few MiB do).
  std::uint64_t limit_memory(std::uint64_t bytes, int workers);

  [[nodiscard]] Pass next_pass() const noexcept;
  /// In a sample pass: whether block b (elements b * kSampleBlock ..) is wanted in it. Another pass wants other blocks.
  [[nodiscard]] bool wants_block(std::uint64_t block) const noexcept;

  class Tally;  ///< what one worker has seen in this pass
  [[nodiscard]] std::unique_ptr<Tally> new_tally() const;
  /// values: elements first_index ..; their absolute values are ranked. NaN-free.
  void add(Tally& tally, std::uint64_t first_index, std::span<const float> values) const;
  /// Not thread-safe.
  void merge(Tally& tally);
  void finish_pass();

  /// One for each rank asked for, in the order given; valid when next_pass() is done.
  [[nodiscard]] std::span<const RankedElement> results() const noexcept;

 private:
  struct State;
  explicit RankSelector(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Destroys a tally through its complete type.
class RankSelector::Tally {
 public:
  virtual ~Tally() = default;
};

}  // namespace weft::math
