#include "model/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/json_fields.h"
#include "model/text_pattern.h"
#include "model/unicode_table.h"
#include "model/unicode_text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

using Change = AlignedText::Change;
namespace fs = std::filesystem;

// ---- Unicode forms -------------------------------------------------------------------------------------------------------------------------

bool has_young_decomposition(char32_t c) noexcept {
  for (const CodePointRange& range : kNoDecomposition)
    if (c >= range.first && c <= range.last) return true;
  return false;
}

/// 0 when the two do not compose.
char32_t compose(char32_t a, char32_t b) noexcept {
  if (b < 0x300) return 0;  // what is appended in a composition is a mark or a jamo
  std::array<utf8proc_int32_t, 3> buffer = {static_cast<utf8proc_int32_t>(a), static_cast<utf8proc_int32_t>(b), 0};
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  return utf8proc_normalize_utf32(buffer.data(), 2, options) == 1 ? static_cast<char32_t>(buffer[0]) : 0;
}

void decompose(std::string_view text, bool compatible, std::vector<Change>& out) {
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
  std::size_t starter = 0;  // everything from here on may still be reordered
  bool ordered = true;
  const auto sort = [&] {
    if (!ordered)
      std::stable_sort(out.begin() + static_cast<std::ptrdiff_t>(starter), out.end(),
                       [](const Change& a, const Change& b) { return combining_class(a.code_point) < combining_class(b.code_point); });
    ordered = true;
  };
  int last_class = 0;
  const auto put = [&](char32_t c, std::int32_t change) {
    const int combining = combining_class(c);
    if (combining == 0) {
      sort();
      out.push_back({c, change});
      starter = out.size();
    } else {
      if (combining < last_class) ordered = false;
      out.push_back({c, change});
    }
    last_class = combining;
  };
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text.data() + at);
    at += c.size_bytes;
    if (c.value < 0xA0 || has_young_decomposition(c.value)) {
      put(c.value, 0);
      continue;
    }
    std::array<utf8proc_int32_t, 32> parts{};
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.value), parts.data(), parts.size(), options, &boundary);
    if (count <= 0 || count > static_cast<utf8proc_ssize_t>(parts.size())) {
      put(c.value, 0);
      continue;
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) put(static_cast<char32_t>(parts[i]), i > 0 ? 1 : 0);
  }
  sort();
}

void recompose(const std::vector<Change>& in, std::vector<Change>& out) {
  constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  std::size_t starter = kNone;  // in `out`
  int last_class = -1;          // of what stands between the starter and here; -1: nothing
  for (const Change& item : in) {
    const int combining = combining_class(item.code_point);
    if (starter != kNone && (last_class == -1 || last_class < combining)) {
      if (const char32_t both = compose(out[starter].code_point, item.code_point)) {
        out[starter].code_point = both;
        out[starter].change += item.change - 1;
        continue;
      }
    }
    if (combining == 0) {
      starter = out.size();
      last_class = -1;
    } else {
      last_class = combining;
    }
    out.push_back(item);
  }
}

/// Characters that no form changes and that nothing composes with or reorders across: most of what a text has beyond Latin-1.
bool is_inert(char32_t c, UnicodeForm form) noexcept {
  if (form == UnicodeForm::nfc && c < 0x300) return true;
  if (c < 0xA0) return true;
  if (form == UnicodeForm::nfc || form == UnicodeForm::nfd)
    return (c >= 0x2010 && c <= 0x2027) || (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x1F300 && c <= 0x1FAFF);
  return c >= 0x4E00 && c <= 0x9FFF;
}

class Unicode final : public Normalizer {
 public:
  explicit Unicode(UnicodeForm form) : form_(form) {}
  void apply(AlignedText& text) const override { normalize_unicode(form_, text); }

 private:
  UnicodeForm form_;
};

// ---- The others ----------------------------------------------------------------------------------------------------------------------------

class Sequence final : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  void apply(AlignedText& text) const override {
    for (const auto& part : parts_) part->apply(text);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

void lower(AlignedText& text) {
  const std::string& old = text.text();
  if (std::none_of(old.begin(), old.end(), [](char c) { return (c >= 'A' && c <= 'Z') || static_cast<unsigned char>(c) >= 0x80; })) return;
  std::vector<Change> changes;
  changes.reserve(old.size());
  for (std::size_t at = 0; at < old.size();) {
    const CodePoint c = decode_utf8(old.data() + at);
    const LowerCase small = lower_case(c.value);
    changes.push_back({small.first, 0});
    if (small.second != 0) changes.push_back({small.second, 1});
    at += c.size_bytes;
  }
  text.transform(changes);
}

class Lowercase final : public Normalizer {
 public:
  void apply(AlignedText& text) const override { lower(text); }
};

class StripAccents final : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    text.filter([](char32_t c) { return !is_accent(c); });
  }
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(AlignedText& text) const override {
    const std::string& old = text.text();
    std::size_t begin = 0;
    std::size_t end = old.size();
    while (left_ && begin < end) {
      const CodePoint c = decode_utf8(old.data() + begin);
      if (!is_whitespace(c.value)) break;
      begin += c.size_bytes;
    }
    while (right_ && end > begin) {
      const CodePoint c = decode_utf8_before(old.data() + end);
      if (!is_whitespace(c.value)) break;
      end -= c.size_bytes;
    }
    if (begin == 0 && end == old.size()) return;
    std::vector<AlignedText::Match> gone;
    if (begin > 0) gone.push_back({0, begin});
    if (end < old.size()) gone.push_back({end, old.size()});
    text.replace(gone, "");
  }

 private:
  bool left_;
  bool right_;
};

class Replace final : public Normalizer {
 public:
  Replace(TextPattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(AlignedText& text) const override {
    std::vector<AlignedText::Match> matches;
    pattern_.find(text.text(), matches);
    text.replace(matches, content_);
  }

 private:
  TextPattern pattern_;
  std::string content_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  void apply(AlignedText& text) const override { text.prepend(text_); }

 private:
  std::string text_;
};

/// SentencePiece's nmt rules without NFKC.
class Nmt final : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    text.filter([](char32_t c) { return !((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F); });
    text.map([](char32_t c) -> char32_t {
      const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 ||
                         c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
      return space ? U' ' : c;
    });
  }
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  void apply(AlignedText& text) const override {
    std::vector<Change> changes;
    const std::string& old = text.text();
    changes.reserve(old.size());
    for (std::size_t at = 0; at < old.size();) {
      const std::uint32_t size = decode_utf8(old.data() + at).size_bytes;
      for (std::uint32_t i = 0; i < size; ++i) changes.push_back({byte_character(static_cast<unsigned char>(old[at + i])), i > 0 ? 1 : 0});
      at += size;
    }
    text.transform(changes);
  }
};

class Bert final : public Normalizer {
 public:
  Bert(bool clean, bool cjk, bool accents, bool lowercase) : clean_(clean), cjk_(cjk), accents_(accents), lowercase_(lowercase) {}
  void apply(AlignedText& text) const override {
    if (clean_) {
      if (has(text, [](char32_t c) { return is_bert_control(c); })) text.filter([](char32_t c) { return !is_bert_control(c); });
      if (has(text, [](char32_t c) { return c != ' ' && is_whitespace(c); })) text.map([](char32_t c) { return is_whitespace(c) ? U' ' : c; });
    }
    if (cjk_ && has(text, [](char32_t c) { return is_cjk_ideograph(c); })) {
      std::vector<Change> changes;
      each(text, [&](char32_t c) {
        if (is_cjk_ideograph(c)) {
          changes.push_back({U' ', 0});
          changes.push_back({c, 1});
          changes.push_back({U' ', 1});
        } else {
          changes.push_back({c, 0});
        }
      });
      text.transform(changes);
    }
    if (accents_) {
      normalize_unicode(UnicodeForm::nfd, text);
      if (has(text, [](char32_t c) { return is_bert_accent(c); })) text.filter([](char32_t c) { return !is_bert_accent(c); });
    }
    if (lowercase_) lower(text);
  }

 private:
  template <typename Do>
  static void each(const AlignedText& text, Do&& work) {
    for (std::size_t at = 0; at < text.text().size();) {
      const CodePoint c = decode_utf8(text.text().data() + at);
      work(c.value);
      at += c.size_bytes;
    }
  }
  template <typename Test>
  static bool has(const AlignedText& text, Test&& test) {
    for (std::size_t at = 0; at < text.text().size();) {
      const CodePoint c = decode_utf8(text.text().data() + at);
      if (test(c.value)) return true;
      at += c.size_bytes;
    }
    return false;
  }
  bool clean_;
  bool cjk_;
  bool accents_;
  bool lowercase_;
};

/// SentencePiece's table applied cluster by cluster, which is not what SentencePiece does: see Charsmap::longest for that.
class Precompiled final : public Normalizer {
 public:
  explicit Precompiled(Charsmap map) : map_(std::move(map)) {}
  void apply(AlignedText& text) const override {
    const std::string& old = text.text();
    std::vector<Change> changes;
    changes.reserve(old.size());
    bool modified = false;
    const auto put = [&](std::string_view part) {
      const Charsmap::Hit hit = map_.shortest(part);
      if (hit.size_bytes == 0) return false;
      modified = true;
      const auto before = static_cast<std::int32_t>(count_code_points(part));
      std::int32_t after = 0;
      for (std::size_t at = 0; at < hit.replacement.size(); ++after) {
        const CodePoint c = decode_utf8(hit.replacement.data() + at);
        changes.push_back({c.value, 0});
        at += c.size_bytes;
      }
      const std::int32_t more = after - before;
      for (std::int32_t i = 0; i < more; ++i) changes[changes.size() - 1 - static_cast<std::size_t>(i)].change = 1;
      if (more < 0 && !changes.empty()) changes.back().change += more;
      return true;
    };
    for (std::size_t at = 0; at < old.size();) {
      // One extended grapheme cluster.
      std::size_t end = at;
      CodePoint c = decode_utf8(old.data() + end);
      end += c.size_bytes;
      utf8proc_int32_t state = 0;
      while (end < old.size()) {
        const CodePoint next = decode_utf8(old.data() + end);
        if (c.value < 0x80 && next.value < 0x80 && c.value != '\r') break;
        if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(c.value), static_cast<utf8proc_int32_t>(next.value), &state)) break;
        end += next.size_bytes;
        c = next;
      }
      const std::string_view cluster(old.data() + at, end - at);
      if (cluster.size() >= 6 || !put(cluster)) {
        for (std::size_t i = at; i < end;) {
          const CodePoint one = decode_utf8(old.data() + i);
          if (!put(std::string_view(old.data() + i, one.size_bytes))) changes.push_back({one.value, 0});
          i += one.size_bytes;
        }
      }
      at = end;
    }
    if (modified) text.transform(changes);
  }

 private:
  Charsmap map_;
};

std::string base64_decode(std::string_view text, const fs::path& file, const std::string& key) {
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  std::uint32_t bits = 0;
  int count = 0;
  std::size_t padding = 0;
  for (const char c : text) {
    int value = -1;
    if (c >= 'A' && c <= 'Z') value = c - 'A';
    if (c >= 'a' && c <= 'z') value = c - 'a' + 26;
    if (c >= '0' && c <= '9') value = c - '0' + 52;
    if (c == '+') value = 62;
    if (c == '/') value = 63;
    if (c == '=') {
      ++padding;
      continue;
    }
    if (value < 0 || padding > 0)
      throw Error(ErrorCode::corrupt, "the compiled table of replacements is no base64", {.file = file.string(), .key = key});
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<char>(bits >> count & 0xFF));
    }
  }
  if (text.size() % 4 != 0 || padding > 2)
    throw Error(ErrorCode::corrupt, "the compiled table of replacements has " + std::to_string(text.size()) + " characters of base64",
                {.file = file.string(), .key = key});
  return bytes;
}

}  // namespace

void normalize_unicode(UnicodeForm form, AlignedText& text) {
  const std::string& old = text.text();
  bool inert = true;
  for (std::size_t at = 0; at < old.size() && inert;) {
    if (static_cast<unsigned char>(old[at]) < 0x80) {
      ++at;
      continue;
    }
    const CodePoint c = decode_utf8(old.data() + at);
    inert = is_inert(c.value, form);
    at += c.size_bytes;
  }
  if (inert) return;
  const bool compatible = form == UnicodeForm::nfkc || form == UnicodeForm::nfkd;
  std::vector<Change> changes;
  changes.reserve(old.size());
  decompose(old, compatible, changes);
  if (form == UnicodeForm::nfc || form == UnicodeForm::nfkc) {
    std::vector<Change> composed;
    composed.reserve(changes.size());
    recompose(changes, composed);
    changes = std::move(composed);
  }
  text.transform(changes);
}

Charsmap::Charsmap(std::string_view blob, const std::filesystem::path& file, const std::string& key) {
  if (blob.empty()) return;
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorCode::corrupt, "the compiled table of replacements " + what, {.file = file.string(), .key = key}, "fetch the tokenizer again");
  };
  const auto u32 = [&](std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) value |= static_cast<std::uint32_t>(static_cast<unsigned char>(blob[at + i])) << (8 * i);
    return value;
  };
  if (blob.size() < 4) refuse("has only " + std::to_string(blob.size()) + " bytes");
  const std::uint32_t trie_bytes = u32(0);
  if (trie_bytes > blob.size() - 4 || trie_bytes % 4 != 0)
    refuse("has " + std::to_string(blob.size()) + " bytes, but its trie is said to have " + std::to_string(trie_bytes));
  units_.resize(trie_bytes / 4);
  for (std::size_t i = 0; i < units_.size(); ++i) units_[i] = u32(4 + 4 * i);
  texts_ = blob.substr(4 + trie_bytes);
  if (!is_valid_utf8(texts_)) refuse("holds a text that is not UTF-8");
}

std::string_view Charsmap::replacement(std::uint32_t offset) const noexcept {
  if (offset >= texts_.size()) return {};
  // An offset into the middle of a character would give ill-formed text.
  if ((static_cast<unsigned char>(texts_[offset]) & 0xC0) == 0x80) return {};
  const std::size_t end = std::min(texts_.find('\0', offset), texts_.size());
  return std::string_view(texts_).substr(offset, end - offset);
}

template <typename Found>
void Charsmap::walk(std::string_view text, Found&& found) const noexcept {
  // darts-clone's units: bits 0-7 and 31 the label (31: a value), bit 8 has a leaf, bits 10-30 the offset, shifted by 8 more when bit 9 is set.
  if (units_.empty()) return;
  const auto offset = [](std::uint32_t unit) { return (unit >> 10) << ((unit & (1U << 9)) >> 6); };
  std::uint32_t at = offset(units_[0]);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<std::uint32_t>(static_cast<unsigned char>(text[i]));
    if (byte == 0) return;
    at ^= byte;
    if (at >= units_.size()) return;
    const std::uint32_t unit = units_[at];
    if ((unit & ((1U << 31) | 0xFF)) != byte) return;
    at ^= offset(unit);
    if ((unit >> 8 & 1) == 1) {
      if (at >= units_.size()) return;
      if (!found(static_cast<std::uint32_t>(i + 1), units_[at] & ((1U << 31) - 1))) return;
    }
  }
}

Charsmap::Hit Charsmap::shortest(std::string_view text) const noexcept {
  Hit hit;
  walk(text, [&](std::uint32_t size, std::uint32_t value) {
    hit = {size, replacement(value)};
    return false;
  });
  return hit;
}

Charsmap::Hit Charsmap::longest(std::string_view text) const noexcept {
  Hit hit;
  walk(text, [&](std::uint32_t size, std::uint32_t value) {
    hit = {size, replacement(value)};
    return true;
  });
  return hit;
}

std::unique_ptr<Normalizer> make_normalizer(const Json& json, const std::filesystem::path& file, const std::string& key) {
  if (json.is_null()) return nullptr;
  const JsonFields fields(json, file, key);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> parts;
    for (const Json& item : fields.list("normalizers"))
      if (auto part = make_normalizer(item, file, fields.inside("normalizers"))) parts.push_back(std::move(part));
    return std::make_unique<Sequence>(std::move(parts));
  }
  if (type == "NFC") return std::make_unique<Unicode>(UnicodeForm::nfc);
  if (type == "NFD") return std::make_unique<Unicode>(UnicodeForm::nfd);
  if (type == "NFKC") return std::make_unique<Unicode>(UnicodeForm::nfkc);
  if (type == "NFKD") return std::make_unique<Unicode>(UnicodeForm::nfkd);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "Strip") return std::make_unique<Strip>(fields.flag("strip_left", true), fields.flag("strip_right", true));
  if (type == "StripAccents") return std::make_unique<StripAccents>();
  if (type == "Nmt") return std::make_unique<Nmt>();
  if (type == "ByteLevel") return std::make_unique<ByteLevelNormalizer>();
  if (type == "Prepend") return std::make_unique<Prepend>(fields.text("prepend"));
  if (type == "Replace") return std::make_unique<Replace>(fields.pattern("pattern"), fields.text("content"));
  if (type == "Precompiled")
    return std::make_unique<Precompiled>(
        Charsmap(base64_decode(fields.text("precompiled_charsmap"), file, fields.inside("precompiled_charsmap")), file, key));
  if (type == "BertNormalizer") {
    const bool lowercase = fields.flag("lowercase", true);
    return std::make_unique<Bert>(fields.flag("clean_text", true), fields.flag("handle_chinese_chars", true), fields.flag("strip_accents", lowercase),
                                  lowercase);
  }
  fields.refuse_type(type, "normalizer");
}

}  // namespace weft::model
