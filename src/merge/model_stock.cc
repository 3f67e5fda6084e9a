#include <algorithm>
#include <cmath>
#include <utility>

#include "merge/gram_merge.h"
#include "merge/table.h"
#include "weft/error.h"

// model_stock: the mean of several fine-tunes, pulled to the base by an amount that the angles between them tell.
// Source: arXiv 2403.19522; numbers as mergekit 0.1.5.
namespace weft::merge {
namespace {

constexpr double kSmallestProduct = 1e-6;      // of two lengths; an absolute floor, kept for equal numbers
constexpr double kSmallestDenominator = 1e-6;  // of t

class ModelStock final : public GramMerge {
 public:
  ModelStock(const TensorContext& context, std::vector<std::size_t> models, VectorAxis axis, bool clamps)
      : GramMerge(context, std::move(models), context.base(), axis), clamps_(clamps) {}

 protected:
  Remark coefficients(const GramView& gram, std::span<double> out) const override {
    const std::size_t n = gram.size();
    const auto count = static_cast<double>(n);
    double sum = 0;
    bool floored = false;
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = i + 1; j < n; ++j) {
        const double product = gram.norm(i) * gram.norm(j);
        floored = floored || (product > 0 && product < kSmallestProduct);
        sum += std::clamp(gram(i, j) / std::max(product, kSmallestProduct), -1.0, 1.0);
      }
    const double cosine = sum / (count * (count - 1) / 2);
    const double denominator = 1 + (count - 1) * cosine;
    Remark remark = floored ? "the models changed so little here that the floor of 1e-6 hides their angle and pulls the result to the base" : nullptr;
    double t = 0;
    if (std::abs(denominator) < kSmallestDenominator) {
      remark = "the models' changes cancel; the base was taken";
    } else {
      t = count * cosine / denominator;
    }
    // Rounding puts models that agree a little beyond 1.
    if (t < 0 || t > 1 + 1e-9) {
      remark =
          clamps_
              ? "the models' changes disagree, so the step t lies outside [0, 1]; it was clamped"
              : "the models' changes disagree, so the step t lies outside [0, 1] and the result leaves the models; clamp_t: true keeps it between";
    }
    if (clamps_) t = std::clamp(t, 0.0, 1.0);
    std::fill(out.begin(), out.end(), t / count);
    return remark;
  }

 private:
  bool clamps_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  const std::optional<std::size_t> base = context.base();
  std::vector<std::size_t> models = context.non_base();
  if (base && models.empty()) return copy_of(*base);
  if (!base || models.size() < 2) {
    throw Error(ErrorCode::invalid_argument,
                "model_stock takes a base and at least two models; tensor '" + context.name + "' has " + (base ? "the base" : "no base") + " and " +
                    std::to_string(models.size()) + (models.size() == 1 ? " model" : " models"),
                {.tensor = context.name}, "list at least two models beside base_model");
  }
  const VectorAxis axis = context.values.flag("filter_wise") ? VectorAxis::rows : VectorAxis::whole;
  return std::make_unique<ModelStock>(context, std::move(models), axis, context.values.flag("clamp_t"));
}

}  // namespace

Method model_stock() {
  Method m;
  m.name = "model_stock";
  m.summary = "mean of several fine-tunes, pulled to the base by what the angles between them tell";
  m.paper = "arXiv:2403.19522";
  m.parameters = {
      {.name = "filter_wise", .type = ParameterType::boolean, .default_value = 0, .help = "an angle for each row instead of each tensor"},
      {.name = "clamp_t", .type = ParameterType::boolean, .default_value = 0, .help = "keep the step between base and mean within [0, 1]"},
  };
  m.min_models = 2;
  m.base = BaseRule::required;
  m.passes = 2;
  m.make = make;
  return m;
}

}  // namespace weft::merge
