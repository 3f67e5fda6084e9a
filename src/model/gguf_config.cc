#include "model/gguf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <utility>

#include "base/text.h"
#include "model/config_json.h"
#include "model/network_config.h"
#include "weft/error.h"

namespace weft::model {
namespace {

/// The rope of the layers that see everything; that of layers with a window is not in the file.
const RopeConfig* global_rope(const NetworkConfig& net) {
  for (const LayerConfig& layer : net.layers)
    if (layer.rope >= 0 && layer.window == 0) return &net.ropes[static_cast<std::size_t>(layer.rope)];
  for (const LayerConfig& layer : net.layers)
    if (layer.rope >= 0) return &net.ropes[static_cast<std::size_t>(layer.rope)];
  return nullptr;
}

/// Float32 numbers as the shortest decimal that reads back the same.
Json number_json(double value) { return Json(Json::Number{fmt::format("{}", static_cast<float>(value))}); }

std::vector<double> llama3_divisors(double theta, int dims, double factor, double low, double high, double original) {
  std::vector<double> divisors;
  for (int j = 0; j < dims / 2; ++j) {
    const double inverse = std::pow(theta, -2.0 * j / dims);
    const double wavelength = 2 * std::numbers::pi / inverse;
    if (wavelength < original / high) {
      divisors.push_back(1);
    } else if (wavelength > original / low) {
      divisors.push_back(factor);
    } else {
      const double s = (original / wavelength - low) / (high - low);
      divisors.push_back(1 / ((1 - s) / factor + s));
    }
  }
  return divisors;
}

/// Reads what the loaders of GGUF files read, of any integer width.
class Reader {
 public:
  Reader(const GgufMetadata& metadata, std::string prefix, const std::string& file) : metadata_(metadata), prefix_(std::move(prefix)), file_(file) {}

  [[noreturn]] void refuse(ErrorCode code, const std::string& key, std::string message) const {
    throw Error(code, "GGUF metadata: " + std::move(message), {.file = file_, .key = key},
                "the file is damaged or was converted badly; fetch or convert it again");
  }
  [[nodiscard]] std::optional<std::uint64_t> whole(const std::string& name) const {
    const std::string key = prefix_ + name;
    const GgufValue* value = metadata_.find(key);
    if (value == nullptr) return std::nullopt;
    std::optional<std::uint64_t> number = value->unsigned_integer();
    if (!number && value->array() != nullptr) {
      // One a layer; config.json has one for all.
      const std::vector<std::int64_t> list = value->integer_list();
      if (!list.empty() && list.front() >= 0 && std::all_of(list.begin(), list.end(), [&](std::int64_t n) { return n == list.front(); }))
        number = static_cast<std::uint64_t>(list.front());
      else
        refuse(ErrorCode::unsupported, key, fmt::format("'{}' differs between the layers", key));
    }
    if (!number) refuse(ErrorCode::corrupt, key, fmt::format("'{}' is {}, not a count", key, printable(describe(*value))));
    if (*number > 0xFFFFFFFF) refuse(ErrorCode::corrupt, key, fmt::format("'{}' is {}, beyond 32 bits", key, *number));
    return number;
  }
  [[nodiscard]] std::uint64_t needed(const std::string& name, std::uint64_t lowest, std::uint64_t highest) const {
    const std::optional<std::uint64_t> number = whole(name);
    if (!number) refuse(ErrorCode::corrupt, prefix_ + name, fmt::format("'{}{}' is missing", prefix_, name));
    if (*number < lowest || *number > highest)
      refuse(ErrorCode::corrupt, prefix_ + name, fmt::format("'{}{}' is {}, not between {} and {}", prefix_, name, *number, lowest, highest));
    return *number;
  }
  [[nodiscard]] std::optional<double> number(const std::string& name) const {
    const GgufValue* value = metadata_.find(prefix_ + name);
    if (value == nullptr) return std::nullopt;
    const std::optional<double> number = value->number();
    if (!number || !std::isfinite(*number)) refuse(ErrorCode::corrupt, prefix_ + name, fmt::format("'{}{}' is no number", prefix_, name));
    return number;
  }
  [[nodiscard]] std::optional<std::string> text(const std::string& name) const { return metadata_.text(prefix_ + name); }
  [[nodiscard]] std::optional<bool> flag(const std::string& name) const { return metadata_.flag(prefix_ + name); }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
  const std::string& file_;
};

/// The largest Gemma models scale attention by something else, and llama.cpp knows them by their number of layers.
bool is_27b(const GgufFamily& family, std::uint64_t num_layers) {
  return (family.name == "gemma2" && num_layers == 46) || (family.name == "gemma3" && num_layers == 62);
}

void add_scaling(GgufMetadata& metadata, const std::string& prefix, const RopeConfig& rope, std::vector<std::string>& warnings) {
  const auto original = [&] {
    if (rope.original > 0) metadata.set(prefix + "rope.scaling.original_context_length", GgufValue::u32(static_cast<std::uint64_t>(rope.original)));
  };
  switch (rope.type) {
    case RopeType::standard:
    case RopeType::llama3:  // a tensor says it
      return;
    case RopeType::linear:
      metadata.set(prefix + "rope.scaling.type", GgufValue::text("linear"));
      metadata.set(prefix + "rope.scaling.factor", GgufValue::f32(rope.factor));
      return;
    case RopeType::yarn:
      metadata.set(prefix + "rope.scaling.type", GgufValue::text("yarn"));
      metadata.set(prefix + "rope.scaling.factor", GgufValue::f32(rope.factor));
      original();
      if (rope.beta_fast != 32) metadata.set(prefix + "rope.scaling.yarn_beta_fast", GgufValue::f32(rope.beta_fast));
      if (rope.beta_slow != 1) metadata.set(prefix + "rope.scaling.yarn_beta_slow", GgufValue::f32(rope.beta_slow));
      return;
    case RopeType::longrope:
      // Phi 3 has the factors in any case; others look for them only when told to.
      if (prefix != "phi3.") metadata.set(prefix + "rope.scaling.type", GgufValue::text("longrope"));
      metadata.set(prefix + "rope.scaling.attn_factor", GgufValue::f32(rope.attention_factor));
      original();
      return;
    case RopeType::dynamic:
      warnings.emplace_back("llama.cpp does not know dynamic rope scaling; the file holds the model without it, which is right up to its context");
      return;
  }
}

}  // namespace

void add_gguf_hyperparameters(GgufMetadata& metadata, const GgufFamily& family, const Architecture& architecture, const Json& config,
                              std::uint32_t file_type, std::vector<std::string>& warnings) {
  const NetworkConfig net = read_network_config(config);
  const auto numbers = config_numbers(architecture, config, 0);
  const std::string prefix = family.name + ".";
  const auto u32 = [&](const std::string& key, std::int64_t value) { metadata.set(prefix + key, GgufValue::u32(static_cast<std::uint64_t>(value))); };
  const auto f32 = [&](const std::string& key, double value) { metadata.set(prefix + key, GgufValue::f32(value)); };
  const auto number = [&](const char* name, std::int64_t otherwise) {
    const auto found = numbers.find(name);
    return found == numbers.end() ? otherwise : found->second;
  };
  const RopeConfig* rope = global_rope(net);
  const bool rotary = net.positions == PositionKind::rotary && rope != nullptr;
  const bool decoder = net.kind == NetworkKind::decoder && net.norm != NormKind::layer;

  u32("block_count", static_cast<std::int64_t>(net.layers.size()));
  u32("context_length", net.context);
  u32("embedding_length", net.hidden);
  u32("feed_forward_length", number("ffn", 4 * net.hidden));
  u32("attention.head_count", net.heads);
  if (decoder) u32("attention.head_count_kv", net.kv_heads);
  if (rotary) f32("rope.freq_base", rope->theta);
  // Layers with a window may turn otherwise (Gemma 3).
  for (const LayerConfig& layer : net.layers)
    if (rotary && layer.rope >= 0 && layer.window > 0 && net.ropes[static_cast<std::size_t>(layer.rope)].theta != rope->theta)
      f32("rope.freq_base_swa", net.ropes[static_cast<std::size_t>(layer.rope)].theta);
  f32(net.norm == NormKind::layer ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", net.norm_eps);
  if (net.experts > 0) {
    if (!std::all_of(net.layers.begin(), net.layers.end(), [](const LayerConfig& layer) { return layer.experts; }))
      warnings.push_back(fmt::format("some layers have no experts; llama.cpp loads {} models only where all have", family.name));
    u32("expert_count", net.experts);
    u32("expert_used_count", net.experts_per_token);
  }
  const Json* given_head_dim = text_config(config).find("head_dim");
  const bool says_head_dim = (given_head_dim != nullptr && !given_head_dim->is_null()) || net.head_dim * net.heads != net.hidden;
  if (decoder && (says_head_dim || family.name.starts_with("gemma"))) {
    u32("attention.key_length", net.head_dim);
    u32("attention.value_length", net.head_dim);
  }
  metadata.set("general.file_type", GgufValue::u32(file_type));
  if (const std::int64_t width = number("expert_ffn", 0); width > 0) u32("expert_feed_forward_length", width);
  if (const std::int64_t width = number("shared_ffn", 0); width > 0) u32("expert_shared_feed_forward_length", width);
  if (family.name == "llama") u32("vocab_size", net.vocab);
  if (rotary && (family.name == "llama" || family.name == "phi3" || family.name == "gptneox")) u32("rope.dimension_count", rope->dims);
  if (family.name == "gptneox") metadata.set(prefix + "use_parallel_residual", GgufValue::boolean(net.parallel));
  if (family.name == "bert") {
    metadata.set(prefix + "attention.causal", GgufValue::boolean(false));
    metadata.set("tokenizer.ggml.token_type_count", GgufValue::u32(static_cast<std::uint64_t>(net.types)));
    u32("pooling_type", 1);  // the mean, as sentence encoders use it; 2 is the first token
    warnings.emplace_back("the file says that embeddings are means over the tokens (bert.pooling_type 1); 'weft edit metadata' changes that");
  }
  if (net.score_cap > 0) f32("attn_logit_softcapping", net.score_cap);
  if (net.logit_cap > 0) f32("final_logit_softcapping", net.logit_cap);
  if (family.name == "gemma2" || family.name == "gemma3" || family.name == "phi3") {
    std::int64_t window = 0;
    for (const LayerConfig& layer : net.layers) window = std::max(window, layer.window);
    if (window > 0 || family.name == "phi3") u32("attention.sliding_window", window);
    // Of so many layers in a row the last sees everything.
    const auto fits = [&](std::size_t period) {
      for (std::size_t i = 0; i < net.layers.size(); ++i)
        if (((i + 1) % period != 0) != (net.layers[i].window > 0)) return false;
      return true;
    };
    const std::size_t expected = family.name == "gemma2" ? 2 : 6;
    if (window > 0 && family.name != "phi3" && !fits(expected)) {
      std::size_t period = 1;
      while (period <= net.layers.size() && !fits(period)) ++period;
      if (period <= net.layers.size())
        u32("attention.sliding_window_pattern", static_cast<std::int64_t>(period));
      else
        warnings.push_back(fmt::format("the layers with a window follow no pattern, so llama.cpp will take others of the {} model", family.name));
    }
    const double usual =
        1 / std::sqrt(static_cast<double>(family.name == "phi3" || !is_27b(family, net.layers.size()) ? net.head_dim : net.hidden / net.heads));
    if (std::any_of(net.layers.begin(), net.layers.end(), [usual](const LayerConfig& layer) { return std::abs(layer.score_scale - usual) > 1e-6; }))
      warnings.emplace_back("llama.cpp has no place for this model's query_pre_attn_scalar and will scale attention by the width of a head");
  } else if (std::any_of(net.layers.begin(), net.layers.end(), [](const LayerConfig& layer) { return layer.window > 0; })) {
    warnings.push_back(fmt::format("llama.cpp runs {} models without a window; texts longer than the window will give other results", family.name));
  }
  if (rotary) add_scaling(metadata, prefix, *rope, warnings);
}

std::vector<GgufConstant> gguf_rope_constants(const Architecture& architecture, const Json& config) {
  if (architecture.forward.kind != NetworkKind::decoder || architecture.forward.positions != PositionKind::rotary) return {};
  const NetworkConfig net = read_network_config(config);
  const RopeConfig* rope = global_rope(net);
  if (rope == nullptr) return {};
  if (rope->type == RopeType::llama3) {
    std::vector<float> divisors;
    for (const double d :
         llama3_divisors(rope->theta, rope->dims, rope->factor, rope->low_freq_factor, rope->high_freq_factor, static_cast<double>(rope->original)))
      divisors.push_back(static_cast<float>(d));
    return {{"rope_freqs.weight", std::move(divisors)}};
  }
  if (rope->type == RopeType::longrope) return {{"rope_factors_long.weight", rope->long_factor}, {"rope_factors_short.weight", rope->short_factor}};
  return {};
}

Json config_of_gguf(const GgufMetadata& metadata, const GgufFamily& family, const GgufModelFacts& facts, const std::string& file,
                    std::vector<std::string>& warnings) {
  const Reader read(metadata, family.name + ".", file);
  const std::uint64_t layers = read.needed("block_count", 1, 100'000);
  const std::uint64_t hidden = read.needed("embedding_length", 1, static_cast<std::uint64_t>(kMaxHidden));
  const std::uint64_t heads = read.needed("attention.head_count", 1, hidden);
  const std::uint64_t kv_heads = read.whole("attention.head_count_kv").value_or(heads);
  if (kv_heads == 0 || heads % kv_heads != 0)
    read.refuse(ErrorCode::corrupt, family.name + ".attention.head_count_kv", fmt::format("{} heads do not share {} key heads", heads, kv_heads));
  const std::optional<std::uint64_t> key_length = read.whole("attention.key_length");
  if (!key_length && hidden % heads != 0)
    read.refuse(ErrorCode::corrupt, family.name + ".attention.head_count", fmt::format("{} heads do not divide a width of {}", heads, hidden));
  const std::uint64_t head_dim = key_length.value_or(hidden / heads);
  if (head_dim == 0) read.refuse(ErrorCode::corrupt, family.name + ".attention.key_length", "a head has no dimensions");
  if (const auto value_length = read.whole("attention.value_length"); value_length && *value_length != head_dim)
    read.refuse(ErrorCode::unsupported, family.name + ".attention.value_length", "keys and values differ in length");
  const std::uint64_t ffn = read.needed("feed_forward_length", 1, std::uint64_t{1} << 24);
  const std::uint64_t context = read.needed("context_length", 1, 0xFFFFFFFF);
  const std::uint64_t experts = read.whole("expert_count").value_or(0);
  const bool layer_norm = family.name == "gpt2" || family.name == "gptneox" || family.name == "bert";
  const std::optional<double> eps = read.number(layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon");
  if (!eps) read.refuse(ErrorCode::corrupt, family.name + ".attention", "the epsilon of the norms is missing");
  const std::string& name = family.name == "llama" && experts > 0 ? std::string("mixtral") : family.architectures.front();
  const auto found = std::find_if(architectures().begin(), architectures().end(), [&](const Architecture& a) { return a.name == name; });
  if (found == architectures().end())
    read.refuse(ErrorCode::unsupported, "general.architecture", fmt::format("the architecture '{}' is unknown", name));

  Json config(Json::Object{});
  const auto set = [&config](std::string_view key, auto value) { config.set(key, Json(std::move(value))); };
  std::string class_name = found->classes.empty() ? std::string() : found->classes.front();
  if (family.name == "bert") class_name = "BertModel";
  if (!class_name.empty()) set("architectures", Json::Array{Json(class_name)});
  set("model_type", found->model_types.front());
  set("vocab_size", facts.vocab_size);

  const auto theta = read.number("rope.freq_base");
  if (family.name == "gpt2") {
    set("n_embd", hidden);
    set("n_layer", layers);
    set("n_head", heads);
    set("n_positions", context);
    set("n_ctx", context);
    if (ffn != 4 * hidden) set("n_inner", ffn);
    set("activation_function", "gelu_new");
    config.set("layer_norm_epsilon", number_json(*eps));
  } else {
    set("hidden_size", hidden);
    set("intermediate_size", ffn);
    set("num_hidden_layers", layers);
    set("num_attention_heads", heads);
    set("max_position_embeddings", context);
    if (family.name == "gptneox") {
      const std::uint64_t dims = read.whole("rope.dimension_count").value_or(head_dim);
      config.set("rotary_pct", Json(static_cast<double>(dims) / static_cast<double>(head_dim)));
      config.set("rotary_emb_base", number_json(theta.value_or(10'000)));
      set("use_parallel_residual", read.flag("use_parallel_residual").value_or(true));
      set("hidden_act", "gelu");
      config.set("layer_norm_eps", number_json(*eps));
    } else if (family.name == "bert") {
      set("hidden_act", "gelu");
      config.set("layer_norm_eps", number_json(*eps));
      set("type_vocab_size", metadata.unsigned_integer("tokenizer.ggml.token_type_count").value_or(2));
      set("position_embedding_type", "absolute");
    } else {
      set("num_key_value_heads", kv_heads);
      if (key_length || family.name == "qwen3" || family.name == "qwen3moe") set("head_dim", head_dim);
      set(family.name.starts_with("gemma") ? "hidden_activation" : "hidden_act", family.name.starts_with("gemma") ? "gelu_pytorch_tanh" : "silu");
      if (family.name.starts_with("gemma")) set("hidden_act", "gelu_pytorch_tanh");
      config.set("rms_norm_eps", number_json(*eps));
      config.set("rope_theta", number_json(theta.value_or(family.name == "gemma3" ? 1e6 : 10'000)));
      const bool has_switch = family.name != "qwen2" && family.name != "qwen2moe" && family.name != "phi3" && name != "mixtral";
      if (has_switch) set("attention_bias", facts.qkv_bias || facts.o_bias);
      if (family.name == "llama" && experts == 0) set("mlp_bias", facts.mlp_bias);
      if (family.name == "qwen2moe" && !facts.qkv_bias) set("qkv_bias", false);
    }
  }
  if (experts > 0) {
    const std::uint64_t used = read.needed("expert_used_count", 1, experts);
    set(name == "mixtral" ? "num_local_experts" : "num_experts", experts);
    set("num_experts_per_tok", used);
    if (name != "mixtral") {
      set("moe_intermediate_size", read.whole("expert_feed_forward_length").value_or(ffn));
      // llama.cpp knows only this: Qwen 3 divides the chosen experts' shares by their sum, Qwen 2 does not.
      set("norm_topk_prob", family.name == "qwen3moe");
      set("decoder_sparse_step", 1);
      set("mlp_only_layers", Json::Array{});
    }
    if (const auto shared = read.whole("expert_shared_feed_forward_length")) set("shared_expert_intermediate_size", *shared);
  }
  if (family.name == "gemma2" || family.name == "gemma3") {
    if (const auto window = read.whole("attention.sliding_window")) set("sliding_window", *window);
    // Only the largest models differ from the width of a head here, and llama.cpp knows them by their size.
    set("query_pre_attn_scalar", is_27b(family, layers) ? hidden / heads : head_dim);
    const auto cap = [&](const char* key, const std::optional<double>& value) { config.set(key, value ? number_json(*value) : Json()); };
    cap("attn_logit_softcapping", read.number("attn_logit_softcapping"));
    cap("final_logit_softcapping", read.number("final_logit_softcapping"));
    if (family.name == "gemma3") {
      set("sliding_window_pattern", read.whole("attention.sliding_window_pattern").value_or(6));
      config.set("rope_local_base_freq", number_json(read.number("rope.freq_base_swa").value_or(10'000)));
    }
  }
  if (family.name == "phi3") {
    const auto window = read.whole("attention.sliding_window");
    config.set("sliding_window", window && *window > 0 ? Json(*window) : Json());
    if (const auto dims = read.whole("rope.dimension_count"); dims && *dims != head_dim)
      config.set("partial_rotary_factor", Json(static_cast<double>(*dims) / static_cast<double>(head_dim)));
  }

  const auto type = read.text("rope.scaling.type");
  const auto original = read.whole("rope.scaling.original_context_length");
  if (!facts.rope_divisors.empty()) {
    // The tensor holds what came out of four numbers; those of the published models are tried.
    const double factor = *std::max_element(facts.rope_divisors.begin(), facts.rope_divisors.end());
    bool fits = false;
    for (const double length : {8192.0, static_cast<double>(context) / factor, 4096.0, 2048.0, 131072.0}) {
      const std::vector<double> divisors =
          llama3_divisors(theta.value_or(10'000), static_cast<int>(2 * facts.rope_divisors.size()), factor, 1, 4, length);
      fits = std::equal(divisors.begin(), divisors.end(), facts.rope_divisors.begin(), facts.rope_divisors.end(),
                        [](double a, float b) { return std::abs(a - b) <= 1e-3 * a; });
      if (!fits && length != 131072.0) continue;
      config.set("rope_scaling", Json(Json::Object{{"rope_type", Json("llama3")},
                                                   {"factor", Json(factor)},
                                                   {"low_freq_factor", Json(1.0)},
                                                   {"high_freq_factor", Json(4.0)},
                                                   {"original_max_position_embeddings", Json(static_cast<std::uint64_t>(fits ? length : 8192.0))}}));
      break;
    }
    if (!fits) warnings.emplace_back("rope_freqs.weight does not follow from the usual numbers of Llama 3; check rope_scaling in config.json");
  } else if (!facts.long_factors.empty()) {
    const auto list = [](const std::vector<float>& values) {
      Json::Array array;
      for (const float value : values) array.push_back(number_json(value));
      return Json(std::move(array));
    };
    config.set("rope_scaling", Json(Json::Object{{"rope_type", Json("longrope")},
                                                 {"long_factor", list(facts.long_factors)},
                                                 {"short_factor", list(facts.short_factors.empty() ? facts.long_factors : facts.short_factors)}}));
    if (original) set("original_max_position_embeddings", *original);
  } else if (type && (*type == "linear" || *type == "yarn")) {
    Json scaling(Json::Object{{"rope_type", Json(*type)}, {"factor", number_json(read.number("rope.scaling.factor").value_or(1))}});
    if (original) scaling.set("original_max_position_embeddings", Json(*original));
    if (const auto fast = read.number("rope.scaling.yarn_beta_fast")) scaling.set("beta_fast", number_json(*fast));
    if (const auto slow = read.number("rope.scaling.yarn_beta_slow")) scaling.set("beta_slow", number_json(*slow));
    config.set("rope_scaling", std::move(scaling));
  } else if (type && *type != "none") {
    warnings.push_back(fmt::format("the rope scaling '{}' has no place in config.json and was left out", printable(*type)));
  }
  set("tie_word_embeddings", facts.tied);
  for (const auto& [key, id] : {std::pair("bos_token_id", "tokenizer.ggml.bos_token_id"), std::pair("eos_token_id", "tokenizer.ggml.eos_token_id"),
                                std::pair("pad_token_id", "tokenizer.ggml.padding_token_id")})
    if (const auto number = metadata.unsigned_integer(id)) set(key, *number);
  set_dtype(config, facts.dtype);
  return config;
}

}  // namespace weft::model
