#include "model/text_part.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/tensor_view.h"
#include "model/architecture.h"

namespace weft::model {
namespace {

/// Where a language model's tensors stand, and what such names begin with in a model of its own. The first that fits counts.
constexpr std::pair<std::string_view, std::string_view> kPrefixes[] = {
    {"language_model.model.", "model."},
    {"model.language_model.model.", "model."},
    {"model.language_model.", "model."},
    {"language_model.lm_head.", "lm_head."},
    {"lm_head.", "lm_head."},
};
/// Keys that a multimodal config says once, for all its parts.
constexpr const char* kShared[] = {"tie_word_embeddings", "torch_dtype", "dtype", "eos_token_id", "bos_token_id", "pad_token_id"};

}  // namespace

std::optional<TextPart> text_part(const std::shared_ptr<const Checkpoint>& checkpoint, const Json& config) {
  const Json* text = config.find("text_config");
  if (text == nullptr || !text->is_object()) return std::nullopt;
  if (const Architecture* whole = find_architecture(config); whole != nullptr && whole->forward.kind != NetworkKind::none) return std::nullopt;
  const Architecture* architecture = find_architecture_family(*text);
  if (architecture == nullptr || architecture->forward.kind != NetworkKind::decoder) return std::nullopt;
  TextPart part;
  part.config = *text;
  part.config.erase("architectures");  // may name the class of the whole
  for (const char* key : kShared)
    if (const Json* shared = config.find(key); shared != nullptr && part.config.find(key) == nullptr) part.config.set(key, *shared);

  std::vector<NamedTensor> tensors;
  bool has_text = false;
  for (const TensorInfo& tensor : checkpoint->tensors())
    for (const auto& [prefix, own] : kPrefixes) {
      if (!tensor.name.starts_with(prefix)) continue;
      tensors.push_back({{checkpoint, &tensor}, std::string(own) + tensor.name.substr(prefix.size())});
      has_text = has_text || prefix != own;
      break;
    }
  if (!has_text) {  // the text model alone, saved with the config of the whole
    part.checkpoint = checkpoint;
    return part;
  }
  part.checkpoint = select_tensors(tensors, *checkpoint);
  return part;
}

}  // namespace weft::model
