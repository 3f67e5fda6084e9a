#include <cstddef>

#include "math/combine.h"
#include "merge/table.h"
#include "merge/task_vector.h"

// nearswap: move every weight of the base toward a second model, by at most t. Numbers as mergekit 0.1.5.
namespace weft::merge {
namespace {

// Differences below this count as this, as mergekit.
constexpr double kSmallestDifference = 1e-6;

class Nearswap final : public TensorMerge {
 public:
  Nearswap(std::size_t base, std::size_t other, double t) : base_(base), other_(other), t_(t) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override { return t_ <= 0 ? std::optional(base_) : std::nullopt; }

  void map(const Tile& tile, std::span<float> out) const override {
    // base + q (other - base), q = min(t / |other - base|, 1): a step of t, or the other model itself where that is nearer.
    if (t_ >= kSmallestDifference) {
      math::step_toward(tile.input(base_), tile.input(other_), t_, out);
    } else {
      math::step_part_way(tile.input(base_), tile.input(other_), t_, kSmallestDifference, out);
    }
  }

 private:
  std::size_t base_;
  std::size_t other_;
  double t_;
};

}  // namespace

Method nearswap() {
  Method m;
  m.name = "nearswap";
  m.summary = "move each weight of the base toward another model by at most t";
  m.parameters = {{.name = "t", .help = "largest change of a weight"}};
  m.max_models = 1;
  m.base = BaseRule::required;
  m.identity = Identity::none;
  m.make = [](const TensorContext& context) -> std::unique_ptr<TensorMerge> {
    return std::make_unique<Nearswap>(required_base(context), context.non_base().at(0), context.values.number("t"));
  };
  return m;
}

}  // namespace weft::merge
