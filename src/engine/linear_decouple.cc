#include <fmt/format.h>

#include "base/text.h"
#include "engine/linear_step.h"
#include "quantize/decouple.h"

// decoupleQ: codes and scales by turns.
namespace weft::engine {
namespace {

class DecoupleStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    plan.compensates = true;
    const auto parameter = [&](std::string_view name) { return step_parameter(plan.options, "decoupleq", name); };
    rounds_ = static_cast<int>(parameter("rounds"));
    sweeps_ = static_cast<int>(parameter("sweeps"));
    drift_ = parameter("drift");
    quantize::SolverOptions& solver = plan.solver_options;
    // Scales are found here, once groups are what the format has.
    solver.static_groups = true;
    if (solver.order == quantize::Order::by_group) solver.order = quantize::Order::by_activation;
    solver.format.search = codec::Search::shrink;
    if (plan.options.order == "dynamic") refuse_linear("order", "decoupleq has groups of neighbouring inputs", "leave --order static");
    if (plan.format == LinearFormat::own && plan.integers() && solver.format.zero == codec::Zero::affine) solver.format.zero = codec::Zero::offset;
  }
  [[nodiscard]] bool two_streams(const LinearPlan&) const override { return drift_ != 0; }
  [[nodiscard]] bool in_sequence() const override { return true; }
  void want(StatisticsRequest& request, const LinearPlan&) const override { request.cross = request.cross || drift_ != 0; }
  void new_statistics() override { metric_of_ = nullptr; }

  void find_codes(LinearLayer& layer) override {
    if (layer.statistics == nullptr) return;
    const LinearTarget& target = layer.target;
    // Layers that read the same share it.
    if (metric_of_ != layer.statistics) {
      metric_ = quantize::decouple_metric(layer.statistics->gram, target.columns, layer.solver);
      metric_of_ = layer.statistics;
      if (metric_.factor.usable && metric_.factor.damping > layer.solver.damping * 1.5)
        layer.warn("damping", fmt::format("the inputs of '{}' are seen through {} tokens, too few for {} inputs: damped by {:g}",
                                          printable(target.name), layer.statistics->num_tokens, target.columns, metric_.factor.damping));
    }
    if (!metric_.factor.usable) {
      layer.warn("", fmt::format("what was read by '{}' cannot be used: it is rounded", printable(target.name)));
      layer.method = "rtn";
      return;
    }
    const quantize::DecoupleOptions options{.solver = layer.solver, .rounds = rounds_, .sweeps = sweeps_};
    if (!layer.tries && drift_ != 0)
      layer.values = quantize::drifted_target(layer.values, target.rows, target.columns, layer.statistics->cross, metric_.factor, drift_);
    layer.codes = quantize::prepare(target.rows, target.columns, layer.solver, metric_.factor);
    layer.for_each_slab(
        [&](std::int64_t first, std::int64_t count) { quantize::decouple_rows(layer.values, metric_, options, first, count, *layer.codes); });
  }

 private:
  int rounds_ = 0, sweeps_ = 0;
  double drift_ = 0;
  quantize::DecoupleMetric metric_;
  const InputStatistics* metric_of_ = nullptr;
};

}  // namespace

std::unique_ptr<LinearStep> make_decoupleq_step(const LinearPlan&) { return std::make_unique<DecoupleStep>(); }

}  // namespace weft::engine
