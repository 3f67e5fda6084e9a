#pragma once
#include <cstdint>
#include <filesystem>
#include <vector>

namespace weft::engine {

/// Bytes with a shape, as the files of MNIST hold them.
struct IdxData {
  std::vector<std::uint64_t> shape;
  std::vector<std::uint8_t> values;  ///< row-major
};
/// An idx file of unsigned bytes, gzipped or not. Errors: corrupt (no idx file, shorter or longer than it says), unsupported (other types), io.
[[nodiscard]] IdxData read_idx_file(const std::filesystem::path& path);

}  // namespace weft::engine
