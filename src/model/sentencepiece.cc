#include <algorithm>
#include <array>
#include <cfloat>
#include <unordered_map>
#include <utility>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/byte_trie.h"
#include "model/sentencepiece_file.h"
#include "model/token_table.h"
#include "model/tokenizer.h"
#include "model/tokenizer_impl.h"
#include "model/unicode_text.h"
#include "model/vocabulary.h"
#include "model/word_cache.h"
#include "weft/error.h"

// tokenizer.model as SentencePiece itself runs it, which differs from the tokenizer.json that is made of it: pieces like <s> are never found in
// text, the longest rule of the normalizer's table counts, leading spaces keep the dummy prefix.
namespace weft::model {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSpace = "\u2581";
constexpr std::uint32_t kNone = UINT32_MAX;

/// The model's pieces, for all parts that work with them.
struct Pieces {
  SentencePieceFile file;
  TokenTable normal;    ///< what text can become: normal, user-defined and unused pieces
  TokenTable reserved;  ///< unknown, control, bytes
  ByteTrie user_defined;
  std::uint32_t unknown = 0;
  std::array<std::uint32_t, 256> byte_id{};

  [[nodiscard]] PieceType type(std::uint32_t id) const { return file.pieces[id].type; }
  [[nodiscard]] std::uint32_t id_of(std::string_view text) const {
    if (const auto id = reserved.find(text)) return *id;
    return normal.find(text).value_or(unknown);
  }
  /// Bytes of the longest user-defined piece that the text begins with; 0 for none.
  [[nodiscard]] std::size_t user_defined_prefix(std::string_view text) const {
    std::size_t size = 0;
    if (!text.empty() && user_defined.may_begin(static_cast<unsigned char>(text[0])))
      user_defined.prefixes(text, [&](std::size_t length, std::uint32_t) {
        size = length;
        return true;
      });
    return size;
  }
};

class SpmNormalizer final : public Normalizer {
 public:
  SpmNormalizer(std::shared_ptr<const Pieces> pieces, Charsmap map) : pieces_(std::move(pieces)), map_(std::move(map)) {}

  void apply(AlignedText& text) const override {
    const SentencePieceFile& file = pieces_->file;
    const std::string& old = text.text();
    AlignedText::Rewriting out(text);
    std::size_t at = 0;
    if (file.remove_extra_whitespaces) {
      while (at < old.size()) {
        const auto [part, size] = prefix(std::string_view(old).substr(at));
        if (part != " ") break;
        at += size;
      }
    }
    if (at == old.size()) return out.finish();
    const std::string_view space = file.escape_whitespaces ? kSpace : std::string_view(" ");
    if (file.add_dummy_prefix && !file.space_as_suffix) out.put(space, at, at);
    bool after_space = file.remove_extra_whitespaces;
    while (at < old.size()) {
      auto [part, size] = prefix(std::string_view(old).substr(at));
      while (after_space && part.starts_with(' ')) part.remove_prefix(1);
      if (!part.empty()) {
        for (std::size_t i = 0; i < part.size();) {
          if (part[i] == ' ') {
            out.put(space, at, at + size);
            ++i;
            continue;
          }
          const std::size_t end = std::min(part.find(' ', i), part.size());
          out.put(part.substr(i, end - i), at, at + size);
          i = end;
        }
        after_space = part.ends_with(' ');
      }
      at += size;
      if (!file.remove_extra_whitespaces) after_space = false;
    }
    if (file.remove_extra_whitespaces)
      while (out.ends_with(space)) out.drop(space.size());
    if (file.add_dummy_prefix && file.space_as_suffix) out.put(space, at, at);
    out.finish();
  }

 private:
  /// What the text begins with after normalization, and how many bytes of it that takes.
  [[nodiscard]] std::pair<std::string_view, std::size_t> prefix(std::string_view text) const {
    if (const std::size_t size = pieces_->user_defined_prefix(text)) return {text.substr(0, size), size};
    if (const Charsmap::Hit hit = map_.longest(text); hit.size_bytes > 0) return {hit.replacement, hit.size_bytes};
    const std::size_t size = decode_utf8(text.data()).size_bytes;
    return {text.substr(0, size), size};
  }
  std::shared_ptr<const Pieces> pieces_;
  Charsmap map_;
};

struct SpmScratch final : ModelScratch {
  struct Symbol {
    std::uint32_t begin;
    std::uint32_t size;  ///< 0: merged into another
    std::int32_t previous;
    std::int32_t next;
    bool frozen;
  };
  struct Candidate {
    float score;
    std::int32_t left;
    std::int32_t right;
    std::uint32_t size;
  };
  struct Node {
    float score = 0;
    std::uint32_t begin = kNone;
    std::uint32_t id = 0;
  };
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> todo;
  std::vector<Node> nodes;
};

class SpmModel final : public TokenModel {
 public:
  explicit SpmModel(std::shared_ptr<const Pieces> pieces) : pieces_(std::move(pieces)) {
    std::vector<std::pair<std::string_view, std::uint32_t>> entries;
    for (std::uint32_t id = 0; id < pieces_->file.pieces.size(); ++id) {
      const auto& piece = pieces_->file.pieces[id];
      if (piece.type == PieceType::normal) {
        least_ = std::min(least_, piece.score);
        most_ = std::max(most_, piece.score);
      }
      if (piece.type != PieceType::normal && piece.type != PieceType::user_defined && piece.type != PieceType::unused) continue;
      entries.emplace_back(piece.text, id);
      if (piece.type == PieceType::unused) cut_at_spaces_ = false;  // how one falls apart is decided for the whole text
      for (std::size_t at = piece.text.find(kSpace, 1); at != std::string::npos; at = piece.text.find(kSpace, at + kSpace.size()))
        if (at < kSpace.size() || piece.text.compare(at - kSpace.size(), kSpace.size(), kSpace) != 0) cut_at_spaces_ = false;
    }
    if (pieces_->file.kind == SentencePieceFile::Kind::unigram) trie_ = ByteTrie(std::move(entries));
  }

  [[nodiscard]] std::unique_ptr<ModelScratch> scratch() const override { return std::make_unique<SpmScratch>(); }
  [[nodiscard]] std::optional<std::uint32_t> find(std::string_view token) const override {
    if (const auto id = pieces_->reserved.find(token)) return id;
    return pieces_->normal.find(token);
  }
  [[nodiscard]] const std::string* token(std::uint32_t id) const override {
    return id < pieces_->file.pieces.size() ? &pieces_->file.pieces[id].text : nullptr;
  }
  [[nodiscard]] std::size_t size() const override { return pieces_->file.pieces.size(); }
  [[nodiscard]] std::uint64_t num_ids() const override { return pieces_->file.pieces.size(); }

  void tokenize(std::string_view text, std::vector<PieceToken>& tokens, ModelScratch& scratch) const override {
    if (text.empty()) return;
    auto& work = static_cast<SpmScratch&>(scratch);
    Output out{*this, text, tokens, false, false};
    switch (pieces_->file.kind) {
      case SentencePieceFile::Kind::bpe:
        bpe_words(text, out, work);
        break;
      case SentencePieceFile::Kind::unigram:
        unigram(text, out, work);
        break;
      case SentencePieceFile::Kind::character:
        for (std::uint32_t at = 0; at < text.size();) {
          const std::uint32_t end = at + first_symbol(text.substr(at)).first;
          out.put(at, end, pieces_->id_of(text.substr(at, end - at)));
          at = end;
        }
        break;
      case SentencePieceFile::Kind::word:
        words(text, out);
        break;
    }
  }

 private:
  /// Bytes fall back, neighbouring unknown pieces are one.
  struct Output {
    const SpmModel& model;
    std::string_view text;
    std::vector<PieceToken>& tokens;
    bool after_unknown;
    bool met_unknown = false;
    void put(std::uint32_t begin, std::uint32_t end, std::uint32_t id) {
      const bool unknown = id == model.pieces_->unknown;
      if (unknown && model.pieces_->file.byte_fallback) {
        for (std::uint32_t at = begin; at < end; ++at)
          tokens.push_back({model.pieces_->byte_id[static_cast<unsigned char>(text[at])], begin, end, false});
      } else if (unknown && after_unknown) {
        tokens.back().end = end;
      } else {
        tokens.push_back({id, begin, end, unknown});
      }
      after_unknown = unknown;
      met_unknown = met_unknown || unknown;
    }
  };

  /// Size of the user-defined piece or of the character that the text begins with, and which of the two it is.
  [[nodiscard]] std::pair<std::uint32_t, bool> first_symbol(std::string_view text) const {
    if (const std::size_t size = pieces_->user_defined_prefix(text)) return {static_cast<std::uint32_t>(size), true};
    return {decode_utf8(text.data()).size_bytes, false};
  }

  void words(std::string_view text, Output& out) const {
    // Every space symbol begins a word, or ends one.
    std::size_t begin = 0;
    const bool suffix = pieces_->file.space_as_suffix;
    const auto put = [&](std::size_t end) {
      if (end > begin) out.put(static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end), pieces_->id_of(text.substr(begin, end - begin)));
      begin = end;
    };
    for (std::size_t at = text.find(kSpace); at != std::string_view::npos; at = text.find(kSpace, at + kSpace.size()))
      put(suffix ? at + kSpace.size() : at);
    put(text.size());
  }

  /// Where no piece crosses from a word to the space behind it, no merge does, and each word can be looked up by itself.
  void bpe_words(std::string_view text, Output& out, SpmScratch& work) const {
    for (std::size_t begin = 0; begin < text.size();) {
      std::size_t end = begin;
      while (cut_at_spaces_ && text.compare(end, kSpace.size(), kSpace) == 0) end += kSpace.size();
      end = cut_at_spaces_ ? std::min(text.find(kSpace, end), text.size()) : text.size();
      const std::string_view word = text.substr(begin, end - begin);
      const auto from = static_cast<std::uint32_t>(begin);
      WordCache::Slot* const slot = work.cache.slot(word);
      if (slot != nullptr && work.cache.find(*slot, word, from, out.tokens)) {
        out.after_unknown = false;
      } else {
        const std::size_t first = out.tokens.size();
        const bool had_unknown = out.after_unknown;
        out.met_unknown = false;
        bpe(text, from, static_cast<std::uint32_t>(end), out, work);
        // What joins with the word before, or the next, is no matter of the word alone.
        if (slot != nullptr && !had_unknown && !out.met_unknown) work.cache.keep(*slot, word, from, out.tokens, first);
      }
      begin = end;
    }
  }

  /// Bytes [from, to) of the text.
  void bpe(std::string_view text, std::uint32_t from, std::uint32_t to, Output& out, SpmScratch& work) const {
    auto& symbols = work.symbols;
    auto& heap = work.heap;
    symbols.clear();
    heap.clear();
    for (std::uint32_t at = from; at < to;) {
      const auto [size, frozen] = first_symbol(text.substr(at));
      const auto index = static_cast<std::int32_t>(symbols.size());
      if (index > 0) symbols.back().next = index;
      symbols.push_back({at, size, index - 1, -1, frozen});
      at += size;
    }
    std::unordered_map<std::string_view, std::uint32_t> halves;  // of unused pieces: bytes of the left part
    const auto later = [](const SpmScratch::Candidate& a, const SpmScratch::Candidate& b) {
      return a.score < b.score || (a.score == b.score && a.left > b.left);
    };
    const auto candidate = [&](std::int32_t left, std::int32_t right, bool push) {
      if (left < 0 || right < 0) return;
      const auto& a = symbols[static_cast<std::size_t>(left)];
      const auto& b = symbols[static_cast<std::size_t>(right)];
      if (a.frozen || b.frozen) return;
      const std::string_view both = text.substr(a.begin, a.size + b.size);
      const auto id = pieces_->normal.find(both);
      if (!id) return;
      heap.push_back({pieces_->file.pieces[*id].score, left, right, a.size + b.size});
      if (push) std::push_heap(heap.begin(), heap.end(), later);
      if (pieces_->type(*id) == PieceType::unused) halves[both] = a.size;
    };
    for (std::size_t i = 1; i < symbols.size(); ++i) candidate(static_cast<std::int32_t>(i) - 1, static_cast<std::int32_t>(i), false);
    std::make_heap(heap.begin(), heap.end(), later);
    while (!heap.empty()) {
      const SpmScratch::Candidate top = heap.front();
      std::pop_heap(heap.begin(), heap.end(), later);
      heap.pop_back();
      auto& left = symbols[static_cast<std::size_t>(top.left)];
      auto& right = symbols[static_cast<std::size_t>(top.right)];
      if (left.size == 0 || right.size == 0 || left.size + right.size != top.size) continue;
      left.size += right.size;
      left.next = right.next;
      if (right.next >= 0) symbols[static_cast<std::size_t>(right.next)].previous = top.left;
      right.size = 0;
      candidate(left.previous, top.left, true);
      candidate(top.left, left.next, true);
    }
    auto& todo = work.todo;
    for (std::int32_t at = 0; at >= 0; at = symbols[static_cast<std::size_t>(at)].next) {
      const auto& symbol = symbols[static_cast<std::size_t>(at)];
      todo.assign(1, {symbol.begin, symbol.begin + symbol.size});
      while (!todo.empty()) {  // unused pieces fall apart again
        const auto [begin, end] = todo.back();
        todo.pop_back();
        const std::string_view piece = text.substr(begin, end - begin);
        const std::uint32_t id = pieces_->id_of(piece);
        if (pieces_->type(id) == PieceType::unused) {
          if (const auto half = halves.find(piece); half != halves.end()) {
            todo.emplace_back(begin + half->second, end);
            todo.emplace_back(begin, begin + half->second);
            continue;
          }
        }
        out.put(begin, end, id);
      }
    }
    release(symbols);
    release(heap);
  }

  void unigram(std::string_view text, Output& out, SpmScratch& work) const {
    auto& nodes = work.nodes;
    nodes.assign(text.size() + 1, {});
    constexpr float kUnknownPenalty = 10;
    const float unknown_score = least_ - kUnknownPenalty;
    for (std::size_t at = 0; at < text.size();) {
      const float here = nodes[at].score;
      const std::size_t size = decode_utf8(text.data() + at).size_bytes;
      bool single = false;
      // In float, as the library does: ties depend on it.
      const auto reach = [&](std::size_t length, std::uint32_t id, float score) {
        auto& node = nodes[at + length];
        const float total = score + here;
        if (node.begin != kNone && !(total > node.score)) return;
        node = {total, static_cast<std::uint32_t>(at), id};
      };
      trie_.prefixes(text.substr(at), [&](std::size_t length, std::uint32_t id) {
        const PieceType type = pieces_->type(id);
        if (type == PieceType::unused) return true;
        reach(length, id,
              type == PieceType::user_defined ? static_cast<float>(static_cast<float>(length) * most_ - 0.1) : pieces_->file.pieces[id].score);
        single = single || length == size;
        return true;
      });
      if (!single) reach(size, pieces_->unknown, unknown_score);
      at += size;
    }
    std::vector<std::pair<std::uint32_t, std::uint32_t>> path;  // end, id
    for (auto end = static_cast<std::uint32_t>(text.size()); end > 0; end = nodes[end].begin) path.emplace_back(end, nodes[end].id);
    std::uint32_t begin = 0;
    for (auto step = path.rbegin(); step != path.rend(); ++step) {
      out.put(begin, step->first, step->second);
      begin = step->first;
    }
    release(nodes);
  }

  template <typename List>
  static void release(List& list) {
    constexpr std::size_t kKept = 1 << 16;
    if (list.capacity() > kKept) list = {};
  }

  std::shared_ptr<const Pieces> pieces_;
  ByteTrie trie_;
  bool cut_at_spaces_ = true;  ///< no piece holds a space symbol behind anything but space symbols, and none is unused
  float least_ = FLT_MAX;
  float most_ = FLT_MIN;  // so in the library: the smallest positive number
};

class SpmDecoder final : public IdDecoder {
 public:
  explicit SpmDecoder(std::shared_ptr<const Pieces> pieces) : pieces_(std::move(pieces)) {}

  [[nodiscard]] std::string decode(std::span<const std::uint32_t> ids) const override {
    const SentencePieceFile& file = pieces_->file;
    std::string text;
    std::string bytes;
    const auto flush = [&] {
      // Every byte that begins no character is one replacement character.
      for (std::size_t at = 0; at < bytes.size();) {
        std::size_t size = 1;
        while (size < 4 && at + size < bytes.size() && !is_valid_utf8(std::string_view(bytes).substr(at, size))) ++size;
        if (is_valid_utf8(std::string_view(bytes).substr(at, size))) {
          text.append(bytes, at, size);
          at += size;
        } else {
          text += "\uFFFD";
          ++at;
        }
      }
      bytes.clear();
    };
    const bool strips = file.add_dummy_prefix || file.remove_extra_whitespaces;
    bool at_start = true;
    bool stripped = false;
    for (const std::uint32_t given : ids) {
      if (given >= file.pieces.size()) continue;
      const std::uint32_t id = pieces_->id_of(file.pieces[given].text);
      std::string_view piece = file.pieces[given].text;
      if (pieces_->type(id) == PieceType::byte) {
        bytes.push_back(static_cast<char>(byte_of_token(piece, false)));
        continue;
      }
      flush();
      if (stripped || !text.empty()) at_start = false;
      stripped = false;
      if (pieces_->type(id) == PieceType::control) continue;
      if (id == pieces_->unknown) {
        text += file.unknown_surface;
        continue;
      }
      if (at_start && strips && piece.starts_with(kSpace)) {
        piece.remove_prefix(kSpace.size());
        stripped = !file.remove_extra_whitespaces;
      }
      for (std::size_t at = 0; at < piece.size();) {
        const std::size_t end = std::min(piece.find(kSpace, at), piece.size());
        text += piece.substr(at, end - at);
        at = end;
        if (at < piece.size()) {
          text += ' ';
          at += kSpace.size();
        }
      }
    }
    flush();
    return text;
  }

 private:
  std::shared_ptr<const Pieces> pieces_;
};

std::optional<bool> flag(const Json* config, std::string_view name) {
  const Json* value = config == nullptr ? nullptr : config->find(name);
  return value == nullptr ? std::nullopt : value->boolean();
}

}  // namespace

std::unique_ptr<Tokenizer::Impl> impl_from_pieces(SentencePieceFile file, const Json* config, const fs::path& path) {
  auto pieces = std::make_shared<Pieces>();
  pieces->file = std::move(file);
  std::vector<Vocabulary::Entry> entries;
  std::vector<AddedToken> added;
  std::vector<std::pair<std::string_view, std::uint32_t>> user_defined;
  for (std::uint32_t id = 0; id < pieces->file.pieces.size(); ++id) {
    const auto& piece = pieces->file.pieces[id];
    entries.push_back({piece.text, id});
    switch (piece.type) {
      case PieceType::normal:
      case PieceType::unused:
        pieces->normal.insert(piece.text, id);
        break;
      case PieceType::user_defined:
        pieces->normal.insert(piece.text, id);
        user_defined.emplace_back(piece.text, id);
        break;
      case PieceType::unknown:
        pieces->unknown = id;
        pieces->reserved.insert(piece.text, id);
        break;
      case PieceType::control:
        pieces->reserved.insert(piece.text, id);
        break;
      case PieceType::byte: {
        const int byte = byte_of_token(piece.text, false);
        if (byte < 0) throw Error(ErrorCode::corrupt, "the piece '" + printable(piece.text) + "' stands for no byte", {.file = path.string()});
        pieces->byte_id[static_cast<std::size_t>(byte)] = id;
        pieces->reserved.insert(piece.text, id);
        break;
      }
    }
    if (piece.type == PieceType::control) {
      AddedToken token;
      token.id = id;
      token.content = piece.text;
      token.special = true;
      added.push_back(std::move(token));
    }
  }
  pieces->user_defined = ByteTrie(std::move(user_defined));

  auto impl = std::make_unique<Tokenizer::Impl>();
  constexpr std::array<const char*, 4> kKinds = {"SentencePiece Unigram", "SentencePiece BPE", "SentencePiece words", "SentencePiece characters"};
  impl->kind = kKinds[static_cast<std::size_t>(pieces->file.kind) - 1];
  impl->vocabulary = Vocabulary(TokenizerKind::sentencepiece, std::move(entries), std::move(added), path);
  impl->normalizer = std::make_unique<SpmNormalizer>(pieces, Charsmap(pieces->file.charsmap, path, "normalizer_spec.precompiled_charsmap"));
  impl->model = std::make_unique<SpmModel>(pieces);
  impl->id_decoder = std::make_unique<SpmDecoder>(pieces);

  const auto named = [&](const char* name, std::int64_t id) {
    if (id < 0 || static_cast<std::uint64_t>(id) >= pieces->file.pieces.size()) return;
    const auto& piece = pieces->file.pieces[static_cast<std::size_t>(id)];
    if (piece.type == PieceType::control || piece.type == PieceType::unknown)
      impl->named.push_back({name, piece.text, static_cast<std::uint32_t>(id)});
  };
  named("bos_token", pieces->file.bos_id);
  named("eos_token", pieces->file.eos_id);
  named("unk_token", pieces->unknown);
  named("pad_token", pieces->file.pad_id);
  impl->name_tokens(config, nullptr);

  // A begin token where the model has one (Llama, Gemma), else an end token (T5), unless the config says otherwise.
  const auto find = [&](std::string_view name) -> const NamedToken* {
    for (const NamedToken& token : impl->named)
      if (token.name == name && token.id) return &token;
    return nullptr;
  };
  const NamedToken* bos = find("bos_token");
  const NamedToken* eos = find("eos_token");
  std::vector<std::pair<std::uint32_t, std::string>> before;
  std::vector<std::pair<std::uint32_t, std::string>> behind;
  if (bos != nullptr && flag(config, "add_bos_token").value_or(true)) before.emplace_back(*bos->id, bos->token);
  if (eos != nullptr && flag(config, "add_eos_token").value_or(bos == nullptr)) behind.emplace_back(*eos->id, eos->token);
  if (!before.empty() || !behind.empty()) impl->post_processor = make_affixes(std::move(before), std::move(behind));
  return impl;
}

Tokenizer Tokenizer::from_sentencepiece(std::string_view bytes, const Json* config, const std::filesystem::path& file) {
  return Tokenizer(impl_from_pieces(read_sentencepiece(bytes, file), config, file));
}

}  // namespace weft::model
