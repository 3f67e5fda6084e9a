#include "codec/scalar_grid.h"
#include "engine/linear_step.h"
#include "quantize/scale_fold.h"

// Rounding to nearest, and what only changes its ranges and zero points.
namespace weft::engine {
namespace {

/// The format's own rounding.
class RtnStep final : public LinearStep {};

class HqqStep final : public LinearStep {
 public:
  void configure(LinearPlan& plan) override {
    if (!plan.integers()) refuse_linear("method", "hqq finds zero points, which floating-point codes have none of", "use --numbers int");
    plan.solver_options.format.zero = codec::Zero::offset;
    plan.solver_options.format.search = codec::Search::hqq;
  }
};

class ClipStep final : public LinearStep {
 public:
  [[nodiscard]] bool in_sequence() const override { return true; }
  void before_codes(LinearLayer& layer) override {
    if (layer.statistics == nullptr) return;
    // As published: what a clipped query or key does to the scores is not seen in the layer's own outputs.
    if (layer.block != nullptr) {
      const model::Role role = layer.block->tensor(layer.target.name).slot.role;
      if (role == model::Role::q || role == model::Role::k || role == model::Role::qkv) return;
    }
    const std::int64_t columns = layer.target.columns;
    layer.for_each_slab([&](std::int64_t first, std::int64_t count) {
      const auto rows = std::span(layer.values).subspan(static_cast<std::size_t>(first * columns), static_cast<std::size_t>(count * columns));
      quantize::clip_groups(rows, count, columns, layer.gram(), layer.solver);
    });
  }
};

}  // namespace

std::unique_ptr<LinearStep> make_rtn_step(const LinearPlan&) { return std::make_unique<RtnStep>(); }
std::unique_ptr<LinearStep> make_hqq_step(const LinearPlan&) { return std::make_unique<HqqStep>(); }
std::unique_ptr<LinearStep> make_clip_step(const LinearPlan&) { return std::make_unique<ClipStep>(); }

}  // namespace weft::engine
