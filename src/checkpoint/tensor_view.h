#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/row_view.h"
#include "weft/checkpoint.h"

// Views on single tensors: cast, transposed, sliced. Nothing is read until bytes are asked for.
namespace weft {

/// The values as another floating type, rounded to nearest even on the way (once, from float32). Integers and booleans can be cast to floating types
/// too. The tensor itself where it is of that type already. Errors: unsupported for types without values.
[[nodiscard]] TensorRef cast_tensor(const TensorRef& tensor, DType dtype);

/// The tensor that this one is only a cast of, for writers that cast themselves; nothing otherwise.
[[nodiscard]] std::optional<TensorRef> cast_from(const TensorRef& tensor);

/// The matrix with its axes exchanged. Read in bands of columns of at most band_bytes, of which the last two are kept, so that a matrix read in order
/// is read once. Errors: invalid_argument for anything but a matrix, unsupported for types of less than a byte.
[[nodiscard]] TensorRef transpose_tensor(const TensorRef& tensor, std::uint64_t band_bytes = std::uint64_t{32} << 20);

/// begin, begin + step, ... below end; step is positive, or negative and end lies before (-1 for "to the first").
struct AxisRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t step = 1;
  [[nodiscard]] std::int64_t size() const noexcept;
};

/// Part of a tensor: one range for each axis, within it. Errors: invalid_argument, unsupported for types of less than a byte.
[[nodiscard]] TensorRef slice_tensor(const TensorRef& tensor, std::vector<AxisRange> ranges);

/// A tensor with the name that it goes under.
struct NamedTensor {
  TensorRef tensor;
  std::string name;
};
/// A checkpoint of these tensors, in this order. main: whose path and metadata it has. Errors: corrupt for two of one name.
[[nodiscard]] std::shared_ptr<const Checkpoint> select_tensors(const std::vector<NamedTensor>& tensors, const Checkpoint& main);
/// The tensor behind one that a selection (select_tensors, overlay_tensors, alias_tensor) only renames; that tensor itself otherwise.
[[nodiscard]] TensorRef without_renames(TensorRef tensor);

}  // namespace weft
