#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/row_view.h"
#include "weft/checkpoint.h"

// A checkpoint whose tensors are those of others in another arrangement, as containers differ in it. Nothing is read until bytes are asked for.
namespace weft {

/// How one tensor comes from others.
struct ArrangedTensor {
  enum class Kind : std::uint8_t {
    rows,       ///< row i is row `row_of(i)` of the sources laid one after another
    transpose,  ///< of one matrix
    add,        ///< one tensor with `addend` added to every value: float32
    literal,    ///< `bytes`
  };
  std::string name;
  Shape shape;
  Kind kind = Kind::rows;
  std::vector<TensorRef> sources;  ///< of one type; for rows all with as many rows, each as long as those of `shape`
  /// Rows of one value each where the sources have one axis. Absent: row i is row i.
  std::function<std::uint64_t(std::uint64_t)> row_of = nullptr;
  std::uint64_t row_elements = 0;  ///< for rows; 0: the last axis of `shape`, 1 where that is the only one
  float addend = 0;
  DType dtype = DType::f32;  ///< for literal; otherwise that of the sources (float32 for add)
  std::string bytes = {};
};

/// path, metadata: of the view. Class A. Errors: invalid_argument when sources and shapes do not fit.
[[nodiscard]] std::shared_ptr<const Checkpoint> make_arranged_view(std::string container, const Checkpoint& main,
                                                                   std::vector<ArrangedTensor> tensors);

/// The blocks of every tensor that has `stored_as`, as bytes: U8 [stored_bytes]; other tensors as they are.
[[nodiscard]] std::shared_ptr<const Checkpoint> make_stored_view(std::shared_ptr<const Checkpoint> checkpoint);

}  // namespace weft
