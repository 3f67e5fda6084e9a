#pragma once
#include <string>
#include <vector>

#include "weft/methods.h"

namespace weft::testing {

/// A plain use of a merge method as a mergekit config.
struct MethodConfig {
  std::string text;
  std::size_t num_inputs = 0;  ///< of `models`, from the front, that it reads
};

/// models: at least four, all different; the first is the base of methods that need one. Methods that take any number get three, base included. Parameters without a default get a usual value; densities are 0.5, so that
/// sparse methods do their work.
MethodConfig plain_config(const MethodDescription& method, const std::vector<std::string>& models);

}  // namespace weft::testing
