#include "adapt/gguf_lora.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/arranged_view.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "math/convert.h"
#include "model/architecture.h"
#include "model/gguf_model.h"
#include "model/gguf_names.h"

namespace weft::adapt {
namespace {

constexpr std::string_view kPeft = "base_model.model.";
constexpr std::string_view kEmbedding = "token_embd";

/// Rank and alpha of every module as PEFT's config says them.
void set_scales(Json& config, const std::map<std::string, std::uint64_t>& ranks, double alpha) {
  std::map<std::uint64_t, std::size_t> counts;
  for (const auto& [module, rank] : ranks) ++counts[rank];
  std::uint64_t usual = 8;
  std::size_t most = 0;
  for (const auto& [rank, count] : counts)
    if (count > most) most = count, usual = rank;
  Json::Object rank_pattern, alpha_pattern;
  for (const auto& [module, rank] : ranks) {
    if (rank == usual) continue;
    rank_pattern.emplace_back(module, Json(rank));
    if (alpha == 0) alpha_pattern.emplace_back(module, Json(rank));
  }
  config.set("r", usual);
  // llama.cpp takes 0 for no scale at all.
  const bool is_whole = alpha == std::floor(alpha) && std::abs(alpha) < 1e15;
  config.set("lora_alpha", alpha == 0 ? Json(usual) : is_whole ? Json(static_cast<std::int64_t>(alpha)) : Json(alpha));
  config.set("rank_pattern", Json(std::move(rank_pattern)));
  config.set("alpha_pattern", Json(std::move(alpha_pattern)));
}

/// What both directions need to know of a model.
struct Target {
  const model::Architecture* architecture = nullptr;
  const model::GgufFamily* family = nullptr;
  model::GgufHeads heads;
};

std::optional<Target> target_of(const Json& config) {
  Target target;
  target.architecture = model::find_architecture(config);
  if (target.architecture == nullptr) target.architecture = model::find_architecture_family(config);
  target.family = target.architecture == nullptr ? nullptr : model::gguf_family_of(*target.architecture);
  if (target.family == nullptr) return std::nullopt;
  target.heads = model::gguf_heads(*target.architecture, config);
  return target;
}

/// A whole tensor of the adapter as it is, under another name.
ArrangedTensor same(std::string name, const TensorRef& source) {
  ArrangedTensor out;
  out.name = std::move(name);
  out.shape = source.tensor->shape;
  out.sources = {source};
  return out;
}

/// Matrix number `which` of a stack.
ArrangedTensor slice_of(std::string name, const TensorRef& stack, std::uint64_t which) {
  ArrangedTensor out = same(std::move(name), stack);
  out.shape.erase(out.shape.begin());
  const auto rows = static_cast<std::uint64_t>(out.shape.front());
  out.row_of = [first = which * rows](std::uint64_t i) { return first + i; };
  return out;
}

Values reordered(const Values& values, const std::function<std::uint64_t(std::uint64_t)>& row_of) {
  if (row_of == nullptr) return values;
  Values out = values;
  const auto rows = static_cast<std::size_t>(values.shape.front());
  const std::size_t columns = rows == 0 ? 0 : values.values.size() / rows;
  for (std::size_t i = 0; i < rows; ++i) {
    const auto from = values.values.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(row_of(i)) * columns);
    std::copy(from, from + static_cast<std::ptrdiff_t>(columns), out.values.begin() + static_cast<std::ptrdiff_t>(i * columns));
  }
  return out;
}

Values transposed(const Values& matrix) {
  Values out = matrix;
  std::swap(out.shape[0], out.shape[1]);
  const auto rows = static_cast<std::size_t>(matrix.shape[0]), columns = static_cast<std::size_t>(matrix.shape[1]);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) out.values[j * rows + i] = matrix.values[i * columns + j];
  return out;
}

StoredTensor stored(std::string name, const Values& values) {
  // Types of eight bits and float64 have no place in such files.
  const DType dtype = values.dtype == DType::f16 || values.dtype == DType::bf16 ? values.dtype : DType::f32;
  StoredTensor out{std::move(name), dtype, values.shape, {}};
  out.bytes.resize(values.values.size() * static_cast<std::size_t>(info(dtype).bits) / 8);
  math::encode(dtype, values.values, out.bytes);
  return out;
}

}  // namespace

bool is_gguf_file(const std::filesystem::path& path) {
  std::array<char, 4> beginning{};
  const File file(path, FileMode::read);
  return file.read_some(0, std::as_writable_bytes(std::span(beginning))) == 4 && std::string_view(beginning.data(), 4) == "GGUF";
}

Adapter open_gguf_lora(const std::filesystem::path& path) {
  Adapter adapter;
  adapter.path = path;
  const std::shared_ptr<const Checkpoint> file = open_weights_file(path, path);
  const GgufMetadata& metadata = as_gguf(*file)->gguf_metadata();
  if (metadata.text("general.type").value_or("model") != "adapter")
    throw adapter.error(ErrorCode::unsupported, "the GGUF file holds a model, not an adapter", {}, "name an adapter");
  const std::string kind = metadata.text("adapter.type").value_or("");
  if (kind != "lora")
    throw adapter.error(ErrorCode::unsupported, kind.empty() ? std::string("the GGUF file does not say what kind of adapter it holds (adapter.type)")
                                                             : fmt::format("the GGUF file holds an adapter of the kind '{}'", printable(kind)));
  if (metadata.find("adapter.alora.invocation_tokens") != nullptr)
    throw adapter.error(ErrorCode::unsupported, "the adapter acts only behind certain tokens (aLoRA), so it cannot be folded into a model");
  adapter.gguf_architecture = metadata.text("general.architecture").value_or("");
  if (adapter.gguf_architecture.empty()) throw adapter.error(ErrorCode::corrupt, "the GGUF file names no architecture");
  const std::optional<double> alpha = metadata.number("adapter.lora.alpha");
  if (!alpha || !std::isfinite(*alpha))
    throw adapter.error(ErrorCode::corrupt, "the GGUF file does not say how much the adapter counts (adapter.lora.alpha)");

  std::vector<ArrangedTensor> tensors;
  std::map<std::string, std::uint64_t> ranks;
  for (const TensorInfo& tensor : file->tensors()) {
    const TensorRef source{file, &tensor};
    std::string name = tensor.name;
    const bool is_a = name.ends_with(".lora_a"), is_b = name.ends_with(".lora_b");
    if (!is_a && !is_b) {
      // Norms may be saved whole; llama.cpp passes over them.
      if (!name.ends_with("_norm.weight"))
        throw adapter.error(ErrorCode::unsupported, fmt::format("'{}' is no part of a LoRA", printable(name)), name);
      tensors.push_back(same(std::string(kPeft) + name, source));
      continue;
    }
    name.resize(name.size() - std::string_view(".lora_a").size());
    if (!name.ends_with(".weight"))
      throw adapter.error(ErrorCode::unsupported, fmt::format("'{}' changes no weight", printable(tensor.name)), tensor.name);
    name.resize(name.size() - std::string_view(".weight").size());
    if (tensor.shape.size() != 2 && tensor.shape.size() != 3)
      throw adapter.error(ErrorCode::corrupt, fmt::format("'{}' {} is no matrix", printable(tensor.name), to_string(tensor.shape)), tensor.name);
    // A stack of nothing may claim any number of experts.
    if (tensor.num_elements == 0)
      throw adapter.error(ErrorCode::corrupt, fmt::format("'{}' {} is empty", printable(tensor.name), to_string(tensor.shape)), tensor.name);
    const bool embedding = name == kEmbedding;
    if (embedding && tensor.shape.size() != 2)
      throw adapter.error(ErrorCode::corrupt, fmt::format("'{}' {} is no matrix", printable(tensor.name), to_string(tensor.shape)), tensor.name);
    const std::string part = embedding ? (is_a ? ".lora_embedding_A" : ".lora_embedding_B") : (is_a ? ".lora_A.weight" : ".lora_B.weight");
    ArrangedTensor out = same(std::string(kPeft) + name + part, source);
    if (embedding && is_a) {
      std::swap(out.shape[0], out.shape[1]);
      out.kind = ArrangedTensor::Kind::transpose;
    }
    if (is_a) ranks.emplace(name, static_cast<std::uint64_t>(out.shape[out.shape.size() - 2]));
    tensors.push_back(std::move(out));
  }
  Json config;
  config.set("peft_type", "LORA");
  config.set("base_model_name_or_path", metadata.text("general.base_model.0.name").value_or(""));
  set_scales(config, ranks, *alpha);
  Adapter sorted = make_adapter(path, std::move(config), make_arranged_view("gguf", *file, std::move(tensors)));
  sorted.gguf_architecture = std::move(adapter.gguf_architecture);
  return sorted;
}

Adapter hugging_face_lora(const Adapter& gguf, const Json* config) {
  if (config == nullptr)
    throw gguf.error(ErrorCode::invalid_argument,
                     "the adapter is a GGUF file, and only the config.json of its model tells how llama.cpp has ordered its rows", {},
                     "name the model's folder, or its GGUF file");
  const std::optional<Target> target = target_of(*config);
  if (!target || target->family->name != gguf.gguf_architecture)
    throw gguf.error(ErrorCode::invalid_argument,
                     fmt::format("the adapter is for a model of the architecture '{}', but this one is {}", printable(gguf.gguf_architecture),
                                 target ? "'" + target->family->name + "'" : std::string("of another")),
                     {}, "the adapter was made for another model");
  std::vector<ArrangedTensor> tensors;
  std::map<std::string, std::uint64_t> ranks;
  std::set<std::string> leaves;
  bool fan_in_fan_out = false;
  for (const AdapterModule& module : gguf.modules) {
    const model::GgufPlace place = model::gguf_place(*target->family, *target->architecture, module.name + ".weight");
    if (place.rule == nullptr)
      throw gguf.error(ErrorCode::invalid_argument, fmt::format("the model has no '{}', which the adapter changes", printable(module.name)),
                       module.parts.begin()->second->name, "the adapter was made for another model");
    const auto leaf = [](const std::string& name) { return name.substr(name.rfind('.') + 1); };
    const std::string prefix(kPeft);
    const auto find = [&](const char* part) -> const TensorInfo* {
      const auto found = module.parts.find(part);
      return found == module.parts.end() ? nullptr : found->second;
    };
    if (const TensorInfo* whole = find("weight")) {
      ArrangedTensor norm = same(prefix + place.name + ".weight", {gguf.tensors, whole});
      if (model::gguf_adds_one(*target->architecture, place.role)) {
        norm.kind = ArrangedTensor::Kind::add;
        norm.addend = -1;
      }
      tensors.push_back(std::move(norm));
      continue;
    }
    for (const char* part : {"lora_embedding_A", "lora_embedding_B"})
      if (const TensorInfo* tensor = find(part)) {
        tensors.push_back(same(fmt::format("{}{}.{}", prefix, place.name, part), {gguf.tensors, tensor}));
        if (part == std::string_view("lora_embedding_A")) ranks.emplace(place.name, static_cast<std::uint64_t>(tensor->shape[0]));
        leaves.insert(leaf(place.name));
      }
    const TensorInfo *a = find("lora_A"), *b = find("lora_B");
    if (a == nullptr && b == nullptr) continue;
    if (a == nullptr || b == nullptr)
      throw gguf.error(ErrorCode::corrupt, fmt::format("'{}' has only one of its two matrices", printable(module.name)));
    const bool stacked = place.rule->arrangement == model::GgufArrangement::experts && place.expert < 0;
    if (a->shape.size() != b->shape.size() || a->shape.size() != (stacked ? 3U : 2U) || (stacked && a->shape[0] != b->shape[0]))
      throw gguf.error(ErrorCode::corrupt,
                       fmt::format("the matrices of '{}' are {} and {}", printable(module.name), to_string(a->shape), to_string(b->shape)), a->name);
    fan_in_fan_out = fan_in_fan_out || place.rule->arrangement == model::GgufArrangement::transposed;
    const auto add = [&](const std::string& name, ArrangedTensor left, ArrangedTensor right) {
      ranks.emplace(name, static_cast<std::uint64_t>(right.shape[0]));
      leaves.insert(leaf(name));
      left.name = prefix + name + ".lora_B.weight";
      right.name = prefix + name + ".lora_A.weight";
      tensors.push_back(std::move(left));
      tensors.push_back(std::move(right));
    };
    if (stacked) {
      for (std::uint64_t expert = 0; expert < static_cast<std::uint64_t>(a->shape[0]); ++expert)
        add(model::with_expert(place.name, static_cast<std::size_t>(expert)), slice_of({}, {gguf.tensors, b}, expert),
            slice_of({}, {gguf.tensors, a}, expert));
      continue;
    }
    ArrangedTensor left = same({}, {gguf.tensors, b});
    left.row_of = model::gguf_row_order(place.rule->arrangement, *b, target->heads, model::GgufDirection::to_hugging_face);
    add(place.expert < 0 ? place.name : model::with_expert(place.name, static_cast<std::size_t>(place.expert)), std::move(left),
        same({}, {gguf.tensors, a}));
  }
  const double alpha = gguf.number("lora_alpha").value_or(0);
  const Json* none = gguf.config.find("alpha_pattern");
  const bool unscaled = none != nullptr && none->object() != nullptr && !none->object()->empty();
  Json settings = gguf.config;
  set_scales(settings, ranks, unscaled ? 0 : alpha);
  Json::Array targets;
  for (const std::string& name : leaves) targets.emplace_back(name);
  settings.set("target_modules", Json(std::move(targets)));
  settings.set("task_type", Json());
  settings.set("bias", "none");
  settings.set("fan_in_fan_out", fan_in_fan_out);
  settings.set("lora_dropout", 0.0);
  settings.set("use_dora", false);
  return make_adapter(gguf.path, std::move(settings), make_arranged_view("gguf", *gguf.tensors, std::move(tensors)));
}

StoredAdapter store_gguf_lora(const Lora& lora, const Json& config, std::vector<std::string>& warnings) {
  const std::optional<Target> target = target_of(config);
  if (!target)
    throw Error(ErrorCode::unsupported, "weft does not know how llama.cpp names the tensors of this model", {.key = "base"},
                "llama, mistral, mixtral, qwen, gemma, phi3, olmo2, gpt2, gptneox and bert are known");
  const auto refuse = [](ErrorCode code, std::string what, std::string advice = "fold the adapter into its model instead") {
    return Error(code, std::move(what), {.key = "to"}, std::move(advice));
  };
  /// The rule and the name of a tensor of the model.
  struct Place {
    const model::GgufRule* rule;
    model::NameMatch match;
    std::string name;  ///< "blk.0.attn_q.weight"
  };
  const auto place_of = [&](const std::string& tensor) {
    const std::optional<model::NameMatch> match = model::match_name(*target->architecture, tensor);
    if (!match)
      throw refuse(ErrorCode::invalid_argument, fmt::format("a {} model has no '{}'", target->architecture->name, printable(tensor)),
                   "the adapter was made for another model");
    std::string suffix;
    const model::GgufRule* rule = model::rule_for_template(*target->family, match->tensor->name, suffix);
    if (rule == nullptr) throw refuse(ErrorCode::unsupported, fmt::format("'{}' has no place in a GGUF file", printable(tensor)));
    return Place{rule, *match, (match->layer >= 0 ? model::with_layer(rule->gguf, match->layer) : rule->gguf) + suffix};
  };

  // One alpha for all: that of most modules. Where another is meant, the second matrix takes the difference.
  std::map<double, std::size_t> counts;
  for (const LoraModule& module : lora.modules) ++counts[module.scale * static_cast<double>(module.rank())];
  double alpha = 1;
  std::size_t most = 0;
  for (const auto& [value, count] : counts)
    if (count > most && value != 0) most = count, alpha = value;

  StoredAdapter out;
  std::map<std::string, std::map<int, std::pair<Values, Values>>> stacks;  ///< of experts: A and B
  std::set<std::string> names;
  for (const LoraModule& module : lora.modules) {
    const Place place = place_of(module.name + ".weight");
    if (model::is_tied(*target->architecture, config) && place.match.tensor->role == model::Role::head)
      throw refuse(ErrorCode::unsupported, "the adapter changes a head that is the embedding, which GGUF files do not hold twice");
    if (module.embedding != (place.rule->gguf == kEmbedding))
      throw refuse(ErrorCode::unsupported,
                   fmt::format("'{}' is adapted as {}", printable(module.name), module.embedding ? "an embedding" : "a layer"));
    if (module.a.shape.size() != 2 || module.b.shape.size() != 2)
      throw refuse(ErrorCode::unsupported, fmt::format("'{}' is no matrix", printable(module.name)));
    Values a = module.a, b = module.b;
    if (const double factor = module.scale * static_cast<double>(module.rank()) / alpha; factor != 1) {
      for (float& value : b.values) value = static_cast<float>(static_cast<double>(value) * factor);
      b.dtype = DType::f32;
    }
    if (module.embedding) {
      if (model::is_tied(*target->architecture, config))
        warnings.emplace_back(
            "the model's embedding is its head as well, and llama.cpp stops when it runs such a model with an adapter of the embedding");
      a = transposed(a);
    } else {
      TensorInfo rows;
      rows.name = module.name + ".lora_B.weight";
      rows.shape = b.shape;
      b = reordered(b, model::gguf_row_order(place.rule->arrangement, rows, target->heads, model::GgufDirection::to_gguf));
    }
    if (place.rule->arrangement == model::GgufArrangement::experts) {
      stacks[place.name].emplace(place.match.expert, std::pair(std::move(a), std::move(b)));
      continue;
    }
    if (!names.insert(place.name).second) throw refuse(ErrorCode::invalid_argument, fmt::format("two modules are '{}'", place.name), "");
    out.tensors.push_back(stored(place.name + ".lora_a", a));
    out.tensors.push_back(stored(place.name + ".lora_b", b));
  }
  for (auto& [name, experts] : stacks) {
    Values joined[2];
    int expected = 0;
    const auto numbers = model::config_numbers(*target->architecture, config, 0);
    if (const auto count = numbers.find("experts"); count == numbers.end() || count->second != static_cast<std::int64_t>(experts.size()))
      throw refuse(ErrorCode::unsupported, fmt::format("only some of the experts of '{}' are adapted", name));
    for (auto& [expert, pair] : experts) {
      const Values* parts[2] = {&pair.first, &pair.second};
      if (expert != expected++) throw refuse(ErrorCode::unsupported, fmt::format("only some of the experts of '{}' are adapted", name));
      for (std::size_t i = 0; i < 2; ++i) {
        if (expert == 0) joined[i] = {parts[i]->dtype, {0, parts[i]->shape[0], parts[i]->shape[1]}, {}};
        if (joined[i].shape[1] != parts[i]->shape[0] || joined[i].shape[2] != parts[i]->shape[1])
          throw refuse(ErrorCode::unsupported, fmt::format("the experts of '{}' are adapted with different ranks", name));
        if (joined[i].dtype != parts[i]->dtype) joined[i].dtype = DType::f32;
        ++joined[i].shape[0];
        joined[i].values.insert(joined[i].values.end(), parts[i]->values.begin(), parts[i]->values.end());
      }
    }
    out.tensors.push_back(stored(name + ".lora_a", joined[0]));
    out.tensors.push_back(stored(name + ".lora_b", joined[1]));
  }
  std::size_t num_norms = 0;
  for (const SavedTensor& tensor : lora.saved) {
    std::string name = tensor.name;
    for (const std::string_view prefix : {std::string_view("base_model.model."), std::string_view("base_model.")})
      if (name.starts_with(prefix)) {
        name.erase(0, prefix.size());
        break;
      }
    if (name.ends_with(".base_layer.weight")) continue;  // the model's own
    if (const std::size_t at = name.find(".modules_to_save."); at != std::string::npos) name.erase(at, std::string_view(".modules_to_save").size());
    const bool is_norm = name.ends_with("norm.weight") && tensor.values.shape.size() == 1;
    if (!is_norm)
      throw refuse(ErrorCode::unsupported,
                   fmt::format("GGUF adapters have no place for tensors that are saved whole ('{}')", printable(tensor.name)));
    const Place place = place_of(name);
    Values values = tensor.values;
    values.dtype = DType::f32;
    if (model::gguf_adds_one(*target->architecture, place.match.tensor->role))
      for (float& value : values.values) value += 1;
    out.tensors.push_back(stored(place.name, values));
    ++num_norms;
  }
  if (num_norms > 0) warnings.push_back(fmt::format("the adapter saves {} norms whole; llama.cpp passes over them", num_norms));
  if (out.tensors.empty()) throw refuse(ErrorCode::invalid_argument, "the adapter changes nothing", "");

  GgufMetadata& metadata = out.gguf.emplace();
  metadata.set("general.architecture", GgufValue::text(target->family->name));
  metadata.set("general.type", GgufValue::text("adapter"));
  metadata.set("adapter.type", GgufValue::text("lora"));
  metadata.set("adapter.lora.alpha", GgufValue::f32(alpha));
  const auto all_are = [&out](DType dtype) {
    return std::all_of(out.tensors.begin(), out.tensors.end(), [dtype](const StoredTensor& t) { return t.dtype == dtype; });
  };
  metadata.set("general.file_type", GgufValue::u32(all_are(DType::f16) ? 1 : all_are(DType::bf16) ? 32 : 0));
  metadata.set("general.quantization_version", GgufValue::u32(2));
  return out;
}

}  // namespace weft::adapt
