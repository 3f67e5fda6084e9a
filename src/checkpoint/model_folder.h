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

/// The weights of a model folder.
struct FolderWeights {
  std::filesystem::path file;          ///< a safetensors or PyTorch file, or a shard index
  bool is_index = false;
  std::vector<std::string> warnings;   ///< such as a stale index beside it
};
/// model.safetensors, else its index, else the only other one of its kind; without any of these pytorch_model.bin, its index, or the only PyTorch file.
/// Errors: unsupported (an adapter, weights of another format), invalid_argument
/// (several, and none is named model), not_found (none), each with what to do.
[[nodiscard]] FolderWeights find_weights(const std::filesystem::path& folder);

/// Whether a name out of a file may be used as that of a file beside it: no path, no drive, no hidden file, nothing that a terminal would act on.
[[nodiscard]] bool is_plain_file_name(std::string_view name) noexcept;
/// Whether path, links followed, is in folder; the blobs of a hub cache count as in its snapshots. False when it does not exist.
[[nodiscard]] bool stays_inside(const std::filesystem::path& folder, const std::filesystem::path& path);

/// Files of a model folder that are not weights and travel with it: config.json, generation_config.json, tokenizer files, templates, licence.
/// Names relative to the folder, sorted; only regular files (or links that stay inside the folder or the hub cache's blobs).
[[nodiscard]] std::vector<std::string> companion_files(const std::filesystem::path& folder);

}  // namespace weft
