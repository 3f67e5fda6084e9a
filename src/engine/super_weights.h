#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/measure_layers.h"
#include "engine/running_model.h"
#include "model/network.h"

// Single weights that carry a model: in a down projection, where both what is read and what is written spike on the first tokens of a text.
namespace weft::engine {

/// The largest that a down projection reads and writes.
struct DownSpike {
  double in = 0, out = 0;
  std::size_t in_position = 0, in_channel = 0, out_position = 0, out_channel = 0;
  bool any = false;
};
/// An element of a block's down projection as [out, in].
struct WeightPlace {
  int layer = 0;
  std::size_t row = 0, column = 0;
  bool operator==(const WeightPlace&) const = default;
};
struct SuperWeight {
  WeightPlace place;
  std::string tensor;         ///< that holds it
  std::uint64_t element = 0;  ///< of the tensor as it is stored
  double value = 0;
};
struct SuperWeights {
  std::vector<SuperWeight> found;
  std::vector<DownSpike> first;  ///< of each layer, in the model as it is; none is `any` where there is no dense down projection
  std::size_t rounds = 0;        ///< forward passes: a weight is set to 0, and the prompt runs again until nothing spikes
};
/// ids: of a text; the token that begins texts is put before them. The first of them are run.
[[nodiscard]] SuperWeights find_super_weights(RunningModel& running, const BlockWeights& weights, const RunOptions& options,
                                              std::span<const std::uint32_t> ids);

/// The model with these weights set to 0.
struct AblatedModel {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::unique_ptr<model::Network> network;
};
[[nodiscard]] AblatedModel without_weights(RunningModel& running, const BlockWeights& weights, const RunOptions& options,
                                           std::span<const WeightPlace> places);

}  // namespace weft::engine
