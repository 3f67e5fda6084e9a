#pragma once
#include <cstddef>
#include <cstdint>

#include "engine/lazy_model.h"

// Changes to a whole model that leave what it computes alone and come before its layers are quantized one by one.
namespace weft::engine {

/// QuaRot's turns that need nothing while the model runs: gains of norms are multiplied into what reads them, the residual stream is turned by a
/// Hadamard matrix with random signs, and the values of each layer's attention by one of their own. A tied head gets values of its own. Where the
/// residual stream cannot be turned only values are, with a warning. Same seed, same model. Errors: unsupported where nothing can be turned;
/// invalid_argument for weights that are quantized already unless that is allowed.
void rotate_model(LazyModel& model, std::uint64_t seed, bool allow_requantize = false);

/// Biases of zeros for the linear layers that the architecture can have biases of, and its config's switches for them turned on; a warning where
/// only some of those that read a norm can have any. Returns how many it added. Errors: unsupported where none of them has or can have one.
std::size_t give_biases(LazyModel& model);

}  // namespace weft::engine
