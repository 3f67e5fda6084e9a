#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "model/architecture.h"
#include "weft/dtype.h"

// config.json: reading what a merge needs, and editing it so that all else stays as it was.
namespace weft::model {

/// The part that describes the language model: `text_config` where there is one, else the whole.
[[nodiscard]] const Json& text_config(const Json& config) noexcept;
[[nodiscard]] Json& text_config(Json& config) noexcept;

/// `dtype` or `torch_dtype`, as a type that weft knows.
[[nodiscard]] std::optional<DType> config_dtype(const Json& config);
/// Under the key that the config has (`torch_dtype` when it has none), without the prefix "torch.".
void set_dtype(Json& config, DType dtype);
void set_vocab_size(Json& config, std::uint64_t num_tokens);
void set_tie_word_embeddings(Json& config, bool tied);

/// Writes the number of layers and rebuilds what is listed by layer. layers: for each layer of the output, the layer of the donor whose place in
/// such lists it takes. Warns (into `warnings`) about what cannot follow, such as a pattern that the config only implies.
void set_layers(Json& config, const Architecture& architecture, std::span<const int> layers, std::vector<std::string>& warnings);

}  // namespace weft::model
