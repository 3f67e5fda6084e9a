#include "engine/merge_tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/json.h"
#include "model/vocabulary.h"
#include "weft/error.h"

namespace weft::engine {

using model::AddedToken;
using model::TokenizerFolder;
using model::TokenizerKind;
using model::Vocabulary;

namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kMaxTextBytes = 100'000'000;
// How many tokens a warning lists by name.
constexpr std::size_t kListed = 5;

/// A rule with its place found.
struct RowRule {
  TokenRule::Source source = TokenRule::Source::none;
  std::size_t model = 0;
  std::uint64_t id = 0;  ///< in that model
  bool force = false;
};

std::string quote_token(std::string_view token) { return "'" + printable(token) + "'"; }

std::string list_tokens(const std::vector<std::string>& tokens) {
  std::string text;
  for (std::size_t i = 0; i < std::min(tokens.size(), kListed); ++i) text += (i == 0 ? "" : ", ") + quote_token(tokens[i]);
  if (tokens.size() > kListed) text += " and " + std::to_string(tokens.size() - kListed) + " more";
  return text;
}

std::string count_tokens(std::size_t count) { return std::to_string(count) + (count == 1 ? " token" : " tokens"); }

}  // namespace

struct TokenizerPlan::State {
  std::vector<TokenizerModel> models;
  std::size_t base = 0;
  Vocabulary output;
  std::vector<std::vector<std::uint32_t>> own;       ///< by model, by output id; kNone where it has no such token
  std::unordered_map<std::uint32_t, RowRule> rules;  ///< by output id
  std::uint64_t num_rows = 0;
  std::vector<std::string> warnings;
  std::vector<CompanionFile> files;
};

namespace {

// ---------------------------------------------------------------------------------------------------------------------------------------------------
// The output's tokens

/// A vocabulary that is being put together.
class Builder {
 public:
  explicit Builder(const Vocabulary& start) : kind_(start.kind()), added_(start.added().begin(), start.added().end()) {
    for (const Vocabulary::Entry& entry : start.entries()) ids_.emplace(entry.token, entry.id);
    for (const AddedToken& token : added_) added_names_.insert(token.content);
    next_ = start.num_ids();
  }

  [[nodiscard]] bool has(const std::string& token) const { return ids_.contains(token); }
  [[nodiscard]] bool has_added(const std::string& token) const { return added_names_.contains(token); }

  /// Appends a token, or makes one that exists an added one.
  void add(AddedToken token) {
    if (!added_names_.insert(token.content).second) return;
    if (const auto at = ids_.find(token.content); at != ids_.end()) {
      token.id = at->second;
    } else {
      token.id = static_cast<std::uint32_t>(next_++);
      ids_.emplace(token.content, token.id);
    }
    added_.push_back(std::move(token));
  }
  void add_plain(const std::string& token) {
    AddedToken plain;  // the flags that the tokenizers library gives to a text
    plain.content = token;
    plain.normalized = true;
    add(std::move(plain));
  }

  [[nodiscard]] Vocabulary finish(const std::filesystem::path& file) const {
    std::vector<Vocabulary::Entry> entries;
    entries.reserve(ids_.size());
    for (const auto& [token, id] : ids_) entries.push_back({token, id});
    return Vocabulary(kind_, std::move(entries), added_, file);
  }

 private:
  TokenizerKind kind_;
  std::unordered_map<std::string, std::uint32_t> ids_;
  std::vector<AddedToken> added_;
  std::unordered_set<std::string> added_names_;
  std::uint64_t next_ = 0;
};

/// Without the tokens that the model has no rows for.
Vocabulary strip_unused(const Vocabulary& full, const TokenizerModel& model, std::vector<std::string>& warnings) {
  const std::uint64_t limit = model.vocab_size.value_or(full.num_ids());
  std::vector<std::string> gone;
  std::vector<Vocabulary::Entry> entries;
  for (const Vocabulary::Entry& entry : full.entries()) {
    if (entry.id < limit) {
      entries.push_back(entry);
      continue;
    }
    gone.push_back(entry.token);
    if (full.kind() != TokenizerKind::bpe && full.find_added(entry.token) == nullptr)
      throw Error(ErrorCode::unsupported,
                  "token " + quote_token(entry.token) + " has id " + std::to_string(entry.id) + ", but vocab_size is " + std::to_string(limit) +
                      "; it cannot be removed from a " + std::string(to_string(full.kind())) + " tokenizer",
                  {.file = model.folder.string(), .key = "tokenizer.source"}, "name the model instead of 'base' as the source of the tokenizer");
  }
  if (gone.empty()) return full;
  warnings.push_back(count_tokens(gone.size()) + " of " + model.name + " lie beyond its vocab_size " + std::to_string(limit) +
                     " and were left out: " + list_tokens(gone));
  std::vector<AddedToken> added;
  for (const AddedToken& token : full.added())
    if (token.id < limit) added.push_back(token);
  return Vocabulary(full.kind(), std::move(entries), std::move(added), model.folder);
}

/// The base's tokens, then the ordinary ones of the others, then added ones.
Vocabulary unite(const std::vector<TokenizerModel>& models, const std::vector<const Vocabulary*>& vocabularies, std::size_t base,
                 std::vector<std::string>& warnings) {
  Builder builder(*vocabularies[base]);
  std::vector<std::size_t> order{base};
  for (std::size_t m = 0; m < models.size(); ++m)
    if (m != base) order.push_back(m);
  const auto in_use = [&](std::size_t m, std::uint32_t id) { return !models[m].vocab_size || id < *models[m].vocab_size; };

  // The first definition of each added token counts.
  std::vector<const AddedToken*> added;
  std::unordered_map<std::string_view, std::pair<const AddedToken*, std::size_t>> first;
  std::vector<std::string> disputed;
  for (const std::size_t m : order) {
    for (const AddedToken& token : vocabularies[m]->added()) {
      if (!in_use(m, token.id)) continue;
      const auto [at, is_new] = first.try_emplace(token.content, &token, m);
      if (is_new)
        added.push_back(&token);
      else if (!at->second.first->same_definition(token) && std::find(disputed.begin(), disputed.end(), token.content) == disputed.end())
        disputed.push_back(token.content);
    }
  }
  if (!disputed.empty())
    warnings.push_back("the models define " + count_tokens(disputed.size()) +
                       " differently; the first definition was kept: " + list_tokens(disputed));

  std::size_t beyond = 0;
  for (const std::size_t m : order) {
    for (const Vocabulary::Entry& entry : vocabularies[m]->entries()) {
      if (!in_use(m, entry.id)) {
        ++beyond;
        continue;
      }
      if (m != base && !builder.has(entry.token) && !first.contains(entry.token)) builder.add_plain(entry.token);
    }
  }
  if (beyond != 0) warnings.push_back(count_tokens(beyond) + " with ids beyond the vocab_size of the model were not taken over");
  for (const AddedToken* token : added) builder.add(*token);
  return builder.finish(models[base].folder);
}

// ---------------------------------------------------------------------------------------------------------------------------------------------------
// The output's files

/// How a JSON file was written, so that editing it changes no more than it must.
struct JsonStyle {
  int indent = 0;
  bool ascii = false;
  bool newline_at_end = false;
};
JsonStyle style_of(std::string_view text) {
  JsonStyle style;
  if (const std::size_t line = text.find('\n'); line != std::string_view::npos && line < 8)
    while (line + 1 + static_cast<std::size_t>(style.indent) < text.size() && text[line + 1 + static_cast<std::size_t>(style.indent)] == ' ')
      ++style.indent;
  style.indent = std::min(style.indent, 8);
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  style.ascii = plain && text.find("\\u") != std::string_view::npos;
  style.newline_at_end = text.ends_with('\n');
  return style;
}

/// A JSON file that is read, changed and written in its own style.
struct EditedJson {
  std::filesystem::path path;
  JsonStyle style;
  Json json;

  explicit EditedJson(std::filesystem::path file) : path(std::move(file)) {
    const std::string text = read_text_file(path, kMaxTextBytes);
    style = style_of(text);
    json = parse_json(text, path);
  }
  [[nodiscard]] CompanionFile finish() const {
    return {path.filename().string(), write_json(json, style.indent, style.ascii) + (style.newline_at_end ? "\n" : "")};
  }
};

Json definition(const AddedToken& token, bool with_content_first) {
  Json object{Json::Object{}};
  if (!with_content_first) object.set("id", Json(static_cast<std::uint64_t>(token.id)));
  object.set("content", Json(token.content));
  if (with_content_first) {  // the order of tokenizer_config.json
    object.set("lstrip", Json(token.lstrip));
    object.set("normalized", Json(token.normalized));
    object.set("rstrip", Json(token.rstrip));
    object.set("single_word", Json(token.single_word));
  } else {
    object.set("single_word", Json(token.single_word));
    object.set("lstrip", Json(token.lstrip));
    object.set("rstrip", Json(token.rstrip));
    object.set("normalized", Json(token.normalized));
  }
  object.set("special", Json(token.special));
  return object;
}

/// Whether a merge ("a b" or [a, b]) needs a token that is gone.
bool merge_is_gone(std::string_view left, std::string_view right, std::string_view prefix, const Vocabulary& output) {
  if (!prefix.empty() && right.starts_with(prefix))
    return !output.find(left) || !output.find(right) || !output.find(std::string(left) + std::string(right.substr(prefix.size())));
  return !output.find(left) || !output.find(right) || !output.find(std::string(left) + std::string(right));
}

void remove_gone_tokens(Json::Object& vocab, const Vocabulary& output) {
  std::erase_if(vocab, [&](const Json::Member& member) { return !output.find(member.first); });
}

void edit_tokenizer_json(Json& json, const Vocabulary& before, const Vocabulary& output, bool removed) {
  std::unordered_map<std::string, Json> old;
  if (Json* list = json.find("added_tokens"); list != nullptr && list->array() != nullptr)
    for (Json& item : *list->array())
      if (const Json* content = item.find("content"); content != nullptr && content->string() != nullptr)
        old.emplace(*content->string(), std::move(item));
  Json::Array added;
  for (const AddedToken& token : output.added()) {
    const AddedToken* same = before.find_added(token.content);
    const auto at = old.find(token.content);
    if (at != old.end() && same != nullptr && same->id == token.id && same->same_definition(token))
      added.push_back(std::move(at->second));
    else
      added.push_back(definition(token, false));
  }
  json.set("added_tokens", Json(std::move(added)));
  if (!removed) return;
  Json* model = json.find("model");
  if (Json* vocab = model->find("vocab"); vocab->object() != nullptr) remove_gone_tokens(*vocab->object(), output);
  const Json* prefix_value = model->find("continuing_subword_prefix");
  const std::string prefix = prefix_value == nullptr || prefix_value->string() == nullptr ? std::string() : *prefix_value->string();
  if (Json* merges = model->find("merges"); merges != nullptr && merges->array() != nullptr) {
    std::erase_if(*merges->array(), [&](const Json& merge) {
      if (const std::string* text = merge.string()) {
        const std::size_t space = text->find(' ');
        return space != std::string::npos &&
               merge_is_gone(std::string_view(*text).substr(0, space), std::string_view(*text).substr(space + 1), prefix, output);
      }
      const Json::Array* pair = merge.array();
      return pair != nullptr && pair->size() == 2 && (*pair)[0].string() != nullptr && (*pair)[1].string() != nullptr &&
             merge_is_gone(*(*pair)[0].string(), *(*pair)[1].string(), prefix, output);
    });
  }
}

void edit_tokenizer_config(Json& json, const Vocabulary& before, const Vocabulary& output, bool must_list) {
  Json* decoder = json.find("added_tokens_decoder");
  if (decoder == nullptr || decoder->object() == nullptr) {
    if (!must_list) return;
    decoder = &json.set("added_tokens_decoder", Json(Json::Object{}));
    decoder = json.find("added_tokens_decoder");
  }
  Json::Object& entries = *decoder->object();
  const auto content_of = [](const Json& item) -> std::string {
    const Json* content = item.find("content");
    return content != nullptr && content->string() != nullptr ? *content->string() : std::string();
  };
  std::erase_if(entries, [&](const Json::Member& member) { return !output.find(content_of(member.second)); });
  std::unordered_map<std::string, std::size_t> listed;
  for (std::size_t i = 0; i < entries.size(); ++i) listed.emplace(content_of(entries[i].second), i);
  for (const AddedToken& token : output.added()) {
    const AddedToken* same = before.find_added(token.content);
    const auto at = listed.find(token.content);
    if (at == listed.end())
      entries.emplace_back(std::to_string(token.id), definition(token, true));
    else if (same == nullptr || !same->same_definition(token))
      entries[at->second].second = definition(token, true);
  }
}

std::string merges_without(std::string_view text, const Vocabulary& output) {
  std::string kept;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    const std::string_view whole = text.substr(0, std::min(end + 1, text.size()));
    text.remove_prefix(whole.size());
    if (line.ends_with('\r')) line.remove_suffix(1);
    const std::size_t space = line.find(' ');
    if (!line.starts_with("#version") && space != std::string_view::npos && merge_is_gone(line.substr(0, space), line.substr(space + 1), "", output))
      continue;
    kept += whole;
  }
  return kept;
}

/// {"token": id, ...}, as in added_tokens.json.
void append_new_tokens(Json& object, const Vocabulary& before, const Vocabulary& output) {
  if (object.object() == nullptr) return;
  for (const AddedToken& token : output.added())
    if (!before.find(token.content)) object.object()->emplace_back(token.content, Json(static_cast<std::uint64_t>(token.id)));
}

void set_chat_template(Json& config, const std::string& text) { config.set("chat_template", Json(text)); }

/// The files of `folder`, with the output's tokens and chat template. before: the tokens they have now.
std::vector<CompanionFile> tokenizer_output_files(const TokenizerFolder& from, const Vocabulary& before, const Vocabulary& output,
                                                  const std::optional<std::string>& chat_template, std::vector<std::string>& warnings) {
  const auto has = [&](std::string_view name) { return std::find(from.files.begin(), from.files.end(), name) != from.files.end(); };
  bool removed = false;
  for (const Vocabulary::Entry& entry : before.entries()) removed = removed || !output.find(entry.token);
  bool changed = removed || output.added().size() != before.added().size();
  for (const AddedToken& token : output.added()) {
    const AddedToken* same = before.find_added(token.content);
    changed = changed || same == nullptr || !same->same_definition(token);
  }
  const bool template_in_config =
      chat_template && (!has("chat_template.jinja") || (from.tokenizer_config && from.tokenizer_config->find("chat_template")));
  // Without tokenizer.json the added tokens live in these two.
  const bool legacy = !has("tokenizer.json");

  std::vector<CompanionFile> files;
  for (const std::string& name : from.files) {
    const std::filesystem::path path = from.folder / name;
    if (name == "chat_template.jinja" && chat_template) {
      files.push_back({name, *chat_template});
    } else if (name == "tokenizer_config.json" && (changed || template_in_config)) {
      EditedJson file(path);
      if (changed) edit_tokenizer_config(file.json, before, output, legacy);
      if (template_in_config) set_chat_template(file.json, *chat_template);
      files.push_back(file.finish());
    } else if (name == "tokenizer.json" && changed) {
      EditedJson file(path);
      edit_tokenizer_json(file.json, before, output, removed);
      files.push_back(file.finish());
    } else if (name == "vocab.json" && removed) {
      EditedJson file(path);
      if (file.json.object() != nullptr) remove_gone_tokens(*file.json.object(), output);
      files.push_back(file.finish());
    } else if (name == "merges.txt" && removed) {
      files.push_back({name, merges_without(read_text_file(path, kMaxTextBytes), output)});
    } else if (name == "added_tokens.json" && changed) {
      EditedJson file(path);
      if (file.json.object() != nullptr) remove_gone_tokens(*file.json.object(), output);
      append_new_tokens(file.json, before, output);
      files.push_back(file.finish());
    } else {
      files.push_back({name, {}, path});
    }
  }
  if (legacy && changed && !has("added_tokens.json")) {
    Json tokens{Json::Object{}};
    append_new_tokens(tokens, before, output);
    if (!tokens.object()->empty()) files.push_back({"added_tokens.json", write_json(tokens, 2) + "\n"});
  }
  if (template_in_config && !has("tokenizer_config.json")) {
    Json config{Json::Object{}};
    set_chat_template(config, *chat_template);
    files.push_back({"tokenizer_config.json", write_json(config, 2) + "\n"});
  }
  for (const char* name : {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"})
    if (changed && has(name))
      warnings.push_back(has("tokenizer.json")
                             ? std::string(name) + " is copied as it is; only tokenizer.json has the changed vocabulary"
                             : std::string(name) + " is copied as it is, although the vocabulary changed; new tokens stand in added_tokens.json");
  return files;
}

/// Warns about special tokens that tokenizer_config.json names and the output lacks: libraries would add them behind the last row.
void check_named_tokens(const TokenizerFolder& from, const Vocabulary& output, std::vector<std::string>& warnings) {
  if (!from.tokenizer_config) return;
  for (const char* key : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    const Json* value = from.tokenizer_config->find(key);
    if (value != nullptr && value->is_object()) value = value->find("content");
    if (value == nullptr || value->string() == nullptr || output.find(*value->string())) continue;
    warnings.push_back(std::string(key) + " of " + from.folder.string() + " is " + quote_token(*value->string()) +
                       ", which the output's vocabulary does not have");
  }
}

/// Warns about token ids in the donor's configs (which are copied) that mean another token in the output.
void check_config_ids(const std::filesystem::path& donor, const Vocabulary& before, const Vocabulary& output, std::vector<std::string>& warnings) {
  for (const char* name : {"config.json", "generation_config.json"}) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(donor / name, ignored)) continue;
    const Json config = read_json_file(donor / name);
    for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"}) {
      const Json* value = config.find(key);
      if (value == nullptr) continue;
      const Json::Array one{*value};
      for (const Json& item : value->is_array() ? *value->array() : one) {
        const auto id = item.unsigned_integer();
        const std::string* meant = id ? before.token(*id) : nullptr;
        const std::string* now = id ? output.token(*id) : nullptr;
        if (meant == nullptr || (now != nullptr && *now == *meant)) continue;
        const auto moved = output.find(*meant);
        warnings.push_back(std::string(key) + " in " + name + " is " + std::to_string(*id) + ", which means " + quote_token(*meant) +
                           "; in the output " + (moved ? "that is " + std::to_string(*moved) : std::string("there is no such token")) +
                           ": change it by hand");
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------------------------------------
// Rules

RowRule resolve_rule(const TokenRule& rule, const std::vector<TokenizerModel>& models, const std::vector<const Vocabulary*>& vocabularies) {
  const std::string key = "tokenizer.tokens." + printable(rule.token);
  RowRule result{rule.source, rule.model, 0, rule.force};
  if (rule.source == TokenRule::Source::none) {
    if (rule.force)
      throw Error(ErrorCode::invalid_argument, "force: true for token " + quote_token(rule.token) + " needs a source", {.key = key},
                  "say where its row comes from: source: MODEL, {kind: zero} or {kind: model_token, ...}");
    return result;
  }
  if (rule.source == TokenRule::Source::zero) return result;
  const TokenizerModel& model = models.at(rule.model);
  const Vocabulary& vocabulary = *vocabularies[rule.model];
  const ErrorPlace place{.file = model.folder.string(), .key = key + ".source"};
  if (rule.source == TokenRule::Source::other_token && rule.other_token.has_value() == rule.other_id.has_value())
    throw Error(ErrorCode::invalid_argument, "the source of token " + quote_token(rule.token) + " needs exactly one of token and token_id", place);
  if (rule.source == TokenRule::Source::other_token && rule.other_id) {
    result.id = *rule.other_id;
    if (model.vocab_size && result.id >= *model.vocab_size)
      throw Error(ErrorCode::invalid_argument,
                  "token_id " + std::to_string(result.id) + " is beyond the vocab_size " + std::to_string(*model.vocab_size) + " of " + model.name,
                  place);
    return result;
  }
  const std::string& wanted = rule.source == TokenRule::Source::same_token ? rule.token : *rule.other_token;
  const auto id = vocabulary.find(wanted);
  if (!id || (model.vocab_size && *id >= *model.vocab_size))
    throw Error(ErrorCode::invalid_argument, "token " + quote_token(wanted) + " is not in the vocabulary of " + model.name, place,
                "name a model that has it, or another of its tokens: {kind: model_token, model: ..., token: ...}");
  result.id = *id;
  return result;
}

// ---------------------------------------------------------------------------------------------------------------------------------------------------
// Chat templates

// Our own texts for the well-known prompt formats; the first is the usual spelling of ChatML, which many tools recognise by its text.
constexpr std::string_view kChatml =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n";

constexpr std::string_view kAlpaca =
    "{% set heading = {'user': 'Instruction', 'user_context': 'Input', 'assistant': 'Response'} %}\n"
    "{% for message in messages %}\n"
    "{% if message['role'] == 'system' or message['role'] in heading %}\n"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}\n"
    "{% if message['role'] != 'system' %}{{ '### ' + heading[message['role']] + ':\\n' }}{% endif %}\n"
    "{{- message['content'] | trim -}}\n"
    "{% endif %}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}\n";

constexpr std::string_view kExaone =
    "{% if messages and messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}\n"
    "{% for message in messages %}\n"
    "{{- '[|' + message['role'] + '|]' + message['content'] + ('\\n' if message['role'] == 'user' else '[|endofturn|]\\n') -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}\n";

constexpr std::string_view kLlama3 =
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}\n";

constexpr std::string_view kMistral =
    "{{- bos_token }}\n"
    "{%- set ns = namespace(system='') %}\n"
    "{%- for message in messages %}\n"
    "{%- if message['role'] == 'system' %}\n"
    "{%- set ns.system = (message['content'] | trim) + '\\n\\n' %}\n"
    "{%- elif message['role'] == 'user' %}\n"
    "{{- '[INST] ' + ns.system + (message['content'] | trim) + ' [/INST]' }}\n"
    "{%- set ns.system = '' %}\n"
    "{%- elif message['role'] == 'assistant' %}\n"
    "{{- ' ' + (message['content'] | trim) }}{{ eos_token }}\n"
    "{%- else %}\n"
    "{{- raise_exception('the roles of this format are system, user and assistant, not ' + message['role']) }}\n"
    "{%- endif %}\n"
    "{%- endfor %}\n";

constexpr std::array<std::string_view, 5> kTemplateNames = {"alpaca", "chatml", "exaone", "llama3", "mistral"};
constexpr std::array<std::string_view, 5> kTemplateTexts = {kAlpaca, kChatml, kExaone, kLlama3, kMistral};

}  // namespace

TokenizerSpec resolve_tokenizer(const ConfigTokenizer& config, std::span<const ModelRef> models) {
  const auto position = [&](const ModelRef& ref, const std::string& key) {
    const auto at = std::find(models.begin(), models.end(), ref);
    if (at == models.end()) throw Error(ErrorCode::invalid_argument, "model " + printable(ref.written) + " is not part of the merge", {.key = key});
    return static_cast<std::size_t>(at - models.begin());
  };
  TokenizerSpec spec;
  switch (config.source) {
    case ConfigVocabulary::union_of_all:
      spec.source = TokenizerSpec::Source::union_of_all;
      break;
    case ConfigVocabulary::base:
      spec.source = TokenizerSpec::Source::base;
      break;
    case ConfigVocabulary::model:
      spec.source = TokenizerSpec::Source::model;
      spec.model = position(config.model, "tokenizer.source");
      break;
  }
  for (const ConfigTokenRule& from : config.tokens) {
    TokenRule rule;
    rule.token = from.token;
    rule.force = from.force;
    rule.other_token = from.source_token;
    rule.other_id = from.source_id;
    switch (from.source) {
      case ConfigTokenSource::none:
        rule.source = TokenRule::Source::none;
        break;
      case ConfigTokenSource::zero:
        rule.source = TokenRule::Source::zero;
        break;
      case ConfigTokenSource::model:
        rule.source = TokenRule::Source::same_token;
        break;
      case ConfigTokenSource::model_token:
        rule.source = TokenRule::Source::other_token;
        break;
    }
    if (from.source == ConfigTokenSource::model || from.source == ConfigTokenSource::model_token)
      rule.model = position(from.model, "tokenizer.tokens." + printable(from.token) + ".source");
    spec.rules.push_back(std::move(rule));
  }
  spec.pad_to_multiple_of = config.pad_to_multiple_of;
  return spec;
}

std::uint64_t TokenizerPlan::num_rows() const noexcept { return state_->num_rows; }
std::uint64_t TokenizerPlan::num_tokens() const noexcept { return state_->output.size(); }
const std::vector<std::string>& TokenizerPlan::warnings() const noexcept { return state_->warnings; }
const std::vector<CompanionFile>& TokenizerPlan::files() const noexcept { return state_->files; }
std::optional<std::uint32_t> TokenizerPlan::own_id(std::size_t model, std::uint64_t output_id) const noexcept {
  const auto& own = state_->own[model];
  return output_id < own.size() && own[output_id] != kNone ? std::optional(own[output_id]) : std::nullopt;
}
const std::string* TokenizerPlan::token(std::uint64_t output_id) const noexcept { return state_->output.token(output_id); }

TokenizerPlan plan_tokenizer(const std::vector<TokenizerModel>& models, std::optional<std::size_t> base, const TokenizerSpec& spec,
                             const std::optional<std::string>& chat_template) {
  if (models.empty()) throw Error(ErrorCode::invalid_argument, "a tokenizer needs at least one model", {.key = "tokenizer"});
  auto state = std::make_shared<TokenizerPlan::State>();
  state->models = models;
  state->base = base.value_or(0);

  const std::size_t source = spec.source == TokenizerSpec::Source::model ? spec.model : state->base;
  std::vector<TokenizerFolder> folders;
  folders.reserve(models.size());
  for (std::size_t m = 0; m < models.size(); ++m) {
    folders.push_back(model::read_tokenizer(models[m].folder));
    folders.back().tokenizer_json.reset();  // large, and read again where it is edited
    // A model with none is taken to share the base's; one that has some, but unreadable, is not.
    if (folders.back().kind() != TokenizerKind::none) folders.back().require_readable("aligning vocabularies");
  }
  folders[source].require_readable("the source of the output's tokenizer");

  std::vector<const Vocabulary*> vocabularies;
  for (const TokenizerFolder& folder : folders) {
    if (folder.kind() == TokenizerKind::none)
      folders[state->base].require_readable("a model without a tokenizer, which is taken to share the base's,");
    vocabularies.push_back(folder.kind() == TokenizerKind::none ? &folders[state->base].vocabulary : &folder.vocabulary);
  }

  Vocabulary output = *vocabularies[source];
  if (spec.source == TokenizerSpec::Source::base) output = strip_unused(output, models[source], state->warnings);
  if (spec.source == TokenizerSpec::Source::union_of_all) output = unite(models, vocabularies, state->base, state->warnings);
  if (!spec.rules.empty()) {
    Builder builder(output);
    for (const TokenRule& rule : spec.rules) {
      if (rule.token.empty()) throw Error(ErrorCode::invalid_argument, "a token rule needs a token; this one is empty", {.key = "tokenizer.tokens"});
      if (!builder.has(rule.token)) builder.add_plain(rule.token);
    }
    output = builder.finish(models[source].folder);
    for (const TokenRule& rule : spec.rules) {
      try {
        const RowRule resolved = resolve_rule(rule, models, vocabularies);
        if (resolved.source != TokenRule::Source::none) state->rules.emplace(*output.find(rule.token), resolved);
      } catch (const Error& error) {
        // A source is looked at only where some model lacks the token, or where it is forced.
        const auto has_token = [&](std::size_t m) {
          const auto id = vocabularies[m]->find(rule.token);
          return id && (!models[m].vocab_size || *id < *models[m].vocab_size);
        };
        bool needed = rule.force;
        for (std::size_t m = 0; m < models.size(); ++m) needed = needed || !has_token(m);
        if (needed) throw;
        state->warnings.push_back("the rule for token " + quote_token(rule.token) +
                                  " changes nothing, since every model has it, and is not valid: " + error.message());
      }
    }
  }

  const std::uint64_t multiple = std::max<std::uint64_t>(1, spec.pad_to_multiple_of.value_or(1));
  const std::uint64_t blocks = output.num_ids() / multiple + (output.num_ids() % multiple != 0 ? 1 : 0);
  state->num_rows = checked_mul(blocks, multiple, "padded vocabulary");
  // The rows of a plan are held in memory; no model has more.
  if (state->num_rows > (std::uint64_t{1} << 25))
    throw Error(ErrorCode::invalid_argument,
                "a vocabulary of " + std::to_string(output.num_ids()) + " tokens padded to " + std::to_string(state->num_rows) + " rows",
                {.key = "tokenizer.pad_to_multiple_of"}, "choose a smaller multiple");

  for (std::size_t m = 0; m < models.size(); ++m) {
    std::vector<std::uint32_t> own(checked_size(output.num_ids(), "vocabulary"), kNone);
    for (const Vocabulary::Entry& entry : output.entries()) {
      const auto id = vocabularies[m]->find(entry.token);
      if (id && (!models[m].vocab_size || *id < *models[m].vocab_size)) own[entry.id] = *id;
    }
    state->own.push_back(std::move(own));
  }
  state->files = tokenizer_output_files(folders[source], *vocabularies[source], output, chat_template, state->warnings);
  check_named_tokens(folders[source], output, state->warnings);
  check_config_ids(models[state->base].folder, *vocabularies[state->base], output, state->warnings);
  state->output = std::move(output);
  return TokenizerPlan(std::move(state));
}

std::vector<TensorRef> rebuild_embeddings(const TokenizerPlan& plan, std::span<const EmbeddingInput> inputs, const std::string& name,
                                          std::optional<DType> dtype, std::vector<std::string>& warnings) {
  const TokenizerPlan::State& state = plan.state();
  std::vector<TensorRef> sources;
  std::vector<std::uint64_t> stored_rows;
  // Rows that are only lent take the type of what is merged.
  const auto first_merged = std::find_if(inputs.begin(), inputs.end(), [](const EmbeddingInput& input) { return input.merged; });
  DType type = dtype.value_or(first_merged == inputs.end() ? DType::f32 : first_merged->tensor.tensor->dtype);
  for (const EmbeddingInput& input : inputs) {
    const TensorInfo& tensor = *input.tensor.tensor;
    const ErrorPlace place{.file = input.tensor.checkpoint->path().string(), .tensor = tensor.name};
    if (tensor.shape.size() != 2) throw Error(ErrorCode::invalid_argument, "an embedding is a matrix, not " + to_string(tensor.shape), place);
    if (tensor.shape[1] != inputs.front().tensor.tensor->shape[1])
      throw Error(ErrorCode::invalid_argument,
                  "models of different widths cannot be merged: " + to_string(tensor.shape) + " here, " +
                      to_string(inputs.front().tensor.tensor->shape) + " in " + state.models[inputs.front().model].name,
                  place);
    if (!dtype && tensor.dtype != type) {
      if (!is_decodable_float(tensor.dtype) || !is_decodable_float(type))
        throw Error(ErrorCode::unsupported,
                    "embeddings of types " + std::string(to_string(type)) + " and " + std::string(to_string(tensor.dtype)) + " cannot be mixed",
                    place);
      if (input.merged) type = promote(type, tensor.dtype);
    }
    sources.push_back(input.tensor);
    stored_rows.push_back(static_cast<std::uint64_t>(tensor.shape[0]));
  }

  /// Row of a token in an input, if it has one.
  const auto own_row = [&](std::size_t input, std::uint64_t id) -> std::optional<std::uint64_t> {
    const auto own = plan.own_id(inputs[input].model, id);
    return own && *own < stored_rows[input] ? std::optional<std::uint64_t>(*own) : std::nullopt;
  };
  const auto input_of = [&](std::size_t model) {
    std::optional<std::size_t> found;
    for (std::size_t i = 0; i < inputs.size() && !found; ++i)
      if (inputs[i].model == model) found = i;
    return found;
  };
  const std::optional<std::size_t> base = input_of(state.base);

  std::vector<RowOrigin> defaults(checked_size(state.num_rows, "vocabulary"), RowOrigin{.kind = RowOrigin::Kind::padding});
  std::vector<std::vector<RowAddress>> means;
  std::vector<std::string> unknown;
  for (const Vocabulary::Entry& entry : state.output.entries()) {
    RowOrigin& origin = defaults[entry.id];
    origin.kind = RowOrigin::Kind::zero;
    if (const auto rule = state.rules.find(entry.id); rule != state.rules.end()) {
      if (rule->second.source == TokenRule::Source::zero) continue;
      const auto input = input_of(rule->second.model);
      const ErrorPlace place{.tensor = name, .key = "tokenizer.tokens." + printable(entry.token) + ".source"};
      const std::string& lender = state.models[rule->second.model].name;
      if (!input) throw Error(ErrorCode::invalid_argument, lender + " has no such tensor to take a row from", place);
      if (rule->second.id >= stored_rows[*input])
        throw Error(
            ErrorCode::invalid_argument,
            "row " + std::to_string(rule->second.id) + " does not exist: the matrix of " + lender + " has " + std::to_string(stored_rows[*input]),
            place);
      origin = {RowOrigin::Kind::row, static_cast<std::uint32_t>(*input), rule->second.id};
      continue;
    }
    std::vector<RowAddress> holders;
    std::optional<RowAddress> of_base;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].merged) continue;
      const auto row = own_row(i, entry.id);
      if (!row) continue;
      holders.push_back({static_cast<std::uint32_t>(i), *row});
      if (base && *base == i) of_base = holders.back();
    }
    if (holders.empty()) {
      unknown.push_back(entry.token);
    } else if (of_base || holders.size() == 1) {
      const RowAddress from = of_base.value_or(holders.front());
      origin = {RowOrigin::Kind::row, from.source, from.row};
    } else {
      origin = {RowOrigin::Kind::mean, 0, means.size()};
      means.push_back(std::move(holders));
    }
  }
  if (!unknown.empty()) {
    std::string text = count_tokens(unknown.size()) + " of the output have a row in none of the models and become zero: " + list_tokens(unknown);
    if (std::find(warnings.begin(), warnings.end(), text) == warnings.end()) warnings.push_back(std::move(text));
  }

  std::vector<TensorRef> views;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].merged) continue;
    RowMap map{defaults, {}};
    bool in_place = true;  // every row is the model's own, where it was
    bool uses_means = false;
    for (std::uint64_t id = 0; id < state.num_rows; ++id) {
      RowOrigin& origin = map.rows[id];
      const auto rule = id < state.output.num_ids() ? state.rules.find(static_cast<std::uint32_t>(id)) : state.rules.end();
      const bool forced = rule != state.rules.end() && rule->second.force;
      if (const auto row = forced ? std::nullopt : own_row(i, id)) origin = {RowOrigin::Kind::row, static_cast<std::uint32_t>(i), *row};
      in_place = in_place && origin.kind == RowOrigin::Kind::row && origin.source == i && origin.index == id;
      uses_means = uses_means || origin.kind == RowOrigin::Kind::mean;
    }
    TensorRef view = inputs[i].tensor;
    if (!in_place) {
      if (uses_means) map.means = means;
      view = make_row_view(name, type, sources, std::move(map));
    } else {
      if (state.num_rows != stored_rows[i]) view = truncate_rows(view, state.num_rows);
      if (view.tensor->name != name) view = alias_tensor(view, name);
    }
    views.push_back(std::move(view));
  }
  return views;
}

std::span<const std::string_view> builtin_chat_templates() noexcept { return kTemplateNames; }

std::optional<std::string> choose_chat_template(std::string_view setting, std::span<const std::filesystem::path> model_folders) {
  if (setting == "auto") {
    std::vector<std::pair<std::string, std::size_t>> counts;
    for (const std::filesystem::path& folder : model_folders) {
      auto found = model::read_chat_template(folder);
      if (!found) continue;
      const auto at = std::find_if(counts.begin(), counts.end(), [&](const auto& entry) { return entry.first == found->text; });
      if (at == counts.end())
        counts.emplace_back(std::move(found->text), 1);
      else
        ++at->second;
    }
    const auto most = std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    return most == counts.end() ? std::nullopt : std::optional(most->first);
  }
  for (std::size_t i = 0; i < kTemplateNames.size(); ++i)
    if (setting == kTemplateNames[i]) return std::string(kTemplateTexts[i]);
  // Characters, not bytes: continuation bytes do not count.
  const auto characters = std::count_if(setting.begin(), setting.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
  if (characters < 20 || setting.find('{') == std::string_view::npos)
    throw Error(ErrorCode::invalid_argument, "invalid chat template " + quote_token(setting) + ": a Jinja text has at least 20 characters and a '{'",
                {.key = "chat_template"}, "write such a text, 'auto', or a built-in name: alpaca, chatml, exaone, llama3, mistral");
  return std::string(setting);
}

std::vector<CompanionFile> donor_tokenizer_files(const std::filesystem::path& donor, const std::optional<std::string>& chat_template,
                                                 std::vector<std::string>& warnings) {
  TokenizerFolder from;
  from.folder = donor;
  from.files = model::tokenizer_files(donor);
  const bool has_tokens = std::any_of(from.files.begin(), from.files.end(), [](const std::string& name) {
    return name == "tokenizer.json" || name == "vocab.json" || name == "vocab.txt" || name.ends_with(".model");
  });
  std::optional<std::string> text = chat_template;
  if (text && !has_tokens) {
    warnings.push_back("chat_template has no effect: " + donor.string() + " has no tokenizer");
    text.reset();
  }
  if (text && std::find(from.files.begin(), from.files.end(), "tokenizer_config.json") != from.files.end())
    from.tokenizer_config = std::make_shared<const Json>(read_json_file(donor / "tokenizer_config.json"));
  const Vocabulary untouched;
  return tokenizer_output_files(from, untouched, untouched, text, warnings);
}

}  // namespace weft::engine
