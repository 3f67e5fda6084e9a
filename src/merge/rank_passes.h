#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "math/select.h"
#include "merge/method.h"

namespace weft::merge {

/// The passes of a TensorMerge that find elements by rank: a math::RankSelector in the shape of next_pass, wants_tile, reduce and solve.
/// Tiles may be cut anywhere.
class RankPasses {
 public:
  /// ranks: 0 is the largest key.
  RankPasses(std::uint64_t num_elements, std::vector<std::uint64_t> ranks) : selector_(num_elements, std::move(ranks)) {}
  explicit RankPasses(math::RankSelector selector) : selector_(std::move(selector)) {}

  /// As TensorMerge::limit_memory.
  std::uint64_t limit_memory(std::uint64_t bytes, int workers) { return selector_.limit_memory(bytes, workers); }
  [[nodiscard]] Pass next_pass() const noexcept;
  [[nodiscard]] bool wants_tile(std::uint64_t first, std::size_t count) const noexcept;
  [[nodiscard]] std::unique_ptr<Tally> new_tally() const;
  /// keys: of elements first ..; in a sample pass only those of wanted blocks count. Thread-safe with a tally a thread.
  void add(Tally& tally, std::uint64_t first, std::span<const float> keys) const;
  /// Ends a pass.
  void finish_pass(std::span<const std::unique_ptr<Tally>> tallies);
  [[nodiscard]] std::span<const math::RankedElement> results() const noexcept { return selector_.results(); }

 private:
  math::RankSelector selector_;
};

}  // namespace weft::merge
