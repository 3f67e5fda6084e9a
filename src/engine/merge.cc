#include "weft/merge.h"

#include <fmt/format.h>

#include <utility>

#include "engine/merge_plan.h"
#include "engine/output_job.h"
#include "weft/error.h"
#include "weft/version.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

engine::OutputJob plan_one(const engine::MergeConfig& config, engine::ModelCache& models, std::vector<std::string> warnings, const fs::path& output,
                           const MergeOptions& options) {
  engine::MergePlan plan = engine::plan_merge(config, models, output, options);
  engine::OutputJob job;
  job.tensors = std::move(plan.tensors);
  job.described = std::move(plan.described);
  job.companions = std::move(plan.companions);
  job.inputs = std::move(plan.inputs);
  job.input_paths = std::move(plan.input_paths);
  job.index_metadata = {{"weft_version", std::string(version())}};
  job.warnings = std::move(warnings);
  job.warnings.insert(job.warnings.end(), plan.warnings.begin(), plan.warnings.end());
  job.write_into_existing = options.write_into_existing;
  job.ingredients = {{"the config", config.text},
                     {"--lora-merge-dtype", options.lora_merge_dtype ? std::string(to_string(*options.lora_merge_dtype)) : "as stored"}};
  return job;
}

/// A named result that an earlier run finished.
bool is_complete(const fs::path& folder) {
  return fs::exists(folder / "config.json") && (fs::exists(folder / "model.safetensors") || fs::exists(folder / "model.safetensors.index.json"));
}

}  // namespace

JobReport merge_models(std::string_view config_text, const fs::path& config_name, const fs::path& output, const MergeOptions& options) {
  std::vector<std::string> warnings;
  const engine::MergeConfig config = engine::parse_merge_config(config_text, config_name.string(), {.strict = options.strict}, warnings);
  engine::ModelCache models(options.transformers_cache, options.lora_merge_dtype);
  engine::JobBatch batch(options, "merging");
  batch.add(plan_one(config, models, std::move(warnings), output, options), output);
  return std::move(batch.run().front());
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
    const engine::JobBatch::Result result =
        batch.add(plan_one(config, models, std::exchange(warnings, {}), place, options), place, !config.name.empty());
    if (!config.name.empty()) models.set_result(config.name, result.folder, result.checkpoint);
    added.push_back(i);
  }
  std::vector<JobReport> done = batch.run();
  for (std::size_t k = 0; k < added.size(); ++k) reports[added[k]] = std::move(done[k]);
  return reports;
}

}  // namespace weft
