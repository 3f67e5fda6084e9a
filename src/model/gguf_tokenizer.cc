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

[[noreturn]] void refuse(ErrorCode code, const std::string& what, const fs::path& file, const std::string& key) {
  throw Error(code, what, {.file = file.string(), .key = key});
}

bool is_token_of_text(std::int32_t type) {
  return type == GgufVocabulary::control || type == GgufVocabulary::user_defined || type == GgufVocabulary::unknown;
}

/// Control and user-defined tokens are searched in the text.
std::vector<AddedToken> added_tokens(const GgufVocabulary& vocabulary) {
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

std::vector<Vocabulary::Entry> entries_of(const GgufVocabulary& vocabulary) {
  std::vector<Vocabulary::Entry> entries;
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) entries.push_back({vocabulary.tokens[id], static_cast<std::uint32_t>(id)});
  return entries;
}

Json stage(const char* type) { return Json(Json::Object{{"type", Json(type)}, {"add_prefix_space", Json(false)}, {"use_regex", Json(false)}}); }

std::unique_ptr<Tokenizer::Impl> byte_level(const GgufVocabulary& vocabulary, const fs::path& file) {
  const GgufSplit* split = find_gguf_split(vocabulary.pre.empty() ? "default" : vocabulary.pre);
  if (split == nullptr)
    throw Error(ErrorCode::unsupported, "the split '" + printable(vocabulary.pre) + "' of this vocabulary is not known",
                {.file = file.string(), .key = "tokenizer.ggml.pre"}, "use the tokenizer.json of the model that the file was made from");
  auto impl = std::make_unique<Tokenizer::Impl>();
  impl->kind = "BPE";
  impl->vocabulary = Vocabulary(TokenizerKind::bpe, entries_of(vocabulary), added_tokens(vocabulary), file);
  BpeOptions options;
  options.vocabulary = entries_of(vocabulary);
  for (const std::string& merge : vocabulary.merges) {
    const std::size_t space = merge.find(' ', 1);
    options.merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  options.raw_bytes = true;
  options.ignore_merges = split->ignores_merges;
  if (split->nfc) impl->normalizer = make_normalizer(Json(Json::Object{{"type", Json("NFC")}}), file, "");
  Json::Array stages;
  if (split->digits) stages.push_back(Json(Json::Object{{"type", Json("Digits")}, {"individual_digits", Json(true)}}));
  stages.push_back(Json(Json::Object{{"type", Json("Split")},
                                     {"pattern", Json(Json::Object{{"Regex", Json(split->pattern.empty() ? gpt2_regex() : split->pattern)}})},
                                     {"behavior", Json("Isolated")}}));
  stages.push_back(stage("ByteLevel"));
  const Json pre(Json::Object{{"type", Json("Sequence")}, {"pretokenizers", Json(std::move(stages))}});
  impl->pre_tokenizer = make_pre_tokenizer(pre, ByteMapping::left_to_model, file, "tokenizer.ggml.pre").stage;
  impl->decoder = make_decoder(stage("ByteLevel"), file, "");
  impl->model = make_bpe(std::move(options), file);
  impl->find_added_tokens();
  return impl;
}

SentencePieceFile pieces_of(const GgufVocabulary& vocabulary, SentencePieceFile::Kind kind, const fs::path& file) {
  SentencePieceFile pieces;
  pieces.kind = kind;
  std::size_t unknown = 0;
  std::size_t num_bytes = 0;
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::int32_t type = vocabulary.type_of(id);
    const float score = vocabulary.scores.empty() ? 0 : vocabulary.scores[id];
    if (!std::isfinite(score))
      refuse(ErrorCode::corrupt, "token " + std::to_string(id) + " has a score that is no number", file, "tokenizer.ggml.scores");
    pieces.pieces.push_back({vocabulary.tokens[id], score, static_cast<PieceType>(type)});
    unknown += type == 2 ? 1 : 0;
    num_bytes += type == 6 ? 1 : 0;
  }
  if (const auto named = vocabulary.special("unknown"); unknown == 0 && named) {
    pieces.pieces[*named].type = PieceType::unknown;
    unknown = 1;
  }
  if (unknown != 1)
    refuse(ErrorCode::corrupt, std::to_string(unknown) + " tokens for unknown text; one is needed", file, "tokenizer.ggml.token_type");
  pieces.byte_fallback = num_bytes == 256;
  const auto id = [&vocabulary](std::string_view name) {
    const auto value = vocabulary.special(name);
    return value ? static_cast<std::int64_t>(*value) : -1;
  };
  pieces.bos_id = id("bos");
  pieces.eos_id = id("eos");
  pieces.pad_id = id("padding");
  pieces.charsmap = vocabulary.precompiled_charsmap;
  pieces.add_dummy_prefix = vocabulary.add_space_prefix.value_or(true);
  pieces.remove_extra_whitespaces = vocabulary.remove_extra_whitespaces.value_or(kind == SentencePieceFile::Kind::unigram);
  return pieces;
}

std::unique_ptr<Tokenizer::Impl> wordpiece(GgufVocabulary& vocabulary, const fs::path& file) {
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
  if (const auto unknown = vocabulary.special("unknown")) options.unknown = vocabulary.tokens[*unknown];
  impl->model = make_wordpiece(std::move(options), file);
  impl->find_added_tokens();
  return impl;
}

}  // namespace

Tokenizer make_gguf_tokenizer(GgufVocabulary vocabulary, const fs::path& file) {
  std::unique_ptr<Tokenizer::Impl> impl;
  bool bos_by_default = false;
  bool eos_by_default = false;
  if (vocabulary.model == "gpt2") {
    impl = byte_level(vocabulary, file);
  } else if (vocabulary.model == "llama") {
    impl = impl_from_pieces(pieces_of(vocabulary, SentencePieceFile::Kind::bpe, file), nullptr, file);
    bos_by_default = true;
  } else if (vocabulary.model == "t5") {
    impl = impl_from_pieces(pieces_of(vocabulary, SentencePieceFile::Kind::unigram, file), nullptr, file);
    eos_by_default = true;
  } else if (vocabulary.model == "bert") {
    impl = wordpiece(vocabulary, file);
    bos_by_default = eos_by_default = true;
  } else {
    throw Error(ErrorCode::unsupported, "a vocabulary of kind '" + printable(vocabulary.model) + "'; known are gpt2, llama, bert and t5",
                {.file = file.string(), .key = "tokenizer.ggml.model"});
  }
  const bool sentencepiece = vocabulary.model == "llama" || vocabulary.model == "t5";
  if (sentencepiece) {
    // Unlike SentencePiece itself, readers of GGUF find control tokens in the text.
    impl->vocabulary = Vocabulary(TokenizerKind::sentencepiece, entries_of(vocabulary), added_tokens(vocabulary), file);
    std::vector<AddedToken> raw(impl->vocabulary.added().begin(), impl->vocabulary.added().end());
    std::vector<std::string> patterns;
    for (const AddedToken& token : raw) patterns.push_back(token.special ? token.content : std::string());
    impl->raw_tokens = AddedTokenFinder(std::move(raw), patterns);
  }
  impl->named.clear();
  for (const auto& [gguf, own] : {std::pair("bos", "bos_token"), std::pair("eos", "eos_token"), std::pair("unknown", "unk_token"),
                                  std::pair("seperator", "sep_token"), std::pair("padding", "pad_token"), std::pair("mask", "mask_token")})
    if (const auto id = vocabulary.special(gguf)) impl->named.push_back({own, vocabulary.tokens[*id], *id});
  std::vector<std::pair<std::uint32_t, std::string>> before;
  std::vector<std::pair<std::uint32_t, std::string>> behind;
  const auto bos = vocabulary.special("bos"), separator = vocabulary.special("seperator");
  const auto last = vocabulary.model == "bert" && separator ? separator : vocabulary.special("eos");
  if (bos && vocabulary.add_bos.value_or(bos_by_default)) before.emplace_back(*bos, vocabulary.tokens[*bos]);
  if (last && vocabulary.add_eos.value_or(eos_by_default)) behind.emplace_back(*last, vocabulary.tokens[*last]);
  impl->post_processor = before.empty() && behind.empty() ? nullptr : make_affixes(std::move(before), std::move(behind));
  impl->chat_template = vocabulary.chat_template;
  return Tokenizer(std::move(impl));
}

}  // namespace weft::model
