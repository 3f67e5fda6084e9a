#include <cstddef>

#include "merge/table.h"
#include "merge/task_vector.h"

// transfer: give a new version of a base what a fine-tune taught the old one. Source: arXiv 2503.20110.
namespace weft::merge {
namespace {

class Transfer final : public TensorMerge {
 public:
  Transfer(std::size_t source, std::size_t tuned, std::size_t target, double lambda)
      : source_(source), tuned_(tuned), target_(target), lambda_(lambda) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override { return lambda_ == 0 ? std::optional(target_) : std::nullopt; }

  void map(const Tile& tile, std::span<float> out) const override {
    const float* source = tile.inputs[source_];
    const float* tuned = tile.inputs[tuned_];
    const float* target = tile.inputs[target_];
    const bool whole = lambda_ == 1;
    for (std::size_t i = 0; i < tile.count; ++i) {
      const double change = static_cast<double>(tuned[i]) - static_cast<double>(source[i]);
      const auto moved = static_cast<float>(static_cast<double>(target[i]) + lambda_ * change);
      // What does not differ is handed on without any rounding: an equal target becomes the fine-tune, an unchanged weight stays the target's.
      const float added = tuned[i] == source[i] ? target[i] : moved;
      out[i] = whole && target[i] == source[i] ? tuned[i] : added;
    }
  }

 private:
  std::size_t source_;
  std::size_t tuned_;
  std::size_t target_;
  double lambda_;
};

}  // namespace

Method transfer() {
  Method m;
  m.name = "transfer";
  m.summary = "give a new base version the changes that a fine-tune made to the old one";
  m.paper = "arXiv:2503.20110";
  m.parameters = {{.name = "lambda", .default_value = 1, .help = "how much of the change is transferred"}};
  m.min_models = 2;
  m.max_models = 2;
  m.base = BaseRule::required;
  m.symmetric = false;
  m.identity = Identity::none;
  m.make = [](const TensorContext& context) -> std::unique_ptr<TensorMerge> {
    const auto models = context.non_base();
    return std::make_unique<Transfer>(required_base(context), models.at(0), models.at(1), context.values.number("lambda"));
  };
  return m;
}

}  // namespace weft::merge
