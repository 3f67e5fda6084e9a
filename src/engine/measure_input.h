#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "model/architecture.h"
#include "weft/checkpoint.h"
#include "weft/measure.h"

// What measuring knows of a model beside its tensors' bytes.
namespace weft::engine {

struct MeasuredInput {
  std::string written;  ///< as the user named it
  std::shared_ptr<const Checkpoint> checkpoint;
  std::optional<Json> config;
  const model::Architecture* architecture = nullptr;
  std::vector<std::string> warnings;

  [[nodiscard]] model::Role role(std::string_view tensor) const;
  /// -1 outside of the layers.
  [[nodiscard]] int block(std::string_view tensor) const;
  /// -1 where there is none.
  [[nodiscard]] int expert(std::string_view tensor) const;
  /// The tensor of this role in a layer (an expert's: of that expert); null when absent.
  [[nodiscard]] const TensorInfo* find(model::Role role, int block, int expert = -1) const;
  /// The matrix that turns hidden states into logits: the head, or the embedding that stands in for it. Null when there is neither.
  [[nodiscard]] const TensorInfo* head() const;
};
[[nodiscard]] MeasuredInput open_measured(const std::string& model);

/// How a tensor's values can be had; empty when they can. ("integers are no weights")
[[nodiscard]] std::string unreadable_reason(const TensorInfo& tensor);
/// Elements [begin, begin + out.size()) as float32 (of float64: rounded). begin is even for types of half a byte.
void read_floats(const Checkpoint& checkpoint, const TensorInfo& tensor, std::uint64_t begin, std::span<float> out);
/// The same as float64, exactly.
void read_doubles(const Checkpoint& checkpoint, const TensorInfo& tensor, std::uint64_t begin, std::span<double> out);
[[nodiscard]] std::vector<double> read_doubles(const Checkpoint& checkpoint, const TensorInfo& tensor);

/// Rows and columns of a tensor read as a matrix: the first axis, and all others. Nothing for vectors and scalars.
struct MatrixShape {
  std::int64_t rows = 0, columns = 0;
};
[[nodiscard]] std::optional<MatrixShape> matrix_shape(const TensorInfo& tensor);

}  // namespace weft::engine
