#include "model/pre_tokenizer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "checkpoint/json.h"
#include "model/gpt_split.h"
#include "model/json_fields.h"
#include "model/unicode_script.h"
#include "model/unicode_text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

using Part = TextPattern::Part;
namespace fs = std::filesystem;

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior behavior_of(const JsonFields& fields, std::string_view missing) {
  const std::string name = fields.text("behavior", missing);
  constexpr std::array<std::pair<std::string_view, Behavior>, 5> kNames = {{{"Removed", Behavior::removed},
                                                                            {"Isolated", Behavior::isolated},
                                                                            {"MergedWithPrevious", Behavior::merged_with_previous},
                                                                            {"MergedWithNext", Behavior::merged_with_next},
                                                                            {"Contiguous", Behavior::contiguous}}};
  for (const auto& [text, behavior] : kNames)
    if (name == text) return behavior;
  fields.refuse_type(name, "behavior");
}

/// What the parts of a text become; `match` says afterwards that a part is dropped.
void arrange(std::vector<Part>& parts, Behavior behavior) {
  std::vector<Part> out;
  bool previous = false;
  switch (behavior) {
    case Behavior::removed:
      return;
    case Behavior::isolated:
      for (Part& part : parts) part.match = false;
      return;
    case Behavior::contiguous:
      for (const Part& part : parts) {
        if (part.match == previous && !out.empty())
          out.back().end = part.end;
        else
          out.push_back({part.begin, part.end, false});
        previous = part.match;
      }
      break;
    case Behavior::merged_with_previous:
      for (const Part& part : parts) {
        if (part.match && !previous && !out.empty())
          out.back().end = part.end;
        else
          out.push_back({part.begin, part.end, false});
        previous = part.match;
      }
      break;
    case Behavior::merged_with_next:
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
        if (part->match && !previous && !out.empty())
          out.back().begin = part->begin;
        else
          out.push_back({part->begin, part->end, false});
        previous = part->match;
      }
      std::reverse(out.begin(), out.end());
      break;
  }
  parts = std::move(out);
}

/// Cuts every piece with `cut(text, parts)`.
template <typename Cut>
void split_pieces(TextPieces& text, Behavior behavior, bool invert, Cut&& cut) {
  std::vector<TextPiece> out;
  out.reserve(text.pieces.size());
  for (const TextPiece& piece : text.pieces) {
    text.parts.clear();
    cut(piece.text, text.parts);
    if (invert)
      for (Part& part : text.parts) part.match = !part.match;
    arrange(text.parts, behavior);
    for (const Part& part : text.parts)
      if (!part.match && part.begin < part.end) out.push_back(sub_piece(piece, part.begin, part.end));
  }
  text.pieces = std::move(out);
}

/// Every character for which test(c) holds is a match of its own.
template <typename Test>
auto by_character(Test test) {
  return [test](std::string_view text, std::vector<Part>& parts) {
    std::size_t last = 0;
    for (std::size_t at = 0; at < text.size();) {
      const CodePoint c = decode_utf8(text.data() + at);
      if (test(c.value)) {
        if (last < at) parts.push_back({last, at, false});
        parts.push_back({at, at + c.size_bytes, true});
        last = at + c.size_bytes;
      }
      at += c.size_bytes;
    }
    if (last < text.size()) parts.push_back({last, text.size(), false});
  };
}

class Sequence final : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> stages) : stages_(std::move(stages)) {}
  void apply(TextPieces& text) const override {
    for (const auto& stage : stages_) stage->apply(text);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> stages_;
};

class Split final : public PreTokenizer {
 public:
  Split(TextPattern pattern, Behavior behavior, bool invert) : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void apply(TextPieces& text) const override {
    split_pieces(text, behavior_, invert_, [&](std::string_view piece, std::vector<Part>& parts) { pattern_.cut(piece, parts); });
  }

 private:
  TextPattern pattern_;
  Behavior behavior_;
  bool invert_;
};

class ByteLevel final : public PreTokenizer {
 public:
  ByteLevel(bool prefix_space, bool split, bool map) : prefix_space_(prefix_space), split_(split), map_(map) {}
  void apply(TextPieces& text) const override {
    if (prefix_space_) {
      for (TextPiece& piece : text.pieces) {
        if (piece.text.starts_with(' ') || piece.text.empty()) continue;
        AlignedText& rewritten = text.storage.emplace_back(piece);
        rewritten.prepend(" ");
        piece = rewritten.piece();
      }
    }
    if (split_)
      split_pieces(text, Behavior::isolated, false, [](std::string_view piece, std::vector<Part>& parts) { cut_gpt(GptSplit::gpt2, piece, parts); });
    if (!map_) return;
    for (TextPiece& piece : text.pieces) {
      AlignedText& rewritten = text.storage.emplace_back(piece);
      std::vector<AlignedText::Change> changes;
      changes.reserve(piece.text.size());
      for (std::size_t at = 0; at < piece.text.size();) {
        const std::uint32_t size = decode_utf8(piece.text.data() + at).size_bytes;
        for (std::uint32_t i = 0; i < size; ++i) changes.push_back({byte_character(static_cast<unsigned char>(piece.text[at + i])), i > 0 ? 1 : 0});
        at += size;
      }
      rewritten.transform(changes);
      piece = rewritten.piece();
    }
  }

 private:
  bool prefix_space_;
  bool split_;
  bool map_;
};

enum class PrependScheme { always, first, never };

class Metaspace final : public PreTokenizer {
 public:
  Metaspace(std::string replacement, PrependScheme scheme, bool split) : replacement_(std::move(replacement)), scheme_(scheme), split_(split) {}
  void apply(TextPieces& text) const override {
    std::vector<AlignedText::Match> spaces;
    for (TextPiece& piece : text.pieces) {
      AlignedText& rewritten = text.storage.emplace_back(piece);
      spaces.clear();
      for (std::size_t at = piece.text.find(' '); at != std::string_view::npos; at = piece.text.find(' ', at + 1)) spaces.push_back({at, at + 1});
      rewritten.replace(spaces, replacement_);
      const bool wanted = scheme_ == PrependScheme::always || (scheme_ == PrependScheme::first && piece.base == 0);
      if (wanted && !rewritten.text().starts_with(replacement_)) rewritten.prepend(replacement_);
      piece = rewritten.piece();
    }
    if (!split_) return;
    split_pieces(text, Behavior::merged_with_next, false, [&](std::string_view piece, std::vector<Part>& parts) {
      std::size_t last = 0;
      for (std::size_t at = piece.find(replacement_); at != std::string_view::npos; at = piece.find(replacement_, last)) {
        if (last < at) parts.push_back({last, at, false});
        last = at + replacement_.size();
        parts.push_back({at, last, true});
      }
      if (last < piece.size()) parts.push_back({last, piece.size(), false});
    });
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  bool split_;
};

class Bert final : public PreTokenizer {
 public:
  void apply(TextPieces& text) const override {
    split_pieces(text, Behavior::removed, false, by_character(is_whitespace));
    split_pieces(text, Behavior::isolated, false, by_character(is_bert_punctuation));
  }
};

class WhitespaceSplit final : public PreTokenizer {
 public:
  void apply(TextPieces& text) const override { split_pieces(text, Behavior::removed, false, by_character(is_whitespace)); }
};

/// \w+|[^\w\s]+
class Whitespace final : public PreTokenizer {
 public:
  void apply(TextPieces& text) const override {
    split_pieces(text, Behavior::removed, true, [](std::string_view piece, std::vector<Part>& parts) {
      const auto kind = [](char32_t c) { return is_word(c) ? 1 : is_whitespace(c) ? 0 : 2; };
      std::size_t begin = 0;
      int current = -1;
      for (std::size_t at = 0; at < piece.size();) {
        const CodePoint c = decode_utf8(piece.data() + at);
        const int here = kind(c.value);
        if (current != -1 && here != current) {
          parts.push_back({begin, at, current != 0});
          begin = at;
        }
        current = here;
        at += c.size_bytes;
      }
      if (begin < piece.size()) parts.push_back({begin, piece.size(), current != 0});
    });
  }
};

class Punctuation final : public PreTokenizer {
 public:
  explicit Punctuation(Behavior behavior) : behavior_(behavior) {}
  void apply(TextPieces& text) const override { split_pieces(text, behavior_, false, by_character(is_bert_punctuation)); }

 private:
  Behavior behavior_;
};

class Digits final : public PreTokenizer {
 public:
  explicit Digits(bool individual) : behavior_(individual ? Behavior::isolated : Behavior::contiguous) {}
  void apply(TextPieces& text) const override { split_pieces(text, behavior_, false, by_character(is_number)); }

 private:
  Behavior behavior_;
};

class CharacterSplit final : public PreTokenizer {
 public:
  explicit CharacterSplit(char32_t delimiter) : delimiter_(delimiter) {}
  void apply(TextPieces& text) const override {
    split_pieces(text, Behavior::removed, false, by_character([d = delimiter_](char32_t c) { return c == d; }));
  }

 private:
  char32_t delimiter_;
};

class FixedLength final : public PreTokenizer {
 public:
  explicit FixedLength(std::uint64_t length) : length_(length) {}
  void apply(TextPieces& text) const override {
    split_pieces(text, Behavior::isolated, false, [&](std::string_view piece, std::vector<Part>& parts) {
      for (std::size_t at = 0; at < piece.size();) {
        std::size_t end = at;
        for (std::uint64_t i = 0; i < length_ && end < piece.size(); ++i) end += decode_utf8(piece.data() + end).size_bytes;
        parts.push_back({at, end, true});
        at = end;
      }
    });
  }

 private:
  std::uint64_t length_;
};

/// A new piece wherever the script changes; spaces belong to what stands before them. What stands before the first script is lost, as in the
/// reference.
class UnicodeScripts final : public PreTokenizer {
 public:
  void apply(TextPieces& text) const override {
    split_pieces(text, Behavior::removed, false, [](std::string_view piece, std::vector<Part>& parts) {
      std::optional<int> last;
      std::optional<std::size_t> begin;
      for (std::size_t at = 0; at < piece.size();) {
        const CodePoint c = decode_utf8(piece.data() + at);
        const int script = script_of(c.value);
        if (script != kAnyScript && last != kAnyScript && last != script) {
          if (begin) parts.push_back({*begin, at, false});
          begin = at;
        }
        if (script != kAnyScript) last = script;
        at += c.size_bytes;
      }
      if (begin) parts.push_back({*begin, piece.size(), false});
    });
  }
};

char32_t one_character(const JsonFields& fields, std::string_view name, const std::string& text) {
  if (text.empty() || decode_utf8(text.data()).size_bytes != text.size()) fields.refuse(name, "is not one character");
  return decode_utf8(text.data()).value;
}

}  // namespace

MadePreTokenizer make_pre_tokenizer(const Json& json, ByteMapping mapping, const fs::path& file, const std::string& key) {
  MadePreTokenizer made;
  if (json.is_null()) return made;
  const JsonFields fields(json, file, key);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    std::vector<std::unique_ptr<PreTokenizer>> stages;
    const std::vector<Json>& list = fields.list("pretokenizers");
    for (std::size_t i = 0; i < list.size(); ++i) {
      MadePreTokenizer stage =
          make_pre_tokenizer(list[i], i + 1 == list.size() ? mapping : ByteMapping::characters, file, fields.inside("pretokenizers"));
      made.bytes_left_to_model = stage.bytes_left_to_model;
      if (stage.stage) stages.push_back(std::move(stage.stage));
    }
    made.stage = std::make_unique<Sequence>(std::move(stages));
  } else if (type == "ByteLevel") {
    made.bytes_left_to_model = mapping == ByteMapping::left_to_model;
    made.stage = std::make_unique<ByteLevel>(fields.flag("add_prefix_space", true), fields.flag("use_regex", true), !made.bytes_left_to_model);
  } else if (type == "Split") {
    made.stage = std::make_unique<Split>(fields.pattern("pattern"), behavior_of(fields, ""), fields.flag("invert", false));
  } else if (type == "Metaspace") {
    std::string replacement = fields.text("replacement", "\u2581");
    one_character(fields, "replacement", replacement);
    PrependScheme scheme = fields.flag("add_prefix_space", true) ? PrependScheme::always : PrependScheme::never;
    if (const auto name = fields.optional_text("prepend_scheme")) {
      if (*name == "always")
        scheme = PrependScheme::always;
      else if (*name == "first")
        scheme = PrependScheme::first;
      else if (*name == "never")
        scheme = PrependScheme::never;
      else
        fields.refuse_type(*name, "prepend_scheme");
    }
    made.stage = std::make_unique<Metaspace>(std::move(replacement), scheme, fields.flag("split", true));
  } else if (type == "BertPreTokenizer") {
    made.stage = std::make_unique<Bert>();
  } else if (type == "Whitespace") {
    made.stage = std::make_unique<Whitespace>();
  } else if (type == "WhitespaceSplit") {
    made.stage = std::make_unique<WhitespaceSplit>();
  } else if (type == "Punctuation") {
    made.stage = std::make_unique<Punctuation>(behavior_of(fields, "Isolated"));
  } else if (type == "Digits") {
    made.stage = std::make_unique<Digits>(fields.flag("individual_digits", false));
  } else if (type == "CharDelimiterSplit" || type == "Delimiter") {
    made.stage = std::make_unique<CharacterSplit>(one_character(fields, "delimiter", fields.text("delimiter")));
  } else if (type == "FixedLength") {
    const std::uint64_t length = fields.count("length", 5);
    if (length == 0) fields.refuse("length", "is 0");
    made.stage = std::make_unique<FixedLength>(length);
  } else if (type == "UnicodeScripts") {
    made.stage = std::make_unique<UnicodeScripts>();
  } else {
    fields.refuse_type(type, "pre-tokenizer");
  }
  return made;
}

}  // namespace weft::model
