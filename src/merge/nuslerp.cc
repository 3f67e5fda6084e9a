#include <algorithm>
#include <cmath>
#include <utility>

#include "merge/gram_merge.h"
#include "merge/table.h"
#include "weft/error.h"

// nuslerp: slerp with a weight a model, for whole tensors, rows or columns, on the models or on their differences to a base.
// Numbers as mergekit 0.1.5, except between nearly opposite vectors.
namespace weft::merge {
namespace {

constexpr double kSmallestNorm = 1e-7;
constexpr double kSmallestSquaredSine = 1e-16;
constexpr double kOppositeCosine = -1 + 1e-6;  // beyond it the direction of the path is rounding noise

class NuSlerp final : public GramMerge {
 public:
  NuSlerp(const TensorContext& context, std::vector<std::size_t> models, VectorAxis axis, double t)
      : GramMerge(context, models, context.base(), axis), models_(std::move(models)), t_(t) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override {
    if (t_ == 0) return models_[0];
    if (t_ == 1) return models_[1];
    return std::nullopt;
  }

 protected:
  Remark coefficients(const GramView& gram, std::span<double> out) const override {
    const double cosine = std::clamp(gram(0, 1) / std::max(gram.norm(0), kSmallestNorm) / std::max(gram.norm(1), kSmallestNorm), -1.0, 1.0);
    const bool opposite = cosine < kOppositeCosine;
    if (opposite || 1 - cosine * cosine <= kSmallestSquaredSine) {
      out[0] = 1 - t_;
      out[1] = t_;
      return opposite ? "the two models point in opposite directions, between which no path is the shortest; a linear step was taken" : nullptr;
    }
    const SphereStep step = sphere_step(cosine, t_);
    out[0] = step.first;
    out[1] = step.second;
    return nullptr;
  }

 private:
  std::vector<std::size_t> models_;
  double t_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  if (context.inputs.size() == 1) return copy_of(0);
  std::vector<std::size_t> models = context.non_base();
  if (models.size() != 2) {
    throw Error(ErrorCode::invalid_argument,
                "nuslerp takes two models beside an optional base; tensor '" + context.name + "' has " + std::to_string(models.size()),
                {.tensor = context.name}, "list two models; base_model, if given, is a third");
  }
  const double w0 = context.inputs[models[0]].values.number("weight");
  const double w1 = context.inputs[models[1]].values.number("weight");
  const double sum = w0 + w1;
  const double t = std::abs(sum) < 1e-6 ? 0.5 : w1 / sum;
  if (std::abs(t) > kLargestStep) {
    throw Error(ErrorCode::invalid_argument, "the weights of tensor '" + context.name + "' nearly cancel", {.tensor = context.name, .key = "weight"},
                "give weights with another sum");
  }
  const bool columns = context.values.flag("nuslerp_row_wise");
  const VectorAxis axis = context.values.flag("nuslerp_flatten") ? VectorAxis::whole : columns ? VectorAxis::columns : VectorAxis::rows;
  return std::make_unique<NuSlerp>(context, std::move(models), axis, t);
}

}  // namespace

Method nuslerp() {
  Method m;
  m.name = "nuslerp";
  m.summary = "slerp with weights, of whole tensors, rows or columns, on models or on differences to a base";
  m.paper = "Shoemake 1985, Animating rotation with quaternion curves";
  m.parameters = {
      {.name = "weight", .scope = ParameterScope::per_model, .help = "share of this model; the position is w2 / (w1 + w2)"},
      {.name = "nuslerp_flatten",
       .type = ParameterType::boolean,
       .default_value = 1,
       .help = "the tensor is one vector; false: each slice along the last axis"},
      {.name = "nuslerp_row_wise",
       .type = ParameterType::boolean,
       .default_value = 0,
       .help = "with nuslerp_flatten false: each slice along the first axis (a column of a matrix; the name says the opposite)"},
  };
  m.min_models = 2;
  m.max_models = 2;
  m.base = BaseRule::optional;
  m.passes = 2;
  m.make = make;
  return m;
}

}  // namespace weft::merge
