#include "engine/lazy_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "adapt/folded_model.h"
#include "base/file.h"
#include "checkpoint/model_folder.h"
#include "engine/gguf_output.h"
#include "engine/model_config.h"
#include "engine/stream_checkpoint.h"
#include "model/config_json.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

/// The tensor behind renames and casts.
TensorRef behind(TensorRef tensor, bool& casts) {
  while (true) {
    TensorRef next = without_renames(tensor);
    if (std::optional<TensorRef> source = cast_from(next)) {
      next = *std::move(source);
      casts = true;
    }
    if (next.tensor == tensor.tensor) return next;
    tensor = std::move(next);
  }
}

bool narrow(const std::optional<DType>& dtype) { return dtype && *dtype != DType::f32 && *dtype != DType::f64; }

/// The plan of a tensor that another step computes and nothing but this output needs, to be run with the output's own: the passes of its method then
/// go through the threads and the budget of the one walk. Nothing where it has to be read through its checkpoint.
std::optional<StreamTensor> planned(const edit::Tensor& part, const std::map<const TensorInfo*, int>& uses) {
  bool casts = false;
  const TensorRef source = behind(part.values, casts);
  auto* stream = const_cast<StreamCheckpoint*>(dynamic_cast<const StreamCheckpoint*>(source.checkpoint.get()));
  if (stream == nullptr || source.tensor != part.source.tensor || uses.at(source.tensor) != 1) return std::nullopt;
  const DType made = source.tensor->dtype, written = part.values.tensor->dtype;
  if (made != written) {
    // The values pass through one narrow type on their way to the last one; two are more than a plan can say.
    const StreamTensor& plan = stream->plan(*source.tensor);
    if (narrow(made) && narrow(plan.compute_dtype) && plan.compute_dtype != made) return std::nullopt;
  }
  std::optional<StreamTensor> tensor = stream->take(*source.tensor);
  if (tensor && made != written) {
    if (narrow(made)) tensor->compute_dtype = made;
    tensor->dtype = written;
  }
  return tensor;
}

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
  for (const std::string& adapter : adapt::split_adapters(model).adapters) lazy.input_paths.push_back(resolve_model(adapter).path);
  lazy.metadata = checkpoint->metadata();
  lazy.warnings.assign(checkpoint->warnings().begin(), checkpoint->warnings().end());
  // A GGUF file takes part as the Hugging Face model that it holds.
  std::shared_ptr<const Checkpoint> values = checkpoint;
  std::optional<model::HuggingFaceModel> held = adapt::held_model(checkpoint);
  if (held) {
    values = held->checkpoint;
    lazy.metadata.clear();
    lazy.parts.config = std::move(held->config);
    lazy.config_changed = true;
    lazy.companions.push_back({.name = "config.json"});  // written from the config
    for (auto& [name, content] : held->files) lazy.companions.push_back({.name = name, .content = std::move(content)});
    lazy.warnings.insert(lazy.warnings.end(), held->warnings.begin(), held->warnings.end());
    for (const TensorInfo& tensor : held->file->tensors())
      if (lazy.quantized_as.empty() && tensor.name.starts_with("blk.")) lazy.quantized_as = tensor.stored_as;
  }
  for (const TensorInfo& tensor : values->tensors())
    lazy.parts.tensors.push_back({tensor.name, {values, &tensor}, {values, &tensor}, {fmt::format("{}:{}", model, tensor.name)}, {}});
  if (lazy.parts.tensors.empty())
    throw Error(ErrorCode::invalid_argument, "the model holds no tensors", {.file = path.string()}, "name a model that has some");
  const std::optional<fs::path> folder = folder_of_model(path);
  if (!folder || held) return lazy;
  lazy.parts.config = read_model_config(*folder);
  if (lazy.parts.config) {
    const std::string before = write_json(*lazy.parts.config);
    adapt::follow_in_config(*checkpoint, *lazy.parts.config, lazy.warnings);
    lazy.config_changed = write_json(*lazy.parts.config) != before;
  }
  for (const std::string& name : companion_files(*folder)) lazy.companions.push_back({.name = name, .copy_of = *folder / name});
  return lazy;
}

LazyModel lazy_model_of(MergePlan plan, const std::string& name, const JobOptions& options, std::shared_ptr<StreamCheckpoint>& stream) {
  LazyModel lazy;
  lazy.name = name;
  lazy.warnings = std::move(plan.warnings);
  lazy.inputs = std::move(plan.inputs);
  lazy.input_paths = std::move(plan.input_paths);
  for (CompanionFile& file : plan.companions) {
    if (file.name == "config.json") {
      lazy.parts.config = parse_json(file.content, "config.json");
      lazy.config_changed = true;
    }
    lazy.companions.push_back(std::move(file));
  }
  stream = std::make_shared<StreamCheckpoint>(name, std::move(plan.tensors), options);
  for (std::size_t i = 0; i < plan.described.size(); ++i) {
    PlannedTensor& planned = plan.described[i];
    const TensorRef values{stream, &stream->tensors()[i]};
    lazy.parts.tensors.push_back({planned.name, values, values, std::move(planned.inputs), {std::move(planned.method)}});
  }
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
  model.inputs.insert(model.inputs.end(), model.parts.arrays.begin(), model.parts.arrays.end());
  model.parts.arrays.clear();
  return effects;
}

void cast_all(LazyModel& model, DType dtype) {
  for (edit::Tensor& tensor : model.parts.tensors) {
    const TensorInfo& info = *tensor.values.tensor;
    if (!is_decodable_float(info.dtype) || info.dtype == dtype) continue;
    if (dtype == DType::f4 && (info.shape.empty() || info.shape.back() % 2 != 0)) continue;
    tensor.values = cast_tensor(tensor.values, dtype);
    tensor.steps.emplace_back("cast");
  }
  if (!model.parts.config) return;
  model::set_dtype(*model.parts.config, dtype);
  model.config_changed = true;
}

std::shared_ptr<const Checkpoint> checkpoint_of(const LazyModel& model) {
  std::vector<NamedTensor> tensors;
  for (const edit::Tensor& tensor : model.parts.tensors) tensors.push_back({tensor.values, tensor.name});
  return select_tensors(tensors, *model.parts.tensors.front().values.checkpoint);
}

void write_companions(const LazyModel& model, const fs::path& folder) {
  for (const CompanionFile& file : model.companions) {
    if (file.name == "config.json" && model.parts.config) continue;
    fs::create_directories((folder / file.name).parent_path());
    if (file.copy_of) {
      fs::copy_file(*file.copy_of, folder / file.name);
    } else {
      File(folder / file.name, FileMode::create_new).write(0, std::as_bytes(std::span(file.content)));
    }
  }
  if (model.parts.config) {
    const std::string text = write_json(*model.parts.config, 2);
    File(folder / "config.json", FileMode::create_new).write(0, std::as_bytes(std::span(text)));
  }
}

OutputJob gguf_output_job(LazyModel model, const fs::path& output, const GgufChooser& choose) {
  if (!model.parts.config)
    throw Error(ErrorCode::not_found, "a GGUF file needs what config.json says, and there is none", {.file = model.name}, "name a model's folder");
  const ScratchFolder folder;  // only the tokenizer is read from it, and at once
  write_companions(model, folder.path());
  // What steps made is called what its file is called.
  const std::string title =
      path_kind(model.name) == PathKind::nothing ? title_of(fs::path(output.filename()).replace_extension()) : title_of(model.name);
  OutputJob job = gguf_job_choosing({model.name, checkpoint_of(model), *model.parts.config, folder.path(), title}, choose);
  // Where the tensors came from before the steps.
  std::map<std::string, const edit::Tensor*> parts;
  for (const edit::Tensor& part : model.parts.tensors) parts.emplace(fmt::format("{}:{}", model.name, part.name), &part);
  for (PlannedTensor& described : job.described) {
    std::vector<std::string> inputs, steps;
    for (const std::string& input : described.inputs) {
      const auto found = parts.find(input);
      if (found == parts.end()) continue;
      inputs.insert(inputs.end(), found->second->inputs.begin(), found->second->inputs.end());
      for (const std::string& step : found->second->steps)
        if (std::find(steps.begin(), steps.end(), step) == steps.end()) steps.push_back(step);
    }
    described.inputs = std::move(inputs);
    if (steps.empty()) continue;
    if (described.method.starts_with("encode")) steps.push_back(described.method);
    described.method = joined(steps);
  }
  job.single_file = true;
  job.inputs = std::move(model.inputs);
  job.input_paths = std::move(model.input_paths);
  job.warnings.insert(job.warnings.begin(), model.warnings.begin(), model.warnings.end());
  return job;
}

OutputJob output_job_of(LazyModel model, const fs::path& output) {
  if (output.extension() == ".gguf") {
    const GgufWeightType type = gguf_weight_type({}, model.block_type);
    return gguf_output_job(std::move(model), output, [type](const std::vector<GgufCandidate>& candidates, const GgufMetadata&) {
      return std::vector<GgufWeightType>(candidates.size(), type);
    });
  }
  if (!model.block_type.empty())
    throw Error(ErrorCode::invalid_argument, fmt::format("only GGUF files hold weights as {}", model.block_type), {.key = "dtype"},
                "name an output that ends in .gguf, or another type");
  if (const std::string extension = output.extension().string(); extension == ".npz")
    throw Error(ErrorCode::unsupported, fmt::format("this command does not write {} files", extension), {.file = output.string()},
                "write a folder or a .safetensors file, and convert that");
  OutputJob job;
  job.single_file = output.extension() == ".safetensors";
  job.inputs = std::move(model.inputs);
  job.input_paths = std::move(model.input_paths);
  job.header_metadata = std::move(model.metadata);
  job.warnings = std::move(model.warnings);
  std::map<const TensorInfo*, int> uses;
  for (const edit::Tensor& part : model.parts.tensors) ++uses[part.source.tensor];
  for (edit::Tensor& part : model.parts.tensors) {
    PlannedTensor described;
    described.name = part.name;
    described.dtype = part.values.tensor->dtype;
    described.shape = part.values.tensor->shape;
    described.inputs = std::move(part.inputs);
    described.method = part.steps.empty() ? "copy" : joined(part.steps);
    job.described.push_back(std::move(described));
    if (std::optional<StreamTensor> other = planned(part, uses)) {
      other->name = part.name;
      job.tensors.push_back(*std::move(other));
      continue;
    }
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
    job.tensors.push_back(std::move(tensor));
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
