#include <cmath>
#include <utility>
#include <vector>

#include "math/combine.h"
#include "merge/table.h"
#include "weft/error.h"

// linear: the weighted average of checkpoints (model soup). Source: arXiv 2203.05482; numbers as mergekit 0.1.5.
namespace weft::merge {
namespace {

class Linear final : public TensorMerge {
 public:
  /// out = scale * sum_i weights[i] x_i.
  Linear(std::vector<double> weights, double scale) : weights_(std::move(weights)), scale_(scale) {
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i] == 0) continue;
      used_.push_back(i);
      used_weights_.push_back(weights_[i]);
    }
  }

  [[nodiscard]] bool reads_input(std::size_t i) const override { return weights_[i] != 0; }

  void map(const Tile& tile, std::span<float> out) const override {
    std::vector<const float*> inputs;
    inputs.reserve(used_.size());
    for (const std::size_t i : used_) inputs.push_back(tile.inputs[i]);
    math::weighted_sum_f64(inputs, used_weights_, scale_, out);
  }

 private:
  std::vector<double> weights_;
  std::vector<std::size_t> used_;  ///< inputs of another weight than zero
  std::vector<double> used_weights_;
  double scale_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  std::vector<double> weights;
  double sum = 0;
  std::size_t num_used = 0;
  std::size_t last_used = 0;
  for (const Input& input : context.inputs) {
    weights.push_back(input.values.number("weight"));
    sum += weights.back();
    if (weights.back() == 0) continue;
    ++num_used;
    last_used = weights.size() - 1;
  }
  const bool normalize = context.values.flag("normalize");
  if (normalize && std::abs(sum) < 1e-8) {
    throw Error(ErrorCode::invalid_argument, "the weights of tensor '" + context.name + "' sum to zero and cannot be normalised",
                {.tensor = context.name, .key = "weight"}, "give weights with another sum, or set normalize: false");
  }
  // The average of one model, or of one model and others of weight zero, is that model.
  if (num_used == 1 && (normalize || weights[last_used] == 1)) return copy_of(last_used);
  return std::make_unique<Linear>(std::move(weights), normalize ? 1.0 / sum : 1.0);
}

}  // namespace

Method linear() {
  Method m;
  m.name = "linear";
  m.summary = "weighted average of checkpoints (model soup)";
  m.paper = "arXiv:2203.05482";
  m.parameters = {
      {.name = "weight", .scope = ParameterScope::per_model, .help = "share of this model"},
      {.name = "normalize", .type = ParameterType::boolean, .default_value = 1, .help = "divide by the sum of the weights"},
  };
  m.make = make;
  return m;
}

}  // namespace weft::merge
