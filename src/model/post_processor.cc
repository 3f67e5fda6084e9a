#include "model/post_processor.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/json_fields.h"
#include "model/tokenizer.h"
#include "model/unicode_text.h"
#include "weft/error.h"

namespace weft::model {
namespace {

namespace fs = std::filesystem;

// Each window of one text meets each of the other.
constexpr std::size_t kMaxWindows = 1 << 20;

void append(Encoding& first, const Encoding& next) {
  first.ids.insert(first.ids.end(), next.ids.begin(), next.ids.end());
  first.type_ids.insert(first.type_ids.end(), next.type_ids.begin(), next.type_ids.end());
  first.special.insert(first.special.end(), next.special.begin(), next.special.end());
  first.attention.insert(first.attention.end(), next.attention.begin(), next.attention.end());
  first.tokens.insert(first.tokens.end(), next.tokens.begin(), next.tokens.end());
  first.offsets.insert(first.offsets.end(), next.offsets.begin(), next.offsets.end());
}

Encoding without_windows(const Encoding& encoding) {
  Encoding copy;
  append(copy, encoding);
  return copy;
}

struct SpecialPiece {
  std::vector<std::uint32_t> ids;
  std::vector<std::string> tokens;
};

/// One step of a template: a text or a special token.
struct Step {
  bool is_text = false;
  bool second = false;
  std::uint32_t type_id = 0;
  SpecialPiece special;
};

class Template final : public PostProcessor {
 public:
  Template(std::vector<Step> single, std::vector<Step> pair) : single_(std::move(single)), pair_(std::move(pair)) {}

  [[nodiscard]] std::size_t num_added(bool pair) const override {
    std::size_t count = 0;
    for (const Step& step : pair ? pair_ : single_) count += step.special.ids.size();
    return count;
  }

  void apply(std::vector<Encoding>& parts, bool add_special_tokens) const override {
    const bool want_tokens = !parts.front().ids.empty() ? !parts.front().tokens.empty() : true;
    std::vector<Encoding> out;
    for (const Step& step : parts.size() > 1 ? pair_ : single_) {
      if (step.is_text) {
        Encoding& text = parts[step.second && parts.size() > 1 ? 1 : 0];
        std::fill(text.type_ids.begin(), text.type_ids.end(), step.type_id);
        out.push_back(text);
      } else if (add_special_tokens) {
        Encoding special;
        special.ids = step.special.ids;
        if (want_tokens) special.tokens = step.special.tokens;
        const std::size_t count = special.ids.size();
        special.type_ids.assign(count, step.type_id);
        special.special.assign(count, 1);
        special.attention.assign(count, 1);
        special.offsets.assign(count, {0, 0});
        out.push_back(std::move(special));
      }
    }
    parts = std::move(out);
  }

 private:
  std::vector<Step> single_;
  std::vector<Step> pair_;
};

/// Offsets without the spaces at the ends of tokens.
void trim_offsets(Encoding& encoding, bool add_prefix_space) {
  for (std::size_t i = 0; i < encoding.offsets.size() && i < encoding.tokens.size(); ++i) {
    const std::string& token = encoding.tokens[i];
    const auto is_space = [](char32_t c) { return c == 0x120 || is_whitespace(c); };
    std::uint32_t leading = 0;
    for (std::size_t at = 0; at < token.size(); ++leading) {
      const CodePoint c = decode_utf8(token.data() + at);
      if (!is_space(c.value)) break;
      at += c.size_bytes;
    }
    std::uint32_t trailing = 0;
    for (std::size_t at = token.size(); at > 0; ++trailing) {
      const CodePoint c = decode_utf8_before(token.data() + at);
      if (!is_space(c.value)) break;
      at -= c.size_bytes;
    }
    auto& [begin, end] = encoding.offsets[i];
    if (leading > 0) {
      if (add_prefix_space && leading == 1 && (i == 0 || begin == 0)) leading = 0;  // the one that was put there
      begin = std::min(begin + leading, end);
    }
    if (trailing > 0 && end >= trailing) end = std::max(end - trailing, begin);
  }
  for (Encoding& window : encoding.overflowing) trim_offsets(window, add_prefix_space);
}

class ByteLevel final : public PostProcessor {
 public:
  ByteLevel(bool trim, bool prefix_space) : trim_(trim), prefix_space_(prefix_space) {}
  [[nodiscard]] std::size_t num_added(bool /*pair*/) const override { return 0; }
  void apply(std::vector<Encoding>& parts, bool /*add_special_tokens*/) const override {
    if (!trim_) return;
    for (Encoding& part : parts) trim_offsets(part, prefix_space_);
  }

 private:
  bool trim_;
  bool prefix_space_;
};

class Sequence final : public PostProcessor {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PostProcessor>> stages) : stages_(std::move(stages)) {}
  [[nodiscard]] std::size_t num_added(bool pair) const override {
    std::size_t count = 0;
    for (const auto& stage : stages_) count += stage->num_added(pair);
    return count;
  }
  void apply(std::vector<Encoding>& parts, bool add_special_tokens) const override {
    for (const auto& stage : stages_) {
      // A template leaves more parts than texts; only a second template would need them apart again.
      stage->apply(parts, add_special_tokens);
    }
  }

 private:
  std::vector<std::unique_ptr<PostProcessor>> stages_;
};

SpecialPiece special_pair(const Json* value, const JsonFields& fields, std::string_view name) {
  const Json::Array* pair = value == nullptr ? nullptr : value->array();
  if (pair == nullptr || pair->size() != 2 || (*pair)[0].string() == nullptr || !(*pair)[1].unsigned_integer() ||
      *(*pair)[1].unsigned_integer() > UINT32_MAX)
    fields.refuse(name, "is no pair of a token and its id");
  return {{static_cast<std::uint32_t>(*(*pair)[1].unsigned_integer())}, {*(*pair)[0].string()}};
}

Step text_step(bool second, std::uint32_t type_id) { return {true, second, type_id, {}}; }
Step special_step(SpecialPiece special, std::uint32_t type_id) { return {false, false, type_id, std::move(special)}; }

std::unique_ptr<PostProcessor> make_template(const JsonFields& fields, const fs::path& file) {
  std::map<std::string, SpecialPiece> specials;
  if (const Json* list = fields.find("special_tokens")) {
    if (!list->is_object()) fields.refuse("special_tokens", "is no object");
    for (const auto& [name, item] : *list->object()) {
      const JsonFields token(item, file, fields.inside("special_tokens"));
      SpecialPiece piece;
      for (const Json& id : token.list("ids")) {
        const auto value = id.unsigned_integer();
        if (!value || *value > UINT32_MAX) token.refuse("ids", "holds what is no id");
        piece.ids.push_back(static_cast<std::uint32_t>(*value));
      }
      for (const Json& text : token.list("tokens")) {
        if (text.string() == nullptr) token.refuse("tokens", "holds what is no text");
        piece.tokens.push_back(*text.string());
      }
      if (piece.ids.size() != piece.tokens.size()) token.refuse("ids", "has not as many entries as 'tokens'");
      specials.emplace(name, std::move(piece));
    }
  }
  const auto steps = [&](std::string_view name) {
    std::vector<Step> result;
    for (const Json& item : fields.list(name)) {
      const Json* text = item.find("Sequence");
      const Json* special = item.find("SpecialToken");
      if (text == nullptr && special == nullptr) fields.refuse(name, "holds what is neither a Sequence nor a SpecialToken");
      const JsonFields step(text != nullptr ? *text : *special, file, fields.inside(name));
      const std::uint64_t type_id = step.count("type_id", 0);
      if (type_id > UINT32_MAX) step.refuse("type_id", "is too large");
      const std::string id = step.text("id");
      if (text != nullptr) {
        if (id != "A" && id != "B") step.refuse("id", "is neither A nor B");
        result.push_back(text_step(id == "B", static_cast<std::uint32_t>(type_id)));
      } else {
        const auto at = specials.find(id);
        if (at == specials.end()) step.refuse("id", "names the special token '" + printable(id) + "', which the template does not define");
        result.push_back(special_step(at->second, static_cast<std::uint32_t>(type_id)));
      }
    }
    return result;
  };
  return std::make_unique<Template>(steps("single"), steps("pair"));
}

}  // namespace

void join(Encoding& first, Encoding next) {
  std::vector<Encoding> windows;
  if ((first.overflowing.size() + 1) * (next.overflowing.size() + 1) > kMaxWindows)
    throw Error(ErrorCode::unsupported, "cutting these texts would make more than " + std::to_string(kMaxWindows) + " windows", {},
                "give a larger length or a smaller stride");
  for (const Encoding& window : first.overflowing) {
    windows.push_back(without_windows(window));
    append(windows.back(), next);
    for (const Encoding& other : next.overflowing) {
      windows.push_back(without_windows(window));
      append(windows.back(), other);
    }
  }
  for (const Encoding& other : next.overflowing) {
    windows.push_back(without_windows(first));
    append(windows.back(), other);
  }
  append(first, next);
  first.overflowing = std::move(windows);
}

std::unique_ptr<PostProcessor> make_affixes(std::vector<std::pair<std::uint32_t, std::string>> before,
                                            std::vector<std::pair<std::uint32_t, std::string>> behind) {
  std::vector<Step> single;
  std::vector<Step> pair;
  for (const bool second : {false, true}) {
    const std::uint32_t type_id = second ? 1 : 0;
    std::vector<Step> steps;
    for (const auto& [id, token] : before) steps.push_back(special_step({{id}, {token}}, type_id));
    steps.push_back(text_step(second, type_id));
    for (const auto& [id, token] : behind) steps.push_back(special_step({{id}, {token}}, type_id));
    if (!second) single = steps;
    pair.insert(pair.end(), steps.begin(), steps.end());
  }
  return std::make_unique<Template>(std::move(single), std::move(pair));
}

std::unique_ptr<PostProcessor> make_post_processor(const Json& json, const fs::path& file, const std::string& key) {
  if (json.is_null()) return nullptr;
  const JsonFields fields(json, file, key);
  const std::string type = fields.text("type");
  if (type == "TemplateProcessing") return make_template(fields, file);
  if (type == "ByteLevel") return std::make_unique<ByteLevel>(fields.flag("trim_offsets", true), fields.flag("add_prefix_space", true));
  if (type == "Sequence") {
    std::vector<std::unique_ptr<PostProcessor>> stages;
    for (const Json& item : fields.list("processors"))
      if (auto stage = make_post_processor(item, file, fields.inside("processors"))) stages.push_back(std::move(stage));
    return std::make_unique<Sequence>(std::move(stages));
  }
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    const bool roberta = type == "RobertaProcessing";
    const SpecialPiece sep = special_pair(fields.find("sep"), fields, "sep");
    const SpecialPiece cls = special_pair(fields.find("cls"), fields, "cls");
    std::vector<Step> single = {special_step(cls, 0), text_step(false, 0), special_step(sep, 0)};
    std::vector<Step> pair = single;
    if (roberta) pair.push_back(special_step(sep, 0));
    pair.push_back(text_step(true, roberta ? 0 : 1));
    pair.push_back(special_step(sep, roberta ? 0 : 1));
    std::vector<std::unique_ptr<PostProcessor>> stages;
    if (roberta && fields.flag("trim_offsets", true)) stages.push_back(std::make_unique<ByteLevel>(true, fields.flag("add_prefix_space", true)));
    stages.push_back(std::make_unique<Template>(std::move(single), std::move(pair)));
    return std::make_unique<Sequence>(std::move(stages));
  }
  fields.refuse_type(type, "post-processor");
}

}  // namespace weft::model
