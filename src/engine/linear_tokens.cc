#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "engine/attention_received.h"
#include "engine/linear_step.h"
#include "quantize/token_weights.h"

// RSQ: tokens that receive more attention count more in what compensation looks at.
namespace weft::engine {
namespace {

/// Each sequence, and so many copies of it that begin further on and wrap around: late tokens stand early in one of them.
std::shared_ptr<const CalibrationTokens> with_shifted_copies(const CalibrationTokens& tokens, std::size_t copies) {
  auto out = std::make_shared<CalibrationTokens>();
  for (std::size_t s = 0; s < tokens.sequences.size(); ++s) {
    if (std::find(tokens.groups.begin(), tokens.groups.end(), s) != tokens.groups.end()) out->groups.push_back(out->sequences.size());
    const std::vector<std::uint32_t>& sequence = tokens.sequences[s];
    for (std::size_t copy = 0; copy < copies; ++copy) {
      std::vector<std::uint32_t>& shifted = out->sequences.emplace_back(sequence);
      std::rotate(shifted.begin(), shifted.begin() + static_cast<std::ptrdiff_t>(sequence.size() * copy / copies), shifted.end());
    }
  }
  return out;
}

class RsqStep final : public LinearStep {
 public:
  explicit RsqStep(const LinearPlan& plan)
      : least_(step_parameter(plan.options, "rsq", "least")),
        first_(step_parameter(plan.options, "rsq", "first") != 0),
        copies_(static_cast<std::size_t>(step_parameter(plan.options, "rsq", "copies"))) {
    if (plan.solver == "rtn" || plan.solver == "hqq")
      refuse_linear("method", fmt::format("rsq says which tokens count when errors are made good, and '{}' makes none good", plan.solver),
                    "rsq+gptq, or rotate+rsq+gptq as it is published");
  }

  void before_pass(LinearPlan&, RunningModel&, std::shared_ptr<const CalibrationTokens>& tokens) override {
    if (copies_ > 1) tokens = with_shifted_copies(*tokens, copies_);
  }

  void before_block(LinearPlan& plan, Block& block) override {
    std::vector<std::size_t> lengths;
    for (const auto& sequence : block.tokens().sequences) lengths.push_back(sequence.size());
    if (first_) {
      weights_ = std::make_shared<std::vector<double>>(quantize::weigh_first_tokens(lengths).weights);
      return;
    }
    AttentionReceived tap(block.tokens());
    block.run(tap);
    std::int64_t widest = 0;
    for (const model::BlockTensor* tensor : block.linears())
      if (const LinearTarget* target = plan.find(tensor->tensor->name)) widest = std::max(widest, target->columns);
    // Fewer than that, and the second moment of a layer's inputs would say little.
    quantize::TokenWeights chosen = quantize::weigh_tokens(tap.received(), lengths, least_, 4.0 * static_cast<double>(widest));
    block.note(fmt::format("rsq {}", block.layer()),
               fmt::format("{:.0f} of {} tokens, least {:g}", chosen.effective, chosen.weights.size(), chosen.least));
    if (chosen.least > least_)
      block.note(fmt::format("warning rsq {}", block.layer()),
                 fmt::format("the tokens of block {} are worth {:.0f} equal ones of {}: the least weight was raised from {:g} to {:g}", block.layer(),
                             chosen.effective, chosen.weights.size(), least_, chosen.least));
    weights_ = std::make_shared<std::vector<double>>(std::move(chosen.weights));
  }

  void want(StatisticsRequest& request, const LinearPlan&) const override { request.token_weights = weights_; }

 private:
  double least_;
  bool first_;
  std::size_t copies_;
  std::shared_ptr<const std::vector<double>> weights_;  ///< in the block at hand
};

}  // namespace

std::unique_ptr<LinearStep> make_rsq_step(const LinearPlan& plan) { return std::make_unique<RsqStep>(plan); }

}  // namespace weft::engine
