#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/byte_source.h"
#include "weft/checkpoint.h"

// PyTorch's own files: zip archives since 1.6, five pickles in a row before. Read without executing anything; never written.
namespace weft {

/// Bytes of one storage in a file.
struct TorchStorage {
  std::string key;
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
  std::uint32_t crc32 = 0;
  bool has_crc = false;
};

/// One tensor: a view of a storage. Offset and strides count elements.
struct TorchTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::uint64_t> strides;
  std::uint64_t offset = 0;
  std::uint32_t storage = 0;  ///< into TorchContents::storages
  std::uint64_t num_elements = 0;
  bool contiguous = true;
};

struct TorchContents {
  std::vector<TorchStorage> storages;
  std::vector<TorchTensor> tensors;                          ///< in the order of the dictionary
  std::vector<std::pair<std::string, std::string>> skipped;  ///< what is no tensor, or none that can be read: key and kind
  std::vector<std::string> warnings;
  bool big_endian = false;
};

/// Errors: corrupt, unsupported (TorchScript, tar, compressed entries, no tensors at all), not_found (options.root), with file, tensor and byte.
/// Every tensor that is returned lies inside its storage, and every storage inside the file.
[[nodiscard]] TorchContents read_torch_contents(const ByteSource& source, const OpenOptions& options);

/// files: in the order of file_index. index: the shard index that named them, or null.
struct ShardIndex;
[[nodiscard]] std::shared_ptr<const Checkpoint> open_torch_files(const std::vector<std::filesystem::path>& files, const std::filesystem::path& named,
                                                                 std::vector<std::string> warnings, const OpenOptions& options,
                                                                 const ShardIndex* index = nullptr, const std::filesystem::path& index_path = {});

}  // namespace weft
