#include "model/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/text.h"
#include "checkpoint/gguf_header.h"
#include "checkpoint/json.h"
#include "model/bpe_model.h"
#include "model/gpt_split.h"
#include "model/sentencepiece_file.h"
#include "model/tokenizer.h"
#include "model/tokenizer_impl.h"
#include "model/unicode_text.h"
#include "model/word_models.h"
#include "weft/error.h"

namespace weft::model {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct KnownSplit {
  std::string_view name;
  std::string_view regex;  ///< empty: GPT-2's
  bool ignore_merges;
  bool nfc;
};
// By the names that llama.cpp's converter writes.
constexpr std::array<KnownSplit, 17> kSplits = {{
    {"default", "", false, false},
    {"gpt-2", "", false, false},
    {"gpt2", "", false, false},
    {"olmo", "", false, false},
    {"dbrx", kLlama3Regex, false, false},
    {"smaug-bpe", kLlama3Regex, false, false},
    {"llama-bpe", kLlama3Regex, true, false},
    {"llama3", kLlama3Regex, true, false},
    {"llama-v3", kLlama3Regex, true, false},
    {"falcon3", kLlama3Regex, true, false},
    {"qwen2", kQwen2Regex, false, true},
    {"deepseek-r1-qwen", kQwen2Regex, false, true},
    {"stablelm2", kQwen2Regex, false, false},
    {"hunyuan", kQwen2Regex, false, false},
    {"megrez", kQwen2Regex, false, false},
    {"mpt", "", false, false},
    {"jina-v2-code", "", false, false},
}};

[[noreturn]] void refuse(ErrorCode code, const std::string& what, const fs::path& file, const std::string& key) {
  throw Error(code, what, {.file = file.string(), .key = key});
}

bool is_token_of_text(std::int64_t type) { return type == 3 || type == 4 || type == 2; }

/// Control and user-defined tokens are searched in the text.
std::vector<AddedToken> added_tokens(const GgufTokens& vocabulary) {
  std::vector<AddedToken> added;
  for (std::size_t id = 0; id < vocabulary.types.size(); ++id) {
    if (!is_token_of_text(vocabulary.types[id]) || vocabulary.tokens[id].empty()) continue;
    AddedToken token;
    token.id = static_cast<std::uint32_t>(id);
    token.content = vocabulary.tokens[id];
    token.special = vocabulary.types[id] != 4;
    added.push_back(std::move(token));
  }
  return added;
}

std::vector<Vocabulary::Entry> entries_of(const GgufTokens& vocabulary) {
  std::vector<Vocabulary::Entry> entries;
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) entries.push_back({vocabulary.tokens[id], static_cast<std::uint32_t>(id)});
  return entries;
}

Json stage(const char* type) { return Json(Json::Object{{"type", Json(type)}, {"add_prefix_space", Json(false)}, {"use_regex", Json(false)}}); }

std::unique_ptr<Tokenizer::Impl> byte_level(const GgufTokens& vocabulary, const fs::path& file) {
  const auto split = std::find_if(kSplits.begin(), kSplits.end(), [&](const KnownSplit& known) { return known.name == vocabulary.pre; });
  if (split == kSplits.end() && !vocabulary.pre.empty())
    throw Error(ErrorCode::unsupported, "the split '" + printable(vocabulary.pre) + "' of this vocabulary is not known",
                {.file = file.string(), .key = "tokenizer.ggml.pre"}, "use the tokenizer.json of the model that the file was made from");
  auto impl = std::make_unique<Tokenizer::Impl>();
  impl->kind = "BPE";
  impl->vocabulary = Vocabulary(TokenizerKind::bpe, entries_of(vocabulary), added_tokens(vocabulary), file);
  BpeOptions options;
  options.vocabulary = entries_of(vocabulary);
  for (const std::string& merge : vocabulary.merges) {
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string::npos || merge.find(' ', space + 1) != std::string::npos)
      refuse(ErrorCode::corrupt, "the merge '" + printable(merge) + "' is not two tokens with one space between them", file, "tokenizer.ggml.merges");
    options.merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  options.raw_bytes = true;
  const std::string_view regex = split == kSplits.end() ? std::string_view() : split->regex;
  options.ignore_merges = split != kSplits.end() && split->ignore_merges;
  if (split != kSplits.end() && split->nfc) impl->normalizer = make_normalizer(Json(Json::Object{{"type", Json("NFC")}}), file, "");
  const Json pre(Json::Object{
      {"type", Json("Sequence")},
      {"pretokenizers", Json(Json::Array{Json(Json::Object{{"type", Json("Split")},
                                                           {"pattern", Json(Json::Object{{"Regex", Json(regex.empty() ? gpt2_regex() : regex)}})},
                                                           {"behavior", Json("Isolated")}}),
                                         stage("ByteLevel")})}});
  impl->pre_tokenizer = make_pre_tokenizer(pre, ByteMapping::left_to_model, file, "tokenizer.ggml.pre").stage;
  impl->decoder = make_decoder(stage("ByteLevel"), file, "");
  impl->model = make_bpe(std::move(options), file);
  impl->find_added_tokens();
  return impl;
}

SentencePieceFile pieces_of(const GgufTokens& vocabulary, SentencePieceFile::Kind kind, const fs::path& file) {
  SentencePieceFile pieces;
  pieces.kind = kind;
  std::size_t unknown = 0;
  std::size_t num_bytes = 0;
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::int64_t type = vocabulary.types.empty() ? 1 : vocabulary.types[id];
    const float score = vocabulary.scores.empty() ? 0 : vocabulary.scores[id];
    if (type < 1 || type > 6)
      refuse(ErrorCode::corrupt, "token " + std::to_string(id) + " has type " + std::to_string(type), file, "tokenizer.ggml.token_type");
    if (!std::isfinite(score))
      refuse(ErrorCode::corrupt, "token " + std::to_string(id) + " has a score that is no number", file, "tokenizer.ggml.scores");
    pieces.pieces.push_back({vocabulary.tokens[id], score, static_cast<PieceType>(type)});
    unknown += type == 2 ? 1 : 0;
    num_bytes += type == 6 ? 1 : 0;
  }
  if (unknown == 0 && vocabulary.unknown && *vocabulary.unknown < pieces.pieces.size()) {
    pieces.pieces[*vocabulary.unknown].type = PieceType::unknown;
    unknown = 1;
  }
  if (unknown != 1)
    refuse(ErrorCode::corrupt, std::to_string(unknown) + " tokens for unknown text; one is needed", file, "tokenizer.ggml.token_type");
  pieces.byte_fallback = num_bytes == 256;
  const auto id = [](const std::optional<std::uint64_t>& value) {
    return value ? static_cast<std::int64_t>(std::min<std::uint64_t>(*value, INT32_MAX)) : -1;
  };
  pieces.bos_id = id(vocabulary.bos);
  pieces.eos_id = id(vocabulary.eos);
  pieces.pad_id = id(vocabulary.padding);
  pieces.charsmap = vocabulary.charsmap;
  pieces.add_dummy_prefix = vocabulary.add_space_prefix.value_or(true);
  pieces.remove_extra_whitespaces = vocabulary.remove_extra_whitespaces.value_or(kind == SentencePieceFile::Kind::unigram);
  return pieces;
}

std::unique_ptr<Tokenizer::Impl> wordpiece(GgufTokens& vocabulary, const fs::path& file) {
  // Stored the other way round: what begins a word has the space symbol, what continues one has nothing.
  constexpr std::string_view kSpace = "\u2581";
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    std::string& token = vocabulary.tokens[id];
    if (!vocabulary.types.empty() && is_token_of_text(vocabulary.types[id])) continue;
    if (token.starts_with(kSpace))
      token.erase(0, kSpace.size());
    else if (!(token.starts_with('[') && token.ends_with(']')))
      token.insert(0, "##");
  }
  auto impl = std::make_unique<Tokenizer::Impl>();
  impl->kind = "WordPiece";
  impl->vocabulary = Vocabulary(TokenizerKind::wordpiece, entries_of(vocabulary), added_tokens(vocabulary), file);
  impl->normalizer = make_normalizer(Json(Json::Object{{"type", Json("BertNormalizer")}}), file, "");
  impl->pre_tokenizer = make_pre_tokenizer(Json(Json::Object{{"type", Json("BertPreTokenizer")}}), ByteMapping::characters, file, "").stage;
  impl->decoder = make_decoder(Json(Json::Object{{"type", Json("WordPiece")}}), file, "");
  WordPieceOptions options;
  options.vocabulary = entries_of(vocabulary);
  if (vocabulary.unknown && *vocabulary.unknown < vocabulary.tokens.size()) options.unknown = vocabulary.tokens[*vocabulary.unknown];
  impl->model = make_wordpiece(std::move(options), file);
  impl->find_added_tokens();
  return impl;
}

}  // namespace

GgufTokens read_gguf_tokens(const GgufMetadata& metadata, const fs::path& file) {
  GgufTokens result;
  const auto key = [](const char* name) { return std::string("tokenizer.ggml.") + name; };
  const auto kind = metadata.text(key("model"));
  const GgufValue* tokens = metadata.find(key("tokens"));
  if (!kind || tokens == nullptr)
    throw Error(ErrorCode::not_found, "the file has no tokenizer", {.file = file.string(), .key = key("model")},
                "use the model's folder with tokenizer.json");
  result.kind = *kind;
  result.pre = metadata.text(key("pre")).value_or("");
  result.tokens = tokens->string_list();
  for (const std::string& token : result.tokens)
    if (!is_valid_utf8(token)) refuse(ErrorCode::corrupt, "the token '" + printable(token) + "' is not UTF-8", file, key("tokens"));
  if (const GgufValue* scores = metadata.find(key("scores"))) result.scores = scores->float_list();
  if (const GgufValue* types = metadata.find(key("token_type"))) result.types = types->integer_list();
  if (const GgufValue* merges = metadata.find(key("merges"))) result.merges = merges->string_list();
  const auto check = [&](std::size_t size, const char* name) {
    if (size != 0 && size != result.tokens.size())
      refuse(ErrorCode::corrupt, std::to_string(size) + " entries for " + std::to_string(result.tokens.size()) + " tokens", file, key(name));
  };
  check(result.scores.size(), "scores");
  check(result.types.size(), "token_type");
  result.bos = metadata.unsigned_integer(key("bos_token_id"));
  result.eos = metadata.unsigned_integer(key("eos_token_id"));
  result.unknown = metadata.unsigned_integer(key("unknown_token_id"));
  result.separator = metadata.unsigned_integer(key("seperator_token_id"));
  result.padding = metadata.unsigned_integer(key("padding_token_id"));
  result.mask = metadata.unsigned_integer(key("mask_token_id"));
  result.add_bos = metadata.flag(key("add_bos_token"));
  result.add_eos = metadata.flag(key("add_eos_token"));
  result.add_space_prefix = metadata.flag(key("add_space_prefix"));
  result.remove_extra_whitespaces = metadata.flag(key("remove_extra_whitespaces"));
  result.chat_template = metadata.text("tokenizer.chat_template");
  if (const GgufValue* map = metadata.find(key("precompiled_charsmap")))
    for (const std::int64_t byte : map->integer_list()) result.charsmap.push_back(static_cast<char>(byte));
  return result;
}

Tokenizer make_gguf_tokenizer(GgufTokens vocabulary, const fs::path& file) {
  std::unique_ptr<Tokenizer::Impl> impl;
  bool bos_by_default = false;
  bool eos_by_default = false;
  if (vocabulary.kind == "gpt2") {
    impl = byte_level(vocabulary, file);
  } else if (vocabulary.kind == "llama") {
    impl = impl_from_pieces(pieces_of(vocabulary, SentencePieceFile::Kind::bpe, file), nullptr, file);
    bos_by_default = true;
  } else if (vocabulary.kind == "t5") {
    impl = impl_from_pieces(pieces_of(vocabulary, SentencePieceFile::Kind::unigram, file), nullptr, file);
    eos_by_default = true;
  } else if (vocabulary.kind == "bert") {
    impl = wordpiece(vocabulary, file);
    bos_by_default = eos_by_default = true;
  } else {
    throw Error(ErrorCode::unsupported, "a vocabulary of kind '" + printable(vocabulary.kind) + "'; known are gpt2, llama, bert and t5",
                {.file = file.string(), .key = "tokenizer.ggml.model"});
  }
  const bool sentencepiece = vocabulary.kind == "llama" || vocabulary.kind == "t5";
  if (sentencepiece) {
    // Unlike SentencePiece itself, readers of GGUF find control tokens in the text.
    impl->vocabulary = Vocabulary(TokenizerKind::sentencepiece, entries_of(vocabulary), added_tokens(vocabulary), file);
    std::vector<AddedToken> raw(impl->vocabulary.added().begin(), impl->vocabulary.added().end());
    std::vector<std::string> patterns;
    for (const AddedToken& token : raw) patterns.push_back(token.special ? token.content : std::string());
    impl->raw_tokens = AddedTokenFinder(std::move(raw), patterns);
  }
  impl->named.clear();
  const auto name = [&](const char* key, const std::optional<std::uint64_t>& id) {
    if (!id) return;
    if (*id >= vocabulary.tokens.size())
      refuse(ErrorCode::corrupt,
             std::string(key) + " is " + std::to_string(*id) + ", but there are " + std::to_string(vocabulary.tokens.size()) + " tokens", file,
             "tokenizer.ggml");
    impl->named.push_back({key, vocabulary.tokens[*id], static_cast<std::uint32_t>(*id)});
  };
  name("bos_token", vocabulary.bos);
  name("eos_token", vocabulary.eos);
  name("unk_token", vocabulary.unknown);
  name("sep_token", vocabulary.separator);
  name("pad_token", vocabulary.padding);
  name("mask_token", vocabulary.mask);
  std::vector<std::pair<std::uint32_t, std::string>> before;
  std::vector<std::pair<std::uint32_t, std::string>> behind;
  const auto& last = vocabulary.kind == "bert" && vocabulary.separator ? vocabulary.separator : vocabulary.eos;
  if (vocabulary.bos && vocabulary.add_bos.value_or(bos_by_default))
    before.emplace_back(static_cast<std::uint32_t>(*vocabulary.bos), vocabulary.tokens[*vocabulary.bos]);
  if (last && vocabulary.add_eos.value_or(eos_by_default)) behind.emplace_back(static_cast<std::uint32_t>(*last), vocabulary.tokens[*last]);
  impl->post_processor = before.empty() && behind.empty() ? nullptr : make_affixes(std::move(before), std::move(behind));
  impl->chat_template = vocabulary.chat_template;
  return Tokenizer(std::move(impl));
}

}  // namespace weft::model
