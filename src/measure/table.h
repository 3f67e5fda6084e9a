#pragma once
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/measure.h"

// Every group of measures: what it needs, where its definition comes from, and what it is called.
namespace weft::measure {

/// What a group is computed from. Each pass runs once a tensor, whatever was asked of it.
enum class Pass : std::uint8_t {
  elements,  ///< the elements, in any order
  spectrum,  ///< the singular values
  matrix,    ///< the whole matrix
  block,     ///< the matrices of one layer
  pair,      ///< one tensor in two models
  set,       ///< one tensor in many models
  text,      ///< a forward pass over texts
  gradient,  ///< gradients of the loss over a text
};

enum class Cost : std::uint8_t {
  low,   ///< no more than the pass itself
  high,  ///< left out of large tensors unless it was asked for by name
};

struct Group {
  std::string_view name;
  Pass pass;
  Cost cost;
  std::string_view determinism;  ///< "A", "B", "C"
  std::string_view summary;
  std::string_view source;
  std::vector<std::string_view> keys;  ///< of which the group consists; others may come with them
};

/// In the order of the output.
[[nodiscard]] std::span<const Group> groups();
/// Null when unknown.
[[nodiscard]] const Group* find_group(std::string_view name);

/// What is wanted: by name, or all.
class Selection {
 public:
  /// Empty: everything, but costly groups only where the tensor is small. "all": everything. Errors: invalid_argument with the nearest name.
  explicit Selection(std::span<const std::string> what);
  [[nodiscard]] bool wants(std::string_view group) const noexcept;
  /// Whether costly groups are to be left out of large tensors.
  [[nodiscard]] bool spares() const noexcept { return names_.empty() && !all_; }
  [[nodiscard]] bool wants_pass(Pass pass) const noexcept;
  /// A group of this pass that was asked for by name; empty when none was.
  [[nodiscard]] std::string_view named(Pass pass) const noexcept;

 private:
  bool all_ = false;
  std::vector<std::string> names_;
};

/// Adds a number; one that is not finite becomes a skipped measure with this reason.
void put(Measures& measures, std::string name, double value, std::string_view reason = "undefined");
/// Every key of a group (or of several) is skipped for one reason.
void skip_group(Measures& measures, std::string_view group, std::string_view reason);

}  // namespace weft::measure
