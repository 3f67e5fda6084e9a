#include "engine/lazy_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/file.h"
#include "checkpoint/model_folder.h"
#include "engine/model_config.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

LazyModel open_lazy_model(std::string_view model) {
  LazyModel lazy;
  lazy.name = model;
  const std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint(model);
  const fs::path path = checkpoint->path();
  lazy.inputs = {checkpoint};
  lazy.input_paths = {path};
  lazy.metadata = checkpoint->metadata();
  lazy.warnings.assign(checkpoint->warnings().begin(), checkpoint->warnings().end());
  for (const TensorInfo& tensor : checkpoint->tensors())
    lazy.parts.tensors.push_back({tensor.name, {checkpoint, &tensor}, {fmt::format("{}:{}", model, tensor.name)}, {}});
  if (lazy.parts.tensors.empty())
    throw Error(ErrorCode::invalid_argument, "the model holds no tensors", {.file = path.string()}, "name a model that has some");
  const std::optional<fs::path> folder = folder_of_model(path);
  if (!folder) return lazy;
  lazy.parts.config = read_model_config(*folder);
  for (const std::string& name : companion_files(*folder)) lazy.companions.push_back({.name = name, .copy_of = *folder / name});
  return lazy;
}

std::vector<edit::Effect> apply_operations(LazyModel& model, const std::vector<std::unique_ptr<edit::Operation>>& operations,
                                           const std::vector<edit::Request>& requests) {
  std::vector<edit::Effect> effects;
  const std::string before = model.parts.config ? write_json(*model.parts.config) : std::string();
  for (std::size_t i = 0; i < operations.size(); ++i) {
    edit::Effect effect = operations[i]->apply(model.parts, model.warnings);
    effect.operation = requests[i].argument.empty() ? requests[i].operation : requests[i].operation + " " + requests[i].argument;
    effects.push_back(std::move(effect));
  }
  if (model.parts.config && write_json(*model.parts.config) != before) model.config_changed = true;
  // Arrays that were set are inputs too.
  for (const edit::Tensor& tensor : model.parts.tensors) {
    if (std::find(tensor.steps.begin(), tensor.steps.end(), "set") != tensor.steps.end()) model.inputs.push_back(tensor.values.checkpoint);
  }
  return effects;
}

OutputJob output_job_of(LazyModel model, const fs::path& output) {
  if (const std::string extension = output.extension().string(); extension == ".gguf" || extension == ".npz")
    throw Error(ErrorCode::unsupported, fmt::format("this command does not write {} files", extension), {.file = output.string()},
                "write a folder or a .safetensors file, and convert that");
  OutputJob job;
  job.single_file = output.extension() == ".safetensors";
  job.inputs = std::move(model.inputs);
  job.input_paths = std::move(model.input_paths);
  job.header_metadata = std::move(model.metadata);
  job.warnings = std::move(model.warnings);
  for (edit::Tensor& part : model.parts.tensors) {
    StreamTensor tensor;
    tensor.name = part.name;
    tensor.shape = part.values.tensor->shape;
    tensor.dtype = part.values.tensor->dtype;
    // The stream casts with its own threads, and looks for what does not fit the type.
    if (const std::optional<TensorRef> source = cast_from(part.values)) {
      tensor.inputs = {*source};
    } else {
      tensor.inputs = {part.values};
    }
    tensor.input_names = {model.name};
    tensor.checks_finite = tensor.dtype != tensor.inputs.front().tensor->dtype;
    PlannedTensor described;
    described.name = part.name;
    described.dtype = tensor.dtype;
    described.shape = tensor.shape;
    described.inputs = std::move(part.inputs);
    described.method = part.steps.empty() ? "copy" : joined(part.steps);
    job.tensors.push_back(std::move(tensor));
    job.described.push_back(std::move(described));
  }
  if (job.single_file) return job;
  for (CompanionFile& file : model.companions) {
    if (file.name == "config.json" && model.config_changed) {
      job.companions.push_back({"config.json", write_json(*model.parts.config, 2) + "\n"});
    } else {
      job.companions.push_back(std::move(file));
    }
  }
  return job;
}

}  // namespace weft::engine
