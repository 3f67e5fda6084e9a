#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "model/token_model.h"
#include "model/token_table.h"

namespace weft::model {

/// What words became, for words that come again: most of a text. Direct-mapped, so that it never grows. Holds short words whose tokens lie one behind
/// the other from the word's first byte on and stand for entries of the vocabulary.
class WordCache {
 public:
  struct Slot;

  /// Where the word is, or would be; null for one that is too long to be kept.
  [[nodiscard]] Slot* slot(std::string_view word) noexcept {
    if (word.empty() || word.size() > kMaxBytes) return nullptr;
    hash_ = TokenTable::hash(word);
    return &slots_[hash_ % kSlots];
  }
  /// Appends the tokens of the word if they are there. offset: of the word in what the tokens count from. slot: that of this word.
  [[nodiscard]] bool find(const Slot& slot, std::string_view word, std::uint32_t offset, std::vector<PieceToken>& tokens) const {
    if (slot.hash != hash_ || slot.size_bytes != word.size() || std::memcmp(slot.text.data(), word.data(), word.size()) != 0) return false;
    std::uint32_t begin = offset;
    for (std::size_t i = 0; i < slot.num_tokens; ++i) {
      const std::uint32_t end = offset + slot.ends[i];
      tokens.push_back({slot.ids[i], begin, end, false});
      begin = end;
    }
    return true;
  }
  /// Keeps tokens[first ...] of a word for which find() just failed, if they are of the sort that can be kept.
  void keep(Slot& slot, std::string_view word, std::uint32_t offset, const std::vector<PieceToken>& tokens, std::size_t first) {
    if (tokens.size() - first > kMaxTokens) return;
    std::uint32_t end = offset;
    for (std::size_t i = first; i < tokens.size(); ++i) {
      if (tokens[i].own_text || tokens[i].begin != end || tokens[i].end < end || tokens[i].end - offset > 255) return;
      end = tokens[i].end;
    }
    slot.hash = hash_;
    slot.size_bytes = static_cast<std::uint8_t>(word.size());
    slot.num_tokens = static_cast<std::uint8_t>(tokens.size() - first);
    std::memcpy(slot.text.data(), word.data(), word.size());
    for (std::size_t i = 0; i < slot.num_tokens; ++i) {
      slot.ids[i] = tokens[first + i].id;
      slot.ends[i] = static_cast<std::uint8_t>(tokens[first + i].end - offset);
    }
  }

 private:
  static constexpr std::size_t kSlots = 8192;
  static constexpr std::size_t kMaxBytes = 22;
  static constexpr std::size_t kMaxTokens = 8;

 public:
  struct Slot {
    std::uint64_t hash = 0;
    std::uint8_t size_bytes = 0;  ///< 0: free
    std::uint8_t num_tokens = 0;
    std::array<char, kMaxBytes> text{};
    std::array<std::uint8_t, kMaxTokens> ends{};
    std::array<std::uint32_t, kMaxTokens> ids{};
  };

 private:
  std::uint64_t hash_ = 0;  ///< of the word that slot() was last asked about
  std::vector<Slot> slots_ = std::vector<Slot>(kSlots);
};

}  // namespace weft::model
