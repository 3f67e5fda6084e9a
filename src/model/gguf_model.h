#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/gguf.h"
#include "checkpoint/json.h"
#include "model/architecture.h"
#include "model/gguf_names.h"
#include "weft/checkpoint.h"

// Models as Hugging Face lays them out seen as llama.cpp does, and the other way round. Views: nothing is read until bytes are asked for.
namespace weft::model {

/// The tensors of a model under the names and in the arrangement of a GGUF file, in the order of its layers.
struct GgufTensors {
  std::shared_ptr<const Checkpoint> view;
  std::vector<bool> float32;    ///< of the view's tensors: kept in float32 whatever the type of the file
  std::vector<DType> original;  ///< what they are in the model
  std::vector<std::vector<std::string>> sources;  ///< the names of the model's tensors that each is made of
  std::vector<std::string> warnings;
};
/// Errors: unsupported for a tensor that has no place in the file; corrupt when shapes do not fit the config or an expert is missing.
[[nodiscard]] GgufTensors gguf_tensors_of(const std::shared_ptr<const Checkpoint>& checkpoint, const Json& config, const Architecture& architecture,
                                          const GgufFamily& family);

/// A GGUF file as a Hugging Face model.
struct HuggingFaceModel {
  std::shared_ptr<const Checkpoint> checkpoint;              ///< tensors with Hugging Face's names; blocks decoded to float32
  std::shared_ptr<const Checkpoint> file;                    ///< the GGUF file itself
  std::map<std::string, DType, std::less<>> original_types;  ///< of tensors that were something else before they became float32
  Json config;
  std::vector<std::pair<std::string, std::string>> files;  ///< of the tokenizer: name, content
  std::vector<std::string> warnings;
};
/// Errors: unsupported for an architecture that weft does not know; corrupt.
[[nodiscard]] HuggingFaceModel hugging_face_model(const std::shared_ptr<const Checkpoint>& gguf);

/// Heads of a model's attention, which decide how llama.cpp orders the rows of some tensors.
struct GgufHeads {
  std::uint64_t query = 0;
  std::uint64_t key = 0;
};
[[nodiscard]] GgufHeads gguf_heads(const Architecture& architecture, const Json& config);
enum class GgufDirection : std::uint8_t { to_gguf, to_hugging_face };
/// Row i of the result is this row of a tensor with as many rows; empty: row i. Errors: corrupt when the rows do not divide among the heads.
[[nodiscard]] std::function<std::uint64_t(std::uint64_t)> gguf_row_order(GgufArrangement arrangement, const TensorInfo& tensor,
                                                                         const GgufHeads& heads, GgufDirection direction);

/// What a tensor of a GGUF file is in a model of this architecture. Rule of null when it has no such tensor.
struct GgufPlace {
  const GgufRule* rule = nullptr;
  std::string name;    ///< Hugging Face's, without suffix, with ${expert_index} for a stack of experts
  std::string suffix;  ///< ".weight", ".bias"
  Role role = Role::unknown;
  int expert = -1;  ///< of a file that has the experts one by one
};
[[nodiscard]] GgufPlace gguf_place(const GgufFamily& family, const Architecture& architecture, std::string_view gguf_name);
[[nodiscard]] std::string with_expert(std::string name, std::size_t expert);
/// Whether a norm of this role is stored as 1 + w in a GGUF file.
[[nodiscard]] bool gguf_adds_one(const Architecture& architecture, Role role);

/// Hugging Face's name of a tensor of a GGUF file (with ${expert_index} for a stack of experts); empty when unknown.
[[nodiscard]] std::string hugging_face_name(const GgufFamily& family, std::string_view gguf_name);

/// Key under which the names of tensors stand that were of another type before they became float32: "weft.original_dtype.BF16".
inline constexpr std::string_view kOriginalTypeKey = "weft.original_dtype.";

}  // namespace weft::model
