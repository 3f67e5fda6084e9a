#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>
#include <utility>

#include "adapt/folded_model.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/model_folder.h"
#include "engine/gguf_output.h"
#include "engine/lazy_model.h"
#include "engine/merge_plan.h"
#include "engine/quantize_format.h"
#include "engine/recipe.h"
#include "engine/stream_checkpoint.h"
#include "weft/error.h"
#include "weft/recipe.h"
#include "weft/version.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using engine::LazyModel;
using engine::ScratchFolder;

class Runner {
 public:
  Runner(engine::Recipe recipe, const RecipeOptions& options, std::vector<std::string> warnings)
      : recipe_(std::move(recipe)), options_(options), warnings_(std::move(warnings)), cache_(options.transformers_cache) {
    if (recipe_.seed && !options.seed_given) options_.seed = *recipe_.seed;
  }

  RecipeReport run(const fs::path& output) {
    RecipeReport report;
    std::set<std::string> used;
    for (const engine::Step& step : recipe_.steps) {
      RecipeStep described;
      described.name = step.name;
      described.verb = step.verb();
      LazyModel result = std::visit([&](const auto& what) { return plan(what, output, described); }, step.what);
      described.num_tensors = result.parts.tensors.size();
      for (const edit::Tensor& tensor : result.parts.tensors) described.size_bytes += tensor.values.tensor->size_bytes;
      used.insert(described.inputs.begin(), described.inputs.end());
      report.steps.push_back(std::move(described));
      result.name = step.name;
      results_.insert_or_assign(step.name, std::move(result));
    }
    for (std::size_t i = 0; i + 1 < recipe_.steps.size(); ++i) {
      if (!used.contains(recipe_.steps[i].name))
        warnings_.push_back(fmt::format("the result of '{}' is used by no later step", recipe_.steps[i].name));
    }
    LazyModel last = std::move(results_.at(recipe_.steps.back().name));
    results_.erase(recipe_.steps.back().name);
    last.warnings.insert(last.warnings.begin(), warnings_.begin(), warnings_.end());
    const std::string made_by = provenance(report);
    replace_companion(last, "weft_provenance.json", made_by);
    if (const auto* quantize = std::get_if<engine::QuantizingStep>(&recipe_.steps.back().what)) {
      QuantizeOptions options = quantize->options;
      static_cast<JobOptions&>(options) = options_;
      const QuantizeReport made = engine::quantize_made(std::move(last), output, options, {{"the recipe", made_by}});
      static_cast<JobReport&>(report) = made;
      report.steps.back().num_tensors = made.num_tensors;
      report.steps.back().size_bytes = made.size_bytes;
      finish(report);
      return report;
    }
    engine::OutputJob job = engine::output_job_of(std::move(last), output);
    job.ingredients = {{"the recipe", made_by}};
    job.index_metadata = {{"weft_version", std::string(version())}};
    engine::JobBatch batch(options_, "running");
    batch.add(std::move(job), output);
    static_cast<JobReport&>(report) = std::move(batch.run().front());
    finish(report);
    return report;
  }

 private:
  /// What the steps read and had to say while they were read.
  void finish(RecipeReport& report) {
    // The walk counts what it was given; where another step computed that, its inputs were read.
    for (const auto& stream : streams_) report.bytes_read += stream->bytes_read() - stream->bytes_given();
    // What methods had to say where a tensor was read by another step.
    for (const auto& stream : streams_) {
      for (const std::string& warning : stream->method_warnings()) {
        report.warnings.push_back(warning);
        if (options_.on_warning) options_.on_warning(warning);
      }
    }
  }

  /// The result of an earlier step, or a model.
  LazyModel model(const std::string& name, RecipeStep& described) {
    described.inputs.push_back(name);
    if (const auto found = results_.find(name); found != results_.end()) return found->second;
    const adapt::ModelWithAdapters parts = adapt::split_adapters(name);
    std::string paths = resolve_model(parts.model, options_.transformers_cache).path.string();
    for (const std::string& adapter : parts.adapters) paths += "+" + resolve_model(adapter, options_.transformers_cache).path.string();
    return engine::open_lazy_model(paths);
  }

  LazyModel plan(const engine::EditStep& step, const fs::path&, RecipeStep& described) {
    described.summary = fmt::format("{} operation{}", step.requests.size(), step.requests.size() == 1 ? "" : "s");
    LazyModel lazy = model(step.model, described);
    std::vector<std::unique_ptr<edit::Operation>> operations;
    for (const edit::Request& request : step.requests) operations.push_back(edit::parse_operation(request));
    static_cast<void>(engine::apply_operations(lazy, operations, step.requests));
    return lazy;
  }

  LazyModel plan(const engine::ConvertStep& step, const fs::path&, RecipeStep& described) {
    LazyModel lazy = model(step.model, described);
    described.summary = step.dtype ? std::string(to_string(*step.dtype)) : "as it is";
    if (step.dtype) engine::cast_all(lazy, *step.dtype);
    if (!step.block_type.empty()) lazy.block_type = described.summary = step.block_type;
    return lazy;
  }

  LazyModel plan(const engine::QuantizingStep& step, const fs::path&, RecipeStep& described) {
    described.summary = step.options.method.empty() ? step.options.format : fmt::format("{}, {}", step.options.format, step.options.method);
    return model(step.model, described);
  }

  LazyModel plan(const engine::FoldStep& step, const fs::path&, RecipeStep& described) {
    described.summary = step.scale == 1 ? step.adapter : fmt::format("{} times {}", step.scale, step.adapter);
    LazyModel lazy = model(step.model, described);
    const fs::path path = resolve_model(step.adapter, options_.transformers_cache).path;
    const auto adapter = std::make_shared<const adapt::Adapter>(adapt::open_adapter(path));
    const std::shared_ptr<const Checkpoint> folded = adapt::fold_adapter(engine::checkpoint_of(lazy), adapter, {.scale = step.scale});
    std::map<std::string, edit::Tensor> before;
    for (edit::Tensor& tensor : lazy.parts.tensors) before.insert_or_assign(tensor.name, std::move(tensor));
    lazy.parts.tensors.clear();
    for (const TensorInfo& info : folded->tensors()) {
      edit::Tensor tensor{info.name, {folded, &info}, {folded, &info}, {}, {}};
      if (const auto old = before.find(info.name); old != before.end()) {
        tensor.inputs = old->second.inputs;
        tensor.steps = old->second.steps;
      }
      tensor.inputs.push_back(step.adapter);
      tensor.steps.emplace_back("fold");
      lazy.parts.tensors.push_back(std::move(tensor));
    }
    lazy.inputs.push_back(adapter->tensors);
    lazy.input_paths.push_back(path);
    if (lazy.parts.config) {
      adapt::follow_in_config(*folded, *lazy.parts.config, lazy.warnings);
      lazy.config_changed = true;
    }
    return lazy;
  }

  LazyModel plan(const engine::MergeConfig& config, const fs::path& output, RecipeStep& described) {
    described.summary = config.merge_method;
    for (const engine::ModelRef& ref : config.referenced_models()) {
      described.inputs.push_back(ref.written);
      // A name counts before a path, as in mergekit-multi.
      const auto found = ref.model.revision ? results_.end() : results_.find(ref.model.path);
      if (found != results_.end()) hand_over(found->first, found->second);
    }
    MergeOptions options;
    static_cast<JobOptions&>(options) = options_;
    options.strict = options_.strict;
    options.allow_crimes = options_.allow_crimes;
    options.write_model_card = false;
    options.transformers_cache = options_.transformers_cache;
    engine::MergePlan plan = engine::plan_merge(config, cache_, output, options);
    streams_.emplace_back();
    return engine::lazy_model_of(std::move(plan), described.name, options_, streams_.back());
  }

  /// Makes a result known to merges: its tensors as they are now, and a folder with the files beside them.
  void hand_over(const std::string& name, LazyModel& result) {
    if (!handed_.insert(name).second) return;
    auto folder = std::make_unique<ScratchFolder>();
    engine::write_companions(result, folder->path());
    cache_.set_result(name, folder->path(), engine::checkpoint_of(result));
    folders_.push_back(std::move(folder));
  }

  static void replace_companion(LazyModel& model, const std::string& name, std::string content) {
    std::erase_if(model.companions, [&](const engine::CompanionFile& file) { return file.name == name; });
    if (model.parts.config) model.companions.push_back({.name = name, .content = std::move(content)});
  }

  /// What made this output; the same on every machine.
  std::string provenance(const RecipeReport& report) const {
    Json root;
    root.set("weft_version", version());
    root.set("command", "run");
    root.set("seed", options_.seed);
    root.set("recipe", recipe_.text);
    Json::Array steps;
    for (const RecipeStep& step : report.steps) {
      Json entry;
      entry.set("name", step.name);
      entry.set("verb", step.verb);
      Json::Array inputs;
      for (const std::string& input : step.inputs) inputs.emplace_back(input);
      entry.set("inputs", Json(std::move(inputs)));
      steps.push_back(std::move(entry));
    }
    root.set("steps", Json(std::move(steps)));
    return write_json(root, 2) + "\n";
  }

  engine::Recipe recipe_;
  RecipeOptions options_;
  std::vector<std::string> warnings_;
  engine::ModelCache cache_;
  std::map<std::string, LazyModel> results_;
  std::vector<std::shared_ptr<engine::StreamCheckpoint>> streams_;
  std::set<std::string> handed_;
  std::vector<std::unique_ptr<ScratchFolder>> folders_;
};

}  // namespace

RecipeReport run_recipe(std::string_view recipe_text, const fs::path& recipe_name, const std::optional<fs::path>& output,
                        const RecipeOptions& options) {
  std::vector<std::string> warnings;
  engine::Recipe recipe = engine::parse_recipe(recipe_text, recipe_name.string(), {.strict = options.strict}, warnings);
  if (!output && !recipe.output)
    throw Error(ErrorCode::invalid_argument, "the recipe does not say where its result goes", {.file = recipe_name.string(), .key = "output"},
                "add 'output: PATH', or name it on the command line");
  const fs::path place = output ? *output : fs::path(*recipe.output);
  return Runner(std::move(recipe), options, std::move(warnings)).run(place);
}

}  // namespace weft
