#include "engine/quantize_linear.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/file.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>

#include "base/budget.h"
#include "base/file.h"
#include "base/text.h"
#include "base/threads.h"
#include "checkpoint/output.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_view.h"
#include "engine/block_pass.h"
#include "engine/calibration_text.h"
#include "engine/linear_budget.h"
#include "engine/linear_format.h"
#include "engine/linear_plan.h"
#include "engine/linear_step.h"
#include "engine/output_job.h"
#include "engine/tail_loss.h"
#include "quantize/solver.h"
#include "weft/error.h"

namespace fs = std::filesystem;

namespace weft::engine {
namespace {

using codec::StoredTensor;
using model::Role;
using Layer = LinearQuantizeOptions::Layer;

double loss_of_weights(std::span<const float> values, std::span<const float> decoded) {
  double lost = 0, whole = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    const double difference = static_cast<double>(decoded[k]) - values[k];
    lost += difference * difference;
    whole += static_cast<double>(values[k]) * values[k];
  }
  return whole > 0 ? lost / whole : 0;
}

Layer describe(const LinearTarget& target, const PackedLayer& packed, double loss, std::string method) {
  return {target.file_name(), std::move(method), 8.0 * static_cast<double>(packed.size_bytes()) / static_cast<double>(target.num_weights()), loss};
}

class LinearJob {
 public:
  LinearJob(LazyModel model, std::string_view name, const fs::path& output, const LinearQuantizeOptions& options)
      : options_(options), plan_(options), lazy_(std::move(model)), name_(name), output_(output) {
    if (!lazy_.parts.config)
      throw Error(ErrorCode::not_found, "there is no config.json, which says what the weights are", {.file = lazy_.name}, "name the model's folder");
    if (output.extension() == ".safetensors" || output.extension() == ".gguf")
      refuse_linear("output", fmt::format("{} is a folder, and '{}' would be a file", options.format, output.string()), "name a folder");
    // Before the work, not after it; what is in the way is looked at again when the place is taken.
    if (!options.force && !options.dry_run && path_kind(output) != PathKind::nothing)
      throw Error(ErrorCode::invalid_argument, fmt::format("the output '{}' exists already", output.string()), {.file = output.string()},
                  "choose another name, or give --force to replace it");
    plan_.output = output;
    const std::size_t num_warnings = lazy_.warnings.size();
    for (const std::unique_ptr<LinearStep>& step : plan_.steps)
      if (step->change_model(plan_, lazy_)) name_.clear();
    for (std::size_t i = num_warnings; i < lazy_.warnings.size(); ++i) tell(lazy_.warnings[i]);
    plan_.find_targets(lazy_);
    if (!plan_.stacks.empty())
      warn(fmt::format("{} tensors hold the matrices of several experts each, which these formats have no place for; they stay as they are: '{}'{}",
                       plan_.stacks.size(), printable(plan_.stacks.front()), plan_.stacks.size() == 1 ? "" : " and others"));
    if (!plan_.tower_layers.empty())
      warn(fmt::format("{} layers are of what sees or hears beside the language model, and stay as they are: '{}'{}", plan_.tower_layers.size(),
                       printable(plan_.tower_layers.front()), plan_.tower_layers.size() == 1 ? "" : " and others"));
    if (LinearBudget::is_asked_for(options)) budget_.emplace(plan_);
  }

  LinearQuantizeReport run() {
    try {
      return make();
    } catch (const Error& error) {
      // What a mistake stops is not resumed.
      if (pass_began_ && error.exit_status() == 2) remove_tree(pass_folder_);
      throw;
    }
  }

 private:
  LinearQuantizeReport make() {
    const auto start = std::chrono::steady_clock::now();
    std::shared_ptr<const Checkpoint> made;
    if (budget_) choose_widths();
    if (options_.dry_run) {
      made = nullptr;
    } else if (wants_activations(options_)) {
      made = run_blocks();
    } else {
      made = round_all();
    }
    LinearQuantizeReport report;
    if (!options_.dry_run)
      replace_tensors(made);
    else
      for (edit::Tensor& part : lazy_.parts.tensors)
        if (plan_.find(part.name) != nullptr) part.steps = {options_.method};
    describe_in_config(plan_, lazy_);
    pass_began_ = false;  // it is done, and what keeps the output from being written does not undo it
    OutputJob job = output_job_of(std::move(lazy_), output_);
    job.ingredients = ingredients();
    // What was told before the work is in the report, and not told again.
    JobOptions job_options = options_;
    if (options_.on_warning)
      job_options.on_warning = [this](const std::string& text) {
        if (!told_.contains(text)) options_.on_warning(text);
      };
    JobBatch batch(job_options, "quantizing");
    batch.add(std::move(job), output_);
    static_cast<JobReport&>(report) = std::move(batch.run().front());
    if (!pass_folder_.empty() && !options_.dry_run) remove_tree(pass_folder_);
    // The walk counts what was made as read; the model was read to make it.
    report.bytes_read += bytes_read_ - std::min(report.bytes_read, made_bytes_);
    report.layers = std::move(layers_);
    report.num_parameters = plan_.num_parameters;  // not of the tensors that hold them packed
    report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::uint64_t weights = 0, bits = 0;
    for (const LinearTarget& target : plan_.targets) weights += target.num_weights();
    for (const auto& [module, size] : part_bytes_) bits += 8 * size;
    report.linear_bits = weights == 0 ? 0 : static_cast<double>(bits) / static_cast<double>(weights);
    report.model_bits = plan_.num_parameters == 0 ? 0 : 8.0 * static_cast<double>(report.size_bytes) / static_cast<double>(plan_.num_parameters);
    return report;
  }

  void tell(const std::string& text) {
    if (told_.insert(text).second && options_.on_warning) options_.on_warning(text);
  }
  void warn(std::string text) {
    tell(text);
    lazy_.warnings.push_back(std::move(text));
  }

  struct Solution {
    PackedLayer packed;
    double loss = 0;  ///< of the outputs; of the weights where nothing is known of what is read; 0 for a layer that no token was sent to
    std::string method;
  };
  /// Takes a layer through all steps. statistics: of what it reads; null without activations. tries: what would come of it, with nothing told.
  Solution solve(const LinearTarget& target, std::span<const float> original, const InputStatistics* statistics, const InputStatistics* stand_in,
                 Block* block, bool tries) {
    LinearLayer layer{.target = target, .original = original, .block = block, .tries = tries};
    layer.solver = plan_.options_for(target);
    layer.values.assign(original.begin(), original.end());
    layer.method = target.solver.empty() ? options_.method : target.solver;
    if (statistics != nullptr && statistics->num_tokens > 0) layer.statistics = statistics;
    if (statistics != nullptr && statistics->num_tokens == 0) {
      // An expert that no token was sent to.
      layer.statistics = stand_in;
      layer.warn("", fmt::format("'{}' was read by no token of the calibration text: {}", printable(target.name),
                                 stand_in == nullptr                  ? "it is rounded"
                                 : stand_in->point.role == Role::down ? "all that it may read counts alike"
                                                                      : "it is done by what its neighbours read"));
      if (stand_in == nullptr) layer.method = "rtn";
    }
    const std::vector<LinearStep*> steps = plan_.steps_of(target);
    for (LinearStep* step : steps) step->before_codes(layer);
    for (LinearStep* step : steps) step->find_codes(layer);
    for (LinearStep* step : steps) step->after_codes(layer);
    layer.hold();
    Solution solution{pack_layer(plan_, target, layer.values, layer.codes ? &*layer.codes : nullptr), 0, std::move(layer.method)};
    if (statistics == nullptr)
      solution.loss = loss_of_weights(original, solution.packed.decoded);
    else if (statistics->num_tokens > 0)
      solution.loss = quantize::relative_loss(original, solution.packed.decoded, target.rows, target.columns, statistics->gram);
    return solution;
  }

  // ---- Without activations ----

  /// For each layer, from several threads. Values, what is left of them and of the codes, twice in float32 each; what is packed and its check.
  template <typename Work>
  void for_each_target(MemoryBudget& budget, const Work& work) const {
    std::atomic<std::size_t> next = 0;
    WorkerPool pool(std::max(1, options_.threads == 0 ? usable_cores() : options_.threads));
    pool.run([&](int) {
      for (std::size_t i = next++; i < plan_.targets.size(); i = next++) {
        if (options_.cancel != nullptr && options_.cancel->load()) throw Error(ErrorCode::interrupted, "quantizing was interrupted");
        if (pool.stop_token().stop_requested()) return;
        constexpr std::uint64_t kBytesAWeight = 20;
        const MemoryBudget::Share share = budget.acquire(kBytesAWeight * plan_.targets[i].num_weights(), "quantizing a layer");
        work(i);
      }
    });
  }

  std::shared_ptr<const Checkpoint> round_all() {
    std::vector<std::vector<MadeTensor>> made(plan_.targets.size());
    std::vector<std::shared_ptr<const Checkpoint>> spooled(plan_.targets.size());
    std::vector<Layer> layers(plan_.targets.size());
    std::vector<bool> finished(plan_.targets.size());
    std::size_t num_told = 0;
    std::mutex told;
    // What is made waits in memory until it is written in the output's order; where it is too much for that, in files.
    MemoryBudget budget(options_.memory_bytes);
    std::uint64_t packed_bytes = 0;
    for (const LinearTarget& target : plan_.targets) packed_bytes += target.num_weights() * static_cast<std::uint64_t>(target.bits + 1) / 8;
    const bool spools = packed_bytes > budget.limit_bytes() / 4;
    if (spools) {
      spool_.open(block_pass_folder(output_));
    }
    for_each_target(budget, [&](std::size_t i) {
      const LinearTarget& target = plan_.targets[i];
      const std::vector<float> values = target.read_values();
      bytes_read_ += target.tensor->size_bytes;
      Solution solution = solve(target, values, nullptr, nullptr, nullptr, false);
      layers[i] = describe(target, solution.packed, solution.loss, std::move(solution.method));
      for (StoredTensor& part : solution.packed.parts)
        made[i].push_back({fmt::format("{}.{}", target.module, part.name), part.dtype, std::move(part.shape), std::move(part.bytes)});
      if (spools) {
        spooled[i] = spool(made[i], i);
        made[i].clear();
      }
      // In the order of the model, whichever thread is done first.
      const std::lock_guard lock(told);
      finished[i] = true;
      for (; num_told < layers.size() && finished[num_told]; ++num_told)
        if (options_.on_layer) options_.on_layer(layers[num_told]);
    });
    layers_ = std::move(layers);
    if (spools) {
      std::vector<NamedTensor> tensors;
      for (const std::shared_ptr<const Checkpoint>& file : spooled)
        for (const TensorInfo& tensor : file->tensors()) tensors.push_back({{file, &tensor}, tensor.name});
      return select_tensors(tensors, *spooled.front());
    }
    std::vector<MadeTensor> all;
    for (std::vector<MadeTensor>& part : made) std::move(part.begin(), part.end(), std::back_inserter(all));
    return hold_tensors(std::move(all));
  }

  /// To a file of its own.
  std::shared_ptr<const Checkpoint> spool(const std::vector<MadeTensor>& tensors, std::size_t number) const {
    std::vector<TensorSpec> specs;
    for (const MadeTensor& tensor : tensors) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    const fs::path file = spool_.path() / fmt::format("{}.safetensors", number);
    OutputFile out(file, Existing::replace);
    out.create_files(plan_safetensors(specs, 0, {}));
    for (std::size_t i = 0; i < tensors.size(); ++i) out.write_tensor(i, 0, tensors[i].bytes);
    out.commit();
    return open_safetensors_file(file, file);
  }

  // ---- With activations ----

  void open_running() {
    if (running_ != nullptr) return;
    tokens_ = options_.tokens;
    if (tokens_ == nullptr && !options_.calibration)
      refuse_linear("calibration", fmt::format("'{}' looks at what the layers read, and there is no calibration text", options_.method),
                    "give --calibration FILE, or use --method rtn");
    running_ = std::make_unique<RunningModel>(name_.empty() ? files_of(lazy_) : open_model_files(name_), options_);
    if (tokens_ == nullptr) tokens_ = read_calibration_text(*running_, *options_.calibration, options_.seed).tokens;
    for (const std::unique_ptr<LinearStep>& step : plan_.steps) step->before_pass(plan_, *running_, tokens_);
  }

  std::shared_ptr<const Checkpoint> run_blocks() {
    open_running();
    RunningModel& running = *running_;
    BlockPassOptions pass_options;
    static_cast<RunOptions&>(pass_options) = options_;
    const std::vector<LinearStep*> steps = plan_.all_steps();
    pass_options.two_streams = std::any_of(steps.begin(), steps.end(), [&](const LinearStep* step) { return step->two_streams(plan_); });
    pass_folder_ = block_pass_folder(output_);
    pass_options.folder = pass_folder_;
    pass_options.ingredients = ingredients();
    pass_options.ingredients.push_back(model_ingredient("the model", *running.files().checkpoint));
    BlockPass pass(running, tokens_, pass_options);
    BlockPassResult result = pass.run([&](Block& block) {
      pass_began_ = true;
      visit(block);
    });
    pass_began_ = true;
    // The table, also of blocks that an earlier run has done.
    for (const std::map<std::string, std::string>& notes : result.notes)
      for (const auto& [key, value] : notes) {
        if (key.starts_with("warning ")) warn(value);
        if (!key.starts_with("layer ")) continue;
        const Json note = parse_json(value, "note");
        const LinearTarget* target = plan_.find(key.substr(6));
        layers_.push_back({target == nullptr ? key.substr(6) : target->file_name(), *note.find("method")->string(),
                           note.find("bits")->number().value_or(0), note.find("loss")->number().value_or(0)});
      }
    return result.tensors;
  }

  static bool is_of(const InputPoint& point, std::initializer_list<Role> roles) {
    return std::find(roles.begin(), roles.end(), point.role) != roles.end();
  }

  void visit(Block& block) {
    count_read(block);
    const std::vector<LinearStep*> steps = plan_.all_steps();
    for (LinearStep* step : steps) step->before_block(plan_, block);
    // In the order in which a token meets them, so that each reads what those before it give now.
    const bool sequential = std::any_of(steps.begin(), steps.end(), [](const LinearStep* step) { return step->in_sequence(); });
    std::vector<InputPoint> points;
    for (const model::BlockTensor* tensor : block.linears()) {
      if (plan_.find(tensor->tensor->name) == nullptr) continue;
      const InputPoint point = input_point(tensor->slot.role, tensor->slot.expert);
      if (std::find(points.begin(), points.end(), point) == points.end()) points.push_back(point);
    }
    const std::initializer_list<Role> stages[] = {{Role::q}, {Role::o}, {Role::up, Role::shared_up}, {Role::down, Role::shared_down}};
    std::vector<std::vector<InputPoint>> waves;
    if (sequential) {
      for (const auto& roles : stages) {
        std::vector<InputPoint> wave;
        for (const InputPoint& point : points)
          if (is_of(point, roles)) wave.push_back(point);
        if (!wave.empty()) waves.push_back(std::move(wave));
      }
    } else if (!points.empty()) {
      waves.push_back(points);
    }
    for (const std::vector<InputPoint>& wave : waves) {
      StatisticsRequest request;
      request.gram = true;
      for (const LinearStep* step : steps) want(*step, request);
      request.points = wave;
      const std::vector<InputStatistics> gathered = block.statistics(request);
      const StandIns stand_ins = stand_ins_for(gathered);
      for (LinearStep* step : steps) step->new_statistics();
      for (const InputStatistics& statistics : gathered)
        for (const std::string& name : statistics.weights)
          if (const LinearTarget* target = plan_.find(name)) quantize_layer(block, *target, statistics, stand_in_of(statistics, stand_ins));
    }
    for (LinearStep* step : steps) step->after_block(plan_, block);
  }

  /// What one step wants does not take away what another does.
  void want(const LinearStep& step, StatisticsRequest& request) const {
    const StatisticsRequest before = request;
    step.want(request, plan_);
    request.gram = request.gram || before.gram;
    request.cross = request.cross || before.cross;
  }

  /// The weights of a block that a pass goes through.
  void count_read(const Block& block) {
    for (const model::BlockTensor& tensor : block.tensors()) bytes_read_ += tensor.tensor->size_bytes;
  }

  /// For experts that no token was sent to, by where they read. What is read before the experts is of one kind for all of them: what the others read
  /// stands for it. Channels inside an expert have nothing to do with those of others: each counts alike.
  using StandIns = std::map<std::pair<Role, std::size_t>, InputStatistics>;
  static StandIns stand_ins_for(const std::vector<InputStatistics>& gathered) {
    StandIns all;
    for (const InputStatistics& unread : gathered) {
      const std::pair place(unread.point.role, unread.width);
      if (unread.num_tokens > 0 || unread.point.expert < 0 || all.contains(place)) continue;
      InputStatistics& own = all.emplace(place, unread).first->second;
      for (const InputStatistics& other : gathered) {
        if (place.first != Role::up || other.point.role != Role::up || other.point.expert < 0 || other.width != own.width) continue;
        own.num_tokens += other.num_tokens;
        for (std::size_t i = 0; i < own.gram.size(); ++i) own.gram[i] += other.gram[i];
      }
      if (own.num_tokens > 0) continue;
      own.num_tokens = own.width;
      for (std::size_t i = 0; i < own.width; ++i) own.gram[i * own.width + i] = 1;
    }
    return all;
  }
  static const InputStatistics* stand_in_of(const InputStatistics& statistics, const StandIns& stand_ins) {
    const auto found = stand_ins.find({statistics.point.role, statistics.width});
    return statistics.num_tokens > 0 || found == stand_ins.end() ? nullptr : &found->second;
  }

  void quantize_layer(Block& block, const LinearTarget& target, const InputStatistics& statistics, const InputStatistics* stand_in) {
    LinearMatrix matrix = block.matrix(target.name);
    target.check_values(matrix.values);
    if (static_cast<std::int64_t>(matrix.rows) != target.rows || static_cast<std::int64_t>(matrix.columns) != target.columns)
      throw Error(ErrorCode::internal, "a layer has another shape than its tensor", {.tensor = printable(target.name)});
    Solution solution = solve(target, matrix.values, &statistics, stand_in, &block, false);
    const Layer layer = describe(target, solution.packed, solution.loss, solution.method);
    for (StoredTensor& part : solution.packed.parts)
      block.emit({fmt::format("{}.{}", target.module, part.name), part.dtype, std::move(part.shape), std::move(part.bytes)});
    block.note("layer " + target.name, write_json(Json::Object{{"method", layer.method}, {"bits", layer.bits}, {"loss", layer.relative_loss}}));
    matrix.values = std::move(solution.packed.decoded);
    block.set_matrix(target.name, matrix);
    if (options_.on_layer) options_.on_layer(layer);
  }

  // ---- Widths under a budget ----

  /// What each width of each layer takes and loses, in a run of their own; then the widths that lose least together.
  void choose_widths() {
    if (wants_activations(options_)) {
      open_running();
      BlockPassOptions pass_options;
      static_cast<RunOptions&>(pass_options) = options_;
      if (options_.budget_by == "model") tail_ = std::make_unique<TailLoss>(*running_, tokens_);
      pass_options.only_looks = true;
      BlockPass pass(*running_, tokens_, pass_options);
      static_cast<void>(pass.run([&](Block& block) { weigh_block(block); }));
      tail_.reset();
      for (LinearStep* step : plan_.all_steps()) step->new_statistics();
    } else {
      MemoryBudget budget(options_.memory_bytes);
      for_each_target(budget, [&](std::size_t i) {
        bytes_read_ += plan_.targets[i].tensor->size_bytes;
        weigh_layer(plan_.targets[i], plan_.targets[i].read_values(), nullptr, nullptr, nullptr);
      });
    }
    std::uint64_t other_bytes = 0;
    for (const edit::Tensor& part : lazy_.parts.tensors)
      if (plan_.find(part.name) == nullptr) other_bytes += part.values.tensor->size_bytes;
    budget_->choose(other_bytes, [&](const LinearTarget& target, const quantize::Choice& choice) {
      if (!options_.dry_run) return;
      layers_.push_back(
          {target.file_name(), options_.method, 8 * static_cast<double>(choice.size) / static_cast<double>(target.num_weights()), choice.loss});
      if (options_.on_layer) options_.on_layer(layers_.back());
    });
  }

  void weigh_layer(const LinearTarget& layer, const std::vector<float>& values, const InputStatistics* statistics, const InputStatistics* stand_in,
                   Block* block) {
    layer.check_values(values);
    for (const int bits : budget_->widths_of(layer)) {
      LinearTarget target = layer;
      target.bits = bits;
      const Solution solution = solve(target, values, statistics, stand_in, block, true);
      const bool unread = statistics != nullptr && statistics->num_tokens == 0;
      double loss = unread ? loss_of_weights(values, solution.packed.decoded) : solution.loss;
      if (tail_ != nullptr) {
        // What the whole model loses with this layer alone so; what is below what float32 tells apart still has an order.
        constexpr double kLeast = 1e-9;
        LinearMatrix matrix = block->matrix(target.name);
        matrix.values = solution.packed.decoded;
        block->set_matrix(target.name, matrix);
        loss = std::max(tail_->of(*block), kLeast * (1 + loss));
        block->reset(target.name);
      }
      budget_->add_choice(target, {loss, solution.packed.size_bytes()});
    }
  }

  void weigh_block(Block& block) {
    count_read(block);
    budget_->look_at_block(block);
    if (tail_ != nullptr && block.layer() == 0) tail_->remember(block);
    // As when it is quantized, but for what earlier blocks have lost, and for what is learned once all layers have their codes.
    for (LinearStep* step : plan_.all_steps()) step->before_block(plan_, block);
    std::vector<InputPoint> points;
    StatisticsRequest request;
    request.gram = true;
    for (const LinearStep* step : plan_.all_steps()) want(*step, request);
    request.cross = false;
    std::uint64_t bytes = 0;
    for (const model::BlockTensor* tensor : block.linears()) {
      const LinearTarget* target = plan_.find(tensor->tensor->name);
      if (target == nullptr) continue;
      const InputPoint point = input_point(tensor->slot.role, tensor->slot.expert);
      if (std::find(points.begin(), points.end(), point) != points.end()) continue;
      points.push_back(point);
      bytes += statistics_bytes(static_cast<std::size_t>(target->columns), request);
    }
    std::vector<std::vector<InputPoint>> waves;
    if (bytes <= block.statistics_budget())
      waves.push_back(points);
    else
      for (const InputPoint& point : points) waves.push_back({point});
    for (std::size_t w = 0; w < waves.size() && !points.empty(); ++w) {
      request.points = waves[w];
      request.last = tail_ == nullptr && w + 1 == waves.size();
      const std::vector<InputStatistics> gathered = block.statistics(request);
      const StandIns stand_ins = stand_ins_for(gathered);
      for (LinearStep* step : plan_.all_steps()) step->new_statistics();
      for (const InputStatistics& statistics : gathered)
        for (const std::string& name : statistics.weights)
          if (const LinearTarget* target = plan_.find(name))
            weigh_layer(*target, block.matrix(name).values, &statistics, stand_in_of(statistics, stand_ins), &block);
    }
  }

  // ---- The output ----

  void replace_tensors(const std::shared_ptr<const Checkpoint>& made) {
    const auto refuse_all = [this] {
      refuse_linear("model", fmt::format("none of the {} layers is in a block that the calibration text runs through", plan_.targets.size()),
                    "use --method rtn, or let the rules keep fewer layers");
    };
    if (made == nullptr) refuse_all();
    std::map<std::string, std::vector<const TensorInfo*>> by_module;
    std::map<std::string, const TensorInfo*, std::less<>> changed;
    std::set<std::string> modules;
    for (const LinearTarget& target : plan_.targets) modules.insert(target.module);
    for (const TensorInfo& tensor : made->tensors()) {
      made_bytes_ += tensor.size_bytes;
      std::string module;
      for (std::size_t dot = tensor.name.find('.'); dot != std::string::npos; dot = tensor.name.find('.', dot + 1))
        if (modules.contains(tensor.name.substr(0, dot))) module = tensor.name.substr(0, dot);
      // Biases that the model has already are changed ones, not parts of the packed layer.
      const bool is_known = !module.empty() && std::any_of(lazy_.parts.tensors.begin(), lazy_.parts.tensors.end(), [&](const edit::Tensor& part) {
        return plan_.running_name(part.name) == tensor.name && plan_.find(part.name) == nullptr;
      });
      if (module.empty() || is_known)
        changed.emplace(tensor.name, &tensor);
      else
        by_module[module].push_back(&tensor);
    }
    std::vector<edit::Tensor> parts;
    std::set<std::string> left;
    for (edit::Tensor& part : lazy_.parts.tensors) {
      if (const auto other = changed.find(plan_.running_name(part.name)); other != changed.end()) {
        part.values = part.source = {made, other->second};
        part.steps = {"scale"};
      }
      if (plan_.find(part.name) == nullptr) {
        parts.push_back(std::move(part));
        continue;
      }
      const LinearTarget& target = *plan_.find(part.name);
      std::vector<const TensorInfo*>& own = by_module[target.module];
      if (own.empty()) {
        left.insert(target.file_module);
        parts.push_back(std::move(part));
        continue;
      }
      for (const TensorInfo* tensor : own) {
        parts.push_back(
            {target.file_module + tensor->name.substr(target.module.size()), {made, tensor}, {made, tensor}, part.inputs, {options_.method}});
        part_bytes_[target.module] += tensor->size_bytes;
      }
    }
    lazy_.parts.tensors = std::move(parts);
    // A pass over blocks sees the language model only, not the towers for images and sounds beside it.
    if (!left.empty()) {
      if (part_bytes_.empty()) refuse_all();
      warn(fmt::format("{} layers are in no block that the calibration text runs through, and stay as they are: '{}'{}", left.size(),
                       printable(*left.begin()), left.size() == 1 ? "" : " and others"));
      plan_.leave(left);
    }
    // Files that are made anew by every run are no input: a job that was stopped must know itself again.
    if (spool_.path().empty()) lazy_.inputs.push_back(made);
  }

  [[nodiscard]] std::vector<JournalHead::Ingredient> ingredients() const {
    std::string parameters;
    for (const auto& [name, value] : options_.parameters) parameters += fmt::format("{}={};", name, value);
    std::string rules;
    for (const LinearRule& rule : options_.rules)
      rules += fmt::format("{}={}/{}/{}/{};", rule.pattern, rule.keep, rule.bits.value_or(-1), rule.group.value_or(-1), rule.method);
    std::vector<JournalHead::Ingredient> all = options_.ingredients;
    const std::vector<JournalHead::Ingredient> own = own_ingredients(parameters, rules);
    all.insert(all.end(), own.begin(), own.end());
    return all;
  }
  [[nodiscard]] std::vector<JournalHead::Ingredient> own_ingredients(const std::string& parameters, const std::string& rules) const {
    return {{"--method", options_.method},
            {"--format", options_.format},
            {"the numbers", fmt::format("{}, {} bits, groups of {}, {}, {}", options_.numbers, options_.bits, options_.group,
                                        plan_.symmetric ? "symmetric" : "asymmetric", options_.nested ? "nested" : "plain")},
            {"how scales and codes are found",
             fmt::format("search {}, damping {}, order {}, drift {}, smoothing {}, rank {}, exact {}", options_.search, options_.damping,
                         options_.order, options_.drift, options_.smoothing, options_.rank, options_.exact)},
            {"--set", parameters},
            {"--seed", std::to_string(options_.seed)},
            {"the rules", rules},
            {"--budget", fmt::format("{} bits a weight, {} bytes, by {} of {}", options_.budget_bits.value_or(0), options_.budget_bytes.value_or(0),
                                     options_.budget_by, fmt::join(budget_ ? budget_->widths() : options_.widths, ","))},
            {"the calibration text", tokens_ != nullptr ? tokens_->digest() : "none"}};
  }

  /// A folder that is gone when the job is. It stands where passes over blocks keep theirs, and nobody else may work there meanwhile.
  class Spool {
   public:
    Spool() = default;
    Spool(const Spool&) = delete;
    Spool& operator=(const Spool&) = delete;
    ~Spool() {
      if (path_.empty()) return;
      std::error_code ignored;
      fs::remove_all(path_, ignored);
      SystemCalls::current().close(lock_);
    }
    [[nodiscard]] const fs::path& path() const { return path_; }

    void open(const fs::path& path) {
      fs::create_directories(path);
      const int lock = SystemCalls::current().open((path / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
      if (lock < 0) throw path_error(errno, "open", path / "lock");
      const bool taken = SystemCalls::current().flock(lock, LOCK_EX | LOCK_NB) != 0;
      if (taken || path_kind(path / "journal") != PathKind::nothing) {
        SystemCalls::current().close(lock);
        if (taken) throw Error(ErrorCode::io, "another job is at work here", {.file = path.string()}, "wait for it, or choose another output");
        throw Error(ErrorCode::invalid_argument, "an unfinished pass over blocks lies here", {.file = path.string()},
                    "give its command again, remove it with 'weft jobs', or choose another output");
      }
      path_ = path;
      lock_ = lock;
    }

   private:
    fs::path path_;
    int lock_ = -1;
  };

  Spool spool_;  // before all that reads from it
  const LinearQuantizeOptions& options_;
  LinearPlan plan_;
  LazyModel lazy_;
  std::string name_;  ///< of a model on the disk; empty: it exists as views only
  fs::path output_, pass_folder_;
  bool pass_began_ = false;  ///< and is not done
  std::vector<Layer> layers_;
  std::map<std::string, std::uint64_t> part_bytes_;
  std::atomic<std::uint64_t> bytes_read_ = 0;  ///< of the model
  std::uint64_t made_bytes_ = 0;
  std::shared_ptr<const CalibrationTokens> tokens_;
  std::optional<LinearBudget> budget_;
  std::unique_ptr<RunningModel> running_;
  std::set<std::string> told_;      ///< warnings
  std::unique_ptr<TailLoss> tail_;  ///< while widths are weighed by the whole model's loss
};

}  // namespace

LinearQuantizeReport quantize_linear(std::string_view model, const fs::path& output, const LinearQuantizeOptions& options) {
  return LinearJob(open_lazy_model(model), model, output, options).run();
}

LinearQuantizeReport quantize_linear(LazyModel model, const fs::path& output, const LinearQuantizeOptions& options) {
  return LinearJob(std::move(model), "", output, options).run();
}

}  // namespace weft::engine
