#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace weft::app {

/// Tensors whose names differ only in numbers ("model.layers.7.mlp.up_proj.weight") and that are otherwise alike.
struct FoldedTensors {
  std::string name;                  ///< "model.layers.0-27.mlp.up_proj.weight"
  std::vector<std::size_t> members;  ///< positions in what was folded, in natural order of their names
};

/// Folds tensors with equal `alike` texts (dtype and shape, say) over the numbers in their names. In natural order of names: layers.2 before
/// layers.10. unfolded: one entry a tensor.
[[nodiscard]] std::vector<FoldedTensors> fold_tensors(const std::vector<std::string>& names, const std::vector<std::string>& alike, bool unfolded);

}  // namespace weft::app
