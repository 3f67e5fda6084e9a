#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "merge/method.h"

namespace weft::testing {

struct DriverOptions {
  int num_tallies = 1;              ///< as if so many workers shared each pass
  bool reverse_tiles = false;       ///< visit tiles last to first (order must not matter)
  bool use_cache = false;           ///< let the method keep what it offers to (the result must not change)
};

/// Runs the phases of a method on one tensor in memory, as the engine does. inputs: in the order of context.inputs, each [num_elements].
/// Honours copied_input().
std::vector<float> run_phases(const merge::Method& method, const merge::TensorContext& context, const std::vector<std::vector<float>>& inputs,
                              const DriverOptions& options = {});

/// A context for `num_models` non-base inputs named "m0".., with the base (when with_base) first; global and per-model defaults of the method set.
merge::TensorContext make_context(const merge::Method& method, Shape shape, int num_models, bool with_base, std::string name = "w");

}  // namespace weft::testing
