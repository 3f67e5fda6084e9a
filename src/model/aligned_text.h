#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft::model {

/// Bytes [begin, end) of the text that the user gave.
struct SourceRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  bool operator==(const SourceRange&) const = default;
};

/// A part of a text that was split, with where each of its bytes comes from. Does not own.
struct TextPiece {
  std::string_view text;
  const SourceRange* source = nullptr;  ///< one for each byte; null when nobody asked for offsets
  std::uint32_t base = 0;               ///< where in the user's text the piece begins (0 when not tracked and unknown)
};

enum class Tracking { off, on };

/// A text that is rewritten step by step and remembers for each byte the bytes of the original that it came from, by the rules of the tokenizers
/// library: what is inserted shares the place of what stands before it, all bytes of a character have one place.
class AlignedText {
 public:
  /// The user's text from `base` on.
  AlignedText(std::string_view text, std::uint32_t base, Tracking tracking);
  /// A copy of a piece that can be rewritten.
  explicit AlignedText(const TextPiece& piece);

  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] bool tracked() const noexcept { return tracked_; }
  /// The whole, as a view.
  [[nodiscard]] TextPiece piece() const noexcept { return {text_, tracked_ ? source_.data() : nullptr, base_}; }

  /// A character of the new text: change 0 replaces a character of the old one, 1 is inserted, -n replaces one and drops the n behind it.
  struct Change {
    char32_t code_point = 0;
    std::int32_t change = 0;
  };
  /// Replaces the whole text. skipped: characters dropped at the start.
  void transform(std::span<const Change> changes, std::size_t skipped = 0);
  /// Keeps the characters for which keep(c) is true.
  template <typename Keep>
  void filter(Keep&& keep);
  /// Replaces each character by another.
  template <typename Map>
  void map(Map&& map);
  /// Builds another text from parts of this one; what is put says which bytes of this text it replaces.
  class Rewriting {
   public:
    explicit Rewriting(AlignedText& text) : text_(text) { out_.reserve(text.text_.size() + 8); }
    void put(std::string_view part, std::size_t begin, std::size_t end);
    [[nodiscard]] bool ends_with(std::string_view part) const noexcept { return out_.ends_with(part); }
    void drop(std::size_t size_bytes);
    void finish();

   private:
    AlignedText& text_;
    std::string out_;
    std::vector<SourceRange> source_;
  };
  /// In front of a text that is not empty.
  void prepend(std::string_view text);
  struct Match {
    std::size_t begin = 0;
    std::size_t end = 0;
  };
  /// Ascending, not overlapping.
  void replace(std::span<const Match> matches, std::string_view content);

 private:
  void append(char32_t c, SourceRange source, std::string& text, std::vector<SourceRange>& sources) const;
  std::string text_;
  std::vector<SourceRange> source_;
  std::uint32_t base_;
  bool tracked_;
};

/// Views of a piece.
[[nodiscard]] inline TextPiece sub_piece(const TextPiece& piece, std::size_t begin, std::size_t end) noexcept {
  const std::uint32_t base = piece.source != nullptr && begin < end ? piece.source[begin].begin : piece.base + (begin > 0 ? 1 : 0);
  return {piece.text.substr(begin, end - begin), piece.source == nullptr ? nullptr : piece.source + begin, base};
}

}  // namespace weft::model

#include "model/unicode_text.h"

namespace weft::model {

template <typename Keep>
void AlignedText::filter(Keep&& keep) {
  std::size_t out = 0;
  for (std::size_t at = 0; at < text_.size();) {
    const CodePoint c = decode_utf8(text_.data() + at);
    if (keep(c.value)) {
      for (std::size_t i = 0; i < c.size_bytes; ++i, ++out) {
        text_[out] = text_[at + i];
        if (tracked_) source_[out] = source_[at + i];
      }
    }
    at += c.size_bytes;
  }
  text_.resize(out);
  if (tracked_) source_.resize(out);
}

template <typename Map>
void AlignedText::map(Map&& map) {
  std::vector<Change> changes;
  changes.reserve(text_.size());
  for (std::size_t at = 0; at < text_.size();) {
    const CodePoint c = decode_utf8(text_.data() + at);
    changes.push_back({map(c.value), 0});
    at += c.size_bytes;
  }
  transform(changes);
}

}  // namespace weft::model
