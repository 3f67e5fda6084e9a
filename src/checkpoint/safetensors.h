#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "weft/checkpoint.h"

namespace weft {

/// What the reference reader and writer hold themselves to.
inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
/// Our own caps, far above any real model.
inline constexpr std::uint64_t kMaxTensors = 1'000'000;
inline constexpr std::uint64_t kMaxRank = 64;
inline constexpr std::uint64_t kMaxShards = 10'000;

/// The header of one file, checked: every tensor lies inside the file and has the size of its shape, none overlap, no byte is left over.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  ///< in order of offset; file_index is 0
  std::map<std::string, std::string> metadata;
  std::uint64_t data_offset_bytes = 0;  ///< of the first tensor's bytes
};

/// Errors: corrupt and unsupported, with file, tensor and byte; the names that the reference gives them are in the message.
/// Memory: the result and 64 KiB, whatever the header claims.
[[nodiscard]] SafetensorsHeader read_safetensors_header(const File& file);
/// The same from memory: the beginning of a file of file_size_bytes; must reach to the end of the header unless the length itself is wrong.
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::string_view beginning, std::uint64_t file_size_bytes,
                                                         const std::filesystem::path& file);

/// model.safetensors.index.json: which tensor is in which shard.
struct ShardIndex {
  struct Entry {
    std::string tensor;
    std::uint32_t shard = 0;  ///< into shards
  };
  std::vector<std::string> shards;  ///< plain file names, sorted
  std::vector<Entry> entries;       ///< in file order
  std::string total_size;           ///< as written; empty when absent. Often wrong: never allocate from it
};
/// Errors: corrupt (no index, a name that is no plain file name, a tensor listed twice), unsupported (over the caps).
[[nodiscard]] ShardIndex parse_shard_index(std::string_view text, const std::filesystem::path& file);
[[nodiscard]] ShardIndex read_shard_index(const std::filesystem::path& path);
/// Where a shard is. Errors: corrupt when it is missing, or is a link that leaves the folder (the blobs of a hub snapshot are inside).
[[nodiscard]] std::filesystem::path shard_path(const std::filesystem::path& index, const std::string& shard);

/// Opens a weights file of any form that weft reads, or a shard index; the content decides, and what is none is named in the error.
[[nodiscard]] std::shared_ptr<const Checkpoint> open_weights_file(const std::filesystem::path& file, const std::filesystem::path& named,
                                                                  std::vector<std::string> warnings = {}, const OpenOptions& options = {});
/// open_checkpoint() without adapters: a folder, a file, or a model of the hub's cache.
[[nodiscard]] std::shared_ptr<const Checkpoint> open_stored_model(std::string_view model, const OpenOptions& options = {});
/// named: what the user named, for path().
[[nodiscard]] std::shared_ptr<const Checkpoint> open_safetensors_file(const std::filesystem::path& file, const std::filesystem::path& named,
                                                                      std::vector<std::string> warnings = {});
[[nodiscard]] std::shared_ptr<const Checkpoint> open_safetensors_shards(const std::filesystem::path& index_path, const ShardIndex& index,
                                                                        const std::filesystem::path& named, std::vector<std::string> warnings = {});

}  // namespace weft
