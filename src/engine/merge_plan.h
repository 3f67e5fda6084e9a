#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "checkpoint/output.h"
#include "engine/merge_config.h"
#include "engine/merge_tokenizer.h"
#include "engine/tensor_stream.h"
#include "model/architecture.h"
#include "weft/merge.h"

// From a config and the models it names to everything that will be written, before anything runs.
namespace weft::engine {

/// A model of the merge, opened.
struct LoadedModel {
  ModelRef ref;
  std::filesystem::path path;                         ///< folder or file
  std::shared_ptr<const Checkpoint> checkpoint;
  std::optional<Json> config;                         ///< config.json, with override_architecture applied
  const model::Architecture* architecture = nullptr;  ///< null: not in the table
  std::shared_ptr<const void> guard = nullptr;        ///< of the folder that stands for a GGUF file
};

/// Opens models once, however many configs name them.
class ModelCache {
 public:
  explicit ModelCache(std::optional<std::filesystem::path> hub_cache, std::optional<DType> lora_dtype = std::nullopt)
      : hub_cache_(std::move(hub_cache)), lora_dtype_(lora_dtype) {}
  /// A name that stands for the result of another config. checkpoint: null to open the folder.
  void set_result(const std::string& name, std::filesystem::path folder, std::shared_ptr<const Checkpoint> checkpoint) {
    results_[name] = {std::move(folder), std::move(checkpoint)};
  }
  /// Errors: not_found, corrupt, unsupported (kinds of adapters, several architectures in one config).
  const LoadedModel& load(const ModelRef& ref);

 private:
  std::optional<std::filesystem::path> hub_cache_;
  std::optional<DType> lora_dtype_;  ///< of models with an adapter; absent: as they are stored
  std::map<std::string, std::pair<std::filesystem::path, std::shared_ptr<const Checkpoint>>> results_;
  std::vector<std::unique_ptr<LoadedModel>> models_;
};

/// Everything that a merge will write.
struct MergePlan {
  std::vector<StreamTensor> tensors;           ///< in layer order
  std::vector<PlannedTensor> described;        ///< the same, for people; files and offsets filled by the layout
  std::vector<CompanionFile> companions;       ///< config, tokenizer, model card, ...
  std::vector<std::shared_ptr<const Checkpoint>> inputs;
  std::vector<std::filesystem::path> input_paths;
  std::vector<std::string> warnings;
};

/// Errors: invalid_argument, not_found, corrupt, unsupported. Reads headers, configs and tokenizers only (and single rows of embeddings).
[[nodiscard]] MergePlan plan_merge(const MergeConfig& config, ModelCache& models, const std::filesystem::path& output, const MergeOptions& options);

}  // namespace weft::engine
