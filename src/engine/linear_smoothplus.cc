#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/linear_scales.h"
#include "engine/linear_step.h"
#include "engine/rounded_loss.h"
#include "quantize/scale_fold.h"
#include "weft/error.h"

// SmoothQuant+: one exponent of smoothing for the whole model, found by what the whole quantized model loses on the calibration text.
namespace weft::engine {
namespace {

class SmoothPlusStep final : public LinearStep {
 public:
  explicit SmoothPlusStep(const LinearPlan& plan)
      : step_(step_parameter(plan.options, "smoothplus", "step")), num_tokens_(step_parameter(plan.options, "smoothplus", "tokens")) {}

  void before_pass(LinearPlan& plan, RunningModel& model, std::shared_ptr<const CalibrationTokens>& tokens) override {
    if (!model.network().has_head())
      throw Error(ErrorCode::unsupported, "smoothplus compares the losses of a text, and the model has no head to predict one",
                  {.file = plan.model_name}, "use smooth");
    const std::shared_ptr<const CalibrationTokens> some = first_tokens(*tokens, static_cast<std::uint64_t>(num_tokens_));
    // Without any scales first, so that what is taken is never worse than rounding by its own measure.
    std::optional<double> best;
    double least = loss_with(plan, model, some, std::nullopt), plain = least;
    const auto count = static_cast<int>(std::floor(1 / step_ + 1e-9));
    for (int i = 0; i <= count; ++i) {
      const double exponent = std::min(1.0, step_ * i);
      const double loss = loss_with(plan, model, some, exponent);
      if (!(loss < least)) continue;
      least = loss;
      best = exponent;
    }
    exponent_ = best;
    told_ = best ? fmt::format("smoothplus smooths by {:g}: a loss of {:.5f} on {} tokens, {:.5f} without", *best, least, some->num_tokens(), plain)
                 : fmt::format("smoothplus smooths nothing: no exponent gives less than {:.5f} on {} tokens", plain, some->num_tokens());
  }

  void before_block(LinearPlan& plan, Block& block) override {
    if (block.layer() == 0) block.note("warning smoothplus", told_);
    smooth(plan, block, exponent_);
  }

 private:
  static void smooth(LinearPlan& plan, Block& block, std::optional<double> exponent) {
    if (!exponent) return;
    fold_scales(
        plan, block,
        [&](std::span<const quantize::Reader> readers, const InputStatistics& read, const LinearTarget& target) {
          return quantize::smooth_scales(readers, target.columns, read.max_abs, *exponent);
        },
        false);
  }

  /// Of the model whose layers are rounded after smoothing.
  static double loss_with(LinearPlan& plan, RunningModel& model, const std::shared_ptr<const CalibrationTokens>& tokens,
                          std::optional<double> exponent) {
    return rounded_loss(plan, model, tokens, {[&](Block& block) { smooth(plan, block, exponent); }, {}});
  }

  double step_, num_tokens_;
  std::optional<double> exponent_;
  std::string told_;
};

}  // namespace

std::unique_ptr<LinearStep> make_smoothplus_step(const LinearPlan& plan) { return std::make_unique<SmoothPlusStep>(plan); }

}  // namespace weft::engine
