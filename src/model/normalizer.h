#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/aligned_text.h"

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

/// Rewrites a text before it is split. Thread-safe.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(AlignedText& text) const = 0;
};

/// The "normalizer" of a tokenizer.json; null for null.
[[nodiscard]] std::unique_ptr<Normalizer> make_normalizer(const Json& json, const std::filesystem::path& file, const std::string& key);

enum class UnicodeForm { nfc, nfd, nfkc, nfkd };
void normalize_unicode(UnicodeForm form, AlignedText& text);

/// SentencePiece's compiled table of replacements: a u32 little-endian size, a double-array trie of that many bytes, NUL-terminated texts.
/// Every look-up is bounds-checked, since the units come from a file.
class Charsmap {
 public:
  Charsmap() = default;
  /// Errors: corrupt when the sizes contradict each other.
  Charsmap(std::string_view blob, const std::filesystem::path& file, const std::string& key);
  [[nodiscard]] bool empty() const noexcept { return units_.empty(); }

  struct Hit {
    std::uint32_t size_bytes = 0;  ///< how much of the text it replaces; 0: nothing was found
    std::string_view replacement;
  };
  [[nodiscard]] Hit shortest(std::string_view text) const noexcept;
  [[nodiscard]] Hit longest(std::string_view text) const noexcept;

 private:
  template <typename Found>
  void walk(std::string_view text, Found&& found) const noexcept;
  [[nodiscard]] std::string_view replacement(std::uint32_t offset) const noexcept;
  std::vector<std::uint32_t> units_;
  std::string texts_;
};

}  // namespace weft::model
