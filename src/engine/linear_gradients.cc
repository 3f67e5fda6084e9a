#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "engine/computed_checkpoint.h"
#include "engine/gguf_output.h"
#include "engine/gradient_scores.h"
#include "engine/linear_step.h"
#include "engine/measure_input.h"
#include "engine/running_model.h"
#include "math/convert.h"
#include "weft/error.h"

// Weights that are kept out of the codes because the model's loss depends on them: by its gradient where they are (GWQ), and along the way to the
// codes (PQI).
namespace weft::engine {
namespace {

std::vector<std::string> names_of(const LinearPlan& plan) {
  std::vector<std::string> names;
  for (const LinearTarget& target : plan.targets) names.push_back(target.name);
  return names;
}

GradientScoreOptions scoring_of(const LinearQuantizeOptions& options, double num_sequences, std::string what) {
  GradientScoreOptions scoring;
  scoring.num_sequences = static_cast<std::size_t>(num_sequences);
  scoring.threads = options.threads;
  scoring.memory_bytes = options.memory_bytes;
  scoring.cancel = options.cancel;
  if (options.on_progress)
    scoring.on_progress = [&options, what = std::move(what)](double done) {
      options.on_progress({.what = what, .done_bytes = static_cast<std::uint64_t>(1000 * done), .total_bytes = 1000});
    };
  return scoring;
}

std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<float> values(checked_size(tensor.num_elements, "matrix"));
  read_floats(checkpoint, tensor, 0, values);
  return values;
}

class GwqStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    share_ = step_parameter(plan.options, "gwq", "share");
    num_sequences_ = step_parameter(plan.options, "gwq", "sequences");
  }
  void before_block(LinearPlan& plan, Block& block) override {
    if (chosen_) return;
    const RunningModel& model = block.running();
    chosen_ = choose_by_gradient(model.files().checkpoint, model.json(), block.tokens(), names_of(plan), share_,
                                 scoring_of(plan.options, num_sequences_, "taking gradients"));
  }
  void before_codes(LinearLayer& layer) override {
    if (!chosen_) return;
    if (const auto found = chosen_->find(layer.target.name); found != chosen_->end()) layer.take_out(found->second);
  }
  void after_codes(LinearLayer& layer) override { layer.put_back(); }

 private:
  double share_ = 0, num_sequences_ = 0;
  std::optional<ChosenPositions> chosen_;
};

// ---- PQI

/// The quantized model with some weights as the model has them.
std::shared_ptr<const Checkpoint> with_restored(std::shared_ptr<const Checkpoint> quantized, const std::shared_ptr<const Checkpoint>& model,
                                                const ChosenPositions& positions) {
  std::vector<std::pair<std::string, ComputeFloats>> computed;
  for (const auto& [name, at] : positions) {
    if (at.empty()) continue;
    computed.emplace_back(name, [quantized, model, name = name, at = at](std::uint64_t begin, std::span<float> out) {
      const std::vector<float> codes = values_of(*quantized, name), own = values_of(*model, name);
      std::copy_n(codes.begin() + static_cast<std::ptrdiff_t>(begin), out.size(), out.begin());
      const auto end = static_cast<std::int64_t>(begin + out.size());
      for (auto i = std::lower_bound(at.begin(), at.end(), static_cast<std::int64_t>(begin)); i != at.end() && *i < end; ++i)
        out[static_cast<std::size_t>(*i) - static_cast<std::size_t>(begin)] = own[static_cast<std::size_t>(*i)];
    });
  }
  return std::make_shared<ComputedCheckpoint>(std::move(quantized), std::move(computed));
}

/// Does the rest of the method on the whole model first, once or twice, to see what it loses where.
class PqiStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    const auto number = [&](std::string_view name) { return step_parameter(plan.options, "pqi", name); };
    share_ = number("share");
    restored_share_ = number("restored");
    exponent_ = number("exponent");
    num_points_ = static_cast<int>(number("points"));
    num_sequences_ = number("sequences");
    if (!(share_ + restored_share_ > 0)) refuse_linear("set", "pqi keeps no weights", "give pqi.share or pqi.restored more than 0");
  }
  bool change_model(LinearPlan& plan, LazyModel& model) override {
    if (plan.options.dry_run) return false;
    model_ = std::make_unique<LazyModel>(model);
    return false;
  }
  void before_block(LinearPlan& plan, Block& block) override {
    if (outliers_) return;
    if (plan.options.taken_at != nullptr) {
      outliers_ = *plan.options.taken_at;
      return;
    }
    choose(plan, block);
  }
  void before_codes(LinearLayer& layer) override {
    if (!outliers_) return;
    if (const auto found = outliers_->find(layer.target.name); found != outliers_->end()) layer.take_out(found->second);
  }
  void after_codes(LinearLayer& layer) override {
    layer.put_back();
    const auto found = restored_.find(layer.target.name);
    if (found == restored_.end() || found->second.empty()) return;
    codec::QuantizedLinear& linear = layer.need_codes();
    const std::vector<float> decoded = linear.decoded();
    std::map<std::int64_t, float> all;
    for (std::size_t i = 0; i < linear.added.size(); ++i) all[linear.added_at[i]] = linear.added[i];
    for (const std::int64_t at : found->second) all[at] += layer.original[static_cast<std::size_t>(at)] - decoded[static_cast<std::size_t>(at)];
    linear.added_at.clear();
    linear.added.clear();
    for (const auto& [at, value] : all) {
      linear.added_at.push_back(at);
      linear.added.push_back(value);
    }
    math::round_through(layer.target.dtype, linear.added);
  }

 private:
  void choose(const LinearPlan& plan, Block& block) {
    const LinearQuantizeOptions& options = plan.options;
    const std::shared_ptr<const Checkpoint> model = block.running().files().checkpoint;
    const ScratchFolder scratch(plan.output);
    LinearQuantizeOptions rest = options;
    rest.format = "weft";
    rest.symmetric = plan.symmetric;
    rest.calibration.reset();
    rest.tokens = std::make_shared<CalibrationTokens>(block.tokens());
    rest.on_layer = {};
    rest.on_warning = {};
    rest.force = true;
    // What has changed the model already is not done again; numbers of steps that are left out are none.
    const auto with = [&](bool itself) {
      rest.method.clear();
      rest.parameters.clear();
      for (const std::string& name : split_steps(options.method)) {
        if (find_linear_step(name)->place == StepPlace::model || (name == "pqi" && !itself)) continue;
        rest.method += rest.method.empty() ? name : "+" + name;
        for (const auto& [key, value] : options.parameters)
          if (key.starts_with(name + ".")) rest.parameters[key] = value;
      }
      if (rest.method.empty()) rest.method = "rtn";
    };
    with(false);
    std::vector<std::string> names;
    // As the network that runs calls them, like what is opened below.
    for (const auto& layer : quantize_linear(*model_, scratch.path() / "1", rest).layers) names.push_back(plan.find(layer.name)->name);
    std::vector<double> sums;
    std::vector<std::uint64_t> sizes;
    std::uint64_t all = 0;
    {
      const auto quantized = open_model_files((scratch.path() / "1").string()).checkpoint;
      const PathScores scores = score_path(model, quantized, block.running().json(), block.tokens(), names, num_points_,
                                           scoring_of(options, num_sequences_, "following the way to the codes"));
      for (const std::string& name : names) {
        double sum = 0;
        if (const auto found = scores.gradients.find(name); found != scores.gradients.end())
          for (const float score : found->second.scores(values_of(*model, name), values_of(*quantized, name))) sum += static_cast<double>(score);
        sums.push_back(sum);
        sizes.push_back(model->tensor(name).num_elements);
        all += sizes.back();
      }
    }
    const auto total = static_cast<std::uint64_t>(std::llround(share_ * static_cast<double>(all)));
    const std::vector<std::uint64_t> counts = quantize::spread_over(sums, sizes, total, exponent_);
    ChosenPositions outliers;
    for (std::size_t i = 0; i < names.size(); ++i) {
      std::vector<float> magnitudes = values_of(*model, names[i]);
      for (float& value : magnitudes) value = std::fabs(value);
      outliers[names[i]] = quantize::largest_scores(magnitudes, static_cast<std::size_t>(counts[i]));
    }
    const auto num_restored = static_cast<std::size_t>(std::llround(restored_share_ * static_cast<double>(all)));
    if (num_restored > 0) {
      with(true);
      rest.parameters["pqi.restored"] = 0;
      rest.parameters["pqi.share"] = 0.5;  // of no effect beside what is given
      rest.taken_at = &outliers;
      static_cast<void>(quantize_linear(*model_, scratch.path() / "2", rest));
      restore(options, block, model, open_model_files((scratch.path() / "2").string()).checkpoint, names, num_restored);
    }
    outliers_ = std::move(outliers);
  }

  /// Of all matrices together, in steps: after each the way to the codes is another.
  void restore(const LinearQuantizeOptions& options, Block& block, const std::shared_ptr<const Checkpoint>& model,
               const std::shared_ptr<const Checkpoint>& quantized, const std::vector<std::string>& names, std::size_t total) {
    constexpr std::size_t kSteps = 2;
    struct Candidate {
      float score;
      std::size_t matrix;
      std::int64_t at;
    };
    for (std::size_t step = 0; step < kSteps; ++step) {
      const std::size_t wanted = total * (step + 1) / kSteps - total * step / kSteps;
      const auto now = with_restored(quantized, model, restored_);
      const PathScores scores = score_path(model, now, block.running().json(), block.tokens(), names, num_points_,
                                           scoring_of(options, num_sequences_, "looking for weights that are missed most"));
      std::vector<Candidate> candidates;
      for (std::size_t m = 0; m < names.size(); ++m) {
        const auto found = scores.gradients.find(names[m]);
        if (found == scores.gradients.end()) continue;
        const std::vector<float> own = found->second.scores(values_of(*model, names[m]), values_of(*now, names[m]));
        for (const std::int64_t at : quantize::largest_scores(own, wanted))
          if (own[static_cast<std::size_t>(at)] > 0) candidates.push_back({own[static_cast<std::size_t>(at)], m, at});
      }
      std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
      if (candidates.size() > wanted) candidates.resize(wanted);
      for (const Candidate& one : candidates) restored_[names[one.matrix]].push_back(one.at);
      for (auto& [name, at] : restored_) std::sort(at.begin(), at.end());
    }
  }

  double share_ = 0, restored_share_ = 0, exponent_ = 0, num_sequences_ = 0;
  int num_points_ = 0;
  std::unique_ptr<LazyModel> model_;
  std::optional<ChosenPositions> outliers_;
  ChosenPositions restored_;
};

}  // namespace

std::unique_ptr<LinearStep> make_gwq_step(const LinearPlan&) { return std::make_unique<GwqStep>(); }
std::unique_ptr<LinearStep> make_pqi_step(const LinearPlan&) { return std::make_unique<PqiStep>(); }

}  // namespace weft::engine
