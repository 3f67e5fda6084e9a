#include "engine/merge_by_data.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/text.h"
#include "engine/block_pass.h"
#include "engine/calibration_text.h"
#include "engine/lazy_model.h"
#include "engine/output_job.h"
#include "engine/running_model.h"
#include "engine/yaml.h"
#include "math/convert.h"
#include "merge/regmean.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kRegMean = "regmean", kRegMeanPlusPlus = "regmean_plusplus";

struct Task {
  std::string model;
  std::vector<fs::path> texts;
};
struct Config {
  bool plusplus = true;
  std::vector<Task> tasks;
  double off_diagonal = 1;
  std::uint64_t samples = 256, length = 256;
  std::string exclude;
  std::optional<DType> dtype;
};

class ConfigReader {
 public:
  explicit ConfigReader(const fs::path& file) : file_(file) {}

  Config read(const yaml::Node& root) {
    Config config;
    config.plusplus = root.find("merge_method")->text == kRegMeanPlusPlus;
    for (const yaml::Member& member : root.members) {
      const std::string& key = member.key.text;
      if (key == "merge_method") continue;
      if (key == "models") {
        if (member.value.kind != yaml::Kind::sequence) refuse(member.value, "models is no list");
        for (const yaml::Node& item : member.value.items) config.tasks.push_back(task(item));
      } else if (key == "parameters") {
        parameters(member.value, config);
      } else if (key == "dtype") {
        const auto dtype = member.value.is_scalar() ? dtype_from_any(member.value.text) : std::nullopt;
        if (!dtype || !is_decodable_float(*dtype)) refuse(member.value, "dtype is no floating-point type");
        config.dtype = dtype;
      } else {
        refuse(member.key, fmt::format("'{}' has no meaning for {}", printable(key), root.find("merge_method")->text));
      }
    }
    if (config.tasks.size() < 2) refuse(root, "at least two models are needed");
    return config;
  }

 private:
  [[noreturn]] void refuse(const yaml::Node& node, const std::string& what) const {
    throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}", to_string(node.place), what), {.file = file_.string()},
                "a config for it is {merge_method, models: [{model, text}, ...], parameters: {off_diagonal, samples, length, exclude}, dtype}");
  }

  Task task(const yaml::Node& node) const {
    Task task;
    for (const yaml::Member& member : node.members) {
      const yaml::Node& value = member.value;
      if (member.key.text == "model" && value.is_scalar()) {
        task.model = value.text;
      } else if (member.key.text == "text" && value.is_scalar()) {
        task.texts.emplace_back(value.text);
      } else if (member.key.text == "text" && value.kind == yaml::Kind::sequence) {
        for (const yaml::Node& file : value.items) task.texts.emplace_back(file.text);
      } else {
        refuse(member.key, fmt::format("'{}' has no meaning for a model of this method", printable(member.key.text)));
      }
    }
    if (task.model.empty()) refuse(node, "a model is missing");
    if (task.texts.empty()) refuse(node, fmt::format("'{}' has no text, whose inputs are to be reproduced", printable(task.model)));
    return task;
  }

  void parameters(const yaml::Node& node, Config& config) const {
    for (const yaml::Member& member : node.members) {
      const yaml::Node& value = member.value;
      const bool is_number = value.kind == yaml::Kind::integer || value.kind == yaml::Kind::number;
      const auto whole = [&](std::uint64_t& out) {
        if (!value.integer || *value.integer < 0) refuse(value, fmt::format("{} is no whole number", member.key.text));
        out = static_cast<std::uint64_t>(*value.integer);
      };
      if (member.key.text == "off_diagonal") {
        if (!is_number || !(value.number >= 0 && value.number <= 1)) refuse(value, "off_diagonal is no number from 0 to 1");
        config.off_diagonal = value.number;
      } else if (member.key.text == "samples") {
        whole(config.samples);
      } else if (member.key.text == "length") {
        whole(config.length);
      } else if (member.key.text == "exclude") {
        config.exclude = value.text;
        if (!RE2(config.exclude, RE2::Quiet).ok()) refuse(value, "exclude is no regular expression");
      } else {
        refuse(member.key, fmt::format("'{}' is no parameter of this method", printable(member.key.text)));
      }
    }
  }

  const fs::path& file_;
};

/// Every tensor the mean of several checkpoints', read as it is asked for. Tensors without values are the first one's.
class MeanTensors final : public Checkpoint {
 public:
  MeanTensors(std::vector<std::shared_ptr<const Checkpoint>> models, std::optional<DType> dtype) : models_(std::move(models)) {
    container_ = "view";
    path_ = models_.front()->path();
    files_.assign(models_.front()->files().begin(), models_.front()->files().end());
    for (const TensorInfo& tensor : models_.front()->tensors()) {
      TensorInfo own = tensor;
      own.stored_as.clear();
      const bool has_values = is_decodable_float(tensor.dtype);
      for (std::size_t k = 1; k < models_.size(); ++k) {
        const TensorInfo* other = models_[k]->find_tensor(tensor.name);
        if (other == nullptr || other->shape != tensor.shape || is_decodable_float(other->dtype) != has_values)
          throw Error(ErrorCode::invalid_argument,
                      fmt::format("tensor '{}' {}", printable(tensor.name), other == nullptr ? "is missing" : "has another shape or type"),
                      {.file = models_[k]->path().string(), .tensor = printable(tensor.name)},
                      fmt::format("all models must be fine-tunes of one base, as '{}' is", models_.front()->path().string()));
      }
      if (has_values && dtype) {
        own.dtype = *dtype;
        own.size_bytes = own.num_elements * static_cast<std::uint64_t>(info(*dtype).bits) / 8;
      }
      tensors_.push_back(std::move(own));
    }
    index_tensors();
  }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const TensorInfo& first = models_.front()->tensor(tensor.name);
    if (!is_decodable_float(first.dtype)) {
      models_.front()->read_bytes(first, offset, out);
      return;
    }
    const auto bits = static_cast<std::uint64_t>(info(tensor.dtype).bits);
    const std::uint64_t begin = offset * 8 / bits, count = out.size() * 8 / bits;
    std::vector<double> sum(static_cast<std::size_t>(count), 0.0);
    std::vector<float> values(sum.size());
    std::vector<std::byte> stored;
    for (const auto& model : models_) {
      const TensorInfo& own = model->tensor(tensor.name);
      const auto own_bits = static_cast<std::uint64_t>(info(own.dtype).bits);
      stored.resize(static_cast<std::size_t>(count * own_bits / 8));
      model->read_bytes(own, begin * own_bits / 8, stored);
      math::decode(own.dtype, stored, values);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
    }
    for (std::size_t i = 0; i < sum.size(); ++i) values[i] = static_cast<float>(sum[i] / static_cast<double>(models_.size()));
    math::encode(tensor.dtype, values, out);
  }

 private:
  std::vector<std::shared_ptr<const Checkpoint>> models_;
};

/// A linear layer's matrix [outputs, inputs] out of any of the models.
LinearMatrix read_matrix(const Checkpoint& checkpoint, const model::BlockTensor& like) {
  const TensorInfo& tensor = checkpoint.tensor(like.tensor->name);
  std::vector<std::byte> stored(static_cast<std::size_t>(tensor.size_bytes));
  checkpoint.read_bytes(tensor, 0, stored);
  LinearMatrix out;
  out.rows = static_cast<std::size_t>(tensor.shape[0]);
  out.columns = static_cast<std::size_t>(tensor.shape[1]);
  out.values.resize(static_cast<std::size_t>(tensor.num_elements));
  math::decode(tensor.dtype, stored, out.values);
  return like.slot.transposed ? transposed(out) : out;
}

/// The models, the merged one as far as it has come, and the tokens of every task.
class Regression {
 public:
  Regression(const Config& config, const MergeOptions& options) : config_(config) {
    static_cast<JobOptions&>(run_options_) = options;
    ModelFiles merged;
    for (const Task& task : config.tasks) {
      ModelFiles files = open_model_files(task.model);
      checkpoints_.push_back(files.checkpoint);
      if (checkpoints_.size() == 1) merged = files;
      models_.push_back(std::make_unique<model::Network>(
          files.checkpoint, files.config,
          model::NetworkOptions{.threads = options.threads, .memory_bytes = options.memory_bytes, .allow_non_finite = options.allow_non_finite}));
    }
    mean_ = std::make_shared<const MeanTensors>(checkpoints_, config.dtype);
    merged.checkpoint = mean_;
    merged_ = std::make_unique<RunningModel>(std::move(merged), run_options_);
  }

  [[nodiscard]] const std::shared_ptr<const Checkpoint>& mean() const { return mean_; }
  [[nodiscard]] const std::vector<std::shared_ptr<const Checkpoint>>& checkpoints() const { return checkpoints_; }
  [[nodiscard]] const std::vector<std::string>& warnings() const { return merged_->warnings(); }

  BlockPassResult run(const fs::path& folder, const JournalHead::Ingredient& text) {
    auto tokens = std::make_shared<CalibrationTokens>();
    for (const Task& task : config_.tasks) {
      const CalibrationData data = read_calibration_text(*merged_,
                                                         {.files = task.texts,
                                                          .num_sequences = config_.samples,
                                                          .length = config_.length,
                                                          .order = CalibrationText::Order::first,
                                                          .separate = false},
                                                         0);
      tokens->groups.push_back(tokens->sequences.size());
      tokens->sequences.insert(tokens->sequences.end(), data.tokens->sequences.begin(), data.tokens->sequences.end());
    }
    BlockPassOptions options;
    static_cast<RunOptions&>(options) = run_options_;
    options.folder = folder;
    options.ingredients = {text};
    // What reaches a model's own layers begins with its own embedding.
    if (!config_.plusplus) options.embed_with = [this](const Activations::Batch& batch) -> model::Network& { return *models_[batch.group]; };
    for (const auto& checkpoint : checkpoints_) options.ingredients.push_back(model_ingredient(checkpoint->path().string(), *checkpoint));
    BlockPass pass(*merged_, std::move(tokens), options);
    BlockPassResult result = pass.run([this](Block& block) { visit(block); });
    // Also of blocks that an earlier run has merged.
    for (const auto& notes : result.notes)
      for (const auto& [key, value] : notes)
        if (key.starts_with(kWarning)) merged_->warn(value);
    return result;
  }

 private:
  static constexpr std::string_view kWarning = "warning ";

  void warn(Block& block, std::string text) { block.note(fmt::format("{}{:06}", kWarning, num_warnings_++), std::move(text)); }

  void visit(Block& block) {
    std::map<InputPoint, std::vector<const model::BlockTensor*>> points;
    const RE2 exclude(config_.exclude.empty() ? "[^\\s\\S]" : config_.exclude);
    std::uint64_t bytes = 0;
    for (const model::BlockTensor* linear : block.linears()) {
      const InputPoint point = input_point(linear->slot.role, linear->slot.expert);
      // Routers choose; what they read is no question of reproducing an answer.
      if (point.role == model::Role::router || RE2::PartialMatch(linear->tensor->name, exclude)) continue;
      if (points[point].empty())
        bytes += statistics_bytes(static_cast<std::size_t>(linear->tensor->shape[linear->slot.transposed ? 0 : 1]),
                                  {.gram = true, .cross = false, .points = {}});
      points[point].push_back(linear);
    }
    // All sums at once where they fit, otherwise those of one place at a time. What is read does not depend on what is merged within the block.
    std::vector<std::vector<InputPoint>> rounds;
    if (bytes * models_.size() <= block.statistics_budget()) {
      rounds.emplace_back();
      for (const auto& [point, linears] : points) rounds.back().push_back(point);
    } else {
      for (const auto& [point, linears] : points) rounds.push_back({point});
    }
    for (const std::vector<InputPoint>& round : rounds) merge_round(block, round, points);
    if (!config_.plusplus) {
      block.advance_with([this, layer = static_cast<std::size_t>(block.layer())](const Activations::Batch& batch) -> const model::BlockWeights& {
        return weights_of(batch.group, layer);
      });
    }
  }

  const model::BlockWeights& weights_of(std::size_t model, std::size_t layer) {
    if (!weights_ || weights_model_ != model || weights_layer_ != layer) {
      weights_.reset();
      weights_ = std::make_unique<model::BlockWeights>(models_[model]->read_block(layer));
      weights_model_ = model;
      weights_layer_ = layer;
    }
    return *weights_;
  }

  void merge_round(Block& block, const std::vector<InputPoint>& round, const std::map<InputPoint, std::vector<const model::BlockTensor*>>& points) {
    const auto layer = static_cast<std::size_t>(block.layer());
    ThreadTeam& team = block.network().team();
    // [point][model]
    std::map<InputPoint, std::vector<std::optional<InputStatistics>>> seen;
    for (const InputPoint& point : round) seen[point].resize(models_.size());
    std::vector<float> rows;
    for (std::size_t k = 0; k < models_.size(); ++k) {
      StatisticsTap tap({.gram = true, .cross = false, .points = round}, run_options_.allow_non_finite, team);
      for (const Activations::Batch& batch : block.batches()) {
        if (batch.group != k) continue;
        rows = block.input(batch);
        block.run(batch, weights_of(k, layer), rows, &tap);
      }
      for (InputStatistics& own : tap.finish()) seen.at(own.point)[k] = std::move(own);
    }
    for (const InputPoint& point : round) {
      const std::vector<const model::BlockTensor*>& linears = points.at(point);
      const model::BlockTensor& first = *linears.front();
      const auto columns = static_cast<std::size_t>(first.tensor->shape[first.slot.transposed ? 0 : 1]);
      std::vector<std::vector<double>> none(models_.size());
      std::vector<merge::RegMean::Inputs> inputs;
      for (std::size_t k = 0; k < models_.size(); ++k) {
        const auto& own = seen.at(point)[k];
        if (!own) none[k].assign(columns * columns, 0.0);  // no token of this task came here
        inputs.push_back({own ? std::span<const double>(own->gram) : std::span<const double>(none[k]), own ? own->num_tokens : 0});
      }
      const merge::RegMean method(inputs, columns, config_.off_diagonal);
      seen.erase(point);
      if (method.is_ridged())
        warn(block, fmt::format("block {}: the texts do not reach every direction of the {} inputs of '{}': a little was added to the diagonal; more "
                                "text, or off_diagonal below 1, helps",
                                block.layer(), columns, first.tensor->name));
      if (method.is_mean()) warn(block, fmt::format("block {}: no token reached '{}': it is the plain mean", block.layer(), first.tensor->name));
      for (const model::BlockTensor* linear : linears) merge_one(block, method, *linear, team);
    }
  }

  void merge_one(Block& block, const merge::RegMean& method, const model::BlockTensor& linear, ThreadTeam& team) {
    std::vector<LinearMatrix> matrices;
    for (const auto& checkpoint : checkpoints_) matrices.push_back(read_matrix(*checkpoint, linear));
    LinearMatrix out = matrices.front();
    constexpr std::size_t kRows = 32;
    team.for_each((out.rows + kRows - 1) / kRows, [&](std::size_t unit, int) {
      const std::size_t begin = unit * kRows, count = std::min(kRows, out.rows - begin);
      std::vector<std::span<const float>> weights;
      for (const LinearMatrix& matrix : matrices) weights.emplace_back(matrix.values.data() + begin * out.columns, count * out.columns);
      method.merge(weights, count, {out.values.data() + begin * out.columns, count * out.columns});
    });
    // What flows on is what is stored.
    const DType dtype = linear.tensor->dtype;
    const LinearMatrix stored = linear.slot.transposed ? transposed(out) : out;
    MadeTensor made{linear.tensor->name, dtype, linear.tensor->shape, {}};
    made.bytes.resize(stored.values.size() * static_cast<std::size_t>(info(dtype).bits) / 8);
    math::encode(dtype, stored.values, made.bytes);
    std::vector<float> rounded(stored.values.size());
    math::decode(dtype, made.bytes, rounded);
    block.set_values(linear.tensor->name, std::move(rounded));
    block.emit(std::move(made));
  }

  const Config& config_;
  RunOptions run_options_;
  std::vector<std::shared_ptr<const Checkpoint>> checkpoints_;
  std::vector<std::unique_ptr<model::Network>> models_;
  std::shared_ptr<const Checkpoint> mean_;
  std::unique_ptr<RunningModel> merged_;  ///< norms, biases and embeddings are means; blocks change as they are merged
  std::unique_ptr<model::BlockWeights> weights_;
  std::size_t weights_model_ = 0, weights_layer_ = 0;
  std::size_t num_warnings_ = 0;
};

}  // namespace

bool is_merge_by_data(std::string_view config_text) {
  if (config_text.find(kRegMean) == std::string_view::npos) return false;
  try {
    const std::vector<yaml::Document> documents = yaml::parse(config_text, "the config");
    if (documents.size() != 1) return false;
    const yaml::Node* method = documents.front().root.find("merge_method");
    return method != nullptr && method->is_scalar() && (method->text == kRegMean || method->text == kRegMeanPlusPlus);
  } catch (const Error&) {
    return false;
  }
}

JobReport merge_by_data(std::string_view config_text, const fs::path& config_name, const fs::path& output, const MergeOptions& options) {
  const Config config = ConfigReader(config_name).read(yaml::parse(config_text, config_name.string()).front().root);
  Regression regression(config, options);
  LazyModel model = open_lazy_model(config.tasks.front().model);
  const fs::path folder = block_pass_folder(output);
  if (path_kind(output) != PathKind::nothing && !options.force && !options.write_into_existing && !options.dry_run)
    throw Error(ErrorCode::invalid_argument, "the output exists already", {.file = output.string()},
                "choose another name, or replace it with --force");
  BlockPassResult result;
  if (!options.dry_run) result = regression.run(folder, {"the config", std::string(config_text)});

  const std::string method(config.plusplus ? kRegMeanPlusPlus : kRegMean);
  for (edit::Tensor& tensor : model.parts.tensors) {
    const TensorInfo* made = result.tensors == nullptr ? nullptr : result.tensors->find_tensor(tensor.name);
    const TensorInfo* mean = regression.mean()->find_tensor(tensor.name);
    if (mean == nullptr) continue;
    tensor.values = made != nullptr ? TensorRef{result.tensors, made} : TensorRef{regression.mean(), mean};
    tensor.source = tensor.values;
    tensor.inputs.clear();
    for (const Task& task : config.tasks) tensor.inputs.push_back(fmt::format("{}:{}", task.model, tensor.name));
    tensor.steps = {made != nullptr ? method : "linear"};
  }
  if (config.dtype) cast_all(model, *config.dtype);
  for (std::size_t k = 1; k < config.tasks.size(); ++k) {
    model.inputs.push_back(regression.checkpoints()[k]);
    model.input_paths.push_back(regression.checkpoints()[k]->path());
  }
  model.warnings.insert(model.warnings.end(), regression.warnings().begin(), regression.warnings().end());
  OutputJob job = output_job_of(std::move(model), output);
  job.write_into_existing = options.write_into_existing;
  JobBatch batch(options, "merging");
  batch.add(std::move(job), output);
  JobReport report = std::move(batch.run().front());
  if (!options.dry_run) remove_tree(folder);
  return report;
}

}  // namespace weft::engine
