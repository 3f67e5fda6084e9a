#pragma once
#include <cstdint>
#include <span>

#include "engine/measure_layers.h"

// What the loss does around a model: its curvature by differences of gradients, and its values along lines and over a square.
namespace weft::engine {

/// The groups `hessian` and `landscape`. ids: of the first text.
void measure_gradients(RunningModel& running, const measure::Selection& selection, const MeasureOptions& options, std::span<const std::uint32_t> ids,
                       std::size_t window, MeasuredModel& out);

}  // namespace weft::engine
