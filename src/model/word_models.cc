#include "model/word_models.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/text.h"
#include "model/byte_trie.h"
#include "model/token_table.h"
#include "model/unicode_text.h"
#include "model/word_cache.h"
#include "weft/error.h"

namespace weft::model {
namespace {

constexpr std::uint32_t kNone = UINT32_MAX;

/// What the two models with a plain vocabulary share.
class PlainVocabulary : public TokenModel {
 public:
  PlainVocabulary(std::vector<BpeOptions::Entry> entries, std::string unknown, const std::filesystem::path& file)
      : unknown_text_(std::move(unknown)), file_(file.string()), size_(entries.size()) {
    table_.reserve(entries.size());
    for (const auto& entry : entries) num_ids_ = std::max(num_ids_, std::uint64_t{entry.id} + 1);
    tokens_.resize(num_ids_);
    present_.resize(num_ids_);
    for (auto& entry : entries) {
      table_.insert(entry.token, entry.id);
      present_[entry.id] = true;
      tokens_[entry.id] = std::move(entry.token);
    }
    unknown_ = table_.find(unknown_text_).value_or(kNone);
  }
  [[nodiscard]] std::optional<std::uint32_t> find(std::string_view token) const override { return table_.find(token); }
  [[nodiscard]] const std::string* token(std::uint32_t id) const override { return id < tokens_.size() && present_[id] ? &tokens_[id] : nullptr; }
  [[nodiscard]] std::size_t size() const override { return size_; }
  [[nodiscard]] std::uint64_t num_ids() const override { return num_ids_; }

 protected:
  [[nodiscard]] PieceToken unknown(std::string_view piece) const {
    if (unknown_ == kNone)
      throw Error(ErrorCode::corrupt, "the text has an unknown word, but the token for those, '" + printable(unknown_text_) + "', is no token",
                  {.file = file_, .key = "model.unk_token"});
    return {unknown_, 0, static_cast<std::uint32_t>(piece.size()), false};
  }
  TokenTable table_;

 private:
  std::string unknown_text_;
  std::string file_;
  std::vector<std::string> tokens_;
  std::vector<bool> present_;
  std::size_t size_;
  std::uint64_t num_ids_ = 0;
  std::uint32_t unknown_ = kNone;
};

class WordPiece final : public PlainVocabulary {
 public:
  WordPiece(WordPieceOptions options, const std::filesystem::path& file)
      : PlainVocabulary(std::move(options.vocabulary), std::move(options.unknown), file),
        prefix_(std::move(options.prefix)),
        max_characters_(options.max_characters) {}

  void tokenize(std::string_view piece, std::vector<PieceToken>& tokens, ModelScratch& /*scratch*/) const override {
    if (piece.empty()) return;
    if (piece.size() > max_characters_ && count_code_points(piece) > max_characters_) {
      tokens.push_back(unknown(piece));
      return;
    }
    const std::size_t first = tokens.size();
    std::string text;
    for (std::size_t begin = 0; begin < piece.size();) {
      text = begin > 0 ? prefix_ : "";
      const std::size_t before = text.size();
      text += piece.substr(begin, table_.max_bytes());
      std::optional<std::uint32_t> id;
      while (text.size() > before) {
        if ((begin + text.size() - before == piece.size() || is_boundary(piece, begin + text.size() - before)) && (id = table_.find(text))) break;
        text.pop_back();
      }
      if (!id) {
        tokens.resize(first);
        tokens.push_back(unknown(piece));
        return;
      }
      const std::size_t end = begin + text.size() - before;
      tokens.push_back({*id, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end), false});
      begin = end;
    }
  }

 private:
  static bool is_boundary(std::string_view text, std::size_t at) noexcept { return (static_cast<unsigned char>(text[at]) & 0xC0) != 0x80; }
  std::string prefix_;
  std::uint64_t max_characters_;
};

class WordLevel final : public PlainVocabulary {
 public:
  using PlainVocabulary::PlainVocabulary;
  void tokenize(std::string_view piece, std::vector<PieceToken>& tokens, ModelScratch& /*scratch*/) const override {
    if (const auto id = table_.find(piece))
      tokens.push_back({*id, 0, static_cast<std::uint32_t>(piece.size()), false});
    else
      tokens.push_back(unknown(piece));
  }
};

struct UnigramScratch final : ModelScratch {
  struct Node {
    double score = 0;
    std::uint32_t begin = kNone;  ///< kNone: not reached
    std::uint32_t id = 0;
  };
  WordCache cache;
  std::vector<Node> nodes;
  std::vector<PieceToken> found;
};

class Unigram final : public TokenModel {
 public:
  Unigram(UnigramOptions options, const std::filesystem::path& file) : options_(std::move(options)), file_(file.string()) {
    table_.reserve(options_.vocabulary.size());
    std::vector<std::pair<std::string_view, std::uint32_t>> entries;
    double least = std::numeric_limits<double>::infinity();
    for (std::uint32_t id = 0; id < options_.vocabulary.size(); ++id) {
      const auto& piece = options_.vocabulary[id];
      table_.insert(piece.text, id);
      entries.emplace_back(piece.text, id);
      least = std::min(least, piece.score);
    }
    trie_ = ByteTrie(std::move(entries));
    constexpr double kUnknownPenalty = 10;
    unknown_score_ = least - kUnknownPenalty;
    if (options_.unknown && *options_.unknown >= options_.vocabulary.size())
      throw Error(ErrorCode::corrupt,
                  "the id of unknown text, " + std::to_string(*options_.unknown) + ", is beyond the vocabulary of " +
                      std::to_string(options_.vocabulary.size()) + " pieces",
                  {.file = file_, .key = "model.unk_id"});
    constexpr const char* kHex = "0123456789ABCDEF";
    for (std::size_t b = 0; b < 256; ++b) fallback_[b] = table_.find({"<0x" + std::string(1, kHex[b >> 4]) + kHex[b & 15] + ">"}).value_or(kNone);
  }

  [[nodiscard]] std::unique_ptr<ModelScratch> scratch() const override { return std::make_unique<UnigramScratch>(); }
  [[nodiscard]] std::optional<std::uint32_t> find(std::string_view token) const override { return table_.find(token); }
  [[nodiscard]] const std::string* token(std::uint32_t id) const override {
    return id < options_.vocabulary.size() ? &options_.vocabulary[id].text : nullptr;
  }
  [[nodiscard]] std::size_t size() const override { return options_.vocabulary.size(); }
  [[nodiscard]] std::uint64_t num_ids() const override { return options_.vocabulary.size(); }

  void tokenize(std::string_view piece, std::vector<PieceToken>& tokens, ModelScratch& scratch) const override {
    auto& work = static_cast<UnigramScratch&>(scratch);
    WordCache::Slot* const slot = work.cache.slot(piece);
    if (slot != nullptr && work.cache.find(*slot, piece, 0, tokens)) return;
    const std::size_t first = tokens.size();
    if (!piece.empty()) likeliest(piece, tokens, work);
    if (slot != nullptr) work.cache.keep(*slot, piece, 0, tokens, first);
  }

 private:
  void likeliest(std::string_view piece, std::vector<PieceToken>& tokens, UnigramScratch& work) const {
    auto& nodes = work.nodes;
    nodes.assign(piece.size() + 1, {});
    nodes[0].begin = 0;
    for (std::size_t at = 0; at < piece.size();) {
      const double here = nodes[at].score;
      const std::size_t size = decode_utf8(piece.data() + at).size_bytes;
      bool single = false;
      const auto reach = [&](std::size_t length, std::uint32_t id, double score) {
        auto& node = nodes[at + length];
        const double total = score + here;
        if (node.begin != kNone && !(total > node.score)) return;
        node = {total, static_cast<std::uint32_t>(at), id};
      };
      trie_.prefixes(piece.substr(at), [&](std::size_t length, std::uint32_t id) {
        reach(length, id, options_.vocabulary[id].score);
        single = single || length == size;
        return true;
      });
      if (!single) reach(size, unknown_id(), unknown_score_);
      at += size;
    }
    // Back from the end; neighbouring unknown characters are one token.
    std::vector<PieceToken>& found = work.found;
    found.clear();
    for (std::size_t end = piece.size(); end > 0;) {
      const auto& node = nodes[end];
      const bool unknown = options_.unknown && node.id == *options_.unknown;
      if (unknown && !found.empty() && found.back().own_text && found.back().begin == end)
        found.back().begin = node.begin;
      else
        found.push_back({node.id, node.begin, static_cast<std::uint32_t>(end), unknown});
      end = node.begin;
    }
    for (auto token = found.rbegin(); token != found.rend(); ++token) {
      if (!token->own_text) {
        tokens.push_back(*token);
        continue;
      }
      const std::string_view text = piece.substr(token->begin, token->end - token->begin);
      if (const auto id = table_.find(text)) {
        tokens.push_back({*id, token->begin, token->end, false});
      } else if (options_.byte_fallback &&
                 std::all_of(text.begin(), text.end(), [&](char c) { return fallback_[static_cast<unsigned char>(c)] != kNone; })) {
        for (const char c : text) tokens.push_back({fallback_[static_cast<unsigned char>(c)], token->begin, token->end, false});
      } else {
        tokens.push_back(*token);
      }
    }
    constexpr std::size_t kKept = 1 << 16;
    if (nodes.capacity() > kKept) {
      nodes = {};
      found = {};
    }
  }

  [[nodiscard]] std::uint32_t unknown_id() const {
    if (!options_.unknown)
      throw Error(ErrorCode::corrupt, "the text has unknown characters, but the tokenizer has no token for them",
                  {.file = file_, .key = "model.unk_id"});
    return *options_.unknown;
  }

  UnigramOptions options_;
  std::string file_;
  TokenTable table_;
  ByteTrie trie_;
  double unknown_score_ = 0;
  std::array<std::uint32_t, 256> fallback_{};
};

}  // namespace

std::unique_ptr<TokenModel> make_wordpiece(WordPieceOptions options, const std::filesystem::path& file) {
  return std::make_unique<WordPiece>(std::move(options), file);
}

std::unique_ptr<TokenModel> make_wordlevel(std::vector<BpeOptions::Entry> vocabulary, std::string unknown, const std::filesystem::path& file) {
  return std::make_unique<WordLevel>(std::move(vocabulary), std::move(unknown), file);
}

std::unique_ptr<TokenModel> make_unigram(UnigramOptions options, const std::filesystem::path& file) {
  return std::make_unique<Unigram>(std::move(options), file);
}

}  // namespace weft::model
