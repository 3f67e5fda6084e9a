#include "weft/moe.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/philox.h"
#include "base/text.h"
#include "checkpoint/arranged_view.h"
#include "checkpoint/model_folder.h"
#include "engine/lazy_model.h"
#include "engine/stream_checkpoint.h"
#include "engine/yaml.h"
#include "math/convert.h"
#include "math/elementary.h"
#include "model/architecture.h"
#include "model/config_json.h"
#include "model/tokenizer.h"
#include "weft/error.h"
#include "weft/forward.h"
#include "weft/version.h"

// Mixtures of experts from dense models, as mergekit-moe makes them.
namespace weft {
namespace {

namespace fs = std::filesystem;
using engine::LazyModel;
using yaml::Kind;
using yaml::Node;

// ---- The config ----

struct Expert {
  std::string model;
  std::vector<std::string> positive;
  std::vector<std::string> negative;
  std::optional<double> noise_scale;
  std::optional<double> residual_scale;
  bool operator==(const Expert&) const = default;
};

enum class Gate { random, uniform_random, cheap_embed, hidden_last, hidden_avg };
/// Made of prompts.
bool uses_prompts(Gate gate) { return gate != Gate::random && gate != Gate::uniform_random; }

struct MoeConfig {
  std::string base;
  std::vector<Expert> experts;
  std::vector<Expert> shared;
  Gate gate = Gate::hidden_last;
  std::optional<DType> dtype;
  std::uint64_t experts_per_token = 2;
  std::string architecture;
};

class ConfigReader {
 public:
  explicit ConfigReader(std::string file) : file_(std::move(file)) {}

  MoeConfig read(std::string_view text, bool allow_same) {
    const std::vector<yaml::Document> documents = yaml::parse(text, file_);
    if (documents.empty() || documents.front().root.kind != Kind::mapping)
      fail("", {}, "the config is no mapping", "a config has the keys base_model, gate_mode and experts");
    const Node& root = documents.front().root;
    check_keys(root, "", {"base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts", "architecture"});
    MoeConfig config;
    const Node* base = root.find("base_model");
    if (base == nullptr) fail("base_model", root.place, "the config has no base_model", "it gives attention, norms and embeddings");
    config.base = model(*base, "base_model");
    read_gate(root, config);
    if (const Node* type = present(root, "dtype")) {
      config.dtype = dtype_from_any(text_of(*type, "dtype"));
      if (!config.dtype || !is_decodable_float(*config.dtype))
        fail("dtype", type->place, "unknown type '" + printable(type->text) + "'", "such as bfloat16 or float16");
    }
    if (const Node* count = present(root, "experts_per_token")) {
      if (count->kind != Kind::integer || !count->integer || *count->integer < 1)
        fail("experts_per_token", count->place, "experts_per_token must be at least 1", "2 is usual");
      config.experts_per_token = static_cast<std::uint64_t>(*count->integer);
    }
    if (const Node* name = present(root, "architecture")) config.architecture = text_of(*name, "architecture");
    config.experts = experts(root, "experts");
    if (present(root, "shared_experts") != nullptr) config.shared = experts(root, "shared_experts");
    check(config, allow_same);
    return config;
  }

 private:
  [[noreturn]] void fail(const std::string& key, yaml::Place place, std::string what, std::string advice) const {
    if (place.line != 0) what += fmt::format(" ({})", yaml::to_string(place));
    throw Error(ErrorCode::invalid_argument, std::move(what), {.file = file_, .key = key}, std::move(advice));
  }

  static const Node* present(const Node& node, std::string_view key) {
    const Node* value = node.find(key);
    return value != nullptr && !value->is_null() ? value : nullptr;
  }

  void check_keys(const Node& node, const std::string& prefix, const std::vector<std::string>& known) const {
    for (const yaml::Member& member : node.members) {
      if (std::find(known.begin(), known.end(), member.key.text) != known.end()) continue;
      const auto nearest = nearest_name(member.key.text, known);
      fail(prefix + member.key.text, member.key.place, "there is no key '" + printable(member.key.text) + "' here",
           nearest ? "did you mean " + *nearest + "?" : "");
    }
  }

  std::string text_of(const Node& node, const std::string& key) const {
    if (!node.is_scalar() || node.text.empty())
      fail(key, node.place, fmt::format("{} is {}, where text belongs", key, yaml::describe(node.kind)), "");
    return node.text;
  }

  /// "path", or {model: path or {path: ...}}.
  std::string model(const Node& node, const std::string& key) const {
    if (node.kind != Kind::mapping) return text_of(node, key);
    const Node* inner = node.find("model");
    if (inner != nullptr && inner->kind == Kind::mapping) inner = inner->find("path");
    if (inner == nullptr) fail(key, node.place, key + " names no model", "write its path");
    return text_of(*inner, key);
  }

  void read_gate(const Node& root, MoeConfig& config) const {
    const Node* mode = present(root, "gate_mode");
    const std::string name = mode == nullptr ? "hidden" : text_of(*mode, "gate_mode");
    if (name == "random") {
      config.gate = Gate::random;
    } else if (name == "uniform_random") {
      config.gate = Gate::uniform_random;
    } else if (name == "cheap_embed") {
      config.gate = Gate::cheap_embed;
    } else if (name == "hidden" || name == "hidden_last") {
      config.gate = Gate::hidden_last;
    } else if (name == "hidden_avg") {
      config.gate = Gate::hidden_avg;
    } else {
      fail("gate_mode", mode->place, "unknown gate_mode '" + printable(name) + "'",
           "one of hidden, hidden_avg, hidden_last, cheap_embed, random, uniform_random");
    }
  }

  std::vector<Expert> experts(const Node& root, const std::string& key) const {
    const Node* list = present(root, key);
    if (list == nullptr || list->kind != Kind::sequence)
      fail(key, root.place, key + " is no list", "write a list of {source_model: PATH, positive_prompts: [...]}");
    std::vector<Expert> out;
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      const Node& item = list->items[i];
      const std::string at = fmt::format("{}[{}]", key, i);
      if (item.kind != Kind::mapping) fail(at, item.place, fmt::format("{} is {}, where a mapping belongs", at, yaml::describe(item.kind)), "");
      check_keys(item, at + ".", {"source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale"});
      Expert expert;
      const Node* source = item.find("source_model");
      if (source == nullptr) fail(at + ".source_model", item.place, at + " has no source_model", "");
      expert.model = model(*source, at + ".source_model");
      expert.positive = prompts(item, "positive_prompts", at);
      expert.negative = prompts(item, "negative_prompts", at);
      expert.noise_scale = number(item, "noise_scale", at);
      expert.residual_scale = number(item, "residual_scale", at);
      out.push_back(std::move(expert));
    }
    return out;
  }

  std::vector<std::string> prompts(const Node& item, const std::string& key, const std::string& at) const {
    std::vector<std::string> out;
    const Node* list = present(item, key);
    if (list == nullptr) return out;
    if (list->kind != Kind::sequence) fail(at + "." + key, list->place, key + " is no list", "write a list of texts");
    for (const Node& prompt : list->items) out.push_back(text_of(prompt, at + "." + key));
    return out;
  }

  std::optional<double> number(const Node& item, const std::string& key, const std::string& at) const {
    const Node* value = present(item, key);
    if (value == nullptr) return std::nullopt;
    if ((value->kind != Kind::number && value->kind != Kind::integer) || !std::isfinite(value->number))
      fail(at + "." + key, value->place, key + " is no number", "");
    return value->number;
  }

  void check(const MoeConfig& config, bool allow_same) const {
    if (config.experts.empty()) fail("experts", {}, "there are no experts", "give at least two");
    if (config.experts.size() < config.experts_per_token)
      fail("experts", {},
           fmt::format("there are {} experts, fewer than experts_per_token, which is {}", config.experts.size(), config.experts_per_token),
           "add experts, or lower experts_per_token");
    constexpr std::size_t kMostExperts = 4096;
    if (config.experts.size() > kMostExperts) fail("experts", {}, fmt::format("there are more than {} experts", kMostExperts), "check the config");
    if (config.gate == Gate::random) return;
    if (uses_prompts(config.gate)) {
      for (std::size_t i = 0; i < config.experts.size(); ++i)
        if (config.experts[i].positive.empty())
          fail(fmt::format("experts[{}].positive_prompts", i), {}, fmt::format("expert {} has no positive prompts", i),
               "give prompts that it should answer, or use gate_mode: random");
      const bool same = std::all_of(config.experts.begin(), config.experts.end(), [&](const Expert& e) {
        return e.positive == config.experts.front().positive && e.negative == config.experts.front().negative;
      });
      if (same && config.experts.size() > 1)
        fail("experts", {}, "the prompts of all experts are the same, so that the routers could not tell them apart",
             "give each expert prompts that it should answer");
    }
    const bool one_model =
        std::all_of(config.experts.begin(), config.experts.end(), [&](const Expert& e) { return e.model == config.experts.front().model; });
    if (one_model && !allow_same)
      fail("experts", {}, "all experts are the same model, so the result would compute what that does, at a higher price",
           "--i-understand-this-is-not-useful-without-training goes on, for models that will be trained");
  }

  std::string file_;
};

// ---- Values that are made ----

/// x + noise_scale * N(0, 1), then times a factor.
class NoiseAndScale final : public merge::TensorMerge {
 public:
  NoiseAndScale(std::optional<double> noise, std::optional<double> scale, std::uint64_t seed, const std::string& name)
      : noise_(noise), scale_(scale), radius_(RandomStream::of(seed, name, 0, 0)), angle_(RandomStream::of(seed, name, 0, 1)) {}
  static double normal(const RandomStream& radius, const RandomStream& angle, std::uint64_t element) {
    // 1 - u is in (0, 1]: the logarithm is finite.
    return std::sqrt(-2 * math::log(1 - static_cast<double>(radius.uniform(element)))) *
           math::cos(2 * std::numbers::pi * static_cast<double>(angle.uniform(element)));
  }
  void map(const merge::Tile& tile, std::span<float> out) const override {
    const std::span<const float> in = tile.input(0);
    for (std::size_t i = 0; i < tile.count; ++i) {
      double value = static_cast<double>(in[i]);
      if (noise_) value += *noise_ * normal(radius_, angle_, tile.first + i);
      if (scale_) value *= *scale_;
      out[i] = static_cast<float>(value);
    }
  }

 private:
  std::optional<double> noise_, scale_;
  RandomStream radius_, angle_;
};

// ---- Architectures ----

enum class Form { mixtral, deepseek, qwen2, qwen3 };

struct FormName {
  Form form;
  std::string_view name;
};
constexpr FormName kForms[] = {{Form::mixtral, "Mixtral"}, {Form::deepseek, "DeepSeek MoE"}, {Form::qwen2, "Qwen MoE"}, {Form::qwen3, "Qwen3 MoE"}};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return out;
}

std::string model_type(const LazyModel& model) {
  const Json* type = model.parts.config ? model.parts.config->find("model_type") : nullptr;
  return type != nullptr && type->string() != nullptr ? *type->string() : std::string();
}

/// Removed with what is in it.
struct Scratch {
  Scratch() {
    std::string pattern = (fs::temp_directory_path() / "weft-moe-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw Error(ErrorCode::io, "cannot make a temporary folder", {.file = pattern});
    path = pattern;
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  fs::path path;
};

class Builder {
 public:
  Builder(MoeConfig config, std::string text, std::string file, const MoeOptions& options)
      : config_(std::move(config)), text_(std::move(text)), file_(std::move(file)), options_(options) {}

  LazyModel build() {
    base_ = open(config_.base);
    if (!base_->parts.config)
      throw Error(ErrorCode::not_found, "the base model has no config.json", {.file = config_.base}, "a mixture is made from model folders");
    for (const Expert& expert : config_.experts) experts_.push_back(open(expert.model));
    for (const Expert& expert : config_.shared) shared_.push_back(open(expert.model));
    form_ = choose_form();
    num_layers_ = integer("num_hidden_layers");
    hidden_ = integer("hidden_size");
    if (num_layers_ < 1 || num_layers_ > 100'000 || hidden_ < 1 || hidden_ > (1 << 24))
      throw Error(ErrorCode::corrupt, "config.json of the base lacks num_hidden_layers or hidden_size", {.file = config_.base},
                  "fetch the model again");
    out_dtype_ = config_.dtype ? config_.dtype : model::config_dtype(*base_->parts.config);

    LazyModel out;
    out.name = "moe";
    out.metadata = base_->metadata;
    for (const auto& [name, model] : opened_) {
      out.inputs.insert(out.inputs.end(), model->inputs.begin(), model->inputs.end());
      out.input_paths.insert(out.input_paths.end(), model->input_paths.begin(), model->input_paths.end());
      for (const std::string& warning : model->warnings) out.warnings.push_back(name + ": " + warning);
    }
    add_base_tensors(out);
    add_experts(out);
    add_routers(out);
    add_noise(out);
    out.parts.config = edited_config(out.warnings);
    out.config_changed = true;
    out.companions = base_->companions;
    std::erase_if(out.companions,
                  [](const engine::CompanionFile& f) { return f.name == "mergekit_moe_config.yml" || f.name == "weft_provenance.json"; });
    if (options_.write_config_copy) out.companions.push_back({.name = "mergekit_moe_config.yml", .content = text_});
    const std::size_t count = config_.experts.size();
    if ((count & (count - 1)) != 0) out.warnings.push_back(fmt::format("{} experts are no power of two; some programs want one", count));
    return out;
  }

 private:
  const LazyModel* open(const std::string& name) {
    const auto found = opened_.find(name);
    if (found != opened_.end()) return found->second.get();
    return opened_.emplace(name, std::make_unique<LazyModel>(engine::open_lazy_model(name))).first->second.get();
  }

  std::int64_t integer(const char* key) const {
    const Json* value = base_->parts.config->find(key);
    return value == nullptr ? 0 : value->integer().value_or(0);
  }

  [[noreturn]] void refuse(const std::string& key, std::string what, std::string advice) const {
    throw Error(ErrorCode::invalid_argument, std::move(what), {.file = file_, .key = key}, std::move(advice));
  }

  /// Why the models and the config cannot become this; empty when they can.
  std::string obstacle(Form form) const {
    std::set<std::string> types;
    types.insert(model_type(*base_));
    for (const LazyModel* model : experts_) types.insert(model_type(*model));
    for (const LazyModel* model : shared_) types.insert(model_type(*model));
    if (types.size() != 1) return "its models must be of one architecture";
    const std::string& type = *types.begin();
    const bool llama = type == "llama" || type == "mistral";
    const bool prompts = !config_.shared.empty() && (!config_.shared.front().positive.empty() || !config_.shared.front().negative.empty());
    switch (form) {
      case Form::mixtral:
        if (!config_.shared.empty()) return "it has no shared experts";
        return llama ? "" : "its models are Llama or Mistral models";
      case Form::deepseek:
        if (config_.shared.size() > 1) return "it has one shared expert at most";
        if (prompts) return "its shared expert has no gate, so no prompts";
        return llama ? "" : "its models are Llama or Mistral models";
      case Form::qwen2:
        if (config_.shared.size() != 1) return "it needs exactly one shared expert";
        if (uses_prompts(config_.gate) && config_.shared.front().positive.empty()) return "its shared expert needs prompts";
        return llama || type == "qwen2" ? "" : "its models are Qwen2, Llama or Mistral models";
      case Form::qwen3:
        if (!config_.shared.empty()) return "it has no shared experts";
        return type == "qwen3" ? "" : "its models are Qwen3 models";
    }
    return "";
  }

  Form choose_form() const {
    std::string reasons;
    std::optional<Form> chosen;
    bool named = false;
    for (const FormName& candidate : kForms) {
      if (!config_.architecture.empty() && !lower(candidate.name).starts_with(lower(config_.architecture))) continue;
      named = true;
      const std::string why = obstacle(candidate.form);
      if (why.empty() && !chosen) chosen = candidate.form;
      if (!why.empty()) reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", candidate.name, why);
    }
    if (!named)
      refuse("architecture", "there is no architecture '" + printable(config_.architecture) + "'", "Mixtral, DeepSeek MoE, Qwen MoE or Qwen3 MoE");
    if (!chosen) refuse("base_model", "no mixture can be made of these models", reasons);
    return *chosen;
  }

  /// Values in the type that is written.
  TensorRef typed(const TensorRef& tensor) const {
    if (!out_dtype_ || !is_decodable_float(tensor.tensor->dtype)) return tensor;
    return cast_tensor(tensor, *out_dtype_);
  }

  void add(LazyModel& out, std::string name, const TensorRef& source, std::string input) {
    edit::Tensor tensor{std::move(name), typed(source), source, {std::move(input)}, {}};
    if (tensor.values.tensor != source.tensor) tensor.steps.emplace_back("cast");
    out.parts.tensors.push_back(std::move(tensor));
  }

  void add_base_tensors(LazyModel& out) {
    const model::Architecture* architecture = model::find_architecture(*base_->parts.config);
    std::uint64_t biases = 0;
    for (const edit::Tensor& tensor : base_->parts.tensors) {
      if (tensor.name.find(".mlp.") != std::string::npos) continue;
      if (architecture != nullptr && model::is_dropped(*architecture, tensor.name)) continue;
      if ((form_ == Form::mixtral || form_ == Form::deepseek) && tensor.name.ends_with("_proj.bias")) {
        ++biases;
        continue;
      }
      add(out, tensor.name, tensor.values, tensor.inputs.front());
    }
    if (biases != 0) out.warnings.push_back(fmt::format("{} biases of the base were left out: this kind of mixture has none", biases));
    if (form_ != Form::qwen2) return;
    // Qwen2's attention has biases; of models without them they are zero.
    const std::int64_t heads = integer("num_attention_heads"), kv_heads = integer("num_key_value_heads") > 0 ? integer("num_key_value_heads") : heads;
    const std::int64_t head_dim = integer("head_dim") > 0 ? integer("head_dim") : heads > 0 ? hidden_ / heads : 0;
    for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
      for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
        const std::string name = fmt::format("model.layers.{}.self_attn.{}.bias", layer, part);
        const bool there = std::any_of(out.parts.tensors.begin(), out.parts.tensors.end(), [&](const edit::Tensor& t) { return t.name == name; });
        if (!there) literal(out, name, {(part[0] == 'q' ? heads : kv_heads) * head_dim}, {});
      }
    }
  }

  /// A tensor of these values (none: zeros).
  void literal(LazyModel& out, const std::string& name, Shape shape, const std::vector<float>& values) {
    std::uint64_t count = 1;
    for (const std::int64_t dim : shape) count = checked_mul(count, static_cast<std::uint64_t>(dim), name);
    const DType dtype = out_dtype_.value_or(DType::f32);
    ArrangedTensor tensor;
    tensor.name = name;
    tensor.shape = std::move(shape);
    tensor.kind = ArrangedTensor::Kind::literal;
    tensor.dtype = dtype;
    tensor.bytes.assign(checked_size(count * static_cast<std::uint64_t>(info(dtype).bits) / 8, name), '\0');
    if (!values.empty()) math::encode(dtype, values, std::as_writable_bytes(std::span(tensor.bytes)));
    std::vector<ArrangedTensor> one;
    one.push_back(std::move(tensor));
    const auto view = make_arranged_view("view", *base_->inputs.front(), std::move(one));
    const TensorRef made{view, &view->tensors().front()};
    out.parts.tensors.push_back({name, made, made, {}, {"router"}});
  }

  const edit::Tensor& mlp_of(const LazyModel& model, std::int64_t layer, const char* part) const {
    const std::string name = fmt::format("model.layers.{}.mlp.{}.weight", layer, part);
    for (const edit::Tensor& tensor : model.parts.tensors)
      if (tensor.name == name) return tensor;
    throw Error(ErrorCode::not_found, fmt::format("tensor '{}' is not present in model {}", name, model.name), {.file = model.name, .tensor = name},
                "experts need the layers of the base");
  }

  void add_expert(LazyModel& out, const Expert& expert, const LazyModel& model, std::int64_t layer, const std::string& prefix) {
    struct Part {
      const char* from;
      const char* mixtral;
    };
    constexpr Part kParts[] = {{"gate_proj", "w1"}, {"down_proj", "w2"}, {"up_proj", "w3"}};
    for (const Part& part : kParts) {
      const edit::Tensor& tensor = mlp_of(model, layer, part.from);
      const edit::Tensor& like = mlp_of(*base_, layer, part.from);
      if (tensor.values.tensor->shape != like.values.tensor->shape)
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("'{}' is {} in {} and {} in the base", tensor.name, to_string(tensor.values.tensor->shape), model.name,
                                to_string(like.values.tensor->shape)),
                    {.file = file_, .tensor = tensor.name}, "experts have the size of the base");
      const std::string name = fmt::format("{}.{}.weight", prefix, form_ == Form::mixtral ? part.mixtral : part.from);
      const bool residual = std::string_view(part.from) == "down_proj";
      const std::optional<double> scale = residual ? expert.residual_scale : std::nullopt;
      if (!expert.noise_scale && !scale) {
        add(out, name, tensor.values, tensor.inputs.front());
        continue;
      }
      engine::StreamTensor stream;
      stream.name = name;
      stream.shape = tensor.values.tensor->shape;
      stream.compute_dtype = tensor.values.tensor->dtype;  // the peer adds and multiplies in the stored type
      stream.dtype = out_dtype_.value_or(tensor.values.tensor->dtype);
      stream.inputs = {tensor.values};
      stream.input_names = {model.name};
      stream.merge = std::make_unique<NoiseAndScale>(expert.noise_scale, scale, options_.seed, name);
      noisy_.push_back(std::move(stream));
      // Filled in once all of them are known.
      out.parts.tensors.push_back({name, {}, {}, {tensor.inputs.front()}, {expert.noise_scale ? "noise" : "scale"}});
    }
  }

  void add_experts(LazyModel& out) {
    const std::string block = form_ == Form::mixtral ? "block_sparse_moe" : "mlp";
    for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
      for (std::size_t e = 0; e < experts_.size(); ++e)
        add_expert(out, config_.experts[e], *experts_[e], layer, fmt::format("model.layers.{}.{}.experts.{}", layer, block, e));
      if (!shared_.empty())
        add_expert(out, config_.shared.front(), *shared_.front(), layer,
                   fmt::format("model.layers.{}.mlp.{}", layer, form_ == Form::qwen2 ? "shared_expert" : "shared_experts"));
    }
  }

  void add_noise(LazyModel& out) {
    if (noisy_.empty()) return;
    const auto stream = std::make_shared<engine::StreamCheckpoint>("moe", std::move(noisy_), options_);
    for (edit::Tensor& tensor : out.parts.tensors) {
      if (tensor.values.tensor != nullptr) continue;
      tensor.values = tensor.source = {stream, &stream->tensor(tensor.name)};
    }
  }

  // --- Routers ---

  void add_routers(LazyModel& out) {
    const std::size_t num_shared = form_ == Form::qwen2 ? 1 : 0;
    // A row of each layer for each expert.
    std::vector<std::vector<std::vector<float>>> rows;
    if (uses_prompts(config_.gate)) {
      for (const Expert& expert : config_.experts) rows.push_back(prompt_rows(expert));
      if (num_shared != 0) rows.push_back(prompt_rows(config_.shared.front()));
      if (!options_.dry_run) warn_alike(rows, out.warnings);
    }
    const auto width = static_cast<std::size_t>(hidden_);
    for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
      const std::string prefix = fmt::format("model.layers.{}.{}", layer, form_ == Form::mixtral ? "block_sparse_moe" : "mlp");
      const auto write = [&](const std::string& name, std::size_t first, std::size_t count) {
        std::vector<float> values(count * width);
        for (std::size_t e = 0; e < count; ++e) {
          for (std::size_t i = 0; i < width; ++i)
            values[e * width + i] =
                uses_prompts(config_.gate) ? rows[first + e][static_cast<std::size_t>(layer)][i] : random_value(name, e * width + i);
        }
        literal(out, name, {static_cast<std::int64_t>(count), hidden_}, values);
      };
      write(prefix + ".gate.weight", 0, experts_.size());
      if (num_shared != 0) write(prefix + ".shared_expert_gate.weight", experts_.size(), 1);
    }
  }

  float random_value(const std::string& name, std::uint64_t element) const {
    const RandomStream first = RandomStream::of(options_.seed, name, 0, 0);
    if (config_.gate == Gate::random) return static_cast<float>(NoiseAndScale::normal(first, RandomStream::of(options_.seed, name, 0, 1), element));
    const double bound = std::sqrt(1.0 / static_cast<double>(hidden_));
    return static_cast<float>(static_cast<double>(first.uniform(element)) * 2 * bound - bound);
  }

  /// For each layer, the unit-length difference of what the positive and the negative prompts look like there.
  std::vector<std::vector<float>> prompt_rows(const Expert& expert) {
    const auto states = [this](const std::vector<std::string>& prompts) {
      if (config_.gate != Gate::cheap_embed) return hidden_states(prompts);
      // The same for each layer.
      return std::vector<std::vector<double>>(static_cast<std::size_t>(num_layers_), embedded(prompts));
    };
    std::vector<std::vector<double>> rows = states(expert.positive);
    if (!expert.negative.empty()) {
      const std::vector<std::vector<double>> minus = states(expert.negative);
      for (std::size_t layer = 0; layer < rows.size(); ++layer)
        for (std::size_t i = 0; i < rows[layer].size(); ++i) rows[layer][i] -= minus[layer][i];
    }
    std::vector<std::vector<float>> out;
    for (std::vector<double>& row : rows) {
      normalise(row);
      out.emplace_back(row.begin(), row.end());
    }
    return out;
  }

  /// What enters each layer of the base at the last token (or the mean over all tokens), mean over the prompts.
  std::vector<std::vector<double>> hidden_states(const std::vector<std::string>& prompts) {
    const auto width = static_cast<std::size_t>(hidden_);
    std::vector<std::vector<double>> sums(static_cast<std::size_t>(num_layers_), std::vector<double>(width, 0.0));
    if (options_.dry_run) return sums;
    std::vector<ForwardInput> inputs;
    for (const std::string& prompt : prompts) inputs.push_back({.ids = tokens_of(prompt), .types = {}, .text = {}});
    ForwardOptions run;
    static_cast<JobOptions&>(run) = static_cast<const JobOptions&>(options_);
    run.what = ForwardOptions::What::blocks;
    run.force = true;
    run.on_progress = nullptr;
    run.on_warning = nullptr;
    const Scratch scratch;
    const fs::path file = scratch.path / "states.safetensors";
    static_cast<void>(forward(config_.base, inputs, file, run));
    const std::shared_ptr<const Checkpoint> states = open_checkpoint(file.string());
    for (std::size_t p = 0; p < inputs.size(); ++p) {
      const std::size_t length = inputs[p].ids.size();
      const std::size_t first = config_.gate == Gate::hidden_avg ? 0 : length - 1;
      const double share = 1.0 / static_cast<double>(length - first) / static_cast<double>(inputs.size());
      for (std::size_t layer = 0; layer < sums.size(); ++layer) {
        for (std::size_t t = first; t < length; ++t) {
          std::vector<float> row(width);
          if (layer == 0) {
            row = embedding_row(inputs[p].ids[t]);
          } else {
            const TensorInfo& block = states->tensor(fmt::format("{}.block{}", p, layer - 1));
            states->read_bytes(block, t * width * sizeof(float), std::as_writable_bytes(std::span(row)));
          }
          for (std::size_t i = 0; i < width; ++i) sums[layer][i] += share * static_cast<double>(row[i]);
        }
      }
    }
    return sums;
  }

  static void normalise(std::vector<double>& row) {
    double sum = 0;
    for (const double x : row) sum += x * x;
    const double length = std::max(std::sqrt(sum), 1e-8);
    for (double& x : row) x /= length;
  }

  std::vector<std::uint32_t> tokens_of(const std::string& prompt) {
    if (!tokenizer_) tokenizer_ = model::Tokenizer::open(base_->input_paths.front());
    std::string bos;
    for (const model::NamedToken& token : tokenizer_->named_tokens())
      if (token.name == "bos_token") bos = token.token;
    std::vector<std::uint32_t> ids = tokenizer_->ids(bos + prompt, false);
    if (ids.empty()) refuse("positive_prompts", "the prompt '" + printable(prompt) + "' has no tokens", "leave it out");
    return ids;
  }

  std::vector<float> embedding_row(std::uint32_t id) const {
    const edit::Tensor* embed = nullptr;
    for (const edit::Tensor& tensor : base_->parts.tensors)
      if (tensor.name == "model.embed_tokens.weight") embed = &tensor;
    if (embed == nullptr || embed->values.tensor->shape.size() != 2 || embed->values.tensor->shape[1] != hidden_ ||
        !is_decodable_float(embed->values.tensor->dtype))
      throw Error(ErrorCode::not_found, "the base has no embedding of tokens that prompts could be looked up in",
                  {.file = config_.base, .tensor = "model.embed_tokens.weight"}, "use gate_mode: random");
    const TensorInfo& info = *embed->values.tensor;
    if (id >= static_cast<std::uint64_t>(info.shape[0]))
      throw Error(ErrorCode::corrupt, fmt::format("the tokenizer gives token {}, but the embedding has {} rows", id, info.shape[0]),
                  {.file = config_.base}, "the tokenizer is another model's");
    std::vector<std::byte> bytes(static_cast<std::size_t>(hidden_) * static_cast<std::size_t>(weft::info(info.dtype).bits) / 8);
    std::vector<float> values(static_cast<std::size_t>(hidden_));
    embed->values.checkpoint->read_bytes(info, std::uint64_t{id} * bytes.size(), bytes);
    math::decode(info.dtype, bytes, values);
    return values;
  }

  /// Unit-length sum of the embeddings of all tokens.
  std::vector<double> embedded(const std::vector<std::string>& prompts) {
    std::vector<double> sum(static_cast<std::size_t>(hidden_), 0.0);
    for (const std::string& prompt : prompts) {
      for (const std::uint32_t id : tokens_of(prompt)) {
        const std::vector<float> values = embedding_row(id);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
      }
    }
    normalise(sum);
    return sum;
  }

  static void warn_alike(const std::vector<std::vector<std::vector<float>>>& rows, std::vector<std::string>& warnings) {
    constexpr double kAlike = 0.98;
    for (std::size_t a = 0; a < rows.size(); ++a) {
      for (std::size_t b = a + 1; b < rows.size(); ++b) {
        for (std::size_t layer = 0; layer < rows[a].size(); ++layer) {
          double cosine = 0;
          for (std::size_t i = 0; i < rows[a][layer].size(); ++i)
            cosine += static_cast<double>(rows[a][layer][i]) * static_cast<double>(rows[b][layer][i]);
          if (cosine < kAlike) continue;
          warnings.push_back(fmt::format(
              "the routers of experts {} and {} nearly agree (cosine {:.3f} in layer {}): their prompts may be too similar", a, b, cosine, layer));
          return;
        }
      }
    }
  }

  // --- config.json ---

  Json edited_config(std::vector<std::string>& warnings) const {
    Json config = *base_->parts.config;
    const std::string from = model_type(*base_);
    const auto otherwise = [&](const char* key, Json value) {
      if (config.find(key) == nullptr) config.set(key, std::move(value));
    };
    // The classes of mixtures have other defaults, so what the base leaves to its own is written out.
    const bool has_rope = config.find("rope_parameters") != nullptr;
    if (!has_rope) otherwise("rope_theta", Json(Json::Number{"10000.0"}));
    otherwise("rms_norm_eps", Json(Json::Number{"1e-06"}));
    otherwise("num_key_value_heads", from == "llama" ? Json(integer("num_attention_heads")) : Json(from == "mistral" ? 8 : 32));
    otherwise("max_position_embeddings", Json(from == "llama" ? 2048 : from == "mistral" ? 131072 : 32768));
    otherwise("tie_word_embeddings", Json(false));
    const auto count = static_cast<std::int64_t>(config_.experts.size());
    const auto classes = [&](const char* name, const char* type) {
      config.set("architectures", Json(Json::Array{Json(name)}));
      config.set("model_type", type);
    };
    const Json per_token(config_.experts_per_token);
    const Json* size = config.find("intermediate_size");
    const Json intermediate = size != nullptr ? *size : Json();
    switch (form_) {
      case Form::mixtral:
        classes("MixtralForCausalLM", "mixtral");
        config.set("num_local_experts", count);
        config.set("num_experts_per_tok", per_token);
        if (const Json* window = config.find("sliding_window"); window != nullptr && !window->is_null())
          warnings.emplace_back("the base attends in a sliding window; the mixture does not");
        config.set("sliding_window", Json());
        break;
      case Form::deepseek:
        classes("DeepseekForCausalLM", "deepseek");
        config.set("n_routed_experts", count);
        config.set("n_shared_experts", config_.shared.empty() ? Json() : Json(1));
        config.set("num_experts_per_tok", per_token);
        config.set("first_k_dense_replace", 0);
        config.set("moe_layer_freq", 1);
        config.set("scoring_func", "softmax");
        config.set("norm_topk_prob", true);
        config.set("moe_intermediate_size", intermediate);
        config.set("auto_map",
                   Json(Json::Object{{"AutoConfig", Json("deepseek-ai/deepseek-moe-16b-base--configuration_deepseek.DeepseekConfig")},
                                     {"AutoModel", Json("deepseek-ai/deepseek-moe-16b-base--modeling_deepseek.DeepseekModel")},
                                     {"AutoModelForCausalLM", Json("deepseek-ai/deepseek-moe-16b-base--modeling_deepseek.DeepseekForCausalLM")}}));
        break;
      case Form::qwen2:
        classes("Qwen2MoeForCausalLM", "qwen2_moe");
        config.set("num_experts", count);
        config.set("num_experts_per_tok", per_token);
        config.set("decoder_sparse_step", 1);
        config.set("norm_topk_prob", true);
        config.set("sliding_window", Json());
        config.set("use_sliding_window", false);
        config.set("shared_expert_intermediate_size", intermediate);
        config.set("moe_intermediate_size", intermediate);
        break;
      case Form::qwen3:
        classes("Qwen3MoeForCausalLM", "qwen3_moe");
        config.set("num_experts", count);
        config.set("num_experts_per_tok", per_token);
        config.set("decoder_sparse_step", 1);
        config.set("norm_topk_prob", true);
        config.set("moe_intermediate_size", intermediate);
        break;
    }
    if (out_dtype_) model::set_dtype(config, *out_dtype_);
    return config;
  }

  MoeConfig config_;
  std::string text_;
  std::string file_;
  const MoeOptions& options_;
  std::map<std::string, std::unique_ptr<LazyModel>> opened_;
  const LazyModel* base_ = nullptr;
  std::vector<const LazyModel*> experts_, shared_;
  Form form_ = Form::mixtral;
  std::int64_t num_layers_ = 0, hidden_ = 0;
  std::optional<DType> out_dtype_;
  std::vector<engine::StreamTensor> noisy_;
  std::optional<model::Tokenizer> tokenizer_;
};

}  // namespace

JobReport merge_moe(std::string_view config_text, const fs::path& config_name, const fs::path& output, const MoeOptions& options) {
  MoeConfig config = ConfigReader(config_name.string()).read(config_text, options.allow_same_experts);
  LazyModel model = Builder(std::move(config), std::string(config_text), config_name.string(), options).build();
  engine::OutputJob job = engine::output_job_of(std::move(model), output);
  job.index_metadata = {{"weft_version", std::string(version())}};
  job.ingredients = {{"the config", std::string(config_text)}};
  engine::JobBatch batch(options, "building");
  batch.add(std::move(job), output);
  return std::move(batch.run().front());
}

}  // namespace weft
