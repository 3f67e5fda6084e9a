#pragma once
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "adapt/lora.h"

// The same LoRA under the names that other tools give it.
//
// peft       base_model.model.MODULE.lora_A.weight, .lora_B.weight; rank and alpha in adapter_config.json
// diffusers  PREFIX.MODULE.lora_A.weight (or .lora.down.weight, .lora_A.default.weight), .alpha; PREFIX is unet, transformer, text_encoder, ...
// kohya      lora_unet_MODULE.lora_down.weight, .lora_up.weight, .alpha, the dots of MODULE written as _; lora_te_, lora_te1_, lora_te2_ for text
// encoders
namespace weft::adapt {

/// Reads a single file of kohya's or diffusers' names. modules: the names of a model's modules, to undo what kohya's names lose; base_name: for the
/// config. Errors: unsupported (other layouts, LoHa and LoKr of LyCORIS), invalid_argument (a name that fits no module or several).
[[nodiscard]] Lora read_named_lora(const std::filesystem::path& file, std::span<const std::string> modules, const std::string& base_name,
                                   std::vector<std::string>& warnings);

/// to: "peft", "kohya", "diffusers". Errors: unsupported (what the form has no place for), invalid_argument (another form).
[[nodiscard]] StoredAdapter store_named_lora(const Lora& lora, std::string_view to, std::vector<std::string>& warnings);

}  // namespace weft::adapt
