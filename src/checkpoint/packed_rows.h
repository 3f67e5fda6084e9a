#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "math/packed_matrix.h"
#include "weft/checkpoint.h"

// Rows of quantized matrices as codes and scales, for those who compute with them as they are.
namespace weft {

struct PackedRows {
  math::PackedFormat format;
  std::vector<std::uint8_t> codes;   ///< rows of GGUF blocks, or of a code a byte
  std::vector<float> scales, zeros;  ///< [rows, groups] of formats without blocks
  bool has_blocks = false;

  /// Puts row i of these as a row of the matrix.
  void put(std::size_t i, math::PackedMatrix& matrix, std::size_t row) const;
};

/// A checkpoint that can give matrices so. What it gives stands for the values that read_bytes() gives, but for their rounding to the tensor's type.
class PackedSource {
 public:
  virtual ~PackedSource() = default;
  /// Rows [first, first + count); with a count of 0 only the format. False where the matrix is not packed in a way that math::PackedMatrix can hold.
  [[nodiscard]] virtual bool read_packed_rows(const TensorInfo& tensor, std::uint64_t first, std::uint64_t count, PackedRows& out) const = 0;

 protected:
  PackedSource() = default;
  PackedSource(const PackedSource&) = default;
  PackedSource& operator=(const PackedSource&) = default;
};

/// Of any checkpoint: those that are a PackedSource, and GGUF files. Errors: as of reading.
[[nodiscard]] bool read_packed_rows(const Checkpoint& checkpoint, const TensorInfo& tensor, std::uint64_t first, std::uint64_t count,
                                    PackedRows& out);

}  // namespace weft
