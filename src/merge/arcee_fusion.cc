#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "math/divergence.h"
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
  std::uint64_t limit_memory(std::uint64_t bytes, int workers) override {
    const std::uint64_t kept = divergences_.size() * sizeof(double);
    if (kept > bytes / 4) std::vector<double>().swap(divergences_);
    const std::uint64_t held = divergences_.size() * sizeof(double);
    return held + ranks_.limit_memory(bytes - std::min(bytes, held), workers);
  }
  [[nodiscard]] std::uint64_t scratch_bytes() const override {
    const std::uint64_t tile = std::max<std::uint64_t>(1, tiling().elements / row_length_) * row_length_;
    return tile * sizeof(float) + row_length_ * 2 * sizeof(double);
  }
  [[nodiscard]] Pass next_pass() const override { return ranks_.next_pass(); }
  [[nodiscard]] bool wants_tile(std::uint64_t first, std::size_t count) const override { return ranks_.wants_tile(first, count); }
  [[nodiscard]] std::unique_ptr<Tally> new_tally() const override { return ranks_.new_tally(); }

  void reduce(const Tile& tile, std::span<double>, Tally* tally) const override {
    thread_local std::vector<float> scores;
    scores.resize(tile.count);
    for (std::size_t begin = 0; begin < tile.count; begin += row_length_) {
      const std::span<const float> base = tile.input(base_).subspan(begin, row_length_);
      const std::span<const float> other = tile.input(other_).subspan(begin, row_length_);
      math::scaled_changes(other, base, divergence_of((tile.first + begin) / row_length_, other, base),
                           std::span(scores).subspan(begin, row_length_));
    }
    ranks_.add(*tally, tile.first, scores);
  }

  void solve(std::span<const double>, std::span<const std::unique_ptr<Tally>> tallies) override {
    ranks_.finish_pass(tallies);
    if (ranks_.next_pass() != Pass::none) return;
    const std::span<const math::RankedElement> quartiles = ranks_.results();
    const auto quartile = [&](std::size_t i) { return static_cast<double>(quartiles[i].magnitude); };
    const double threshold = quartile(1) + 1.5 * (quartile(2) - quartile(0));
    // Scores are float32: the least of them that reaches the threshold.
    least_ = static_cast<float>(threshold);
    if (static_cast<double>(least_) < threshold) least_ = std::nextafter(least_, std::numeric_limits<float>::infinity());
  }

  void map(const Tile& tile, std::span<float> out) const override {
    for (std::size_t begin = 0; begin < tile.count; begin += row_length_) {
      const std::span<const float> base = tile.input(base_).subspan(begin, row_length_);
      const std::span<const float> other = tile.input(other_).subspan(begin, row_length_);
      const double divergence = divergence_of((tile.first + begin) / row_length_, other, base);
      math::take_large_changes(base, other, divergence, least_, out.subspan(begin, row_length_));
    }
  }
  void finish() override { std::vector<double>().swap(divergences_); }

 private:
  /// Quantile(q) is element floor(q (n - 1)) of the ascending order; the selector counts from the largest.
  static std::vector<std::uint64_t> quartile_ranks(std::uint64_t n) {
    const auto rank = [n](double q) { return n - 1 - static_cast<std::uint64_t>(q * static_cast<double>(n - 1)); };
    return {rank(0.25), rank(0.5), rank(0.75)};
  }

  [[nodiscard]] double divergence_of(std::uint64_t row, std::span<const float> other, std::span<const float> base) const {
    if (divergences_.empty()) return divergence(other, base);
    // A row belongs to one tile, and a tile to one thread at a time.
    double& kept = divergences_[row];
    if (kept == kUnknown) kept = divergence(other, base);
    return kept;
  }
  [[nodiscard]] static double divergence(std::span<const float> other, std::span<const float> base) {
    if (std::equal(other.begin(), other.end(), base.begin())) return 0;
    thread_local std::vector<double> scratch;
    return math::softmax_divergence(other, base, kAddedProbability, scratch);
  }

  std::size_t base_;
  std::size_t other_;
  std::size_t row_length_;
  RankPasses ranks_;
  float least_ = 0;                          ///< score that is copied
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
