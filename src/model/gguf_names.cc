#include "model/gguf_names.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace weft::model {
namespace {

using Arrangement = GgufArrangement;

using Norms = std::vector<std::pair<const char*, const char*>>;

const std::string kBlock = "blk.${layer_index}.";

/// Rules of decoders in the manner of Llama.
std::vector<GgufRule> decoder_rules(bool pairs, const Norms& norms) {
  const std::string layer = "model.layers.${layer_index}.";
  std::vector<GgufRule> rules = {{"model.embed_tokens", "token_embd"}, {"model.norm", "output_norm"}, {"lm_head", "output"}};
  for (const auto& [hf, gguf] : norms) rules.push_back({layer + hf, kBlock + gguf});
  const std::string attention = layer + "self_attn.";
  rules.push_back({attention + "q_proj", kBlock + "attn_q", pairs ? Arrangement::query_pairs : Arrangement::same});
  rules.push_back({attention + "k_proj", kBlock + "attn_k", pairs ? Arrangement::key_pairs : Arrangement::same});
  rules.push_back({attention + "v_proj", kBlock + "attn_v"});
  rules.push_back({attention + "qkv_proj", kBlock + "attn_qkv"});
  rules.push_back({attention + "o_proj", kBlock + "attn_output"});
  rules.push_back({attention + "q_norm", kBlock + "attn_q_norm"});
  rules.push_back({attention + "k_norm", kBlock + "attn_k_norm"});
  rules.push_back({layer + "mlp.gate_proj", kBlock + "ffn_gate"});
  rules.push_back({layer + "mlp.up_proj", kBlock + "ffn_up"});
  rules.push_back({layer + "mlp.gate_up_proj", kBlock + "ffn_up"});
  rules.push_back({layer + "mlp.down_proj", kBlock + "ffn_down"});
  return rules;
}

const Norms kLlamaNorms = {{"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"}};
const Norms kGemmaNorms = {{"input_layernorm", "attn_norm"},
                           {"post_attention_layernorm", "post_attention_norm"},
                           {"pre_feedforward_layernorm", "ffn_norm"},
                           {"post_feedforward_layernorm", "post_ffw_norm"}};
const Norms kOlmo2Norms = {{"post_attention_layernorm", "post_attention_norm"}, {"post_feedforward_layernorm", "post_ffw_norm"}};

void add_mixtral(std::vector<GgufRule>& rules) {
  const std::string moe = "model.layers.${layer_index}.block_sparse_moe.";
  rules.push_back({moe + "gate", kBlock + "ffn_gate_inp"});
  rules.push_back({moe + "experts.${expert_index}.w1", kBlock + "ffn_gate_exps", Arrangement::experts});
  rules.push_back({moe + "experts.${expert_index}.w2", kBlock + "ffn_down_exps", Arrangement::experts});
  rules.push_back({moe + "experts.${expert_index}.w3", kBlock + "ffn_up_exps", Arrangement::experts});
}

void add_qwen_moe(std::vector<GgufRule>& rules) {
  const std::string mlp = "model.layers.${layer_index}.mlp.";
  rules.push_back({mlp + "gate", kBlock + "ffn_gate_inp"});
  for (const char* part : {"gate", "down", "up"}) {
    rules.push_back({mlp + "experts.${expert_index}." + part + "_proj", kBlock + "ffn_" + part + "_exps", Arrangement::experts});
    rules.push_back({mlp + "shared_expert." + part + "_proj", kBlock + "ffn_" + part + "_shexp"});
  }
  rules.push_back({mlp + "shared_expert_gate", kBlock + "ffn_gate_inp_shexp"});
}

GgufFamily decoder(std::string name, std::vector<std::string> architectures, bool pairs = false, const Norms& norms = kLlamaNorms) {
  return {std::move(name), std::move(architectures), decoder_rules(pairs, norms), {}};
}

GgufFamily gpt2() {
  const std::string layer = "transformer.h.${layer_index}.";
  return {"gpt2",
          {"gpt2"},
          {{"transformer.wte", "token_embd"},
           {"transformer.wpe", "position_embd"},
           {"transformer.ln_f", "output_norm"},
           {"lm_head", "output"},
           {layer + "ln_1", kBlock + "attn_norm"},
           {layer + "attn.c_attn", kBlock + "attn_qkv", Arrangement::transposed},
           {layer + "attn.c_proj", kBlock + "attn_output", Arrangement::transposed},
           {layer + "ln_2", kBlock + "ffn_norm"},
           {layer + "mlp.c_fc", kBlock + "ffn_up", Arrangement::transposed},
           {layer + "mlp.c_proj", kBlock + "ffn_down", Arrangement::transposed}},
          {}};
}

GgufFamily gptneox() {
  const std::string layer = "gpt_neox.layers.${layer_index}.";
  return {"gptneox",
          {"gpt_neox"},
          {{"gpt_neox.embed_in", "token_embd"},
           {"gpt_neox.final_layer_norm", "output_norm"},
           {"embed_out", "output"},
           {layer + "input_layernorm", kBlock + "attn_norm"},
           {layer + "attention.query_key_value", kBlock + "attn_qkv", Arrangement::qkv_by_part},
           {layer + "attention.dense", kBlock + "attn_output"},
           {layer + "post_attention_layernorm", kBlock + "ffn_norm"},
           {layer + "mlp.dense_h_to_4h", kBlock + "ffn_up"},
           {layer + "mlp.dense_4h_to_h", kBlock + "ffn_down"}},
          {}};
}

GgufFamily bert() {
  const std::string layer = "bert.encoder.layer.${layer_index}.";
  return {"bert",
          {"bert"},
          {{"bert.embeddings.word_embeddings", "token_embd"},
           {"bert.embeddings.token_type_embeddings", "token_types"},
           {"bert.embeddings.position_embeddings", "position_embd"},
           {"bert.embeddings.LayerNorm", "token_embd_norm"},
           {layer + "attention.self.query", kBlock + "attn_q"},
           {layer + "attention.self.key", kBlock + "attn_k"},
           {layer + "attention.self.value", kBlock + "attn_v"},
           {layer + "attention.output.dense", kBlock + "attn_output"},
           {layer + "attention.output.LayerNorm", kBlock + "attn_output_norm"},
           {layer + "intermediate.dense", kBlock + "ffn_up"},
           {layer + "output.dense", kBlock + "ffn_down"},
           {layer + "output.LayerNorm", kBlock + "layer_output_norm"}},
          {"bert.pooler.", "cls.", "classifier."}};
}

std::vector<GgufFamily> make_families() {
  GgufFamily llama = decoder("llama", {"llama", "mistral", "mixtral"}, true);
  add_mixtral(llama.rules);
  GgufFamily qwen2moe = decoder("qwen2moe", {"qwen2_moe"});
  add_qwen_moe(qwen2moe.rules);
  GgufFamily qwen3moe = decoder("qwen3moe", {"qwen3_moe"});
  add_qwen_moe(qwen3moe.rules);
  return {bert(),
          decoder("gemma", {"gemma"}),
          decoder("gemma2", {"gemma2"}, false, kGemmaNorms),
          decoder("gemma3", {"gemma3"}, false, kGemmaNorms),
          gpt2(),
          gptneox(),
          std::move(llama),
          decoder("olmo2", {"olmo2"}, false, kOlmo2Norms),
          decoder("phi3", {"phi3"}),
          decoder("qwen2", {"qwen2"}),
          std::move(qwen2moe),
          decoder("qwen3", {"qwen3"}),
          std::move(qwen3moe)};
}

/// Splits ".weight" or ".bias" off.
std::string_view without_suffix(std::string_view name, std::string& suffix) {
  for (const std::string_view ending : {".weight", ".bias"})
    if (name.ends_with(ending)) {
      suffix = ending;
      return name.substr(0, name.size() - ending.size());
    }
  suffix.clear();
  return name;
}

}  // namespace

std::span<const GgufFamily> gguf_families() {
  static const std::vector<GgufFamily> kFamilies = make_families();
  return kFamilies;
}

const GgufFamily* find_gguf_family(std::string_view name) noexcept {
  for (const GgufFamily& family : gguf_families())
    if (family.name == name) return &family;
  return nullptr;
}

const GgufFamily* gguf_family_of(const Architecture& architecture) noexcept {
  for (const GgufFamily& family : gguf_families())
    if (std::find(family.architectures.begin(), family.architectures.end(), architecture.name) != family.architectures.end()) return &family;
  return nullptr;
}

GgufNameMatch match_gguf_name(const GgufFamily& family, std::string_view name) {
  GgufNameMatch match;
  const std::string_view stem = without_suffix(name, match.suffix);
  std::string pattern(stem);
  if (stem.starts_with("blk.")) {
    const auto [end, error] = std::from_chars(stem.data() + 4, stem.data() + stem.size(), match.layer);
    if (error != std::errc() || match.layer < 0 || stem[4] == '-' || end == stem.data() + stem.size() || *end != '.') return match;
    pattern = kBlock + std::string(end + 1, stem.data() + stem.size());
  }
  for (const GgufRule& rule : family.rules)
    if (rule.gguf == pattern) {
      match.rule = &rule;
      return match;
    }
  return match;
}

const GgufRule* rule_for_template(const GgufFamily& family, std::string_view template_name, std::string& suffix) {
  const std::string_view stem = without_suffix(template_name, suffix);
  for (const GgufRule& rule : family.rules)
    if (rule.hf == stem) return &rule;
  return nullptr;
}

bool is_float32_in_gguf(std::string_view name, std::size_t rank) {
  if (rank < 2 || !name.ends_with(".weight") || name.ends_with("_norm.weight")) return true;
  for (const std::string_view part : {"ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight", "token_types.weight"})
    if (name.ends_with(part)) return true;
  return false;
}

}  // namespace weft::model
