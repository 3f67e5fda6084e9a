#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "weft/dtype.h"
#include "weft/export.h"

namespace weft {

using Shape = std::vector<std::int64_t>;

/// One named tensor of a checkpoint: what its header says, and where its bytes lie.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;                      ///< rank 0 is one element
  std::uint64_t num_elements = 0;
  std::uint64_t size_bytes = 0;
  std::uint32_t file_index = 0;     ///< into Checkpoint::files()
  std::uint64_t offset_bytes = 0;   ///< of the first byte, from the start of that file
  std::string stored_as = {};       ///< "Q4_K": the file holds blocks that reading decodes to dtype; empty: the file holds dtype
  std::uint64_t stored_bytes = 0;   ///< in the file, where stored_as is given
};

/// What a tensor takes in its file.
[[nodiscard]] inline std::uint64_t bytes_in_file(const TensorInfo& tensor) noexcept {
  return tensor.stored_as.empty() ? tensor.size_bytes : tensor.stored_bytes;
}

/// One file that a checkpoint reads from.
struct CheckpointFile {
  std::filesystem::path path;
  std::uint64_t size_bytes = 0;
  std::uint64_t inode = 0;          ///< when it was opened, like all of this
  std::int64_t modified_ns = 0;     ///< since 1970
};

/// A lazy map from names to tensors. Opening one reads headers only; payloads are read in pieces, by position.
/// Whatever yields tensors is one: files, and views on other checkpoints. Thread-safe after construction.
class WEFT_API Checkpoint {
 public:
  virtual ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  /// In order of file, then offset.
  [[nodiscard]] std::span<const TensorInfo> tensors() const noexcept { return tensors_; }
  [[nodiscard]] const TensorInfo* find_tensor(std::string_view name) const noexcept;
  /// Throws not_found, naming the nearest name that exists.
  [[nodiscard]] const TensorInfo& tensor(std::string_view name) const;

  /// "safetensors", "view", ...
  [[nodiscard]] const std::string& container() const noexcept { return container_; }
  /// What the user named: a folder or a file.
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] std::span<const CheckpointFile> files() const noexcept { return files_; }
  /// The header's string metadata, of all files (first one wins).
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  /// What was odd but acceptable on opening.
  [[nodiscard]] std::span<const std::string> warnings() const noexcept { return warnings_; }
  /// What a PyTorch file holds beside the tensors that can be read: key and kind.
  [[nodiscard]] std::span<const std::pair<std::string, std::string>> skipped() const noexcept { return skipped_; }

  /// Reads bytes [offset, offset + out.size()) of the tensor as elements of its dtype: what the file holds, decoded where it holds blocks.
  /// Errors: io, corrupt (the file is shorter than when it was opened).
  virtual void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const = 0;
  /// Reads bytes [offset, offset + out.size()) of the blocks of a tensor with `stored_as`; the same as read_bytes for any other.
  virtual void read_stored(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const;
  /// Tells the system that these bytes will be read soon. Never fails, may do nothing.
  virtual void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept;
  /// Throws if a file is no longer what it was when it was opened.
  virtual void check_unchanged() const;
  /// Reads what the container has checksums for and throws corrupt where one does not fit. Most containers have none.
  virtual void verify_checksums() const;

 protected:
  Checkpoint() = default;
  /// Fills the name table; to be called once tensors_ is complete. Throws corrupt on a duplicate name.
  void index_tensors();

  std::string container_;
  std::filesystem::path path_;
  std::vector<TensorInfo> tensors_;
  std::vector<CheckpointFile> files_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::string> warnings_;
  std::vector<std::pair<std::string, std::string>> skipped_;

 private:
  std::unordered_map<std::string_view, std::size_t> by_name_;
};

/// How a file is looked at whose form leaves a choice (PyTorch's).
struct OpenOptions {
  std::string root = {};     ///< "KEY.KEY" of the dictionary that is the model; empty: found by the usual names
  bool keep_prefix = false;  ///< keep a "module." or "_orig_mod." that all names begin with
};

/// Opens what a MODEL argument names: a Hugging Face folder, a .safetensors file, a PyTorch file (.bin, .pt, .pth, .ckpt), a shard index, or `org/name[@revision]` in the local
/// Hugging Face cache; each with adapters behind it ("MODEL+ADAPTER"), which are folded as it is read. An existing path always wins. The content decides, not the name: a GGUF or a pickle named .safetensors is said so.
/// Errors: not_found, corrupt, unsupported, io.
[[nodiscard]] WEFT_API std::shared_ptr<const Checkpoint> open_checkpoint(std::string_view model, const OpenOptions& options = {});

/// "[4096, 11008]"
[[nodiscard]] WEFT_API std::string to_string(const Shape& shape);

}  // namespace weft
