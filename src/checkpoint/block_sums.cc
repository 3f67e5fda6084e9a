#include "checkpoint/block_sums.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace weft {

Checksum whole_of_blocks(std::span<const Checksum> blocks) {
  if (blocks.size() == 1) return blocks.front();
  Hasher hasher;
  for (const Checksum& block : blocks) {
    std::array<std::byte, 16> bytes;
    for (std::size_t i = 0; i < 8; ++i) {
      bytes[i] = static_cast<std::byte>(block.high >> (56 - 8 * i) & 0xFF);
      bytes[8 + i] = static_cast<std::byte>(block.low >> (56 - 8 * i) & 0xFF);
    }
    hasher.add(bytes);
  }
  return hasher.checksum();
}

BlockSums::BlockSums(std::uint64_t size_bytes)
    : size_bytes_(size_bytes), blocks_(num_sum_blocks(size_bytes)), sums_(num_sum_blocks(size_bytes)), missing_(sums_.size()) {
  if (size_bytes != 0) return;
  sums_[0] = checksum_of(std::span<const std::byte>());
  missing_ = 0;
}

void BlockSums::add(std::uint64_t offset, std::span<const std::byte> data, const ReadBack& read_back) {
  WEFT_ASSERT(offset <= size_bytes_ && data.size() <= size_bytes_ - offset);
  while (!data.empty()) {
    const std::uint64_t number = offset / kSumBlockBytes;
    const std::uint64_t within = offset % kSumBlockBytes;
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(data.size(), kSumBlockBytes - within));
    add_to_block(number, within, data.first(size), read_back);
    offset += size;
    data = data.subspan(size);
  }
}

void BlockSums::add_to_block(std::uint64_t number, std::uint64_t offset, std::span<const std::byte> data, const ReadBack& read_back) {
  const std::uint64_t begin = number * kSumBlockBytes;
  const std::uint64_t block_bytes = std::min(kSumBlockBytes, size_bytes_ - begin);
  if (data.size() == block_bytes) {  // the whole of it at once
    sums_[number] = checksum_of(data);
    --missing_;
    return;
  }
  Block* block = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (blocks_[number] == nullptr) blocks_[number] = std::make_unique<Block>();
    block = blocks_[number].get();
  }
  {
    const std::lock_guard lock(block->mutex);
    WEFT_ASSERT(offset >= block->position);
    if (offset != block->position) {
      block->waiting.emplace(offset, data.size());
      return;
    }
    block->hasher.add(data);
    block->position += data.size();
    std::vector<std::byte> again;
    while (!block->waiting.empty() && block->waiting.begin()->first == block->position) {
      const std::uint64_t size = block->waiting.begin()->second;
      again.resize(static_cast<std::size_t>(size));
      read_back(begin + block->position, again);
      block->hasher.add(again);
      block->position += size;
      block->waiting.erase(block->waiting.begin());
    }
    if (block->position != block_bytes) return;
    sums_[number] = block->hasher.checksum();
  }
  // The last piece has come, so nobody else looks at this block any more.
  {
    const std::lock_guard lock(mutex_);
    blocks_[number] = nullptr;
  }
  --missing_;
}

}  // namespace weft
