#pragma once
#include <filesystem>
#include <string_view>

#include "weft/merge.h"

// Merges that run the models: RegMean and RegMean++.
namespace weft::engine {

/// Whether the config asks for one. Anything that cannot be read is none: its errors come from where configs are usually read.
[[nodiscard]] bool is_merge_by_data(std::string_view config_text);
/// Errors: as of merge_models, and those of calibration texts.
[[nodiscard]] JobReport merge_by_data(std::string_view config_text, const std::filesystem::path& config_name, const std::filesystem::path& output,
                                      const MergeOptions& options);

}  // namespace weft::engine
