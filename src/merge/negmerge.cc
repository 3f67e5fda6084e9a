#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
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

class NegMerge final : public TensorMerge {
 public:
  NegMerge(const TensorContext& context, std::size_t base, std::vector<std::size_t> models, double lambda)
      : base_(base), models_(std::move(models)), lambda_(lambda), name_(context.name), warnings_(context.warnings) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override { return lambda_ == 0 ? std::optional(base_) : std::nullopt; }

  void map(const Tile& tile, std::span<float> out) const override {
    thread_local std::vector<double> sum;
    thread_local std::vector<float> votes;
    sum.resize(kPiece);
    votes.resize(kPiece);
    const auto num_models = static_cast<float>(models_.size());
    const double scale = -lambda_ / static_cast<double>(models_.size());
    std::uint32_t any_change = 0;  // the bits of all changes
    bool any_agreement = false;
    for (std::size_t begin = 0; begin < tile.count; begin += kPiece) {
      const std::size_t count = std::min(kPiece, tile.count - begin);
      const float* base = tile.inputs[base_] + begin;
      std::fill_n(sum.begin(), count, 0.0);
      std::fill_n(votes.begin(), count, 0.0F);
      for (const std::size_t m : models_) {
        const float* model = tile.inputs[m] + begin;
        for (std::size_t i = 0; i < count; ++i) {
          const float d = model[i] - base[i];
          sum[i] += static_cast<double>(d);
          any_change |= std::bit_cast<std::uint32_t>(std::abs(d));
          votes[i] += (d > 0 ? 1.0F : 0.0F) - (d < 0 ? 1.0F : 0.0F);
        }
      }
      for (std::size_t i = 0; i < count; ++i) {
        const bool unanimous = votes[i] == num_models || votes[i] == -num_models;
        out[begin + i] = unanimous ? static_cast<float>(static_cast<double>(base[i]) + scale * sum[i]) : base[i];
        any_agreement |= unanimous;
      }
    }
    if (any_change != 0) any_change_.store(true, std::memory_order_relaxed);
    if (any_agreement) any_agreement_.store(true, std::memory_order_relaxed);
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
