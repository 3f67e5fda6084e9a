#include "merge/task_vector.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/philox.h"
#include "math/bit_mask.h"
#include "math/combine.h"
#include "math/reduce.h"
#include "math/row_select.h"
#include "math/select.h"
#include "weft/error.h"

namespace weft::merge {
namespace {

// Phases work on pieces of a tile, so that the scratch of all models stays in the first levels of the cache.
constexpr std::size_t kPiece = 2048;
// No rescaling when an L1 norm is below this, as mergekit.
constexpr double kSmallestNorm = 1e-7;
// A sum of weights below this counts as zero, as mergekit.
constexpr double kSmallestDivisor = 1e-8;

/// mergekit's int(share * n): the product in double precision, truncated; here also held within [0, n].
std::uint64_t part_of(double share, std::uint64_t n) noexcept {
  const double product = share * static_cast<double>(n);
  if (!(product > 0)) return 0;
  return product >= static_cast<double>(n) ? n : static_cast<std::uint64_t>(product);
}

// ---- one task vector

struct TaskVector {
  std::size_t input = 0;  ///< position in the tile's inputs
  std::uint32_t model_index = 0;
  float weight = 1;
  Keep keep = Keep::all;
  bool restores_norm = false;  ///< multiply what stays by the L1 norm before / after
  float factor = 1;            ///< of rescaling
  // largest, middle: the selector until it is done, then its answer
  std::optional<math::RankSelector> selector = {};
  std::uint64_t num_dropped_top = 0;     ///< middle
  std::uint64_t num_dropped_bottom = 0;  ///< middle
  std::optional<math::RankedElement> smallest_kept = {};
  std::optional<math::RankedElement> smallest_dropped_top = {};
  // random, random_by_rank
  float threshold = 0;
  std::optional<math::RowRankMask> rows = {};
  bool unbiased = false;
  /// Where the kept entries of this vector are noted between the passes: one bit each, piece by piece; null: they are drawn again.
  std::unique_ptr<std::uint8_t[]> kept = {};
};

struct Scratch {
  std::vector<float> values;  ///< [vectors, piece]
  std::vector<float> uniform;
  std::vector<float> line;
  std::vector<float> line_uniform;
  std::vector<float> mixed;
  std::vector<float> divisor;
  std::vector<const float*> pointers;
  math::RowRankMask::Scratch ranks;
};

Scratch& scratch_of_thread() {
  thread_local Scratch scratch;
  return scratch;
}

/// The whole sum as one kernel: no entry is dropped and none is outvoted, so that everything happens in float64 and is rounded once.
class PlainTaskVectors final : public TensorMerge {
 public:
  PlainTaskVectors(std::size_t base, std::vector<std::size_t> positions, std::vector<double> weights, double scale, std::size_t num_inputs)
      : base_(base), positions_(std::move(positions)), weights_(std::move(weights)), scale_(scale), reads_(num_inputs, false) {
    for (const std::size_t p : positions_) reads_[p] = true;
    double rest = 1;
    double size = 0;
    for (const double w : weights_) {
      rest -= w * scale_;
      size += std::abs(w * scale_);
    }
    cancels_base_ = !positions_.empty() && std::abs(rest) <= 4 * std::numeric_limits<double>::epsilon() * size;
    reads_[base_] = !cancels_base_;
  }

  [[nodiscard]] std::optional<std::size_t> copied_input() const override {
    if (positions_.empty() || scale_ == 0) return base_;
    if (positions_.size() == 1 && weights_[0] * scale_ == 1.0) return positions_[0];
    return std::nullopt;
  }
  [[nodiscard]] bool reads_input(std::size_t i) const override { return reads_[i]; }

  void map(const Tile& tile, std::span<float> out) const override {
    auto& pointers = scratch_of_thread().pointers;
    pointers.clear();
    for (const std::size_t p : positions_) pointers.push_back(tile.inputs[p]);
    if (cancels_base_) {
      math::weighted_sum_f64(pointers, weights_, scale_, out);
    } else {
      math::add_weighted_deltas_f64(tile.input(base_), pointers, weights_, scale_, out);
    }
  }

 private:
  std::size_t base_;
  std::vector<std::size_t> positions_;
  std::vector<double> weights_;
  double scale_;
  std::vector<bool> reads_;
  bool cancels_base_ =
      false;  ///< the shares sum to one, so that this is an average: the base need not be read, and copies of a model give that model
};

// ---- the general case

struct SelectTally final : Tally {
  std::vector<std::unique_ptr<math::RankSelector::Tally>> parts;  ///< by vector; null where its selector takes no part in this pass
};

struct Combination {
  bool consensus = false;
  bool normalize = false;
  float divisor = 1;  ///< without consensus
  float lambda = 1;
};

class SparseTaskVectors final : public TensorMerge {
 public:
  SparseTaskVectors(const TensorContext& context, std::size_t base, std::vector<TaskVector> vectors, Combination how)
      : base_(base),
        vectors_(std::move(vectors)),
        how_(how),
        key_(context.seed ^ fnv1a64(context.name)),
        num_elements_(context.num_elements),
        reads_(context.inputs.size(), false) {
    reads_[base_] = true;
    for (const TaskVector& v : vectors_) {
      reads_[v.input] = true;
      sums_pending_ = sums_pending_ || v.restores_norm;
      weights_.push_back(v.weight);
      ranks_rows_ = ranks_rows_ || v.keep == Keep::random_by_rank;
    }
    // Ranks run along axis 1; a vector is one row. In more than two dimensions a line is not contiguous, and a tile holds whole slabs of the first
    // axis.
    const Shape& shape = context.shape;
    if (shape.size() < 2) {
      line_length_ = context.num_elements;
    } else {
      line_length_ = static_cast<std::uint64_t>(shape[1]);
      for (std::size_t axis = 2; axis < shape.size(); ++axis) line_stride_ *= static_cast<std::uint64_t>(shape[axis]);
    }
    if (ranks_rows_ && line_length_ >= 0x80000000U) {
      throw Error(ErrorCode::unsupported,
                  "tensor '" + context.name + "' has a row of " + std::to_string(line_length_) + " elements to rank, fewer than 2^31 are supported",
                  {.tensor = context.name}, "set density: 1 for this tensor");
    }
    finish_selection();
  }

  [[nodiscard]] Tiling tiling() const override {
    if (!ranks_rows_) return {};
    const std::uint64_t piece = piece_length();
    return {Tiling::Unit::rows, std::max<std::uint64_t>(1, Tiling{}.elements / piece) * piece};
  }
  [[nodiscard]] bool reads_input(std::size_t i) const override { return reads_[i]; }

  std::uint64_t limit_memory(std::uint64_t bytes, int workers) override {
    const auto num_selectors =
        static_cast<std::uint64_t>(std::count_if(vectors_.begin(), vectors_.end(), [](const TaskVector& v) { return v.selector.has_value(); }));
    std::uint64_t held = 0;
    for (TaskVector& v : vectors_)
      if (v.selector) held += v.selector->limit_memory(bytes / num_selectors, workers);
    return held;
  }
  [[nodiscard]] std::uint64_t scratch_bytes() const override {
    // The values of every vector, the sum, its divisor and random numbers; to rank a line, also itself, what is known of each entry and the bins.
    const std::uint64_t piece = std::min<std::uint64_t>(piece_length(), num_elements_);
    const std::uint64_t ranking = ranks_rows_ ? line_length_ * math::RowRankMask::kScratchBytes : 0;
    return piece * sizeof(float) * (vectors_.size() + 3) + ranking;
  }
  [[nodiscard]] std::size_t most_sums() const override { return sums_pending_ ? 2 * vectors_.size() : 0; }

  [[nodiscard]] std::uint64_t cache_bytes() const override {
    return kept_bytes() * static_cast<std::uint64_t>(std::count_if(vectors_.begin(), vectors_.end(), draws_twice));
  }
  void use_cache() override {
    for (TaskVector& v : vectors_)
      if (draws_twice(v)) v.kept = std::make_unique_for_overwrite<std::uint8_t[]>(static_cast<std::size_t>(kept_bytes()));
  }
  void finish() override {
    for (TaskVector& v : vectors_) v.kept.reset();
  }

  [[nodiscard]] Pass next_pass() const override {
    bool selects = false;
    for (const TaskVector& v : vectors_) {
      if (!v.selector) continue;
      if (v.selector->next_pass() == math::RankSelector::Pass::sample) return Pass::sample;
      selects = true;
    }
    return selects || sums_pending_ ? Pass::whole : Pass::none;
  }
  [[nodiscard]] bool wants_tile(std::uint64_t first, std::size_t /*count*/) const override {
    // A tile is a block. Selectors may want different ones (where each looks for its tie) and ignore those of the others.
    static_assert(Tiling{}.elements == math::RankSelector::kSampleBlock);
    return std::any_of(vectors_.begin(), vectors_.end(), [&](const TaskVector& v) {
      return takes_part(v, math::RankSelector::Pass::sample) && v.selector->wants_block(first / math::RankSelector::kSampleBlock);
    });
  }
  [[nodiscard]] std::size_t num_sums() const override { return selecting() ? 0 : 2 * vectors_.size(); }
  [[nodiscard]] std::unique_ptr<Tally> new_tally() const override {
    if (!selecting()) return nullptr;
    const auto pass = selector_pass();
    auto tally = std::make_unique<SelectTally>();
    for (const TaskVector& v : vectors_) tally->parts.push_back(takes_part(v, pass) ? v.selector->new_tally() : nullptr);
    return tally;
  }

  void reduce(const Tile& tile, std::span<double> sums, Tally* tally) const override {
    Scratch& scratch = scratch_of_thread();
    const std::size_t piece = piece_length();
    scratch.values.resize(std::min(piece, tile.count));
    auto* const selection = selecting() ? static_cast<SelectTally*>(tally) : nullptr;
    for (std::size_t k = 0; k < vectors_.size(); ++k) {
      const TaskVector& v = vectors_[k];
      if (selection != nullptr ? selection->parts[k] == nullptr : !v.restores_norm) continue;
      for (std::size_t begin = 0; begin < tile.count; begin += piece) {
        const std::span<float> values = std::span(scratch.values).first(std::min(piece, tile.count - begin));
        math::subtract(tile.input(v.input).subspan(begin, values.size()), tile.input(base_).subspan(begin, values.size()), values);
        if (selection != nullptr) {
          v.selector->add(*selection->parts[k], tile.first + begin, values);
        } else {
          sums[2 * k] += math::sum_abs(values);
          sparsify(v, tile.first + begin, values, scratch);
          sums[2 * k + 1] += math::sum_abs(values);
          if (v.kept != nullptr) math::pack_nonzero(values, kept_of(v, tile.first + begin, values.size()));
        }
      }
    }
  }

  void solve(std::span<const double> totals, std::span<const std::unique_ptr<Tally>> tallies) override {
    if (selecting()) {
      const auto pass = selector_pass();
      for (const auto& tally : tallies) {
        auto& parts = static_cast<SelectTally&>(*tally).parts;
        for (std::size_t k = 0; k < vectors_.size(); ++k)
          if (parts[k] != nullptr) vectors_[k].selector->merge(*parts[k]);
      }
      for (TaskVector& v : vectors_)
        if (takes_part(v, pass)) v.selector->finish_pass();
      finish_selection();
      return;
    }
    for (std::size_t k = 0; k < vectors_.size(); ++k) {
      const double before = totals[2 * k];
      const double after = totals[2 * k + 1];
      if (!vectors_[k].restores_norm || before < kSmallestNorm || after < kSmallestNorm) continue;
      // Infinite changes have no norm to restore; the result is refused or allowed with them.
      if (const auto factor = static_cast<float>(before / after); std::isfinite(factor)) vectors_[k].factor = factor;
    }
    sums_pending_ = false;
  }

  void map(const Tile& tile, std::span<float> out) const override {
    Scratch& scratch = scratch_of_thread();
    const std::size_t piece = std::min(piece_length(), tile.count);
    scratch.values.resize(piece * vectors_.size());
    scratch.mixed.resize(piece);
    scratch.divisor.resize(piece);
    for (std::size_t begin = 0; begin < tile.count; begin += piece) {
      const std::size_t count = std::min(piece, tile.count - begin);
      const std::span<const float> base = tile.input(base_).subspan(begin, count);
      scratch.pointers.clear();
      for (std::size_t k = 0; k < vectors_.size(); ++k) {
        const TaskVector& v = vectors_[k];
        const std::span<float> values(scratch.values.data() + k * piece, count);
        math::subtract(tile.input(v.input).subspan(begin, count), base, values);
        if (v.kept != nullptr) {
          math::keep_packed(values, kept_of(v, tile.first + begin, count));
        } else {
          sparsify(v, tile.first + begin, values, scratch);
        }
        if (v.factor != 1) math::scale(values, v.factor, values);
        if (how_.consensus && v.weight != 1) math::scale(values, v.weight, values);
        scratch.pointers.push_back(values.data());
      }
      const std::span<float> mixed = std::span(scratch.mixed).first(count);
      if (how_.consensus) {
        const std::span<float> divisor = std::span(scratch.divisor).first(count);
        math::sign_consensus(scratch.pointers, weights_, mixed, divisor);
        if (how_.normalize)
          for (std::size_t i = 0; i < count; ++i) mixed[i] /= divisor[i] == 0 ? 1.0F : divisor[i];
      } else {
        math::weighted_sum(scratch.pointers, weights_, mixed);
        if (how_.divisor != 1)
          for (float& m : mixed) m /= how_.divisor;
      }
      if (how_.lambda != 1) math::scale(mixed, how_.lambda, mixed);
      math::add(base, mixed, out.subspan(begin, count));
    }
  }

 private:
  [[nodiscard]] bool selecting() const noexcept {
    return std::any_of(vectors_.begin(), vectors_.end(), [](const TaskVector& v) { return v.selector.has_value(); });
  }
  /// The pass that the selectors want now; those that are ahead wait.
  [[nodiscard]] math::RankSelector::Pass selector_pass() const noexcept {
    return next_pass() == Pass::sample ? math::RankSelector::Pass::sample : math::RankSelector::Pass::whole;
  }
  [[nodiscard]] static bool takes_part(const TaskVector& v, math::RankSelector::Pass pass) noexcept {
    return v.selector && v.selector->next_pass() == pass;
  }
  /// Takes the answers of the selectors that are done.
  void finish_selection() {
    for (TaskVector& v : vectors_) {
      if (!v.selector || v.selector->next_pass() != math::RankSelector::Pass::done) continue;
      const auto results = v.selector->results();
      std::size_t next = 0;
      if (v.num_dropped_top > 0) v.smallest_dropped_top = results[next++];
      if (v.keep == Keep::largest || v.num_dropped_bottom > 0) v.smallest_kept = results[next++];
      v.selector.reset();
    }
  }

  /// Whether the sums and map both need this vector's random choice.
  [[nodiscard]] static bool draws_twice(const TaskVector& v) noexcept {
    return v.restores_norm && (v.keep == Keep::random || v.keep == Keep::random_by_rank);
  }
  [[nodiscard]] std::uint64_t kept_bytes() const noexcept {
    const std::uint64_t num_pieces = (num_elements_ + piece_length() - 1) / piece_length();
    return num_pieces * math::packed_bytes(piece_length());
  }
  /// A piece starts on a byte of its own, because workers write pieces at the same time. Tiles hold whole pieces.
  [[nodiscard]] std::span<std::uint8_t> kept_of(const TaskVector& v, std::uint64_t first, std::size_t count) const noexcept {
    return {v.kept.get() + first / piece_length() * math::packed_bytes(piece_length()), math::packed_bytes(count)};
  }

  [[nodiscard]] std::size_t piece_length() const noexcept {
    if (!ranks_rows_) return kPiece;
    const std::uint64_t slab = line_length_ * line_stride_;
    return static_cast<std::size_t>(std::max<std::uint64_t>(1, kPiece / slab) * slab);
  }

  /// values: the task vector's elements first ..; in place.
  void sparsify(const TaskVector& v, std::uint64_t first, std::span<float> values, Scratch& scratch) const {
    switch (v.keep) {
      case Keep::all:
        return;
      case Keep::largest:
        math::keep_at_least(values, v.smallest_kept->magnitude, first, v.smallest_kept->index);
        return;
      case Keep::middle:
        keep_middle(v, first, values);
        return;
      case Keep::random:
        scratch.uniform.resize(values.size());
        math::philox_uniform(key_, v.model_index, 0, first, scratch.uniform);
        math::keep_where_below(values, scratch.uniform, v.threshold);
        return;
      case Keep::random_by_rank:
        scratch.uniform.resize(values.size());
        math::philox_uniform(key_, v.model_index, 0, first, scratch.uniform);
        keep_by_rank(v, values, scratch);
        return;
    }
  }

  /// Here the order is ascending and stable: of equal magnitudes the lower index is the smaller, so those from a threshold's index on are above it.
  static void keep_middle(const TaskVector& v, std::uint64_t first, std::span<float> values) {
    const auto split = [&](const math::RankedElement& e) {
      const std::uint64_t below = e.index > first ? e.index - first : 0;
      return static_cast<std::size_t>(std::min<std::uint64_t>(below, values.size()));
    };
    constexpr std::uint64_t kLast = std::numeric_limits<std::uint64_t>::max();
    if (v.smallest_kept) {
      const std::size_t at = split(*v.smallest_kept);
      math::keep_at_least(values.first(at), v.smallest_kept->magnitude, 1, 0);  // none of the equal ones
      math::keep_at_least(values.subspan(at), v.smallest_kept->magnitude, 0, kLast);
    }
    if (v.smallest_dropped_top) {
      const float top = v.smallest_dropped_top->magnitude;
      const std::size_t at = split(*v.smallest_dropped_top);
      for (float& x : values.first(at)) x = std::abs(x) > top ? 0.0F : x;
      for (float& x : values.subspan(at)) x = std::abs(x) >= top ? 0.0F : x;
    }
  }

  void keep_by_rank(const TaskVector& v, std::span<float> values, Scratch& scratch) const {
    const auto mask = [&](std::span<float> line, std::span<const float> uniform) {
      if (v.unbiased) {
        v.rows->apply_unbiased(line, uniform, scratch.ranks);
      } else {
        v.rows->apply(line, uniform, scratch.ranks);
      }
    };
    const auto length = static_cast<std::size_t>(line_length_);
    const auto stride = static_cast<std::size_t>(line_stride_);
    if (stride == 1) {
      for (std::size_t begin = 0; begin < values.size(); begin += length)
        mask(values.subspan(begin, length), std::span<const float>(scratch.uniform).subspan(begin, length));
      return;
    }
    scratch.line.resize(length);
    scratch.line_uniform.resize(length);
    for (std::size_t slab = 0; slab < values.size(); slab += length * stride)
      for (std::size_t k = 0; k < stride; ++k) {
        for (std::size_t i = 0; i < length; ++i) {
          scratch.line[i] = values[slab + i * stride + k];
          scratch.line_uniform[i] = scratch.uniform[slab + i * stride + k];
        }
        mask(scratch.line, scratch.line_uniform);
        for (std::size_t i = 0; i < length; ++i) values[slab + i * stride + k] = scratch.line[i];
      }
  }

  std::size_t base_;
  std::vector<TaskVector> vectors_;
  std::vector<float> weights_;
  Combination how_;
  std::uint64_t key_;
  std::uint64_t num_elements_;
  std::vector<bool> reads_;
  bool sums_pending_ = false;
  bool ranks_rows_ = false;
  std::uint64_t line_length_ = 1;
  std::uint64_t line_stride_ = 1;
};

// ---- from parameters to a plan

/// Sets up what stays of one task vector; false when nothing does.
bool plan_sparsifier(TaskVector& v, const TensorContext& context, const Input& input, Keep keep) {
  const std::uint64_t n = context.num_elements;
  if (keep == Keep::all) return true;  // its density is ignored, so it has no value
  const double density = input.values.number("density");
  if (density >= 1) return true;
  if (density <= 0) return false;
  v.keep = keep;
  const bool rescale = context.values.flag("rescale");
  v.restores_norm = rescale;
  switch (keep) {
    case Keep::all:
      return true;
    case Keep::largest: {
      std::uint64_t kept = part_of(density, n);
      if (kept == 0) {
        context.warn("tensor '" + context.name + "': density " + std::to_string(density) + " of " + std::to_string(n) +
                     " elements is less than one; one is kept");
        kept = 1;
      }
      if (kept >= n) {
        v.keep = Keep::all;
        v.restores_norm = false;
        return true;
      }
      v.selector.emplace(n, std::vector<std::uint64_t>{kept - 1});
      return true;
    }
    case Keep::middle: {
      const double gamma = input.values.number("gamma");
      const std::uint64_t kept = part_of(density, n);
      const std::uint64_t wanted_top = part_of(gamma, n);
      if (wanted_top == 0 && context.values.flag("drop_all_without_top")) {
        context.warn("tensor '" + context.name + "': gamma of " + std::to_string(n) + " elements is less than one, so all changes of '" +
                     input.model + "' are dropped, as mergekit 0.1.4 does");
        return false;
      }
      if (kept == 0) return false;
      v.num_dropped_top = std::min(wanted_top, n - kept);
      v.num_dropped_bottom = n - kept - v.num_dropped_top;
      std::vector<std::uint64_t> ranks;
      if (v.num_dropped_top > 0) ranks.push_back(v.num_dropped_top - 1);
      if (v.num_dropped_bottom > 0) ranks.push_back(v.num_dropped_top + kept - 1);
      if (ranks.empty()) {
        v.keep = Keep::all;
        v.restores_norm = false;
      } else {
        v.selector.emplace(n, std::move(ranks), math::RankSelector::Ties::lower_index_is_smaller);
      }
      return true;
    }
    case Keep::random:
      v.threshold = math::as_threshold(density);
      if (rescale && context.values.flag("unbiased_rescale")) {
        v.restores_norm = false;
        v.factor = static_cast<float>(1 / density);
      }
      return true;
    case Keep::random_by_rank: {
      const double epsilon = input.values.number("epsilon");
      if (!(density - epsilon > 0) || !(density + epsilon < 1)) {
        throw Error(ErrorCode::invalid_argument,
                    "density " + std::to_string(density) + " and epsilon " + std::to_string(epsilon) + " of '" + input.model +
                        "' give probabilities that do not lie between 0 and 1",
                    {.tensor = context.name, .key = "epsilon"}, "choose epsilon below both density and 1 - density");
      }
      v.rows.emplace(density, epsilon);
      if (rescale && context.values.flag("unbiased_rescale")) {
        v.restores_norm = false;
        v.unbiased = true;
      }
      return true;
    }
  }
  return true;
}

/// Whether the weights of some of the models (those that agree on a sign) nearly cancel, so that dividing by their sum explodes.
bool some_sum_nearly_cancels(const std::vector<TaskVector>& vectors) {
  double largest = 0;
  bool negative = false;
  for (const TaskVector& v : vectors) {
    largest = std::max(largest, std::abs(static_cast<double>(v.weight)));
    negative = negative || v.weight < 0;
  }
  if (!negative || vectors.size() > 12) return false;  // with one sign nothing cancels; more subsets than a warning is worth
  for (std::uint32_t subset = 1; subset < (1U << vectors.size()); ++subset) {
    double sum = 0;
    for (std::size_t k = 0; k < vectors.size(); ++k)
      if ((subset >> k & 1U) != 0) sum += static_cast<double>(vectors[k].weight);
    if (std::abs(sum) < 1e-3 * largest) return true;
  }
  return false;
}

}  // namespace

std::size_t required_base(const TensorContext& context) {
  const auto base = context.base();
  if (!base) throw Error(ErrorCode::internal, "tensor '" + context.name + "' came without the base that its method requires");
  return *base;
}

std::unique_ptr<TensorMerge> make_weighted_deltas(const TensorContext& context, std::size_t base, const std::vector<std::size_t>& positions,
                                                  const std::vector<double>& weights, double scale) {
  std::vector<std::size_t> used;
  std::vector<double> used_weights;
  for (std::size_t k = 0; k < positions.size(); ++k) {
    if (weights[k] == 0) continue;
    used.push_back(positions[k]);
    used_weights.push_back(weights[k]);
  }
  return std::make_unique<PlainTaskVectors>(base, std::move(used), std::move(used_weights), scale, context.inputs.size());
}

std::unique_ptr<TensorMerge> make_task_vector_merge(const TensorContext& context, const TaskVectorRules& rules) {
  const std::size_t base = required_base(context);
  const double lambda = context.values.number("lambda");
  const bool normalize = context.values.flag("normalize");

  std::vector<TaskVector> vectors;
  std::vector<double> weights;
  double sum_of_weights = 0;
  double largest_weight = 0;
  bool sparse = false;
  for (const std::size_t position : context.non_base()) {
    const Input& input = context.inputs[position];
    const double weight = input.values.number("weight");
    sum_of_weights += weight;
    largest_weight = std::max(largest_weight, std::abs(weight));
    TaskVector v;
    v.input = position;
    v.model_index = input.index;
    v.weight = static_cast<float>(weight);
    if (!plan_sparsifier(v, context, input, rules.keep) || weight == 0 || lambda == 0 || context.num_elements == 0) continue;
    sparse = sparse || v.keep != Keep::all;
    vectors.push_back(std::move(v));
    weights.push_back(weight);
  }

  Combination how;
  how.lambda = static_cast<float>(lambda);
  how.normalize = normalize;
  // A single vector is never outvoted; its share of itself is 1.
  how.consensus = rules.consensus && vectors.size() > 1;
  double divisor = 1;
  if (rules.consensus && !how.consensus) {
    if (normalize)
      for (double& w : weights) w = 1;
    if (normalize)
      for (TaskVector& v : vectors) v.weight = 1;
  } else if (!rules.consensus && normalize && !vectors.empty()) {
    const bool zero = std::abs(sum_of_weights) < kSmallestDivisor;
    if (!zero) divisor = sum_of_weights;
    if (std::abs(sum_of_weights) < 1e-3 * largest_weight) {
      context.warn("tensor '" + context.name + "': the weights nearly cancel (sum " + std::to_string(sum_of_weights) +
                   (zero ? "), the merge is not normalised" : "), normalising multiplies the changes by a large number"));
    }
  } else if (normalize && some_sum_nearly_cancels(vectors)) {
    context.warn("tensor '" + context.name + "': the weights of models that agree can cancel; normalising is unreliable with negative weights");
  }
  how.divisor = static_cast<float>(divisor);

  if (!sparse && !how.consensus) {
    std::vector<std::size_t> positions;
    for (const TaskVector& v : vectors) positions.push_back(v.input);
    return make_weighted_deltas(context, base, positions, weights, lambda / divisor);
  }
  return std::make_unique<SparseTaskVectors>(context, base, std::move(vectors), how);
}

std::vector<Parameter> task_vector_parameters(Keep keep, bool normalize, bool rescale) {
  const bool plain = keep == Keep::all;
  std::vector<Parameter> parameters = {
      {.name = "weight", .scope = ParameterScope::per_model, .help = "factor of this model's task vector"},
      {.name = "density",
       .scope = ParameterScope::per_model,
       .default_value = 1,
       .help = plain ? "accepted, changes nothing" : "share of the entries that stay",
       // Where it is a probability, mergekit too refuses a negative one; the ranking rules take it as zero.
       .min = keep == Keep::random ? 0.0 : -1e300,
       .ignored = plain},
      {.name = "normalize",
       .type = ParameterType::boolean,
       .default_value = normalize ? 1 : 0,
       .help = "divide by the sum of the weights that took part"},
      {.name = "lambda", .default_value = 1, .help = "factor of the merged task vector"},
      {.name = "rescale",
       .type = ParameterType::boolean,
       .default_value = rescale ? 1 : 0,
       .help = plain ? "accepted, changes nothing" : "restore each task vector's L1 norm after dropping entries",
       .ignored = plain},
      {.name = "int8_mask", .type = ParameterType::boolean, .default_value = 0, .help = "accepted, changes nothing", .ignored = true},
  };
  return parameters;
}

Method random_task_vector_method(Keep keep, bool consensus, bool normalize, std::vector<Parameter> more, std::string unbiased_help) {
  Method m;
  m.parameters = task_vector_parameters(keep, normalize, true);
  for (Parameter& parameter : more) m.parameters.push_back(std::move(parameter));
  m.parameters.push_back({.name = "unbiased_rescale", .type = ParameterType::boolean, .default_value = 0, .help = std::move(unbiased_help)});
  m.base = BaseRule::required;
  m.passes = 2;
  m.symmetric = false;
  m.identity = consensus ? Identity::rounded : Identity::exact;
  return m;
}

}  // namespace weft::merge
