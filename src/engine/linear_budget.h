#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "engine/block_pass.h"
#include "engine/linear_plan.h"
#include "quantize/allocate.h"

// Widths for each layer under a budget of bits or bytes.
namespace weft::engine {

class LinearBudget {
 public:
  /// Errors: invalid_argument for formats of one width, widths that the format does not hold.
  explicit LinearBudget(LinearPlan& plan);

  [[nodiscard]] static bool is_asked_for(const LinearQuantizeOptions& options) { return options.budget_bits || options.budget_bytes; }
  [[nodiscard]] const std::vector<int>& widths() const noexcept { return widths_; }
  [[nodiscard]] std::vector<int> widths_of(const LinearTarget& target) const;
  /// What a width of a target takes and loses; in the order of widths_of. Not for several threads on one target.
  void add_choice(const LinearTarget& target, const quantize::Choice& choice);
  /// What block importance by change (lim) needs: the block run once more.
  void look_at_block(Block& block);
  /// Sets the widths of the plan's targets. other_bytes: of tensors that are no target. told: is told what was taken for each.
  /// Errors: invalid_argument for a budget below the least that is possible, with both numbers.
  void choose(std::uint64_t other_bytes, const std::function<void(const LinearTarget&, const quantize::Choice&)>& told);

 private:
  [[nodiscard]] std::vector<std::size_t> raise_blocks(std::uint64_t budget) const;
  LinearPlan& plan_;
  std::vector<int> widths_;
  std::vector<std::vector<quantize::Choice>> choices_;
  std::map<int, double> change_scores_;  ///< of blocks
};

}  // namespace weft::engine
