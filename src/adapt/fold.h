#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "adapt/adapter.h"
#include "checkpoint/row_view.h"

// What each kind of adapter does to the tensors of a model, row by row.
namespace weft::adapt {

/// A stored tensor as a matrix: its first axis by the rest (a stack of expert matrices: its last axis the columns; a vector: one column).
struct RowSource {
  std::uint64_t rows = 0;
  std::uint64_t columns = 0;
  /// Rows [first, first + count), as float64.
  std::function<void(std::uint64_t first, std::uint64_t count, std::span<double> out)> read;
};

/// A change of one tensor, its factors in memory. Pure and thread-safe.
class Fold {
 public:
  virtual ~Fold() = default;
  /// values: rows [first, first + count) of the tensor, changed in place.
  virtual void apply(const RowSource& source, std::uint64_t first, std::uint64_t count, std::span<double> values) const = 0;
  /// What it holds.
  std::uint64_t held_bytes = 0;
};

/// Reads what a change needs of the adapter (and, for norms, of the tensor).
using MakeFold = std::function<std::unique_ptr<Fold>(const RowSource& source)>;

/// A tensor that an adapter changes.
struct ChangedTensor {
  std::string name;                      ///< in the model
  std::optional<TensorRef> replacement;  ///< its values are these, and then changed
  MakeFold make;                         ///< empty: nothing further
  bool matrix_of_last_axis = false;      ///< rows are all axes but the last
  bool is_new = false;                   ///< the model stores no such tensor (a tied head)
};

/// The tensors of the model as modules have them.
class BaseTensors {
 public:
  virtual ~BaseTensors() = default;
  /// The name of a module's tensor in the model ("MODULE.weight", or MODULE itself for an empty leaf), allowing for a prefix that one of the two
  /// lacks; nothing when there is none.
  [[nodiscard]] virtual std::optional<std::string> find(std::string_view module, std::string_view leaf) const = 0;
  [[nodiscard]] virtual const TensorInfo& tensor(std::string_view name) const = 0;
  [[nodiscard]] virtual bool is_embedding(std::string_view name) const = 0;
};

/// What the adapter does to the tensors of one module. Reads no values. Errors: corrupt and invalid_argument naming module and shapes when the
/// adapter does not fit the model or itself; unsupported for kinds that cannot be folded here.
[[nodiscard]] std::vector<ChangedTensor> changes_of(const std::shared_ptr<const Adapter>& adapter, const AdapterModule& module,
                                                    const BaseTensors& base);

}  // namespace weft::adapt
