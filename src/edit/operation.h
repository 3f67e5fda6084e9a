#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "checkpoint/tensor_view.h"
#include "weft/checkpoint.h"

// Surgery on a model as operations on a list of named tensors and a config. Tensors become views; nothing is read, but for the few rows that --tie
// compares.
namespace weft::edit {

/// A tensor of a model that is being edited.
struct Tensor {
  std::string name;
  TensorRef values;                 ///< under whatever name it had
  TensorRef source;                 ///< what the values were before anything was done to them
  std::vector<std::string> inputs;  ///< "MODEL:TENSOR", for plans
  std::vector<std::string> steps;   ///< what was done to the values: "transpose", "cast"
};

/// What operations change.
struct Model {
  std::vector<Tensor> tensors;  ///< in the order of the checkpoint; names differ
  std::optional<Json> config;   ///< of config.json
  /// Files that operations read numbers from; they are inputs as the model is.
  std::vector<std::shared_ptr<const Checkpoint>> arrays = {};
};

/// One operation as it is written: on a command line without its dashes, in a recipe as a key.
struct Request {
  std::string operation;  ///< "rename"
  std::string argument;   ///< "FROM=TO"; empty for tie and untie
};

/// What an operation did.
struct Effect {
  std::string operation = {};  ///< "rename model\.=backbone."
  std::uint64_t num_tensors = 0;
  std::string example = {};  ///< of one tensor: "model.norm.weight -> backbone.norm.weight"
};

/// An operation, understood. Patterns are RE2, found anywhere in a name (^ and $ anchor them).
class Operation {
 public:
  virtual ~Operation() = default;
  /// Errors: invalid_argument (a pattern that matches nothing, names that collide, ranges that leave a tensor, ...), unsupported, not_found.
  virtual Effect apply(Model& model, std::vector<std::string>& warnings) const = 0;
};

/// The names of all operations, in the order in which they are explained.
struct OperationHelp {
  std::string_view name;      ///< "rename"
  std::string_view argument;  ///< "FROM=TO"; empty: a switch
  std::string_view help;
};
[[nodiscard]] const std::vector<OperationHelp>& operations();

/// Errors: invalid_argument naming the operation: unknown, malformed patterns, types and ranges.
[[nodiscard]] std::unique_ptr<Operation> parse_operation(const Request& request);

/// "0:100, ::2, 5" for a tensor of this shape: one range an axis, those left out taken whole; negative numbers count from the end.
/// Errors: invalid_argument.
[[nodiscard]] std::vector<AxisRange> parse_axis_ranges(std::string_view text, const Shape& shape);

}  // namespace weft::edit
