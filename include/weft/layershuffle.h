#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "weft/dtype.h"
#include "weft/export.h"

namespace weft {

struct LayerShuffleOptions {
  std::vector<std::string> models;
  std::vector<double> weights;  ///< one a model: how likely it is for a layer; with full_random how much of it is taken. None: all alike
  bool full_random = false;     ///< layers of every model in any order, not each in its place
  bool fp16 = false;            ///< dtype: float16
  std::uint64_t seed = 0;
};

/// A mergekit config (passthrough) that takes the layers of models at random, as mergekit-layershuffle makes it; the draws are our own.
/// Errors: invalid_argument, and those of opening the models' configs.
[[nodiscard]] WEFT_API std::string layershuffle_config(const LayerShuffleOptions& options);

}  // namespace weft
