#include "engine/tokenizer_summary.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "base/file.h"
#include "checkpoint/json.h"
#include "weft/error.h"

namespace weft {
namespace {

/// Thrown by the handler when all that is left to do is to count the entries of the list or object that begins at this byte.
struct OnlyVocabularyLeft {
  std::uint64_t byte;
};

/// Counts the entries of model.vocab in tokenizer.json, and the added tokens that come on top.
class TokenizerCounter final : public JsonEvents {
 public:
  void set_num_entries(std::uint64_t num_entries) noexcept { num_entries_ = num_entries; }
  [[nodiscard]] TokenizerSummary summary() const {
    // Added tokens may repeat some of the vocabulary; those have low ids.
    const auto is_new = [this](std::uint64_t id) { return id >= num_entries_; };
    TokenizerSummary summary{kind_, num_entries_ + static_cast<std::uint64_t>(std::count_if(added_ids_.begin(), added_ids_.end(), is_new))};
    // The key may be absent in old files; those hold BPE.
    if (summary.kind.empty() && num_entries_ > 0) summary.kind = "BPE";
    return summary;
  }

  void null() override { item(); }
  void boolean(bool) override { item(); }
  void number(std::string_view text) override {
    if (depth_ == 3 && keys_[1] == "added_tokens" && keys_[3] == "id") {
      // Ids beyond 2^24 are refused where tokens are read; here they only count as new.
      added_ids_.push_back(text.size() > 18 ? ~std::uint64_t{0} : std::stoull("0" + std::string(text)));
    }
    item();
  }
  void string(std::string& value) override {
    if (depth_ == 2 && keys_[1] == "model" && keys_[2] == "type") kind_ = value;
    item();
  }
  void begin_object() override {
    maybe_stop();
    item();
    enter();
  }
  void key(std::string& name) override {
    if (depth_ == 3 && in_vocab()) {
      ++num_entries_;
    } else if (depth_ < kDepth) {
      keys_[static_cast<std::size_t>(depth_)] = name;
    }
  }
  void end_object() override { leave(); }
  void begin_array() override {
    maybe_stop();
    item();
    enter();
    if (depth_ == 3 && in_vocab()) vocab_is_list_ = true;
  }
  void end_array() override { leave(); }

 private:
  static constexpr int kDepth = 4;

  [[nodiscard]] bool in_vocab() const { return keys_[1] == "model" && keys_[2] == "vocab"; }
  /// A value begins: one more entry when it stands in a list of them.
  void item() {
    if (depth_ == 3 && vocab_is_list_ && in_vocab()) ++num_entries_;
  }
  void enter() {
    if (++depth_ < kDepth) keys_[static_cast<std::size_t>(depth_)].clear();
  }
  void leave() {
    --depth_;
    if (depth_ == 1 && keys_[1] == "added_tokens") has_added_ = true;
    if (depth_ == 2 && in_vocab()) vocab_is_list_ = false;
  }
  /// In every file of the tokenizers library the vocabulary comes after all else that is of interest here, and before the merges, which are most of
  /// the file.
  void maybe_stop() const {
    if (depth_ == 2 && in_vocab() && has_added_ && !kind_.empty()) throw OnlyVocabularyLeft{position()};
  }

  std::string kind_;
  std::uint64_t num_entries_ = 0;
  std::vector<std::uint64_t> added_ids_;
  std::string keys_[kDepth];  ///< under which the open containers stand; by depth, from 1
  int depth_ = 0;
  bool vocab_is_list_ = false;  ///< and we are in it
  bool has_added_ = false;
};

/// Counts the keys of an object: vocab.json.
class KeyCounter final : public JsonEvents {
 public:
  std::uint64_t num_keys = 0;
  void null() override {}
  void boolean(bool) override {}
  void number(std::string_view) override {}
  void string(std::string&) override {}
  void begin_object() override { ++depth_; }
  void key(std::string&) override { num_keys += depth_ == 1; }
  void end_object() override { --depth_; }
  void begin_array() override { ++depth_; }
  void end_array() override { --depth_; }

 private:
  int depth_ = 0;
};

/// Reads a file piece by piece from a byte on, until see(bytes) is false. False when that never was.
template <typename See>
bool read_until(const File& file, std::uint64_t offset, See&& see) {
  std::vector<char> block(1 << 16);
  for (;;) {
    const std::size_t num_read = file.read_some(offset, std::as_writable_bytes(std::span(block)));
    if (num_read == 0) return false;
    if (!see(std::string_view(block.data(), num_read))) return true;
    offset += num_read;
  }
}

/// Entries of the JSON list or object that begins at a byte. Looks at nothing but brackets, commas and strings: ten times as fast as parsing, and
/// vocabularies are millions of bytes.
std::uint64_t count_entries(const File& file, std::uint64_t begin) {
  std::uint64_t num_commas = 0;
  std::uint64_t depth = 0;
  bool is_empty = true, in_string = false, escaped = false;
  const auto in_text = [](char c) { return c == '"' || c == '\\'; };
  const auto outside = [](char c) {
    return c == '"' || c == ',' || (c | 0x20) == '{' || (c | 0x20) == '}';
  };  // [ and ] differ from { and } in that bit
  const bool closed = read_until(file, begin, [&](std::string_view block) {
    for (const char *at = block.data(), *end = at + block.size(); at != end; ++at) {
      if (in_string) {
        if (escaped) {
          escaped = false;
          continue;
        }
        at = std::find_if(at, end, in_text);
        if (at == end) break;
        in_string = *at != '"';
        escaped = *at == '\\';
        continue;
      }
      at = std::find_if(at, end, outside);
      if (at == end) break;
      switch (*at) {
        case ',':
          num_commas += depth == 1;
          break;
        case '"':
          in_string = true;
          is_empty = false;
          break;
        case '{':
        case '[':
          is_empty = depth++ == 0;
          break;
        default:
          if (--depth == 0) return false;
      }
    }
    return true;
  });
  if (!closed)
    throw Error(ErrorCode::corrupt, "the vocabulary of the tokenizer has no end", {.file = file.path().string(), .byte = begin}, "fetch it again");
  return is_empty ? 0 : num_commas + 1;
}

/// Pieces of a SentencePiece model: the entries of field 1 of its protobuf message.
std::uint64_t count_pieces(const File& file) {
  const std::uint64_t size_bytes = file.size_bytes();
  std::uint64_t position = 0, num_pieces = 0;
  std::vector<std::byte> block;
  std::uint64_t block_begin = 0;
  const auto byte_at = [&](std::uint64_t at) -> unsigned {
    if (at < block_begin || at >= block_begin + block.size()) {
      block.resize(1 << 16);
      block_begin = at;
      block.resize(file.read_some(at, block));
      if (block.empty())
        throw Error(ErrorCode::corrupt, "the SentencePiece model ends inside a field", {.file = file.path().string(), .byte = at}, "fetch it again");
    }
    return std::to_integer<unsigned>(block[at - block_begin]);
  };
  const auto varint = [&] {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const unsigned byte = byte_at(position++);
      value |= std::uint64_t{byte & 0x7F} << shift;
      if (byte < 0x80) return value;
    }
    throw Error(ErrorCode::corrupt, "the SentencePiece model holds an endless number", {.file = file.path().string(), .byte = position},
                "fetch it again");
  };
  while (position < size_bytes) {
    const std::uint64_t tag = varint();
    std::uint64_t length = 0;
    switch (tag & 7) {
      case 0:
        (void)varint();
        break;
      case 1:
        length = 8;
        break;
      case 2:
        length = varint();
        break;
      case 5:
        length = 4;
        break;
      default:
        throw Error(ErrorCode::corrupt, "the SentencePiece model is no protobuf message", {.file = file.path().string(), .byte = position},
                    "fetch it again");
    }
    if (length > size_bytes - position)
      throw Error(ErrorCode::corrupt, "the SentencePiece model ends inside a field", {.file = file.path().string(), .byte = position},
                  "fetch it again");
    position += length;
    num_pieces += tag >> 3 == 1;
  }
  return num_pieces;
}

}  // namespace

TokenizerSummary summarize_tokenizer(const std::filesystem::path& folder) {
  const auto existing = [&folder](const char* name) -> std::optional<File> {
    if (path_kind(folder / name) != PathKind::file) return std::nullopt;
    return File(folder / name, FileMode::read);
  };
  // The size decides nothing here: nothing of the file is kept.
  const JsonLimits limits{.max_bytes = 1'000'000'000, .max_depth = 128, .max_values = 1'000'000'000, .numbers = JsonNumbers::strict};
  if (const auto file = existing("tokenizer.json")) {
    TokenizerCounter counter;
    try {
      parse_json_events(*file, 0, file->size_bytes(), limits, counter);
    } catch (const OnlyVocabularyLeft& left) {
      counter.set_num_entries(count_entries(*file, left.byte));
    }
    return counter.summary();
  }
  if (const auto file = existing("tokenizer.model")) return {"sentencepiece", count_pieces(*file)};
  if (const auto file = existing("vocab.json")) {
    KeyCounter counter;
    parse_json_events(*file, 0, file->size_bytes(), limits, counter);
    return {"BPE", counter.num_keys};
  }
  if (const auto file = existing("vocab.txt")) {
    std::uint64_t num_lines = 0;
    char last = '\n';
    read_until(*file, 0, [&](std::string_view block) {
      num_lines += static_cast<std::uint64_t>(std::count(block.begin(), block.end(), '\n'));
      last = block.back();
      return true;
    });
    return {"WordPiece", num_lines + (last != '\n')};
  }
  return {};
}

}  // namespace weft
