#pragma once
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/journal.h"
#include "engine/activations.h"
#include "engine/running_model.h"
#include "weft/calibrate.h"

namespace weft::engine {

struct CalibrationData {
  std::shared_ptr<const CalibrationTokens> tokens;
  std::vector<std::string> names;  ///< of the files, without folders
  std::string corpus_digest;       ///< of their bytes
};

/// Reads, encodes and cuts the texts. Errors: see weft/calibrate.h.
[[nodiscard]] CalibrationData read_calibration_text(RunningModel& model, const CalibrationText& text, std::uint64_t seed);

}  // namespace weft::engine
