#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/architecture.h"

// What llama.cpp calls the tensors of an architecture, and how it arranges their rows.
namespace weft::model {

enum class GgufArrangement : std::uint8_t {
  same,
  query_pairs,  ///< rows of a query head: the two halves that turn together interleaved
  key_pairs,    ///< the same, with the number of key heads
  transposed,
  qkv_by_part,  ///< all queries, all keys, all values, where Hugging Face has the three of each head together
  experts,      ///< the experts' matrices stacked on a new first axis
};

/// Names without ".weight" and ".bias". In `hf` the layer is ${layer_index}, the expert ${expert_index}; in `gguf` the layer is ${layer_index}.
struct GgufRule {
  std::string hf;
  std::string gguf;
  GgufArrangement arrangement = GgufArrangement::same;
};

struct GgufFamily {
  std::string name;                        ///< general.architecture: "llama"
  std::vector<std::string> architectures;  ///< of the table, as which its models are written; the first is what a file is read back as
  std::vector<GgufRule> rules;
  std::vector<std::string> dropped;  ///< beginnings of names that a GGUF file does not hold
};

[[nodiscard]] std::span<const GgufFamily> gguf_families();
/// Null when unknown.
[[nodiscard]] const GgufFamily* find_gguf_family(std::string_view name) noexcept;
[[nodiscard]] const GgufFamily* gguf_family_of(const Architecture& architecture) noexcept;

/// Where a name of the file belongs.
struct GgufNameMatch {
  const GgufRule* rule = nullptr;
  int layer = -1;
  std::string suffix;  ///< ".weight", ".bias"
};
/// A rule of null when the family has no such name.
[[nodiscard]] GgufNameMatch match_gguf_name(const GgufFamily& family, std::string_view name);
/// The rule for a name (a template's) of the architecture; null when there is none.
[[nodiscard]] const GgufRule* rule_for_template(const GgufFamily& family, std::string_view template_name, std::string& suffix);
/// llama.cpp keeps small and sensitive tensors in float32 whatever the type of the file.
[[nodiscard]] bool is_float32_in_gguf(std::string_view gguf_name, std::size_t rank);

}  // namespace weft::model
