#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <utility>

#include "adapt/folded_model.h"
#include "base/budget.h"
#include "base/progress.h"
#include "checkpoint/gguf.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "checkpoint/npy.h"
#include "checkpoint/npz.h"
#include "checkpoint/tensor_view.h"
#include "engine/convert_job.h"
#include "engine/gguf_output.h"
#include "engine/model_config.h"
#include "model/config_json.h"
#include "model/gguf_model.h"
#include "weft/error.h"
#include "weft/inspect.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

/// The type that a tensor is written in: floating ones change, all others stay.
DType written_type(const TensorInfo& tensor, const ConvertOptions& options) {
  if (!options.dtype || !is_decodable_float(tensor.dtype)) return tensor.dtype;
  if (*options.dtype == DType::f4 && (tensor.shape.empty() || tensor.shape.back() % 2 != 0)) return tensor.dtype;
  return *options.dtype;
}

/// A GGUF file, or a folder of its parts.
engine::OutputJob job_for_gguf(const std::shared_ptr<const Checkpoint>& checkpoint, std::string_view model, const ConvertOptions& options) {
  const engine::GgufWeightType type = engine::gguf_weight_type(options.dtype, options.block_type);
  if (as_gguf(*checkpoint) != nullptr) return engine::gguf_copy_job(std::string(model), checkpoint, type);
  if (const std::optional<model::HuggingFaceModel> folded = adapt::held_model(checkpoint)) return engine::gguf_fold_job(std::string(model), *folded, type);
  const fs::path source = checkpoint->path();
  const std::optional<fs::path> folder = folder_of_model(source);
  std::optional<Json> config = folder ? read_model_config(*folder) : std::nullopt;
  if (!config)
    throw Error(ErrorCode::not_found, "a GGUF file needs what config.json says, and there is none", {.file = source.string()}, "name the model's folder");
  std::vector<std::string> warnings;
  adapt::follow_in_config(*checkpoint, *config, warnings);
  engine::OutputJob job = engine::gguf_job({std::string(model), checkpoint, *std::move(config), *folder, engine::title_of(source)}, type);
  job.warnings.insert(job.warnings.begin(), warnings.begin(), warnings.end());
  return job;
}

}  // namespace

namespace engine {

OutputJob convert_job(const std::shared_ptr<const Checkpoint>& checkpoint, std::string_view model, const fs::path& output,
                      const ConvertOptions& options) {
  if (options.dtype && !is_decodable_float(*options.dtype)) {
    throw Error(ErrorCode::invalid_argument, fmt::format("cannot convert weights to {}", to_string(*options.dtype)), {.key = "dtype"},
                "floating types: F32, F16, BF16, F64, F8_E4M3, F8_E5M2");
  }
  const bool to_gguf = options.to == "gguf" || (options.to.empty() && output.extension() == ".gguf");
  if (!options.block_type.empty() && !to_gguf)
    throw Error(ErrorCode::invalid_argument, fmt::format("only GGUF files hold weights as {}", options.block_type), {.key = "dtype"},
                "name an output that ends in .gguf, or another type");
  const bool one_file = options.to == "safetensors" || (options.to.empty() && output.extension() == ".safetensors");
  if (!one_file && !to_gguf && !options.to.empty() && options.to != "folder") {
    throw Error(ErrorCode::unsupported, fmt::format("weft cannot write '{}' yet", options.to), {.key = "to"}, "folder, safetensors, gguf and npz can be written");
  }
  const fs::path source = checkpoint->path();
  // A GGUF file is converted as the Hugging Face model that it holds.
  std::optional<model::HuggingFaceModel> held;
  if (!to_gguf) held = adapt::held_model(checkpoint);
  const std::shared_ptr<const Checkpoint>& values = held ? held->checkpoint : checkpoint;

  OutputJob job;
  if (to_gguf) job = job_for_gguf(checkpoint, model, options);
  job.inputs = {checkpoint};
  job.input_paths = {source};
  for (const std::string& adapter : adapt::split_adapters(model).adapters) job.input_paths.push_back(resolve_model(adapter).path);
  job.single_file = to_gguf ? output.extension() == ".gguf" : one_file;
  job.ingredients = {{"--dtype", options.dtype ? std::string(to_string(*options.dtype)) : options.block_type.empty() ? "as stored" : options.block_type}};
  job.warnings.insert(job.warnings.begin(), checkpoint->warnings().begin(), checkpoint->warnings().end());
  if (to_gguf) return job;
  if (held)
    job.warnings.insert(job.warnings.end(), held->warnings.begin(), held->warnings.end());
  else
    job.header_metadata = checkpoint->metadata();
  for (const TensorInfo& info : values->tensors()) {
    StreamTensor tensor;
    tensor.name = info.name;
    tensor.shape = info.shape;
    tensor.dtype = written_type(info, options);
    if (held && !options.dtype)
      if (const auto original = held->original_types.find(info.name); original != held->original_types.end()) tensor.dtype = original->second;
    tensor.inputs = {{values, &info}};
    tensor.input_names = {std::string(model)};
    // A copy keeps whatever is there; only rounding needs values that make sense.
    tensor.checks_finite = tensor.dtype != info.dtype;
    PlannedTensor described;
    described.name = info.name;
    described.dtype = tensor.dtype;
    described.shape = info.shape;
    described.inputs = {fmt::format("{}:{}", model, info.name)};
    described.method = tensor.dtype == info.dtype ? "copy" : "cast";
    job.tensors.push_back(std::move(tensor));
    job.described.push_back(std::move(described));
  }
  if (held && !one_file) {
    if (options.dtype) model::set_dtype(held->config, *options.dtype);
    job.companions.push_back({"config.json", write_json(held->config, 2) + "\n"});
    for (auto& [name, content] : held->files) job.companions.push_back({name, std::move(content)});
  }
  if (held || one_file || !fs::is_directory(source)) return job;
  for (const std::string& name : companion_files(source)) {
    if (name == "config.json") {
      Json config = read_json_file(source / name);
      const std::string before = write_json(config);
      adapt::follow_in_config(*checkpoint, config, job.warnings);
      if (options.dtype) model::set_dtype(config, *options.dtype);
      if (write_json(config) != before) {
        job.companions.push_back({name, write_json(config, 2) + "\n"});
        continue;
      }
    }
    job.companions.push_back({.name = name, .copy_of = source / name});
  }
  return job;
}

}  // namespace engine

namespace {

/// One archive of NumPy's arrays. Types that NumPy does not know become float32, which holds their values.
JobReport convert_to_npz(const std::shared_ptr<const Checkpoint>& checkpoint, std::string_view model, const fs::path& output,
                         const ConvertOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (!options.block_type.empty())
    throw Error(ErrorCode::invalid_argument, fmt::format("only GGUF files hold weights as {}", options.block_type), {.key = "dtype"},
                "name an output that ends in .gguf, or another type");
  if (options.dtype && npy_dtype(*options.dtype) != *options.dtype)
    throw Error(ErrorCode::unsupported, fmt::format("NumPy has no type for {}", to_string(*options.dtype)), {.key = "dtype"},
                "give float32, float16 or float64");
  std::error_code ignored;
  for (const CheckpointFile& file : checkpoint->files())
    if (fs::weakly_canonical(file.path, ignored) == fs::weakly_canonical(output, ignored))
      throw Error(ErrorCode::invalid_argument, fmt::format("the output '{}' is also an input", output.string()), {.file = output.string()},
                  "choose another output");
  JobReport report;
  report.output = output;
  report.dry_run = options.dry_run;
  report.files = {output.filename().string()};
  report.warnings.assign(checkpoint->warnings().begin(), checkpoint->warnings().end());
  std::vector<TensorRef> tensors;
  for (const TensorInfo& info : checkpoint->tensors()) {
    const TensorRef stored{checkpoint, &info};
    const DType dtype = npy_dtype(written_type(info, options));
    const TensorRef written = dtype == info.dtype ? stored : cast_tensor(stored, dtype);
    PlannedTensor planned;
    planned.name = info.name;
    planned.dtype = dtype;
    planned.shape = info.shape;
    planned.inputs = {fmt::format("{}:{}", model, info.name)};
    planned.method = dtype == info.dtype ? "copy" : "cast";
    planned.file = report.files.front();
    planned.size_bytes = written.tensor->size_bytes;
    report.num_parameters += info.num_elements;
    report.size_bytes += written.tensor->size_bytes;
    report.bytes_read += bytes_in_file(info);
    report.tensors.push_back(std::move(planned));
    tensors.push_back(written);
  }
  report.num_tensors = tensors.size();
  if (options.dry_run) return report;
  ProgressMeter progress(options.on_progress, "converting", report.size_bytes);
  write_npz(tensors, output, options.force, [&](std::uint64_t bytes) {
    if (options.cancel && options.cancel->load(std::memory_order_relaxed)) throw Error(ErrorCode::interrupted, "converting was cancelled");
    progress.add(bytes);
  });
  progress.finish();
  checkpoint->check_unchanged();
  report.bytes_written = report.size_bytes;
  report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.peak_memory_bytes = peak_resident_bytes();
  return report;
}

}  // namespace

JobReport convert(std::string_view model, const fs::path& output, const ConvertOptions& options) {
  const std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint(model, options.open);
  if (options.to == "npz" || (options.to.empty() && output.extension() == ".npz")) return convert_to_npz(checkpoint, model, output, options);
  engine::JobBatch batch(options, "converting");
  batch.add(engine::convert_job(checkpoint, model, output, options), output);
  return std::move(batch.run().front());
}

}  // namespace weft
