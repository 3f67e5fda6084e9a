#include "weft/adapter.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "adapt/folded_model.h"
#include "adapt/gguf_lora.h"
#include "adapt/lora.h"
#include "adapt/lora_names.h"
#include "base/budget.h"
#include "base/check.h"
#include "base/file.h"
#include "base/text.h"
#include "checkpoint/gguf_writer.h"
#include "checkpoint/model_folder.h"
#include "checkpoint/output.h"
#include "engine/convert_job.h"
#include "engine/gguf_output.h"
#include "engine/model_config.h"
#include "engine/units.h"
#include "math/convert.h"
#include "model/architecture.h"
#include "weft/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

adapt::Adapter open_named(std::string_view adapter) { return adapt::open_adapter(resolve_model(adapter).path); }

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void refuse_input_as_output(const fs::path& output, const fs::path& input) {
  std::error_code ignored;
  const fs::path out = fs::weakly_canonical(output, ignored), in = fs::weakly_canonical(input, ignored);
  if (out == in || (fs::is_regular_file(in, ignored) && out == in.parent_path()))
    throw Error(ErrorCode::invalid_argument, fmt::format("the output '{}' is also an input", output.string()), {.file = output.string()},
                "choose another output");
}

/// What a report says of tensors, before or after they are written.
void describe(JobReport& report, const adapt::StoredAdapter& adapter, const std::string& method, std::string_view from) {
  for (const adapt::StoredTensor& tensor : adapter.tensors) {
    PlannedTensor planned;
    planned.name = tensor.name;
    planned.dtype = tensor.dtype;
    planned.shape = tensor.shape;
    planned.inputs = {std::string(from)};
    planned.method = method;
    planned.size_bytes = tensor.bytes.size();
    std::uint64_t count = 1;
    for (const std::int64_t dim : tensor.shape) count *= static_cast<std::uint64_t>(dim);
    report.num_parameters += count;
    report.size_bytes += tensor.bytes.size();
    report.tensors.push_back(std::move(planned));
  }
  report.num_tensors = adapter.tensors.size();
}

void warn(JobReport& report, const JobOptions& options, std::string text) {
  if (options.on_warning) options.on_warning(text);
  report.warnings.push_back(std::move(text));
}

/// Writes an adapter: a folder with its config, or, where the form has none, one file.
void write_adapter(const adapt::StoredAdapter& adapter, const fs::path& output, const JobOptions& options, JobReport& report) {
  const bool is_folder = !adapter.config.is_null();
  std::vector<TensorSpec> specs;
  for (const adapt::StoredTensor& tensor : adapter.tensors) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  OutputLayout layout;
  if (adapter.gguf) {
    std::vector<GgufTensorSpec> tensors;
    for (const adapt::StoredTensor& tensor : adapter.tensors)
      tensors.push_back({tensor.name, gguf_type_of(tensor.dtype).value(), nullptr, tensor.dtype, tensor.shape});
    layout = plan_gguf(tensors, *adapter.gguf, 0, output.stem().string());
  } else {
    layout = plan_safetensors(specs, 0, {{"format", "pt"}}, "adapter_model");
  }
  if (!is_folder) layout.files.front().name = output.filename().string();
  report.output = output;
  report.dry_run = options.dry_run;
  report.files = {layout.files.front().name};
  if (is_folder) report.files.emplace_back("adapter_config.json");
  for (std::size_t i = 0; i < report.tensors.size(); ++i) {
    report.tensors[i].file = layout.files.front().name;
    report.tensors[i].offset_bytes = layout.tensors[i].offset_bytes;
  }
  if (options.dry_run) return;
  const Existing existing = options.force ? Existing::replace : Existing::refuse;
  const auto fill = [&](Output& out) {
    out.create_files(std::move(layout));
    for (std::size_t i = 0; i < adapter.tensors.size(); ++i) out.write_tensor(i, 0, adapter.tensors[i].bytes);
    out.commit();
    for (const std::string& text : out.warnings()) warn(report, options, text);
  };
  if (is_folder) {
    OutputFolder out(output, existing);
    out.write_text("adapter_config.json", write_json(adapter.config, 2) + "\n");
    fill(out);
  } else {
    OutputFile out(output, existing);
    fill(out);
  }
  report.bytes_written = report.size_bytes;
  report.peak_memory_bytes = peak_resident_bytes();
}

// ---- Extraction ---------------------------------------------------------------------------------------------------------------------------

/// A pattern that is looked for anywhere in a name; empty: nothing.
class NamePattern {
 public:
  NamePattern(const std::string& pattern, const char* option) {
    if (pattern.empty()) return;
    RE2::Options options;
    options.set_log_errors(false);
    re_ = std::make_unique<RE2>(pattern, options);
    if (!re_->ok())
      throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is no regular expression: {}", printable(pattern), re_->error()), {.key = option});
  }
  [[nodiscard]] bool is_given() const { return re_ != nullptr; }
  [[nodiscard]] bool matches(std::string_view name) const { return re_ && RE2::PartialMatch(re2::StringPiece(name.data(), name.size()), *re_); }

 private:
  std::unique_ptr<RE2> re_;
};

std::vector<float> read_values(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> bytes(checked_size(tensor.size_bytes, "tensor"));
  checkpoint.read_bytes(tensor, 0, bytes);
  std::vector<float> values(checked_size(tensor.num_elements, "tensor"));
  math::decode(tensor.dtype, bytes, values);
  return values;
}

/// A model with Hugging Face's names, whatever holds it, and its config.
std::shared_ptr<const Checkpoint> open_as_hugging_face(std::string_view model, std::optional<Json>* config = nullptr) {
  std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint(model);
  if (std::optional<model::HuggingFaceModel> held = adapt::held_model(checkpoint)) {
    if (config != nullptr) *config = std::move(held->config);
    return held->checkpoint;
  }
  if (config == nullptr) return checkpoint;
  if (const std::optional<fs::path> folder = folder_of_model(checkpoint->path())) *config = read_model_config(*folder);
  if (config->has_value()) {
    std::vector<std::string> ignored;
    adapt::follow_in_config(*checkpoint, **config, ignored);
  }
  return checkpoint;
}

class Extraction {
 public:
  Extraction(std::string_view base, std::string_view tuned, const ExtractOptions& options)
      : options_(options),
        base_name_(base),
        base_(open_as_hugging_face(base)),
        tuned_(open_as_hugging_face(tuned, &config_)),
        modules_(options.modules, "--modules"),
        exclude_(options.exclude, "--exclude") {
    if (!options.rank && !options.energy)
      throw Error(ErrorCode::invalid_argument, "extraction needs to know how much to keep", {.key = "rank"}, "give --rank N or --energy SHARE");
    if (options.rank && *options.rank == 0) throw Error(ErrorCode::invalid_argument, "a rank of 0 keeps nothing", {.key = "rank"});
    if (options.energy && !(*options.energy > 0 && *options.energy <= 1))
      throw Error(ErrorCode::invalid_argument, fmt::format("the energy {} is no share above 0 and at most 1", *options.energy), {.key = "energy"});
    limit_ = {options.rank, options.energy, options.smallest};
    if (config_) {
      architecture_ = model::find_architecture(*config_);
      const Json* type = config_->find("model_type");
      // Layers of the kind Conv1D are stored [in, out].
      for (const char* name : {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
        transposed_ = transposed_ || (type && type->string() && *type->string() == name);
    }
  }

  ExtractReport run(const fs::path& output) {
    const auto start = Clock::now();
    refuse_input_as_output(output, base_->path());
    refuse_input_as_output(output, tuned_->path());
    plan();
    compute();
    adapt::StoredAdapter stored = assemble();
    ExtractReport report;
    report.modules = std::move(results_);
    describe(report, stored, "extract", base_name_);
    for (std::string& text : warnings_) warn(report, options_, std::move(text));
    base_->check_unchanged();
    tuned_->check_unchanged();
    write_adapter(stored, output, options_, report);
    report.bytes_read = bytes_read_;
    report.elapsed_seconds = since(start);
    return report;
  }

 private:
  enum class Treatment { low_rank, whole, bias };
  struct Task {
    const TensorInfo* base = nullptr;  ///< null: the base has no such tensor
    const TensorInfo* tuned = nullptr;
    std::string module;
    std::string leaf;
    bool embedding = false;
    Treatment treatment = Treatment::whole;
    // Found:
    bool changed = false;
    adapt::Factors factors;
    std::vector<float> values;
  };

  [[nodiscard]] bool is_saved_by_name(const std::string& module) const {
    return std::any_of(options_.save_modules.begin(), options_.save_modules.end(),
                       [&](const std::string& name) { return module == name || module.ends_with("." + name); });
  }

  void plan() {
    for (const TensorInfo& tensor : tuned_->tensors()) {
      if (!is_decodable_float(tensor.dtype)) continue;
      Task task;
      task.tuned = &tensor;
      task.base = base_->find_tensor(tensor.name);
      const std::size_t dot = tensor.name.rfind('.');
      const std::string last = dot == std::string::npos ? "" : tensor.name.substr(dot + 1);
      const bool has_leaf = last == "weight" || last == "bias";
      task.module = has_leaf ? tensor.name.substr(0, dot) : tensor.name;
      task.leaf = has_leaf ? last : "";
      const model::Role role = model::role_of(architecture_, tensor.name);
      const bool vocabulary = role == model::Role::embed || role == model::Role::head || role == model::Role::position;
      task.embedding = role == model::Role::embed || role == model::Role::position || role == model::Role::token_type;
      if (!task.base) {
        warnings_.push_back(fmt::format("the base has no '{}': it is saved whole", printable(tensor.name)));
      } else if (task.base->shape != tensor.shape &&
                 !(vocabulary && tensor.shape.size() == 2 && task.base->shape.size() == 2 && tensor.shape[1] == task.base->shape[1])) {
        throw Error(ErrorCode::invalid_argument,
                    fmt::format("'{}' is {} in the base and {} in the tuned model", printable(tensor.name), to_string(task.base->shape),
                                to_string(tensor.shape)),
                    {.tensor = printable(tensor.name)}, "the two are no model and its fine-tune");
      }
      const bool is_matrix =
          task.leaf == "weight" && (tensor.shape.size() == 2 || tensor.shape.size() == 4) && task.base && task.base->shape == tensor.shape;
      const bool wanted = (!modules_.is_given() || modules_.matches(task.module)) && !exclude_.matches(task.module) && !is_saved_by_name(task.module);
      if (is_matrix && wanted && (options_.embeddings || !(vocabulary || task.embedding)))
        task.treatment = Treatment::low_rank;
      else if (task.leaf == "bias")
        task.treatment = Treatment::bias;
      // What the patterns leave out is left out; what cannot be low-rank is saved, unless that is not wanted.
      const bool left_out = (is_matrix && !vocabulary && !task.embedding && !is_saved_by_name(task.module) && !wanted) ||
                            (modules_.is_given() && !is_saved_by_name(task.module) && !modules_.matches(task.module)) ||
                            (options_.skip_undecomposable && task.treatment == Treatment::whole && !is_saved_by_name(task.module));
      if (left_out) continue;
      tasks_.push_back(std::move(task));
    }
    if (std::none_of(tasks_.begin(), tasks_.end(), [](const Task& task) { return task.treatment == Treatment::low_rank; }))
      throw Error(ErrorCode::invalid_argument, "no matrix of the model was chosen to become low-rank", {.key = "modules"},
                  "look at the names with 'weft info', and at --modules and --exclude");
  }

  void compute() {
    std::vector<engine::Unit> units;
    for (Task& task : tasks_) {
      // The difference, a copy of it, both sets of vectors, and what LAPACK works in.
      const std::uint64_t per_element = task.treatment == Treatment::low_rank ? 56 : 16;
      const std::uint64_t read_bytes = task.tuned->size_bytes + (task.base ? task.base->size_bytes : 0);
      units.push_back({task.tuned->name, checked_mul(task.tuned->num_elements, per_element, "work space"), read_bytes, [this, &task] { one(task); }});
      if (!options_.dry_run) bytes_read_ += read_bytes;
    }
    engine::run_units(units, options_, "extracting", options_.dry_run ? engine::Units::check : engine::Units::run);
  }

  void one(Task& task) const {
    std::vector<float> tuned = read_values(*tuned_, *task.tuned);
    if (!task.base || task.base->shape != task.tuned->shape) {
      task.changed = true;
      task.values = std::move(tuned);
      return;
    }
    const std::vector<float> base = read_values(*base_, *task.base);
    task.changed = base != tuned;
    if (!task.changed) return;
    if (task.treatment != Treatment::low_rank) {
      task.values = std::move(tuned);
      return;
    }
    const auto rows = static_cast<std::size_t>(tuned.empty() ? 0 : task.tuned->shape[0]), columns = rows == 0 ? 0 : tuned.size() / rows;
    // B A is [out, in]; of what is stored [in, out], and of embeddings, it is the transpose.
    const bool turn = task.embedding || (transposed_ && task.tuned->shape.size() == 2);
    std::vector<double> delta(tuned.size());
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < columns; ++j)
        delta[turn ? j * rows + i : i * columns + j] = static_cast<double>(tuned[i * columns + j]) - static_cast<double>(base[i * columns + j]);
    task.factors = adapt::factorise(delta, turn ? columns : rows, turn ? rows : columns, limit_, adapt::Side::both, options_.seed, task.tuned->name);
  }

  adapt::StoredAdapter assemble() {
    adapt::Lora lora;
    std::set<std::string> adapted, to_save;
    for (Task& task : tasks_) {
      if (options_.dry_run) {  // the most that it can become
        task.changed = true;
        const std::uint64_t rows = static_cast<std::uint64_t>(task.tuned->shape.empty() ? 1 : task.tuned->shape[0]),
                            columns = rows == 0 ? 0 : task.tuned->num_elements / rows;
        task.factors.rank = std::min({limit_.rank.value_or(UINT64_MAX), rows, columns});
      }
      if (!task.changed || task.treatment != Treatment::low_rank) continue;
      results_.push_back({task.module, task.factors.rank, task.factors.norm, task.factors.error, task.factors.randomized});
      if (task.factors.rank == 0) continue;
      adapted.insert(task.module);
      const Shape& shape = task.tuned->shape;
      const auto rank = static_cast<std::int64_t>(task.factors.rank);
      const bool turn = task.embedding || (transposed_ && shape.size() == 2);
      adapt::LoraModule module{task.module, task.embedding, 1, {}, {}};
      module.a.dtype = module.b.dtype = type_of(*task.tuned);
      module.a.shape = {rank, turn ? shape[0] : shape[1]};
      module.b.shape = {turn ? shape[1] : shape[0], rank};
      if (shape.size() == 4) {
        module.a.shape = {rank, shape[1], shape[2], shape[3]};
        module.b.shape = {shape[0], rank, 1, 1};
      }
      module.a.values = std::move(task.factors.right);
      module.b.values = std::move(task.factors.left);
      lora.modules.push_back(std::move(module));
    }
    for (const Task& task : tasks_)
      if (task.changed && task.treatment == Treatment::whole) to_save.insert(task.module);
    const char* biases = "none";
    for (Task& task : tasks_) {
      if (task.treatment == Treatment::low_rank) continue;
      // PEFT wants every tensor of a module that is saved whole.
      if (!task.changed && !to_save.contains(task.module)) continue;
      if (!task.changed && !options_.dry_run) task.values = read_values(*tuned_, *task.tuned);
      adapt::Values values{type_of(*task.tuned), task.tuned->shape, std::move(task.values)};
      std::string name = "base_model.model." + task.module;
      if (task.treatment == Treatment::bias && adapted.contains(task.module)) {
        name += ".base_layer.bias";  // replaces the base's, without rounding a difference
        if (std::string_view(biases) == "none") biases = "lora_only";
      } else {
        if (!task.leaf.empty()) name += "." + task.leaf;
        if (!to_save.contains(task.module)) biases = "all";  // a bias of a module that is not changed otherwise
        if (task.leaf.empty())
          warnings_.push_back(
              fmt::format("'{}' is no module's weight: it is saved whole, which weft reads and PEFT does not", printable(task.module)));
        results_.push_back({task.module, 0, 0, 0, false});
      }
      lora.saved.push_back({std::move(name), std::move(values)});
    }
    if (lora.modules.empty() && lora.saved.empty())
      throw Error(ErrorCode::invalid_argument, "the two models are equal where it was looked", {.file = tuned_->path().string()},
                  "an adapter would change nothing; compare them with 'weft diff'");
    lora.config = config_for(adapted, to_save, biases);
    return adapt::store_lora(lora);
  }

  [[nodiscard]] DType type_of(const TensorInfo& tensor) const {
    if (options_.dtype) return *options_.dtype;
    return tensor.dtype == DType::f16 || tensor.dtype == DType::bf16 ? tensor.dtype : DType::f32;
  }

  [[nodiscard]] Json config_for(const std::set<std::string>& adapted, const std::set<std::string>& to_save, const char* biases) const {
    // A short name stands for all modules of that name; where only some of them changed, each is named.
    const auto leaf = [](const std::string& name) { return name.substr(name.rfind('.') == std::string::npos ? 0 : name.rfind('.') + 1); };
    std::map<std::string, bool> whole;
    for (const std::string& name : adapted) whole.emplace(leaf(name), true);
    for (const TensorInfo& tensor : tuned_->tensors()) {
      if (!tensor.name.ends_with(".weight") || tensor.shape.size() < 2) continue;
      const std::string module = tensor.name.substr(0, tensor.name.size() - 7);
      if (const auto found = whole.find(leaf(module)); found != whole.end() && !adapted.contains(module)) found->second = false;
    }
    std::set<std::string> targets;
    for (const std::string& name : adapted) targets.insert(whole.at(leaf(name)) ? leaf(name) : name);
    const auto list = [](const std::set<std::string>& names) {
      Json::Array array;
      for (const std::string& name : names) array.emplace_back(name);
      return Json(std::move(array));
    };
    Json config;
    const Json* causal = config_ ? config_->find("architectures") : nullptr;
    const bool is_causal = causal && causal->array() && !causal->array()->empty() && causal->array()->front().string() &&
                           causal->array()->front().string()->ends_with("ForCausalLM");
    config.set("task_type", is_causal ? Json("CAUSAL_LM") : Json());
    config.set("base_model_name_or_path", base_name_);
    config.set("target_modules", list(targets));
    config.set("modules_to_save", to_save.empty() ? Json() : list(to_save));
    config.set("bias", biases);
    config.set("fan_in_fan_out", transposed_);
    config.set("lora_dropout", 0.0);
    config.set("use_dora", false);
    config.set("init_lora_weights", true);
    return config;
  }

  const ExtractOptions& options_;
  std::string base_name_;
  std::optional<Json> config_;  ///< of the tuned model
  std::shared_ptr<const Checkpoint> base_, tuned_;
  NamePattern modules_, exclude_;
  adapt::RankLimit limit_;
  const model::Architecture* architecture_ = nullptr;
  bool transposed_ = false;
  std::vector<Task> tasks_;
  std::vector<ExtractedModule> results_;
  std::vector<std::string> warnings_;
  std::uint64_t bytes_read_ = 0;
};

}  // namespace

AdapterInfo inspect_adapter(std::string_view name) {
  const adapt::Adapter adapter = open_named(name);
  AdapterInfo out;
  out.path = adapter.path;
  out.kind = adapter.kind;
  out.base_model = adapter.text("base_model_name_or_path");
  for (const auto& [key, value] : *adapter.config.object()) {
    const bool is_empty =
        value.is_null() || value.boolean() == false || (value.array() && value.array()->empty()) || (value.object() && value.object()->empty());
    if (is_empty || key == "peft_type" || key == "base_model_name_or_path" || key == "auto_mapping" || key == "inference_mode" ||
        key == "peft_version")
      continue;
    out.settings.emplace_back(key, value.string() ? *value.string() : write_json(value));
  }
  for (const TensorInfo& tensor : adapter.tensors->tensors()) {
    out.num_parameters += tensor.num_elements;
    out.size_bytes += tensor.size_bytes;
  }
  for (const adapt::AdapterModule& module : adapter.modules) {
    AdapterInfo::Module row;
    row.name = module.name;
    row.replaces = true;
    for (const auto& [part, tensor] : module.parts) {
      row.num_parameters += tensor->num_elements;
      if (part != "weight" && part != "bias" && !part.empty() && !part.starts_with("base_layer.")) row.replaces = false;
      if ((part == "lora_A" || part == "lora_embedding_A" || part == "hira_A" || part == "delora_A") && !tensor->shape.empty()) {
        // GGUF files stack the matrices of experts.
        const std::size_t axis = adapter.gguf_architecture.empty() || tensor->shape.size() < 3 ? 0 : 1;
        row.rank = static_cast<std::uint64_t>(tensor->shape[axis]);
        if (part.starts_with("lora") && adapter.kind == "LORA") {
          const double rank = adapter.rank_of(module.name);
          row.scale = adapter.alpha_of(module.name) / (adapter.flag("use_rslora") ? std::sqrt(rank) : rank);
        }
      }
    }
    out.modules.push_back(std::move(row));
  }
  return out;
}

JobReport fold_adapter(std::string_view model, std::string_view adapter, const fs::path& output, const FoldAdapterOptions& options) {
  const std::shared_ptr<const Checkpoint> base = open_checkpoint(model, options.open);
  const auto opened = std::make_shared<const adapt::Adapter>(open_named(adapter));
  refuse_input_as_output(output, opened->path);
  adapt::FoldOptions fold;
  fold.scale = options.scale;
  fold.residual_base = options.residual_base;
  const std::shared_ptr<const Checkpoint> folded = adapt::fold_adapter(base, opened, fold);
  engine::OutputJob job = engine::convert_job(folded, fmt::format("{}+{}", model, adapter), output, options);
  job.ingredients.push_back({"--scale", fmt::format("{}", options.scale)});
  job.ingredients.push_back({"the residual base", options.residual_base ? "yes" : "no"});
  engine::JobBatch batch(options, "folding");
  batch.add(std::move(job), output);
  return std::move(batch.run().front());
}

ExtractReport extract_adapter(std::string_view base, std::string_view tuned, const fs::path& output, const ExtractOptions& options) {
  return Extraction(base, tuned, options).run(output);
}

JobReport combine_adapters(const std::vector<std::string>& adapters, const fs::path& output, const CombineOptions& options) {
  const auto start = Clock::now();
  if (adapters.empty()) throw Error(ErrorCode::invalid_argument, "no adapter was named");
  std::vector<double> weights = options.weights;
  if (weights.empty()) weights.assign(adapters.size(), 1.0);
  if (weights.size() != adapters.size())
    throw Error(ErrorCode::invalid_argument, fmt::format("{} weights were given for {} adapters", weights.size(), adapters.size()),
                {.key = "weights"}, "give one for each adapter");
  const std::optional<adapt::Combination> how = options.how == "linear" ? std::optional(adapt::Combination::linear)
                                                : options.how == "cat"  ? std::optional(adapt::Combination::cat)
                                                : options.how == "svd"  ? std::optional(adapt::Combination::svd)
                                                                        : std::nullopt;
  if (!how)
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' is no way to combine adapters", printable(options.how)), {.key = "how"},
                "there are linear, cat and svd");
  if (options.rank && *how != adapt::Combination::svd) throw Error(ErrorCode::invalid_argument, "a rank can be chosen for svd only", {.key = "rank"});
  std::vector<adapt::Lora> loras;
  JobReport report;
  for (const std::string& name : adapters) {
    const adapt::Adapter adapter = open_named(name);
    refuse_input_as_output(output, adapter.path);
    for (const TensorInfo& tensor : adapter.tensors->tensors()) report.bytes_read += tensor.size_bytes;
    loras.push_back(adapt::read_lora(adapter));
    adapter.tensors->check_unchanged();
  }
  const adapt::StoredAdapter stored = adapt::store_lora(adapt::combine(loras, weights, *how, options.rank, options.seed));
  describe(report, stored, options.how, adapters.front());
  write_adapter(stored, output, options, report);
  report.elapsed_seconds = since(start);
  return report;
}

JobReport scale_adapter(std::string_view name, const fs::path& output, double factor, const JobOptions& options) {
  const auto start = Clock::now();
  if (!std::isfinite(factor)) throw Error(ErrorCode::invalid_argument, "the factor must be a finite number", {.key = "X"});
  const adapt::Adapter adapter = open_named(name);
  refuse_input_as_output(output, adapter.path);
  if (!adapter.gguf_architecture.empty())
    throw adapter.error(ErrorCode::unsupported, "the adapter is a GGUF file", {}, "convert it first, or use 'weft adapter fold --scale'");
  static const std::set<std::string> kByAlpha = {"LORA", "LOHA", "LOKR", "GRALORA", "RANDLORA"};
  if (!kByAlpha.contains(adapter.kind) || adapter.flag("use_dora"))
    throw adapter.error(ErrorCode::unsupported,
                        fmt::format("the effect of {} is no product that a factor could scale",
                                    adapter.flag("use_dora") ? "a DoRA adapter" : "an adapter of the kind " + adapter.kind),
                        {}, "'weft adapter fold --scale' goes part of the way with any kind");
  JobReport report;
  adapt::StoredAdapter stored;
  stored.config = adapter.config;
  const auto scaled = [&](const Json& value) {
    const double alpha = value.number().value_or(8) * factor;
    return alpha == std::floor(alpha) && std::abs(alpha) < 1e15 ? Json(static_cast<std::int64_t>(alpha)) : Json(alpha);
  };
  const char* key = adapter.kind == "RANDLORA" ? "randlora_alpha" : adapter.kind == "LORA" ? "lora_alpha" : "alpha";
  const Json* alpha = adapter.config.find(key);
  stored.config.set(key, scaled(alpha ? *alpha : Json(adapter.kind == "RANDLORA" ? 640 : 8)));
  if (Json* patterns = stored.config.find("alpha_pattern"); patterns && patterns->object())
    for (auto& [pattern, value] : *patterns->object()) value = scaled(value);
  bool saves_whole = false;
  for (const adapt::AdapterModule& module : adapter.modules)
    for (const auto& [part, tensor] : module.parts)
      saves_whole = saves_whole || part == "weight" || part == "bias" || part.starts_with("base_layer.") || part == "trainable_tokens_delta";
  for (const TensorInfo& tensor : adapter.tensors->tensors()) {
    adapt::StoredTensor& out = stored.tensors.emplace_back();
    out.name = tensor.name;
    out.dtype = tensor.dtype;
    out.shape = tensor.shape;
    out.bytes.resize(checked_size(tensor.size_bytes, "tensor of an adapter"));
    adapter.tensors->read_bytes(tensor, 0, out.bytes);
    report.bytes_read += tensor.size_bytes;
  }
  adapter.tensors->check_unchanged();
  describe(report, stored, "copy", name);
  if (saves_whole) warn(report, options, "tensors that the adapter saves whole are kept as they are; only its products are scaled");
  write_adapter(stored, output, options, report);
  report.elapsed_seconds = since(start);
  return report;
}

JobReport convert_adapter(std::string_view name, const fs::path& output, std::string_view to, std::string_view base, const JobOptions& options) {
  const auto start = Clock::now();
  const fs::path path = resolve_model(name).path;
  refuse_input_as_output(output, path);
  JobReport report;
  std::vector<std::string> warnings;
  std::vector<std::string> modules;
  std::optional<Json> config;
  if (!base.empty()) {
    const std::shared_ptr<const Checkpoint> model = open_as_hugging_face(base, &config);
    for (const TensorInfo& tensor : model->tensors())
      if (tensor.name.ends_with(".weight")) modules.push_back(tensor.name.substr(0, tensor.name.size() - 7));
  }
  const auto needs_base = [&](const char* why) {
    if (config) return;
    throw Error(ErrorCode::invalid_argument, fmt::format("{} depends on the model: its architecture and its heads", why), {.key = "base"},
                base.empty() ? "name the model with --base MODEL" : "name a model's folder with --base");
  };
  adapt::Lora lora;
  if (path_kind(path) == PathKind::file && adapt::is_gguf_file(path)) {
    needs_base("what the tensors of a GGUF file are");
    lora = adapt::read_lora(adapt::hugging_face_lora(adapt::open_gguf_lora(path), &*config));
    lora.config.set("base_model_name_or_path", base);
  } else if (adapt::is_adapter(path)) {
    lora = adapt::read_lora(adapt::open_adapter(path));
  } else {
    lora = adapt::read_named_lora(path, modules, std::string(base), warnings);
  }
  adapt::StoredAdapter stored;
  if (to == "gguf") {
    needs_base("how llama.cpp names the tensors and orders their rows");
    stored = adapt::store_gguf_lora(lora, *config, warnings);
    stored.gguf->set("general.name", GgufValue::text(engine::title_of(output)));
  } else {
    stored = adapt::store_named_lora(lora, to, warnings);
  }
  for (const adapt::StoredTensor& tensor : stored.tensors) report.bytes_read += tensor.bytes.size();
  describe(report, stored, "rename", name);
  for (std::string& text : warnings) warn(report, options, std::move(text));
  write_adapter(stored, output, options, report);
  report.elapsed_seconds = since(start);
  return report;
}

}  // namespace weft
