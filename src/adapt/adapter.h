#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "weft/checkpoint.h"
#include "weft/error.h"

// Adapters in PEFT's format: a config and a few tensors for each module that they change.
namespace weft::adapt {

/// What an adapter has for one module of the model.
struct AdapterModule {
  std::string name;  ///< "model.layers.0.self_attn.q_proj"
  std::map<std::string, const TensorInfo*>
      parts;        ///< by what follows the name, less "weight": "lora_A", "lora_B.bias", "weight", "base_layer.weight"
  int nesting = 0;  ///< how many ".base_layer" stood behind the name: which of several target_parameters it is
};

/// An adapter as it is stored; nothing but headers and the config was read.
struct Adapter {
  std::filesystem::path path;  ///< what the user named
  Json config;
  std::string kind;  ///< peft_type: "LORA"
  std::shared_ptr<const Checkpoint> tensors;
  std::vector<AdapterModule> modules;               ///< in order of name
  std::map<std::string, const TensorInfo*> shared;  ///< of all modules: "vera_A"
  std::string gguf_architecture = {};  ///< of a LoRA in a GGUF file, whose modules have llama.cpp's names: "llama"; see gguf_lora.h

  [[nodiscard]] bool flag(std::string_view key) const;  ///< false when absent or null
  [[nodiscard]] std::optional<double> number(std::string_view key) const;
  [[nodiscard]] std::string text(std::string_view key) const;  ///< empty when absent
  /// r (or alpha) of a module: what rank_pattern (alpha_pattern) says of it, else the config's. Errors: corrupt for what is no sensible number.
  [[nodiscard]] double rank_of(std::string_view module) const;
  [[nodiscard]] double alpha_of(std::string_view module) const;
  /// Whether one of a list of module names (or, as a string, a regular expression) under this key means the module.
  [[nodiscard]] bool lists(std::string_view key, std::string_view module) const;
  /// An Error that names the adapter, and the tensor if any.
  [[nodiscard]] Error error(ErrorCode code, std::string message, std::string_view tensor = {}, std::string advice = {}) const;
};

/// Whether a folder holds an adapter.
[[nodiscard]] bool is_adapter(const std::filesystem::path& path);
/// path: a folder with adapter_config.json and adapter_model.safetensors or .bin, the weights beside their config, or a LoRA in a GGUF file.
/// Errors: not_found, corrupt (a config that makes no sense, one module twice), unsupported (kinds that change no weights, settings that are not
/// known).
[[nodiscard]] Adapter open_adapter(const std::filesystem::path& path);
/// The same of a config and tensors that are at hand. path: for messages.
[[nodiscard]] Adapter make_adapter(const std::filesystem::path& path, Json config, std::shared_ptr<const Checkpoint> tensors);

/// All values of a tensor of an adapter as float32. Errors: corrupt for NaN and infinities, unsupported for types that no adapter has.
[[nodiscard]] std::vector<float> values_of(const Adapter& adapter, const TensorInfo& tensor);
/// All values of an integer tensor (indices of vblora and shira).
[[nodiscard]] std::vector<std::int64_t> integers_of(const Adapter& adapter, const TensorInfo& tensor);

}  // namespace weft::adapt
