#include <cmath>
#include <utility>

#include "merge/gram_merge.h"
#include "merge/table.h"
#include "weft/error.h"

// slerp: from one model to another along the sphere instead of the chord. Numbers as mergekit 0.1.5, whose thresholds these are.
namespace weft::merge {
namespace {

constexpr double kSmallestNorm = 1e-8;     // a shorter vector is not scaled to unit length
constexpr double kLargestCosine = 0.9995;  // beyond it (either way) the chord is taken

class Slerp final : public GramMerge {
 public:
  Slerp(const TensorContext& context, std::size_t base, double t) : GramMerge(context, {base, 1 - base}, std::nullopt), base_(base), t_(t) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override {
    if (t_ == 0) return base_;
    if (t_ == 1) return 1 - base_;
    return std::nullopt;
  }

 protected:
  Remark coefficients(const GramView& gram, std::span<double> out) const override {
    const auto unit = [](double norm) { return norm > kSmallestNorm ? norm : 1.0; };
    const double cosine = gram(0, 1) / unit(gram.norm(0)) / unit(gram.norm(1));
    if (std::abs(cosine) > kLargestCosine) {
      out[0] = 1 - t_;
      out[1] = t_;
      return cosine < 0 ? "the two models point in opposite directions, between which no path is the shortest; a linear step was taken" : nullptr;
    }
    const SphereStep step = sphere_step(cosine, t_);
    out[0] = step.first;
    out[1] = step.second;
    return nullptr;
  }

 private:
  std::size_t base_;
  double t_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  // A tensor that only one of the models has.
  if (context.inputs.size() == 1) return copy_of(0);
  const std::optional<std::size_t> base = context.base();
  if (context.inputs.size() != 2 || !base) {
    throw Error(ErrorCode::invalid_argument,
                "slerp takes two models, one of them the base_model; tensor '" + context.name + "' has " + std::to_string(context.inputs.size()) +
                    (base ? "" : " and no base"),
                {.tensor = context.name}, "list two models and name one of them as base_model");
  }
  return std::make_unique<Slerp>(context, *base, context.values.number("t"));
}

}  // namespace

Method slerp() {
  Method m;
  m.name = "slerp";
  m.summary = "from one model to another along the sphere (spherical linear interpolation)";
  m.paper = "Shoemake 1985, Animating rotation with quaternion curves";
  m.parameters = {
      {.name = "t", .help = "position between the base (0) and the other model (1)", .min = -kLargestStep, .max = kLargestStep},
  };
  m.min_models = 2;
  m.max_models = 2;
  m.base = BaseRule::one_of_two;
  m.passes = 2;
  m.make = make;
  return m;
}

}  // namespace weft::merge
