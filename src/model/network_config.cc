#include "model/network_config.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <string_view>

#include "base/text.h"
#include "model/config_json.h"
#include "weft/error.h"

namespace weft::model {
namespace {

[[noreturn]] void refuse(const std::string& what, std::string_view key) {
  throw Error(ErrorCode::corrupt, "config.json: " + what, {.key = std::string(key)},
              "compare config.json with the one that the model was published with");
}

class Reader {
 public:
  explicit Reader(const Json& config) : config_(config) {}

  /// In the part that describes the language model, else at the top.
  [[nodiscard]] const Json* find(std::string_view key) const {
    if (const Json* value = text_config(config_).find(key)) return value;
    return config_.find(key);
  }
  [[nodiscard]] const Json* find_written(std::string_view key) const {
    const Json* value = find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  [[nodiscard]] double number(const ConfigNumber& of) const {
    for (const std::string& key : of.keys)
      if (const Json* value = find_written(key)) {
        const std::optional<double> number = value->number();
        if (!number || !std::isfinite(*number)) refuse(fmt::format("{} is no number", key), key);
        return *number;
      }
    return of.absent;
  }
  /// For keys whose null means none and whose absence means the class's default.
  [[nodiscard]] double number_or_none(const ConfigNumber& of) const {
    for (const std::string& key : of.keys)
      if (const Json* value = find(key); value != nullptr && value->is_null()) return 0;
    return number(of);
  }
  [[nodiscard]] bool flag(std::string_view key, bool absent) const {
    const Json* value = find_written(key);
    if (value == nullptr) return absent;
    const std::optional<bool> flag = value->boolean();
    if (!flag) refuse(fmt::format("{} is neither true nor false", key), key);
    return *flag;
  }
  [[nodiscard]] std::int64_t whole(const ConfigNumber& of, std::int64_t lowest, std::int64_t highest) const {
    const double value = number(of);
    if (value != std::floor(value) || value < static_cast<double>(lowest) || value > static_cast<double>(highest))
      refuse(fmt::format("{} is {}, not a whole number between {} and {}", of.keys.front(), value, lowest, highest), of.keys.front());
    return static_cast<std::int64_t>(value);
  }

 private:
  const Json& config_;
};

math::Activation read_activation(const Reader& reader, const ForwardRule& rule) {
  std::string name = rule.activation;
  std::string key = rule.activation_keys.front();
  for (const std::string& candidate : rule.activation_keys)
    if (const Json* value = reader.find_written(candidate)) {
      if (value->string() == nullptr) refuse(fmt::format("{} is no text", candidate), candidate);
      name = *value->string();
      key = candidate;
      break;
    }
  if (name == "silu" || name == "swish") return math::Activation::silu;
  if (name == "gelu") return math::Activation::gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return math::Activation::gelu_tanh;
  if (name == "quick_gelu") return math::Activation::quick_gelu;
  if (name == "relu") return math::Activation::relu;
  if (name == "tanh") return math::Activation::tanh;
  throw Error(ErrorCode::unsupported, fmt::format("config.json: the activation '{}' is unknown", printable(name)), {.key = key},
              "known are silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu and tanh");
}

/// Which layers have a window, from `layer_types` where the config has it, else from the architecture's rule.
void read_windows(const Reader& reader, const ForwardRule& rule, NetworkConfig& out) {
  std::int64_t window = 0;
  if (rule.window != WindowRule::none) {
    const double given = reader.number_or_none({{"sliding_window"}, rule.window_absent});
    if (given != 0) window = reader.whole({{"sliding_window"}, rule.window_absent}, 1, std::int64_t{1} << 40);
  }
  const bool is_switched = rule.window == WindowRule::switched || rule.window == WindowRule::switched_from_layer;
  if (is_switched && !reader.flag("use_sliding_window", false)) window = 0;

  const std::size_t count = out.layers.size();
  std::vector<bool> has(count, false);
  const Json* types = reader.find_written("layer_types");
  if (types != nullptr) {
    if (types->array() == nullptr) refuse("layer_types is no list", "layer_types");
    if (types->array()->size() != count)
      refuse(fmt::format("layer_types has {} entries for {} layers", types->array()->size(), count), "layer_types");
    for (std::size_t i = 0; i < count; ++i) {
      const std::string* type = (*types->array())[i].string();
      if (type == nullptr) refuse(fmt::format("layer_types[{}] is no text", i), "layer_types");
      if (*type == "sliding_attention")
        has[i] = true;
      else if (*type != "full_attention")
        throw Error(ErrorCode::unsupported, fmt::format("config.json: layer {} is of the unknown type '{}'", i, printable(*type)),
                    {.key = "layer_types"}, "known are full_attention and sliding_attention");
      if (has[i] && window == 0) {
        window = is_switched ? 0 : reader.whole({{"sliding_window"}, rule.window_absent}, 0, std::int64_t{1} << 40);
        if (window == 0) refuse(fmt::format("layer {} has a window, but sliding_window does not say how wide", i), "sliding_window");
      }
    }
  } else {
    std::int64_t first = 0, period = 0;
    if (rule.window == WindowRule::switched_from_layer) first = reader.whole({{"max_window_layers"}, 28}, 0, std::int64_t{1} << 30);
    if (rule.window == WindowRule::pattern)
      period = reader.whole({{"sliding_window_pattern", "_sliding_window_pattern"}, 6}, 1, std::int64_t{1} << 30);
    for (std::size_t i = 0; i < count; ++i) {
      const auto layer = static_cast<std::int64_t>(i);
      switch (rule.window) {
        case WindowRule::none:
          break;
        case WindowRule::every_layer:
        case WindowRule::switched:
          has[i] = true;
          break;
        case WindowRule::switched_from_layer:
          has[i] = layer >= first;
          break;
        case WindowRule::even_layers:
          has[i] = layer % 2 == 0;
          break;
        case WindowRule::pattern:
          has[i] = (layer + 1) % period != 0;
          break;
      }
    }
  }
  for (std::size_t i = 0; i < count; ++i)
    if (has[i]) out.layers[i].window = window;
}

void read_ropes(const Reader& reader, const ForwardRule& rule, NetworkConfig& out) {
  const double share = reader.number(rule.rotary_share);
  std::string_view where = "rope_scaling";
  const Json* parameters = reader.find_written("rope_parameters");
  const Json* scaling = reader.find_written("rope_scaling");
  if (parameters != nullptr) {
    where = "rope_parameters";
    scaling = parameters;
  }
  const auto top_original = static_cast<std::int64_t>(reader.find_written("original_max_position_embeddings") == nullptr
                                                          ? 0
                                                          : reader.whole({{"original_max_position_embeddings"}, 0}, 1, std::int64_t{1} << 40));

  const auto read_one = [&](const Json* from, std::string_view from_where, double theta) {
    double own_share = share;
    if (from != nullptr && from_where != "rope_scaling") {
      // The newer form holds everything; its values come first.
      const auto own = [&](std::string_view key, double otherwise) {
        const Json* value = from->find(key);
        if (value == nullptr || value->is_null()) return otherwise;
        const std::optional<double> number = value->number();
        if (!number) refuse(fmt::format("{}.{} is no number", from_where, key), key);
        return *number;
      };
      theta = own("rope_theta", theta);
      own_share = own("partial_rotary_factor", own_share);
    }
    if (!(own_share > 0) || own_share > 1)
      refuse(fmt::format("{} is {}, not above 0 and at most 1", rule.rotary_share.keys.front(), own_share), rule.rotary_share.keys.front());
    const int dims = static_cast<int>(static_cast<double>(out.head_dim) * own_share);
    return read_rope(from, from_where, theta, dims, out.context, top_original, out.warnings);
  };

  const double theta = reader.number(rule.rope_theta);
  const Json* full = scaling == nullptr ? nullptr : scaling->find("full_attention");
  const Json* sliding = scaling == nullptr ? nullptr : scaling->find("sliding_attention");
  const bool is_by_type = full != nullptr || sliding != nullptr;
  if (is_by_type)
    out.ropes.push_back(read_one(full, "rope_parameters.full_attention", theta));
  else
    out.ropes.push_back(read_one(scaling, where, theta));
  const bool has_local = !rule.local_rope_theta.keys.empty();
  if (is_by_type && sliding != nullptr)
    out.ropes.push_back(read_one(sliding, "rope_parameters.sliding_attention", has_local ? reader.number(rule.local_rope_theta) : theta));
  else if (has_local)
    out.ropes.push_back(read_one(nullptr, where, reader.number(rule.local_rope_theta)));
  for (LayerConfig& layer : out.layers) layer.rope = out.ropes.size() > 1 && layer.window > 0 ? 1 : 0;
}

}  // namespace

NetworkConfig read_network_config(const Json& config) {
  NetworkConfig out;
  out.architecture = find_architecture(config);
  if (out.architecture == nullptr) out.architecture = find_architecture_family(config);
  if (out.architecture == nullptr || out.architecture->forward.kind == NetworkKind::none) {
    const Json* type = config.find("model_type");
    const std::string name = type != nullptr && type->string() != nullptr ? printable(*type->string()) : "that config.json does not name";
    throw Error(ErrorCode::unsupported, fmt::format("weft cannot run models of the type {}", name), {.key = "model_type"},
                "it can look at, compare, merge and convert them");
  }
  const ForwardRule& rule = out.architecture->forward;
  out.kind = rule.kind;
  if (out.kind == NetworkKind::perceptron || out.kind == NetworkKind::steps) return out;

  const Reader reader(config);
  const auto numbers = config_numbers(*out.architecture, config);
  const auto take = [&](const char* name, std::int64_t highest) {
    const auto found = numbers.find(name);
    if (found == numbers.end()) {
      std::string key = name;
      for (const ConfigField& field : out.architecture->fields)
        if (field.name == name && !field.keys.empty()) key = field.keys.front();
      refuse(fmt::format("{} is missing", key), key);
    }
    if (found->second < 1 || found->second > highest) {
      std::string key = name;
      for (const ConfigField& field : out.architecture->fields)
        if (field.name == name && !field.keys.empty()) key = field.keys.front();
      refuse(fmt::format("{} is {}, not between 1 and {}", key, found->second, highest), key);
    }
    return found->second;
  };
  out.vocab = take("vocab", kMaxVocab);
  out.hidden = take("hidden", kMaxHidden);
  out.heads = take("heads", kMaxHidden);
  out.kv_heads = take("kv_heads", kMaxHidden);
  out.head_dim = take("head_dim", kMaxHidden);
  if (out.heads % out.kv_heads != 0)
    refuse(fmt::format("{} attention heads cannot share {} key heads evenly", out.heads, out.kv_heads), "num_key_value_heads");
  if (numbers.contains("types")) out.types = take("types", 1 << 16);
  if (numbers.contains("experts")) {
    out.experts = numbers.at("experts");
    if (out.experts > 0) {
      out.experts_per_token = reader.whole(rule.experts_per_token, 1, out.experts);
      if (!rule.renormalise_key.empty()) out.renormalises = reader.flag(rule.renormalise_key, false);
    }
  }

  out.layers.resize(static_cast<std::size_t>(num_layers(*out.architecture, config)));
  out.context = reader.whole(rule.context, 1, std::int64_t{1} << 40);
  out.norm = rule.norm;
  const double eps = reader.number(rule.norm_eps);
  if (!(eps >= 0) || eps > 1) refuse(fmt::format("{} is {}, not between 0 and 1", rule.norm_eps.keys.front(), eps), rule.norm_eps.keys.front());
  out.norm_eps = static_cast<float>(eps);
  out.positions = rule.positions;
  out.activation = read_activation(reader, rule);
  if (rule.scales_embedding) out.embedding_scale = std::sqrt(static_cast<double>(out.hidden));
  const auto read_cap = [&](const ConfigNumber& number) {
    if (number.keys.empty()) return 0.0;
    const double cap = reader.number_or_none(number);
    const Json* written = reader.find_written(number.keys.front());
    if (cap < 0 || (cap == 0 && written != nullptr)) refuse(fmt::format("{} is {}, not above 0", number.keys.front(), cap), number.keys.front());
    return cap;
  };
  out.score_cap = read_cap(rule.score_cap);
  out.logit_cap = read_cap(rule.logit_cap);
  out.parallel = rule.parallel && reader.flag("use_parallel_residual", true);

  double scalar = rule.query_scalar.keys.empty() ? 0 : reader.number(rule.query_scalar);
  if (scalar == 0 && rule.query_scalar.keys.empty()) scalar = static_cast<double>(out.head_dim);
  if (!(scalar > 0)) refuse(fmt::format("{} is {}, not above 0", rule.query_scalar.keys.front(), scalar), rule.query_scalar.keys.front());
  for (std::size_t i = 0; i < out.layers.size(); ++i) {
    LayerConfig& layer = out.layers[i];
    layer.score_scale = 1 / std::sqrt(scalar);
    if (rule.scale_switches) {
      if (!reader.flag("scale_attn_weights", true)) layer.score_scale = 1;
      if (reader.flag("scale_attn_by_inverse_layer_idx", false)) layer.score_scale /= static_cast<double>(i + 1);
    }
    if (out.experts > 0) {
      const auto of_layer = config_numbers(*out.architecture, config, static_cast<int>(i));
      const auto found = of_layer.find("moe_layer");
      layer.experts = found == of_layer.end() || found->second != 0;
    }
  }
  if (const Json* kind = reader.find_written("position_embedding_type");
      rule.positions == PositionKind::learned && kind != nullptr && (kind->string() == nullptr || *kind->string() != "absolute"))
    throw Error(ErrorCode::unsupported, "config.json: position embeddings of another kind than 'absolute'", {.key = "position_embedding_type"},
                "weft runs models with absolute positions");
  read_windows(reader, rule, out);
  if (out.positions == PositionKind::rotary) read_ropes(reader, rule, out);
  return out;
}

}  // namespace weft::model
