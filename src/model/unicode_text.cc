#include "model/unicode_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <span>

#include "model/unicode_table.h"

namespace weft::model {
namespace {

bool in_ranges(char32_t c, std::span<const CodePointRange> ranges) noexcept {
  const auto at = std::upper_bound(ranges.begin(), ranges.end(), c, [](char32_t value, const CodePointRange& range) { return value < range.first; });
  return at != ranges.begin() && c <= std::prev(at)->last;
}

bool is_mark_category(int c) noexcept { return c >= kMn && c <= kMe; }

/// Byte -> character, and back for characters below 0x144.
struct ByteAlphabet {
  std::array<char32_t, 256> character{};
  std::array<std::int16_t, 0x144> byte{};
  constexpr ByteAlphabet() {
    for (auto& b : byte) b = -1;
    char32_t next = 0x100;
    for (std::size_t b = 0; b < 256; ++b) {
      const bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      character[b] = itself ? static_cast<char32_t>(b) : next++;
      byte[character[b]] = static_cast<std::int16_t>(b);
    }
  }
};
constexpr ByteAlphabet kByteAlphabet;

int hex_digit(char c, bool any_case) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (any_case && c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

void append_utf8(std::string& text, char32_t c) {
  if (c < 0x80) {
    text.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    text.push_back(static_cast<char>(0xC0 | c >> 6));
    text.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    text.push_back(static_cast<char>(0xE0 | c >> 12));
    text.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    text.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    text.push_back(static_cast<char>(0xF0 | c >> 18));
    text.push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    text.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    text.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

std::string utf8(char32_t c) {
  std::string text;
  append_utf8(text, c);
  return text;
}

std::uint32_t utf8_size(char32_t c) noexcept { return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4; }

std::size_t count_code_points(std::string_view text) noexcept {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string with_replacement_characters(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  for (std::size_t i = 0; i < bytes.size();) {
    const unsigned char first = byte(i);
    // The table of well-formed sequences: how many bytes follow, and what the second may be.
    std::size_t more = 0;
    unsigned char low = 0x80;
    unsigned char high = 0xBF;
    if (first < 0x80) {
      more = 0;
    } else if (first >= 0xC2 && first <= 0xDF) {
      more = 1;
    } else if (first >= 0xE0 && first <= 0xEF) {
      more = 2;
      if (first == 0xE0) low = 0xA0;
      if (first == 0xED) high = 0x9F;
    } else if (first >= 0xF0 && first <= 0xF4) {
      more = 3;
      if (first == 0xF0) low = 0x90;
      if (first == 0xF4) high = 0x8F;
    } else {
      append_utf8(text, 0xFFFD);
      ++i;
      continue;
    }
    std::size_t size = 1;
    while (size <= more && i + size < bytes.size() && byte(i + size) >= low && byte(i + size) <= high) {
      ++size;
      low = 0x80;
      high = 0xBF;
    }
    if (size == more + 1)
      text.append(bytes, i, size);
    else
      append_utf8(text, 0xFFFD);
    i += size;
  }
  return text;
}

int category(char32_t c) noexcept {
  const int known = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  if (known != kCn && c != 0x1171E) return known;
  const auto at = std::upper_bound(std::begin(kCategoriesSince14), std::end(kCategoriesSince14), c,
                                   [](char32_t value, const CategoryRange& range) { return value < range.first; });
  return at != std::begin(kCategoriesSince14) && c <= std::prev(at)->last ? std::prev(at)->category : known;
}

bool is_letter(char32_t c) noexcept {
  if (c < 0x80) return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
  const int kind = category(c);
  return kind >= kLu && kind <= kLo;
}

bool is_number(char32_t c) noexcept {
  if (c < 0x80) return c >= '0' && c <= '9';
  const int kind = category(c);
  return kind >= kNd && kind <= kNo;
}

bool is_mark(char32_t c) noexcept { return c >= 0x300 && is_mark_category(category(c)); }

bool is_whitespace(char32_t c) noexcept {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word(char32_t c) noexcept {
  if (c < 0x80) return is_letter(c) || is_number(c) || c == '_';
  const int kind = category(c);
  if ((kind >= kLu && kind <= kNl) || kind == kPc || c == 0x200C || c == 0x200D) return true;
  // Alphabetic symbols: circled and squared letters.
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

bool is_bert_punctuation(char32_t c) noexcept {
  if (c < 0x80) return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
  if (c == 0x166D || c == 0x111C9) return true;
  const int kind = category(c);
  return kind >= kPc && kind <= kPo && !in_ranges(c, kNoBertPunctuation);
}

bool is_bert_control(char32_t c) noexcept {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  if (c == 0xFFFD) return true;
  if (c == 0x890 || c == 0x891 || c == 0x8E2 || c == 0x110CD || (c >= 0x13430 && c <= 0x1343F)) return false;  // younger than Unicode 8
  const int kind = category(c);
  return kind == kCc || kind == kCf || kind == kCo;
}

bool is_accent(char32_t c) noexcept { return c == 0x1CF2 || c == 0x1CF3 || (is_mark(c) && !in_ranges(c, kNoAccents)); }

bool is_bert_accent(char32_t c) noexcept {
  if (c < 0x300) return false;
  return c == 0x1734 || c == 0x1171E || (category(c) == kMn && !in_ranges(c, kNoBertAccents));
}

int combining_class(char32_t c) noexcept {
  if (c < 0x300) return 0;
  const int known = utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
  return known == 0 || in_ranges(c, kNoAccents) ? 0 : known;
}

bool is_cjk_ideograph(char32_t c) noexcept {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||  // so in the reference: 2B820 to 2B91F are left out
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

LowerCase lower_case(char32_t c) noexcept {
  if (c < 0x80) return {c >= 'A' && c <= 'Z' ? c + 32 : c, 0};
  if (c == 0x130) return {'i', 0x307};
  // Pairs since Unicode 16.
  if (c == 0x1C89 || c == 0xA7CC || c == 0xA7DA) return {c + 1, 0};
  if (c == 0xA7CB) return {0x264, 0};
  if (c == 0xA7DC) return {0x19B, 0};
  if (c >= 0x10D50 && c <= 0x10D65) return {c + 0x20, 0};
  return {static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), 0};
}

char32_t byte_character(unsigned char b) noexcept { return kByteAlphabet.character[b]; }

int byte_of_character(char32_t c) noexcept { return c < kByteAlphabet.byte.size() ? kByteAlphabet.byte[c] : -1; }

bool append_bytes_of_characters(std::string_view text, std::string& bytes) {
  const std::size_t before = bytes.size();
  for (const char* p = text.data(); p != text.data() + text.size();) {
    const CodePoint c = decode_utf8(p);
    const int byte = byte_of_character(c.value);
    if (byte < 0) {
      bytes.resize(before);
      return false;
    }
    bytes.push_back(static_cast<char>(byte));
    p += c.size_bytes;
  }
  return true;
}

int byte_of_token(std::string_view token, bool any_case) noexcept {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = hex_digit(token[3], any_case);
  const int low = hex_digit(token[4], any_case);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace weft::model
