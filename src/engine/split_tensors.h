#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/measure_input.h"

// Fused projections taken apart: q, k and v, gate and up of one tensor are different kinds and are measured as such.
namespace weft::engine {

/// A part of a fused tensor, as a tensor of the view.
struct TensorPart {
  const TensorInfo* tensor = nullptr;  ///< "X.weight [q]", in the view
  model::Role role = model::Role::unknown;
  std::string note;  ///< "the q of X.weight"
  int block = -1;
};
struct SplitTensors {
  std::shared_ptr<const Checkpoint> view;  ///< null when nothing is fused
  std::vector<TensorPart> parts;
};
/// The parts of every fused tensor of which config.json tells the sizes.
[[nodiscard]] SplitTensors split_tensors(const MeasuredInput& input);

}  // namespace weft::engine
