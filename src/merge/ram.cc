#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "merge/table.h"
#include "merge/task_vector.h"

// ram, ramplus_tl: average changes where several models made one, keep them whole where only one did. Source: arXiv 2601.13572; numbers as mergekit
// 0.1.5.
namespace weft::merge {
namespace {

constexpr std::size_t kPiece = 2048;

struct Scratch {
  std::vector<float> count;   ///< of models that changed the entry
  std::vector<float> total;   ///< of their changes
  std::vector<float> factor;  ///< of those models, summed: where one changed it, that model's
};

Scratch& scratch_of_thread() {
  thread_local Scratch scratch;
  return scratch;
}

class Ram final : public TensorMerge {
 public:
  /// amplify: whether the part that only one model changed is multiplied (ramplus_tl).
  Ram(std::size_t base, std::vector<std::size_t> models, float epsilon, bool amplify, double r, double alpha)
      : base_(base),
        models_(std::move(models)),
        epsilon_(epsilon),
        r_(r),
        alpha_(alpha),
        factors_(models_.size(), 1.0F),
        counting_(amplify),
        amplify_(amplify) {}

  [[nodiscard]] Pass next_pass() const override { return counting_ ? Pass::whole : Pass::none; }
  [[nodiscard]] std::size_t num_sums() const override { return 2 * models_.size(); }

  void reduce(const Tile& tile, std::span<double> sums, Tally* /*tally*/) const override {
    Scratch& scratch = scratch_of_thread();
    scratch.count.resize(kPiece);
    for (std::size_t begin = 0; begin < tile.count; begin += kPiece) {
      const std::size_t count = std::min(kPiece, tile.count - begin);
      const float* base = tile.inputs[base_] + begin;
      std::fill_n(scratch.count.begin(), count, 0.0F);
      for (const std::size_t m : models_)
        for (std::size_t i = 0; i < count; ++i) scratch.count[i] += is_change(tile.inputs[m][begin + i], base[i]) ? 1.0F : 0.0F;
      for (std::size_t k = 0; k < models_.size(); ++k) {
        const float* model = tile.inputs[models_[k]] + begin;
        std::uint32_t shared = 0;
        std::uint32_t unique = 0;
        for (std::size_t i = 0; i < count; ++i) {
          const auto changed = static_cast<std::uint32_t>(is_change(model[i], base[i]));
          shared += changed & static_cast<std::uint32_t>(scratch.count[i] > 1);
          unique += changed & static_cast<std::uint32_t>(scratch.count[i] == 1);
        }
        sums[2 * k] += shared;
        sums[2 * k + 1] += unique;
      }
    }
  }

  void solve(std::span<const double> totals, std::span<const std::unique_ptr<Tally>> /*tallies*/) override {
    for (std::size_t k = 0; k < models_.size(); ++k) {
      const double shared = totals[2 * k];
      const double unique = totals[2 * k + 1];
      // An epsilon of 0 and no unique entries: nothing that the factor could multiply.
      const double floor = std::max(unique, static_cast<double>(epsilon_));
      const double ratio = floor > 0 ? shared / floor : 0;
      factors_[k] = static_cast<float>(1 + r_ * std::clamp(ratio, 0.0, alpha_));
    }
    counting_ = false;
  }

  void map(const Tile& tile, std::span<float> out) const override {
    Scratch& scratch = scratch_of_thread();
    for (auto* v : {&scratch.count, &scratch.total, &scratch.factor}) v->resize(kPiece);
    for (std::size_t begin = 0; begin < tile.count; begin += kPiece) {
      const std::size_t count = std::min(kPiece, tile.count - begin);
      const float* base = tile.inputs[base_] + begin;
      for (auto* v : {&scratch.count, &scratch.total, &scratch.factor}) std::fill_n(v->begin(), count, 0.0F);
      for (std::size_t k = 0; k < models_.size(); ++k) {
        const float* model = tile.inputs[models_[k]] + begin;
        const float factor = factors_[k];
        for (std::size_t i = 0; i < count; ++i) {
          const bool changed = is_change(model[i], base[i]);
          scratch.count[i] += changed ? 1.0F : 0.0F;
          scratch.total[i] += changed ? model[i] - base[i] : 0.0F;
          scratch.factor[i] += changed ? factor : 0.0F;
        }
      }
      float* result = out.data() + begin;
      if (amplify_) {
        for (std::size_t i = 0; i < count; ++i) {
          const float single = scratch.total[i] * scratch.factor[i];
          const float mean = scratch.total[i] / std::max(scratch.count[i], 1.0F);
          result[i] = base[i] + (scratch.count[i] == 1 ? single : mean);
        }
      } else {
        for (std::size_t i = 0; i < count; ++i) result[i] = base[i] + scratch.total[i] / std::max(scratch.count[i], 1.0F);
      }
    }
  }

 private:
  [[nodiscard]] bool is_change(float model, float base) const noexcept { return std::abs(model - base) > epsilon_; }

  std::size_t base_;
  std::vector<std::size_t> models_;
  float epsilon_;
  double r_;
  double alpha_;
  std::vector<float> factors_;
  bool counting_;
  bool amplify_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  return std::make_unique<Ram>(required_base(context), context.non_base(), static_cast<float>(context.values.number("epsilon")), false, 0.0, 0.0);
}

std::unique_ptr<TensorMerge> make_plus(const TensorContext& context) {
  return std::make_unique<Ram>(required_base(context), context.non_base(), static_cast<float>(context.values.number("epsilon")), true,
                               context.values.number("r"), context.values.number("alpha"));
}

Method any_ram() {
  Method m;
  m.paper = "arXiv:2601.13572";
  m.parameters = {{.name = "epsilon", .default_value = 1e-5, .help = "changes up to this size count as none", .min = 0}};
  m.base = BaseRule::required;
  m.identity = Identity::none;
  return m;
}

}  // namespace

Method ram() {
  Method m = any_ram();
  m.name = "ram";
  m.summary = "average changes that several models share, keep those of one model whole";
  m.make = make;
  return m;
}

Method ramplus_tl() {
  Method m = any_ram();
  m.name = "ramplus_tl";
  m.summary = "as ram, with the changes of one model amplified by how much it shares";
  m.parameters.push_back({.name = "r", .default_value = 0.1, .help = "how strongly: the factor is 1 + r * min(shared / unique, alpha)"});
  m.parameters.push_back({.name = "alpha", .default_value = 0.2, .help = "largest ratio of shared to unique entries that counts", .min = 0});
  m.passes = 2;
  m.make = make_plus;
  return m;
}

}  // namespace weft::merge
