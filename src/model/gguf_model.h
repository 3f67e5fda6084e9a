#pragma once
#include <map>
#include <memory>
#include <string>
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
  std::vector<std::string> warnings;
};
/// Errors: unsupported for a tensor that has no place in the file; corrupt when shapes do not fit the config or an expert is missing.
[[nodiscard]] GgufTensors gguf_tensors_of(const std::shared_ptr<const Checkpoint>& checkpoint, const Json& config, const Architecture& architecture,
                                          const GgufFamily& family);

/// A GGUF file as a Hugging Face model.
struct HuggingFaceModel {
  std::shared_ptr<const Checkpoint> checkpoint;              ///< tensors with Hugging Face's names; blocks decoded to float32
  std::map<std::string, DType, std::less<>> original_types;  ///< of tensors that were something else before they became float32
  Json config;
  std::vector<std::pair<std::string, std::string>> files;  ///< of the tokenizer: name, content
  std::vector<std::string> warnings;
};
/// Errors: unsupported for an architecture that weft does not know; corrupt.
[[nodiscard]] HuggingFaceModel hugging_face_model(const std::shared_ptr<const Checkpoint>& gguf);

/// Hugging Face's name of a tensor of a GGUF file (with ${expert_index} for a stack of experts); empty when unknown.
[[nodiscard]] std::string hugging_face_name(const GgufFamily& family, std::string_view gguf_name);

/// Key under which the names of tensors stand that were of another type before they became float32: "weft.original_dtype.BF16".
inline constexpr std::string_view kOriginalTypeKey = "weft.original_dtype.";

}  // namespace weft::model
