#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/checksum.h"
#include "base/file.h"
#include "checkpoint/block_sums.h"

namespace weft {

/// The checksums of one file of a model.
struct FileSums {
  struct Tensor {
    std::string name;
    std::uint64_t offset_bytes = 0;  ///< in the file
    std::uint64_t size_bytes = 0;
    std::vector<Checksum> blocks;  ///< one for each kSumBlockBytes
  };
  std::string name;  ///< below the sidecar's folder
  std::uint64_t size_bytes = 0;
  Checksum rest;                ///< of the bytes that belong to no tensor (headers, padding), in their order; of all bytes where there are no tensors
  std::vector<Tensor> tensors;  ///< by offset, not overlapping
};

// The sidecar: lines of text, which no reader of models takes for anything of its own. (weft.checksums in a folder, NAME.checksums beside a file.)
//   weft-checksums 1
//   file SIZE REST "NAME"
//   tensor OFFSET SIZE CHECKSUM "NAME"
//   block CHECKSUM                        each block of a tensor that has several
//   end CHECKSUM                          of all lines before
// Checksums are XXH3-128 in hexadecimal, as xxh128sum prints them; that of a tensor of several blocks is of its blocks' (see block_sums.h).

[[nodiscard]] std::string write_checksums(std::span<const FileSums> files);
/// Errors: corrupt; unsupported for a later version of the format.
[[nodiscard]] std::vector<FileSums> parse_checksums(std::string_view text, const std::filesystem::path& path);
[[nodiscard]] std::vector<FileSums> read_checksums(const std::filesystem::path& path);

/// Where the checksums of a model are or would be: a folder, or a file.
[[nodiscard]] std::filesystem::path checksums_path(const std::filesystem::path& model, bool is_folder);

/// The checksum of the bytes of a file that belong to no tensor. Errors: those of reading.
[[nodiscard]] Checksum checksum_of_rest(const File& file, std::uint64_t size_bytes, std::span<const FileSums::Tensor> tensors);

}  // namespace weft
