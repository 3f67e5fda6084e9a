#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/linear_step.h"
#include "math/convert.h"

// What scales may be: FireQ's numbers of 8 bits, and ZeroQuant-FP's powers of two.
namespace weft::engine {
namespace {

/// The format rounds by itself only where nothing else is asked for; here something is.
class ScaleFormStep : public LinearStep {
 public:
  void after_codes(LinearLayer& layer) override { layer.need_codes(); }
};

class FireqStep final : public ScaleFormStep {
 public:
  void configure(LinearPlan& plan) override {
    if (!plan.integers()) refuse_linear("method", "fireq has integer codes", "use --numbers int");
    if (plan.options.symmetric == false) refuse_linear("symmetric", "fireq's codes are symmetric", "leave out --asymmetric");
    plan.symmetric = true;
    plan.solver_options.format.zero = codec::Zero::restricted;
  }
  void before_codes(LinearLayer& layer) override {
    codec::SliceFormat& format = layer.solver.format;
    // The largest scale is the largest number whose product with any code is one, too; the unit brings it there.
    constexpr float kLargest = 448;
    const auto most = static_cast<float>((1 << (format.bits - 1)) - 1);
    float top = math::decode_one(DType::f8_e4m3, math::encode_one(DType::f8_e4m3, kLargest / most));
    if (top * most > kLargest) top = math::decode_one(DType::f8_e4m3, math::encode_one(DType::f8_e4m3, kLargest / most) - 1);
    float largest = 0;
    for (const float value : layer.values) largest = std::max(largest, std::fabs(value));
    format.scale_type = DType::f8_e4m3;
    format.scale_unit = std::max(largest / most / top, std::numeric_limits<float>::min());
    format.rounds_products = true;
  }
};

class ShiftsStep final : public ScaleFormStep {
 public:
  void configure(LinearPlan& plan) override {
    if (plan.format == LinearFormat::compressed && (plan.blocks || plan.form == codec::CompressedForm::nvfp4))
      refuse_linear("method", "scales of blocks, and scales of scales, stay as they are", "leave 'shifts' out, or use --format weft");
    if (plan.form == codec::CompressedForm::mxfp4 || plan.form == codec::CompressedForm::mxfp6 || plan.form == codec::CompressedForm::mxfp8)
      refuse_linear("method", "the scales of these numbers are powers of two already", "leave 'shifts' out");
    if (plan.options.order == "dynamic") refuse_linear("order", "'shifts' compares the scales of neighbouring groups", "leave --order static");
    const double rule = step_parameter(plan.options, "shifts", "rule");
    if (rule != 1 && rule != 2) refuse_linear("set", fmt::format("there is no rule {:g} of shifts", rule), "give 1 or 2");
    plan.solver_options.scale_rule = rule == 1 ? quantize::ScaleRule::powers : quantize::ScaleRule::ratios;
  }
};

}  // namespace

std::unique_ptr<LinearStep> make_fireq_step(const LinearPlan&) { return std::make_unique<FireqStep>(); }
std::unique_ptr<LinearStep> make_shifts_step(const LinearPlan&) { return std::make_unique<ShiftsStep>(); }

}  // namespace weft::engine
