#pragma once
#include <functional>
#include <span>
#include <vector>

#include "engine/linear_step.h"
#include "quantize/scale_fold.h"

// Scales of channels, folded into the norm or the matrix that writes them.
namespace weft::engine {

/// Scales of the channels that matrices read; empty where none are better than none.
using ChooseScales =
    std::function<std::vector<float>(std::span<const quantize::Reader> readers, const InputStatistics& read, const LinearTarget& target)>;

/// At each place of the block where a norm or a matrix alone writes channels, chooses scales and folds them. needs_gram: whether choosing looks at
/// the second moments of what is read. Errors: unsupported where the block then gives something else.
void fold_scales(LinearPlan& plan, Block& block, const ChooseScales& choose_scales, bool needs_gram);

}  // namespace weft::engine
