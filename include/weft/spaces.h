#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "weft/export.h"

namespace weft {

/// A space that axes of a network's tensors are made of: a map that it allows, applied to every tensor that touches it, leaves the network's function
/// alone. `edit_model` applies them: {"rotate", "value.*"}, {"scale", "mlp.3=factors.npy"}.
struct SpaceInfo {
  std::string name;  ///< "residual", "mlp.3", "kv.3"
  std::int64_t size = 0;
  /// Of "permute", "sign", "scale", "rotate", "rotate_mean" (orthogonal matrices that leave the vector of ones alone), "general" (invertible ones),
  /// "resize" (select, and expand).
  std::vector<std::string> allows;
  std::vector<std::string> allows_folded;  ///< the same once {"fold-norms", ""} is done
  std::string reason;                      ///< why not more; may be empty
  std::uint64_t num_tensors = 0;           ///< that touch it
};

/// Reads headers and config.json. Errors: unsupported for an architecture whose spaces are not known, not_found without config.json, and those of
/// opening a model.
[[nodiscard]] WEFT_API std::vector<SpaceInfo> list_spaces(std::string_view model);

}  // namespace weft
