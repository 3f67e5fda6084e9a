#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "checkpoint/staging.h"
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
  std::string index_name;            ///< "model.safetensors.index.json"; empty for a single file
  std::string index_json;
};

/// Lays tensors out as safetensors, byte for byte as the reference writer does. specs: in the order in which shards are filled (layer order); inside a
/// file they are sorted by dtype descending, then name. max_shard_bytes: 0 for one file; a larger tensor gets a file of its own.
/// metadata: header metadata ("format": "pt" is always there). stem: "model". index_metadata: extra string members of the index's metadata.
/// Errors: invalid_argument for duplicate names, names that are no UTF-8 or "__metadata__", sub-byte tensors that end inside a byte, a header over
/// 100,000,000 bytes.
[[nodiscard]] OutputLayout plan_safetensors(const std::vector<TensorSpec>& specs, std::uint64_t max_shard_bytes,
                                            const std::map<std::string, std::string>& metadata, std::string_view stem = "model",
                                            const std::map<std::string, std::string>& index_metadata = {});

/// Safetensors files being written out of sight, with room reserved for every tensor before the first is computed, and put in place by commit().
class Output {
 public:
  virtual ~Output();  ///< removes what was built, unless committed
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  /// Creates the data files at their full size (space checked and reserved), headers not yet written. Once. Errors: no_space, with both numbers.
  void create_files(OutputLayout layout);
  [[nodiscard]] const OutputLayout& layout() const noexcept { return layout_; }
  /// Writes part of tensor number `tensor` of the layout; every byte is to be written once. Thread-safe.
  void write_tensor(std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data);

  /// Reads back what was written there. Thread-safe.
  void read_tensor(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const;

  /// Headers, fsync, close, fsync of the folder, rename into place, fsync of the parent. Once. Errors: io, no_space; the destination is then as it was.
  void commit();
  /// What could not be tidied up after a commit; for the job's report.
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept { return staging_.warnings(); }
  [[nodiscard]] const std::filesystem::path& destination() const noexcept { return staging_.destination(); }
  /// Where the files are until commit: inside the hidden folder beside the destination.
  [[nodiscard]] const std::filesystem::path& working_folder() const noexcept { return staging_.content(); }

 protected:
  Output(std::filesystem::path destination, Staging::What what, Existing existing);
  Staging staging_;

 private:
  OutputLayout layout_;
  std::vector<File*> files_;                       ///< of layout_, owned by staging_
  std::atomic<std::uint64_t> written_bytes_ = 0;   ///< of tensors
};

/// A model folder. What was at the destination stays as it was until commit (see Staging for what counts as absent, links, parents, mount points).
/// Existing::write_into is not one step: files are put in place one by one, weights first, config.json last, and old weights that the new
/// index does not name are removed.
class OutputFolder : public Output {
 public:
  /// Takes the place. Errors: invalid_argument when something is in the way, io (another job writes there), no_space, unsupported.
  OutputFolder(std::filesystem::path destination, Existing existing);

  /// name: plain, or below the folder ("additional_chat_templates/rag.jinja"). A name can be given once.
  void write_text(std::string_view name, std::string_view content);
  /// Byte for byte.
  void copy_file(const std::filesystem::path& source, std::string_view name);
};

/// One .safetensors file; its layout has one file, whose name does not matter.
class OutputFile : public Output {
 public:
  OutputFile(std::filesystem::path destination, Existing existing);
};

}  // namespace weft
