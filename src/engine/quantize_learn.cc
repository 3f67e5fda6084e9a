#include "engine/quantize_learn.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "model/block_gradient.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

/// Runs of sequences of a batch: what one step learns from.
struct Unit {
  Activations::Batch batch;
  std::vector<std::size_t> lengths;
  std::size_t first_row = 0, num_rows = 0;  ///< within the batch
};

std::vector<Unit> units_of(const Block& block, std::size_t unit_tokens) {
  std::vector<Unit> units;
  for (const Activations::Batch& batch : block.batches()) {
    std::size_t row = 0;
    for (const std::size_t length : block.lengths(batch)) {
      if (row == 0 || units.back().num_rows + length > unit_tokens) units.push_back({batch, {}, row, 0});
      units.back().lengths.push_back(length);
      units.back().num_rows += length;
      row += length;
    }
  }
  return units;
}

/// What the block reads and should give, batch by batch: all of it in memory where there is room, otherwise one batch, computed when asked for.
class Streams {
 public:
  Streams(Block& block, std::span<const Unit> units) : block_(block), hidden_(static_cast<std::size_t>(block.network().config().hidden)) {
    std::uint64_t tokens = 0;
    for (const Activations::Batch& batch : block.batches()) tokens += batch.num_rows;
    keeps_ = 2 * tokens * hidden_ * sizeof(float) < block.statistics_budget() / 2;
    if (!keeps_) return;
    for (const Unit& unit : units) {
      quantize::ReconstructUnit own;
      read(unit, own);
      kept_.push_back(std::move(own));
    }
  }

  void read(const Unit& unit, quantize::ReconstructUnit& out) {
    if (!has_ || batch_.first_sequence != unit.batch.first_sequence) {
      input_ = block_.input(unit.batch, Stream::changed);
      target_ = block_.run(unit.batch, block_.input(unit.batch, Stream::original), nullptr, Stream::original);
      batch_ = unit.batch;
      has_ = true;
    }
    out.lengths = unit.lengths;
    const auto part = [&](const std::vector<float>& from) {
      const auto begin = from.begin() + static_cast<std::ptrdiff_t>(unit.first_row * hidden_);
      return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(unit.num_rows * hidden_));
    };
    out.input = part(input_);
    out.target = part(target_);
  }
  void read(std::size_t number, const Unit& unit, quantize::ReconstructUnit& out) {
    if (keeps_)
      out = kept_[number];
    else
      read(unit, out);
  }

 private:
  Block& block_;
  std::size_t hidden_;
  bool keeps_ = false, has_ = false;
  Activations::Batch batch_;
  std::vector<float> input_, target_;
  std::vector<quantize::ReconstructUnit> kept_;
};

/// Sums up what is read in some of the batches.
class HeldTap final : public BlockTap {
 public:
  HeldTap(std::span<const InputPoint> points, std::vector<std::size_t> first_sequences, ThreadTeam& team)
      : points_(points.begin(), points.end()),
        first_sequences_(std::move(first_sequences)),
        team_(team),
        kept_(points.size()),
        widths_(points.size()) {}

  void batch(std::size_t first_sequence, std::size_t, std::uint64_t) override {
    add_up();
    counts_ = std::find(first_sequences_.begin(), first_sequences_.end(), first_sequence) != first_sequences_.end();
  }
  void linear_input(int, model::Role role, int expert, std::size_t, const model::Rows& rows) override {
    if (!counts_) return;
    const auto found = std::find(points_.begin(), points_.end(), input_point(role, expert));
    if (found == points_.end()) return;
    const auto p = static_cast<std::size_t>(found - points_.begin());
    widths_[p] = rows.num_columns;
    for (std::size_t r = 0; r < rows.num_rows; ++r) kept_[p].insert(kept_[p].end(), rows.row(r), rows.row(r) + rows.num_columns);
  }
  [[nodiscard]] std::vector<HeldOutMoments> finish() {
    add_up();
    std::vector<HeldOutMoments> all;
    for (std::size_t p = 0; p < points_.size(); ++p) all.push_back({points_[p], std::move(sums_[p])});
    return all;
  }

 private:
  void add_up() {
    sums_.resize(points_.size());
    for (std::size_t p = 0; p < points_.size(); ++p) {
      if (kept_[p].empty()) continue;
      const std::size_t width = widths_[p];
      RowProducts products(width, width, true);
      products.add(kept_[p].data(), width, kept_[p].data(), width, kept_[p].size() / width, team_);
      const std::vector<double> own = products.finish();
      sums_[p].resize(own.size());
      for (std::size_t i = 0; i < own.size(); ++i) sums_[p][i] += own[i];
      kept_[p].clear();
    }
  }

  std::vector<InputPoint> points_;
  std::vector<std::size_t> first_sequences_;
  ThreadTeam& team_;
  bool counts_ = false;
  std::vector<std::vector<float>> kept_;
  std::vector<std::size_t> widths_;
  std::vector<std::vector<double>> sums_;
};

}  // namespace

LearnedBlock learn_block(Block& block, std::span<const LearnedLayer> layers, const LearnOptions& options) {
  model::Network& network = block.network();
  const auto layer = static_cast<std::size_t>(block.layer());
  model::BlockParameters<float> parameters = model::parameters_of<float>(block.weights(Stream::changed));
  std::vector<std::unique_ptr<quantize::LearnedCodes<float>>> codes;
  std::vector<quantize::ReconstructLayer> learned;
  std::uint64_t weights = 0, size = 0;
  for (const LearnedLayer& one : layers) weights += one.weights.size();
  // Of each weight: what is learned from it, its gradient and Adam's two sums; the block's parameters and their gradient are counted once more.
  size = weights * sizeof(float) * (options.codes.what == quantize::Learned::divisor || options.codes.what == quantize::Learned::weight ? 14 : 10);
  if (size > block.statistics_budget())
    throw Error(ErrorCode::out_of_memory,
                fmt::format("learning the codes of block {} takes {}, but {} of the memory budget are left for it", block.layer(), format_size(size),
                            format_size(block.statistics_budget())),
                {}, "raise it with --memory");
  for (const LearnedLayer& one : layers) {
    codes.push_back(std::make_unique<quantize::LearnedCodes<float>>(one.weights, one.start, one.solver, options.codes, one.name));
    learned.push_back({&block.tensor(one.name), codes.back().get(), &one.start});
  }
  const std::vector<Unit> units = units_of(block, options.unit_tokens);
  Streams streams(block, units);
  const quantize::ReconstructData data{units.size(), [&](std::size_t unit, quantize::ReconstructUnit& out) { streams.read(unit, units[unit], out); }};
  quantize::ReconstructOptions steps = options.steps;
  for (const model::BlockTensor& tensor : block.tensors())
    if (tensor.slot.role == model::Role::norm && !tensor.is_bias) steps.gain_type = tensor.tensor->dtype;
  LearnedBlock out;
  out.result = quantize::reconstruct(network.config(), layer, network.team(), parameters, learned, data, steps);
  if (steps.gain_rate > 0 && !out.result.kept_start)
    for (const model::BlockTensor& tensor : block.tensors())
      if (tensor.slot.role == model::Role::norm && !tensor.is_bias)
        out.gains.emplace_back(&tensor, model::values_of_tensor(parameters, network.config(), tensor));
  return out;
}

std::vector<HeldOutMoments> held_out_moments(Block& block, std::span<const InputPoint> points, double share) {
  std::vector<std::size_t> firsts;
  const std::vector<bool> held = quantize::held_out_units(block.batches().size(), share);
  for (std::size_t b = 0; b < held.size(); ++b)
    if (held[b]) firsts.push_back(block.batches()[b].first_sequence);
  HeldTap tap(points, std::move(firsts), block.network().team());
  block.run(tap);
  return tap.finish();
}

}  // namespace weft::engine
