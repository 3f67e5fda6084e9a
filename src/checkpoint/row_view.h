#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weft/checkpoint.h"

// Views on checkpoints: rows of matrices rearranged, matrices cut, tensors under other names. Nothing is read until bytes are asked for.
namespace weft {

/// A tensor of some checkpoint.
struct TensorRef {
  std::shared_ptr<const Checkpoint> checkpoint;
  const TensorInfo* tensor = nullptr;  ///< lives in the checkpoint
};

/// Where one row of a matrix comes from.
struct RowOrigin {
  enum class Kind : std::uint8_t {
    row,   ///< row `index` of source `source`
    mean,  ///< the mean of the rows of means[index]
    zero,
    padding,  ///< the mean of all rows of this matrix that are not padding themselves
  };
  Kind kind = Kind::zero;
  std::uint32_t source = 0;
  std::uint64_t index = 0;
};

/// One stored row.
struct RowAddress {
  std::uint32_t source = 0;
  std::uint64_t row = 0;
};

/// Every row of a new matrix.
struct RowMap {
  std::vector<RowOrigin> rows;
  std::vector<std::vector<RowAddress>> means;
};

/// A matrix put together from rows of others, as a checkpoint of one tensor `name` [map.rows.size(), columns].
/// dtype: stored type of the view. Rows of a source of that type are its bytes; others are decoded and rounded to it once. Means are taken in float64
/// of the values as this dtype holds them (what a merge that loads in it sees), rows in order, and rounded once; the padding row needs a pass over
/// the matrix, made when first asked for. Reads runs of neighbouring rows in one go, in bounded memory (a few MiB a call, and 8 bytes a column once
/// padding was asked for). Class A. Errors: invalid_argument when the sources are not matrices of one width or the map points beyond them;
/// unsupported for types without values.
[[nodiscard]] TensorRef make_row_view(std::string name, DType dtype, std::vector<TensorRef> sources, RowMap map);

/// Stores float64 values as a floating type, rounded to nearest even once.
void encode_doubles(DType dtype, std::span<const double> values, std::span<std::byte> out);

/// The first num_rows slices along the first axis.
[[nodiscard]] TensorRef truncate_rows(const TensorRef& tensor, std::uint64_t num_rows);

/// The same tensor under another name.
[[nodiscard]] TensorRef alias_tensor(const TensorRef& tensor, std::string name);

/// All tensors of `base`; those in `tensors` replace the ones of the same name, or are added at the end.
[[nodiscard]] std::shared_ptr<const Checkpoint> overlay_tensors(std::shared_ptr<const Checkpoint> base, const std::vector<TensorRef>& tensors);

}  // namespace weft
