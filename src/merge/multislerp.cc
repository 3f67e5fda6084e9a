#include <algorithm>
#include <cmath>
#include <utility>

#include "math/elementary.h"
#include "merge/gram_merge.h"
#include "merge/table.h"
#include "weft/error.h"

// multislerp: the weighted mean of directions, with the weighted mean of lengths. mergekit 0.1.5 takes one step of a Karcher mean in the tangent
// space at the mean direction; there the step is zero, because the mean direction is parallel to the weighted sum of the directions:
//   out = (sum_i w_i |x_i|) M / |M| cos(eps),  M = sum_i w_i x_i / (|x_i| + eps).
namespace weft::merge {
namespace {

// |M|^2 comes from a Gram matrix whose terms carry relative errors of about 1e-15, so a smaller |M| cannot be told from zero.
constexpr double kSmallestMean = 1e-7;

class MultiSlerp final : public GramMerge {
 public:
  MultiSlerp(const TensorContext& context, std::vector<std::size_t> models, std::vector<double> weights, double eps)
      : GramMerge(context, std::move(models), context.base()), weights_(std::move(weights)), eps_(eps) {}

 protected:
  Remark coefficients(const GramView& gram, std::span<double> out) const override {
    const std::size_t n = gram.size();
    double length = 0;  // of the result
    double largest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double norm = gram.norm(i);
      length += weights_[i] * norm;
      largest = std::max(largest, norm);
      out[i] = norm + eps_ > 0 ? weights_[i] / (norm + eps_) : 0.0;
    }
    double squared = 0;  // |M|^2
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) squared += out[i] * out[j] * gram(i, j);
    const double mean = std::sqrt(std::max(squared, 0.0));
    if (mean < std::max(eps_, kSmallestMean)) {
      std::copy(weights_.begin(), weights_.end(), out.begin());
      // No direction at all: nothing changed in this tensor, and the weighted sum says so.
      if (largest <= eps_) return nullptr;
      if (n == 2) return "the directions cancel; the weighted sum was taken";
      throw Error(ErrorCode::invalid_argument, "the weighted directions of tensor '" + name() + "' cancel, so their mean points nowhere",
                  {.tensor = name(), .key = "weight"}, "change the weights, or use another method for this tensor");
    }
    const double factor = length / mean * math::cos(eps_);
    for (double& weight : out) weight *= factor;
    return nullptr;
  }

 private:
  std::vector<double> weights_;
  double eps_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  std::vector<std::size_t> models = context.non_base();
  if (models.empty()) return copy_of(*context.base());
  if (models.size() == 1) return copy_of(models[0]);
  std::vector<double> weights;
  double sum = 0;
  for (const std::size_t i : models) {
    weights.push_back(context.inputs[i].values.number("weight"));
    sum += weights.back();
  }
  if (context.values.flag("normalize_weights")) {
    if (std::abs(sum) < 1e-8) {
      throw Error(ErrorCode::invalid_argument, "the weights of tensor '" + context.name + "' sum to zero and cannot be normalised",
                  {.tensor = context.name, .key = "weight"}, "give weights with another sum, or set normalize_weights: false");
    }
    for (double& weight : weights) weight /= sum;
  }
  return std::make_unique<MultiSlerp>(context, std::move(models), std::move(weights), context.values.number("eps"));
}

}  // namespace

Method multislerp() {
  Method m;
  m.name = "multislerp";
  m.summary = "spherical average of any number of models, or of their differences to a base";
  m.paper = "";
  m.parameters = {
      {.name = "weight", .scope = ParameterScope::per_model, .help = "share of this model"},
      {.name = "normalize_weights", .type = ParameterType::boolean, .default_value = 1, .help = "divide the weights by their sum"},
      {.name = "eps", .default_value = 1e-8, .help = "added to lengths; a shorter mean direction counts as none", .min = 0, .max = 1},
  };
  m.base = BaseRule::optional;
  m.passes = 2;
  m.make = make;
  return m;
}

}  // namespace weft::merge
