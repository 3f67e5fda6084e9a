#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/aligned_text.h"

namespace weft::model {

/// Where a tokenizer's pattern matches: a literal, or a regular expression in the dialect of the tokenizers library (Oniguruma with Ruby's syntax,
/// Unicode 16), run on PCRE2 with limits. The splits of well-known models are recognised and run by hand-written scanners.
class TextPattern {
 public:
  [[nodiscard]] static TextPattern literal(std::string text);
  /// Errors: unsupported for what PCRE2 cannot express or compile; file and key are for the message.
  [[nodiscard]] static TextPattern regex(const std::string& pattern, const std::filesystem::path& file, const std::string& key);

  struct Part {
    std::size_t begin = 0;
    std::size_t end = 0;
    bool match = false;
  };
  /// Cuts a text into matches and what lies between them; an empty text has one part that is no match. Parts are appended.
  /// Errors: unsupported when the expression needs too many steps on this text.
  void cut(std::string_view text, std::vector<Part>& parts) const;
  /// Only the matches, for replacing; empty ones left out when they are literals.
  void find(std::string_view text, std::vector<AlignedText::Match>& matches) const;
  /// Whether the parts are always all matches (the splits of GPT-2, Llama-3, Qwen2 cover every text).
  [[nodiscard]] bool covers() const noexcept;

 private:
  struct Regex;
  std::string literal_;
  std::shared_ptr<const Regex> regex_;
};

/// The expression in PCRE2's syntax.
[[nodiscard]] std::string pcre2_pattern(std::string_view oniguruma, const std::filesystem::path& file, const std::string& key);

}  // namespace weft::model
