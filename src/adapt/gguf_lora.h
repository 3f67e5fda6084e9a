#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "adapt/adapter.h"
#include "adapt/lora.h"
#include "checkpoint/json.h"

// LoRA adapters in GGUF files, as llama.cpp's converter writes them: general.type "adapter", adapter.type "lora", one adapter.lora.alpha, and for each
// tensor NAME of the model that changes NAME.lora_a [rank, in] and NAME.lora_b [out, rank], rows in llama.cpp's order. Of the embedding lora_a is turned:
// [tokens, rank]. The scale of a module is alpha by its rank.
namespace weft::adapt {

/// By its first bytes.
[[nodiscard]] bool is_gguf_file(const std::filesystem::path& path);

/// Its modules have llama.cpp's names ("blk.0.attn_q") and rows: only a model tells how its heads lie. Errors: corrupt, unsupported (a model, other
/// kinds of adapters).
[[nodiscard]] Adapter open_gguf_lora(const std::filesystem::path& path);

/// The same adapter for a model of this config (null: unknown), under Hugging Face's names and with its order of rows. Errors: invalid_argument when
/// it was made for another architecture; corrupt.
[[nodiscard]] Adapter hugging_face_lora(const Adapter& gguf, const Json* config);

/// For a model of this config. Errors: invalid_argument (a module that the model does not have), unsupported (what the format has no place for).
[[nodiscard]] StoredAdapter store_gguf_lora(const Lora& lora, const Json& config, std::vector<std::string>& warnings);

}  // namespace weft::adapt
