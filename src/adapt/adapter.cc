#include "adapt/adapter.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "adapt/gguf_lora.h"
#include "base/check.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/safetensors.h"
#include "math/convert.h"

namespace weft::adapt {
namespace {

namespace fs = std::filesystem;

constexpr double kMaxRank = 1 << 20;
constexpr std::size_t kMaxPatternBytes = 1024;
constexpr std::size_t kMaxPatterns = 100'000;

/// Names of the parts that the methods have; what stands before one is the module.
constexpr std::string_view kParts[] = {"lora_A",
                                       "lora_B",
                                       "lora_embedding_A",
                                       "lora_embedding_B",
                                       "lora_magnitude_vector",
                                       "lora_E",
                                       "ranknum",
                                       "vera_lambda_b",
                                       "vera_lambda_d",
                                       "vera_A",
                                       "vera_B",
                                       "hada_w1_a",
                                       "hada_w1_b",
                                       "hada_w2_a",
                                       "hada_w2_b",
                                       "hada_t1",
                                       "hada_t2",
                                       "lokr_w1",
                                       "lokr_w1_a",
                                       "lokr_w1_b",
                                       "lokr_w2",
                                       "lokr_w2_a",
                                       "lokr_w2_b",
                                       "lokr_t2",
                                       "ia3_l",
                                       "oft_R",
                                       "oft_embedding_R",
                                       "boft_R",
                                       "boft_s",
                                       "vblora_logits_A",
                                       "vblora_logits_B",
                                       "vblora_logits_A_topk_indices",
                                       "vblora_logits_A_topk_weights",
                                       "vblora_logits_B_topk_indices",
                                       "vblora_logits_B_topk_weights",
                                       "vblora_vector_bank",
                                       "miss_block",
                                       "bone_block",
                                       "shira_indices",
                                       "shira_weight",
                                       "c3a_kernel",
                                       "randlora_lambda",
                                       "randlora_gamma",
                                       "randlora_A",
                                       "randlora_B",
                                       "hira_A",
                                       "hira_B",
                                       "hira_embedding_A",
                                       "hira_embedding_B",
                                       "hra_u",
                                       "delora_A",
                                       "delora_B",
                                       "delora_lambda",
                                       "delora_w_norm",
                                       "road_theta",
                                       "road_alpha",
                                       "gralora_A",
                                       "gralora_B",
                                       "gralora_A_general",
                                       "gralora_B_general",
                                       "trainable_tokens_delta",
                                       "token_adapter",
                                       "ln_tuning_layers",
                                       "modules_to_save",
                                       "original_module",
                                       "base_layer",
                                       "fourierft_spectrum"};

/// Kinds that change no weights.
constexpr std::string_view kPromptKinds[] = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT",
                                             "CARTRIDGE"};

std::vector<std::string_view> split(std::string_view name) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0;;) {
    const std::size_t dot = name.find('.', begin);
    parts.push_back(name.substr(begin, dot == std::string_view::npos ? dot : dot - begin));
    if (dot == std::string_view::npos) return parts;
    begin = dot + 1;
  }
}

std::string join(std::span<const std::string_view> parts) {
  std::string out;
  for (const std::string_view part : parts) {
    if (!out.empty()) out += '.';
    out += part;
  }
  return out;
}

/// Whether a dotted name is `tail` or ends with it.
bool ends_with_name(std::string_view name, std::string_view tail) {
  return name == tail || (name.size() > tail.size() && name.ends_with(tail) && name[name.size() - tail.size() - 1] == '.');
}

/// A pattern of the adapter, as Python's re.fullmatch. Errors: unsupported for what RE2 does not know.
bool full_match(const Adapter& adapter, std::string_view key, const std::string& pattern, std::string_view text) {
  if (pattern.size() > kMaxPatternBytes)
    throw adapter.error(ErrorCode::unsupported, fmt::format("a pattern in '{}' has {} bytes", key, pattern.size()));
  RE2::Options options;
  options.set_log_errors(false);
  const RE2 re(pattern, options);
  if (!re.ok())
    throw adapter.error(ErrorCode::unsupported, fmt::format("the pattern '{}' in '{}' cannot be used: {}", printable(pattern), key, re.error()), {},
                        "weft knows regular expressions without look-around and back-references");
  return RE2::FullMatch(re2::StringPiece(text.data(), text.size()), re);
}

/// The value that rank_pattern or alpha_pattern has for a module; the first pattern that fits counts.
const Json* pattern_value(const Adapter& adapter, std::string_view key, std::string_view module) {
  const Json* patterns = adapter.config.find(key);
  const Json::Object* list = patterns ? patterns->object() : nullptr;
  if (!list) return nullptr;
  if (list->size() > kMaxPatterns) throw adapter.error(ErrorCode::unsupported, fmt::format("'{}' has {} entries", key, list->size()));
  for (const auto& [pattern, value] : *list) {
    // Most are plain names; only a pattern needs the machine.
    if (ends_with_name(module, pattern)) return &value;
    if (pattern.find_first_of("\\*+?[](){}|^$") != std::string::npos && full_match(adapter, key, "(?:.*\\.)?(?:" + pattern + ")", module))
      return &value;
  }
  return nullptr;
}

/// The name without what writers put around it.
std::string plain_key(std::string_view name) {
  constexpr std::string_view kPrefix = "base_model.model.", kShared = "base_model.";
  if (name.starts_with(kPrefix))
    name.remove_prefix(kPrefix.size());
  else if (name.starts_with(kShared))
    name.remove_prefix(kShared.size());
  std::vector<std::string_view> parts = split(name);
  // Some writers keep the adapter's name.
  for (std::size_t i = parts.size() > 2 ? parts.size() - 2 : 1; i < parts.size(); ++i) {
    if (parts[i] != "default" || (i + 1 < parts.size() && parts[i + 1] != "weight" && parts[i + 1] != "bias")) continue;
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i));
    break;
  }
  return join(parts);
}

using Modules = std::map<std::pair<std::string, int>, AdapterModule>;

void add_tensor(Adapter& adapter, Modules& modules, const TensorInfo& tensor) {
  const std::string key = plain_key(tensor.name);
  if (key.starts_with("base_model.model."))
    throw adapter.error(ErrorCode::corrupt, fmt::format("the key '{}' has its prefix twice", printable(tensor.name)), tensor.name);
  const std::vector<std::string_view> parts = split(key);
  if (std::any_of(parts.begin(), parts.end(), [](std::string_view p) { return p.empty() || p.find('/') != std::string_view::npos; }))
    throw adapter.error(ErrorCode::corrupt, fmt::format("'{}' is no name of a module", printable(tensor.name)), tensor.name);
  const auto is_part = [](std::string_view p) { return std::find(std::begin(kParts), std::end(kParts), p) != std::end(kParts); };
  std::size_t at = 0;
  while (at < parts.size() && !is_part(parts[at])) ++at;
  std::size_t end_of_module = at;
  int nesting = 0;
  // ".base_layer" before another part only says which of several parameters of a module is meant.
  while (at + 1 < parts.size() && parts[at] == "base_layer" && is_part(parts[at + 1])) {
    ++at;
    ++nesting;
  }
  if (at == parts.size()) {  // a whole tensor of the model
    end_of_module = parts.size() > 1 && (parts.back() == "weight" || parts.back() == "bias") ? parts.size() - 1 : parts.size();
    at = end_of_module;
  }
  std::string part = join(std::span(parts).subspan(at));
  if (part.starts_with("original_module")) return;  // the base's own, left in by a few writers
  for (const std::string_view wrapper : {"modules_to_save.", "token_adapter.", "ln_tuning_layers."})
    if (part.starts_with(wrapper)) part.erase(0, wrapper.size());
  if (part.ends_with(".weight") && part != "base_layer.weight") part.resize(part.size() - std::string_view(".weight").size());
  if (end_of_module == 0) {
    if (!adapter.shared.emplace(part, &tensor).second)
      throw adapter.error(ErrorCode::corrupt, fmt::format("'{}' is there twice", printable(part)), tensor.name);
    return;
  }
  std::string module = join(std::span(parts).first(end_of_module));
  AdapterModule& entry = modules[{module, nesting}];
  entry.name = std::move(module);
  entry.nesting = nesting;
  if (const auto [other, is_new] = entry.parts.emplace(part, &tensor); !is_new)
    throw adapter.error(ErrorCode::corrupt,
                        fmt::format("'{}' and '{}' mean the same part of one module", printable(other->second->name), printable(tensor.name)),
                        tensor.name, "it is not clear which of the two counts");
}

void sort_tensors(Adapter& adapter) {
  Modules modules;
  for (const TensorInfo& tensor : adapter.tensors->tensors()) add_tensor(adapter, modules, tensor);
  if (modules.empty()) throw adapter.error(ErrorCode::corrupt, "the adapter changes no module: it holds no tensors that belong to one");
  for (auto& [key, module] : modules) adapter.modules.push_back(std::move(module));
}

void check_config(Adapter& adapter) {
  if (!adapter.config.is_object()) throw adapter.error(ErrorCode::corrupt, "adapter_config.json is no JSON object");
  const Json* kind = adapter.config.find("peft_type");
  if (!kind || !kind->string() || kind->string()->empty())
    throw adapter.error(ErrorCode::corrupt, "adapter_config.json has no 'peft_type'", {}, "name an adapter that PEFT wrote, or convert it first");
  adapter.kind = *kind->string();
  if (std::find(std::begin(kPromptKinds), std::end(kPromptKinds), adapter.kind) != std::end(kPromptKinds))
    throw adapter.error(ErrorCode::unsupported,
                        fmt::format("an adapter of the kind {} changes no weights, so it cannot be folded into a model", adapter.kind), {},
                        "it adds vectors to the input or the attention of a running model");
  for (const char* key : {"use_qalora", "use_bdlora", "kasa_config", "velora_config", "monteclora_config"}) {
    const Json* value = adapter.config.find(key);
    const bool is_set = value && !value->is_null() && value->boolean() != false && !(value->object() && value->object()->empty());
    if (is_set)
      throw adapter.error(ErrorCode::unsupported, fmt::format("the adapter uses '{}', which weft does not know", key), {}, "fold it with PEFT");
  }
  for (const char* key : {"r", "lora_alpha", "alpha"})
    if (const Json* value = adapter.config.find(key); value && !value->is_null() && (!value->number() || !std::isfinite(*value->number())))
      throw adapter.error(ErrorCode::corrupt, fmt::format("'{}' in adapter_config.json is no number", key));
  const double r = adapter.number("r").value_or(8);
  if (r < 0 || r > kMaxRank || r != std::floor(r))
    throw adapter.error(ErrorCode::corrupt, fmt::format("the rank {} in adapter_config.json makes no sense", r));
}

}  // namespace

bool Adapter::flag(std::string_view key) const {
  const Json* value = config.find(key);
  return value && value->boolean().value_or(false);
}
std::optional<double> Adapter::number(std::string_view key) const {
  const Json* value = config.find(key);
  return value ? value->number() : std::nullopt;
}
std::string Adapter::text(std::string_view key) const {
  const Json* value = config.find(key);
  return value && value->string() ? *value->string() : std::string();
}

double Adapter::rank_of(std::string_view module) const {
  double r = number("r").value_or(8);
  if (const Json* value = pattern_value(*this, "rank_pattern", module)) {
    if (!value->number()) throw error(ErrorCode::corrupt, fmt::format("rank_pattern has no number for '{}'", printable(module)));
    r = *value->number();
  }
  if (!(r > 0) || r > kMaxRank || r != std::floor(r)) throw error(ErrorCode::corrupt, fmt::format("the rank of '{}' is {}", printable(module), r));
  return r;
}

double Adapter::alpha_of(std::string_view module) const {
  double alpha = number("lora_alpha").value_or(number("alpha").value_or(8));
  if (const Json* value = pattern_value(*this, "alpha_pattern", module)) {
    if (!value->number()) throw error(ErrorCode::corrupt, fmt::format("alpha_pattern has no number for '{}'", printable(module)));
    alpha = *value->number();
  }
  if (!std::isfinite(alpha)) throw error(ErrorCode::corrupt, fmt::format("alpha of '{}' is {}", printable(module), alpha));
  return alpha;
}

bool Adapter::lists(std::string_view key, std::string_view module) const {
  const Json* value = config.find(key);
  if (!value) return false;
  if (const std::string* pattern = value->string()) return full_match(*this, key, *pattern, module);
  const Json::Array* list = value->array();
  return list && std::any_of(list->begin(), list->end(), [&](const Json& item) { return item.string() && ends_with_name(module, *item.string()); });
}

Error Adapter::error(ErrorCode code, std::string message, std::string_view tensor, std::string advice) const {
  return Error(code, std::move(message), {.file = path.string(), .tensor = printable(tensor)}, std::move(advice));
}

bool is_adapter(const fs::path& path) { return path_kind(path) == PathKind::folder && path_kind(path / "adapter_config.json") == PathKind::file; }

Adapter open_adapter(const fs::path& path) {
  Adapter adapter;
  adapter.path = path;
  const bool is_file = path_kind(path) == PathKind::file;
  if (is_file && is_gguf_file(path)) return open_gguf_lora(path);
  const fs::path folder = !is_file ? path : path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (path_kind(folder / "adapter_config.json") == PathKind::nothing)
    throw Error(ErrorCode::not_found, "there is no adapter_config.json, so this is no adapter that PEFT wrote", {.file = path.string()},
                path_kind(folder / "config.json") != PathKind::nothing
                    ? "it is a model; an adapter is a folder with adapter_config.json and adapter_model.safetensors"
                    : "name a folder with adapter_config.json and adapter_model.safetensors");
  adapter.config = read_json_file(folder / "adapter_config.json");
  check_config(adapter);
  fs::path file;
  if (is_file && path.filename() != "adapter_config.json") file = path;
  for (const char* name : {"adapter_model.safetensors", "adapter_model.bin"})
    if (file.empty() && path_kind(folder / name) != PathKind::nothing) file = folder / name;
  if (file.empty())
    throw Error(ErrorCode::not_found, "the adapter has no weights (adapter_model.safetensors)", {.file = folder.string()},
                "the download is incomplete; fetch it again");
  adapter.tensors = open_weights_file(file, file);
  sort_tensors(adapter);
  return adapter;
}

Adapter make_adapter(const fs::path& path, Json config, std::shared_ptr<const Checkpoint> tensors) {
  Adapter adapter;
  adapter.path = path;
  adapter.config = std::move(config);
  check_config(adapter);
  adapter.tensors = std::move(tensors);
  sort_tensors(adapter);
  return adapter;
}

std::vector<float> values_of(const Adapter& adapter, const TensorInfo& tensor) {
  if (tensor.dtype != DType::f32 && tensor.dtype != DType::f16 && tensor.dtype != DType::bf16 && tensor.dtype != DType::f64)
    throw adapter.error(
        ErrorCode::unsupported,
        fmt::format("'{}' is stored as {}; an adapter is float32, float16 or bfloat16", printable(tensor.name), to_string(tensor.dtype)),
        tensor.name);
  std::vector<std::byte> bytes(checked_size(tensor.size_bytes, "tensor of an adapter"));
  adapter.tensors->read_bytes(tensor, 0, bytes);
  std::vector<float> values(checked_size(tensor.num_elements, "tensor of an adapter"));
  math::decode(tensor.dtype, bytes, values);
  if (const std::uint64_t bad = math::count_non_finite(values); bad > 0)
    throw adapter.error(ErrorCode::corrupt, fmt::format("'{}' holds {} NaN or infinite values", printable(tensor.name), bad), tensor.name,
                        "the adapter is broken: its training diverged, or the file is damaged");
  return values;
}

std::vector<std::int64_t> integers_of(const Adapter& adapter, const TensorInfo& tensor) {
  const DTypeInfo& type = info(tensor.dtype);
  if (type.kind != DTypeKind::integer)
    throw adapter.error(ErrorCode::corrupt, fmt::format("'{}' holds no integers", printable(tensor.name)), tensor.name);
  std::vector<std::byte> bytes(checked_size(tensor.size_bytes, "tensor of an adapter"));
  adapter.tensors->read_bytes(tensor, 0, bytes);
  const std::size_t size = static_cast<std::size_t>(type.bits) / 8;
  const bool is_signed = tensor.dtype == DType::i8 || tensor.dtype == DType::i16 || tensor.dtype == DType::i32 || tensor.dtype == DType::i64;
  std::vector<std::int64_t> values(bytes.size() / size);
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint64_t value = 0;
    for (std::size_t k = 0; k < size; ++k) value |= std::to_integer<std::uint64_t>(bytes[i * size + k]) << (8 * k);
    if (is_signed && size < 8 && value >> (8 * size - 1) != 0) value |= ~std::uint64_t{0} << (8 * size);
    values[i] = static_cast<std::int64_t>(value);
  }
  return values;
}

}  // namespace weft::adapt
