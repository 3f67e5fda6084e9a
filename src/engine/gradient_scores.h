#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "engine/activations.h"
#include "engine/chosen_positions.h"
#include "quantize/sensitivity.h"
#include "weft/checkpoint.h"

// Scores of single weights by the gradient of the model's loss on calibration sequences: where the weights are, or along the way to quantized ones.
// They take four bytes a weight of the matrices that are asked for, beside what the gradient itself takes.
namespace weft::engine {

struct GradientScoreOptions {
  std::size_t num_sequences = 8;  ///< the first of the calibration text; 0: all
  int threads = 0;
  std::uint64_t memory_bytes = 0;
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(double done)> on_progress = {};  ///< the share that is done
};

/// Of each of these matrices the share of weights whose |gradient|, summed over the sequences one by one, is largest (GWQ).
/// Errors: out_of_memory with both numbers; those of loss_gradient.
[[nodiscard]] ChosenPositions choose_by_gradient(const std::shared_ptr<const Checkpoint>& model, const Json& config, const CalibrationTokens& tokens,
                                                 const std::vector<std::string>& names, double share, const GradientScoreOptions& options);

/// The gradients of these matrices along the straight way from the model's weights to other ones, as means over its midpoints and the sequences.
struct PathScores {
  std::map<std::string, quantize::PathGradient, std::less<>> gradients;
  double change = 0;  ///< of the loss along the way, as the gradients tell it
};
[[nodiscard]] PathScores score_path(const std::shared_ptr<const Checkpoint>& model, const std::shared_ptr<const Checkpoint>& quantized,
                                    const Json& config, const CalibrationTokens& tokens, const std::vector<std::string>& names, int num_points,
                                    const GradientScoreOptions& options);

}  // namespace weft::engine
