#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "weft/checkpoint.h"

namespace weft {

/// A tensor that will be written.
struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

/// Where each tensor goes: files with their headers, known before anything runs.
struct OutputLayout {
  struct Tensor {
    std::string name;
    std::uint32_t file_index = 0;
    std::uint64_t offset_bytes = 0;  ///< from the start of the file
    std::uint64_t size_bytes = 0;
  };
  struct FilePlan {
    std::string name;                ///< "model-00001-of-00003.safetensors"
    std::string header;              ///< the first bytes: length, JSON, padding
    std::uint64_t size_bytes = 0;    ///< whole file
  };
  std::vector<FilePlan> files;
  std::vector<Tensor> tensors;       ///< in the order of `specs`
  std::uint64_t tensor_bytes = 0;    ///< total_size of the index
  std::string index_json;            ///< model.safetensors.index.json; empty for a single file
};

/// Lays tensors out as safetensors, byte for byte as the reference writer does. specs: in the order in which shards are filled (layer order); inside a
/// file they are sorted by dtype descending, then name. max_shard_bytes: 0 for one file; a larger tensor gets a file of its own.
/// metadata: header metadata ("format": "pt" is always there). stem: "model". index_metadata: extra string members of the index's metadata.
/// Errors: invalid_argument for duplicate names, a header over 100,000,000 bytes.
[[nodiscard]] OutputLayout plan_safetensors(const std::vector<TensorSpec>& specs, std::uint64_t max_shard_bytes,
                                            const std::map<std::string, std::string>& metadata, std::string_view stem = "model",
                                            const std::map<std::string, std::string>& index_metadata = {});

enum class Existing { refuse, replace, write_into };

/// A folder being built beside its final place and put there by one rename. What was at the destination stays as it was until then.
class OutputFolder {
 public:
  /// Creates the sibling folder. Errors: invalid_argument when the destination exists (and Existing::refuse; an empty folder counts as absent), io, no_space.
  OutputFolder(std::filesystem::path destination, Existing existing);
  /// Removes what was built, unless committed.
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  /// Creates the data files at their full size (space checked and reserved), headers not yet written.
  void create_files(OutputLayout layout);
  [[nodiscard]] const OutputLayout& layout() const noexcept { return layout_; }
  /// Writes part of tensor number `tensor` of the layout. Thread-safe.
  void write_tensor(std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data);
  void write_text(std::string_view name, std::string_view content);
  /// Byte for byte.
  void copy_file(const std::filesystem::path& source, std::string_view name);

  /// Headers, fsync, close, fsync of the folder, rename into place, fsync of the parent.
  void commit();
  [[nodiscard]] const std::filesystem::path& destination() const noexcept { return destination_; }
  [[nodiscard]] const std::filesystem::path& working_folder() const noexcept { return working_; }

 private:
  std::filesystem::path destination_;
  std::filesystem::path working_;
  Existing existing_;
  OutputLayout layout_;
  std::vector<File> files_;
  std::vector<std::string> other_files_;
  bool committed_ = false;
};

}  // namespace weft
