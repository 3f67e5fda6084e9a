#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/checksum.h"

namespace weft {

/// Tensors are checked in blocks of so many bytes, counted from the tensor's first; the last may be shorter. An empty tensor is one empty block.
inline constexpr std::uint64_t kSumBlockBytes = std::uint64_t{4} << 20;

[[nodiscard]] constexpr std::uint64_t num_sum_blocks(std::uint64_t size_bytes) noexcept {
  return size_bytes == 0 ? 1 : (size_bytes - 1) / kSumBlockBytes + 1;
}

/// The checksum of a tensor: that of its only block, or of its blocks' checksums written one after another (16 bytes each, high half first, big
/// endian). So it needs no order among the blocks' making.
[[nodiscard]] Checksum whole_of_blocks(std::span<const Checksum> blocks);

/// The checksums of a tensor's blocks from pieces that come in any order, each byte once. Thread-safe.
/// A piece that continues its block is hashed while it is at hand; one that comes too early is read back when its turn has come.
class BlockSums {
 public:
  explicit BlockSums(std::uint64_t size_bytes);

  using ReadBack = std::function<void(std::uint64_t offset, std::span<std::byte> out)>;
  void add(std::uint64_t offset, std::span<const std::byte> data, const ReadBack& read_back);

  /// Every byte has been added.
  [[nodiscard]] bool is_complete() const noexcept { return missing_ == 0; }
  /// [num_sum_blocks]; only when complete.
  [[nodiscard]] std::vector<Checksum> take() { return std::move(sums_); }

 private:
  struct Block {
    std::mutex mutex;
    Hasher hasher;
    std::uint64_t position = 0;                      ///< hashed so far
    std::map<std::uint64_t, std::uint64_t> waiting;  ///< pieces that came early: offset in the block to size
  };
  void add_to_block(std::uint64_t number, std::uint64_t offset, std::span<const std::byte> data, const ReadBack& read_back);

  std::uint64_t size_bytes_;
  std::mutex mutex_;                            ///< of the list
  std::vector<std::unique_ptr<Block>> blocks_;  ///< null before its first piece and after its last
  std::vector<Checksum> sums_;
  std::atomic<std::uint64_t> missing_;  ///< blocks
};

}  // namespace weft
