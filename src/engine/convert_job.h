#pragma once
#include <filesystem>
#include <memory>
#include <string_view>

#include "engine/output_job.h"
#include "weft/inspect.h"

namespace weft::engine {

/// What writes a checkpoint out as it is, or in another type: its tensors, and into a folder also the small files beside its weights, config.json
/// following what the checkpoint changes. model: how messages call it. Errors: invalid_argument, unsupported (forms that are not written).
[[nodiscard]] OutputJob convert_job(const std::shared_ptr<const Checkpoint>& checkpoint, std::string_view model, const std::filesystem::path& output,
                                    const ConvertOptions& options);

}  // namespace weft::engine
