#include "weft/inspect.h"

#include <fmt/format.h>

#include <map>
#include <optional>
#include <utility>

#include "adapt/folded_model.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "checkpoint/json.h"
#include "engine/model_config.h"
#include "engine/tokenizer_summary.h"
#include "model/architecture.h"
#include "model/gguf_model.h"
#include "model/gguf_names.h"
#include "weft/error.h"

namespace weft {

ModelInfo inspect(std::string_view model) {
  const std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint(model);
  ModelInfo result;
  result.path = checkpoint->path();
  result.container = checkpoint->container();
  result.files.assign(checkpoint->files().begin(), checkpoint->files().end());
  result.metadata.assign(checkpoint->metadata().begin(), checkpoint->metadata().end());
  result.warnings.assign(checkpoint->warnings().begin(), checkpoint->warnings().end());

  result.skipped.assign(checkpoint->skipped().begin(), checkpoint->skipped().end());

  std::optional<Json> config;
  const model::Architecture* architecture = nullptr;
  const model::GgufFamily* family = nullptr;
  // Of a GGUF file with adapters folded in, the tensors have Hugging Face's names.
  const std::optional<model::HuggingFaceModel> held = as_gguf(*checkpoint) != nullptr ? std::nullopt : adapt::held_model(checkpoint);
  if (const GgufCheckpoint* gguf = as_gguf(held ? *held->file : *checkpoint)) {
    const GgufMetadata& metadata = gguf->gguf_metadata();
    result.architecture = metadata.text("general.architecture").value_or("");
    if (held) {
      result.architecture = architecture_class(held->config);
      architecture = model::find_architecture(held->config);
      if (!architecture) architecture = model::find_architecture_family(held->config);
      if (const Json* type = held->config.find("model_type"); type && type->string()) result.model_type = *type->string();
    } else {
      family = model::find_gguf_family(result.architecture);
    }
    std::string kind = metadata.text("tokenizer.ggml.model").value_or("");
    for (const auto& [name, known] : {std::pair("gpt2", "BPE"), std::pair("llama", "sentencepiece"), std::pair("bert", "WordPiece"), std::pair("t5", "Unigram")})
      if (kind == name) kind = known;
    result.tokenizer_kind = kind;
    if (const GgufValue* tokens = metadata.find("tokenizer.ggml.tokens"); tokens != nullptr && tokens->array() != nullptr)
      result.tokenizer_vocab_size = tokens->array()->num_elements;
    // The type that most weights have names the whole.
    std::map<std::string, std::uint64_t> sizes;
    for (const TensorInfo& tensor : checkpoint->tensors())
      if (!tensor.stored_as.empty()) sizes[tensor.stored_as] += tensor.num_elements;
    for (const auto& [name, size] : sizes)
      if (result.quantization.empty() || size > sizes[result.quantization]) result.quantization = name;
  }
  if (const std::optional<std::filesystem::path> folder = folder_of_model(checkpoint->path())) {
    // A damaged config must not hide the weights.
    const auto or_warning = [&result](auto&& read) {
      try {
        read();
      } catch (const Error& error) {
        result.warnings.push_back(error.what());
      }
    };
    or_warning([&] {
      config = read_model_config(*folder);
      if (!config) return;
      result.architecture = architecture_class(*config);
      if (const Json* type = config->find("model_type"); type && type->string()) result.model_type = *type->string();
      result.quantization = describe_quantization(*config);
      architecture = model::find_architecture(*config);
      if (!architecture) architecture = model::find_architecture_family(*config);
    });
    or_warning([&] {
      const TokenizerSummary tokenizer = summarize_tokenizer(*folder);
      result.tokenizer_kind = tokenizer.kind;
      result.tokenizer_vocab_size = tokenizer.vocab_size;
    });
  }

  result.tensors.reserve(checkpoint->tensors().size());
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    result.num_parameters += tensor.num_elements;
    result.size_bytes += bytes_in_file(tensor);
    std::string role;
    if (family != nullptr) {
      role = model::hugging_face_name(*family, tensor.name);
    } else if (const model::Role known = model::role_of(architecture, tensor.name); known != model::Role::unknown) {
      role = model::to_string(known);
    }
    result.tensors.push_back({tensor, result.files[tensor.file_index].path.filename().string(), std::move(role)});
  }
  if (result.num_parameters > 0) result.bits_per_weight = 8.0 * static_cast<double>(result.size_bytes) / static_cast<double>(result.num_parameters);
  return result;
}

}  // namespace weft
