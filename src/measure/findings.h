#pragma once
#include <span>
#include <vector>

#include "weft/measure.h"

// What the numbers say in words: rules with thresholds, where they come from, and how often they fire on random matrices.
namespace weft::measure {

struct FindingRule {
  const char* name;
  const char* severity;  ///< "note", "warning", "problem"
  double threshold;
  const char* unit;    ///< what the threshold is of
  const char* source;  ///< where it comes from
  double null_rate;    ///< share of random Gaussian matrices on which it fires, at most; tested
};
[[nodiscard]] std::span<const FindingRule> finding_rules();

/// Applies every rule; one finding for each rule and model, the gravest first.
[[nodiscard]] std::vector<MeasureFinding> find_findings(const MeasureReport& report);

}  // namespace weft::measure
