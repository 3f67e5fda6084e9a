#pragma once
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/json.h"
#include "model/architecture.h"
#include "support/memory_checkpoint.h"

// Random networks of a few thousand numbers, of every architecture of the table.
namespace weft::testing {

using model::Architecture;
using model::NetworkKind;
using model::NormKind;
using model::Role;
using model::TensorSlot;

struct Tiny {
  std::string name;
  Json config;
  std::shared_ptr<const Checkpoint> checkpoint;
};

inline Json tiny_config(const Architecture& architecture) {
  Json config = parse_json(R"({"vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 6, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12,
    "sliding_window": 7, "rotary_pct": 0.34})",
                           "config.json");
  config.set("model_type", architecture.model_types.front());
  if (architecture.name == "bert") {
    Json::Array classes;
    classes.emplace_back("BertForMaskedLM");
    config.set("architectures", Json(std::move(classes)));
  }
  return config;
}

inline Tiny tiny(const std::string& name, Json config, DType dtype = DType::f32) {
  const Architecture* architecture = model::find_architecture(config);
  std::vector<MemoryCheckpoint::Tensor> tensors;
  std::uint64_t seed = 1;
  for (const TensorSlot& slot : model::tensor_slots(*architecture, config, model::num_layers(*architecture, config))) {
    const bool is_bert_head = slot.name.starts_with("cls.predictions") && slot.tied_names.empty();
    if ((!slot.expected && !is_bert_head) || slot.role == Role::buffer) continue;
    std::size_t count = 1;
    for (const std::int64_t dim : *slot.shape) count *= static_cast<std::size_t>(dim);
    std::vector<float> values = random_values(count, seed++, 0.3F);
    // Gains as trained ones are: about 1, none alike.
    const bool is_gain = (slot.role == Role::norm || slot.role == Role::q_norm || slot.role == Role::k_norm) && !slot.name.ends_with("bias");
    if (is_gain && architecture->forward.norm != NormKind::rms_plus_one)
      for (float& value : values) value = 1 + 0.7F * std::tanh(2 * value);
    tensors.push_back({slot.name, dtype, *slot.shape, stored_as(dtype, values)});
  }
  return {name, std::move(config), std::make_shared<MemoryCheckpoint>(std::move(tensors))};
}

/// Every transformer of the table, and what their configs can switch.
enum class Experts { some, all };
inline std::vector<Tiny> all_transformers(Experts experts = Experts::some) {
  std::vector<Tiny> all;
  for (const Architecture& architecture : model::architectures()) {
    if (architecture.forward.kind != NetworkKind::decoder && architecture.forward.kind != NetworkKind::encoder) continue;
    const auto base = [&] {
      Json config = tiny_config(architecture);
      if (experts == Experts::all) config.set("num_experts_per_tok", 4);
      return config;
    };
    all.push_back(tiny(architecture.name, base()));
    const auto with = [&](const char* what, const std::vector<std::pair<const char*, Json>>& keys) {
      Json config = base();
      for (const auto& [key, value] : keys) config.set(key, value);
      all.push_back(tiny(architecture.name + what, std::move(config)));
    };
    if (architecture.name == "llama") {
      with(" with biases", {{"attention_bias", Json(true)}, {"mlp_bias", Json(true)}});
      with(" tied", {{"tie_word_embeddings", Json(true)}});
      with(" with relu", {{"hidden_act", Json("relu")}});
    }
    if (architecture.name == "gpt2") with(" untied with relu", {{"tie_word_embeddings", Json(false)}, {"activation_function", Json("relu")}});
    if (architecture.name == "gpt_neox") with(" in a row", {{"use_parallel_residual", Json(false)}, {"rotary_pct", Json(1.0)}});
    if (architecture.name == "gpt_neox") with(" without biases", {{"attention_bias", Json(false)}});
    if (architecture.name == "qwen2_moe") with(" partly dense", {{"decoder_sparse_step", Json(2)}});
    if (architecture.name == "gemma") with(" untied", {{"tie_word_embeddings", Json(false)}});
  }
  return all;
}

}  // namespace weft::testing
