#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/byte_source.h"

// Zip archives whose entries are stored as they are (PyTorch's files, NumPy's .npz): where each entry's bytes lie.
namespace weft {

struct ZipEntry {
  std::string name;
  std::uint64_t size_bytes = 0;
  std::uint64_t offset_bytes = 0;  ///< of the first byte of its content
  std::uint32_t crc32 = 0;
  std::uint16_t method = 0;  ///< 0: stored. Entries of another method, and encrypted ones, are listed but cannot be read
  bool encrypted = false;
};

/// The central directory, checked against every local header: names and sizes agree, no name twice, no entry passes the directory or overlaps
/// another.
class ZipDirectory {
 public:
  /// Errors: corrupt, unsupported (several disks; over a million entries). Memory: the directory, never more than the file.
  explicit ZipDirectory(const ByteSource& source);

  [[nodiscard]] const std::vector<ZipEntry>& entries() const noexcept { return entries_; }
  [[nodiscard]] const ZipEntry* find(std::string_view name) const noexcept;
  /// Throws unsupported for a compressed or encrypted entry.
  void require_stored(const ZipEntry& entry) const;
  /// The content of a small entry, checked against its CRC. Errors: corrupt, unsupported (over the limit; not stored).
  [[nodiscard]] std::string read_small(const ByteSource& source, const ZipEntry& entry, std::uint64_t limit_bytes) const;

 private:
  std::filesystem::path path_;
  std::vector<ZipEntry> entries_;  ///< in order of their place in the file
  std::unordered_map<std::string_view, std::size_t> by_name_;
};

}  // namespace weft
