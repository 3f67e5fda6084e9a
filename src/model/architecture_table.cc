#include <utility>

#include "model/architecture.h"

// The table of architectures. Names and shapes are those of Hugging Face checkpoints; linear weights are [out, in] except GPT-2's, which are [in,
// out].
namespace weft::model {
namespace {

constexpr const char* kLayer = "${layer_index}";

TensorTemplate tensor(Placement placement, std::string name, Role role, std::string shape) {
  TensorTemplate t;
  t.name = std::move(name);
  t.placement = placement;
  t.role = role;
  t.shape = std::move(shape);
  return t;
}
TensorTemplate pre(std::string name, Role role, std::string shape) { return tensor(Placement::pre, std::move(name), role, std::move(shape)); }
TensorTemplate post(std::string name, Role role, std::string shape) { return tensor(Placement::post, std::move(name), role, std::move(shape)); }

TensorTemplate vocabulary(TensorTemplate t) {
  t.vocabulary_axis = true;
  return t;
}
/// There for some uses of the network only.
TensorTemplate optional(TensorTemplate t) {
  t.optional = true;
  t.expected_if = "0";
  return t;
}
/// A head that is the embedding when the checkpoint has none.
TensorTemplate tied_head(std::string name, std::string embedding, std::string shape) {
  TensorTemplate t = vocabulary(post(std::move(name), Role::head, std::move(shape)));
  t.tied_to = std::move(embedding);
  t.optional = true;
  t.expected_if = "!tied";
  return t;
}

/// Layers in the making: names relative to a prefix.
struct Layers {
  std::vector<TensorTemplate>& tensors;
  std::string prefix;

  void add(const std::string& name, Role role, std::string shape, std::string expected = "", std::string only = "") {
    TensorTemplate t = tensor(Placement::layer, prefix + name, role, std::move(shape));
    t.expected_if = std::move(expected);
    t.only_if = std::move(only);
    tensors.push_back(std::move(t));
  }
  /// weight [out, in] and a bias [out] that the config may switch.
  void linear(const std::string& name, Role role, const std::string& out, const std::string& in, const std::string& bias,
              const std::string& only = "") {
    add(name + ".weight", role, out + ", " + in, "", only);
    if (bias != "0") add(name + ".bias", role, out, bias == "1" ? "" : bias, only);
  }
  void norm(const std::string& name, Site site, const std::string& size) {
    add(name, Role::norm, size);
    tensors.back().site = site;
  }
  void layer_norm(const std::string& name, Site site, const std::string& size) {
    norm(name + ".weight", site, size);
    norm(name + ".bias", site, size);
  }
};

TensorTemplate norm_at(Site site, TensorTemplate t) {
  t.site = site;
  return t;
}

/// What the decoders of the Llama family differ in.
struct Decoder {
  std::string name;
  std::vector<std::string> classes;
  std::vector<std::string> model_types;
  bool tied = false;
  std::string vocab_absent = {};  // default of the class when the key is absent
  std::string heads_absent = {};
  std::string kv_heads_absent = {};
  std::string head_dim_absent = {};
  std::string qkv_bias = "0";  // conditions; "1" always, "0" never
  std::string o_bias = "0";
  std::string mlp_bias = "0";
  enum class HeadNorm { none, per_head, whole } head_norm = HeadNorm::none;
  std::vector<std::pair<std::string, Site>> norms = {{"input_layernorm", Site::attention_in}, {"post_attention_layernorm", Site::mlp_in}};
  bool fused = false;  // qkv_proj and gate_up_proj
  enum class Mixture { none, mixtral, qwen2, qwen3 } mixture = Mixture::none;
  ForwardRule forward = {};
};

/// A decoder's rule with what the class says when the config does not.
ForwardRule runs(double norm_eps, double context, ForwardRule rule = {}) {
  rule.kind = NetworkKind::decoder;
  if (rule.norm != NormKind::layer) rule.norm_eps = {{"rms_norm_eps"}, norm_eps};
  rule.context = {{"max_position_embeddings"}, context};
  return rule;
}

ForwardRule gemma_rule(ForwardRule rule = {}) {
  rule.norm = NormKind::rms_plus_one;
  rule.activation_keys = {"hidden_activation"};
  rule.activation = "gelu_pytorch_tanh";
  rule.scales_embedding = true;
  return rule;
}

Architecture decoder(const Decoder& d) {
  using HeadNorm = Decoder::HeadNorm;
  using Mixture = Decoder::Mixture;
  Architecture a;
  a.name = d.name;
  a.classes = d.classes;
  a.model_types = d.model_types;
  a.layer_count_key = "num_hidden_layers";
  a.tied_by_default = d.tied;
  a.dropped_suffixes = {".rotary_emb.inv_freq"};
  a.forward = d.forward;
  a.fields = {{"vocab", {"vocab_size"}, {}, d.vocab_absent},
              {"hidden", {"hidden_size"}, {}, {}},
              {"heads", {"num_attention_heads"}, {}, d.heads_absent},
              {"kv_heads", {"num_key_value_heads"}, "heads", d.kv_heads_absent},
              {"head_dim", {"head_dim"}, "hidden/heads", d.head_dim_absent},
              {"ffn", {"intermediate_size"}, {}, {}},
              {"attention_bias", {"attention_bias"}, "0", {}},
              {"mlp_bias", {"mlp_bias"}, "0", {}}};
  if (d.mixture == Mixture::mixtral) a.fields.push_back({"experts", {"num_local_experts", "num_experts"}, "8", {}});
  if (d.mixture == Mixture::qwen2) {
    a.fields.push_back({"experts", {"num_experts", "num_local_experts"}, "60", {}});
    a.fields.push_back({"expert_ffn", {"moe_intermediate_size"}, "1408", {}});
    a.fields.push_back({"shared_ffn", {"shared_expert_intermediate_size"}, "5632", {}});
    a.fields.push_back({"qkv_bias", {"qkv_bias"}, "1", {}});
  }
  if (d.mixture == Mixture::qwen3) {
    a.fields.push_back({"experts", {"num_experts", "num_local_experts"}, "128", {}});
    a.fields.push_back({"expert_ffn", {"moe_intermediate_size"}, "768", {}});
  }

  a.tensors.push_back(vocabulary(pre("model.embed_tokens.weight", Role::embed, "vocab, hidden")));
  Layers layers{a.tensors, std::string("model.layers.") + kLayer + "."};
  for (const auto& [norm, site] : d.norms) layers.norm(norm + ".weight", site, "hidden");
  if (d.fused) {
    layers.linear("self_attn.qkv_proj", Role::qkv, "(heads+2*kv_heads)*head_dim", "hidden", "0");
  } else {
    layers.linear("self_attn.q_proj", Role::q, "heads*head_dim", "hidden", d.qkv_bias);
    layers.linear("self_attn.k_proj", Role::k, "kv_heads*head_dim", "hidden", d.qkv_bias);
    layers.linear("self_attn.v_proj", Role::v, "kv_heads*head_dim", "hidden", d.qkv_bias);
  }
  layers.linear("self_attn.o_proj", Role::o, "hidden", "heads*head_dim", d.o_bias);
  if (d.head_norm != HeadNorm::none) {
    const bool whole = d.head_norm == HeadNorm::whole;
    layers.add("self_attn.q_norm.weight", Role::q_norm, whole ? "heads*head_dim" : "head_dim");
    layers.add("self_attn.k_norm.weight", Role::k_norm, whole ? "kv_heads*head_dim" : "head_dim");
  }

  if (d.mixture == Mixture::mixtral) {
    layers.add("block_sparse_moe.gate.weight", Role::router, "experts, hidden");
    const std::string expert = "block_sparse_moe.experts.${expert_index}.";
    layers.add(expert + "w1.weight", Role::gate, "ffn, hidden");
    layers.add(expert + "w2.weight", Role::down, "hidden, ffn");
    layers.add(expert + "w3.weight", Role::up, "ffn, hidden");
  } else {
    const std::string dense = d.mixture == Mixture::none ? "" : "!moe_layer";
    if (d.fused) {
      layers.linear("mlp.gate_up_proj", Role::gate_up, "2*ffn", "hidden", "0");
    } else {
      layers.linear("mlp.gate_proj", Role::gate, "ffn", "hidden", d.mlp_bias, dense);
      layers.linear("mlp.up_proj", Role::up, "ffn", "hidden", d.mlp_bias, dense);
    }
    layers.linear("mlp.down_proj", Role::down, "hidden", "ffn", d.mlp_bias, dense);
  }
  if (d.mixture == Mixture::qwen2 || d.mixture == Mixture::qwen3) {
    layers.add("mlp.gate.weight", Role::router, "experts, hidden", "", "moe_layer");
    const std::string expert = "mlp.experts.${expert_index}.";
    layers.add(expert + "gate_proj.weight", Role::gate, "expert_ffn, hidden", "", "moe_layer");
    layers.add(expert + "up_proj.weight", Role::up, "expert_ffn, hidden", "", "moe_layer");
    layers.add(expert + "down_proj.weight", Role::down, "hidden, expert_ffn", "", "moe_layer");
  }
  if (d.mixture == Mixture::qwen2) {
    layers.add("mlp.shared_expert.gate_proj.weight", Role::shared_gate, "shared_ffn, hidden", "", "moe_layer");
    layers.add("mlp.shared_expert.up_proj.weight", Role::shared_up, "shared_ffn, hidden", "", "moe_layer");
    layers.add("mlp.shared_expert.down_proj.weight", Role::shared_down, "hidden, shared_ffn", "", "moe_layer");
    layers.add("mlp.shared_expert_gate.weight", Role::shared_router, "1, hidden", "", "moe_layer");
  }

  a.tensors.push_back(norm_at(Site::final, post("model.norm.weight", Role::norm, "hidden")));
  a.tensors.push_back(tied_head("lm_head.weight", "model.embed_tokens.weight", "vocab, hidden"));
  return a;
}

/// Adds the name without the prefix as an alias, for checkpoints that were saved without a head around the network.
void allow_without_prefix(Architecture& a, const std::string& prefix) {
  for (TensorTemplate& t : a.tensors)
    if (t.name.starts_with(prefix)) t.aliases.push_back(t.name.substr(prefix.size()));
}

Architecture gpt2() {
  Architecture a;
  a.name = "gpt2";
  a.classes = {"GPT2LMHeadModel", "GPT2Model"};
  a.model_types = {"gpt2"};
  a.layer_count_key = "n_layer";
  a.tied_by_default = true;
  a.dropped_suffixes = {".attn.bias", ".attn.masked_bias"};
  a.fields = {
      {"vocab", {"vocab_size"}, {}, {}},    {"hidden", {"n_embd", "hidden_size"}, {}, {}},        {"positions", {"n_positions", "n_ctx"}, {}, "1024"},
      {"ffn", {"n_inner"}, "4*hidden", {}}, {"heads", {"n_head", "num_attention_heads"}, {}, {}}, {"kv_heads", {}, "heads", {}},
      {"head_dim", {}, "hidden/heads", {}}};
  a.forward.kind = NetworkKind::decoder;
  a.forward.norm = NormKind::layer;
  a.forward.norm_eps = {{"layer_norm_epsilon"}, 1e-5};
  a.forward.positions = PositionKind::learned;
  a.forward.activation_keys = {"activation_function"};
  a.forward.activation = "gelu_new";
  a.forward.qkv = QkvLayout::concatenated;
  a.forward.scale_switches = true;
  a.forward.context = {{"n_positions", "n_ctx"}, 1024};
  a.tensors = {vocabulary(pre("transformer.wte.weight", Role::embed, "vocab, hidden")),
               pre("transformer.wpe.weight", Role::position, "positions, hidden")};
  Layers layers{a.tensors, std::string("transformer.h.") + kLayer + "."};
  layers.layer_norm("ln_1", Site::attention_in, "hidden");
  // GPT-2's linear layers are stored transposed, [in, out].
  const auto transposed = [&layers](const std::string& name, Role role, const std::string& in, const std::string& out) {
    layers.add(name + ".weight", role, in + ", " + out);
    layers.tensors.back().transposed = true;
    layers.add(name + ".bias", role, out);
  };
  transposed("attn.c_attn", Role::qkv, "hidden", "3*hidden");
  transposed("attn.c_proj", Role::o, "hidden", "hidden");
  layers.layer_norm("ln_2", Site::mlp_in, "hidden");
  transposed("mlp.c_fc", Role::up, "hidden", "ffn");
  transposed("mlp.c_proj", Role::down, "ffn", "hidden");
  a.tensors.push_back(norm_at(Site::final, post("transformer.ln_f.weight", Role::norm, "hidden")));
  a.tensors.push_back(norm_at(Site::final, post("transformer.ln_f.bias", Role::norm, "hidden")));
  a.tensors.push_back(tied_head("lm_head.weight", "transformer.wte.weight", "vocab, hidden"));
  allow_without_prefix(a, "transformer.");
  return a;
}

Architecture gpt_neox() {
  Architecture a;
  a.name = "gpt_neox";
  a.classes = {"GPTNeoXForCausalLM"};
  a.model_types = {"gpt_neox"};
  a.layer_count_key = "num_hidden_layers";
  a.tied_by_default = false;
  a.dropped_suffixes = {".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"};
  a.fields = {{"vocab", {"vocab_size"}, {}, {}},          {"hidden", {"hidden_size"}, {}, {}},
              {"ffn", {"intermediate_size"}, {}, {}},     {"attention_bias", {"attention_bias"}, "1", {}},
              {"heads", {"num_attention_heads"}, {}, {}}, {"kv_heads", {}, "heads", {}},
              {"head_dim", {}, "hidden/heads", {}}};
  a.forward.kind = NetworkKind::decoder;
  a.forward.norm = NormKind::layer;
  a.forward.norm_eps = {{"layer_norm_eps"}, 1e-5};
  a.forward.rope_theta = {{"rotary_emb_base", "rope_theta"}, 10'000};
  a.forward.rotary_share = {{"rotary_pct", "partial_rotary_factor"}, 0.25};
  a.forward.activation = "gelu";
  a.forward.qkv = QkvLayout::per_head;
  a.forward.parallel = true;
  a.tensors = {vocabulary(pre("gpt_neox.embed_in.weight", Role::embed, "vocab, hidden"))};
  Layers layers{a.tensors, std::string("gpt_neox.layers.") + kLayer + "."};
  layers.layer_norm("input_layernorm", Site::attention_in, "hidden");
  layers.layer_norm("post_attention_layernorm", Site::mlp_in, "hidden");
  layers.linear("attention.query_key_value", Role::qkv, "3*hidden", "hidden", "attention_bias");
  layers.linear("attention.dense", Role::o, "hidden", "hidden", "attention_bias");
  layers.linear("mlp.dense_h_to_4h", Role::up, "ffn", "hidden", "1");
  layers.linear("mlp.dense_4h_to_h", Role::down, "hidden", "ffn", "1");
  a.tensors.push_back(norm_at(Site::final, post("gpt_neox.final_layer_norm.weight", Role::norm, "hidden")));
  a.tensors.push_back(norm_at(Site::final, post("gpt_neox.final_layer_norm.bias", Role::norm, "hidden")));
  a.tensors.push_back(tied_head("embed_out.weight", "gpt_neox.embed_in.weight", "vocab, hidden"));
  return a;
}

Architecture bert() {
  Architecture a;
  a.name = "bert";
  a.classes = {"BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "BertForTokenClassification"};
  a.model_types = {"bert"};
  a.layer_count_key = "num_hidden_layers";
  a.tied_by_default = true;
  a.fields = {{"vocab", {"vocab_size"}, {}, {}},          {"hidden", {"hidden_size"}, {}, {}},
              {"ffn", {"intermediate_size"}, {}, {}},     {"positions", {"max_position_embeddings"}, "512", {}},
              {"types", {"type_vocab_size"}, "2", {}},    {"labels", {"#id2label", "num_labels"}, "2", {}},
              {"heads", {"num_attention_heads"}, {}, {}}, {"kv_heads", {}, "heads", {}},
              {"head_dim", {}, "hidden/heads", {}}};
  a.forward.kind = NetworkKind::encoder;
  a.forward.norm = NormKind::layer;
  a.forward.norm_eps = {{"layer_norm_eps"}, 1e-12};
  a.forward.positions = PositionKind::learned;
  a.forward.activation = "gelu";
  a.forward.context = {{"max_position_embeddings"}, 512};
  a.tensors = {vocabulary(pre("bert.embeddings.word_embeddings.weight", Role::embed, "vocab, hidden")),
               pre("bert.embeddings.position_embeddings.weight", Role::position, "positions, hidden"),
               pre("bert.embeddings.token_type_embeddings.weight", Role::token_type, "types, hidden"),
               norm_at(Site::embedding, pre("bert.embeddings.LayerNorm.weight", Role::norm, "hidden")),
               norm_at(Site::embedding, pre("bert.embeddings.LayerNorm.bias", Role::norm, "hidden")),
               optional(pre("bert.embeddings.position_ids", Role::buffer, "1, positions"))};
  a.tensors.back().force_dtype = DType::i64;
  Layers layers{a.tensors, std::string("bert.encoder.layer.") + kLayer + "."};
  layers.linear("attention.self.query", Role::q, "hidden", "hidden", "1");
  layers.linear("attention.self.key", Role::k, "hidden", "hidden", "1");
  layers.linear("attention.self.value", Role::v, "hidden", "hidden", "1");
  layers.linear("attention.output.dense", Role::o, "hidden", "hidden", "1");
  layers.layer_norm("attention.output.LayerNorm", Site::attention_sum, "hidden");
  layers.linear("intermediate.dense", Role::up, "ffn", "hidden", "1");
  layers.linear("output.dense", Role::down, "hidden", "ffn", "1");
  layers.layer_norm("output.LayerNorm", Site::mlp_sum, "hidden");
  // Which of these exist depends on what the network was saved for.
  const std::vector<TensorTemplate> heads = {
      post("bert.pooler.dense.weight", Role::pooler, "hidden, hidden"),
      post("bert.pooler.dense.bias", Role::pooler, "hidden"),
      post("cls.predictions.transform.dense.weight", Role::head_transform, "hidden, hidden"),
      post("cls.predictions.transform.dense.bias", Role::head_transform, "hidden"),
      norm_at(Site::head_transform, post("cls.predictions.transform.LayerNorm.weight", Role::norm, "hidden")),
      norm_at(Site::head_transform, post("cls.predictions.transform.LayerNorm.bias", Role::norm, "hidden")),
      vocabulary(post("cls.predictions.bias", Role::head, "vocab")),
      tied_head("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight", "vocab, hidden"),
      tied_head("cls.predictions.decoder.bias", "cls.predictions.bias", "vocab"),
      post("cls.seq_relationship.weight", Role::classifier, "2, hidden"),
      post("cls.seq_relationship.bias", Role::classifier, "2"),
      post("classifier.weight", Role::classifier, "labels, hidden"),
      post("classifier.bias", Role::classifier, "labels"),
  };
  for (const TensorTemplate& head : heads) a.tensors.push_back(optional(head));
  allow_without_prefix(a, "bert.");
  // Files converted from TensorFlow call the two halves of a norm gamma and beta.
  for (TensorTemplate& t : a.tensors) {
    if (t.name.find("LayerNorm.") == std::string::npos) continue;
    std::vector<std::string> old_names;
    for (const std::string* name : {&t.name, t.aliases.empty() ? nullptr : &t.aliases.front()}) {
      if (name == nullptr) continue;
      const std::string stem = name->substr(0, name->rfind('.') + 1);
      old_names.push_back(stem + (name->ends_with("weight") ? "gamma" : "beta"));
    }
    t.aliases.insert(t.aliases.end(), old_names.begin(), old_names.end());
  }
  return a;
}

Architecture vit() {
  Architecture a;
  a.name = "vit";
  a.classes = {"ViTForImageClassification", "ViTModel"};
  a.model_types = {"vit"};
  a.layer_count_key = "num_hidden_layers";
  a.tied_by_default = false;
  a.fields = {{"hidden", {"hidden_size"}, {}, {}},
              {"ffn", {"intermediate_size"}, {}, {}},
              {"image", {"image_size"}, "224", {}},
              {"patch", {"patch_size"}, "16", {}},
              {"channels", {"num_channels"}, "3", {}},
              {"qkv_bias", {"qkv_bias"}, "1", {}},
              {"labels", {"#id2label", "num_labels"}, "2", {}}};
  a.tensors = {pre("vit.embeddings.cls_token", Role::cls_token, "1, 1, hidden"),
               pre("vit.embeddings.position_embeddings", Role::position, "1, (image/patch)*(image/patch)+1, hidden"),
               pre("vit.embeddings.patch_embeddings.projection.weight", Role::patch, "hidden, channels, patch, patch"),
               pre("vit.embeddings.patch_embeddings.projection.bias", Role::patch, "hidden")};
  Layers layers{a.tensors, std::string("vit.encoder.layer.") + kLayer + "."};
  layers.layer_norm("layernorm_before", Site::attention_in, "hidden");
  layers.linear("attention.attention.query", Role::q, "hidden", "hidden", "qkv_bias");
  layers.linear("attention.attention.key", Role::k, "hidden", "hidden", "qkv_bias");
  layers.linear("attention.attention.value", Role::v, "hidden", "hidden", "qkv_bias");
  layers.linear("attention.output.dense", Role::o, "hidden", "hidden", "1");
  layers.layer_norm("layernorm_after", Site::mlp_in, "hidden");
  layers.linear("intermediate.dense", Role::up, "ffn", "hidden", "1");
  layers.linear("output.dense", Role::down, "hidden", "ffn", "1");
  a.tensors.push_back(norm_at(Site::final, post("vit.layernorm.weight", Role::norm, "hidden")));
  a.tensors.push_back(norm_at(Site::final, post("vit.layernorm.bias", Role::norm, "hidden")));
  a.tensors.push_back(optional(post("vit.pooler.dense.weight", Role::pooler, "hidden, hidden")));
  a.tensors.push_back(optional(post("vit.pooler.dense.bias", Role::pooler, "hidden")));
  a.tensors.push_back(optional(post("classifier.weight", Role::classifier, "labels, hidden")));
  a.tensors.push_back(optional(post("classifier.bias", Role::classifier, "labels")));
  allow_without_prefix(a, "vit.");
  return a;
}

/// Weft's own small networks: `layer_sizes` from input to output.
Architecture mlp() {
  Architecture a;
  a.name = "mlp";
  a.model_types = {"mlp"};
  a.forward.kind = NetworkKind::perceptron;
  a.layer_count_key = "layer_sizes";
  a.tied_by_default = false;
  Layers layers{a.tensors, std::string("layers.") + kLayer + "."};
  layers.add("weight", Role::linear, "layer_sizes[layer+1], layer_sizes[layer]");
  layers.add("bias", Role::linear, "layer_sizes[layer+1]");
  return a;
}

/// Weft's own: `layers` is a list of steps, of which conv2d and linear name a tensor.
Architecture cnn() {
  Architecture a;
  a.name = "cnn";
  a.model_types = {"cnn"};
  a.forward.kind = NetworkKind::steps;
  a.listed_in = "layers";
  a.tied_by_default = false;
  return a;
}

}  // namespace

std::span<const Architecture> architectures() {
  using HeadNorm = Decoder::HeadNorm;
  using Mixture = Decoder::Mixture;
  static const std::vector<std::pair<std::string, Site>> kGemmaNorms = {{"input_layernorm", Site::attention_in},
                                                                        {"post_attention_layernorm", Site::attention_out},
                                                                        {"pre_feedforward_layernorm", Site::mlp_in},
                                                                        {"post_feedforward_layernorm", Site::mlp_out}};
  static const std::vector<Architecture> kArchitectures = {
      bert(),
      cnn(),
      decoder({.name = "gemma",
               .classes = {"GemmaForCausalLM"},
               .model_types = {"gemma"},
               .tied = true,
               .kv_heads_absent = "16",
               .head_dim_absent = "256",
               .qkv_bias = "attention_bias",
               .o_bias = "attention_bias",
               .forward = runs(1e-6, 8192, gemma_rule())}),
      decoder({.name = "gemma2",
               .classes = {"Gemma2ForCausalLM"},
               .model_types = {"gemma2"},
               .tied = true,
               .kv_heads_absent = "4",
               .head_dim_absent = "256",
               .qkv_bias = "attention_bias",
               .o_bias = "attention_bias",
               .norms = kGemmaNorms,
               .forward = runs(1e-6, 8192,
                               gemma_rule({.window = WindowRule::even_layers,
                                           .window_absent = 4096,
                                           .query_scalar = {{"query_pre_attn_scalar"}, 256},
                                           .score_cap = {{"attn_logit_softcapping"}, 50},
                                           .logit_cap = {{"final_logit_softcapping"}, 30}}))}),
      // The text model alone. Gemma3ForConditionalGeneration nests it under `text_config`, where the published ones leave out what is the default of
      // the class, and prefixes its names beside a vision tower: text_part() finds it there.
      decoder({.name = "gemma3",
               .classes = {"Gemma3ForCausalLM"},
               .model_types = {"gemma3_text"},
               .tied = true,
               .vocab_absent = "262208",
               .heads_absent = "8",
               .kv_heads_absent = "4",
               .head_dim_absent = "256",
               .qkv_bias = "attention_bias",
               .o_bias = "attention_bias",
               .head_norm = HeadNorm::per_head,
               .norms = kGemmaNorms,
               .forward = runs(1e-6, 131'072,
                               gemma_rule({.rope_theta = {{"rope_theta"}, 1e6},
                                           .local_rope_theta = {{"rope_local_base_freq"}, 10'000},
                                           .window = WindowRule::pattern,
                                           .window_absent = 4096,
                                           .query_scalar = {{"query_pre_attn_scalar"}, 256},
                                           .score_cap = {{"attn_logit_softcapping"}, 0},
                                           .logit_cap = {{"final_logit_softcapping"}, 0}}))}),
      gpt2(),
      gpt_neox(),
      decoder({.name = "llama",
               .classes = {"LlamaForCausalLM"},
               .model_types = {"llama"},
               .qkv_bias = "attention_bias",
               .o_bias = "attention_bias",
               .mlp_bias = "mlp_bias",
               .forward = runs(1e-6, 2048)}),
      decoder({.name = "mistral",
               .classes = {"MistralForCausalLM"},
               .model_types = {"mistral"},
               .kv_heads_absent = "8",
               .forward = runs(1e-6, 131'072, {.window = WindowRule::every_layer, .window_absent = 4096})}),
      decoder({.name = "mixtral",
               .classes = {"MixtralForCausalLM"},
               .model_types = {"mixtral"},
               .kv_heads_absent = "8",
               .mixture = Mixture::mixtral,
               .forward = runs(
                   1e-5, 131'072,
                   {.rope_theta = {{"rope_theta"}, 1e6}, .window = WindowRule::every_layer, .experts_per_token = {{"num_experts_per_tok"}, 2}})}),
      mlp(),
      decoder({.name = "olmo2",
               .classes = {"Olmo2ForCausalLM"},
               .model_types = {"olmo2"},
               .qkv_bias = "attention_bias",
               .o_bias = "attention_bias",
               .head_norm = HeadNorm::whole,
               .norms = {{"post_attention_layernorm", Site::attention_out}, {"post_feedforward_layernorm", Site::mlp_out}},
               .forward = runs(1e-5, 2048)}),
      decoder({.name = "phi3",
               .classes = {"Phi3ForCausalLM"},
               .model_types = {"phi3"},
               .fused = true,
               .forward = runs(1e-5, 4096, {.qkv = QkvLayout::concatenated, .window = WindowRule::every_layer})}),
      decoder({.name = "qwen2",
               .classes = {"Qwen2ForCausalLM"},
               .model_types = {"qwen2"},
               .kv_heads_absent = "32",
               .qkv_bias = "1",
               .forward = runs(1e-6, 32'768, {.window = WindowRule::switched_from_layer, .window_absent = 4096})}),
      decoder({.name = "qwen2_moe",
               .classes = {"Qwen2MoeForCausalLM"},
               .model_types = {"qwen2_moe"},
               .kv_heads_absent = "16",
               .qkv_bias = "qkv_bias",
               .mixture = Mixture::qwen2,
               .forward = runs(1e-6, 32'768,
                               {.window = WindowRule::switched,
                                .window_absent = 4096,
                                .experts_per_token = {{"num_experts_per_tok"}, 4},
                                .renormalise_key = "norm_topk_prob"})}),
      decoder({.name = "qwen3",
               .classes = {"Qwen3ForCausalLM"},
               .model_types = {"qwen3"},
               .kv_heads_absent = "32",
               .head_dim_absent = "128",
               .qkv_bias = "attention_bias",
               .o_bias = "attention_bias",
               .head_norm = HeadNorm::per_head,
               .forward = runs(1e-6, 32'768, {.window = WindowRule::switched_from_layer, .window_absent = 4096})}),
      decoder({.name = "qwen3_moe",
               .classes = {"Qwen3MoeForCausalLM"},
               .model_types = {"qwen3_moe"},
               .kv_heads_absent = "4",
               .qkv_bias = "attention_bias",
               .o_bias = "attention_bias",
               .head_norm = HeadNorm::per_head,
               .mixture = Mixture::qwen3,
               .forward = runs(1e-6, 32'768,
                               {.window = WindowRule::switched,
                                .window_absent = 4096,
                                .experts_per_token = {{"num_experts_per_tok"}, 8},
                                .renormalise_key = "norm_topk_prob"})}),
      vit(),
  };
  return kArchitectures;
}

}  // namespace weft::model
