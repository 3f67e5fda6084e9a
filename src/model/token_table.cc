#include "model/token_table.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>

namespace weft::model {

std::uint64_t TokenTable::hash(std::string_view text) noexcept { return XXH3_64bits(text.data(), text.size()); }

void TokenTable::reserve(std::size_t expected) {
  const std::size_t slots = std::bit_ceil(std::max<std::size_t>(16, expected * 2));
  if (slots > slots_.size()) grow(slots);
}

std::size_t TokenTable::slot_of(std::string_view text, std::uint64_t hash) const noexcept {
  const std::size_t mask = slots_.size() - 1;
  const auto tag = static_cast<std::uint32_t>(hash >> 32) | 1U;
  for (std::size_t at = hash & mask;; at = (at + 1) & mask) {
    const Slot& slot = slots_[at];
    if (slot.tag == 0) return at;
    if (slot.tag == tag && slot.size == text.size() && std::string_view(bytes_).substr(slot.offset, slot.size) == text) return at;
  }
}

void TokenTable::grow(std::size_t slots) {
  std::vector<Slot> old(slots);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.tag == 0) continue;
    const std::string_view text = std::string_view(bytes_).substr(slot.offset, slot.size);
    slots_[slot_of(text, hash(text))] = slot;
  }
}

void TokenTable::insert(std::string_view text, std::uint32_t id) {
  if (slots_.empty() || (count_ + 1) * 2 > slots_.size()) grow(std::max<std::size_t>(16, slots_.size() * 2));
  const std::uint64_t h = hash(text);
  Slot& slot = slots_[slot_of(text, h)];
  if (slot.tag == 0) {
    slot.tag = static_cast<std::uint32_t>(h >> 32) | 1U;
    slot.offset = bytes_.size();
    slot.size = static_cast<std::uint32_t>(text.size());
    bytes_.append(text);
    ++count_;
    max_bytes_ = std::max(max_bytes_, text.size());
  }
  slot.id = id;
}

std::optional<std::uint32_t> TokenTable::find(std::string_view text) const noexcept {
  if (count_ == 0 || text.size() > max_bytes_) return std::nullopt;
  const Slot& slot = slots_[slot_of(text, hash(text))];
  return slot.tag == 0 ? std::nullopt : std::optional(slot.id);
}

}  // namespace weft::model
