#include <fmt/format.h>

#include <utility>

#include "adapt/folded_model.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "engine/convert_job.h"
#include "model/config_json.h"
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

}  // namespace

namespace engine {

OutputJob convert_job(const std::shared_ptr<const Checkpoint>& checkpoint, std::string_view model, const fs::path& output, const ConvertOptions& options) {
  if (options.dtype && !is_decodable_float(*options.dtype)) {
    throw Error(ErrorCode::invalid_argument, fmt::format("cannot convert weights to {}", to_string(*options.dtype)), {.key = "dtype"},
                "floating types: F32, F16, BF16, F64, F8_E4M3, F8_E5M2");
  }
  const bool one_file = options.to == "safetensors" || (options.to.empty() && output.extension() == ".safetensors");
  if (!one_file && !options.to.empty() && options.to != "folder") {
    throw Error(ErrorCode::unsupported, fmt::format("weft cannot write '{}' yet", options.to), {.key = "to"}, "folder and safetensors can be written");
  }
  if (options.to.empty() && (output.extension() == ".gguf" || output.extension() == ".npz")) {
    throw Error(ErrorCode::unsupported, fmt::format("weft cannot write {} files yet", output.extension().string()), {.file = output.string()},
                "folders and .safetensors files can be written");
  }
  const fs::path source = checkpoint->path();
  OutputJob job;
  job.inputs = {checkpoint};
  job.input_paths = {source};
  for (const std::string& adapter : adapt::split_adapters(model).adapters) job.input_paths.push_back(resolve_model(adapter).path);
  job.single_file = one_file;
  job.header_metadata = checkpoint->metadata();
  job.ingredients = {{"--dtype", options.dtype ? std::string(to_string(*options.dtype)) : "as stored"}};
  job.warnings.assign(checkpoint->warnings().begin(), checkpoint->warnings().end());
  for (const TensorInfo& info : checkpoint->tensors()) {
    StreamTensor tensor;
    tensor.name = info.name;
    tensor.shape = info.shape;
    tensor.dtype = written_type(info, options);
    tensor.inputs = {{checkpoint, &info}};
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
  if (one_file || !fs::is_directory(source)) return job;
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

JobReport convert(std::string_view model, const fs::path& output, const ConvertOptions& options) {
  const std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint(model, options.open);
  engine::JobBatch batch(options, "converting");
  batch.add(engine::convert_job(checkpoint, model, output, options), output);
  return std::move(batch.run().front());
}

}  // namespace weft
