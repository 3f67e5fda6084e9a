#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "model/architecture.h"
#include "weft/checkpoint.h"

// Every axis of every weight is made of named spaces: `residual` (one, across all layers), `mlp.3`, `kv.3 x group.3 x half x pair.3`. A space says
// which maps of it, applied to all tensors that touch it, leave the network's function alone.
namespace weft::model {

// Maps that a space may allow, as bits.
inline constexpr unsigned kPermute = 1;      ///< any order
inline constexpr unsigned kSign = 2;         ///< any signs
inline constexpr unsigned kScale = 4;        ///< positive factors, undone where the space is read
inline constexpr unsigned kRotate = 8;       ///< any orthogonal matrix
inline constexpr unsigned kGeneral = 16;     ///< any invertible matrix, its inverse where the space is read
inline constexpr unsigned kRotateMean = 32;  ///< any orthogonal matrix that leaves the vector of ones alone
inline constexpr unsigned kResize = 64;      ///< elements may be left out, or be there several times

struct Space {
  std::string name;  ///< "residual", "mlp.3", "mlp.3.1" (expert 1), "units.2"
  std::int64_t size = 0;
  unsigned allows = 0;
  unsigned allows_folded = 0;  ///< once the gains of norms are multiplied into the matrices that read them, and the head has values of its own
  std::string reason = {};     ///< why not more: "a norm stands between q and the scores"
};

/// What a tensor does with a space that one of its axes is made of: which of M and its inverse comes to it when M is applied to the space.
enum class Side : std::uint8_t {
  write,  ///< it gives vectors of the space: M
  read,   ///< it multiplies them: the inverse, from the other side
  both,   ///< a tied embedding
  order,  ///< it stands beside each element (a norm's gain, the gate of a gated unit): it follows the order and nothing else
};

/// What an axis is made of: a space, a product (the first part changes slowest) or parts one behind the other.
struct Axis {
  enum class Kind : std::uint8_t { space, product, concatenation } kind = Kind::space;
  std::string space;
  std::vector<Axis> parts;
  Side side = Side::write;  ///< of a space
  /// The space of scales between a norm and what reads it ("attention_in.3", "mlp_in.3", "final"), where the axis is one of them: the norm's own
  /// tensors write it, the rest reads it.
  std::string norm = {};

  /// "kv.3 x group.3 x half x pair.3", "(a + b)".
  [[nodiscard]] std::string text() const;
  [[nodiscard]] bool touches(std::string_view name) const;
};

struct NetworkSpaces {
  std::vector<Space> spaces;
  std::map<std::string, std::vector<Axis>, std::less<>> tensors;  ///< an Axis for each axis of the tensor, by its name in the checkpoint
  double gain_offset = 0;                                         ///< what norms add to their gains before they multiply by them

  [[nodiscard]] const Space* find(std::string_view name) const;
  [[nodiscard]] std::int64_t size(const Axis& axis) const;
  /// For an axis whose space `name` is read in another order (new element i is old element order[i]; fewer elements select): which old index each new
  /// index of the axis takes. Other spaces stay as they are.
  [[nodiscard]] std::vector<std::int64_t> reordered(const Axis& axis, std::string_view name, std::span<const std::int64_t> order) const;
};

/// The spaces of a model. Tensors that the table does not know are left out. Errors: corrupt when the sizes of the spaces do not make up a shape.
[[nodiscard]] NetworkSpaces spaces_of(const Architecture& architecture, const Json& config, const Checkpoint& checkpoint);

}  // namespace weft::model
