#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "edit/operation.h"
#include "engine/gguf_output.h"
#include "engine/merge_plan.h"
#include "engine/output_job.h"
#include "engine/stream_checkpoint.h"
#include "weft/checkpoint.h"

// A model that steps are stacked on: tensors as views, and the small files beside them. Nothing is read until it is written.
namespace weft::engine {

struct LazyModel {
  std::string name;   ///< as the user wrote it, for plans
  edit::Model parts;  ///< tensors and config.json
  bool config_changed = false;
  std::vector<CompanionFile> companions;                  ///< without config.json, unless that cannot be read as an object
  std::map<std::string, std::string> metadata;            ///< of the weights' header
  std::vector<std::shared_ptr<const Checkpoint>> inputs;  ///< opened for it; checked for changes at the end
  std::vector<std::filesystem::path> input_paths;         ///< must not be the output
  std::vector<std::string> warnings;
  std::string quantized_as = {};  ///< what a GGUF file's layers were decoded from ("Q4_K"); tensors in codes tell by their own stored_as
  std::string block_type = {};    ///< what the weights become in a GGUF file ("Q8_0"); empty: what they are
};

/// Reads headers and config only. Errors: not_found, corrupt, unsupported.
[[nodiscard]] LazyModel open_lazy_model(std::string_view model);

/// The result of a merge, its tensors computed as they are read. stream: computes them; tells what was read and what methods had to say.
[[nodiscard]] LazyModel lazy_model_of(MergePlan plan, const std::string& name, const JobOptions& options, std::shared_ptr<StreamCheckpoint>& stream);

/// Carries out operations on it. Errors: those of edit::Operation::apply.
[[nodiscard]] std::vector<edit::Effect> apply_operations(LazyModel& model, const std::vector<std::unique_ptr<edit::Operation>>& operations,
                                                         const std::vector<edit::Request>& requests);

/// Casts every floating-point tensor; config.json follows.
void cast_all(LazyModel& model, DType dtype);

/// Its tensors as they are now.
[[nodiscard]] std::shared_ptr<const Checkpoint> checkpoint_of(const LazyModel& model);
/// Writes the files beside the weights, config.json as it is now, into an empty folder.
void write_companions(const LazyModel& model, const std::filesystem::path& folder);

/// What writes it: to a folder or, for a name that ends in .safetensors or .gguf, a file. Errors: unsupported for other containers.
[[nodiscard]] OutputJob output_job_of(LazyModel model, const std::filesystem::path& output);
/// What writes it to a GGUF file, each weight as choose says.
[[nodiscard]] OutputJob gguf_output_job(LazyModel model, const std::filesystem::path& output, const GgufChooser& choose);

}  // namespace weft::engine
