#include "model/vocabulary.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "model/sentencepiece_file.h"
#include "weft/error.h"

namespace weft::model {
namespace {

namespace fs = std::filesystem;

// Ids index the rows of a matrix; more rows than this no model has, and a hostile id must not size anything.
constexpr std::uint64_t kMaxIds = std::uint64_t{1} << 24;
constexpr std::uint64_t kMaxTextBytes = 100'000'000;
constexpr std::uint64_t kMaxTemplateBytes = 16'000'000;

/// Every name under which a folder keeps its tokenizer, or a part of it.
constexpr std::array<std::string_view, 13> kTokenizerFiles = {
    "added_tokens.json",       "chat_template.jinja", "chat_template.json", "merges.txt",     "sentencepiece.bpe.model",
    "special_tokens_map.json", "spiece.model",        "tekken.json",        "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json",   "vocab.json",          "vocab.txt",
};

bool contains(const std::vector<std::string>& files, std::string_view name) { return std::find(files.begin(), files.end(), name) != files.end(); }

[[noreturn]] void damaged(const fs::path& file, std::string message, std::string key = {}) {
  throw Error(ErrorCode::corrupt, std::move(message), {.file = file.string(), .key = std::move(key)},
              "fetch the tokenizer files again; they must belong to this model");
}

std::uint32_t id_of(const Json& value, std::string_view token, const fs::path& file, const char* key) {
  const auto id = value.unsigned_integer();
  if (!id || *id >= kMaxIds)
    damaged(file, "token '" + printable(token) + "' has no usable id: expected an integer from 0 to " + std::to_string(kMaxIds - 1), key);
  return static_cast<std::uint32_t>(*id);
}

bool flag_of(const Json& object, std::string_view key, bool missing) {
  const Json* value = object.find(key);
  return value == nullptr ? missing : value->boolean().value_or(missing);
}

AddedToken added_token(const Json& object, std::string content, std::uint32_t id) {
  AddedToken token;
  token.id = id;
  token.content = std::move(content);
  token.single_word = flag_of(object, "single_word", false);
  token.lstrip = flag_of(object, "lstrip", false);
  token.rstrip = flag_of(object, "rstrip", false);
  token.special = flag_of(object, "special", false);
  token.normalized = flag_of(object, "normalized", !token.special);
  return token;
}

/// {"token": id, ...}
std::vector<Vocabulary::Entry> entries_of(const Json& object, const fs::path& file, const char* key) {
  std::vector<Vocabulary::Entry> entries;
  if (object.object() == nullptr) damaged(file, "the vocabulary is no object of tokens and ids", key);
  entries.reserve(object.object()->size());
  for (const auto& [token, id] : *object.object()) entries.push_back({token, id_of(id, token, file, key)});
  return entries;
}

TokenizerKind kind_of(const Json& model, const fs::path& file) {
  const Json* vocab = model.find("vocab");
  if (vocab == nullptr) damaged(file, "the tokenizer has no vocabulary", "model.vocab");
  if (const Json* type = model.find("type"); type != nullptr && !type->is_null()) {
    const std::string* name = type->string();
    for (const TokenizerKind kind : {TokenizerKind::bpe, TokenizerKind::wordpiece, TokenizerKind::wordlevel, TokenizerKind::unigram})
      if (name != nullptr && *name == to_string(kind)) return kind;
    throw Error(ErrorCode::unsupported, "unknown kind of tokenizer '" + (name == nullptr ? std::string("?") : printable(*name)) + "'",
                {.file = file.string(), .key = "model.type"}, "known are BPE, WordPiece, WordLevel and Unigram");
  }
  // Old files name no type.
  if (vocab->is_array()) return TokenizerKind::unigram;
  if (model.find("merges") != nullptr) return TokenizerKind::bpe;
  return model.find("max_input_chars_per_word") != nullptr ? TokenizerKind::wordpiece : TokenizerKind::wordlevel;
}

}  // namespace

TokenizerEntries read_tokenizer_entries(const Json& json, const Json* config, const fs::path& file) {
  const Json* model = json.find("model");
  if (model == nullptr || !model->is_object()) damaged(file, "this is no tokenizer: it has no 'model'", "model");
  const TokenizerKind kind = kind_of(*model, file);
  const Json& vocab = *model->find("vocab");
  std::vector<Vocabulary::Entry> entries;
  if (kind == TokenizerKind::unigram) {
    if (!vocab.is_array()) damaged(file, "the vocabulary of a Unigram tokenizer is no list", "model.vocab");
    for (const Json& piece : *vocab.array()) {
      const Json::Array* pair = piece.array();
      const std::string* token = pair == nullptr || pair->empty() ? nullptr : pair->front().string();
      if (token == nullptr) damaged(file, "piece " + std::to_string(entries.size()) + " is no pair of a text and a score", "model.vocab");
      if (entries.size() >= kMaxIds) damaged(file, "more than " + std::to_string(kMaxIds) + " pieces", "model.vocab");
      entries.push_back({*token, static_cast<std::uint32_t>(entries.size())});
    }
  } else {
    entries = entries_of(vocab, file, "model.vocab");
  }

  std::vector<AddedToken> added;
  if (const Json* list = json.find("added_tokens"); list != nullptr && !list->is_null()) {
    if (!list->is_array()) damaged(file, "the added tokens are no list", "added_tokens");
    for (const Json& item : *list->array()) {
      const Json* content = item.find("content");
      const Json* id = item.find("id");
      if (content == nullptr || content->string() == nullptr || id == nullptr)
        damaged(file, "an added token has no content or no id", "added_tokens");
      if (content->string()->empty()) continue;  // the tokenizers library skips them too
      added.push_back(added_token(item, *content->string(), id_of(*id, *content->string(), file, "added_tokens")));
    }
  }
  // transformers adds what only tokenizer_config.json knows.
  if (const Json* decoder = config == nullptr ? nullptr : config->find("added_tokens_decoder"); decoder != nullptr && decoder->is_object()) {
    std::unordered_map<std::string_view, bool> known;
    std::unordered_map<std::uint32_t, bool> taken;
    for (const auto& entry : entries) known.emplace(entry.token, true), taken.emplace(entry.id, true);
    for (const auto& token : added) known.emplace(token.content, true), taken.emplace(token.id, true);
    const std::size_t in_file = added.size();
    std::vector<AddedToken> more;
    for (const auto& [key, item] : *decoder->object()) {
      const Json* content = item.find("content");
      const auto id = Json(Json::Number{key}).unsigned_integer();
      if (content == nullptr || content->string() == nullptr || content->string()->empty() || !id || *id >= kMaxIds) continue;
      if (known.contains(*content->string()) || !taken.emplace(static_cast<std::uint32_t>(*id), true).second) continue;
      more.push_back(added_token(item, *content->string(), static_cast<std::uint32_t>(*id)));
    }
    added.insert(added.begin() + static_cast<std::ptrdiff_t>(in_file), more.begin(), more.end());
  }
  return {kind, std::move(entries), std::move(added)};
}

namespace {

/// Lines of a vocab.txt; of equal lines the last one counts, as for a Python dictionary.
std::vector<Vocabulary::Entry> entries_of_lines(std::string_view text, const fs::path& file) {
  std::vector<Vocabulary::Entry> entries;
  std::unordered_map<std::string_view, std::size_t> seen;
  for (std::uint32_t id = 0; !text.empty(); ++id) {
    if (id >= kMaxIds) damaged(file, "more than " + std::to_string(kMaxIds) + " lines");
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!is_valid_utf8(line)) damaged(file, "line " + std::to_string(id + 1) + " is not UTF-8");
    const auto [at, added] = seen.try_emplace(line, entries.size());
    if (added)
      entries.push_back({std::string(line), id});
    else
      entries[at->second].id = id;
  }
  return entries;
}

/// Pieces of a SentencePiece model, which are all different.
std::vector<Vocabulary::Entry> entries_of_pieces(const fs::path& file) {
  SentencePieceFile model = read_sentencepiece(read_text_file(file, kMaxTextBytes), file);
  if (model.pieces.size() > kMaxIds) damaged(file, "more than " + std::to_string(kMaxIds) + " pieces");
  std::vector<Vocabulary::Entry> entries;
  entries.reserve(model.pieces.size());
  for (std::uint32_t id = 0; id < model.pieces.size(); ++id) entries.push_back({std::move(model.pieces[id].text), id});
  return entries;
}

/// Tokens of added_tokens.json, with the flags that tokenizer_config.json knows.
std::vector<AddedToken> added_of_folder(const fs::path& folder, const std::vector<std::string>& files, const Json* config) {
  std::vector<AddedToken> added;
  std::unordered_map<std::string, bool> known;
  if (const Json* decoder = config == nullptr ? nullptr : config->find("added_tokens_decoder"); decoder != nullptr && decoder->is_object()) {
    for (const auto& [key, item] : *decoder->object()) {
      const Json* content = item.find("content");
      if (content == nullptr || content->string() == nullptr || content->string()->empty()) continue;
      const std::uint32_t id = id_of(Json(Json::Number{key}), *content->string(), folder / "tokenizer_config.json", "added_tokens_decoder");
      if (known.emplace(*content->string(), true).second) added.push_back(added_token(item, *content->string(), id));
    }
  }
  const fs::path file = folder / "added_tokens.json";
  if (contains(files, "added_tokens.json")) {
    const Json json = read_json_file(file);
    for (auto& [token, id] : entries_of(json, file, "")) {
      if (token.empty() || !known.emplace(token, true).second) continue;
      AddedToken plain;
      plain.id = id;
      plain.content = std::move(token);
      plain.normalized = true;
      added.push_back(std::move(plain));
    }
  }
  return added;
}

std::optional<ChatTemplate> chat_template_of(const fs::path& folder, const std::vector<std::string>& files, const Json* config) {
  const fs::path own = folder / "chat_template.jinja";
  if (contains(files, "chat_template.jinja")) {
    std::string text = read_text_file(own, kMaxTemplateBytes);
    if (!is_valid_utf8(text)) damaged(own, "the chat template is not UTF-8");
    return ChatTemplate{std::move(text), true};
  }
  const Json* value = config == nullptr ? nullptr : config->find("chat_template");
  if (value == nullptr) return std::nullopt;
  if (const std::string* text = value->string()) return ChatTemplate{*text, false};
  if (const Json::Array* list = value->array()) {
    for (const Json& item : *list) {
      const Json* name = item.find("name");
      const Json* text = item.find("template");
      if (name != nullptr && name->string() != nullptr && *name->string() == "default" && text != nullptr && text->string() != nullptr)
        return ChatTemplate{*text->string(), false};
    }
  }
  return std::nullopt;
}

std::shared_ptr<const Json> read_if_there(const fs::path& folder, const std::vector<std::string>& files, std::string_view name) {
  if (!contains(files, name)) return nullptr;
  const fs::path file = folder / name;
  auto json = std::make_shared<const Json>(read_json_file(file));
  if (!json->is_object()) damaged(file, "expected an object");
  return json;
}

}  // namespace

std::string_view to_string(TokenizerKind kind) noexcept {
  switch (kind) {
    case TokenizerKind::none:
      return "";
    case TokenizerKind::bpe:
      return "BPE";
    case TokenizerKind::wordpiece:
      return "WordPiece";
    case TokenizerKind::wordlevel:
      return "WordLevel";
    case TokenizerKind::unigram:
      return "Unigram";
    case TokenizerKind::tiktoken:
      return "tiktoken";
    case TokenizerKind::sentencepiece:
      return "sentencepiece";
  }
  return "";
}

bool AddedToken::same_definition(const AddedToken& other) const noexcept {
  return content == other.content && single_word == other.single_word && lstrip == other.lstrip && rstrip == other.rstrip &&
         normalized == other.normalized && special == other.special;
}

Vocabulary::Vocabulary(TokenizerKind kind, std::vector<Entry> entries, std::vector<AddedToken> added, const std::filesystem::path& file)
    : kind_(kind), entries_(std::move(entries)), added_(std::move(added)) {
  // Of equal pieces in a Unigram list the last one counts, as in the tokenizers library; elsewhere a token has one id.
  by_token_.reserve(entries_.size() + added_.size());
  for (const Entry& entry : entries_) {
    const auto [at, is_new] = by_token_.try_emplace(entry.token, entry.id);
    if (is_new || at->second == entry.id) continue;
    if (kind_ != TokenizerKind::unigram)
      damaged(file, "token '" + printable(entry.token) + "' has two ids, " + std::to_string(at->second) + " and " + std::to_string(entry.id));
    at->second = entry.id;
  }
  if (kind_ == TokenizerKind::unigram) std::erase_if(entries_, [&](const Entry& entry) { return by_token_.at(entry.token) != entry.id; });
  for (const AddedToken& token : added_) {
    const auto [at, is_new] = by_token_.try_emplace(token.content, token.id);
    if (is_new)
      entries_.push_back({token.content, token.id});
    else if (at->second != token.id)
      damaged(file, "added token '" + printable(token.content) + "' has id " + std::to_string(token.id) + ", but " + std::to_string(at->second) +
                        " elsewhere in the tokenizer");
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.id < b.id; });
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].id >= kMaxIds)
      damaged(file, "token '" + printable(entries_[i].token) + "' has id " + std::to_string(entries_[i].id) + "; " + std::to_string(kMaxIds - 1) +
                        " is the highest possible");
    if (i > 0 && entries_[i].id == entries_[i - 1].id)
      damaged(file, "tokens '" + printable(entries_[i - 1].token) + "' and '" + printable(entries_[i].token) + "' have the same id " +
                        std::to_string(entries_[i].id));
  }
  std::stable_sort(added_.begin(), added_.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  // The same token twice in the list: the first definition counts.
  added_.erase(std::unique(added_.begin(), added_.end(), [](const AddedToken& a, const AddedToken& b) { return a.id == b.id; }), added_.end());
  for (std::size_t i = 0; i < added_.size(); ++i) added_by_token_.emplace(added_[i].content, static_cast<std::uint32_t>(i));
}

std::optional<std::uint32_t> Vocabulary::find(std::string_view token) const noexcept {
  const auto at = by_token_.find(token);
  return at == by_token_.end() ? std::nullopt : std::optional(at->second);
}

const std::string* Vocabulary::token(std::uint64_t id) const noexcept {
  // Usually ids have no gaps.
  if (id < entries_.size() && entries_[id].id == id) return &entries_[id].token;
  const auto at = std::lower_bound(entries_.begin(), entries_.end(), id, [](const Entry& entry, std::uint64_t wanted) { return entry.id < wanted; });
  return at == entries_.end() || at->id != id ? nullptr : &at->token;
}

const AddedToken* Vocabulary::find_added(std::string_view token) const noexcept {
  const auto at = added_by_token_.find(token);
  return at == added_by_token_.end() ? nullptr : &added_[at->second];
}

void TokenizerFolder::require_readable(std::string_view why) const {
  if ((kind() == TokenizerKind::sentencepiece && vocabulary.num_ids() == 0) || kind() == TokenizerKind::tiktoken)
    throw Error(
        ErrorCode::unsupported,
        "the tokenizer is a " + std::string(to_string(kind())) + " model, not yet readable here, but " + std::string(why) + " needs its tokens",
        {.file = folder.string()}, "save the tokenizer as tokenizer.json beside it (the model's 'fast' tokenizer)");
  if (kind() == TokenizerKind::none)
    throw Error(ErrorCode::not_found, "the model has no tokenizer, but " + std::string(why) + " needs it", {.file = folder.string()},
                "put tokenizer.json into the folder");
}

std::vector<std::string> tokenizer_files(const std::filesystem::path& folder) {
  std::vector<std::string> files;
  std::error_code ignored;  // what is no folder has no tokenizer beside it
  if (!fs::is_directory(folder, ignored)) return files;
  for (std::string& name : companion_files(folder))
    if (name.ends_with(".tiktoken") || std::find(kTokenizerFiles.begin(), kTokenizerFiles.end(), name) != kTokenizerFiles.end())
      files.push_back(std::move(name));
  return files;
}

TokenizerFolder read_tokenizer(const std::filesystem::path& folder) {
  TokenizerFolder result;
  result.folder = folder;
  result.files = tokenizer_files(folder);
  const auto has = [&](std::string_view name) { return contains(result.files, name); };

  result.tokenizer_config = read_if_there(folder, result.files, "tokenizer_config.json");
  result.tokenizer_json = read_if_there(folder, result.files, "tokenizer.json");
  const Json* config = result.tokenizer_config.get();
  if (result.tokenizer_json) {
    TokenizerEntries entries = read_tokenizer_entries(*result.tokenizer_json, config, folder / "tokenizer.json");
    result.vocabulary = Vocabulary(entries.kind, std::move(entries.model), std::move(entries.added), folder / "tokenizer.json");
  } else if (has("vocab.json")) {
    const fs::path file = folder / "vocab.json";
    const TokenizerKind kind = has("merges.txt") ? TokenizerKind::bpe : TokenizerKind::wordlevel;
    result.vocabulary = Vocabulary(kind, entries_of(read_json_file(file), file, ""), added_of_folder(folder, result.files, config), file);
  } else if (has("vocab.txt")) {
    const fs::path file = folder / "vocab.txt";
    result.vocabulary = Vocabulary(TokenizerKind::wordpiece, entries_of_lines(read_text_file(file, kMaxTextBytes), file),
                                   added_of_folder(folder, result.files, config), file);
  } else if (has("tokenizer.model") || has("spiece.model")) {
    const fs::path file = folder / (has("tokenizer.model") ? "tokenizer.model" : "spiece.model");
    result.vocabulary = Vocabulary(TokenizerKind::sentencepiece, entries_of_pieces(file), added_of_folder(folder, result.files, config), file);
  } else if (has("sentencepiece.bpe.model")) {
    // Its models put tokens of their own before the pieces, which the file does not tell.
    result.vocabulary = Vocabulary(TokenizerKind::sentencepiece, {}, {}, folder);
  } else if (std::any_of(result.files.begin(), result.files.end(), [](const std::string& name) { return name.ends_with(".tiktoken"); })) {
    result.vocabulary = Vocabulary(TokenizerKind::tiktoken, {}, {}, folder);
  }
  result.chat_template = chat_template_of(folder, result.files, config);
  return result;
}

std::optional<ChatTemplate> read_chat_template(const std::filesystem::path& folder) {
  const std::vector<std::string> files = tokenizer_files(folder);
  return chat_template_of(folder, files, read_if_there(folder, files, "tokenizer_config.json").get());
}

}  // namespace weft::model
