#include "model/config_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

namespace weft::model {
namespace {

/// Keys whose value, when it is a list as long as there are layers, has one entry a layer.
constexpr auto kListsByLayer = std::to_array<std::string_view>({
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "num_kv_heads",
    "num_query_heads",
    "num_key_value_heads",
    "intermediate_size",
    "ffn_multipliers",
    "activation_sparsity_pattern",
    "attention_layers",
});

bool is_written(const Json* value) { return value != nullptr && !value->is_null(); }

/// Sets a key wherever the config has it; otherwise in `otherwise`.
void set_everywhere(Json& config, std::string_view key, const Json& value, Json& otherwise) {
  Json& text = text_config(config);
  bool was_there = false;
  for (Json* part : {&config, &text}) {
    if (part->find(key) == nullptr) continue;
    part->set(key, value);
    was_there = true;
  }
  if (!was_there) otherwise.set(key, value);
}

std::int64_t integer_or(const Json& config, std::string_view key, std::int64_t otherwise) {
  const Json* value = config.find(key);
  return value == nullptr ? otherwise : value->integer().value_or(otherwise);
}

/// Which layers are dense, and every how many-th has experts: a step cannot express an arbitrary order, so the list takes over.
void set_dense_layers(Json& config, std::span<const int> layers) {
  const Json* listed = config.find("mlp_only_layers");
  const std::int64_t step = integer_or(config, "decoder_sparse_step", 1);
  if (listed == nullptr && step <= 1) return;
  Json::Array dense;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    bool is_dense = step > 1 && (layers[i] + 1) % step != 0;
    if (listed != nullptr && listed->array() != nullptr)
      for (const Json& one : *listed->array()) is_dense = is_dense || one.integer() == layers[i];
    if (is_dense) dense.emplace_back(static_cast<std::int64_t>(i));
  }
  if (step > 1) config.set("decoder_sparse_step", 1);
  config.set("mlp_only_layers", std::move(dense));
}

/// What a config says about layers without listing them.
void warn_of_patterns(const Json& config, std::span<const int> layers, std::vector<std::string>& warnings) {
  if (is_written(config.find("layer_types"))) return;
  const Json* type = config.find("model_type");
  const std::string_view name = type != nullptr && type->string() != nullptr ? std::string_view(*type->string()) : std::string_view();
  std::int64_t period = 0;
  if (name == "gemma2") period = 2;
  if (name == "gemma3_text") period = integer_or(config, "sliding_window_pattern", integer_or(config, "_sliding_window_pattern", 6));
  if (period > 1)
    for (std::size_t i = 0; i < layers.size(); ++i)
      if (static_cast<std::int64_t>(i) % period != layers[i] % period) {
        warnings.push_back(fmt::format(
            "config.json has no layer_types: output layer {} attends as every {} model's layer {} does, although its weights are those of layer {}",
            i, name, i, layers[i]));
        break;
      }
  const Json* uses = config.find("use_sliding_window");
  if (uses != nullptr && uses->boolean().value_or(false))
    warnings.push_back("config.json limits the sliding window by max_window_layers, which was left as it is although the layers changed");
}

}  // namespace

const Json& text_config(const Json& config) noexcept {
  const Json* text = config.find("text_config");
  return text != nullptr && text->is_object() ? *text : config;
}
Json& text_config(Json& config) noexcept {
  Json* text = config.find("text_config");
  return text != nullptr && text->is_object() ? *text : config;
}

std::optional<DType> config_dtype(const Json& config) {
  for (const Json* part : {&config, &text_config(config)})
    for (const char* key : {"dtype", "torch_dtype"})
      if (const Json* value = part->find(key); value != nullptr && value->string() != nullptr) return dtype_from_any(*value->string());
  return std::nullopt;
}

void set_dtype(Json& config, DType dtype) {
  const std::string_view torch_name = info(dtype).torch_name;
  const Json name(torch_name.empty() ? to_string(dtype) : torch_name);
  bool was_there = false;
  for (Json* part : {&config, &text_config(config)})
    for (const char* key : {"dtype", "torch_dtype"})
      if (part->find(key) != nullptr) {
        part->set(key, name);
        was_there = true;
      }
  if (!was_there) config.set("torch_dtype", name);
}

void set_vocab_size(Json& config, std::uint64_t num_tokens) { set_everywhere(config, "vocab_size", Json(num_tokens), text_config(config)); }

void set_tie_word_embeddings(Json& config, bool tied) { set_everywhere(config, "tie_word_embeddings", Json(tied), config); }

void set_layers(Json& config, const Architecture& architecture, std::span<const int> layers, std::vector<std::string>& warnings) {
  Json& text = text_config(config);
  const std::string& key = architecture.layer_count_key;
  if (key.empty()) return;
  Json* count = text.find(key);
  if (count != nullptr && count->array() != nullptr) {
    // Sizes between the layers: [in of the first, out of each].
    const Json::Array old = *count->array();
    Json::Array sizes;
    for (const int layer : layers) {
      const auto at = static_cast<std::size_t>(layer);
      if (layer < 0 || at + 1 >= old.size()) continue;
      if (sizes.empty()) sizes.push_back(old[at]);
      if (sizes.back().integer() != old[at].integer())
        warnings.push_back(fmt::format("layer {} takes {} numbers, but the layer before it gives {}", layer, old[at].integer().value_or(0),
                                       sizes.back().integer().value_or(0)));
      sizes.push_back(old[at + 1]);
    }
    text.set(key, std::move(sizes));
    return;
  }
  const std::int64_t old_count = count != nullptr ? count->integer().value_or(0) : 0;
  text.set(key, static_cast<std::int64_t>(layers.size()));
  for (const std::string_view name : kListsByLayer) {
    const Json* list = text.find(name);
    if (list == nullptr || list->array() == nullptr) continue;
    const Json::Array& old = *list->array();
    if (static_cast<std::int64_t>(old.size()) != old_count) {
      warnings.push_back(fmt::format("config.json: {} has {} entries for {} layers and was left as it is", name, old.size(), old_count));
      continue;
    }
    Json::Array rebuilt;
    for (const int layer : layers) {
      // A layer that the donor does not have (another model is deeper) takes the kind of its last one.
      const auto at = std::min(static_cast<std::size_t>(std::max(layer, 0)), old.size() - 1);
      if (!old.empty()) rebuilt.push_back(old[at]);
    }
    text.set(name, std::move(rebuilt));
  }
  set_dense_layers(text, layers);
  warn_of_patterns(text, layers, warnings);
}

}  // namespace weft::model
