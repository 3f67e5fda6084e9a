#include <cmath>
#include <utility>

#include "math/combine.h"
#include "merge/table.h"
#include "weft/error.h"

// linear: the weighted average of checkpoints (model soup). Source: arXiv 2203.05482; numbers as mergekit 0.1.5.
namespace weft::merge {
namespace {

class Linear final : public TensorMerge {
 public:
  Linear(std::vector<double> weights, double scale) : weights_(std::move(weights)), scale_(scale) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override {
    // The average of one model, or of one model and others of weight zero, is that model.
    std::optional<std::size_t> only;
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i] == 0) continue;
      if (only) return std::nullopt;
      only = i;
    }
    return only && weights_[*only] * scale_ == 1.0 ? only : std::nullopt;
  }
  [[nodiscard]] bool reads_input(std::size_t i) const override { return weights_[i] != 0; }

  void map(const Tile& tile, std::span<float> out) const override { math::weighted_sum_f64(tile.inputs, weights_, scale_, out); }

 private:
  std::vector<double> weights_;
  double scale_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  std::vector<double> weights;
  double sum = 0;
  for (const Input& input : context.inputs) {
    weights.push_back(input.values.number("weight"));
    sum += weights.back();
  }
  if (!context.values.flag("normalize")) return std::make_unique<Linear>(std::move(weights), 1.0);
  if (std::abs(sum) < 1e-8) {
    throw Error(ErrorCode::invalid_argument, "the weights of tensor '" + context.name + "' sum to zero and cannot be normalised",
                {.tensor = context.name, .key = "weight"}, "give weights with another sum, or set normalize: false");
  }
  return std::make_unique<Linear>(std::move(weights), 1.0 / sum);
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
