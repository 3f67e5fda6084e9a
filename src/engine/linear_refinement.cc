#include <algorithm>

#include "engine/linear_step.h"
#include "quantize/refine.h"

// What moves codes and scales once they are there, and the grid that leaves no code for 0.
namespace weft::engine {
namespace {

class RefineStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    if (plan.is_bitsandbytes())
      refuse_linear("method", "bitsandbytes' scales are its own, and nothing is left to refine", "leave it out, or use another format");
    if (plan.blocks || plan.form == codec::CompressedForm::nvfp4)
      refuse_linear("method", "scales of blocks, and scales of scales, are not refined", "leave it out");
    rounds_ = static_cast<int>(step_parameter(plan.options, "refine", "rounds"));
    damping_ = step_parameter(plan.options, "refine", "damping");
  }
  [[nodiscard]] bool in_sequence() const override { return true; }
  void new_statistics() override { basis_of_ = nullptr; }

  void after_codes(LinearLayer& layer) override {
    if (layer.statistics == nullptr) return;
    codec::QuantizedLinear& codes = layer.need_codes();
    // Layers that read the same share what they are weighed by, unless each has groups in an order of its own.
    if (basis_of_ != layer.statistics || group_of_ != codes.group_of) {
      basis_ = quantize::refine_basis(layer.gram(), layer.target.columns, damping_, codes.group_of);
      basis_of_ = layer.statistics;
      group_of_ = codes.group_of;
    }
    // Toward the layer as it came, whatever was done to its range; what is kept beside the codes is none of theirs.
    std::vector<float> wanted(layer.original.begin(), layer.original.end());
    for (const std::int64_t at : layer.taken_at) wanted[static_cast<std::size_t>(at)] = 0;
    layer.for_each_slab(
        [&](std::int64_t first, std::int64_t count) { quantize::refine_rows(wanted, basis_, layer.solver, rounds_, first, count, codes); });
  }

 private:
  int rounds_ = 0;
  double damping_ = 0;
  quantize::RefineBasis basis_;
  std::vector<std::int32_t> group_of_;
  const InputStatistics* basis_of_ = nullptr;
};

class HalfwayStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    if (!plan.integers()) refuse_linear("method", "halfway is a zero point, which floating-point codes have none of", "use --numbers int");
    if (plan.options.symmetric) refuse_linear("symmetric", "halfway has a zero point of its own", "leave out --symmetric and --asymmetric");
    plan.solver_options.format.zero = codec::Zero::halfway;
    if (plan.options.search.empty()) plan.solver_options.format.search = codec::Search::shrink;
  }
};

}  // namespace

std::unique_ptr<LinearStep> make_refine_step(const LinearPlan&) { return std::make_unique<RefineStep>(); }
std::unique_ptr<LinearStep> make_halfway_step(const LinearPlan&) { return std::make_unique<HalfwayStep>(); }

}  // namespace weft::engine
