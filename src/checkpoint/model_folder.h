#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

/// What a MODEL argument resolves to on this machine.
struct ModelPath {
  std::filesystem::path path;   ///< a folder or a file that exists
  std::string written;          ///< as the user wrote it
  bool from_hub_cache = false;
};

/// An existing path always wins; else `org/name[@revision]` in the local Hugging Face cache (HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub, or
/// `cache` when given). Errors: not_found, saying how to download it; invalid_argument for a malformed id.
[[nodiscard]] ModelPath resolve_model(std::string_view model, const std::optional<std::filesystem::path>& cache = std::nullopt);

/// Files of a model folder that are not weights and travel with it: config.json, generation_config.json, tokenizer files, templates, licence.
/// Names relative to the folder, sorted; only regular files (or links that stay inside the folder or the hub cache's blobs).
[[nodiscard]] std::vector<std::string> companion_files(const std::filesystem::path& folder);

}  // namespace weft
