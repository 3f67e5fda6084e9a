#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "checkpoint/json.h"

// What inspect and verify ask of a model's folder.
namespace weft {

/// The folder whose config describes the checkpoint at path: itself, or that of a model.safetensors, shard or index. Nothing for any other file: a
/// config beside it may be another model's.
[[nodiscard]] std::optional<std::filesystem::path> folder_of_model(const std::filesystem::path& path);
/// config.json; nothing when there is none. Errors: corrupt (also when it is no object), io.
[[nodiscard]] std::optional<Json> read_model_config(const std::filesystem::path& folder);
/// The first of `architectures`; empty when there is none.
[[nodiscard]] std::string architecture_class(const Json& config);
/// "gptq 4-bit", from quantization_config; empty for none.
[[nodiscard]] std::string describe_quantization(const Json& config);

}  // namespace weft
