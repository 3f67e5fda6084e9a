#include "weft/inspect.h"

#include <fmt/format.h>

#include <optional>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/json.h"
#include "engine/model_config.h"
#include "engine/tokenizer_summary.h"
#include "model/architecture.h"
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
    const model::Role role = model::role_of(architecture, tensor.name);
    result.tensors.push_back(
        {tensor, result.files[tensor.file_index].path.filename().string(), role == model::Role::unknown ? "" : std::string(model::to_string(role))});
  }
  if (result.num_parameters > 0) result.bits_per_weight = 8.0 * static_cast<double>(result.size_bytes) / static_cast<double>(result.num_parameters);
  return result;
}

}  // namespace weft
