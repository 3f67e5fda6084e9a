#include <algorithm>
#include <bit>
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

// Arrays of masks and counts instead of branches: whether an entry was changed is hard to predict.
struct Scratch {
  std::vector<std::uint32_t> count;  ///< of models that changed the entry
  std::vector<float> total;          ///< of their changes
  std::vector<float> factor;         ///< of those models, summed: where one changed it, that model's
};

Scratch& scratch_of_thread() {
  thread_local Scratch scratch;
  scratch.count.resize(kPiece);
  scratch.total.resize(kPiece);
  scratch.factor.resize(kPiece);
  return scratch;
}

std::uint32_t bits_of(float x) noexcept { return std::bit_cast<std::uint32_t>(x); }
float masked(float x, std::uint32_t mask) noexcept { return std::bit_cast<float>(bits_of(x) & mask); }

class Ram final : public TensorMerge {
 public:
  /// amplify: whether the part that only one model changed is multiplied (ramplus_tl).
  Ram(std::size_t base, std::vector<std::size_t> models, float epsilon, bool amplify, double r, double alpha)
      : base_(base),
        models_(std::move(models)),
        epsilon_(epsilon),
        epsilon_bits_(static_cast<std::int32_t>(bits_of(epsilon))),
        r_(r),
        alpha_(alpha),
        factors_(models_.size(), 1.0F),
        counting_(amplify),
        amplify_(amplify) {}

  [[nodiscard]] Pass next_pass() const override { return counting_ ? Pass::whole : Pass::none; }
  [[nodiscard]] std::size_t num_sums() const override { return 2 * models_.size(); }

  void reduce(const Tile& tile, std::span<double> sums, Tally* /*tally*/) const override {
    Scratch& scratch = scratch_of_thread();
    std::uint32_t* const counts = scratch.count.data();
    const std::int32_t epsilon = epsilon_bits_;
    for (std::size_t begin = 0; begin < tile.count; begin += kPiece) {
      const std::size_t count = std::min(kPiece, tile.count - begin);
      const float* const base = tile.inputs[base_] + begin;
      std::fill_n(counts, count, 0U);
      for (const std::size_t m : models_) {
        const float* const model = tile.inputs[m] + begin;
        for (std::size_t i = 0; i < count; ++i) counts[i] -= change_mask(model[i] - base[i], epsilon);
      }
      for (std::size_t k = 0; k < models_.size(); ++k) {
        const float* const model = tile.inputs[models_[k]] + begin;
        std::uint32_t changed = 0;
        std::uint32_t unique = 0;
        for (std::size_t i = 0; i < count; ++i) {
          const std::uint32_t one = change_mask(model[i] - base[i], epsilon) & 1U;
          changed += one;
          unique += one & static_cast<std::uint32_t>(counts[i] == 1);
        }
        sums[2 * k] += changed - unique;
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
    std::uint32_t* const counts = scratch.count.data();
    float* const total = scratch.total.data();
    float* const factor = scratch.factor.data();
    const std::int32_t epsilon = epsilon_bits_;
    for (std::size_t begin = 0; begin < tile.count; begin += kPiece) {
      const std::size_t count = std::min(kPiece, tile.count - begin);
      const float* const base = tile.inputs[base_] + begin;
      float* const result = out.data() + begin;
      std::fill_n(counts, count, 0U);
      std::fill_n(total, count, 0.0F);
      for (const std::size_t m : models_) {
        const float* const model = tile.inputs[m] + begin;
        for (std::size_t i = 0; i < count; ++i) {
          const float change = model[i] - base[i];
          const std::uint32_t mask = change_mask(change, epsilon);
          counts[i] -= mask;
          total[i] += masked(change, mask);
        }
      }
      if (amplify_) sum_factors(tile, begin, count, factor);
      for (std::size_t i = 0; i < count; ++i) {
        const float mean = total[i] / static_cast<float>(static_cast<std::int32_t>(counts[i] | static_cast<std::uint32_t>(counts[i] == 0)));
        result[i] = base[i] + mean;
      }
      if (!amplify_) continue;
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t single = 0U - static_cast<std::uint32_t>(counts[i] == 1);
        const float amplified = base[i] + total[i] * factor[i];
        result[i] = std::bit_cast<float>((bits_of(amplified) & single) | (bits_of(result[i]) & ~single));
      }
    }
  }

 private:
  /// All bits set where this counts as a change. Magnitudes are ordered as their bits.
  [[nodiscard]] static std::uint32_t change_mask(float change, std::int32_t epsilon_bits) noexcept {
    return 0U - static_cast<std::uint32_t>(static_cast<std::int32_t>(bits_of(change) & 0x7FFFFFFFU) > epsilon_bits);
  }
  void sum_factors(const Tile& tile, std::size_t begin, std::size_t count, float* factor) const {
    const float* const base = tile.inputs[base_] + begin;
    const std::int32_t epsilon = epsilon_bits_;
    std::fill_n(factor, count, 0.0F);
    for (std::size_t k = 0; k < models_.size(); ++k) {
      const float* const model = tile.inputs[models_[k]] + begin;
      const float own = factors_[k];
      for (std::size_t i = 0; i < count; ++i) factor[i] += masked(own, change_mask(model[i] - base[i], epsilon));
    }
  }

  std::size_t base_;
  std::vector<std::size_t> models_;
  float epsilon_;
  std::int32_t epsilon_bits_;
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
