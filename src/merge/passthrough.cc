#include "math/combine.h"
#include "merge/table.h"
#include "weft/error.h"

// passthrough: one model's tensor, copied or scaled; with slices it stacks, repeats and re-orders layers. As mergekit 0.1.5.
namespace weft::merge {
namespace {

class Passthrough final : public TensorMerge {
 public:
  explicit Passthrough(double scale) : scale_(scale) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override { return scale_ == 1 ? std::optional<std::size_t>(0) : std::nullopt; }
  void map(const Tile& tile, std::span<float> out) const override { math::weighted_sum_f64(tile.inputs, std::span(&scale_, 1), 1.0, out); }

 private:
  double scale_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  if (context.inputs.size() != 1) {
    throw Error(ErrorCode::invalid_argument,
                "passthrough takes exactly one model; tensor '" + context.name + "' has " + std::to_string(context.inputs.size()),
                {.tensor = context.name}, "give each slice one source and no other base_model, or use a method that merges");
  }
  return std::make_unique<Passthrough>(context.inputs[0].values.find("scale").value_or(1.0));
}

}  // namespace

Method passthrough() {
  Method m;
  m.name = "passthrough";
  m.summary = "copy one model's tensors, scaled where asked; with slices: stack, repeat, re-order layers";
  m.paper = "";
  m.parameters = {
      {.name = "scale", .scope = ParameterScope::per_model, .help = "factor; without one the stored bytes are copied", .optional_value = true},
  };
  m.max_models = 1;
  m.make = make;
  return m;
}

}  // namespace weft::merge
