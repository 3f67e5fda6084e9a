#include <algorithm>
#include <cfloat>
#include <cmath>
#include <optional>
#include <utility>

#include "math/elementary.h"
#include "merge/rank_passes.h"
#include "merge/table.h"
#include "weft/error.h"

// arcee_fusion: copy only the most important changes of one model into another. Numbers as mergekit 0.1.5, with exact quantiles where that draws a
// million elements.
namespace weft::merge {
namespace {

constexpr double kAddedProbability = 1e-8;
// Divergences of rows are kept between passes while they take no more than this.
constexpr std::uint64_t kMaxKeptRows = std::uint64_t{1} << 22;
constexpr double kUnknown = -1;

class ArceeFusion final : public TensorMerge {
 public:
  ArceeFusion(const TensorContext& context, std::size_t base)
      : base_(base),
        other_(1 - base),
        row_length_(static_cast<std::size_t>(context.row_length())),
        ranks_(context.num_elements, quartile_ranks(context.num_elements)) {
    const std::uint64_t num_rows = context.num_elements / row_length_;
    if (num_rows <= kMaxKeptRows) divergences_.assign(num_rows, kUnknown);
  }

  [[nodiscard]] Tiling tiling() const override { return {.unit = Tiling::Unit::rows}; }
  [[nodiscard]] Pass next_pass() const override { return ranks_.next_pass(); }
  [[nodiscard]] bool wants_tile(std::uint64_t first, std::size_t count) const override { return ranks_.wants_tile(first, count); }
  [[nodiscard]] std::unique_ptr<Tally> new_tally() const override { return ranks_.new_tally(); }

  void reduce(const Tile& tile, std::span<double>, Tally* tally) const override {
    std::vector<float> scores(tile.count);
    importance(tile, scores);
    ranks_.add(*tally, tile.first, scores);
  }

  void solve(std::span<const double>, std::span<const std::unique_ptr<Tally>> tallies) override {
    ranks_.finish_pass(tallies);
    if (ranks_.next_pass() != Pass::none) return;
    const std::span<const math::RankedElement> quartiles = ranks_.results();
    const auto quartile = [&](std::size_t i) { return static_cast<double>(quartiles[i].magnitude); };
    threshold_ = quartile(1) + 1.5 * (quartile(2) - quartile(0));
  }

  void map(const Tile& tile, std::span<float> out) const override {
    std::vector<float> scores(tile.count);
    importance(tile, scores);
    const float* const base = tile.inputs[base_];
    const float* const other = tile.inputs[other_];
    for (std::size_t i = 0; i < tile.count; ++i) out[i] = static_cast<double>(scores[i]) >= threshold_ ? other[i] : base[i];
  }

 private:
  /// Of one row.
  struct Scratch {
    std::vector<double> p;
    std::vector<double> q;
    std::vector<double> log_ratio;
  };

  /// Quantile(q) is element floor(q (n - 1)) of the ascending order; the selector counts from the largest.
  static std::vector<std::uint64_t> quartile_ranks(std::uint64_t n) {
    const auto rank = [n](double q) { return n - 1 - static_cast<std::uint64_t>(q * static_cast<double>(n - 1)); };
    return {rank(0.25), rank(0.5), rank(0.75)};
  }

  /// |other - base| times the divergence of its row.
  void importance(const Tile& tile, std::span<float> scores) const {
    const std::vector<double> zeros(row_length_);
    Scratch scratch{zeros, zeros, zeros};
    for (std::size_t begin = 0; begin < tile.count; begin += row_length_) {
      const std::span<const float> base = tile.input(base_).subspan(begin, row_length_);
      const std::span<const float> other = tile.input(other_).subspan(begin, row_length_);
      const double divergence = divergence_of((tile.first + begin) / row_length_, other, base, scratch);
      for (std::size_t i = 0; i < row_length_; ++i) {
        const double change = std::abs(static_cast<double>(other[i]) - static_cast<double>(base[i]));
        const double score = change * divergence;
        // Where NaN is let through it must not rank.
        scores[begin + i] = score > 0 ? static_cast<float>(std::min(score, double{FLT_MAX})) : 0.0F;
      }
    }
  }

  double divergence_of(std::uint64_t row, std::span<const float> a, std::span<const float> b, Scratch& scratch) const {
    if (divergences_.empty()) return kullback_leibler(a, b, scratch);
    // A row belongs to one tile, and a tile to one thread at a time.
    double& kept = divergences_[row];
    if (kept == kUnknown) kept = kullback_leibler(a, b, scratch);
    return kept;
  }

  /// sum p ln(p / q) of softmax(a) and softmax(b), each with 1e-8 added. Both sum to the same, so by Gibbs' inequality it is not negative.
  static double kullback_leibler(std::span<const float> a, std::span<const float> b, Scratch& scratch) {
    if (std::equal(a.begin(), a.end(), b.begin())) return 0;
    softmax(a, scratch.p);
    softmax(b, scratch.q);
    for (std::size_t i = 0; i < a.size(); ++i) scratch.q[i] = scratch.p[i] / scratch.q[i];
    math::log_of(scratch.q, scratch.log_ratio);
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += scratch.p[i] * scratch.log_ratio[i];
    return std::max(sum, 0.0);
  }

  static void softmax(std::span<const float> x, std::span<double> p) {
    math::exp_shifted(x, -static_cast<double>(*std::max_element(x.begin(), x.end())), p);
    double sum = 0;
    for (const double e : p) sum += e;
    for (double& e : p) e = e / sum + kAddedProbability;
  }

  std::size_t base_;
  std::size_t other_;
  std::size_t row_length_;
  RankPasses ranks_;
  double threshold_ = 0;
  mutable std::vector<double> divergences_;  ///< a row; kUnknown until first needed
};

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  if (context.inputs.size() == 1) return copy_of(0);
  const std::optional<std::size_t> base = context.base();
  if (context.inputs.size() != 2 || !base) {
    throw Error(ErrorCode::invalid_argument,
                "arcee_fusion takes two models, one of them the base_model; tensor '" + context.name + "' has " +
                    std::to_string(context.inputs.size()) + (base ? "" : " and no base"),
                {.tensor = context.name}, "list two models and name one of them as base_model");
  }
  // Rows of one element have one distribution: every score is 0, which is the threshold too, and everything is copied.
  if (context.num_elements == 0 || context.row_length() == 1) return copy_of(1 - *base);
  return std::make_unique<ArceeFusion>(context, *base);
}

}  // namespace

Method arcee_fusion() {
  Method m;
  m.name = "arcee_fusion";
  m.summary = "copy the changes that stand out by size and by their row's change of distribution";
  m.paper = "";
  m.min_models = 2;
  m.max_models = 2;
  m.base = BaseRule::one_of_two;
  m.passes = 3;
  m.make = make;
  return m;
}

}  // namespace weft::merge
