#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "merge/table.h"
#include "merge/task_vector.h"

// negmerge: subtract what all fine-tunes on the data to forget agree on. Source: arXiv 2410.05583.
namespace weft::merge {
namespace {

constexpr std::size_t kPiece = 2048;

// Masks (all bits set or none), because branches on signs are hard to predict.
struct Scratch {
  std::vector<double> sum;
  std::vector<std::uint32_t> all_positive;
  std::vector<std::uint32_t> all_negative;
};

class NegMerge final : public TensorMerge {
 public:
  NegMerge(const TensorContext& context, std::size_t base, std::vector<std::size_t> models, double lambda)
      : base_(base), models_(std::move(models)), lambda_(lambda), name_(context.name), warnings_(context.warnings) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override { return lambda_ == 0 ? std::optional(base_) : std::nullopt; }

  void map(const Tile& tile, std::span<float> out) const override {
    thread_local Scratch scratch;
    scratch.sum.resize(kPiece);
    scratch.all_positive.resize(kPiece);
    scratch.all_negative.resize(kPiece);
    double* const sum = scratch.sum.data();
    std::uint32_t* const all_positive = scratch.all_positive.data();
    std::uint32_t* const all_negative = scratch.all_negative.data();
    const double scale = -lambda_ / static_cast<double>(models_.size());
    std::uint32_t any_change = 0;  // bits of changes; not zero when there is one
    std::uint32_t any_agreement = 0;
    for (std::size_t begin = 0; begin < tile.count; begin += kPiece) {
      const std::size_t count = std::min(kPiece, tile.count - begin);
      const float* const base = tile.inputs[base_] + begin;
      float* const result = out.data() + begin;
      std::fill_n(sum, count, 0.0);
      std::fill_n(all_positive, count, ~0U);
      std::fill_n(all_negative, count, ~0U);
      for (const std::size_t m : models_) {
        const float* const model = tile.inputs[m] + begin;
        for (std::size_t i = 0; i < count; ++i) sum[i] += static_cast<double>(model[i] - base[i]);
        for (std::size_t i = 0; i < count; ++i) {
          const std::uint32_t bits = std::bit_cast<std::uint32_t>(model[i] - base[i]);
          const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
          const std::uint32_t negative = 0U - (bits >> 31);
          const std::uint32_t changed = 0U - static_cast<std::uint32_t>(magnitude != 0);
          any_change |= magnitude;
          all_positive[i] &= changed & ~negative;
          all_negative[i] &= changed & negative;
        }
      }
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t unanimous = all_positive[i] | all_negative[i];
        const auto moved = static_cast<float>(static_cast<double>(base[i]) + scale * sum[i]);
        result[i] = std::bit_cast<float>((std::bit_cast<std::uint32_t>(moved) & unanimous) | (std::bit_cast<std::uint32_t>(base[i]) & ~unanimous));
        any_agreement |= unanimous;
      }
    }
    if (any_change != 0) any_change_.store(true, std::memory_order_relaxed);
    if (any_agreement != 0) any_agreement_.store(true, std::memory_order_relaxed);
  }

  void finish() override {
    if (warnings_ != nullptr && any_change_ && !any_agreement_)
      warnings_->push_back("tensor '" + name_ + "': the models agree on the sign of no change, so the base is left as it is");
  }

 private:
  std::size_t base_;
  std::vector<std::size_t> models_;
  double lambda_;
  std::string name_;
  std::vector<std::string>* warnings_;
  mutable std::atomic<bool> any_change_ = false;
  mutable std::atomic<bool> any_agreement_ = false;
};

}  // namespace

Method negmerge() {
  Method m;
  m.name = "negmerge";
  m.summary = "forget a task: subtract the changes on whose sign all its fine-tunes agree";
  m.paper = "arXiv:2410.05583";
  m.parameters = {{.name = "lambda", .default_value = 1, .help = "how much of the mean change is subtracted"}};
  m.base = BaseRule::required;
  m.identity = Identity::none;
  m.make = [](const TensorContext& context) -> std::unique_ptr<TensorMerge> {
    return std::make_unique<NegMerge>(context, required_base(context), context.non_base(), context.values.number("lambda"));
  };
  return m;
}

}  // namespace weft::merge
