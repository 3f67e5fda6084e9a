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

JobReport merge_one(const engine::MergeConfig& config, engine::ModelCache& models, std::vector<std::string> warnings, const fs::path& output,
                    const MergeOptions& options) {
  engine::MergePlan plan = engine::plan_merge(config, models, output, options);
  engine::FolderJob job;
  job.what = "merging";
  job.tensors = std::move(plan.tensors);
  job.described = std::move(plan.described);
  job.companions = std::move(plan.companions);
  job.inputs = std::move(plan.inputs);
  job.input_paths = std::move(plan.input_paths);
  job.index_metadata = {{"weft_version", std::string(version())}};
  job.warnings = std::move(warnings);
  // What planning the tensors found, then what the methods found while they were made, is told by the stream.
  job.warnings.insert(job.warnings.end(), plan.warnings.begin(), plan.warnings.end());
  job.write_into_existing = options.write_into_existing;
  return engine::run_folder_job(std::move(job), output, options);
}

/// A named result that an earlier run finished.
bool is_complete(const fs::path& folder) {
  return fs::exists(folder / "config.json") && (fs::exists(folder / "model.safetensors") || fs::exists(folder / "model.safetensors.index.json"));
}

}  // namespace

JobReport merge_models(std::string_view config_text, const fs::path& config_name, const fs::path& output, const MergeOptions& options) {
  std::vector<std::string> warnings;
  const engine::MergeConfig config = engine::parse_merge_config(config_text, config_name.string(), {.strict = options.strict}, warnings);
  engine::ModelCache models(options.transformers_cache);
  return merge_one(config, models, std::move(warnings), output, options);
}

std::vector<JobReport> merge_multi(std::string_view config_text, const fs::path& config_name, const std::optional<fs::path>& output,
                                   const MultiMergeOptions& options) {
  std::vector<std::string> warnings;
  const std::vector<engine::MergeConfig> configs = engine::parse_merge_configs(config_text, config_name.string(), {.strict = options.strict}, warnings);
  for (const engine::MergeConfig& config : configs) {
    if (config.name.empty() && !output) {
      throw Error(ErrorCode::invalid_argument, "one of the configs has no name, so its result needs a place", {.file = config_name.string()},
                  "give an output folder, or a name in the config");
    }
    if (!config.name.empty() && !options.intermediate_dir) {
      throw Error(ErrorCode::invalid_argument, fmt::format("the result '{}' needs a folder to be kept in", config.name), {.file = config_name.string()},
                  "give the folder for named results with -I");
    }
  }
  // Every model is opened once, and the results of one config are inputs of the next while they are still in the page cache.
  engine::ModelCache models(options.transformers_cache);
  std::vector<JobReport> reports;
  for (const engine::MergeConfig& config : configs) {
    const fs::path place = config.name.empty() ? *output : *options.intermediate_dir / config.name;
    if (!config.name.empty()) models.set_alias(config.name, place);
    if (options.lazy && !config.name.empty() && !options.force && is_complete(place)) {
      JobReport skipped;
      skipped.output = place;
      skipped.warnings.push_back(fmt::format("'{}' is already there and was kept", place.string()));
      if (options.on_warning) options.on_warning(skipped.warnings.back());
      reports.push_back(std::move(skipped));
      continue;
    }
    reports.push_back(merge_one(config, models, std::exchange(warnings, {}), place, options));
  }
  return reports;
}

}  // namespace weft
