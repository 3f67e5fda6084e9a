#include "edit/trim_tokenizer.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/text.h"
#include "weft/error.h"

namespace weft::edit {
namespace {

[[noreturn]] void damaged(const std::filesystem::path& file, const std::string& what) {
  throw Error(ErrorCode::corrupt, what, {.file = file.string()}, "fetch the tokenizer files again");
}

/// Whether a token is one character, also behind the mark of a continued word ("##a") or in the spelling of a byte ("<0x0A>").
bool is_single(std::string_view token) {
  if (token.size() == 6 && token.starts_with("<0x") && token.ends_with(">")) return true;
  if (token.size() > 2 && token.starts_with("##")) token.remove_prefix(2);
  std::size_t characters = 0;
  for (const char c : token) characters += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return characters == 1;
}

struct Merge {
  std::string left;
  std::string right;
};

Merge merge_of(const Json& entry, const std::filesystem::path& file) {
  if (const Json::Array* pair = entry.array();
      pair != nullptr && pair->size() == 2 && (*pair)[0].string() != nullptr && (*pair)[1].string() != nullptr)
    return {*(*pair)[0].string(), *(*pair)[1].string()};
  if (const std::string* text = entry.string()) {
    const std::size_t space = text->find(' ');
    if (space != std::string::npos) return {text->substr(0, space), text->substr(space + 1)};
  }
  damaged(file, "a merge is neither a pair of tokens nor two tokens with a space between");
}

/// Ids anywhere in the part of a tokenizer that puts special tokens around a text.
void renumber_template(Json& node, const TrimmedTokenizer& trimmed) {
  if (Json::Object* object = node.object()) {
    for (auto& [key, value] : *object) {
      Json::Array* ids = key == "ids" ? value.array() : nullptr;
      if (ids == nullptr) {
        renumber_template(value, trimmed);
        continue;
      }
      for (Json& id : *ids)
        if (const auto now = trimmed.new_id(id.unsigned_integer().value_or(~std::uint64_t{0}))) id = Json(std::uint64_t{*now});
    }
    // Bert's and Roberta's: ["[SEP]", 102].
    for (const char* name : {"sep", "cls"}) {
      Json* pair = node.find(name);
      if (pair == nullptr || pair->array() == nullptr || pair->array()->size() != 2) continue;
      if (const auto now = trimmed.new_id((*pair->array())[1].unsigned_integer().value_or(~std::uint64_t{0})))
        (*pair->array())[1] = Json(std::uint64_t{*now});
    }
  } else if (Json::Array* array = node.array()) {
    for (Json& item : *array) renumber_template(item, trimmed);
  }
}

}  // namespace

std::optional<std::uint32_t> TrimmedTokenizer::new_id(std::uint64_t old_id) const {
  const auto at = std::lower_bound(old_ids.begin(), old_ids.end(), old_id);
  if (at == old_ids.end() || *at != old_id) return std::nullopt;
  return static_cast<std::uint32_t>(at - old_ids.begin());
}

TrimmedTokenizer trim_tokenizer(const Json& tokenizer, const std::vector<std::uint32_t>& used, const std::filesystem::path& file) {
  const Json* model = tokenizer.find("model");
  const Json* type = model == nullptr ? nullptr : model->find("type");
  std::string kind = type != nullptr && type->string() != nullptr ? *type->string() : std::string();
  const Json* vocab = model == nullptr ? nullptr : model->find("vocab");
  if (kind.empty() && model != nullptr) kind = model->find("merges") != nullptr ? "BPE" : "";
  const bool unigram = kind == "Unigram";
  if (vocab == nullptr || (kind != "BPE" && kind != "WordPiece" && kind != "WordLevel" && !unigram))
    throw Error(ErrorCode::unsupported, "a tokenizer of kind '" + printable(kind) + "' cannot be trimmed", {.file = file.string()},
                "BPE, WordPiece, WordLevel and Unigram can be");
  if (unigram ? vocab->array() == nullptr : vocab->object() == nullptr) damaged(file, "the tokenizer's vocab is not of the form that its kind has");

  std::map<std::uint32_t, std::string> by_id;
  std::unordered_map<std::string, std::uint32_t> ids;
  const auto know = [&](const std::string& token, std::uint64_t id) {
    if (id >= (std::uint64_t{1} << 24)) damaged(file, "token '" + printable(token) + "' has an id beyond all sizes");
    by_id[static_cast<std::uint32_t>(id)] = token;
    ids[token] = static_cast<std::uint32_t>(id);
  };
  if (unigram) {
    std::uint64_t id = 0;
    for (const Json& entry : *vocab->array()) {
      const Json::Array* pair = entry.array();
      if (pair == nullptr || pair->empty() || pair->front().string() == nullptr) damaged(file, "an entry of the vocab is no [token, score]");
      know(*pair->front().string(), id++);
    }
  } else {
    for (const auto& [token, id] : *vocab->object()) {
      if (!id.unsigned_integer()) damaged(file, "token '" + printable(token) + "' has no id");
      know(token, *id.unsigned_integer());
    }
  }

  std::set<std::uint32_t> kept(used.begin(), used.end());
  for (const auto& [id, token] : by_id)
    if (is_single(token)) kept.insert(id);
  const auto keep_token = [&](const Json* name) {
    if (name == nullptr || name->string() == nullptr) return;
    if (const auto at = ids.find(*name->string()); at != ids.end()) kept.insert(at->second);
  };
  keep_token(model->find("unk_token"));
  if (const Json* unk = model->find("unk_id"); unk != nullptr && unk->unsigned_integer())
    kept.insert(static_cast<std::uint32_t>(std::min<std::uint64_t>(*unk->unsigned_integer(), (1u << 24) - 1)));
  if (const Json* added = tokenizer.find("added_tokens"); added != nullptr && added->array() != nullptr) {
    for (const Json& token : *added->array()) {
      const Json* id = token.find("id");
      if (id == nullptr || !id->unsigned_integer() || *id->unsigned_integer() >= (1u << 24)) damaged(file, "an added token has no id");
      kept.insert(static_cast<std::uint32_t>(*id->unsigned_integer()));
    }
  }
  std::vector<Merge> merges;
  if (const Json* list = model->find("merges"); list != nullptr && list->array() != nullptr) {
    for (const Json& entry : *list->array()) merges.push_back(merge_of(entry, file));
    // What a kept token is merged from is kept; later merges are made of the results of earlier ones, so one walk from the end is enough.
    for (std::size_t i = merges.size(); i-- > 0;) {
      const auto result = ids.find(merges[i].left + merges[i].right);
      if (result == ids.end() || !kept.contains(result->second)) continue;
      for (const std::string* part : {&merges[i].left, &merges[i].right})
        if (const auto at = ids.find(*part); at != ids.end()) kept.insert(at->second);
    }
    // Files whose merges are not in the order in which they build on each other need more walks.
    for (bool changed = true; changed;) {
      changed = false;
      for (const Merge& merge : merges) {
        const auto result = ids.find(merge.left + merge.right);
        if (result == ids.end() || !kept.contains(result->second)) continue;
        for (const std::string* part : {&merge.left, &merge.right})
          if (const auto at = ids.find(*part); at != ids.end()) changed = kept.insert(at->second).second || changed;
      }
    }
  }

  TrimmedTokenizer trimmed;
  trimmed.old_ids.assign(kept.begin(), kept.end());
  trimmed.tokenizer = tokenizer;
  Json& new_model = *trimmed.tokenizer.find("model");
  if (unigram) {
    Json::Array entries;
    for (std::size_t id = 0; id < vocab->array()->size(); ++id)
      if (kept.contains(static_cast<std::uint32_t>(id))) entries.push_back((*vocab->array())[id]);
    // Ids of a unigram model are places in this list; added tokens lie behind it, or repeat some of it.
    new_model.set("vocab", std::move(entries));
    if (const Json* unk = model->find("unk_id"); unk != nullptr && unk->unsigned_integer())
      new_model.set("unk_id", std::uint64_t{trimmed.new_id(*unk->unsigned_integer()).value_or(0)});
  } else {
    Json::Object entries;
    for (const auto& [token, id] : *vocab->object())
      if (const auto now = trimmed.new_id(*id.unsigned_integer())) entries.emplace_back(token, Json(std::uint64_t{*now}));
    new_model.set("vocab", std::move(entries));
  }
  if (!merges.empty()) {
    Json::Array left;
    const Json::Array& list = *model->find("merges")->array();
    for (std::size_t i = 0; i < merges.size(); ++i) {
      const auto is_kept = [&](const std::string& token) {
        const auto at = ids.find(token);
        return at != ids.end() && kept.contains(at->second);
      };
      if (is_kept(merges[i].left) && is_kept(merges[i].right) && is_kept(merges[i].left + merges[i].right)) left.push_back(list[i]);
    }
    new_model.set("merges", std::move(left));
  }
  if (Json* added = trimmed.tokenizer.find("added_tokens"); added != nullptr && added->array() != nullptr)
    for (Json& token : *added->array()) token.set("id", std::uint64_t{*trimmed.new_id(*token.find("id")->unsigned_integer())});
  if (Json* processor = trimmed.tokenizer.find("post_processor")) renumber_template(*processor, trimmed);
  if (Json* padding = trimmed.tokenizer.find("padding"))
    if (Json* id = padding->find("pad_id"); id != nullptr && id->unsigned_integer())
      if (const auto now = trimmed.new_id(*id->unsigned_integer())) *id = Json(std::uint64_t{*now});
  return trimmed;
}

void renumber_token_ids(Json& config, const TrimmedTokenizer& trimmed) {
  if (Json::Array* array = config.array()) {
    for (Json& item : *array) renumber_token_ids(item, trimmed);
    return;
  }
  Json::Object* object = config.object();
  if (object == nullptr) return;
  const auto renumber = [&](Json& id) {
    if (const auto old = id.unsigned_integer())
      if (const auto now = trimmed.new_id(*old)) id = Json(std::uint64_t{*now});
  };
  for (auto& [key, value] : *object) {
    if (!key.ends_with("token_id") && !key.ends_with("token_ids") && !key.ends_with("token_index")) {
      renumber_token_ids(value, trimmed);
    } else if (Json::Array* list = value.array()) {
      for (Json& id : *list) renumber(id);
    } else {
      renumber(value);
    }
  }
}

}  // namespace weft::edit
