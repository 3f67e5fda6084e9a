#include "model/bpe_model.h"

#include <algorithm>
#include <array>
#include <bit>

#include "base/text.h"
#include "model/token_table.h"
#include "model/unicode_text.h"
#include "model/word_cache.h"
#include "weft/error.h"

namespace weft::model {
namespace {

constexpr std::uint32_t kNone = UINT32_MAX;

/// Pairs of ids -> rank and merged id.
class MergeTable {
 public:
  struct Found {
    std::uint32_t rank;
    std::uint32_t id;
  };
  explicit MergeTable(std::size_t expected) : slots_(std::bit_ceil(std::max<std::size_t>(16, expected * 2))) {}
  void insert(std::uint32_t left, std::uint32_t right, Found value) {
    Slot& slot = slots_[place(left, right)];
    slot = {left, right, value};
  }
  [[nodiscard]] const Found* find(std::uint32_t left, std::uint32_t right) const noexcept {
    const Slot& slot = slots_[place(left, right)];
    return slot.value.id == kNone ? nullptr : &slot.value;
  }

 private:
  struct Slot {
    std::uint32_t left = kNone;
    std::uint32_t right = kNone;
    Found value{0, kNone};
  };
  [[nodiscard]] std::size_t place(std::uint32_t left, std::uint32_t right) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::uint64_t h = (std::uint64_t{left} << 32 | right) * 0x9E3779B97F4A7C15ULL;
    h ^= h >> 32;
    for (std::size_t at = h & mask;; at = (at + 1) & mask) {
      const Slot& slot = slots_[at];
      if (slot.value.id == kNone || (slot.left == left && slot.right == right)) return at;
    }
  }
  std::vector<Slot> slots_;
};

struct Symbol {
  std::uint32_t id;
  std::uint32_t size_bytes;  ///< 0: merged into another
  std::int32_t previous;
  std::int32_t next;
};
struct Candidate {
  std::uint64_t order;  ///< rank, then position
  std::uint32_t id;
};
/// Smallest on top of a std heap.
struct Later {
  bool operator()(const Candidate& a, const Candidate& b) const noexcept { return a.order > b.order; }
};

struct BpeScratch final : ModelScratch {
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

class Bpe final : public TokenModel {
 public:
  Bpe(BpeOptions options, const std::filesystem::path& file) : options_(std::move(options)), file_(file.string()), merges_(options_.merges.size()) {
    table_.reserve(options_.vocabulary.size());
    for (const auto& entry : options_.vocabulary) {
      table_.insert(entry.token, entry.id);
      num_ids_ = std::max(num_ids_, std::uint64_t{entry.id} + 1);
    }
    tokens_.resize(num_ids_);
    present_.resize(num_ids_);
    for (auto& entry : options_.vocabulary) {
      tokens_[entry.id] = std::move(entry.token);
      present_[entry.id] = true;
    }
    size_ = options_.vocabulary.size();
    options_.vocabulary = {};
    add_merges();
    for (std::size_t b = 0; b < 256; ++b) {
      const auto byte = static_cast<unsigned char>(b);
      byte_symbol_[b] = table_.find(utf8(byte_character(byte))).value_or(kNone);
      constexpr const char* kHex = "0123456789ABCDEF";
      fallback_[b] = table_.find({"<0x" + std::string(1, kHex[b >> 4]) + kHex[b & 15] + ">"}).value_or(kNone);
      if (b < 128) ascii_symbol_[b] = table_.find(std::string(1, static_cast<char>(b))).value_or(kNone);
    }
    if (options_.raw_bytes && options_.ignore_merges) {
      for (std::uint32_t id = 0; id < tokens_.size(); ++id) {
        std::string bytes;
        if (present_[id] && append_bytes_of_characters(tokens_[id], bytes) && !bytes.empty()) raw_.insert(bytes, id);
      }
    }
    if (options_.unknown) unknown_ = table_.find(*options_.unknown).value_or(kNone);
  }

  [[nodiscard]] std::unique_ptr<ModelScratch> scratch() const override { return std::make_unique<BpeScratch>(); }
  [[nodiscard]] std::optional<std::uint32_t> find(std::string_view token) const override { return table_.find(token); }
  [[nodiscard]] const std::string* token(std::uint32_t id) const override { return id < tokens_.size() && present_[id] ? &tokens_[id] : nullptr; }
  [[nodiscard]] std::size_t size() const override { return size_; }
  [[nodiscard]] std::uint64_t num_ids() const override { return num_ids_; }

  void tokenize(std::string_view piece, std::vector<PieceToken>& tokens, ModelScratch& scratch) const override {
    auto& work = static_cast<BpeScratch&>(scratch);
    if (!cut_at_spaces_) return word(piece, tokens, work);
    // A text without a split is one word; where no merge crosses from a word to the space behind it, each can be looked up by itself.
    std::uint32_t shift = 0;
    for (std::size_t begin = 0; begin < piece.size();) {
      std::size_t end = begin;
      while (piece.compare(end, kSpace.size(), kSpace) == 0) end += kSpace.size();
      end = std::min(piece.find(kSpace, end), piece.size());
      const std::size_t first = tokens.size();
      word(piece.substr(begin, end - begin), tokens, work);
      for (std::size_t i = first; i < tokens.size(); ++i) {
        tokens[i].begin += shift;
        tokens[i].end += shift;
      }
      if (tokens.size() > first) shift = tokens.back().end;
      begin = end;
    }
  }

 private:
  static constexpr std::string_view kSpace = "\u2581";

  void word(std::string_view piece, std::vector<PieceToken>& tokens, BpeScratch& work) const {
    WordCache::Slot* const slot = work.cache.slot(piece);
    if (slot != nullptr && work.cache.find(*slot, piece, 0, tokens)) return;
    const std::size_t first = tokens.size();
    if (!piece.empty()) merge(piece, tokens, work);
    if (slot != nullptr) work.cache.keep(*slot, piece, 0, tokens, first);
  }

  void add_merges() {
    const auto refuse = [&](std::size_t i, const std::string& what) {
      const auto& merge = options_.merges[i];
      throw Error(ErrorCode::corrupt, "merge " + std::to_string(i) + " ('" + printable(merge.left) + "' '" + printable(merge.right) + "') " + what,
                  {.file = file_, .key = "model.merges"}, "fetch the tokenizer again");
    };
    bool crosses = false;
    for (std::size_t i = 0; i < options_.merges.size(); ++i) {
      const auto& [left, right] = options_.merges[i];
      const std::string joined = left + right;
      for (std::size_t at = joined.find(kSpace); at != std::string::npos && !crosses; at = joined.find(kSpace, at + kSpace.size()))
        crosses = at > 0 && (at < kSpace.size() || joined.compare(at - kSpace.size(), kSpace.size(), kSpace) != 0);
      const auto a = table_.find(left);
      const auto b = table_.find(right);
      if (!a || !b) refuse(i, "has a part that is no token");
      if (!right.starts_with(options_.prefix)) refuse(i, "has a right part without the prefix '" + printable(options_.prefix) + "'");
      const auto both = table_.find(left + right.substr(options_.prefix.size()));
      if (!both) refuse(i, "makes what is no token");
      merges_.insert(*a, *b, {static_cast<std::uint32_t>(i), *both});
    }
    options_.merges = {};
    cut_at_spaces_ = !crosses && !options_.raw_bytes && !options_.ignore_merges && options_.prefix.empty() && options_.suffix.empty() &&
                     table_.find(kSpace).has_value();
  }

  static void add(std::vector<Symbol>& symbols, std::uint32_t id, std::uint32_t size_bytes) {
    const auto at = static_cast<std::int32_t>(symbols.size());
    if (at > 0) symbols.back().next = at;
    symbols.push_back({id, size_bytes, at - 1, -1});
  }

  void first_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
    symbols.clear();
    std::uint32_t unknown_bytes = 0;
    bool pending = false;
    const auto unknown = [&](std::uint32_t size_bytes) {
      if (!options_.unknown) return;  // dropped
      if (unknown_ == kNone)
        throw Error(ErrorCode::corrupt,
                    "the text has unknown characters, but the token for them, '" + printable(*options_.unknown) + "', is no token",
                    {.file = file_, .key = "model.unk_token"});
      if (pending && options_.fuse_unknown) {
        unknown_bytes += size_bytes;
        return;
      }
      if (pending) add(symbols, unknown_, unknown_bytes);
      pending = true;
      unknown_bytes = size_bytes;
    };
    const auto known = [&](std::uint32_t id, std::uint32_t size_bytes) {
      if (pending) add(symbols, unknown_, unknown_bytes);
      pending = false;
      add(symbols, id, size_bytes);
    };
    if (options_.raw_bytes) {
      for (const char c : piece) {
        const std::uint32_t id = byte_symbol_[static_cast<unsigned char>(c)];
        id == kNone ? unknown(1) : known(id, 1);
      }
    } else {
      const bool plain = options_.prefix.empty() && options_.suffix.empty();
      std::string symbol;
      for (std::size_t at = 0; at < piece.size();) {
        const auto first = static_cast<unsigned char>(piece[at]);
        const std::uint32_t size = first < 0x80 ? 1 : decode_utf8(piece.data() + at).size_bytes;
        std::uint32_t id = kNone;
        std::string_view text = piece.substr(at, size);
        if (plain) {
          id = first < 0x80 ? ascii_symbol_[first] : table_.find(text).value_or(kNone);
        } else {
          symbol = at > 0 ? options_.prefix : "";
          symbol += text;
          if (at + size == piece.size()) symbol += options_.suffix;
          text = symbol;
          id = table_.find(text).value_or(kNone);
        }
        at += size;
        if (id != kNone) {
          known(id, size);
        } else if (options_.byte_fallback &&
                   std::all_of(text.begin(), text.end(), [&](char c) { return fallback_[static_cast<unsigned char>(c)] != kNone; })) {
          // The reference does not flush what is pending here.
          for (const char c : text) add(symbols, fallback_[static_cast<unsigned char>(c)], 1);
        } else {
          unknown(size);
        }
      }
    }
    if (pending) add(symbols, unknown_, unknown_bytes);
  }

  void merge(std::string_view piece, std::vector<PieceToken>& tokens, BpeScratch& work) const {
    if (options_.ignore_merges) {
      if (const auto id = options_.raw_bytes ? raw_.find(piece) : table_.find(piece)) {
        tokens.push_back({*id, 0, static_cast<std::uint32_t>(piece.size()), false});
        return;
      }
    }
    std::vector<Symbol>& symbols = work.symbols;
    std::vector<Candidate>& heap = work.heap;
    first_symbols(piece, symbols);
    heap.clear();
    const auto candidate = [&](std::int32_t at, bool push) {
      const Symbol& left = symbols[static_cast<std::size_t>(at)];
      const MergeTable::Found* found = merges_.find(left.id, symbols[static_cast<std::size_t>(left.next)].id);
      if (found == nullptr) return;
      heap.push_back({std::uint64_t{found->rank} << 32 | static_cast<std::uint32_t>(at), found->id});
      if (push) std::push_heap(heap.begin(), heap.end(), Later());
    };
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) candidate(static_cast<std::int32_t>(i), false);
    std::make_heap(heap.begin(), heap.end(), Later());
    while (!heap.empty()) {
      const Candidate top = heap.front();
      std::pop_heap(heap.begin(), heap.end(), Later());
      heap.pop_back();
      const auto at = static_cast<std::int32_t>(top.order & UINT32_MAX);
      Symbol& left = symbols[static_cast<std::size_t>(at)];
      if (left.size_bytes == 0 || left.next < 0) continue;
      Symbol& right = symbols[static_cast<std::size_t>(left.next)];
      const MergeTable::Found* found = merges_.find(left.id, right.id);
      if (found == nullptr || found->id != top.id) continue;  // an entry that other merges made obsolete
      left.id = top.id;
      left.size_bytes += right.size_bytes;
      left.next = right.next;
      right.size_bytes = 0;
      if (left.next >= 0) {
        symbols[static_cast<std::size_t>(left.next)].previous = at;
        candidate(at, true);
      }
      if (left.previous >= 0) candidate(left.previous, true);
    }
    std::uint32_t begin = 0;
    for (const Symbol& symbol : symbols) {
      if (symbol.size_bytes == 0) continue;
      tokens.push_back({symbol.id, begin, begin + symbol.size_bytes, false});
      begin += symbol.size_bytes;
    }
    // A text of a megabyte must not keep its memory for ever.
    constexpr std::size_t kKept = 1 << 16;
    if (symbols.capacity() > kKept) {
      symbols = {};
      heap = {};
    }
  }

  BpeOptions options_;
  std::string file_;
  TokenTable table_;
  TokenTable raw_;  ///< with raw_bytes and ignore_merges: tokens as the bytes they stand for
  MergeTable merges_;
  std::vector<std::string> tokens_;
  std::vector<bool> present_;
  std::size_t size_ = 0;
  bool cut_at_spaces_ = false;  ///< no merge joins a word with the space symbol behind it
  std::uint64_t num_ids_ = 0;
  std::uint32_t unknown_ = kNone;
  std::array<std::uint32_t, 256> byte_symbol_{};
  std::array<std::uint32_t, 256> fallback_{};
  std::array<std::uint32_t, 128> ascii_symbol_{};
};

}  // namespace

bool can_take_raw_bytes(const BpeOptions& options) noexcept { return !options.byte_fallback && options.prefix.empty() && options.suffix.empty(); }

std::unique_ptr<TokenModel> make_bpe(BpeOptions options, const std::filesystem::path& file) {
  return std::make_unique<Bpe>(std::move(options), file);
}

}  // namespace weft::model
