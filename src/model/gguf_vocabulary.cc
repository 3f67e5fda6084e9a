#include "model/gguf_vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <string_view>
#include <unordered_map>

#include "base/file.h"
#include "base/text.h"
#include "model/sentencepiece_file.h"
#include "weft/error.h"

namespace weft::model {
namespace {

using Type = GgufVocabulary::Type;

const std::string kSpace = "\xE2\x96\x81";  // U+2581, SentencePiece's space

std::string with_marks(const std::string& spaces) {
  std::string marks;
  for (std::size_t i = 0; i < spaces.size(); ++i) marks += kSpace;
  return marks;
}

constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The first with a pattern is the name that is written; several names stand for one pattern in files.
constexpr GgufSplit kPreTokenizers[] = {
    {"gpt-2", "", false, false, false},
    {"llama-bpe", kLlama3Pattern, false, false, true},
    {"dbrx", kLlama3Pattern, false, false, false},
    {"qwen2", kQwen2Pattern, false, true, false},
    {"smollm", "", true, false, false},
    {"llama3", kLlama3Pattern, false, false, true},
    {"llama-v3", kLlama3Pattern, false, false, true},
    {"smaug-bpe", kLlama3Pattern, false, false, false},
    {"deepseek-r1-qwen", kQwen2Pattern, false, true, false},
    {"olmo", "", false, false, false},
    {"mpt", "", false, false, false},
    {"phi-2", "", false, false, false},
    {"jais", "", false, false, false},
    {"trillion", "", false, false, false},
    {"starcoder", "", true, false, false},
    {"refact", "", true, false, false},
    {"command-r", "", true, false, false},
    {"codeshell", "", true, false, false},
    {"default", "", false, false, false},
    {"gpt2", "", false, false, false},
    {"jina-v2-code", "", false, false, false},
    {"falcon3", kLlama3Pattern, false, false, true},
    {"stablelm2", kQwen2Pattern, false, false, false},
    {"hunyuan", kQwen2Pattern, false, false, false},
    {"megrez", kQwen2Pattern, false, false, false},
};

constexpr std::string_view kKeyPrefix = "tokenizer.ggml.";
constexpr std::string_view kSpecialNames[] = {"bos",    "eos",    "eot",    "eom",     "unknown", "seperator", "padding", "cls",     "mask",
                                              "prefix", "suffix", "middle", "fim_pre", "fim_suf", "fim_mid",   "fim_pad", "fim_rep", "fim_sep"};

[[noreturn]] void damaged(const std::string& file, const std::string& key, std::string message) {
  throw Error(ErrorCode::corrupt, "GGUF vocabulary: " + std::move(message), {.file = file, .key = key},
              "the file is damaged or was converted badly; fetch or convert it again");
}

const Json* member(const Json* json, std::string_view key) { return json == nullptr ? nullptr : json->find(key); }
std::string text_of(const Json* json) { return json != nullptr && json->string() != nullptr ? *json->string() : std::string(); }
bool flag_of(const Json* json, bool otherwise) {
  const std::optional<bool> flag = json == nullptr ? std::nullopt : json->boolean();
  return flag.value_or(otherwise);
}

/// The steps of a normalizer, pre-tokenizer, ...: a sequence or one.
std::vector<const Json*> steps_of(const Json* json, std::string_view list) {
  std::vector<const Json*> steps;
  if (json == nullptr || json->is_null()) return steps;
  if (text_of(json->find("type")) != "Sequence") return {json};
  if (const Json* items = json->find(list); items != nullptr && items->array() != nullptr)
    for (const Json& item : *items->array())
      for (const Json* step : steps_of(&item, list)) steps.push_back(step);
  return steps;
}

const Json* step_of_type(const std::vector<const Json*>& steps, std::string_view type) {
  for (const Json* step : steps)
    if (text_of(step->find("type")) == type) return step;
  return nullptr;
}

/// A special token of tokenizer_config.json: a string, or an object with its content.
std::string token_text(const Json* json) {
  if (json == nullptr) return {};
  if (json->is_object()) return text_of(json->find("content"));
  return text_of(json);
}

bool is_byte_token(std::string_view token) {
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  return token.size() == 6 && token.starts_with("<0x") && token[5] == '>' && is_hex(token[3]) && is_hex(token[4]);
}

std::string name_of_pre_tokenizer(const Json& tokenizer, std::vector<std::string>& warnings) {
  const std::vector<const Json*> steps = steps_of(tokenizer.find("pre_tokenizer"), "pretokenizers");
  const Json* bytes = step_of_type(steps, "ByteLevel");
  const Json* split = step_of_type(steps, "Split");
  const bool digits = step_of_type(steps, "Digits") != nullptr;
  const bool ignores_merges = flag_of(member(tokenizer.find("model"), "ignore_merges"), false);
  std::string pattern;
  if (split != nullptr) pattern = text_of(member(split->find("pattern"), "Regex"));
  const bool known_shape = bytes != nullptr && steps.size() == 1u + (split != nullptr) + digits &&
                           (split != nullptr) != flag_of(bytes->find("use_regex"), true) && !flag_of(bytes->find("add_prefix_space"), false);
  if (known_shape)
    for (const GgufSplit& pre : kPreTokenizers)
      if (pre.pattern == pattern && pre.digits == digits && (pattern.empty() || pre.ignores_merges == ignores_merges || pre.nfc))
        return std::string(pre.name);
  warnings.emplace_back("llama.cpp knows no pre-tokenizer like this model's; the file says 'default', and some texts will be split otherwise");
  return "default";
}

// ---- From a folder

/// Tokens that are in the list of added ones, by their flags.
std::int32_t added_type(const AddedToken& token) { return token.special ? Type::control : Type::user_defined; }

void fill_tokens(GgufVocabulary& out, const TokenizerFolder& tokenizer, std::uint64_t num_rows, std::vector<std::string>& warnings) {
  const Vocabulary& vocabulary = tokenizer.vocabulary;
  if (vocabulary.num_ids() > num_rows)
    warnings.push_back(fmt::format("the tokenizer has ids up to {}, but the embedding only {} rows; the tokens beyond are left out",
                                   vocabulary.num_ids() - 1, num_rows));
  out.tokens.resize(num_rows);
  out.types.assign(num_rows, Type::unused);
  for (std::uint64_t id = 0; id < num_rows; ++id) {
    const std::string* token = vocabulary.token(id);
    out.tokens[id] = token != nullptr ? *token : fmt::format("[PAD{}]", id);
    if (token != nullptr) out.types[id] = Type::normal;
  }
  for (const AddedToken& token : vocabulary.added())
    if (token.id < num_rows) out.types[token.id] = added_type(token);
}

std::vector<std::string> merges_of(const Json& model, const std::string& file) {
  std::vector<std::string> merges;
  const Json* list = model.find("merges");
  if (list == nullptr || list->array() == nullptr) return merges;
  for (const Json& entry : *list->array()) {
    if (const std::string* text = entry.string()) {
      merges.push_back(*text);
      continue;
    }
    const Json::Array* pair = entry.array();
    if (pair == nullptr || pair->size() != 2 || (*pair)[0].string() == nullptr || (*pair)[1].string() == nullptr)
      damaged(file, "merges", "a merge is no pair of tokens");
    // The file separates the two by a space, so a space inside of one takes the byte alphabet's letter for it.
    std::string parts[2] = {*(*pair)[0].string(), *(*pair)[1].string()};
    for (std::string& part : parts)
      for (std::size_t at = 0; (at = part.find(' ', at)) != std::string::npos;) part.replace(at, 1, "\xC4\xA0");
    merges.push_back(parts[0] + " " + parts[1]);
  }
  return merges;
}

void fill_special(GgufVocabulary& out, const TokenizerFolder& tokenizer, const Json& config) {
  Json map;
  if (std::find(tokenizer.files.begin(), tokenizer.files.end(), "special_tokens_map.json") != tokenizer.files.end())
    map = read_json_file(tokenizer.folder / "special_tokens_map.json");
  const std::pair<const char*, const char*> kNames[] = {{"bos", "bos"},     {"eos", "eos"}, {"unk", "unknown"}, {"sep", "seperator"},
                                                        {"pad", "padding"}, {"cls", "cls"}, {"mask", "mask"}};
  for (const auto& [hf, gguf] : kNames) {
    const std::string key = std::string(hf) + "_token";
    std::string text = token_text(member(tokenizer.tokenizer_config.get(), key));
    if (text.empty()) text = token_text(map.find(key));
    std::optional<std::uint32_t> id = text.empty() ? std::nullopt : tokenizer.vocabulary.find(text);
    if (!id) {
      // A list of several ends the text at any of them; the file has room for one.
      const Json* number = config.find(key + "_id");
      if (number != nullptr && number->array() != nullptr && !number->array()->empty()) number = &number->array()->front();
      if (const auto value = number == nullptr ? std::nullopt : number->unsigned_integer(); value && *value < out.tokens.size())
        id = static_cast<std::uint32_t>(*value);
    }
    if (id && *id < out.tokens.size() && !out.special(gguf)) out.special_ids.emplace_back(gguf, *id);
  }
  const Json* settings = tokenizer.tokenizer_config.get();
  for (const auto& [key, flag] : {std::pair("add_bos_token", &out.add_bos), std::pair("add_eos_token", &out.add_eos)})
    if (const Json* value = member(settings, key); value != nullptr && value->boolean()) *flag = value->boolean();
  // What a template puts around a text counts when the settings say nothing.
  const Json* tokenizer_json = tokenizer.tokenizer_json.get();
  if (const Json* post = step_of_type(steps_of(member(tokenizer_json, "post_processor"), "processors"), "TemplateProcessing")) {
    const Json* single = post->find("single");
    if (single != nullptr && single->array() != nullptr && !single->array()->empty()) {
      const auto special_at = [](const Json& piece) { return text_of(member(piece.find("SpecialToken"), "id")); };
      const auto token_is = [&](const std::string& text, std::string_view name) {
        const auto id = text.empty() ? std::nullopt : tokenizer.vocabulary.find(text);
        return id && out.special(name) == id;
      };
      if (!out.add_bos && token_is(special_at(single->array()->front()), "bos")) out.add_bos = true;
      if (!out.add_eos && token_is(special_at(single->array()->back()), "eos")) out.add_eos = true;
    }
  }
  if (tokenizer.chat_template) out.chat_template = tokenizer.chat_template->text;
}

/// SentencePiece's BPE joins the pair whose piece has the best score; the list of merges has the same order.
void fill_scores_from_merges(GgufVocabulary& out, const std::vector<std::string>& merges) {
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t id = 0; id < out.tokens.size(); ++id) ids.emplace(out.tokens[id], id);
  out.scores.assign(out.tokens.size(), 0.0F);
  for (std::size_t id = 0; id < out.tokens.size(); ++id) {
    if (out.types[id] == Type::unused) out.scores[id] = -10000.0F;
    if (out.types[id] == Type::user_defined || out.types[id] == Type::control) out.scores[id] = -1000.0F;
  }
  std::vector<bool> seen(out.tokens.size(), false);
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::size_t space = merges[rank].find(' ');
    if (space == std::string::npos) continue;
    const auto found = ids.find(merges[rank].substr(0, space) + merges[rank].substr(space + 1));
    if (found == ids.end() || seen[found->second]) continue;
    seen[found->second] = true;
    out.scores[found->second] = -static_cast<float>(rank);
  }
  // Letters, which nothing is merged into, come behind all pieces, as in SentencePiece's own files.
  float last = -static_cast<float>(merges.size());
  for (std::size_t id = 0; id < out.tokens.size(); ++id)
    if (!seen[id] && out.types[id] == Type::normal) out.scores[id] = last--;
}

void fill_sentencepiece(GgufVocabulary& out, const Json& tokenizer, const std::string& file) {
  const Json& model = *tokenizer.find("model");
  out.model = "llama";
  out.pre = "default";
  const std::string unknown = text_of(model.find("unk_token"));
  for (std::size_t id = 0; id < out.tokens.size(); ++id) {
    if (is_byte_token(out.tokens[id])) out.types[id] = Type::byte;
    if (!unknown.empty() && out.tokens[id] == unknown) out.types[id] = Type::unknown;
  }
  fill_scores_from_merges(out, merges_of(model, file));
  const std::vector<const Json*> normalizer = steps_of(tokenizer.find("normalizer"), "normalizers");
  const std::vector<const Json*> pre = steps_of(tokenizer.find("pre_tokenizer"), "pretokenizers");
  bool prefix = step_of_type(normalizer, "Prepend") != nullptr;
  if (const Json* metaspace = step_of_type(pre, "Metaspace")) {
    const std::string scheme = text_of(metaspace->find("prepend_scheme"));
    prefix = scheme.empty() ? flag_of(metaspace->find("add_prefix_space"), true) : scheme != "never";
  }
  out.add_space_prefix = prefix;
}

/// Scores and types as tokenizer.model has them; all of the vocabulary, where there is no tokenizer.json.
void fill_from_pieces(GgufVocabulary& out, const TokenizerFolder& tokenizer, std::uint64_t num_rows) {
  const std::filesystem::path path = tokenizer.folder / "tokenizer.model";
  const SentencePieceFile file = read_sentencepiece(read_text_file(path, 1'000'000'000), path);
  if (file.kind != SentencePieceFile::Kind::bpe && file.kind != SentencePieceFile::Kind::unigram)
    throw Error(ErrorCode::unsupported, "a SentencePiece model of words or characters cannot be written to GGUF", {.file = path.string()});
  const bool alone = tokenizer.kind() == TokenizerKind::sentencepiece;
  if (alone) {
    out.model = file.kind == SentencePieceFile::Kind::bpe ? "llama" : "t5";
    out.pre = "default";
    out.add_space_prefix = file.add_dummy_prefix;
    for (const auto& [name, id] : {std::pair("bos", file.bos_id), std::pair("eos", file.eos_id), std::pair("padding", file.pad_id)})
      if (id >= 0 && static_cast<std::uint64_t>(id) < std::min<std::uint64_t>(num_rows, file.pieces.size()))
        out.special_ids.emplace_back(name, static_cast<std::uint32_t>(id));
    out.add_bos = out.special("bos").has_value();
    out.scores.assign(out.tokens.size(), -10000.0F);
  }
  if (file.kind == SentencePieceFile::Kind::unigram) {
    out.remove_extra_whitespaces = file.remove_extra_whitespaces;
    out.precompiled_charsmap = file.charsmap;
  }
  for (std::size_t id = 0; id < std::min<std::size_t>(out.tokens.size(), file.pieces.size()); ++id) {
    const SentencePieceFile::Piece& piece = file.pieces[id];
    if (alone)
      out.tokens[id] = piece.text;
    else if (out.tokens[id] != piece.text)
      continue;
    out.scores[id] = piece.score;
    if (alone || piece.type != PieceType::normal) out.types[id] = static_cast<std::int32_t>(piece.type);
  }
}

// ---- Base 64, in which tokenizer.json holds a character map

constexpr std::string_view kBase64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string to_base64(std::string_view bytes) {
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t word = 0;
    for (std::size_t k = 0; k < 3; ++k) word = word << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    for (std::size_t k = 0; k < 4; ++k) text += i + k <= bytes.size() ? kBase64[word >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

std::string from_base64(std::string_view text) {
  std::string bytes;
  std::uint32_t word = 0;
  int bits = 0;
  for (const char c : text) {
    const std::size_t value = kBase64.find(c);
    if (value == std::string_view::npos) continue;
    word = word << 6 | static_cast<std::uint32_t>(value);
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    bytes += static_cast<char>(word >> bits & 0xFF);
  }
  return bytes;
}

// ---- Back to tokenizer.json

Json typed(const char* type, Json::Object members = {}) {
  Json::Object object = {{"type", Json(type)}};
  object.insert(object.end(), std::make_move_iterator(members.begin()), std::make_move_iterator(members.end()));
  return Json(std::move(object));
}
Json sequence(const char* list, Json::Array steps) {
  if (steps.empty()) return {};
  if (steps.size() == 1) return std::move(steps.front());
  return typed("Sequence", {{list, Json(std::move(steps))}});
}

Json template_processing(const GgufVocabulary& v, bool bos, bool eos) {
  const auto piece = [](const char* kind, const std::string& id, int type) {
    return Json(Json::Object{{kind, Json(Json::Object{{"id", Json(id)}, {"type_id", Json(type)}})}});
  };
  Json::Array single, pair;
  Json::Object special;
  const auto add = [&](std::string_view name, Json::Array& to, int type) {
    const std::optional<std::uint32_t> id = v.special(name);
    if (!id) return;
    const std::string& token = v.tokens[*id];
    to.push_back(piece("SpecialToken", token, type));
    for (const auto& [known, value] : special)
      if (known == token) return;
    special.emplace_back(
        token,
        Json(Json::Object{{"id", Json(token)}, {"ids", Json(Json::Array{Json(std::uint64_t{*id})})}, {"tokens", Json(Json::Array{Json(token)})}}));
  };
  const bool bert = v.model == "bert";
  const std::string_view first = bert ? "cls" : "bos", last = bert ? "seperator" : "eos";
  for (int text = 0; text < 2; ++text) {
    for (Json::Array* to : {&single, &pair}) {
      if (to == &single && text == 1) continue;
      if (bos && !(bert && text == 1)) add(first, *to, text);
      to->push_back(piece("Sequence", text == 0 ? "A" : "B", text));
      if (eos) add(last, *to, text);
    }
  }
  if (special.empty()) return {};
  return typed("TemplateProcessing",
               {{"single", Json(std::move(single))}, {"pair", Json(std::move(pair))}, {"special_tokens", Json(std::move(special))}});
}

Json byte_level(bool use_regex) {
  return typed("ByteLevel", {{"add_prefix_space", Json(false)}, {"trim_offsets", Json(true)}, {"use_regex", Json(use_regex)}});
}

Json vocab_object(const GgufVocabulary& v, const auto& spelled) {
  Json::Object vocab;
  vocab.reserve(v.tokens.size());
  for (std::size_t id = 0; id < v.tokens.size(); ++id)
    if (v.type_of(id) != Type::unused) vocab.emplace_back(spelled(id), Json(static_cast<std::uint64_t>(id)));
  return Json(std::move(vocab));
}
Json vocab_object(const GgufVocabulary& v) {
  return vocab_object(v, [&v](std::size_t id) { return v.tokens[id]; });
}

Json bpe_model(Json vocab, Json::Array merges, const Json& unknown, bool byte_fallback, bool ignore_merges) {
  return typed("BPE", {{"dropout", Json()},
                       {"unk_token", unknown},
                       {"continuing_subword_prefix", Json()},
                       {"end_of_word_suffix", Json()},
                       {"fuse_unk", Json(byte_fallback)},
                       {"byte_fallback", Json(byte_fallback)},
                       {"ignore_merges", Json(ignore_merges)},
                       {"vocab", std::move(vocab)},
                       {"merges", Json(std::move(merges))}});
}

/// The merges that make the pieces of a SentencePiece BPE: every way of cutting a piece into two others, best score first.
Json::Array merges_from_scores(const GgufVocabulary& v) {
  struct Merge {
    float score;
    std::size_t left_size, right_size;
    std::string_view piece;
  };
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t id = 0; id < v.tokens.size(); ++id)
    if (v.type_of(id) == Type::normal || v.type_of(id) == Type::user_defined) ids.emplace(v.tokens[id], id);
  std::vector<Merge> merges;
  for (std::size_t id = 0; id < v.tokens.size(); ++id) {
    if (v.type_of(id) != Type::normal && v.type_of(id) != Type::user_defined) continue;
    const std::string_view piece = v.tokens[id];
    for (std::size_t cut = 1; cut < piece.size(); ++cut) {
      if ((static_cast<unsigned char>(piece[cut]) & 0xC0) == 0x80) continue;  // inside of a character
      if (ids.contains(piece.substr(0, cut)) && ids.contains(piece.substr(cut)))
        merges.push_back({id < v.scores.size() ? v.scores[id] : 0.0F, cut, piece.size() - cut, piece});
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.left_size != b.left_size ? a.left_size > b.left_size : a.right_size > b.right_size;
  });
  Json::Array list;
  list.reserve(merges.size());
  for (const Merge& merge : merges)
    list.emplace_back(Json::Array{Json(std::string(merge.piece.substr(0, merge.left_size))), Json(std::string(merge.piece.substr(merge.left_size)))});
  return list;
}

void varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void field(std::string& out, std::uint32_t number, std::uint64_t value) {
  varint(out, number << 3);
  varint(out, value);
}
void field(std::string& out, std::uint32_t number, std::string_view bytes) {
  varint(out, number << 3 | 2);
  varint(out, bytes.size());
  out += bytes;
}

/// tokenizer.model: SentencePiece's protobuf.
std::string sentencepiece_of(const GgufVocabulary& v) {
  std::string out;
  const auto text = [&v](std::size_t id) {
    const bool spaces = v.model == "llama" && v.type_of(id) == Type::user_defined && v.tokens[id].find_first_not_of(' ') == std::string::npos;
    return spaces ? with_marks(v.tokens[id]) : v.tokens[id];
  };
  for (std::size_t id = 0; id < v.tokens.size(); ++id) {
    std::string piece;
    field(piece, 1, text(id));
    varint(piece, 2 << 3 | 5);
    const auto bits = std::bit_cast<std::uint32_t>(id < v.scores.size() ? v.scores[id] : 0.0F);
    for (int i = 0; i < 4; ++i) piece += static_cast<char>(bits >> (8 * i) & 0xFF);
    if (v.type_of(id) != Type::normal) field(piece, 3, static_cast<std::uint64_t>(v.type_of(id)));
    field(out, 1, piece);
  }
  const bool bpe = v.model == "llama";
  std::string trainer;
  field(trainer, 3, std::uint64_t{bpe ? 2U : 1U});
  field(trainer, 4, v.tokens.size());
  const bool has_bytes = std::find(v.types.begin(), v.types.end(), static_cast<std::int32_t>(Type::byte)) != v.types.end();
  field(trainer, 35, std::uint64_t{has_bytes});
  // Ids of -1 mean none, and a negative number takes all its 64 bits.
  const auto id = [&](std::uint32_t number, std::string_view name) {
    const auto value = v.special(name);
    field(trainer, number, value ? std::uint64_t{*value} : ~std::uint64_t{0});
  };
  id(40, "unknown");
  id(41, "bos");
  id(42, "eos");
  id(43, "padding");
  field(out, 2, trainer);
  std::string normalizer;
  field(normalizer, 1, v.precompiled_charsmap.empty() ? "identity" : "nmt_nfkc");
  if (!v.precompiled_charsmap.empty()) field(normalizer, 2, v.precompiled_charsmap);
  field(normalizer, 3, std::uint64_t{v.add_space_prefix.value_or(true)});
  field(normalizer, 4, std::uint64_t{v.remove_extra_whitespaces.value_or(false)});
  field(normalizer, 5, std::uint64_t{1});
  field(out, 3, normalizer);
  return out;
}

}  // namespace

std::optional<std::uint32_t> GgufVocabulary::special(std::string_view name) const {
  for (const auto& [known, id] : special_ids)
    if (known == name) return id;
  return std::nullopt;
}

namespace {

/// list: a value with its list read.
std::optional<GgufVocabulary> read_vocabulary(const GgufMetadata& metadata, const std::string& file,
                                              const std::function<std::optional<GgufValue>(std::string_view)>& list) {
  const auto key = [](std::string_view name) { return std::string(kKeyPrefix) + std::string(name); };
  GgufVocabulary v;
  v.model = metadata.text(key("model")).value_or("");
  const std::optional<GgufValue> tokens = list(key("tokens"));
  if (v.model.empty() || v.model == "none" || !tokens) return std::nullopt;
  v.pre = metadata.text(key("pre")).value_or("");
  v.tokens = tokens->string_list();
  if (v.tokens.empty() && tokens->array() != nullptr && tokens->array()->num_elements > 0)
    damaged(file, key("tokens"), fmt::format("'{}' is no list of strings", key("tokens")));
  if (v.tokens.size() > std::uint64_t{1} << 24) damaged(file, key("tokens"), fmt::format("{} tokens", v.tokens.size()));
  for (std::string& token : v.tokens)
    if (!is_valid_utf8(token)) damaged(file, key("tokens"), fmt::format("the token '{}' is not UTF-8", printable(token)));
  if (const auto scores = list(key("scores"))) v.scores = scores->float_list();
  if (const auto types = list(key("token_type")))
    for (const std::int64_t type : types->integer_list()) v.types.push_back(type >= 1 && type <= 6 ? static_cast<std::int32_t>(type) : 1);
  if (!v.scores.empty() && v.scores.size() != v.tokens.size())
    damaged(file, key("scores"), fmt::format("there are {} scores for {} tokens", v.scores.size(), v.tokens.size()));
  if (!v.types.empty() && v.types.size() != v.tokens.size())
    damaged(file, key("token_type"), fmt::format("there are {} types for {} tokens", v.types.size(), v.tokens.size()));
  if (const auto merges = list(key("merges"))) v.merges = merges->string_list();
  for (const std::string& merge : v.merges)
    if (const std::size_t space = merge.find(' ', 1);
        !is_valid_utf8(merge) || space == std::string::npos || space + 1 == merge.size() || merge.find(' ', space + 1) != std::string::npos)
      damaged(file, key("merges"), fmt::format("the merge '{}' is not two tokens with one space between them", printable(merge)));
  for (const std::string_view name : kSpecialNames) {
    const std::string id_key = key(name) + "_token_id";
    const GgufValue* value = metadata.find(id_key);
    if (value == nullptr) continue;
    const std::optional<std::uint64_t> id = value->unsigned_integer();
    if (!id || *id >= v.tokens.size()) {
      // -1 and its like stand for none.
      if (id == 0xFFFFFFFF || (value->integer() && *value->integer() < 0)) continue;
      damaged(file, id_key, fmt::format("'{}' is {}, but there are {} tokens", id_key, printable(describe(*value)), v.tokens.size()));
    }
    v.special_ids.emplace_back(name, static_cast<std::uint32_t>(*id));
  }
  v.add_bos = metadata.flag(key("add_bos_token"));
  v.add_eos = metadata.flag(key("add_eos_token"));
  v.add_sep = metadata.flag(key("add_sep_token"));
  v.add_space_prefix = metadata.flag(key("add_space_prefix"));
  v.remove_extra_whitespaces = metadata.flag(key("remove_extra_whitespaces"));
  if (const auto map = list(key("precompiled_charsmap")); map && map->array() != nullptr && size_of(map->array()->element_type) == 1)
    v.precompiled_charsmap = map->array()->bytes.value_or("");
  v.chat_template = metadata.text("tokenizer.chat_template");
  if (const auto count = metadata.unsigned_integer(key("token_type_count"))) v.token_type_count = static_cast<std::uint32_t>(*count);
  return v;
}

}  // namespace

std::optional<GgufVocabulary> read_gguf_vocabulary(const GgufCheckpoint& checkpoint) {
  return read_vocabulary(checkpoint.gguf_metadata(), checkpoint.path().string(), [&checkpoint](std::string_view key) { return checkpoint.value(key); });
}

std::optional<GgufVocabulary> read_gguf_vocabulary(const GgufMetadata& metadata, const std::string& file) {
  return read_vocabulary(metadata, file, [&metadata](std::string_view key) {
    const GgufValue* value = metadata.find(key);
    return value == nullptr ? std::nullopt : std::optional(*value);
  });
}

const GgufSplit* find_gguf_split(std::string_view name) noexcept {
  const auto found = std::find_if(std::begin(kPreTokenizers), std::end(kPreTokenizers), [name](const GgufSplit& split) { return split.name == name; });
  return found == std::end(kPreTokenizers) ? nullptr : &*found;
}

void add_gguf_vocabulary(GgufMetadata& metadata, const GgufVocabulary& v) {
  const auto set = [&metadata](std::string_view name, GgufValue value) {
    metadata.set(std::string(kKeyPrefix) + std::string(name), std::move(value));
  };
  if (v.token_type_count) set("token_type_count", GgufValue::u32(*v.token_type_count));
  set("model", GgufValue::text(v.model));
  if (!v.pre.empty()) set("pre", GgufValue::text(v.pre));
  set("tokens", GgufValue::texts(v.tokens));
  if (!v.scores.empty()) set("scores", GgufValue::f32s(v.scores));
  if (!v.types.empty()) set("token_type", GgufValue::i32s(v.types));
  if (!v.merges.empty()) set("merges", GgufValue::texts(v.merges));
  for (const auto& [name, id] : v.special_ids) set(name + "_token_id", GgufValue::u32(id));
  for (const auto& [name, flag] :
       {std::pair("add_bos_token", &v.add_bos), std::pair("add_eos_token", &v.add_eos), std::pair("add_sep_token", &v.add_sep),
        std::pair("add_space_prefix", &v.add_space_prefix), std::pair("remove_extra_whitespaces", &v.remove_extra_whitespaces)})
    if (*flag) set(name, GgufValue::boolean(**flag));
  if (!v.precompiled_charsmap.empty()) set("precompiled_charsmap", GgufValue::u8s(v.precompiled_charsmap));
  if (v.chat_template) metadata.set("tokenizer.chat_template", GgufValue::text(*v.chat_template));
}

GgufVocabulary vocabulary_for_gguf(const TokenizerFolder& tokenizer, std::uint64_t num_rows, const Json& config, std::vector<std::string>& warnings) {
  const std::string file = tokenizer.folder.string();
  GgufVocabulary v;
  fill_tokens(v, tokenizer, num_rows, warnings);
  const Json* json = tokenizer.tokenizer_json.get();
  const Json* model = member(json, "model");
  switch (tokenizer.kind()) {
    case TokenizerKind::bpe: {
      const bool has_bytes = json == nullptr || step_of_type(steps_of(json->find("pre_tokenizer"), "pretokenizers"), "ByteLevel") != nullptr ||
                             step_of_type(steps_of(json->find("decoder"), "decoders"), "ByteLevel") != nullptr;
      if (!has_bytes && model != nullptr) {
        fill_sentencepiece(v, *json, file);
        break;
      }
      v.model = "gpt2";
      v.pre = json != nullptr ? name_of_pre_tokenizer(*json, warnings) : "gpt-2";
      if (model != nullptr) {
        v.merges = merges_of(*model, file);
      } else {
        // merges.txt: a line each, under a heading.
        std::string text = read_text_file(tokenizer.folder / "merges.txt", 100'000'000);
        std::size_t begin = 0;
        while (begin < text.size()) {
          const std::size_t end = std::min(text.find('\n', begin), text.size());
          std::string line = text.substr(begin, end - begin);
          if (!line.empty() && line.back() == '\r') line.pop_back();
          if (!line.empty() && !(begin == 0 && line.starts_with("#version"))) v.merges.push_back(std::move(line));
          begin = end + 1;
        }
      }
      break;
    }
    case TokenizerKind::wordpiece:
      v.model = "bert";
      v.pre = "default";
      for (std::size_t id = 0; id < v.tokens.size(); ++id) {
        std::string& token = v.tokens[id];
        if (token.starts_with("[") && token.ends_with("]")) continue;
        token = token.starts_with("##") ? token.substr(2) : kSpace + token;
      }
      break;
    case TokenizerKind::unigram: {
      v.model = "t5";
      v.pre = "default";
      v.scores.assign(v.tokens.size(), 0.0F);
      const Json* list = member(model, "vocab");
      if (list == nullptr || list->array() == nullptr) damaged(file, "vocab", "the pieces are no list");
      for (std::size_t id = 0; id < std::min(v.tokens.size(), list->array()->size()); ++id) {
        const Json::Array* entry = (*list->array())[id].array();
        const auto score = entry == nullptr || entry->size() != 2 ? std::nullopt : (*entry)[1].number();
        if (score) v.scores[id] = static_cast<float>(*score);
      }
      if (const auto unknown = member(model, "unk_id") != nullptr ? member(model, "unk_id")->unsigned_integer() : std::nullopt;
          unknown && *unknown < v.tokens.size())
        v.types[*unknown] = Type::unknown;
      const Json* map = step_of_type(steps_of(json->find("normalizer"), "normalizers"), "Precompiled");
      v.precompiled_charsmap = from_base64(text_of(member(map, "precompiled_charsmap")));
      v.add_space_prefix = true;
      v.remove_extra_whitespaces = true;
      break;
    }
    case TokenizerKind::sentencepiece:
      break;  // below
    case TokenizerKind::none:
    case TokenizerKind::tiktoken:
    case TokenizerKind::wordlevel:
      throw Error(ErrorCode::unsupported, fmt::format("a tokenizer of the kind {} cannot be written to GGUF", to_string(tokenizer.kind())),
                  {.file = file}, "save the tokenizer as tokenizer.json beside it (the model's 'fast' tokenizer)");
  }
  if (std::find(tokenizer.files.begin(), tokenizer.files.end(), "tokenizer.model") != tokenizer.files.end() && v.model != "gpt2" && v.model != "bert")
    fill_from_pieces(v, tokenizer, num_rows);
  if (v.model.empty())
    throw Error(ErrorCode::unsupported, "the folder's SentencePiece model has another name than tokenizer.model", {.file = file}, "rename it");
  fill_special(v, tokenizer, config);
  if (v.model == "llama")
    for (std::size_t id = 0; id < v.tokens.size(); ++id)
      if (v.types[id] == Type::user_defined)
        for (std::size_t at = 0; (at = v.tokens[id].find(kSpace, at)) != std::string::npos;) v.tokens[id].replace(at, kSpace.size(), " ");
  if (v.model == "bert")
    if (const Json* types = config.find("type_vocab_size"); types != nullptr && types->unsigned_integer())
      v.token_type_count = static_cast<std::uint32_t>(*types->unsigned_integer());
  return v;
}

Json tokenizer_json_of(const GgufVocabulary& stored, std::vector<std::string>& warnings) {
  GgufVocabulary v = stored;
  // Runs of spaces that the user defined are pieces of U+2581 to SentencePiece, and spaces in the file, where they are looked for in the text itself.
  if (v.model == "llama")
    for (std::size_t id = 0; id < v.tokens.size(); ++id)
      if (v.type_of(id) == Type::user_defined && v.tokens[id].find_first_not_of(' ') == std::string::npos) v.tokens[id] = with_marks(v.tokens[id]);
  Json::Array added;
  for (std::size_t id = 0; id < v.tokens.size(); ++id) {
    const std::int32_t type = v.type_of(id);
    const bool unknown = type == Type::unknown && v.model != "t5";
    if ((type != Type::control && type != Type::user_defined && !unknown) || v.tokens[id].empty()) continue;
    added.emplace_back(Json::Object{{"id", Json(static_cast<std::uint64_t>(id))},
                                    {"content", Json(v.tokens[id])},
                                    {"single_word", Json(false)},
                                    {"lstrip", Json(false)},
                                    {"rstrip", Json(false)},
                                    {"normalized", Json(false)},
                                    {"special", Json(type != Type::user_defined)}});
  }
  Json normalizer, pre, post, decoder, model;
  const auto unknown = v.special("unknown");
  Json unknown_token = unknown ? Json(v.tokens[*unknown]) : Json();
  if (v.model == "gpt2") {
    GgufSplit kind = kPreTokenizers[0];
    if (const GgufSplit* found = find_gguf_split(v.pre); found != nullptr)
      kind = *found;
    else if (!v.pre.empty())
      warnings.push_back(fmt::format("weft does not know how the pre-tokenizer '{}' splits text and took GPT-2's; some texts will get other tokens",
                                     printable(v.pre)));
    if (kind.nfc) normalizer = typed("NFC");
    Json::Array steps;
    if (kind.digits) steps.push_back(typed("Digits", {{"individual_digits", Json(true)}}));
    if (!kind.pattern.empty())
      steps.push_back(
          typed("Split", {{"pattern", Json(Json::Object{{"Regex", Json(kind.pattern)}})}, {"behavior", Json("Isolated")}, {"invert", Json(false)}}));
    steps.push_back(byte_level(kind.pattern.empty()));
    pre = sequence("pretokenizers", std::move(steps));
    decoder = byte_level(true);
    post = template_processing(v, v.add_bos.value_or(false), v.add_eos.value_or(false));
    Json::Array merges;
    merges.reserve(v.merges.size());
    for (const std::string& merge : v.merges) merges.emplace_back(merge);
    model = bpe_model(vocab_object(v), std::move(merges), Json(), false, kind.ignores_merges);
  } else if (v.model == "llama") {
    const bool prefix = v.add_space_prefix.value_or(true);
    Json::Array steps;
    if (prefix) steps.push_back(typed("Prepend", {{"prepend", Json(kSpace)}}));
    steps.push_back(typed("Replace", {{"pattern", Json(Json::Object{{"String", Json(" ")}})}, {"content", Json(kSpace)}}));
    normalizer = sequence("normalizers", std::move(steps));
    Json::Array decoders = {typed("Replace", {{"pattern", Json(Json::Object{{"String", Json(kSpace)}})}, {"content", Json(" ")}}),
                            typed("ByteFallback"), typed("Fuse")};
    if (prefix) decoders.push_back(typed("Strip", {{"content", Json(" ")}, {"start", Json(1)}, {"stop", Json(0)}}));
    decoder = sequence("decoders", std::move(decoders));
    post = template_processing(v, v.add_bos.value_or(true), v.add_eos.value_or(false));
    model = bpe_model(vocab_object(v), merges_from_scores(v), unknown_token, true, false);
  } else if (v.model == "bert") {
    normalizer = typed("BertNormalizer",
                       {{"clean_text", Json(true)}, {"handle_chinese_chars", Json(true)}, {"strip_accents", Json()}, {"lowercase", Json(true)}});
    pre = typed("BertPreTokenizer");
    post = template_processing(v, true, true);
    decoder = typed("WordPiece", {{"prefix", Json("##")}, {"cleanup", Json(true)}});
    const auto spelled = [&v](std::size_t id) {
      const std::string& token = v.tokens[id];
      if (token.starts_with(kSpace)) return token.substr(kSpace.size());
      const bool special = token.starts_with("[") && token.ends_with("]");
      return special || v.type_of(id) == Type::control ? token : "##" + token;
    };
    Json unknown_word = unknown ? unknown_token : Json("[UNK]");
    model = typed("WordPiece", {{"unk_token", std::move(unknown_word)},
                                {"continuing_subword_prefix", Json("##")},
                                {"max_input_chars_per_word", Json(100)},
                                {"vocab", vocab_object(v, spelled)}});
  } else if (v.model == "t5") {
    Json::Array steps;
    if (!v.precompiled_charsmap.empty()) steps.push_back(typed("Precompiled", {{"precompiled_charsmap", Json(to_base64(v.precompiled_charsmap))}}));
    if (v.remove_extra_whitespaces.value_or(true)) {
      steps.push_back(typed("Strip", {{"strip_left", Json(true)}, {"strip_right", Json(true)}}));
      steps.push_back(typed("Replace", {{"pattern", Json(Json::Object{{"Regex", Json(" {2,}")}})}, {"content", Json(" ")}}));
    }
    normalizer = sequence("normalizers", std::move(steps));
    pre = typed(
        "Metaspace",
        {{"replacement", Json(kSpace)}, {"prepend_scheme", Json(v.add_space_prefix.value_or(true) ? "always" : "never")}, {"split", Json(true)}});
    decoder = pre;
    post = template_processing(v, v.add_bos.value_or(false), v.add_eos.value_or(true));
    Json::Array vocab;
    for (std::size_t id = 0; id < v.tokens.size(); ++id)
      vocab.emplace_back(Json::Array{Json(v.tokens[id]), Json(static_cast<double>(id < v.scores.size() ? v.scores[id] : 0.0F))});
    const auto first_unknown = std::find(v.types.begin(), v.types.end(), static_cast<std::int32_t>(Type::unknown));
    const std::uint64_t unknown_id = unknown                          ? *unknown
                                     : first_unknown == v.types.end() ? 0
                                                                      : static_cast<std::uint64_t>(first_unknown - v.types.begin());
    model = typed("Unigram", {{"unk_id", Json(unknown_id)}, {"vocab", Json(std::move(vocab))}, {"byte_fallback", Json(false)}});
  } else {
    throw Error(ErrorCode::unsupported, fmt::format("the vocabulary is of the kind '{}', which weft does not know", printable(v.model)),
                {.key = "tokenizer.ggml.model"}, "known are gpt2, llama, bert and t5");
  }
  return Json(Json::Object{{"version", Json("1.0")},
                           {"truncation", Json()},
                           {"padding", Json()},
                           {"added_tokens", Json(std::move(added))},
                           {"normalizer", std::move(normalizer)},
                           {"pre_tokenizer", std::move(pre)},
                           {"post_processor", std::move(post)},
                           {"decoder", std::move(decoder)},
                           {"model", std::move(model)}});
}

std::vector<std::pair<std::string, std::string>> tokenizer_files_of(const GgufVocabulary& v, std::uint64_t max_length,
                                                                    std::vector<std::string>& warnings) {
  std::vector<std::pair<std::string, std::string>> files;
  files.emplace_back("tokenizer.json", write_json(tokenizer_json_of(v, warnings), 2) + "\n");
  Json config(Json::Object{});
  Json map(Json::Object{});
  config.set("tokenizer_class", Json(v.model == "bert" ? "BertTokenizerFast" : "PreTrainedTokenizerFast"));
  for (const auto& [gguf, hf] :
       {std::pair("bos", "bos_token"), std::pair("eos", "eos_token"), std::pair("unknown", "unk_token"), std::pair("seperator", "sep_token"),
        std::pair("padding", "pad_token"), std::pair("cls", "cls_token"), std::pair("mask", "mask_token")})
    if (const auto id = v.special(gguf)) {
      config.set(hf, Json(v.tokens[*id]));
      map.set(hf, Json(v.tokens[*id]));
    }
  if (v.add_bos) config.set("add_bos_token", Json(*v.add_bos));
  if (v.add_eos) config.set("add_eos_token", Json(*v.add_eos));
  config.set("model_max_length", Json(max_length));
  config.set("clean_up_tokenization_spaces", Json(v.model == "bert"));
  if (v.chat_template) config.set("chat_template", Json(*v.chat_template));
  files.emplace_back("tokenizer_config.json", write_json(config, 2) + "\n");
  if (!map.object()->empty()) files.emplace_back("special_tokens_map.json", write_json(map, 2) + "\n");
  if (v.model == "llama" || v.model == "t5") files.emplace_back("tokenizer.model", sentencepiece_of(v));
  return files;
}

}  // namespace weft::model
