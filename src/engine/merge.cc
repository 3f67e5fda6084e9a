#include "weft/merge.h"

#include <fmt/format.h>

#include <utility>

#include "engine/lazy_model.h"
#include "engine/merge_by_data.h"
#include "engine/merge_plan.h"
#include "engine/output_job.h"
#include "weft/error.h"
#include "weft/version.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

/// A merge on its way into an output.
struct Planned {
  engine::OutputJob job;
  std::shared_ptr<engine::StreamCheckpoint> stream;  ///< what computes it, where the output is arranged otherwise than the models; else null
};

Planned plan_one(const engine::MergeConfig& config, engine::ModelCache& models, std::vector<std::string> warnings, const fs::path& output,
                 bool is_folder, const MergeOptions& options) {
  // As for every command, OUT's name tells its form; mergekit's programs make folders of any name.
  const std::string form = is_folder || options.write_into_existing ? std::string() : output.extension().string();
  const bool one_file = form == ".safetensors";
  MergeOptions used = options;
  if (one_file || form == ".gguf") used.write_model_card = false;
  engine::MergePlan plan = engine::plan_merge(config, models, output, used);
  Planned planned;
  engine::OutputJob& job = planned.job;
  if (form == ".gguf" || form == ".npz") {
    job = engine::output_job_of(engine::lazy_model_of(std::move(plan), output.string(), options, planned.stream), output);
  } else {
    job.tensors = std::move(plan.tensors);
    job.described = std::move(plan.described);
    if (!one_file) job.companions = std::move(plan.companions);
    job.inputs = std::move(plan.inputs);
    job.input_paths = std::move(plan.input_paths);
    job.index_metadata = {{"weft_version", std::string(version())}};
    job.warnings = std::move(plan.warnings);
    job.single_file = one_file;
    job.write_into_existing = options.write_into_existing;
  }
  job.warnings.insert(job.warnings.begin(), warnings.begin(), warnings.end());
  job.ingredients = {{"the config", config.text},
                     {"--lora-merge-dtype", options.lora_merge_dtype ? std::string(to_string(*options.lora_merge_dtype)) : "as stored"}};
  return planned;
}

/// What only who computed the tensors knows: how much was read, and what methods had to say.
void complete(JobReport& report, const std::shared_ptr<engine::StreamCheckpoint>& stream, const MergeOptions& options) {
  if (stream == nullptr || report.dry_run) return;
  report.bytes_read += stream->bytes_read() - stream->bytes_given();
  for (const std::string& warning : stream->method_warnings()) {
    report.warnings.push_back(warning);
    if (options.on_warning) options.on_warning(warning);
  }
}

/// A named result that an earlier run finished.
bool is_complete(const fs::path& folder) {
  return fs::exists(folder / "config.json") && (fs::exists(folder / "model.safetensors") || fs::exists(folder / "model.safetensors.index.json"));
}

}  // namespace

JobReport merge_models(std::string_view config_text, const fs::path& config_name, const fs::path& output, const MergeOptions& options) {
  if (engine::is_merge_by_data(config_text)) return engine::merge_by_data(config_text, config_name, output, options);
  std::vector<std::string> warnings;
  const engine::MergeConfig config = engine::parse_merge_config(config_text, config_name.string(), {.strict = options.strict}, warnings);
  engine::ModelCache models(options.transformers_cache, options.lora_merge_dtype);
  engine::JobBatch batch(options, "merging");
  Planned planned = plan_one(config, models, std::move(warnings), output, false, options);
  batch.add(std::move(planned.job), output);
  JobReport report = std::move(batch.run().front());
  complete(report, planned.stream, options);
  return report;
}

std::vector<JobReport> merge_multi(std::string_view config_text, const fs::path& config_name, const std::optional<fs::path>& output,
                                   const MultiMergeOptions& options) {
  std::vector<std::string> warnings;
  const std::vector<engine::MergeConfig> configs =
      engine::parse_merge_configs(config_text, config_name.string(), {.strict = options.strict}, warnings);
  for (const engine::MergeConfig& config : configs) {
    if (config.name.empty() && !output) {
      throw Error(ErrorCode::invalid_argument, "one of the configs has no name, so its result needs a place", {.file = config_name.string()},
                  "give an output folder, or a name in the config");
    }
    if (!config.name.empty() && !options.intermediate_dir) {
      throw Error(ErrorCode::invalid_argument, fmt::format("the result '{}' needs a folder to be kept in", config.name),
                  {.file = config_name.string()}, "give the folder for named results with -I");
    }
  }
  // Every model is opened once, and all results are made in one walk: what they share is read for all of them, and a result that is an input of
  // another is read where it has just been written.
  engine::ModelCache models(options.transformers_cache, options.lora_merge_dtype);
  engine::JobBatch batch(options, "merging");
  std::vector<JobReport> reports(configs.size());
  std::vector<std::size_t> added;
  std::vector<std::shared_ptr<engine::StreamCheckpoint>> streams(configs.size());
  for (std::size_t i = 0; i < configs.size(); ++i) {
    const engine::MergeConfig& config = configs[i];
    const fs::path place = config.name.empty() ? *output : *options.intermediate_dir / config.name;
    if (options.lazy && !config.name.empty() && !options.force && is_complete(place)) {
      models.set_result(config.name, place, nullptr);
      reports[i].output = place;
      reports[i].warnings.push_back(fmt::format("'{}' is already there and was kept", place.string()));
      if (options.on_warning) options.on_warning(reports[i].warnings.back());
      continue;
    }
    Planned planned = plan_one(config, models, std::exchange(warnings, {}), place, !config.name.empty(), options);
    streams[i] = planned.stream;
    const engine::JobBatch::Result result = batch.add(std::move(planned.job), place, !config.name.empty());
    if (!config.name.empty()) models.set_result(config.name, result.folder, result.checkpoint);
    added.push_back(i);
  }
  std::vector<JobReport> done = batch.run();
  for (std::size_t k = 0; k < added.size(); ++k) {
    reports[added[k]] = std::move(done[k]);
    complete(reports[added[k]], streams[added[k]], options);
  }
  return reports;
}

}  // namespace weft
