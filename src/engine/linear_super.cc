#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include "base/text.h"
#include "engine/linear_step.h"
#include "engine/rounded_loss.h"
#include "engine/super_weights.h"
#include "quantize/solver.h"
#include "quantize/statistic_repair.h"
#include "weft/error.h"

// Super weights kept as they are, and, where it is asked for, what is left clipped by deviation.
namespace weft::engine {
namespace {

/// What is run to see what spikes; any text does.
constexpr const char* kPrompt = "The weights of a model are numbers, and a few of them matter more than all the others.";
/// That limits are chosen from, in deviations, and the tokens that they are tried on.
constexpr std::array<double, 14> kLimits = {2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20};
constexpr std::uint64_t kTokens = 4096;

class SuperStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    const double given = step_parameter(plan.options, "super", "clip");
    chooses_ = given == 0;
    if (given > 0) limit_ = given;
  }

  bool change_model(LinearPlan& plan, LazyModel& model) override {
    RunOptions options = plan.options;
    options.on_warning = {};  // the job itself says them
    RunningModel running(files_of(model), options);
    const model::NetworkConfig& config = running.config();
    if (config.kind != model::NetworkKind::decoder && config.kind != model::NetworkKind::encoder)
      throw Error(ErrorCode::unsupported, "super weights are looked for with a text, which this model does not read", {.file = model.name},
                  "leave 'super' out of --method");
    std::vector<std::uint32_t> ids;
    if (plan.options.tokens != nullptr && !plan.options.tokens->sequences.empty())
      ids = plan.options.tokens->sequences.front();
    else
      ids = running.tokenizer("the search for super weights").ids(kPrompt, false);
    const BlockWeights weights(running.files().checkpoint, config.architecture);
    const SuperWeights search = find_super_weights(running, weights, options, ids);
    if (std::none_of(search.first.begin(), search.first.end(), [](const DownSpike& spike) { return spike.any; })) {
      model.warnings.push_back("super weights are looked for in dense down projections, and there is none");
      return false;
    }
    std::string places;
    for (const SuperWeight& weight : search.found) {
      found_[weight.tensor].push_back(static_cast<std::int64_t>(weight.element));
      places += fmt::format("{}{}[{}, {}] = {:g}", places.empty() ? "" : ", ", printable(weight.tensor), weight.place.row, weight.place.column,
                            weight.value);
    }
    for (auto& [tensor, elements] : found_) std::sort(elements.begin(), elements.end());
    model.warnings.push_back(search.found.empty() ? "super weights: none" : fmt::format("super weights, kept as they are: {}", places));
    return false;
  }

  /// One limit for all layers, by what the whole model loses when they are rounded.
  void before_pass(LinearPlan& plan, RunningModel& model, std::shared_ptr<const CalibrationTokens>& tokens) override {
    if (!chooses_ || !model.network().has_head() || model.config().kind != model::NetworkKind::decoder) return;
    const std::shared_ptr<const CalibrationTokens> some = first_tokens(*tokens, kTokens);
    const auto loss_with = [&](std::optional<double> limit) {
      return rounded_loss(plan, model, some, {{}, [&](const LinearTarget& target, std::vector<float> values) {
                                                return rounded(target, std::move(values), limit, plan.options_for(target));
                                              }});
    };
    limit_.reset();
    const double plain = loss_with(std::nullopt);
    double least = plain;
    for (const double limit : kLimits) {
      const double loss = loss_with(limit);
      if (!(loss < least)) continue;
      least = loss;
      limit_ = limit;
    }
    chooses_ = false;
    told_ = limit_ ? fmt::format("super clips at {:g} deviations: a loss of {:.5f} on {} tokens, {:.5f} without", *limit_, least, some->num_tokens(),
                                 plain)
                   : fmt::format("super clips nothing: no limit gives less than {:.5f} on {} tokens", plain, some->num_tokens());
  }
  void before_block(LinearPlan&, Block& block) override {
    if (block.layer() == 0 && !told_.empty()) block.note("warning super", told_);
  }

  void before_codes(LinearLayer& layer) override {
    if (const auto own = found_.find(layer.target.name); own != found_.end()) {
      layer.take_out(own->second);
      layer.held_at = own->second;
    }
    const LinearTarget& target = layer.target;
    if (chooses_) {
      layer.values = best_of_layer(layer);
    } else if (limit_) {
      quantize::clip_to_deviation(layer.values, target.rows, target.columns, layer.solver.group, *limit_);
    }
  }
  void after_codes(LinearLayer& layer) override {
    if (!layer.held_at.empty()) layer.put_back();
  }

 private:
  /// What becomes of a matrix, without its super weights' part in its scales.
  [[nodiscard]] std::vector<float> rounded(const LinearTarget& target, std::vector<float> values, std::optional<double> limit,
                                           const quantize::SolverOptions& solver) const {
    const auto own = found_.find(target.name);
    std::vector<std::pair<std::size_t, float>> kept;
    if (own != found_.end())
      for (const std::int64_t at : own->second)
        kept.emplace_back(static_cast<std::size_t>(at), std::exchange(values[static_cast<std::size_t>(at)], 0.0F));
    if (limit) quantize::clip_to_deviation(values, target.rows, target.columns, solver.group, *limit);
    std::vector<float> decoded = quantize::round_to_nearest(values, target.rows, target.columns, solver).decoded();
    for (const auto& [at, value] : kept) decoded[at] = value;
    return decoded;
  }

  /// The values, at the limit by which plain rounding loses least of them.
  static std::vector<float> best_of_layer(const LinearLayer& layer) {
    const LinearTarget& target = layer.target;
    const auto loss = [&](const std::vector<float>& values) {
      const std::vector<float> decoded = quantize::round_to_nearest(values, target.rows, target.columns, layer.solver).decoded();
      double sum = 0;
      for (std::size_t i = 0; i < decoded.size(); ++i) {
        const double difference = static_cast<double>(decoded[i]) - static_cast<double>(layer.values[i]);
        sum += difference * difference;
      }
      return sum;
    };
    std::vector<float> best = layer.values;
    double least = loss(best);
    for (const double limit : kLimits) {
      std::vector<float> values = layer.values;
      quantize::clip_to_deviation(values, target.rows, target.columns, layer.solver.group, limit);
      if (const double own = loss(values); own < least) {
        least = own;
        best = std::move(values);
      }
    }
    return best;
  }

  bool chooses_ = false;         ///< the limit
  std::optional<double> limit_;  ///< none: nothing is clipped
  std::string told_;
  std::map<std::string, std::vector<std::int64_t>, std::less<>> found_;  ///< elements, by weight
};

}  // namespace

std::unique_ptr<LinearStep> make_super_step(const LinearPlan&) { return std::make_unique<SuperStep>(); }

}  // namespace weft::engine
