#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/block_pass.h"
#include "engine/linear_plan.h"

// What a whole model loses on a text once its layers are rounded: how methods choose one number for all of them.
namespace weft::engine {

/// The first sequences, of so many tokens at least.
[[nodiscard]] std::shared_ptr<const CalibrationTokens> first_tokens(const CalibrationTokens& tokens, std::uint64_t num_tokens);

struct RoundedLossOptions {
  std::function<void(Block& block)> before_block;  ///< changes the block; empty: nothing
  /// What becomes of a layer's weights; empty: they are rounded to nearest.
  std::function<std::vector<float>(const LinearTarget& target, std::vector<float> values)> rounded;
};
/// Mean loss of next tokens.
[[nodiscard]] double rounded_loss(LinearPlan& plan, RunningModel& model, const std::shared_ptr<const CalibrationTokens>& tokens,
                                  const RoundedLossOptions& options);

}  // namespace weft::engine
