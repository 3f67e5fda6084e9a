#pragma once
#include <memory>
#include <string_view>

#include "model/network.h"
#include "weft/evaluate.h"

// What a quantizer of activations would cost, without one: linear layers read rounded rows, and attention gives rounded shares.
namespace weft::engine {

/// Null where nothing is to be rounded. For ranges the model is run over the text first. Errors: invalid_argument for options that contradict each
/// other; those of calibration.
[[nodiscard]] std::shared_ptr<const model::ActivationRounding> make_activation_rounding(std::string_view model, const ActivationOptions& how,
                                                                                        const RunOptions& options);

}  // namespace weft::engine
