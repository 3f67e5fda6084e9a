#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <optional>
#include <utility>

#include "math/combine.h"
#include "math/reduce.h"
#include "merge/gram_merge.h"
#include "merge/rank_passes.h"
#include "merge/table.h"
#include "weft/error.h"

// sce (select, calculate, erase): keep the positions where the models disagree most, weight each model by how much it changed the tensor, and
// leave out what goes against the sign of the sum. Source: arXiv 2408.07990; numbers as mergekit 0.1.5.
namespace weft::merge {
namespace {

constexpr double kSmallestMeanSquares = 1e-6;  // of all models together; an absolute floor, kept for equal numbers
constexpr double kSmallestDivisor = 1e-6;

class Sce final : public TensorMerge {
 public:
  Sce(const TensorContext& context, std::size_t base, std::vector<std::size_t> models, double select_topk, bool relative_floor)
      : name_(context.name),
        warnings_(context.warnings),
        num_elements_(context.num_elements),
        base_(base),
        models_(std::move(models)),
        select_topk_(select_topk),
        relative_floor_(relative_floor),
        phase_(select_topk < 1 ? Phase::count : Phase::weigh) {}

  [[nodiscard]] Pass next_pass() const override {
    switch (phase_) {
      case Phase::count:
      case Phase::weigh:
        return Pass::whole;
      case Phase::rank:
        return ranks_->next_pass();
      case Phase::map:
        break;
    }
    return Pass::none;
  }
  [[nodiscard]] bool wants_tile(std::uint64_t first, std::size_t count) const override {
    return phase_ != Phase::rank || ranks_->wants_tile(first, count);
  }
  [[nodiscard]] std::size_t num_sums() const override { return phase_ == Phase::count ? 1 : phase_ == Phase::weigh ? models_.size() : 0; }
  [[nodiscard]] std::unique_ptr<Tally> new_tally() const override { return phase_ == Phase::rank ? ranks_->new_tally() : nullptr; }

  void reduce(const Tile& tile, std::span<double> sums, Tally* tally) const override {
    Block block(models_.size());
    while (next_block(tile, block)) {
      if (phase_ == Phase::weigh) {
        if (keep_ == Keep::chosen) erase_unchosen(tile, block);
        for (std::size_t k = 0; k < models_.size(); ++k) sums[k] += math::sum_squares(block.delta(k));
        continue;
      }
      variances(block);
      const std::span<const float> keys = std::span(block.keys).first(block.count);
      if (phase_ == Phase::rank)
        ranks_->add(*tally, tile.first + block.begin, keys);
      else
        sums[0] += static_cast<double>(std::count_if(keys.begin(), keys.end(), [](float key) { return key != 0; }));
    }
  }

  void solve(std::span<const double> totals, std::span<const std::unique_ptr<Tally>> tallies) override {
    if (phase_ == Phase::count) {
      const auto num_different = static_cast<std::uint64_t>(totals[0]);
      const auto num_kept = static_cast<std::uint64_t>(totals[0] * select_topk_);
      if (num_kept == 0) {
        keep_ = Keep::none;
        phase_ = Phase::map;
      } else {
        // Every position that differs at all ranks before those that do not, so the threshold is also right when all of the former are kept.
        keep_ = Keep::chosen;
        ranks_.emplace(num_elements_, std::vector<std::uint64_t>{std::min(num_kept, num_different) - 1});
        phase_ = Phase::rank;
        advance_from_rank();
      }
    } else if (phase_ == Phase::rank) {
      ranks_->finish_pass(tallies);
      advance_from_rank();
    } else {
      solve_weights(totals);
      phase_ = Phase::map;
    }
  }

  void map(const Tile& tile, std::span<float> out) const override {
    const std::span<const float> base = tile.input(base_);
    if (keep_ == Keep::none) {
      std::copy(base.begin(), base.end(), out.begin());
      return;
    }
    Block block(models_.size());
    while (next_block(tile, block)) {
      if (keep_ == Keep::chosen) erase_unchosen(tile, block);
      map_block(tile, block, out.subspan(block.begin, block.count));
    }
  }

 private:
  enum class Phase { count, rank, weigh, map };
  enum class Keep { all, chosen, none };

  /// Elements that are worked on at once: few enough that all of this stays in the first-level cache.
  static constexpr std::size_t kBlockElements = 512;
  struct Block {
    explicit Block(std::size_t num_models) : deltas(num_models * kBlockElements) {}
    [[nodiscard]] std::span<float> delta(std::size_t k) { return std::span(deltas).subspan(k * kBlockElements, count); }

    std::size_t begin = 0;  ///< in the tile
    std::size_t count = 0;
    std::vector<float> deltas;  ///< [models, kBlockElements]
    std::array<float, kBlockElements> keys;
    std::array<double, kBlockElements> first_sums;
    std::array<double, kBlockElements> second_sums;
  };

  /// Moves on to the next elements of the tile and takes the models' differences there; false at its end.
  bool next_block(const Tile& tile, Block& block) const {
    block.begin += block.count;
    block.count = std::min(kBlockElements, tile.count - block.begin);
    const std::span<const float> base = tile.input(base_).subspan(block.begin, block.count);
    for (std::size_t k = 0; k < models_.size(); ++k) math::subtract(tile.input(models_[k]).subspan(block.begin, block.count), base, block.delta(k));
    return block.count != 0;
  }

  /// Population variance over the models at each position, into the keys. One that exists is never rounded to zero or infinity.
  /// With e_k = d_k - d_0 it is (N sum e^2 - (sum e)^2) / N^2; as e_0 = 0, that loses no more than a factor N to cancellation, and is 0 exactly where
  /// all d are equal.
  void variances(Block& block) const {
    std::array<double, kBlockElements>& sums = block.first_sums;
    std::array<double, kBlockElements>& squares = block.second_sums;
    sums.fill(0);
    squares.fill(0);
    const std::span<const float> origin = block.delta(0);
    // Model by model, so that the loops run along the block.
    for (std::size_t k = 1; k < models_.size(); ++k) {
      const std::span<const float> delta = block.delta(k);
      for (std::size_t i = 0; i < block.count; ++i) {
        const double e = static_cast<double>(delta[i]) - static_cast<double>(origin[i]);
        sums[i] += e;
        squares[i] += e * e;
      }
    }
    const auto n = static_cast<double>(models_.size());
    const double scale = 1 / (n * n);
    for (std::size_t i = 0; i < block.count; ++i) {
      const double variance = (n * squares[i] - sums[i] * sums[i]) * scale;
      block.keys[i] = variance > 0 ? static_cast<float>(std::clamp(variance, double{FLT_TRUE_MIN}, double{FLT_MAX})) : 0.0F;
    }
  }

  void erase_unchosen(const Tile& tile, Block& block) const {
    const math::RankedElement threshold = ranks_->results()[0];
    variances(block);
    const std::uint64_t first = tile.first + block.begin;
    for (std::size_t k = 0; k < models_.size(); ++k) {
      const std::span<float> delta = block.delta(k);
      for (std::size_t i = 0; i < block.count; ++i) delta[i] = math::at_or_above(block.keys[i], first + i, threshold) ? delta[i] : 0.0F;
    }
  }

  void map_block(const Tile& tile, Block& block, std::span<float> out) const {
    // The vote is a float32 sum in the models' order, as elsewhere: near zero its rounding decides.
    std::array<float, kBlockElements>& vote = block.keys;
    vote.fill(0);
    for (std::size_t k = 0; k < models_.size(); ++k) {
      const std::span<const float> delta = block.delta(k);
      for (std::size_t i = 0; i < block.count; ++i) vote[i] += delta[i];
    }
    std::array<double, kBlockElements>& mixed = block.first_sums;
    std::array<double, kBlockElements>& divisor = block.second_sums;
    mixed.fill(0);
    divisor.fill(0);
    const float* const base = tile.inputs[base_] + block.begin;
    for (std::size_t k = 0; k < models_.size(); ++k) {
      const std::span<const float> delta = block.delta(k);
      const float* const model = tile.inputs[models_[k]] + block.begin;
      const double weight = weights_[k];
      for (std::size_t i = 0; i < block.count; ++i) {
        const bool agrees = vote[i] >= 0 ? delta[i] > 0 : delta[i] < 0;
        const double share = agrees ? weight : 0.0;
        // The exact difference, so that one model, or copies of it, come back bit for bit.
        mixed[i] += share * (static_cast<double>(model[i]) - static_cast<double>(base[i]));
        divisor[i] += share;
      }
    }
    for (std::size_t i = 0; i < block.count; ++i) {
      out[i] = static_cast<float>(static_cast<double>(base[i]) + mixed[i] / std::max(divisor[i], kSmallestDivisor));
    }
  }

  void advance_from_rank() {
    if (ranks_->next_pass() == Pass::none) phase_ = Phase::weigh;
  }

  void solve_weights(std::span<const double> sums_of_squares) {
    double total = 0;
    for (const double sum : sums_of_squares) weights_.push_back(sum / static_cast<double>(std::max<std::uint64_t>(1, num_elements_)));
    for (const double mean : weights_) total += mean;
    const bool uniform = relative_floor_ ? total == 0 : total < kSmallestMeanSquares;
    if (uniform && total > 0 && models_.size() > 1 && warnings_ != nullptr) {
      warnings_->push_back(about_tensor(
          name_, "the models changed so little here that the floor of 1e-6 makes their weights equal; relative_floor: true weights them"));
    }
    for (double& weight : weights_) weight = uniform ? 1.0 / static_cast<double>(models_.size()) : weight / total;
  }

  std::string name_;
  std::vector<std::string>* warnings_;
  std::uint64_t num_elements_;
  std::size_t base_;
  std::vector<std::size_t> models_;
  double select_topk_;
  bool relative_floor_;
  Phase phase_;
  Keep keep_ = Keep::all;
  std::optional<RankPasses> ranks_;
  std::vector<double> weights_;
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  const std::optional<std::size_t> base = context.base();
  std::vector<std::size_t> models = context.non_base();
  if (!base) {
    throw Error(ErrorCode::invalid_argument, "sce takes a base; tensor '" + context.name + "' has none", {.tensor = context.name},
                "name a base_model that has this tensor");
  }
  const double select_topk = context.values.number("select_topk");
  // One model alone has no variance, so nothing of it would be selected.
  if (models.empty() || (models.size() == 1 && select_topk < 1)) return copy_of(*base);
  return std::make_unique<Sce>(context, *base, std::move(models), select_topk, context.values.flag("relative_floor"));
}

}  // namespace

Method sce() {
  Method m;
  m.name = "sce";
  m.summary = "weight models by how much they changed each tensor; keep what differs most, erase what goes against the sum";
  m.paper = "arXiv:2408.07990";
  m.parameters = {
      {.name = "select_topk", .default_value = 1, .help = "share of the positions that differ between models that is kept; 1: everything", .min = 0},
      {.name = "int8_mask", .type = ParameterType::boolean, .default_value = 0, .help = "no effect: masks take no memory here", .ignored = true},
      {.name = "relative_floor", .type = ParameterType::boolean, .default_value = 0, .help = "weight models however small their changes"},
  };
  m.base = BaseRule::required;
  m.passes = 2;
  m.make = make;
  return m;
}

}  // namespace weft::merge
