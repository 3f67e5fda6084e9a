#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "checkpoint/gguf_header.h"
#include "weft/checkpoint.h"

namespace weft {

/// A GGUF file, or all parts of one that was split. Tensors have the names of the file; those in blocks have dtype F32 and `stored_as`.
class GgufCheckpoint final : public Checkpoint {
 public:
  /// file: any part; the others are found beside it by their names. named: what the user named.
  /// Errors: corrupt, unsupported, not_found (a part is missing), io.
  GgufCheckpoint(const std::filesystem::path& file, std::filesystem::path named, std::vector<std::string> warnings);

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override;
  void read_stored(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override;
  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override;
  void check_unchanged() const override;

  /// Of the first part, without what describes the splitting. Long lists are left in the file: see value().
  [[nodiscard]] const GgufMetadata& gguf_metadata() const noexcept { return metadata_values_; }
  /// The value with its list read; absent when there is no such key.
  [[nodiscard]] std::optional<GgufValue> value(std::string_view key) const;
  /// All of it, lists read.
  [[nodiscard]] GgufMetadata whole_metadata() const;
  [[nodiscard]] std::uint32_t version() const noexcept { return version_; }
  [[nodiscard]] bool big_endian() const noexcept { return parts_.front().big_endian; }

 private:
  struct Part {
    File file;
    FileIdentity identity;
    bool big_endian = false;
  };
  void add_part(const std::filesystem::path& path, File file, GgufHeader header);

  std::vector<Part> parts_;
  GgufMetadata metadata_values_;
  std::uint32_t version_ = 0;
};

/// The GGUF behind a checkpoint; null when it is something else.
[[nodiscard]] const GgufCheckpoint* as_gguf(const Checkpoint& checkpoint) noexcept;

/// "model-00002-of-00005.gguf": stem "model", part 2 of 5.
struct GgufPartName {
  std::string stem;
  std::uint32_t number = 0;  ///< from 1
  std::uint32_t count = 0;
};
[[nodiscard]] std::optional<GgufPartName> parse_gguf_part_name(std::string_view file_name);
[[nodiscard]] std::string gguf_part_name(std::string_view stem, std::uint32_t number, std::uint32_t count);

}  // namespace weft
