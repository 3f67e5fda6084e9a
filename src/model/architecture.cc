#include "model/architecture.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/text.h"
#include "model/config_json.h"
#include "weft/error.h"

namespace weft::model {
namespace {

constexpr std::string_view kLayerMark = "${layer_index}";
constexpr std::string_view kExpertMark = "${expert_index}";
constexpr int kMaxLayers = 10'000;
constexpr std::int64_t kMaxExperts = 65'536;
constexpr std::int64_t kMaxField = std::int64_t{1} << 31;  // widths and vocabularies are far below; their products are checked

[[noreturn]] void refuse(const std::string& what, std::string key) {
  throw Error(ErrorCode::corrupt, "config.json: " + what, {.key = std::move(key)},
              "compare config.json with the one that the model was published with");
}

std::string replaced(std::string_view text, std::string_view mark, std::int64_t number) {
  std::string out;
  while (true) {
    const std::size_t at = text.find(mark);
    out += text.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += std::to_string(number);
    text.remove_prefix(at + mark.size());
  }
}

/// In the part that describes the language model, else at the top.
const Json* find_key(const Json& config, std::string_view key) {
  const Json& text = text_config(config);
  if (const Json* value = text.find(key)) return value;
  return config.find(key);
}

/// Numbers as they are, booleans as 0 and 1.
std::int64_t whole_number(const Json& value, const std::string& key) {
  if (const auto flag = value.boolean()) return *flag ? 1 : 0;
  std::optional<std::int64_t> number = value.integer();
  if (!number)
    if (const auto real = value.number();
        real && *real >= 0 && *real <= static_cast<double>(kMaxField) && *real == static_cast<double>(static_cast<std::int64_t>(*real)))
      number = static_cast<std::int64_t>(*real);
  if (!number) refuse(fmt::format("{} is not a whole number", printable(key)), key);
  if (*number < 0 || *number > kMaxField) refuse(fmt::format("{} is {}, not between 0 and {}", printable(key), *number, kMaxField), key);
  return *number;
}

/// Expressions of the table: + - * / % ! && ( ), numbers, fields, and KEY[INDEX] for an element of a list in the config.
/// Nothing when a name in it has no value. Our own table is the only input, so that a mistake in the grammar is ours.
class Expression {
 public:
  using Fields = std::map<std::string, std::int64_t, std::less<>>;
  Expression(std::string_view text, const Fields& fields, const Json& config) : text_(text), fields_(fields), config_(config) {}

  std::optional<std::int64_t> evaluate() {
    const auto value = conjunction();
    skip_space();
    if (at_ != text_.size()) throw Error(ErrorCode::internal, fmt::format("cannot read the expression '{}'", text_));
    return value;
  }

 private:
  using Value = std::optional<std::int64_t>;

  Value conjunction() {
    Value left = sum();
    while (take("&&")) {
      const Value right = sum();
      left = left && right ? Value(*left != 0 && *right != 0) : std::nullopt;
    }
    return left;
  }
  Value sum() {
    Value left = product();
    while (true) {
      if (take("+"))
        left = combine(left, product(), '+');
      else if (take("-"))
        left = combine(left, product(), '-');
      else
        return left;
    }
  }
  Value product() {
    Value left = factor();
    while (true) {
      if (take("*"))
        left = combine(left, factor(), '*');
      else if (take("/"))
        left = combine(left, factor(), '/');
      else if (take("%"))
        left = combine(left, factor(), '%');
      else
        return left;
    }
  }
  Value factor() {
    if (take("!")) {
      const Value value = factor();
      return value ? Value(*value == 0) : std::nullopt;
    }
    if (take("(")) {
      const Value value = conjunction();
      (void)take(")");
      return value;
    }
    skip_space();
    const std::size_t begin = at_;
    while (at_ < text_.size() && (text_[at_] == '_' || (text_[at_] >= '0' && text_[at_] <= '9') || (text_[at_] >= 'a' && text_[at_] <= 'z'))) ++at_;
    const std::string_view word = text_.substr(begin, at_ - begin);
    if (word.empty()) throw Error(ErrorCode::internal, fmt::format("cannot read the expression '{}'", text_));
    if (word[0] >= '0' && word[0] <= '9') {
      std::int64_t number = 0;
      std::from_chars(word.data(), word.data() + word.size(), number);
      return number;
    }
    if (take("[")) {
      const Value index = conjunction();
      (void)take("]");
      const Json* list = find_key(config_, word);
      if (!index || list == nullptr || list->array() == nullptr) return std::nullopt;
      const Json::Array& items = *list->array();
      if (*index < 0 || static_cast<std::size_t>(*index) >= items.size()) return std::nullopt;
      return whole_number(items[static_cast<std::size_t>(*index)], fmt::format("{}[{}]", word, *index));
    }
    const auto found = fields_.find(word);
    return found == fields_.end() ? std::nullopt : Value(found->second);
  }

  Value combine(Value left, Value right, char operation) const {
    if (!left || !right) return std::nullopt;
    std::int64_t result = 0;
    bool overflows = false;
    switch (operation) {
      case '+':
        overflows = __builtin_add_overflow(*left, *right, &result);
        break;
      case '-':
        overflows = __builtin_sub_overflow(*left, *right, &result);
        break;
      case '*':
        overflows = __builtin_mul_overflow(*left, *right, &result);
        break;
      default:
        if (*right == 0) refuse(fmt::format("a count that others are divided by is 0 ('{}')", text_), std::string(text_));
        result = operation == '/' ? *left / *right : *left % *right;
    }
    if (overflows) refuse(fmt::format("'{}' overflows: {} {} {}", text_, *left, operation, *right), std::string(text_));
    return result;
  }

  void skip_space() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  bool take(std::string_view token) {
    skip_space();
    if (!text_.substr(at_).starts_with(token)) return false;
    at_ += token.size();
    return true;
  }

  std::string_view text_;
  const Expression::Fields& fields_;
  const Json& config_;
  std::size_t at_ = 0;
};

/// Whether a layer of a mixture has experts; the other ones are dense.
bool is_moe_layer(const Json& config, std::int64_t experts, int layer) {
  if (experts <= 0) return false;
  if (const Json* dense = find_key(config, "mlp_only_layers"); dense != nullptr && dense->array() != nullptr)
    for (const Json& one : *dense->array())
      if (one.integer() == layer) return false;
  std::int64_t step = 1;
  if (const Json* given = find_key(config, "decoder_sparse_step"); given != nullptr && !given->is_null())
    step = whole_number(*given, "decoder_sparse_step");
  if (step == 0) refuse("decoder_sparse_step is 0", "decoder_sparse_step");
  return (layer + 1) % step == 0;
}

Expression::Fields read_fields(const Architecture& architecture, const Json& config, int layer) {
  Expression::Fields fields;
  fields["tied"] = is_tied(architecture, config) ? 1 : 0;
  if (layer >= 0) fields["layer"] = layer;
  for (const ConfigField& field : architecture.fields) {
    std::optional<std::int64_t> value;
    bool is_present = false;
    for (const std::string& key : field.keys) {
      const bool counts_entries = key.starts_with('#');
      const Json* given = find_key(config, counts_entries ? std::string_view(key).substr(1) : key);
      if (given == nullptr) continue;
      is_present = true;
      if (given->is_null()) continue;
      if (!counts_entries)
        value = whole_number(*given, key);
      else if (given->object() != nullptr)
        value = static_cast<std::int64_t>(given->object()->size());
      if (value) break;
    }
    const std::string& fallback = !is_present && !field.absent.empty() ? field.absent : field.fallback;
    if (!value && !fallback.empty()) value = Expression(fallback, fields, config).evaluate();
    if (value) fields[field.name] = *value;
  }
  if (const auto experts = fields.find("experts"); experts != fields.end() && layer >= 0)
    fields["moe_layer"] = is_moe_layer(config, experts->second, layer) ? 1 : 0;
  return fields;
}

std::optional<Shape> evaluate_shape(const std::string& text, const Expression::Fields& fields, const Json& config) {
  if (text.empty()) return std::nullopt;
  Shape shape;
  std::string_view rest = text;
  while (true) {
    const std::size_t comma = rest.find(',');
    const auto dim = Expression(rest.substr(0, comma), fields, config).evaluate();
    if (!dim) return std::nullopt;
    if (*dim < 0) refuse(fmt::format("'{}' is negative ({})", text, *dim), text);
    shape.push_back(*dim);
    if (comma == std::string_view::npos) return shape;
    rest.remove_prefix(comma + 1);
  }
}

/// Absent values count as true: what cannot be known must not make a tensor optional.
bool holds(const std::string& condition, const Expression::Fields& fields, const Json& config) {
  return condition.empty() || Expression(condition, fields, config).evaluate().value_or(1) != 0;
}

/// Matches "a.${layer_index}.b" with a name; numbers are one digit or more without sign.
bool match_pattern(std::string_view pattern, std::string_view name, int& layer, int& expert) {
  while (true) {
    const std::size_t mark = pattern.find("${");
    const std::string_view literal = pattern.substr(0, mark);
    if (!name.starts_with(literal)) return false;
    name.remove_prefix(literal.size());
    if (mark == std::string_view::npos) return name.empty();
    pattern.remove_prefix(mark);
    const bool is_layer = pattern.starts_with(kLayerMark);
    pattern.remove_prefix(is_layer ? kLayerMark.size() : kExpertMark.size());
    int number = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (error != std::errc() || number < 0 || name[0] == '-') return false;
    (is_layer ? layer : expert) = number;
    name.remove_prefix(static_cast<std::size_t>(end - name.data()));
  }
}

/// Slots of a network whose config lists its steps.
std::vector<TensorSlot> listed_slots(const Architecture& architecture, const Json& config) {
  std::vector<TensorSlot> slots;
  const Json* steps = config.find(architecture.listed_in);
  if (steps == nullptr || steps->array() == nullptr)
    refuse(fmt::format("'{}' is not a list of steps", architecture.listed_in), architecture.listed_in);
  for (const Json& step : *steps->array())
    for (const auto& [kind, role] : {std::pair("conv2d", Role::conv), std::pair("linear", Role::linear)}) {
      const Json* name = step.find(kind);
      if (name == nullptr || name->string() == nullptr) continue;
      for (const char* part : {".weight", ".bias"}) {
        TensorSlot slot;
        slot.name = *name->string() + part;
        slot.pattern = slot.name;
        slot.role = role;
        slots.push_back(std::move(slot));
      }
    }
  return slots;
}

// ---- names of unknown architectures ----

struct NameHint {
  std::string_view ending;  ///< of the name without .weight or .bias, from a dot or the start
  Role role;
};

// The first that fits counts, so that longer endings stand before shorter ones.
constexpr auto kNameHints = std::to_array<NameHint>({
    {"shared_expert_gate", Role::shared_router},
    {"shared_expert.gate_proj", Role::shared_gate},
    {"shared_experts.gate_proj", Role::shared_gate},
    {"shared_expert.up_proj", Role::shared_up},
    {"shared_experts.up_proj", Role::shared_up},
    {"shared_expert.down_proj", Role::shared_down},
    {"shared_experts.down_proj", Role::shared_down},
    {"inv_freq", Role::buffer},
    {"position_ids", Role::buffer},
    {"masked_bias", Role::buffer},
    {"q_norm", Role::q_norm},
    {"k_norm", Role::k_norm},
    {"q_layernorm", Role::q_norm},
    {"k_layernorm", Role::k_norm},
    {"embed_tokens", Role::embed},
    {"word_embeddings", Role::embed},
    {"tok_embeddings", Role::embed},
    {"wte", Role::embed},
    {"embed_in", Role::embed},
    {"shared", Role::embed},
    {"wpe", Role::position},
    {"position_embeddings", Role::position},
    {"position_embedding", Role::position},
    {"embed_positions", Role::position},
    {"pos_embed", Role::position},
    {"token_type_embeddings", Role::token_type},
    {"cls_token", Role::cls_token},
    {"class_embedding", Role::cls_token},
    {"patch_embeddings.projection", Role::patch},
    {"patch_embedding", Role::patch},
    {"patch_embed.proj", Role::patch},
    {"lm_head", Role::head},
    {"embed_out", Role::head},
    {"pooler.dense", Role::pooler},
    {"classifier", Role::classifier},
    {"score", Role::classifier},
    {"qkv_proj", Role::qkv},
    {"query_key_value", Role::qkv},
    {"c_attn", Role::qkv},
    {"qkv", Role::qkv},
    {"Wqkv", Role::qkv},
    {"gate_up_proj", Role::gate_up},
    {"q_proj", Role::q},
    {"query", Role::q},
    {"wq", Role::q},
    {"k_proj", Role::k},
    {"key", Role::k},
    {"wk", Role::k},
    {"v_proj", Role::v},
    {"value", Role::v},
    {"wv", Role::v},
    {"o_proj", Role::o},
    {"out_proj", Role::o},
    {"attention.output.dense", Role::o},
    {"attention.dense", Role::o},
    {"self_attention.dense", Role::o},
    {"attn.c_proj", Role::o},
    {"attn.proj", Role::o},
    {"attention.wo", Role::o},
    {"gate_proj", Role::gate},
    {"w1", Role::gate},
    {"up_proj", Role::up},
    {"w3", Role::up},
    {"c_fc", Role::up},
    {"dense_h_to_4h", Role::up},
    {"intermediate.dense", Role::up},
    {"fc1", Role::up},
    {"down_proj", Role::down},
    {"w2", Role::down},
    {"mlp.c_proj", Role::down},
    {"dense_4h_to_h", Role::down},
    {"output.dense", Role::down},
    {"fc2", Role::down},
    {"block_sparse_moe.gate", Role::router},
    {"moe.gate", Role::router},
    {"mlp.gate", Role::router},
    {"feed_forward.gate", Role::router},
    {"router", Role::router},
});

Role guess_role(std::string_view name) {
  std::string_view stem = name;
  for (const std::string_view part : {".weight", ".bias", ".gamma", ".beta"})
    if (stem.ends_with(part)) {
      stem.remove_suffix(part.size());
      break;
    }
  for (const NameHint& hint : kNameHints)
    if (stem == hint.ending || (stem.size() > hint.ending.size() && stem.ends_with(hint.ending) && stem[stem.size() - hint.ending.size() - 1] == '.'))
      return hint.role;
  // "input_layernorm", "ln_1", "final_layer_norm", "norm1": whatever the last part calls a norm.
  const std::string_view last = stem.substr(stem.rfind('.') + 1);
  std::string lower(last);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  if (lower.find("norm") != std::string::npos || lower.starts_with("ln_") || lower == "ln") return Role::norm;
  if (lower.starts_with("conv")) return Role::conv;
  return Role::unknown;
}

/// Where the first ".number." of a name stands, if it has one.
struct LayerInName {
  std::size_t begin = 0;  ///< of the digits
  std::size_t end = 0;
  int layer = 0;
};
std::optional<LayerInName> find_layer(std::string_view name) {
  for (std::size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
    int number = 0;
    const char* begin = name.data() + dot + 1;
    const char* end = name.data() + name.size();
    if (begin == end || *begin < '0' || *begin > '9') continue;
    const auto [after, error] = std::from_chars(begin, end, number);
    if (error != std::errc() || after == end || *after != '.' || number > kMaxLayers) continue;
    return LayerInName{dot + 1, static_cast<std::size_t>(after - name.data()), number};
  }
  return std::nullopt;
}

}  // namespace

std::string_view to_string(Role role) noexcept {
  switch (role) {
    case Role::unknown:
      return "unknown";
    case Role::embed:
      return "embed";
    case Role::position:
      return "position";
    case Role::token_type:
      return "token_type";
    case Role::cls_token:
      return "cls_token";
    case Role::patch:
      return "patch";
    case Role::head:
      return "head";
    case Role::head_transform:
      return "head_transform";
    case Role::pooler:
      return "pooler";
    case Role::classifier:
      return "classifier";
    case Role::norm:
      return "norm";
    case Role::q_norm:
      return "q_norm";
    case Role::k_norm:
      return "k_norm";
    case Role::q:
      return "q";
    case Role::k:
      return "k";
    case Role::v:
      return "v";
    case Role::o:
      return "o";
    case Role::qkv:
      return "qkv";
    case Role::gate:
      return "gate";
    case Role::up:
      return "up";
    case Role::down:
      return "down";
    case Role::gate_up:
      return "gate_up";
    case Role::router:
      return "router";
    case Role::shared_gate:
      return "shared_gate";
    case Role::shared_up:
      return "shared_up";
    case Role::shared_down:
      return "shared_down";
    case Role::shared_router:
      return "shared_router";
    case Role::linear:
      return "linear";
    case Role::conv:
      return "conv";
    case Role::buffer:
      return "buffer";
  }
  return "unknown";
}

std::string with_layer(std::string_view pattern, int layer) { return replaced(pattern, kLayerMark, layer); }

const Architecture* find_architecture_family(const Json& config) {
  const Json* type = config.find("model_type");
  if (type == nullptr || type->string() == nullptr) return nullptr;
  for (const Architecture& a : architectures())
    if (std::find(a.model_types.begin(), a.model_types.end(), *type->string()) != a.model_types.end()) return &a;
  return nullptr;
}

const Architecture* find_architecture(const Json& config) {
  const Json* classes = config.find("architectures");
  const Architecture* family = find_architecture_family(config);
  if (classes == nullptr || classes->array() == nullptr || classes->array()->empty()) return family;
  const std::string* name = classes->array()->front().string();
  if (name == nullptr) return nullptr;
  for (const Architecture& a : architectures()) {
    if (std::find(a.classes.begin(), a.classes.end(), *name) == a.classes.end()) continue;
    // A class that contradicts the type is neither of the two.
    const Json* type = config.find("model_type");
    return type == nullptr || type->is_null() || family == &a ? &a : nullptr;
  }
  return nullptr;
}

bool is_tied(const Architecture& architecture, const Json& config) {
  for (const Json* part : {&config, &text_config(config)})
    if (const Json* tied = part->find("tie_word_embeddings"))
      if (const auto value = tied->boolean()) return *value;
  return architecture.tied_by_default;
}

int num_layers(const Architecture& architecture, const Json& config) {
  if (architecture.inferred) return architecture.num_layers;
  const std::string& key = architecture.layer_count_key;
  if (key.empty()) return 0;
  const Json* given = find_key(config, key);
  if (given == nullptr || given->is_null()) refuse(fmt::format("{} is missing", key), key);
  // A list of sizes has one layer between each two.
  const std::int64_t count = given->array() != nullptr ? static_cast<std::int64_t>(given->array()->size()) - 1 : whole_number(*given, key);
  if (count < 0 || count > kMaxLayers) refuse(fmt::format("{} means {} layers, not between 0 and {}", key, count, kMaxLayers), key);
  return static_cast<int>(count);
}

std::map<std::string, std::int64_t, std::less<>> config_numbers(const Architecture& architecture, const Json& config, int layer) {
  return read_fields(architecture, config, layer);
}

std::vector<TensorSlot> tensor_slots(const Architecture& architecture, const Json& config, Placement placement, int layer) {
  if (!architecture.listed_in.empty()) return placement == Placement::pre ? listed_slots(architecture, config) : std::vector<TensorSlot>{};
  const Expression::Fields fields = read_fields(architecture, config, layer);
  std::vector<TensorSlot> slots;
  for (const TensorTemplate& t : architecture.tensors) {
    if (t.placement != placement || !holds(t.only_if, fields, config)) continue;
    TensorSlot slot;
    slot.placement = placement;
    slot.role = t.role;
    slot.site = t.site;
    slot.transposed = t.transposed;
    slot.layer = layer;
    slot.vocabulary_axis = t.vocabulary_axis;
    slot.expected = holds(t.expected_if, fields, config);
    slot.optional = t.optional || !slot.expected;
    slot.contradicts = !t.optional && !slot.expected;
    slot.shape = evaluate_shape(t.shape, fields, config);
    slot.force_dtype = t.force_dtype;
    if (!t.tied_to.empty())
      for (const TensorTemplate& other : architecture.tensors)
        if (other.name == t.tied_to) {
          slot.tied_names = {other.name};
          slot.tied_names.insert(slot.tied_names.end(), other.aliases.begin(), other.aliases.end());
        }
    std::int64_t experts = 1;
    const bool is_expert = t.name.find(kExpertMark) != std::string::npos;
    if (is_expert) {
      const auto found = fields.find("experts");
      if (found == fields.end() || found->second > kMaxExperts) refuse("the number of experts is missing or too large", "num_experts");
      experts = found->second;
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      if (is_expert) slot.expert = static_cast<int>(e);
      slot.pattern = replaced(t.name, kExpertMark, e);
      slot.name = with_layer(slot.pattern, layer);
      slot.aliases.clear();
      slot.alias_patterns.clear();
      for (const std::string& alias : t.aliases) {
        slot.alias_patterns.push_back(replaced(alias, kExpertMark, e));
        slot.aliases.push_back(with_layer(slot.alias_patterns.back(), layer));
      }
      slots.push_back(slot);
    }
  }
  return slots;
}

std::vector<TensorSlot> tensor_slots(const Architecture& architecture, const Json& config, int num_layers) {
  std::vector<TensorSlot> slots = tensor_slots(architecture, config, Placement::pre);
  const auto append = [&slots](std::vector<TensorSlot> more) {
    slots.insert(slots.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  };
  for (int layer = 0; layer < num_layers; ++layer) append(tensor_slots(architecture, config, Placement::layer, layer));
  append(tensor_slots(architecture, config, Placement::post));
  return slots;
}

std::optional<NameMatch> match_name(const Architecture& architecture, std::string_view name) {
  for (const TensorTemplate& t : architecture.tensors) {
    NameMatch match{&t, -1, -1};
    if (match_pattern(t.name, name, match.layer, match.expert)) return match;
    for (const std::string& alias : t.aliases)
      if (match_pattern(alias, name, match.layer, match.expert)) return match;
  }
  return std::nullopt;
}

Role role_of(const Architecture* architecture, std::string_view name) {
  if (architecture != nullptr) {
    if (const auto match = match_name(*architecture, name)) return match->tensor->role;
    if (is_dropped(*architecture, name)) return Role::buffer;
    if (!architecture->listed_in.empty()) return name.starts_with("conv") ? Role::conv : Role::linear;
  }
  return guess_role(name);
}

bool is_dropped(const Architecture& architecture, std::string_view name) {
  return std::any_of(architecture.dropped_suffixes.begin(), architecture.dropped_suffixes.end(),
                     [name](const std::string& suffix) { return name.ends_with(suffix); });
}

Architecture with_names_of(const Architecture& architecture, const Checkpoint& checkpoint) {
  Architecture out = architecture;
  std::map<std::string, std::string, std::less<>> renamed;
  for (TensorTemplate& t : out.tensors) {
    if (t.aliases.empty()) continue;
    std::vector<bool> used(t.aliases.size(), false);
    bool keeps = false;
    for (const TensorInfo& info : checkpoint.tensors()) {
      int layer = -1;
      int expert = -1;
      keeps = keeps || match_pattern(t.name, info.name, layer, expert);
      for (std::size_t i = 0; i < t.aliases.size(); ++i) used[i] = used[i] || match_pattern(t.aliases[i], info.name, layer, expert);
      if (keeps) break;
    }
    const auto first = std::find(used.begin(), used.end(), true);
    if (keeps || first == used.end()) continue;
    std::string& alias = t.aliases[static_cast<std::size_t>(first - used.begin())];
    renamed[t.name] = alias;
    std::swap(t.name, alias);
  }
  for (TensorTemplate& t : out.tensors)
    if (const auto found = renamed.find(t.tied_to); found != renamed.end()) t.tied_to = found->second;
  return out;
}

Architecture infer_architecture(std::span<const Checkpoint* const> checkpoints) {
  Architecture a;
  a.name = "inferred";
  a.inferred = true;

  // Several networks in one checkpoint (a vision tower beside a language model) number their layers apart: those of the largest become the
  // layers, and what belongs to the others is kept tensor by tensor.
  std::map<std::string, std::size_t, std::less<>> sizes;
  for (const Checkpoint* checkpoint : checkpoints)
    for (const TensorInfo& info : checkpoint->tensors())
      if (const auto at = find_layer(info.name)) ++sizes[info.name.substr(0, at->begin)];
  std::string main;
  std::size_t largest = 0;
  for (const auto& [prefix, size] : sizes)
    if (size > largest) {
      main = prefix;
      largest = size;
    }
  if (sizes.size() > 1)
    a.warnings.push_back(fmt::format("tensors are numbered under {} names; '{}' is taken for the layers, so that gradients do not reach the others",
                                     sizes.size(), printable(main)));

  struct Seen {
    std::size_t count = 0;  // over checkpoints and layers
  };
  std::vector<std::string> order;
  std::unordered_map<std::string, Seen> seen;
  std::vector<int> layer_counts;
  for (const Checkpoint* checkpoint : checkpoints) {
    int layers = 0;
    for (const TensorInfo& info : checkpoint->tensors()) {
      std::string pattern = info.name;
      if (const auto at = find_layer(info.name); at && std::string_view(info.name).substr(0, at->begin) == main) {
        pattern = info.name.substr(0, at->begin) + std::string(kLayerMark) + info.name.substr(at->end);
        layers = std::max(layers, at->layer + 1);
      }
      Seen& entry = seen[pattern];
      if (entry.count++ == 0) order.push_back(std::move(pattern));
    }
    layer_counts.push_back(layers);
  }
  std::size_t all_layers = 0;
  for (const int layers : layer_counts) {
    a.num_layers = std::max(a.num_layers, layers);
    all_layers += static_cast<std::size_t>(layers);
    if (layers != layer_counts.front()) a.warnings.push_back(fmt::format("the models have {} and {} layers", layer_counts.front(), layers));
  }
  for (const std::string& pattern : order) {
    TensorTemplate& t = a.tensors.emplace_back();
    t.name = pattern;
    t.placement = pattern.find(kLayerMark) == std::string::npos ? Placement::pre : Placement::layer;
    t.role = guess_role(pattern);
    t.vocabulary_axis = t.role == Role::embed || t.role == Role::head;
    t.optional = seen[pattern].count < (t.placement == Placement::layer ? all_layers : checkpoints.size());
  }
  // One embedding and a head that some lack: those tie it.
  const auto embed = std::find_if(a.tensors.begin(), a.tensors.end(), [](const TensorTemplate& t) { return t.role == Role::embed; });
  if (embed != a.tensors.end())
    for (TensorTemplate& t : a.tensors)
      if (t.role == Role::head && t.optional) t.tied_to = embed->name;
  return a;
}

}  // namespace weft::model
