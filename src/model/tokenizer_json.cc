#include <algorithm>
#include <cmath>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/gguf_header.h"
#include "checkpoint/json.h"
#include "model/bpe_model.h"
#include "model/gguf_tokenizer.h"
#include "model/json_fields.h"
#include "model/tokenizer.h"
#include "model/tokenizer_impl.h"
#include "model/unicode_text.h"
#include "model/vocabulary.h"
#include "model/word_models.h"
#include "weft/error.h"

namespace weft::model {
namespace {

namespace fs = std::filesystem;

/// "a b" or ["a", "b"].
std::vector<BpeOptions::Merge> merges_of(const JsonFields& model) {
  std::vector<BpeOptions::Merge> merges;
  const std::vector<Json>& list = model.list("merges");
  merges.reserve(list.size());
  for (const Json& item : list) {
    if (const Json::Array* pair = item.array();
        pair != nullptr && pair->size() == 2 && (*pair)[0].string() != nullptr && (*pair)[1].string() != nullptr) {
      merges.push_back({*(*pair)[0].string(), *(*pair)[1].string()});
      continue;
    }
    const std::string* text = item.string();
    if (text == nullptr) model.refuse("merges", "holds what is neither a text nor a pair of texts");
    if (text->starts_with("#version")) continue;
    const std::size_t space = text->find(' ');
    if (space == std::string::npos || text->find(' ', space + 1) != std::string::npos)
      model.refuse("merges", "holds '" + printable(*text) + "', which is not two tokens with one space between them");
    merges.push_back({text->substr(0, space), text->substr(space + 1)});
  }
  return merges;
}

/// Lines of a merges.txt.
std::vector<BpeOptions::Merge> merges_of_lines(std::string_view text, const fs::path& file) {
  std::vector<BpeOptions::Merge> merges;
  for (std::size_t line_number = 1; !text.empty(); ++line_number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos || !is_valid_utf8(line))
      throw Error(ErrorCode::corrupt, "line " + std::to_string(line_number) + " is not two tokens with one space between them",
                  {.file = file.string()});
    merges.push_back({std::string(line.substr(0, space)), std::string(line.substr(space + 1))});
  }
  return merges;
}

std::optional<Truncation> truncation_of(const Json* json, const fs::path& file) {
  if (json == nullptr || json->is_null()) return std::nullopt;
  const JsonFields fields(*json, file, "truncation");
  Truncation truncation;
  truncation.max_length = fields.count("max_length", 512);
  truncation.stride = fields.count("stride", 0);
  const std::string direction = fields.text("direction", "Right");
  const std::string strategy = fields.text("strategy", "LongestFirst");
  if (direction == "Left")
    truncation.direction = Truncation::Direction::left;
  else if (direction != "Right")
    fields.refuse_type(direction, "direction");
  if (strategy == "OnlyFirst")
    truncation.strategy = Truncation::Strategy::only_first;
  else if (strategy == "OnlySecond")
    truncation.strategy = Truncation::Strategy::only_second;
  else if (strategy != "LongestFirst")
    fields.refuse_type(strategy, "strategy");
  return truncation;
}

std::optional<Padding> padding_of(const Json* json, const fs::path& file) {
  if (json == nullptr || json->is_null()) return std::nullopt;
  const JsonFields fields(*json, file, "padding");
  Padding padding;
  const Json* strategy = fields.find("strategy");
  const Json* fixed = strategy == nullptr ? nullptr : strategy->find("Fixed");
  if (fixed != nullptr) {
    if (!fixed->unsigned_integer()) fields.refuse("strategy", "has no length");
    padding.length = *fixed->unsigned_integer();
  }
  const std::string direction = fields.text("direction", "Right");
  if (direction == "Left")
    padding.direction = Padding::Direction::left;
  else if (direction != "Right")
    fields.refuse_type(direction, "direction");
  padding.multiple_of = fields.count("pad_to_multiple_of", 0);
  padding.id = static_cast<std::uint32_t>(std::min<std::uint64_t>(fields.count("pad_id", 0), UINT32_MAX));
  padding.type_id = static_cast<std::uint32_t>(std::min<std::uint64_t>(fields.count("pad_type_id", 0), UINT32_MAX));
  padding.token = fields.text("pad_token", "[PAD]");
  return padding;
}

UnigramOptions unigram_of(const JsonFields& model) {
  UnigramOptions options;
  for (const Json& item : model.list("vocab")) {
    const Json::Array* pair = item.array();
    const auto score = pair == nullptr || pair->size() != 2 ? std::nullopt : (*pair)[1].number();
    if (!score || (*pair)[0].string() == nullptr || !std::isfinite(*score)) model.refuse("vocab", "holds what is no pair of a text and a score");
    options.vocabulary.push_back({*(*pair)[0].string(), *score});
  }
  if (model.find("unk_id") != nullptr) options.unknown = static_cast<std::uint32_t>(std::min<std::uint64_t>(model.count("unk_id", 0), UINT32_MAX));
  options.byte_fallback = model.flag("byte_fallback", false);
  return options;
}

/// Of transformers' classes, those whose fast form builds its post-processor anew from the config's flags.
bool class_obeys_flags(const Json* config) {
  const Json* name = config == nullptr ? nullptr : config->find("tokenizer_class");
  if (name == nullptr || name->string() == nullptr) return false;
  const std::string& text = *name->string();
  return text.starts_with("LlamaTokenizer") || text.starts_with("GemmaTokenizer") || text.starts_with("CodeLlamaTokenizer");
}

std::optional<bool> flag(const Json* config, std::string_view name) {
  const Json* value = config == nullptr ? nullptr : config->find(name);
  return value == nullptr ? std::nullopt : value->boolean();
}

void obey_flags(Tokenizer::Impl& impl, const Json* config) {
  const auto bos = flag(config, "add_bos_token");
  const auto eos = flag(config, "add_eos_token");
  if (!class_obeys_flags(config) || (!bos && !eos)) return;
  std::vector<std::pair<std::uint32_t, std::string>> before;
  std::vector<std::pair<std::uint32_t, std::string>> behind;
  for (const NamedToken& token : impl.named) {
    if (token.name == "bos_token" && token.id && bos.value_or(true)) before.emplace_back(*token.id, token.token);
    if (token.name == "eos_token" && token.id && eos.value_or(false)) behind.emplace_back(*token.id, token.token);
  }
  impl.post_processor = make_affixes(std::move(before), std::move(behind));
}

std::unique_ptr<Tokenizer::Impl> impl_from_json(const Json& json, const Json* config, const Json* map, const fs::path& file) {
  auto impl = std::make_unique<Tokenizer::Impl>();
  const JsonFields top(json, file, "");
  if (const std::string version = top.text("version", "1.0"); version != "1.0")
    throw Error(ErrorCode::unsupported, "a tokenizer of version '" + printable(version) + "'; known is 1.0",
                {.file = file.string(), .key = "version"});
  TokenizerEntries entries = read_tokenizer_entries(json, config, file);
  const JsonFields model(*json.find("model"), file, "model");
  impl->vocabulary = Vocabulary(entries.kind, entries.model, entries.added, file);
  impl->kind = to_string(entries.kind);

  const auto section = [&](std::string_view name) -> const Json& {
    static const Json none;
    const Json* value = json.find(name);
    return value == nullptr ? none : *value;
  };
  impl->normalizer = make_normalizer(section("normalizer"), file, "normalizer");
  switch (entries.kind) {
    case TokenizerKind::bpe: {
      BpeOptions options;
      options.vocabulary = std::move(entries.model);
      options.merges = merges_of(model);
      options.unknown = model.optional_text("unk_token");
      options.prefix = model.text("continuing_subword_prefix", "");
      options.suffix = model.text("end_of_word_suffix", "");
      options.fuse_unknown = model.flag("fuse_unk", false);
      options.byte_fallback = model.flag("byte_fallback", false);
      options.ignore_merges = model.flag("ignore_merges", false);
      MadePreTokenizer made = make_pre_tokenizer(
          section("pre_tokenizer"), can_take_raw_bytes(options) ? ByteMapping::left_to_model : ByteMapping::characters, file, "pre_tokenizer");
      options.raw_bytes = made.bytes_left_to_model;
      impl->pre_tokenizer = std::move(made.stage);
      impl->model = make_bpe(std::move(options), file);
      break;
    }
    case TokenizerKind::wordpiece: {
      WordPieceOptions options;
      options.vocabulary = std::move(entries.model);
      options.unknown = model.text("unk_token", "[UNK]");
      options.prefix = model.text("continuing_subword_prefix", "##");
      options.max_characters = model.count("max_input_chars_per_word", 100);
      impl->model = make_wordpiece(std::move(options), file);
      break;
    }
    case TokenizerKind::wordlevel:
      impl->model = make_wordlevel(std::move(entries.model), model.text("unk_token", "<unk>"), file);
      break;
    default:
      impl->model = make_unigram(unigram_of(model), file);
  }
  if (entries.kind != TokenizerKind::bpe)
    impl->pre_tokenizer = make_pre_tokenizer(section("pre_tokenizer"), ByteMapping::characters, file, "pre_tokenizer").stage;
  impl->post_processor = make_post_processor(section("post_processor"), file, "post_processor");
  impl->decoder = make_decoder(section("decoder"), file, "decoder");
  impl->truncation = truncation_of(json.find("truncation"), file);
  impl->padding = padding_of(json.find("padding"), file);
  impl->find_added_tokens();
  impl->name_tokens(config, map);
  obey_flags(*impl, config);
  return impl;
}

/// vocab.json and merges.txt: GPT-2's byte-level form, which is what folders without tokenizer.json hold.
std::unique_ptr<Tokenizer::Impl> impl_from_gpt2_files(const TokenizerFolder& folder) {
  auto impl = std::make_unique<Tokenizer::Impl>();
  const fs::path file = folder.folder / "vocab.json";
  impl->vocabulary = folder.vocabulary;
  impl->kind = to_string(folder.kind());
  BpeOptions options;
  for (const auto& entry : folder.vocabulary.entries()) options.vocabulary.push_back({entry.token, entry.id});
  constexpr std::uint64_t kMaxBytes = 100'000'000;
  options.merges = merges_of_lines(read_text_file(folder.folder / "merges.txt", kMaxBytes), folder.folder / "merges.txt");
  options.raw_bytes = true;
  const Json* config = folder.tokenizer_config.get();
  const Json stage(Json::Object{{"type", Json("ByteLevel")}, {"add_prefix_space", Json(flag(config, "add_prefix_space").value_or(false))}});
  impl->pre_tokenizer = make_pre_tokenizer(stage, ByteMapping::left_to_model, file, "pre_tokenizer").stage;
  impl->decoder = make_decoder(stage, file, "decoder");
  impl->model = make_bpe(std::move(options), file);
  impl->find_added_tokens();
  return impl;
}

/// vocab.txt: BERT's form, with the flags of tokenizer_config.json.
std::unique_ptr<Tokenizer::Impl> impl_from_bert_files(const TokenizerFolder& folder) {
  auto impl = std::make_unique<Tokenizer::Impl>();
  const fs::path file = folder.folder / "vocab.txt";
  const Json* config = folder.tokenizer_config.get();
  impl->kind = to_string(folder.kind());
  std::vector<Vocabulary::Entry> entries(folder.vocabulary.entries().begin(), folder.vocabulary.entries().end());
  std::vector<AddedToken> added(folder.vocabulary.added().begin(), folder.vocabulary.added().end());
  for (const char* token : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}) {
    const auto id = folder.vocabulary.find(token);
    if (!id || folder.vocabulary.find_added(token) != nullptr) continue;
    AddedToken special;
    special.id = *id;
    special.content = token;
    special.special = true;
    added.push_back(std::move(special));
  }
  impl->vocabulary = Vocabulary(folder.kind(), entries, added, file);
  const Json* strip = config == nullptr ? nullptr : config->find("strip_accents");
  const Json normalizer(Json::Object{{"type", Json("BertNormalizer")},
                                     {"handle_chinese_chars", Json(flag(config, "tokenize_chinese_chars").value_or(true))},
                                     {"strip_accents", strip == nullptr ? Json() : *strip},
                                     {"lowercase", Json(flag(config, "do_lower_case").value_or(true))}});
  impl->normalizer = make_normalizer(normalizer, file, "normalizer");
  impl->pre_tokenizer = make_pre_tokenizer(Json(Json::Object{{"type", Json("BertPreTokenizer")}}), ByteMapping::characters, file, "").stage;
  impl->decoder = make_decoder(Json(Json::Object{{"type", Json("WordPiece")}}), file, "decoder");
  WordPieceOptions options;
  options.vocabulary = std::move(entries);
  impl->model = make_wordpiece(std::move(options), file);
  const auto cls = impl->vocabulary.find("[CLS]");
  const auto sep = impl->vocabulary.find("[SEP]");
  if (cls && sep) {
    const Json post(Json::Object{{"type", Json("BertProcessing")},
                                 {"sep", Json(Json::Array{Json("[SEP]"), Json(std::uint64_t{*sep})})},
                                 {"cls", Json(Json::Array{Json("[CLS]"), Json(std::uint64_t{*cls})})}});
    impl->post_processor = make_post_processor(post, file, "post_processor");
  }
  impl->find_added_tokens();
  return impl;
}

std::shared_ptr<const Json> json_if_there(const fs::path& file) {
  return path_kind(file) == PathKind::file ? std::make_shared<const Json>(read_json_file(file)) : nullptr;
}

constexpr std::uint64_t kMaxSentencePieceBytes = 100'000'000;

}  // namespace

Tokenizer Tokenizer::from_json(const Json& json, const Json* config, const std::filesystem::path& file) {
  return Tokenizer(impl_from_json(json, config, nullptr, file));
}

Tokenizer Tokenizer::open(const std::filesystem::path& path) {
  const PathKind kind = path_kind(path);
  if (kind == PathKind::file) {
    const std::string extension = path.extension().string();
    if (extension == ".json") return from_json(read_json_file(path), nullptr, path);
    if (extension == ".gguf") {
      auto vocabulary = read_gguf_vocabulary(read_gguf_header(File(path, FileMode::read), GgufLists::keep_all).metadata, path.string());
      if (!vocabulary)
        throw Error(ErrorCode::not_found, "the file has no tokenizer", {.file = path.string(), .key = "tokenizer.ggml.model"},
                    "use the model's folder with tokenizer.json");
      return make_gguf_tokenizer(*std::move(vocabulary), path);
    }
    if (extension == ".model") return from_sentencepiece(read_text_file(path, kMaxSentencePieceBytes), nullptr, path);
    return open(path.parent_path());
  }
  if (kind != PathKind::folder)
    throw Error(ErrorCode::not_found, "no tokenizer at '" + path.string() + "'", {.file = path.string()},
                "name a model folder, a tokenizer.json or a tokenizer.model");
  const TokenizerFolder folder = read_tokenizer(path);
  const std::shared_ptr<const Json> map = json_if_there(path / "special_tokens_map.json");
  const Json* config = folder.tokenizer_config.get();
  if (folder.tokenizer_json) return Tokenizer(impl_from_json(*folder.tokenizer_json, config, map.get(), path / "tokenizer.json"));
  if (folder.kind() == TokenizerKind::sentencepiece) {
    for (const char* name : {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"})
      if (path_kind(path / name) == PathKind::file)
        return from_sentencepiece(read_text_file(path / name, kMaxSentencePieceBytes), config, path / name);
  }
  std::unique_ptr<Impl> impl;
  if (folder.kind() == TokenizerKind::bpe)
    impl = impl_from_gpt2_files(folder);
  else if (folder.kind() == TokenizerKind::wordpiece)
    impl = impl_from_bert_files(folder);
  else if (folder.kind() == TokenizerKind::none)
    throw Error(ErrorCode::not_found, "the folder has no tokenizer", {.file = path.string()}, "put tokenizer.json or tokenizer.model into it");
  else
    throw Error(ErrorCode::unsupported, "the tokenizer is a table of kind '" + std::string(to_string(folder.kind())) + "', which weft cannot run",
                {.file = path.string()}, "save the tokenizer as tokenizer.json");
  impl->name_tokens(config, map.get());
  return Tokenizer(std::move(impl));
}

}  // namespace weft::model
