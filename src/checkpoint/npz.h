#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/byte_source.h"
#include "checkpoint/row_view.h"
#include "weft/checkpoint.h"

// NumPy's .npz: a zip archive of .npy files, stored uncompressed (numpy.savez).
namespace weft {

/// Where one array's elements lie.
struct NpzArray {
  TensorInfo tensor;
  std::uint32_t crc32 = 0;         ///< of the whole entry, header included
  std::uint64_t entry_offset = 0;  ///< of the entry's content
  std::uint64_t entry_bytes = 0;
};

/// The arrays of an archive. Errors: corrupt, unsupported (compressed, Fortran order, the other byte order, types that tensors do not have).
/// Every array that is returned lies inside its entry.
[[nodiscard]] std::vector<NpzArray> read_npz_arrays(const ByteSource& source);

/// Whether a zip archive holds NumPy's arrays rather than a PyTorch checkpoint.
[[nodiscard]] bool is_npz(const ByteSource& source);

[[nodiscard]] std::shared_ptr<const Checkpoint> open_npz(const std::filesystem::path& file, const std::filesystem::path& named,
                                                         std::vector<std::string> warnings = {});

/// Writes tensors of types that NumPy knows, in bounded memory, in place only when complete; zip64, so that sizes have no limit. on_piece is told the
/// bytes of each piece, and may throw to stop. Errors: io, no_space, invalid_argument (something is there and replace is false).
void write_npz(const std::vector<TensorRef>& tensors, const std::filesystem::path& file, bool replace,
               const std::function<void(std::uint64_t)>& on_piece);

}  // namespace weft
