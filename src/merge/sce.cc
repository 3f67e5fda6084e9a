#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "math/agreement.h"
#include "math/bit_mask.h"
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
        relative_floor_(relative_floor) {
    if (select_topk >= 1) return;
    keep_ = Keep::chosen;
    // Every position that differs at all ranks before those that do not, so the threshold is also right when all of the former are kept.
    ranks_.emplace(math::RankSelector::of_share_of_nonzero(num_elements_, select_topk));
    phase_ = Phase::rank;
    advance_from_rank();
  }

  [[nodiscard]] Pass next_pass() const override {
    return phase_ == Phase::rank ? ranks_->next_pass() : phase_ == Phase::weigh ? Pass::whole : Pass::none;
  }
  [[nodiscard]] bool wants_tile(std::uint64_t first, std::size_t count) const override {
    return phase_ != Phase::rank || ranks_->wants_tile(first, count);
  }
  [[nodiscard]] std::size_t num_sums() const override { return phase_ == Phase::weigh ? models_.size() : 0; }
  [[nodiscard]] std::unique_ptr<Tally> new_tally() const override { return phase_ == Phase::rank ? ranks_->new_tally() : nullptr; }

  [[nodiscard]] std::size_t most_sums() const override { return models_.size(); }
  std::uint64_t limit_memory(std::uint64_t bytes, int workers) override { return ranks_ ? ranks_->limit_memory(bytes, workers) : 0; }

  [[nodiscard]] std::uint64_t cache_bytes() const override {
    return keep_ == Keep::chosen ? (num_elements_ + kBlockElements - 1) / kBlockElements * math::packed_bytes(kBlockElements) : 0;
  }
  void use_cache() override { chosen_ = std::make_unique_for_overwrite<std::uint8_t[]>(static_cast<std::size_t>(cache_bytes())); }
  void finish() override { chosen_.reset(); }

  void reduce(const Tile& tile, std::span<double> sums, Tally* tally) const override {
    Block block(tile);
    while (next_block(block)) {
      if (phase_ == Phase::rank) {
        const std::span<float> keys = std::span(block.values).first(block.count);
        math::delta_variances(block.base, block.models, keys);
        ranks_->add(*tally, block.first, keys);
        continue;
      }
      const std::span<const std::uint8_t> chosen = keep_ == Keep::chosen ? choose(block) : std::span<const std::uint8_t>();
      const std::span<float> deltas = std::span(block.values).first(block.count);
      for (std::size_t k = 0; k < models_.size(); ++k) {
        math::subtract({block.models[k], block.count}, block.base, deltas);
        if (keep_ == Keep::chosen) math::keep_packed(deltas, chosen);
        sums[k] += math::sum_squares(deltas);
      }
    }
  }

  void solve(std::span<const double> totals, std::span<const std::unique_ptr<Tally>> tallies) override {
    if (phase_ == Phase::rank) {
      ranks_->finish_pass(tallies);
      advance_from_rank();
    } else {
      solve_weights(totals);
      phase_ = Phase::map;
    }
  }

  void map(const Tile& tile, std::span<float> out) const override {
    if (keep_ == Keep::none) {
      const std::span<const float> base = tile.input(base_);
      std::copy(base.begin(), base.end(), out.begin());
      return;
    }
    Block block(tile);
    while (next_block(block)) {
      const std::span<float> result = out.subspan(static_cast<std::size_t>(block.first - tile.first), block.count);
      math::add_agreeing_mean(block.base, block.models, weights_, kSmallestDivisor, result);
      if (keep_ == Keep::chosen) math::replace_unpacked(result, block.base, chosen_ != nullptr ? kept_of(block) : choose(block));
    }
  }

 private:
  enum class Phase { rank, weigh, map };
  enum class Keep { all, chosen, none };

  /// Elements that are worked on at once: few enough that all of this stays in the first-level cache. Tiles hold whole blocks.
  static constexpr std::size_t kBlockElements = 1024;
  struct Block {
    explicit Block(const Tile& t) : tile(t), first(t.first) {}

    const Tile& tile;
    std::uint64_t first;
    std::size_t count = 0;
    std::span<const float> base = {};
    std::vector<const float*> models = {};
    std::array<float, kBlockElements> values;
    std::array<std::uint8_t, math::packed_bytes(kBlockElements)> bits;
  };

  /// Moves on to the next elements of the tile; false at its end.
  bool next_block(Block& block) const {
    block.first += block.count;
    const auto begin = static_cast<std::size_t>(block.first - block.tile.first);
    block.count = std::min(kBlockElements, block.tile.count - begin);
    block.base = block.tile.input(base_).subspan(begin, block.count);
    block.models.clear();
    for (const std::size_t model : models_) block.models.push_back(block.tile.inputs[model] + begin);
    return block.count != 0;
  }

  [[nodiscard]] std::span<std::uint8_t> kept_of(const Block& block) const noexcept {
    return {chosen_.get() + block.first / kBlockElements * math::packed_bytes(kBlockElements), math::packed_bytes(block.count)};
  }

  /// The positions that stay, one bit each; they are left for map where there is room.
  std::span<const std::uint8_t> choose(Block& block) const {
    const math::RankedElement threshold = ranks_->results()[0];
    const std::span<float> keys = std::span(block.values).first(block.count);
    const std::span<std::uint8_t> bits = chosen_ != nullptr ? kept_of(block) : std::span(block.bits).first(math::packed_bytes(block.count));
    math::delta_variances(block.base, block.models, keys);
    math::pack_at_or_above(keys, block.first, threshold.magnitude, threshold.index, bits);
    return bits;
  }

  void advance_from_rank() {
    if (ranks_->next_pass() != Pass::none) return;
    phase_ = Phase::weigh;
    if (!ranks_->results().empty()) return;
    keep_ = Keep::none;
    phase_ = Phase::map;
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
  bool relative_floor_;
  Phase phase_ = Phase::weigh;
  Keep keep_ = Keep::all;
  std::optional<RankPasses> ranks_;
  std::unique_ptr<std::uint8_t[]> chosen_;  ///< positions that stay, one bit each, block by block; null: they are chosen again
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
