#include <fmt/format.h>

#include "base/text.h"
#include "engine/linear_step.h"

// GPTQ and GPTAQ: the error of each column made good by those that follow.
namespace weft::engine {
namespace {

class CompensationStep final : public LinearStep {
 public:
  explicit CompensationStep(double drift) : drift_(drift) {}

  void configure(LinearPlan& plan) override {
    plan.compensates = true;
    plan.solver_options.drift = drift_;
    if (drift_ == 0 && plan.solver == "gptq") plan.solver_options.leftover = step_parameter(plan.options, "gptq", "leftover") > 0;
    if (plan.options.search.empty()) plan.solver_options.format.search = codec::Search::shrink;
  }
  [[nodiscard]] bool two_streams(const LinearPlan&) const override { return drift_ != 0; }
  [[nodiscard]] bool in_sequence() const override { return true; }
  void want(StatisticsRequest& request, const LinearPlan&) const override { request.cross = drift_ != 0; }
  void new_statistics() override { factor_of_ = nullptr; }

  void find_codes(LinearLayer& layer) override {
    if (layer.statistics == nullptr) return;
    const LinearTarget& target = layer.target;
    if (layer.tries) layer.solver.drift = 0;
    // Layers that read the same share the factor, where groups do not decide its order.
    const std::int64_t group = layer.solver.order == quantize::Order::by_group ? layer.solver.group : 0;
    if (factor_of_ != layer.statistics || group_ != group) {
      group_ = group;
      factor_ = quantize::factorise(layer.statistics->gram, target.columns, layer.solver, layer.statistics->cross);
      factor_of_ = layer.statistics;
      if (factor_.usable && factor_.damping > layer.solver.damping * 1.5)
        layer.warn("damping", fmt::format("the inputs of '{}' are seen through {} tokens, too few for {} inputs: damped by {:g}",
                                          printable(target.name), layer.statistics->num_tokens, target.columns, factor_.damping));
    }
    if (!factor_.usable) {
      layer.warn("", fmt::format("what was read by '{}' cannot be used: it is rounded", printable(target.name)));
      layer.method = "rtn";
      return;
    }
    layer.codes = quantize::prepare(target.rows, target.columns, layer.solver, factor_);
    layer.for_each_slab(
        [&](std::int64_t first, std::int64_t count) { quantize::compensate_rows(layer.values, factor_, layer.solver, first, count, *layer.codes); });
  }

 private:
  double drift_;
  quantize::Factor factor_;
  const InputStatistics* factor_of_ = nullptr;
  std::int64_t group_ = 0;
};

}  // namespace

std::unique_ptr<LinearStep> make_gptq_step(const LinearPlan&) { return std::make_unique<CompensationStep>(0.0); }
std::unique_ptr<LinearStep> make_gptaq_step(const LinearPlan& plan) { return std::make_unique<CompensationStep>(plan.options.drift); }

}  // namespace weft::engine
