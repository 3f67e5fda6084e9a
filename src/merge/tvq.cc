#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>

#include "merge/table.h"
#include "merge/task_vector.h"

// tvq, rtvq: merge what is left of task vectors that were stored at a few bits: each one (tvq), or their mean and each one's distance to the mean
// (rtvq). Source: task vector quantization, with the uniform quantizer of the paper's code; steps of the residual form from its abstract.
namespace weft::merge {
namespace {

constexpr std::size_t kPiece = 2048;

/// Rounds to nearest even, for |x| < 2^51: adding 1.5 * 2^52 leaves no room for a fraction.
double round_half_even(double x) noexcept { return (x + 0x1.8p52) - 0x1.8p52; }

struct Range {
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();

  void add(std::span<const double> values) noexcept {
    // Eight of each in turn, because one would wait for itself.
    constexpr std::size_t kLanes = 8;
    std::array<double, kLanes> low;
    std::array<double, kLanes> high;
    low.fill(min);
    high.fill(max);
    std::size_t i = 0;
    for (; i + kLanes <= values.size(); i += kLanes)
      for (std::size_t k = 0; k < kLanes; ++k) {
        low[k] = std::min(low[k], values[i + k]);
        high[k] = std::max(high[k], values[i + k]);
      }
    for (; i < values.size(); ++i) {
      low[0] = std::min(low[0], values[i]);
      high[0] = std::max(high[0], values[i]);
    }
    min = *std::min_element(low.begin(), low.end());
    max = *std::max_element(high.begin(), high.end());
  }
  void add(const Range& other) noexcept {
    min = std::min(min, other.min);
    max = std::max(max, other.max);
  }
};

/// The grid of 2^bits values between the smallest and the largest, with an integer zero point.
struct Grid {
  double scale = 0;
  double zero = 0;
  double last_code = 0;
  double constant = 0;  ///< where all values are equal

  Grid() = default;
  Grid(const Range& range, int bits) noexcept {
    if (!(range.max > range.min)) {
      constant = range.min + 0.0;  // one kind of zero, whichever was met first
      return;
    }
    last_code = std::exp2(bits) - 1;
    scale = last_code / (range.max - range.min);
    // Values are differences of float32, so that a range is at least 2^-24 of what lies in it and |scale * min| < 2^(24 + bits).
    zero = -round_half_even(scale * range.min);
  }
  /// values[i] becomes what its code means.
  void pass_through(std::span<double> values) const noexcept {
    if (scale == 0) {
      std::fill(values.begin(), values.end(), constant);
      return;
    }
    for (double& v : values) {
      const double code = std::min(std::max(round_half_even(scale * v + zero), 0.0), last_code);
      v = (code - zero) / scale;
    }
  }
};

struct Plan {
  std::size_t base = 0;
  std::vector<std::size_t> models;
  std::vector<double> weights;
  double lambda = 1;
  int bits = 0;
  int mean_bits = 0;  ///< 0: no mean is stored
  std::size_t group = 0;
};

struct Scratch {
  std::vector<std::vector<double>> vectors;
  std::vector<double> mean;
  std::vector<double> sum;
};

struct RangeTally final : Tally {
  std::vector<Range> ranges;
};

class QuantizedTaskVectors final : public TensorMerge {
 public:
  QuantizedTaskVectors(Plan plan, std::size_t num_inputs) : plan_(std::move(plan)), reads_(num_inputs, false), grids_(plan_.models.size()) {
    reads_[plan_.base] = true;
    for (const std::size_t m : plan_.models) reads_[m] = true;
    nothing_ = plan_.lambda == 0 || std::all_of(plan_.weights.begin(), plan_.weights.end(), [](double w) { return w == 0; });
    if (plan_.group == 0) pending_ = plan_.mean_bits > 0 ? Pending::mean : Pending::vectors;
  }

  [[nodiscard]] Tiling tiling() const override {
    if (plan_.group == 0) return {};
    const std::uint64_t step = std::lcm(static_cast<std::uint64_t>(plan_.group), std::uint64_t{64});
    return {Tiling::Unit::elements, std::max<std::uint64_t>(1, Tiling{}.elements / step) * step};
  }
  [[nodiscard]] std::optional<std::size_t> copied_input() const override { return nothing_ ? std::optional(plan_.base) : std::nullopt; }
  [[nodiscard]] bool reads_input(std::size_t i) const override { return reads_[i]; }
  [[nodiscard]] Pass next_pass() const override { return pending_ == Pending::none ? Pass::none : Pass::whole; }
  [[nodiscard]] std::unique_ptr<Tally> new_tally() const override {
    auto tally = std::make_unique<RangeTally>();
    tally->ranges.resize(pending_ == Pending::mean ? 1 : plan_.models.size());
    return tally;
  }

  void reduce(const Tile& tile, std::span<double> /*sums*/, Tally* tally) const override {
    auto& ranges = static_cast<RangeTally&>(*tally).ranges;
    Scratch& scratch = scratch_of_thread();
    for (std::size_t begin = 0; begin < tile.count; begin += kPiece) {
      take_vectors(tile, begin, std::min(kPiece, tile.count - begin), scratch);
      if (pending_ == Pending::mean) {
        ranges[0].add(scratch.mean);
        continue;
      }
      if (plan_.mean_bits > 0) remove_mean(mean_grid_, scratch);
      for (std::size_t k = 0; k < ranges.size(); ++k) ranges[k].add(scratch.vectors[k]);
    }
  }

  void solve(std::span<const double> /*totals*/, std::span<const std::unique_ptr<Tally>> tallies) override {
    std::vector<Range> ranges(pending_ == Pending::mean ? 1 : plan_.models.size());
    for (const auto& tally : tallies)
      for (std::size_t k = 0; k < ranges.size(); ++k) ranges[k].add(static_cast<RangeTally&>(*tally).ranges[k]);
    if (pending_ == Pending::mean) {
      mean_grid_ = Grid(ranges[0], plan_.mean_bits);
      pending_ = Pending::vectors;
      return;
    }
    for (std::size_t k = 0; k < ranges.size(); ++k) grids_[k] = Grid(ranges[k], plan_.bits);
    pending_ = Pending::none;
  }

  void map(const Tile& tile, std::span<float> out) const override {
    Scratch& scratch = scratch_of_thread();
    const std::size_t piece = plan_.group == 0 ? kPiece : plan_.group;
    for (std::size_t begin = 0; begin < tile.count; begin += piece) {
      const std::size_t count = std::min(piece, tile.count - begin);
      take_vectors(tile, begin, count, scratch);
      if (plan_.mean_bits > 0) remove_mean(plan_.group == 0 ? mean_grid_ : grid_of(scratch.mean, plan_.mean_bits), scratch);
      scratch.sum.assign(count, 0.0);
      for (std::size_t k = 0; k < plan_.models.size(); ++k) {
        std::vector<double>& vector = scratch.vectors[k];
        const double weight = plan_.weights[k];
        if (weight == 0) continue;
        (plan_.group == 0 ? grids_[k] : grid_of(vector, plan_.bits)).pass_through(vector);
        if (plan_.mean_bits > 0) {
          for (std::size_t i = 0; i < count; ++i) scratch.sum[i] += weight * (scratch.mean[i] + vector[i]);
        } else {
          for (std::size_t i = 0; i < count; ++i) scratch.sum[i] += weight * vector[i];
        }
      }
      const float* base = tile.inputs[plan_.base] + begin;
      for (std::size_t i = 0; i < count; ++i) out[begin + i] = static_cast<float>(static_cast<double>(base[i]) + plan_.lambda * scratch.sum[i]);
    }
  }

 private:
  enum class Pending { none, mean, vectors };

  static Scratch& scratch_of_thread() {
    thread_local Scratch scratch;
    return scratch;
  }
  static Grid grid_of(std::span<const double> values, int bits) {
    Range range;
    range.add(values);
    return {range, bits};
  }

  /// The task vectors of a piece, float32 differences, and their mean if one is stored.
  void take_vectors(const Tile& tile, std::size_t begin, std::size_t count, Scratch& scratch) const {
    scratch.vectors.resize(std::max(scratch.vectors.size(), plan_.models.size()));
    const float* base = tile.inputs[plan_.base] + begin;
    scratch.mean.assign(plan_.mean_bits > 0 ? count : 0, 0.0);
    for (std::size_t k = 0; k < plan_.models.size(); ++k) {
      const float* model = tile.inputs[plan_.models[k]] + begin;
      std::vector<double>& vector = scratch.vectors[k];
      vector.resize(count);
      for (std::size_t i = 0; i < count; ++i) vector[i] = static_cast<double>(model[i] - base[i]);
      if (plan_.mean_bits > 0)
        for (std::size_t i = 0; i < count; ++i) scratch.mean[i] += vector[i];
    }
    const auto num_models = static_cast<double>(plan_.models.size());
    for (double& m : scratch.mean) m /= num_models;
  }
  /// The mean becomes what is stored of it, and the vectors their distance to that, so that its error is corrected.
  void remove_mean(const Grid& grid, Scratch& scratch) const {
    grid.pass_through(scratch.mean);
    for (std::size_t k = 0; k < plan_.models.size(); ++k)
      for (std::size_t i = 0; i < scratch.mean.size(); ++i) scratch.vectors[k][i] -= scratch.mean[i];
  }

  Plan plan_;
  std::vector<bool> reads_;
  bool nothing_ = false;
  Pending pending_ = Pending::none;
  Grid mean_grid_;
  std::vector<Grid> grids_;
};

Plan common_plan(const TensorContext& context) {
  Plan plan;
  plan.base = required_base(context);
  plan.lambda = context.values.number("lambda");
  plan.group = static_cast<std::size_t>(context.values.number("group_size"));
  return plan;
}

std::unique_ptr<TensorMerge> make(const TensorContext& context) {
  Plan plan = common_plan(context);
  plan.bits = static_cast<int>(context.values.number("bits"));
  for (const std::size_t position : context.non_base()) {
    const double weight = context.inputs[position].values.number("weight");
    if (weight == 0) continue;
    plan.models.push_back(position);
    plan.weights.push_back(weight);
  }
  return std::make_unique<QuantizedTaskVectors>(std::move(plan), context.inputs.size());
}

std::unique_ptr<TensorMerge> make_residual(const TensorContext& context) {
  Plan plan = common_plan(context);
  plan.bits = static_cast<int>(context.values.number("offset_bits"));
  plan.mean_bits = static_cast<int>(context.values.number("base_bits"));
  // Models of weight 0 stay: they are part of the stored mean.
  for (const std::size_t position : context.non_base()) {
    plan.models.push_back(position);
    plan.weights.push_back(context.inputs[position].values.number("weight"));
  }
  return std::make_unique<QuantizedTaskVectors>(std::move(plan), context.inputs.size());
}

Parameter bits_parameter(std::string name, double bits, std::string help) {
  return {.name = std::move(name), .type = ParameterType::integer, .default_value = bits, .help = std::move(help), .min = 1, .max = 16};
}

Method quantized() {
  Method m;
  m.paper = "Task Vector Quantization for Memory-Efficient Model Merging";
  m.parameters = {
      {.name = "weight", .scope = ParameterScope::per_model, .default_value = 1, .help = "factor of this model's task vector"},
      {.name = "lambda", .default_value = 1, .help = "factor of the merged task vector"},
      {.name = "group_size",
       .type = ParameterType::integer,
       .default_value = 0,
       .help = "consecutive entries that share a range; 0: those of a tensor",
       .min = 0,
       .max = 65536},
  };
  m.base = BaseRule::required;
  m.identity = Identity::none;
  return m;
}

}  // namespace

Method tvq() {
  Method m = quantized();
  m.name = "tvq";
  m.summary = "add task vectors as they are after storing each at a few bits";
  m.parameters.push_back(bits_parameter("bits", 4, "of a stored entry"));
  m.passes = 2;
  m.make = make;
  return m;
}

Method rtvq() {
  Method m = quantized();
  m.name = "rtvq";
  m.summary = "add task vectors as they are after storing their mean and each one's distance to it at a few bits";
  m.parameters.push_back(bits_parameter("base_bits", 3, "of a stored entry of the mean"));
  m.parameters.push_back(bits_parameter("offset_bits", 2, "of a stored entry of a distance to the mean"));
  m.passes = 3;
  m.make = make_residual;
  return m;
}

}  // namespace weft::merge
