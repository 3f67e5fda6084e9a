#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "engine/activations.h"
#include "engine/block_pass.h"
#include "engine/running_model.h"

namespace weft::engine {

/// What a whole model loses when one of its blocks is other than it was: how far what it predicts is from what it predicted, from where a pass over
/// the blocks has come to, to the end. On the model's own predictions that is by how much its loss rises; on a text the rise itself is mostly noise.
class TailLoss {
 public:
  /// The first sequences of the tokens are run, as many as give some thousand tokens. Errors: unsupported for a model that predicts none.
  TailLoss(RunningModel& running, std::shared_ptr<const CalibrationTokens> tokens);
  ~TailLoss();

  /// Of the first block, as the model has it: what is predicted.
  void remember(Block& block);
  /// Mean divergence a token, in nats, with the block as it is now and those behind it as the model has them. For the blocks in their order.
  [[nodiscard]] double of(Block& block);

 private:
  const model::BlockWeights& behind(int layer);
  /// What the head reads.
  [[nodiscard]] std::vector<float> run(Block& block, const Activations::Batch& batch);
  RunningModel& running_;
  std::shared_ptr<const CalibrationTokens> tokens_;
  std::vector<std::vector<float>> plain_;  ///< what the head reads of the unchanged model, by batch
  bool keeps_ = false;                     ///< weights of blocks, which are read once then
  std::vector<std::unique_ptr<model::BlockWeights>> kept_;
  std::unique_ptr<model::BlockWeights> read_;
};

}  // namespace weft::engine
