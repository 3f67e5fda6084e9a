#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// UTF-8 and the properties of characters as the tokenizers of published models know them: Unicode 16 unless said otherwise.
namespace weft::model {

struct CodePoint {
  char32_t value = 0;
  std::uint32_t size_bytes = 1;
};

/// The code point that begins at p; the text is valid UTF-8.
[[nodiscard]] inline CodePoint decode_utf8(const char* p) noexcept {
  const auto byte = [p](int i) { return static_cast<char32_t>(static_cast<unsigned char>(p[i])); };
  if (byte(0) < 0x80) return {byte(0), 1};
  if (byte(0) < 0xE0) return {(byte(0) & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (byte(0) < 0xF0) return {(byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}
/// The code point that ends before p.
[[nodiscard]] inline CodePoint decode_utf8_before(const char* p) noexcept {
  do --p;
  while ((static_cast<unsigned char>(*p) & 0xC0) == 0x80);
  return decode_utf8(p);
}
void append_utf8(std::string& text, char32_t code_point);
[[nodiscard]] std::string utf8(char32_t code_point);
[[nodiscard]] std::uint32_t utf8_size(char32_t code_point) noexcept;
[[nodiscard]] std::size_t count_code_points(std::string_view text) noexcept;

/// Every maximal ill-formed part becomes one U+FFFD, as Python's decode with errors="replace" does it.
[[nodiscard]] std::string with_replacement_characters(std::string_view bytes);

/// General category (a utf8proc_category_t).
[[nodiscard]] int category(char32_t c) noexcept;
[[nodiscard]] bool is_letter(char32_t c) noexcept;      ///< L*
[[nodiscard]] bool is_number(char32_t c) noexcept;      ///< N*
[[nodiscard]] bool is_mark(char32_t c) noexcept;        ///< M*
[[nodiscard]] bool is_whitespace(char32_t c) noexcept;  ///< White_Space
/// \w of Rust's regular expressions: alphabetic, marks, decimal digits, connectors, the two joiners.
[[nodiscard]] bool is_word(char32_t c) noexcept;
/// Punctuation for BERT's and the Punctuation pre-tokenizer: ASCII's, and P* of Unicode 8.
[[nodiscard]] bool is_bert_punctuation(char32_t c) noexcept;
/// What BERT's normalizer drops: Cc, Cf, Co of Unicode 8, NUL, U+FFFD; not tab and line ends.
[[nodiscard]] bool is_bert_control(char32_t c) noexcept;
[[nodiscard]] bool is_accent(char32_t c) noexcept;       ///< what StripAccents drops
[[nodiscard]] bool is_bert_accent(char32_t c) noexcept;  ///< what BertNormalizer drops
/// Canonical combining class, of Unicode 9 as in the normal forms of the tokenizers library: 0 for younger marks.
[[nodiscard]] int combining_class(char32_t c) noexcept;
[[nodiscard]] bool is_cjk_ideograph(char32_t c) noexcept;

/// Full lower-case mapping without context; two code points for U+0130, else one.
struct LowerCase {
  char32_t first;
  char32_t second;  ///< 0 for none
};
[[nodiscard]] LowerCase lower_case(char32_t c) noexcept;

/// Byte-level alphabet: byte b <-> character. The inverse is -1 for what is no such character.
[[nodiscard]] char32_t byte_character(unsigned char b) noexcept;
[[nodiscard]] int byte_of_character(char32_t c) noexcept;
/// The bytes that a text of byte characters stands for; false (and nothing changed) when some character is none.
[[nodiscard]] bool append_bytes_of_characters(std::string_view text, std::string& bytes);
/// <0xHH> -> HH, upper-case hex only unless any_case; -1 otherwise.
[[nodiscard]] int byte_of_token(std::string_view token, bool any_case) noexcept;

}  // namespace weft::model
