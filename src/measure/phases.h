#pragma once
#include <string>

#include "weft/measure.h"

// Phases of the loss landscape, of models that were measured together.
namespace weft::measure {

/// Where a model stands: its loss, how well a straight line of low loss connects it with another (below zero: a barrier), and how alike the two are
/// (CKA of the last hidden states). Connectivity is what interpolating the losses of both ends gives less the loss where the two differ most: for
/// ends of one loss the usual measure, and none of the fall of the loss along a training run.
struct Standing {
  double loss = 0, connectivity = 0, similarity = 0;
};
/// Below this many nats a line of higher loss is none.
inline constexpr double kConnected = 0.01;
/// "I": large loss, a barrier; "II": large loss, no barrier; "III": small loss, a barrier; "IV-A", "IV-B": small loss, no barrier, unlike or alike.
[[nodiscard]] const char* phase_of(const Standing& standing, double loss_bar, double similarity_bar) noexcept;

/// The group `phases`: a label for each comparison of a pair or along a path that knows barrier and CKA, against the medians of all.
void find_phases(MeasureReport& report);

}  // namespace weft::measure
