#include "model/gpt_split.h"

#include <array>
#include <utility>

#include "model/unicode_text.h"

namespace weft::model {
namespace {

constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::array<std::pair<std::string_view, GptSplit>, 5> kKnown = {{
    {kGpt2, GptSplit::gpt2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)", GptSplit::llama3},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)", GptSplit::qwen2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     GptSplit::llama3_marks},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     GptSplit::qwen2_marks},
}};

enum Class : unsigned char { kOther, kLetter, kNumber, kSpace, kMark };

struct AsciiClasses {
  std::array<Class, 128> of{};
  constexpr AsciiClasses() {
    for (std::size_t c = 0; c < 128; ++c) {
      if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) of[c] = kLetter;
      if (c >= '0' && c <= '9') of[c] = kNumber;
      if (c == ' ' || (c >= 9 && c <= 13)) of[c] = kSpace;
    }
  }
};
constexpr AsciiClasses kAscii;

Class class_of(char32_t c) noexcept {
  if (is_whitespace(c)) return kSpace;
  if (c >= 0x4E00 && c <= 0x9FFF) return kLetter;  // the commonest, without a look into the tables
  if (is_letter(c)) return kLetter;
  if (is_number(c)) return kNumber;
  return is_mark(c) ? kMark : kOther;
}

class Scanner {
 public:
  Scanner(std::string_view text, GptSplit split)
      : begin_(text.data()),
        end_(text.data() + text.size()),
        gpt2_(split == GptSplit::gpt2),
        marks_(split == GptSplit::llama3_marks || split == GptSplit::qwen2_marks),
        digits_(split == GptSplit::qwen2 || split == GptSplit::qwen2_marks ? 1 : 3) {}

  void run(std::vector<TextPattern::Part>& parts) const {
    for (const char* p = begin_; p != end_;) {
      const char* const stop = gpt2_ ? gpt2_end(p) : llama3_end(p);
      parts.push_back({static_cast<std::size_t>(p - begin_), static_cast<std::size_t>(stop - begin_), true});
      p = stop;
    }
  }

 private:
  struct Seen {
    char32_t code_point;
    std::uint32_t size;
    Class kind;
  };
  [[nodiscard]] Seen at(const char* p) const noexcept {
    const auto byte = static_cast<unsigned char>(*p);
    if (byte < 0x80) return {byte, 1, kAscii.of[byte]};
    const CodePoint c = decode_utf8(p);
    return {c.value, c.size_bytes, class_of(c.value)};
  }
  [[nodiscard]] bool is_letter_here(Class kind) const noexcept { return kind == kLetter || (marks_ && kind == kMark); }
  [[nodiscard]] bool is_other_here(Class kind) const noexcept { return kind == kOther || (!marks_ && kind == kMark); }

  [[nodiscard]] const char* letters_end(const char* p) const noexcept {
    while (p != end_) {
      const Seen c = at(p);
      if (!is_letter_here(c.kind)) break;
      p += c.size;
    }
    return p;
  }
  [[nodiscard]] const char* numbers_end(const char* p, int limit) const noexcept {
    for (int i = 0; p != end_ && (limit == 0 || i < limit); ++i) {
      const Seen c = at(p);
      if (c.kind != kNumber) break;
      p += c.size;
    }
    return p;
  }
  [[nodiscard]] const char* others_end(const char* p) const noexcept {
    while (p != end_) {
      const Seen c = at(p);
      if (!is_other_here(c.kind)) break;
      p += c.size;
    }
    return p;
  }

  /// Behind an apostrophe: s, t, m, d, re, ve, ll; null for none.
  [[nodiscard]] const char* contraction_end(const char* p, bool any_case) const noexcept {
    const char* q = p + 1;
    if (q == end_) return nullptr;
    if (any_case && end_ - q >= 2 && q[0] == '\xC5' && q[1] == '\xBF') return q + 2;  // the long s folds to s
    const auto fold = [any_case](char c) { return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
    const char first = fold(*q);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return q + 1;
    if (q + 1 == end_) return nullptr;
    const char second = fold(q[1]);
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l')) return q + 2;
    return nullptr;
  }

  /// \s+(?!\S)|\s+ : all but the last of a run that something follows, unless the run has only one.
  [[nodiscard]] const char* spaces_end(const char* p) const noexcept {
    const char* last = p;
    const char* q = p;
    while (q != end_) {
      const Seen c = at(q);
      if (c.kind != kSpace) break;
      last = q;
      q += c.size;
    }
    return q == end_ || last == p ? q : last;
  }

  [[nodiscard]] const char* gpt2_end(const char* p) const noexcept {
    if (*p == '\'') {
      if (const char* stop = contraction_end(p, false)) return stop;
    }
    const Seen first = at(p);
    const char* q = p + first.size;
    Class kind = first.kind;
    if (*p == ' ' && q != end_) {
      const Seen next = at(q);
      if (next.kind != kSpace) {
        kind = next.kind;
        q += next.size;
      }
    }
    if (kind == kLetter) return letters_end(q);
    if (kind == kNumber) return numbers_end(q, 0);
    if (kind == kSpace) return spaces_end(p);
    return others_end(q);
  }

  [[nodiscard]] const char* llama3_end(const char* p) const noexcept {
    if (*p == '\'') {
      if (const char* stop = contraction_end(p, true)) return stop;
    }
    const Seen first = at(p);
    const char* const behind = p + first.size;
    if (is_letter_here(first.kind)) return letters_end(behind);
    if (first.kind == kNumber) return numbers_end(p, digits_);
    Class next = kSpace;
    if (behind != end_) next = at(behind).kind;
    if (*p != '\r' && *p != '\n' && is_letter_here(next) && behind != end_) return letters_end(behind);
    const bool space = first.kind == kSpace;
    if (!space || (*p == ' ' && behind != end_ && is_other_here(next))) {
      const char* q = others_end(behind);
      while (q != end_ && (*q == '\r' || *q == '\n')) ++q;
      return q;
    }
    // \s*[\r\n]+ : to the last line end of the run of spaces.
    const char* line_end = nullptr;
    const char* q = p;
    while (q != end_) {
      const Seen c = at(q);
      if (c.kind != kSpace) break;
      q += c.size;
      if (c.code_point == '\r' || c.code_point == '\n') line_end = q;
    }
    return line_end != nullptr ? line_end : spaces_end(p);
  }

  const char* begin_;
  const char* end_;
  bool gpt2_;
  bool marks_;
  int digits_;
};

}  // namespace

std::optional<GptSplit> known_split(std::string_view regex) noexcept {
  for (const auto& [text, split] : kKnown)
    if (text == regex) return split;
  return std::nullopt;
}

std::string_view gpt2_regex() noexcept { return kGpt2; }

void cut_gpt(GptSplit split, std::string_view text, std::vector<TextPattern::Part>& parts) { Scanner(text, split).run(parts); }

}  // namespace weft::model
