#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "checkpoint/row_view.h"
#include "math/linear_map.h"

// A tensor whose axes went through linear maps, computed as it is read.
namespace weft {

/// One change along one axis: either each new index takes an old one, scaled, or blocks of indices are mixed.
struct AxisStep {
  std::size_t axis = 0;
  std::vector<std::int64_t> order = {};  ///< old index of each new one; empty: as they are
  std::vector<double> factors = {};      ///< of each new index; empty: 1
  std::vector<double> addends = {};      ///< added behind the factors, in vectors only; empty: 0
  /// Further addends, asked for once, when the vector is first read: they may come from other tensors.
  std::function<std::vector<double>()> late_addends = nullptr;
  /// The indices first, first + stride, ... as one vector through a map.
  struct Block {
    std::int64_t first = 0, stride = 1;
    std::shared_ptr<const math::LinearMap> map;
    bool is_dual = false;
  };
  std::vector<Block> blocks = {};  ///< disjoint
};

/// The tensor after these steps, in its own type: values in float64, rounded once (once more, to float32, for a matrix whose first axis is mixed).
/// On a view that this function made (also under another name), the steps join its own. Steps along other axes than the first cost a few rows of
/// memory; a matrix whose first axis is mixed is held as float32 while it is read, and let go when all of it was. Class A where the maps are.
/// Errors: unsupported for types without values, and for those of fewer than 16 bits unless values only change places or signs; while reading,
/// unsupported when a value leaves the range of the type.
[[nodiscard]] TensorRef change_axes(const TensorRef& tensor, std::vector<AxisStep> steps);

}  // namespace weft
