#include "model/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/json.h"
#include "model/tokenizer_impl.h"
#include "model/unicode_text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

/// Bytes of a text -> its code points, for offsets; nothing is stored for ASCII.
class CodePointIndex {
 public:
  explicit CodePointIndex(std::string_view text) : size_(text.size()) {
    if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) return;
    index_.reserve(text.size());
    std::uint32_t count = 0;
    for (std::size_t at = 0; at < text.size(); ++count)
      for (std::uint32_t i = decode_utf8(text.data() + at).size_bytes; i > 0; --i, ++at) index_.push_back(count);
  }
  [[nodiscard]] std::pair<std::uint32_t, std::uint32_t> range(SourceRange bytes) const {
    if (bytes.begin >= size_) return {bytes.begin, bytes.end};  // as the reference leaves it
    if (index_.empty()) return {bytes.begin, bytes.end};
    const std::uint32_t end = bytes.end < size_ ? index_[bytes.end] : bytes.end > 0 ? index_[std::min<std::size_t>(bytes.end, size_) - 1] + 1 : 0;
    return {index_[bytes.begin], end};
  }

 private:
  std::size_t size_;
  std::vector<std::uint32_t> index_;
};

bool word_before(std::string_view text, std::size_t at) { return at > 0 && is_word(decode_utf8_before(text.data() + at).value); }
bool word_behind(std::string_view text, std::size_t at) { return at < text.size() && is_word(decode_utf8(text.data() + at).value); }

Encoding slice(const Encoding& encoding, std::size_t begin, std::size_t end) {
  const auto part = [&](const auto& list) {
    using List = std::decay_t<decltype(list)>;
    if (list.empty()) return List();
    return List(list.begin() + static_cast<std::ptrdiff_t>(begin), list.begin() + static_cast<std::ptrdiff_t>(end));
  };
  return {part(encoding.ids),
          part(encoding.type_ids),
          part(encoding.special),
          part(encoding.attention),
          part(encoding.tokens),
          part(encoding.offsets),
          {}};
}

[[noreturn]] void refuse_truncation(const std::string& what, const std::string& advice) {
  throw Error(ErrorCode::invalid_argument, what, {.key = "max_length"}, advice);
}

void truncate(std::vector<Encoding>& parts, const Truncation& truncation, std::size_t num_added) {
  if (truncation.max_length < num_added)
    refuse_truncation(
        "a length of " + std::to_string(truncation.max_length) + " has no room for the " + std::to_string(num_added) + " special tokens",
        "give a larger length, or add no special tokens");
  const std::size_t room = truncation.max_length - num_added;
  std::size_t total = 0;
  for (const Encoding& part : parts) total += part.ids.size();
  if (total <= room) return;
  const auto cut = [&](Encoding& part, std::size_t length) { cut_windows(part, length, truncation.stride, truncation.direction); };
  if (parts.size() == 1 && truncation.strategy != Truncation::Strategy::only_second) return cut(parts[0], room);
  if (truncation.strategy == Truncation::Strategy::longest_first) {
    const std::size_t a = parts[0].ids.size();
    const std::size_t b = parts[1].ids.size();
    std::size_t shorter = std::min(a, b);
    std::size_t longer = std::max(a, b);
    longer = shorter > room ? shorter : std::max(shorter, room - shorter);
    if (shorter + longer > room) {
      shorter = room / 2;
      longer = shorter + room % 2;
    }
    cut(parts[0], a > b ? longer : shorter);
    cut(parts[1], a > b ? shorter : longer);
    return;
  }
  const bool second = truncation.strategy == Truncation::Strategy::only_second;
  if (second && parts.size() == 1) refuse_truncation("only the second text is to be cut, but there is one text", "give a pair, or another strategy");
  Encoding& part = parts[second ? 1 : 0];
  const std::size_t removed = total - room;
  if (part.ids.size() <= removed)
    refuse_truncation(
        "the text to be cut has " + std::to_string(part.ids.size()) + " tokens, of which " + std::to_string(removed) + " would have to go",
        "give a larger length, or cut both texts");
  cut(part, part.ids.size() - removed);
}

std::string token_text(const Json* value) {
  if (value == nullptr) return {};
  if (const std::string* text = value->string()) return *text;
  const Json* content = value->find("content");
  return content != nullptr && content->string() != nullptr ? *content->string() : std::string();
}

}  // namespace

void cut_windows(Encoding& encoding, std::size_t max_length, std::size_t stride, Truncation::Direction direction) {
  const std::size_t length = encoding.ids.size();
  if (max_length >= length) return;
  if (max_length == 0) {
    Encoding whole = std::move(encoding);
    encoding = {};
    encoding.overflowing.push_back(std::move(whole));
    return;
  }
  if (stride >= max_length)
    refuse_truncation("a stride of " + std::to_string(stride) + " is not less than the " + std::to_string(max_length) + " tokens of a window",
                      "the window is the length without special tokens");
  const std::size_t step = max_length - stride;
  std::vector<std::pair<std::size_t, std::size_t>> windows;
  if (direction == Truncation::Direction::right) {
    for (std::size_t begin = 0; begin < length; begin += step) {
      const std::size_t end = std::min(begin + max_length, length);
      windows.emplace_back(begin, end);
      if (end == length) break;
    }
  } else {
    for (std::size_t end = length; end > 0; end = end > step ? end - step : 0) {
      const std::size_t begin = end < max_length ? 0 : end - max_length;
      windows.emplace_back(begin, end);
      if (begin == 0) break;
    }
  }
  Encoding whole = std::move(encoding);
  encoding = slice(whole, windows.front().first, windows.front().second);
  for (std::size_t i = 1; i < windows.size(); ++i) encoding.overflowing.push_back(slice(whole, windows[i].first, windows[i].second));
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& patterns) : tokens_(std::move(tokens)) {
  std::vector<std::pair<std::string_view, std::uint32_t>> entries;
  for (std::size_t i = tokens_.size(); i > 0; --i)  // of equal patterns the first counts
    if (!patterns[i - 1].empty()) entries.emplace_back(patterns[i - 1], static_cast<std::uint32_t>(i - 1));
  trie_ = ByteTrie(std::move(entries));
}

void AddedTokenFinder::cut(std::string_view text, bool recognise_special, std::vector<Part>& parts) const {
  if (text.empty() || trie_.empty()) {
    parts.push_back({0, text.size(), nullptr});
    return;
  }
  std::size_t last = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (!trie_.may_begin(static_cast<unsigned char>(text[at]))) {
      ++at;
      continue;
    }
    std::size_t size = 0;
    const AddedToken* token = nullptr;
    trie_.prefixes(text.substr(at), [&](std::size_t length, std::uint32_t which) {
      size = length;
      token = &tokens_[which];
      return true;
    });
    if (token == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    std::size_t end = at + size;
    at = end;
    if (token->special && !recognise_special) continue;
    if (token->single_word && (word_before(text, begin) || word_behind(text, end))) continue;
    if (token->lstrip) {
      while (begin > 0) {
        const CodePoint c = decode_utf8_before(text.data() + begin);
        if (!is_whitespace(c.value)) break;
        begin -= c.size_bytes;
      }
      begin = std::max(begin, last);
    }
    if (token->rstrip) {
      while (end < text.size()) {
        const CodePoint c = decode_utf8(text.data() + end);
        if (!is_whitespace(c.value)) break;
        end += c.size_bytes;
      }
    }
    if (last < begin) parts.push_back({last, begin, nullptr});
    parts.push_back({begin, end, token});
    last = end;
  }
  if (last != text.size()) parts.push_back({last, text.size(), nullptr});
}

void Tokenizer::Impl::find_added_tokens() {
  std::vector<AddedToken> raw;
  std::vector<AddedToken> normalized;
  for (const AddedToken& token : vocabulary.added()) (token.normalized ? normalized : raw).push_back(token);
  std::vector<std::string> patterns;
  for (const AddedToken& token : raw) patterns.push_back(token.content);
  raw_tokens = AddedTokenFinder(std::move(raw), patterns);
  patterns.clear();
  for (const AddedToken& token : normalized) {
    AlignedText text(token.content, 0, Tracking::off);
    if (normalizer) normalizer->apply(text);
    patterns.push_back(text.text());
  }
  normalized_tokens = AddedTokenFinder(std::move(normalized), patterns);
}

void Tokenizer::Impl::name_tokens(const Json* config, const Json* map) {
  constexpr std::array<std::string_view, 7> kNames = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
  for (const std::string_view name : kNames) {
    std::string text = token_text(config == nullptr ? nullptr : config->find(name));
    if (text.empty()) text = token_text(map == nullptr ? nullptr : map->find(name));
    const bool known = std::any_of(named.begin(), named.end(), [&](const NamedToken& token) { return token.name == name; });
    if (!text.empty() && !known) named.push_back({std::string(name), text, vocabulary.find(text)});
  }
}

std::unique_ptr<ModelScratch> Tokenizer::Impl::take_scratch() const {
  {
    const std::lock_guard lock(mutex_);
    if (!pool_.empty()) {
      auto scratch = std::move(pool_.back());
      pool_.pop_back();
      return scratch;
    }
  }
  return model->scratch();
}

void Tokenizer::Impl::give_scratch(std::unique_ptr<ModelScratch> scratch) const {
  const std::lock_guard lock(mutex_);
  pool_.push_back(std::move(scratch));
}

Encoding Tokenizer::Impl::encode_one(std::string_view given, std::uint32_t type_id, const EncodeOptions& options) const {
  std::string repaired;
  std::string_view text = given;
  if (!is_valid_utf8(text)) text = repaired = with_replacement_characters(text);
  if (text.size() >= UINT32_MAX)
    throw Error(ErrorCode::invalid_argument, "a text of " + format_size(text.size()) + "; at most 4 GiB can be tokenized at once");

  // Trimmed offsets depend on the tokens' texts.
  const bool want_tokens = options.tokens || options.offsets;
  const Tracking tracking = options.offsets || (normalizer && pre_tokenizer) ? Tracking::on : Tracking::off;
  Encoding result;
  std::vector<SourceRange> sources;
  std::unique_ptr<ModelScratch> scratch = take_scratch();
  std::vector<PieceToken> tokens;
  const auto add_one = [&](const AddedToken& token, std::string_view matched, SourceRange source) {
    result.ids.push_back(token.id);
    if (want_tokens) result.tokens.emplace_back(matched);
    if (options.offsets) sources.push_back(source);
  };
  const auto add_text = [&](const TextPiece& whole) {
    TextPieces pieces;
    if (!whole.text.empty()) pieces.pieces.push_back(whole);
    if (pre_tokenizer) pre_tokenizer->apply(pieces);
    for (const TextPiece& piece : pieces.pieces) {
      tokens.clear();
      model->tokenize(piece.text, tokens, *scratch);
      for (const PieceToken& token : tokens) {
        result.ids.push_back(token.id);
        if (want_tokens) {
          const std::string* known = token.own_text ? nullptr : vocabulary.token(token.id);
          if (known != nullptr)
            result.tokens.push_back(*known);
          else
            result.tokens.emplace_back(piece.text.substr(token.begin, token.end - token.begin));
        }
        if (!options.offsets) continue;
        const std::size_t end = std::min<std::size_t>(token.end, piece.text.size());
        if (token.begin < end)
          sources.push_back({piece.source[token.begin].begin, piece.source[end - 1].end});
        else
          sources.push_back({piece.base + token.begin, piece.base + token.end});
      }
    }
  };
  std::vector<AddedTokenFinder::Part> raw;
  std::vector<AddedTokenFinder::Part> normalized;
  raw_tokens.cut(text, options.recognise_special_tokens, raw);
  for (const auto& part : raw) {
    const std::string_view segment = text.substr(part.begin, part.end - part.begin);
    const auto base = static_cast<std::uint32_t>(part.begin);
    if (part.token != nullptr) {
      add_one(*part.token, segment, {base, static_cast<std::uint32_t>(part.end)});
      continue;
    }
    std::optional<AlignedText> rewritten;
    TextPiece whole{segment, nullptr, base};
    if (normalizer || tracking == Tracking::on) {
      rewritten.emplace(segment, base, tracking);
      if (normalizer) normalizer->apply(*rewritten);
      whole = rewritten->piece();
    }
    if (normalized_tokens.empty()) {
      add_text(sub_piece(whole, 0, whole.text.size()));
      continue;
    }
    normalized.clear();
    normalized_tokens.cut(whole.text, options.recognise_special_tokens, normalized);
    for (const auto& inner : normalized) {
      const TextPiece piece = sub_piece(whole, inner.begin, inner.end);
      if (inner.token == nullptr) {
        add_text(piece);
      } else {
        SourceRange source{base, base};
        if (piece.source != nullptr && !piece.text.empty()) source = {piece.source[0].begin, piece.source[piece.text.size() - 1].end};
        add_one(*inner.token, piece.text, source);
      }
    }
  }
  give_scratch(std::move(scratch));
  result.type_ids.assign(result.ids.size(), type_id);
  result.special.assign(result.ids.size(), 0);
  result.attention.assign(result.ids.size(), 1);
  if (options.offsets) {
    const CodePointIndex index(text);
    result.offsets.reserve(sources.size());
    for (const SourceRange& source : sources) result.offsets.push_back(index.range(source));
  }
  return result;
}

Encoding Tokenizer::Impl::encode(std::string_view text, const std::string_view* pair, const EncodeOptions& options) const {
  std::vector<Encoding> parts;
  parts.push_back(encode_one(text, 0, options));
  if (pair != nullptr) parts.push_back(encode_one(*pair, 1, options));
  if (options.truncation)
    truncate(parts, *options.truncation, post_processor && options.add_special_tokens ? post_processor->num_added(pair != nullptr) : 0);
  if (post_processor) post_processor->apply(parts, options.add_special_tokens);
  Encoding result;
  bool first = true;
  for (Encoding& part : parts) {
    if (first)
      result = std::move(part);
    else
      join(result, std::move(part));
    first = false;
  }
  if (!options.tokens || !options.offsets) {
    const auto drop = [&](Encoding& encoding) {
      if (!options.tokens) encoding.tokens.clear();
      if (!options.offsets) encoding.offsets.clear();
    };
    drop(result);
    for (Encoding& window : result.overflowing) drop(window);
  }
  if (options.padding) Tokenizer::pad(std::span(&result, 1), *options.padding);
  return result;
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Encoding Tokenizer::encode(std::string_view text, const EncodeOptions& options) const { return impl_->encode(text, nullptr, options); }

Encoding Tokenizer::encode_pair(std::string_view text, std::string_view pair, const EncodeOptions& options) const {
  return impl_->encode(text, &pair, options);
}

std::vector<std::uint32_t> Tokenizer::ids(std::string_view text, bool add_special_tokens) const {
  return encode(text, {.add_special_tokens = add_special_tokens}).ids;
}

void Tokenizer::pad(std::span<Encoding> encodings, const Padding& padding) {
  std::size_t length = padding.length.value_or(0);
  if (!padding.length)
    for (const Encoding& encoding : encodings) length = std::max(length, encoding.ids.size());
  if (padding.multiple_of > 0 && length % padding.multiple_of != 0) length += padding.multiple_of - length % padding.multiple_of;
  constexpr std::size_t kMaxPadding = std::size_t{1} << 28;
  if (length > kMaxPadding) throw Error(ErrorCode::invalid_argument, "padding to " + std::to_string(length) + " tokens", {.key = "padding"});
  const auto fill = [&](Encoding& encoding) {
    if (encoding.ids.size() >= length) return;
    const std::size_t count = length - encoding.ids.size();
    const bool left = padding.direction == Padding::Direction::left;
    const auto put = [&](auto& list, const auto& value, bool used) {
      if (used) list.insert(left ? list.begin() : list.end(), count, value);
    };
    const bool tokens = !encoding.tokens.empty();
    const bool offsets = !encoding.offsets.empty();
    put(encoding.ids, padding.id, true);
    put(encoding.type_ids, padding.type_id, true);
    put(encoding.special, std::uint8_t{1}, true);
    put(encoding.attention, std::uint8_t{0}, true);
    put(encoding.tokens, padding.token, tokens);
    put(encoding.offsets, std::pair<std::uint32_t, std::uint32_t>(0, 0), offsets);
  };
  for (Encoding& encoding : encodings) {
    for (Encoding& window : encoding.overflowing) fill(window);
    fill(encoding);
  }
}

std::string Tokenizer::decode(std::span<const std::uint32_t> ids, bool skip_special_tokens) const {
  std::vector<std::uint32_t> kept;
  if (impl_->id_decoder) {
    if (!skip_special_tokens) return impl_->id_decoder->decode(ids);
    for (const std::uint32_t id : ids)
      if (!is_special(id)) kept.push_back(id);
    return impl_->id_decoder->decode(kept);
  }
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const std::uint32_t id : ids) {
    const std::string* token = impl_->vocabulary.token(id);
    if (token == nullptr || (skip_special_tokens && is_special(id))) continue;
    tokens.push_back(*token);
  }
  if (impl_->decoder) impl_->decoder->apply(tokens);
  std::string text;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && !impl_->decoder) text += ' ';
    text += tokens[i];
  }
  return text;
}

std::size_t Tokenizer::vocab_size() const noexcept { return impl_->vocabulary.size(); }
std::uint64_t Tokenizer::num_ids() const noexcept { return impl_->vocabulary.num_ids(); }
std::optional<std::uint32_t> Tokenizer::find(std::string_view token) const { return impl_->vocabulary.find(token); }
const std::string* Tokenizer::token(std::uint32_t id) const { return impl_->vocabulary.token(id); }

bool Tokenizer::is_special(std::uint32_t id) const {
  const std::string* token = impl_->vocabulary.token(id);
  const AddedToken* added = token == nullptr ? nullptr : impl_->vocabulary.find_added(*token);
  return added != nullptr && added->special;
}

std::span<const NamedToken> Tokenizer::named_tokens() const noexcept { return impl_->named; }

std::optional<std::uint32_t> Tokenizer::named_id(std::string_view name) const noexcept {
  for (const NamedToken& token : impl_->named)
    if (token.name == name) return token.id;
  return std::nullopt;
}

const std::optional<Truncation>& Tokenizer::file_truncation() const noexcept { return impl_->truncation; }
const std::optional<Padding>& Tokenizer::file_padding() const noexcept { return impl_->padding; }
const std::string* Tokenizer::chat_template() const noexcept { return impl_->chat_template ? &*impl_->chat_template : nullptr; }
const std::string& Tokenizer::kind() const noexcept { return impl_->kind; }

std::string TokenStream::push(std::uint32_t id) {
  ids_.push_back(id);
  const std::string all = tokenizer_.decode(ids_, skip_special_);
  constexpr std::string_view kReplacement = "\uFFFD";
  // What ends in a replacement character may be half a character; what does not begin as before waits, too.
  if (all.size() <= shown_.size() || all.ends_with(kReplacement) || !all.starts_with(shown_)) return {};
  std::string fresh = all.substr(shown_.size());
  // A few tokens stay as context: the first token of a text is decoded differently from the others.
  constexpr std::size_t kContext = 8;
  if (ids_.size() > 2 * kContext) {
    ids_.erase(ids_.begin(), ids_.end() - kContext);
    shown_ = tokenizer_.decode(ids_, skip_special_);
  } else {
    shown_ = all;
  }
  return fresh;
}

std::string TokenStream::finish() {
  const std::string all = tokenizer_.decode(ids_, skip_special_);
  std::string rest = all.starts_with(shown_) ? all.substr(shown_.size()) : std::string();
  ids_.clear();
  shown_.clear();
  return rest;
}

}  // namespace weft::model
