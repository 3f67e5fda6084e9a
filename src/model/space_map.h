#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/axis_view.h"
#include "checkpoint/json.h"
#include "math/linear_map.h"
#include "model/spaces.h"
#include "weft/checkpoint.h"

// Maps of spaces, applied to every tensor that touches the space, on the right side. Git Re-Basin permutes a space, AWQ and SmoothQuant scale one,
// QuaRot rotates one, weight selection selects in one, growth expands one. What comes out is a checkpoint again, computed as it is read.
namespace weft::model {

/// x becomes M x for every vector x of the space.
struct SpaceMap {
  enum class Kind : std::uint8_t {
    permute,  ///< new element i is old element order[i]
    scale,    ///< element i is multiplied by factors[i], which may be negative where signs are free
    matrix,   ///< M is given: a rotation, or any invertible matrix
    select,   ///< like permute, with some elements left out: what remains is another network
    expand,   ///< like permute, with every element at least once; what reads a copy is divided by the number of copies
  };
  /// "mlp.3", "residual". "kv.3 x value.3": a map of the last space for each element of those before it.
  std::string space;
  Kind kind = Kind::permute;
  std::vector<std::int64_t> order = {};  ///< permute, select, expand
  std::vector<double> factors = {};      ///< scale
  /// One for all, or one for each element of the spaces before the last. Orders and factors likewise: one list, or all one behind the other.
  std::vector<std::shared_ptr<const math::LinearMap>> matrices = {};
};
[[nodiscard]] SpaceMap permuted(std::string space, std::vector<std::int64_t> order);
/// For what AWQ and SmoothQuant do, with s by which inputs are divided: factors 1 / s on "attention_in.N" or "mlp_in.N" (the norm's gain, undone
/// where q, k, v or the feed-forward part read it, routers and all experts included), on "mlp.N" (up, undone in down; the gate stays), or on
/// "value.N" or "kv.N x value.N" (v, undone in o).
[[nodiscard]] SpaceMap scaled(std::string space, std::vector<double> factors);
[[nodiscard]] SpaceMap rotated(std::string space, std::shared_ptr<const math::LinearMap> map);

/// What has to be done to each tensor, by its name: a pure function of the spaces. Gains of norms are taken to be all equal where the space is mapped
/// by a matrix. Errors: invalid_argument for a space that is not there, a map of the wrong size, or one that the space's group does not allow.
[[nodiscard]] std::map<std::string, std::vector<AxisStep>, std::less<>> steps_of_map(const NetworkSpaces& spaces, const SpaceMap& map);

/// A network: a checkpoint and the config that says how it runs.
struct MappedModel {
  std::shared_ptr<const Checkpoint> checkpoint;
  Json config;
  std::vector<std::string> changed = {};  ///< names of the tensors that are computed, sorted
};

/// Applies the maps one after the other; config.json follows where sizes change. Views of one tensor are joined, so that its values are rounded once
/// however many maps there are. Reads the gains of norms where a rotation needs them to be equal. Memory: that of change_axes.
/// Errors: those of steps_of_map; unsupported for an architecture without spaces, a tensor that may read the space but is unknown, or sizes that the
/// config cannot say.
[[nodiscard]] MappedModel map_spaces(std::shared_ptr<const Checkpoint> checkpoint, const Json& config, std::span<const SpaceMap> maps);

/// Multiplies the gains of norms into the matrices that read them, so that each gain becomes 1; biases of norms move into the biases of the readers
/// where all have one, else they are divided by the gain. A tied head gets values of its own first, where the final norm's gain needs it. Gains that
/// no matrix alone reads (on q and k, between a block and its sum, on the sum) stay. Errors: unsupported when there is none that can be folded.
[[nodiscard]] MappedModel fold_norms(std::shared_ptr<const Checkpoint> checkpoint, const Json& config);

/// Takes the mean over the channels out of everything that writes the residual stream of a LayerNorm model, which subtracts it anyway. Errors:
/// unsupported for models whose norms do not.
[[nodiscard]] MappedModel centre_residual(std::shared_ptr<const Checkpoint> checkpoint, const Json& config);

/// Gives the model a head of its own, a copy of the embedding. Does nothing to one that has one.
[[nodiscard]] MappedModel untie_head(std::shared_ptr<const Checkpoint> checkpoint, const Json& config);

/// "permutations, signs, positive scales".
[[nodiscard]] std::string allowed_text(unsigned allows);

}  // namespace weft::model
