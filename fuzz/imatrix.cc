// Whatever the bytes, an importance matrix of either form is refused with an Error, or every entry has a count for each matrix, sums for each column,
// and importances that are numbers of at least 0.
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "checkpoint/imatrix.h"
#include "weft/error.h"

namespace weft::fuzz {

/// A file of this process, written anew for each input: the reader takes paths.
inline const std::filesystem::path& imatrix_file() {
  static const std::filesystem::path kFile = std::filesystem::temp_directory_path() / ("weft-fuzz-imatrix-" + std::to_string(::getpid()));
  return kFile;
}

}  // namespace weft::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  const std::filesystem::path& path = fuzz::imatrix_file();
  std::filesystem::remove(path);
  File(path, FileMode::create_new).write(0, std::as_bytes(std::span(data, size)));
  try {
    const Imatrix imatrix = read_imatrix(path);
    std::uint64_t floats = 0;
    for (const auto& [name, entry] : imatrix.entries) {
      if (entry.counts.empty() || entry.sums.size() != entry.num_columns * entry.num_matrices()) std::abort();
      const std::vector<float> importance = entry.importance();
      if (importance.size() != entry.sums.size()) std::abort();
      for (const float value : importance)
        if (!(value >= 0)) std::abort();
      floats += entry.sums.size() + entry.counts.size();
    }
    if (floats * sizeof(float) > size) std::abort();
  } catch (const Error& error) {
    if (error.exit_status() != 2 || error.message().empty()) std::abort();
  }
  std::filesystem::remove(path);
  return 0;
}
