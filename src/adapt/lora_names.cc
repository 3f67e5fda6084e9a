#include "adapt/lora_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/safetensors.h"
#include "math/convert.h"

namespace weft::adapt {
namespace {

struct Parts {
  const TensorInfo *a = nullptr, *b = nullptr, *alpha = nullptr;
};

/// Endings, longest first, and which part they are.
struct Ending {
  std::string_view text;
  int part;  ///< 0: A, 1: B, 2: alpha
};
constexpr Ending kEndings[] = {
    {".lora_linear_layer.down.weight", 0},
    {".lora_linear_layer.up.weight", 1},
    {".lora_A.default.weight", 0},
    {".lora_B.default.weight", 1},
    {".lora.down.weight", 0},
    {".lora.up.weight", 1},
    {".lora_down.weight", 0},
    {".lora_up.weight", 1},
    {".lora_A.weight", 0},
    {".lora_B.weight", 1},
    {".alpha", 2},
};
/// What stands before a module in a pipeline of several models.
constexpr std::string_view kPrefixes[] = {"base_model.model.", "diffusion_model.", "transformer.", "unet.",    "text_encoder_2.",  "text_encoder.",
                                          "lora_unet_",        "lora_te1_",        "lora_te2_",    "lora_te_", "lora_transformer_"};

Error bad(ErrorCode code, const std::filesystem::path& file, std::string message, std::string_view tensor = {}, std::string advice = {}) {
  return Error(code, std::move(message), {.file = file.string(), .tensor = printable(tensor)}, std::move(advice));
}

std::string with_underscores(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

Values values_in(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  if (!is_decodable_float(tensor.dtype))
    throw bad(ErrorCode::unsupported, checkpoint.path(), fmt::format("'{}' is stored as {}", printable(tensor.name), to_string(tensor.dtype)),
              tensor.name);
  std::vector<std::byte> bytes(checked_size(tensor.size_bytes, "tensor of an adapter"));
  checkpoint.read_bytes(tensor, 0, bytes);
  Values out{tensor.dtype, tensor.shape, std::vector<float>(checked_size(tensor.num_elements, "tensor of an adapter"))};
  math::decode(tensor.dtype, bytes, out.values);
  if (math::count_non_finite(out.values) > 0)
    throw bad(ErrorCode::corrupt, checkpoint.path(), fmt::format("'{}' holds NaN or infinite values", printable(tensor.name)), tensor.name);
  return out;
}

/// What of a name says which of several models it belongs to; empty: nothing.
std::string_view prefix_of(std::string_view name) {
  for (const std::string_view prefix : kPrefixes)
    if (name.starts_with(prefix)) return prefix;
  return {};
}

/// A file may hold adapters of several models, such as a UNet and a text encoder. PEFT keeps one for each, so all but those of the model at hand go.
void keep_one_model(const std::filesystem::path& file, std::span<const std::string> modules,
                    const std::map<std::string, std::vector<std::string>>& by_kohya_name, std::map<std::string, Parts>& found,
                    std::vector<std::string>& warnings) {
  std::map<std::string_view, std::size_t> fits;
  const std::set<std::string> known(modules.begin(), modules.end());
  for (const auto& [name, parts] : found) {
    const std::string_view prefix = prefix_of(name);
    if (prefix.empty() || prefix == "base_model.model.") continue;
    const std::string rest = name.substr(prefix.size());
    fits[prefix] += known.contains(rest) || by_kohya_name.contains(rest) ? 1 : 0;
  }
  if (fits.size() < 2) return;
  const auto fitting = std::count_if(fits.begin(), fits.end(), [](const auto& one) { return one.second > 0; });
  std::string names;
  for (const auto& [prefix, count] : fits) names += fmt::format("{}'{}'", names.empty() ? "" : ", ", prefix);
  if (fitting != 1)
    throw bad(ErrorCode::unsupported, file,
              fmt::format("the file holds adapters of several models ({}), and PEFT keeps one for each{}", names,
                          fitting > 1       ? ": more than one of them fits the model"
                          : modules.empty() ? ""
                                            : ": none of them fits the model"),
              {},
              fmt::format("{}take the file apart: weft edit FILE OUT.safetensors --keep '^{}'",
                          modules.empty() ? "name one of the models with --base, or " : "", fits.begin()->first));
  const std::string_view kept = std::find_if(fits.begin(), fits.end(), [](const auto& one) { return one.second > 0; })->first;
  const std::size_t dropped =
      std::erase_if(found, [&](const auto& one) { return fits.contains(prefix_of(one.first)) && prefix_of(one.first) != kept; });
  warnings.push_back(
      fmt::format("the file holds adapters of several models ({}); {} modules that do not begin with '{}' were left out", names, dropped, kept));
}

}  // namespace

Lora read_named_lora(const std::filesystem::path& file, std::span<const std::string> modules, const std::string& base_name,
                     std::vector<std::string>& warnings) {
  const std::shared_ptr<const Checkpoint> checkpoint = open_weights_file(file, file);
  std::map<std::string, Parts> found;
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    const auto ending = std::find_if(std::begin(kEndings), std::end(kEndings),
                                     [&](const Ending& e) { return tensor.name.size() > e.text.size() && tensor.name.ends_with(e.text); });
    if (ending == std::end(kEndings))
      throw bad(ErrorCode::unsupported, file, fmt::format("'{}' is no part of a LoRA under names that weft knows", printable(tensor.name)),
                tensor.name, "weft knows the names of PEFT, diffusers and kohya; LoHa, LoKr and DoRA in LyCORIS' names are not among them");
    Parts& parts = found[tensor.name.substr(0, tensor.name.size() - ending->text.size())];
    const TensorInfo*& place = ending->part == 0 ? parts.a : ending->part == 1 ? parts.b : parts.alpha;
    if (place)
      throw bad(ErrorCode::corrupt, file,
                fmt::format("'{}' and '{}' are the same part of one module", printable(place->name), printable(tensor.name)), tensor.name);
    place = &tensor;
  }
  std::map<std::string, std::vector<std::string>> by_kohya_name;
  for (const std::string& module : modules) by_kohya_name[with_underscores(module)].push_back(module);

  keep_one_model(file, modules, by_kohya_name, found, warnings);

  Lora lora;
  std::set<std::string> leaves, prefixes;
  for (const auto& [written, parts] : found) {
    if (!parts.a || !parts.b) throw bad(ErrorCode::corrupt, file, fmt::format("'{}' has only one of its two matrices", printable(written)));
    std::string name = written;
    const std::string_view prefix = prefix_of(written);
    name.erase(0, prefix.size());
    if (!prefix.empty() && prefix != "base_model.model.") prefixes.emplace(prefix);
    // Kohya's names have no dots left; a model's names tell where they were.
    if (name.find('.') == std::string::npos && name.find('_') != std::string::npos) {
      const auto known = by_kohya_name.find(name);
      if (known != by_kohya_name.end() && known->second.size() == 1) {
        name = known->second.front();
      } else if (modules.empty()) {
        throw bad(ErrorCode::invalid_argument, file, fmt::format("'{}' does not say where the dots of its module were", printable(written)), {},
                  "name the model that it belongs to with --base MODEL");
      } else {
        throw bad(ErrorCode::invalid_argument, file,
                  fmt::format("'{}' fits {} of the model's modules", printable(written), known == by_kohya_name.end() ? "none" : "several"), {},
                  "the adapter was made for another model");
      }
    }
    LoraModule module{name, false, 1, values_in(*checkpoint, *parts.a), values_in(*checkpoint, *parts.b)};
    if (module.a.shape.size() < 2 || module.b.shape.size() < 2 || module.a.shape[0] <= 0 || module.a.shape[0] != module.b.shape[1])
      throw bad(ErrorCode::corrupt, file,
                fmt::format("the matrices of '{}' are {} and {}: their ranks differ", printable(written), to_string(module.a.shape),
                            to_string(module.b.shape)));
    if (parts.alpha) {
      const Values alpha = values_in(*checkpoint, *parts.alpha);
      if (alpha.values.size() != 1)
        throw bad(ErrorCode::corrupt, file, fmt::format("'{}' is not one number", printable(parts.alpha->name)), parts.alpha->name);
      module.scale = static_cast<double>(alpha.values[0]) / static_cast<double>(module.rank());
    }
    leaves.insert(name.substr(name.rfind('.') == std::string::npos ? 0 : name.rfind('.') + 1));
    lora.modules.push_back(std::move(module));
  }
  if (lora.modules.empty()) throw bad(ErrorCode::corrupt, file, "the file holds no tensors");
  for (const std::string& prefix : prefixes) warnings.push_back(fmt::format("names were '{}...'; the model's own names have no such prefix", prefix));
  Json::Array targets;
  for (const std::string& leaf : leaves) targets.emplace_back(leaf);
  lora.config.set("target_modules", Json(std::move(targets)));
  lora.config.set("base_model_name_or_path", base_name.empty() ? Json() : Json(base_name));
  lora.config.set("bias", "none");
  lora.config.set("fan_in_fan_out", false);
  lora.config.set("lora_dropout", 0.0);
  lora.config.set("task_type", Json());
  lora.config.set("use_dora", false);
  return lora;
}

StoredAdapter store_named_lora(const Lora& lora, std::string_view to, std::vector<std::string>& warnings) {
  if (to == "peft") return store_lora(lora);
  if (to != "kohya" && to != "diffusers")
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is no form of an adapter that weft writes", printable(to)), {.key = "to"},
                "there are peft, gguf, kohya and diffusers");
  if (!lora.saved.empty())
    throw Error(ErrorCode::unsupported,
                fmt::format("the names of {} have no place for tensors that are saved whole ('{}')", to, printable(lora.saved.front().name)),
                {.key = "to"}, "fold the adapter into its model instead");
  StoredAdapter out;
  // A text encoder's modules are called so in all libraries; anything else is a UNet or a transformer.
  const bool is_text = std::any_of(lora.modules.begin(), lora.modules.end(), [](const LoraModule& m) { return m.name.starts_with("text_model."); });
  const bool is_unet = std::any_of(lora.modules.begin(), lora.modules.end(), [](const LoraModule& m) {
    return m.name.starts_with("down_blocks.") || m.name.starts_with("up_blocks.") || m.name.starts_with("mid_block.");
  });
  if (!is_text && !is_unet)
    warnings.emplace_back("the modules are those of no diffusion model; their names are written with the prefix of a transformer");
  const std::string prefix = to == "kohya" ? (is_text ? "lora_te_" : "lora_unet_") : (is_text ? "text_encoder." : is_unet ? "unet." : "transformer.");
  std::set<std::string> names;
  for (const LoraModule& module : lora.modules) {
    if (module.embedding)
      throw Error(ErrorCode::unsupported, fmt::format("the names of {} have no place for an embedding ('{}')", to, printable(module.name)),
                  {.key = "to"});
    const std::string name = prefix + (to == "kohya" ? with_underscores(module.name) : module.name);
    if (!names.insert(name).second) throw Error(ErrorCode::unsupported, fmt::format("two modules become '{}'", printable(name)), {.key = "to"});
    const auto add = [&](std::string ending, const Values& values) {
      StoredTensor& tensor = out.tensors.emplace_back();
      tensor.name = name + ending;
      tensor.dtype = values.dtype;
      tensor.shape = values.shape;
      tensor.bytes.resize(values.values.size() * static_cast<std::size_t>(info(values.dtype).bits) / 8);
      math::encode(values.dtype, values.values, tensor.bytes);
    };
    add(to == "kohya" ? ".lora_down.weight" : ".lora_A.weight", module.a);
    add(to == "kohya" ? ".lora_up.weight" : ".lora_B.weight", module.b);
    add(".alpha", {DType::f32, {}, {static_cast<float>(module.scale * static_cast<double>(module.rank()))}});
  }
  std::sort(out.tensors.begin(), out.tensors.end(), [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  return out;
}

}  // namespace weft::adapt
