#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "engine/computed_checkpoint.h"
#include "engine/measure_layers.h"
#include "math/lapack.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using measure::put;
using measure::Selection;
using model::Role;
using model::Rows;
using model::TokenChunk;

constexpr std::size_t kPromptTokens = 64, kImpactTokens = 1024;
// Loss impacts are left out when all their forward passes together would multiply more than this.
constexpr double kSparedProducts = 2e13;
constexpr double kSpikeBar = 50, kSpikeRatio = 20;
constexpr std::size_t kMaxSuperWeights = 10;

struct Spike {
  double in = 0, out = 0;
  std::size_t in_position = 0, in_channel = 0, out_position = 0, out_channel = 0;
  bool any = false;
};

/// The largest input and output of every down projection.
class SpikeTap final : public model::NetworkTap {
 public:
  SpikeTap(const BlockWeights& weights, std::size_t tokens, std::size_t layers) : spikes(layers), weights_(weights), tokens_(tokens) {}
  std::vector<Spike> spikes;

  void linear_input(int layer, Role role, int expert, std::size_t first_row, const Rows& rows) override {
    if (dense_slot(role, expert) != kDown) return;
    if (first_row == 0) inputs_.clear();
    const std::size_t d = rows.num_columns;
    for (std::size_t r = 0; r < rows.num_rows; ++r) inputs_.insert(inputs_.end(), rows.row(r), rows.row(r) + d);
    if (inputs_.size() != tokens_ * d) return;
    Spike& spike = spikes[static_cast<std::size_t>(layer)];
    spike.any = true;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      if (const double size = std::abs(static_cast<double>(inputs_[i])); size > spike.in) {
        spike.in = size;
        spike.in_position = i / d;
        spike.in_channel = i % d;
      }
    }
    for (const auto& [tensor, own] : weights_.of(layer)) {
      if (slot_of(own) != kDown) continue;
      const BlockWeight weight = weights_.load(*tensor, static_cast<std::int64_t>(d));
      if (weight.columns != static_cast<std::int64_t>(d)) continue;
      const std::vector<double> x(inputs_.begin(), inputs_.end());
      std::vector<double> y(tokens_ * static_cast<std::size_t>(weight.rows));
      math::gemm(math::Transpose::no, math::Transpose::yes, static_cast<std::int64_t>(tokens_), weight.rows, weight.columns, 1.0, x.data(),
                 weight.columns, weight.values.data(), weight.columns, 0.0, y.data(), weight.rows);
      for (std::size_t i = 0; i < y.size(); ++i) {
        if (std::abs(y[i]) <= spike.out) continue;
        spike.out = std::abs(y[i]);
        spike.out_position = i / static_cast<std::size_t>(weight.rows);
        spike.out_channel = i % static_cast<std::size_t>(weight.rows);
      }
    }
  }

 private:
  const BlockWeights& weights_;
  std::size_t tokens_;
  std::vector<float> inputs_;
};

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// A model with some weights of its down projections set to zero.
class Ablated {
 public:
  Ablated(RunningModel& running, const RunOptions& options) : running_(running), options_(options) {}
  struct Place {
    int layer;
    std::size_t row, column;
  };
  struct Model {
    std::shared_ptr<const Checkpoint> checkpoint;
    std::unique_ptr<model::Network> network;
  };
  [[nodiscard]] Model without(const std::vector<Place>& places, const BlockWeights& weights) const {
    std::vector<ElementPatch> patches;
    for (const Place& place : places)
      if (const auto element = find(place, weights)) patches.push_back({element->first->name, element->second, 0.0F});
    Model result;
    result.checkpoint = patched(running_.files().checkpoint, patches);
    result.network = std::make_unique<model::Network>(
        result.checkpoint, running_.json(),
        model::NetworkOptions{options_.precision, options_.threads, options_.memory_bytes, options_.allow_non_finite});
    return result;
  }
  static std::optional<std::pair<const TensorInfo*, std::uint64_t>> find(const Place& place, const BlockWeights& weights) {
    for (const auto& [tensor, role] : weights.of(place.layer)) {
      if (slot_of(role) != kDown) continue;
      const bool turned = weights.is_transposed(*tensor, std::max(tensor->shape[0], tensor->shape[1]));
      const auto columns = static_cast<std::uint64_t>(tensor->shape[1]);
      return std::pair(tensor, turned ? place.column * columns + place.row : place.row * columns + place.column);
    }
    return std::nullopt;
  }
  static double value(const Place& place, const BlockWeights& weights) {
    const auto element = find(place, weights);
    if (!element) return 0;
    // Types of half a byte want an even begin.
    std::array<float, 2> pair{};
    const std::uint64_t even = element->second / 2 * 2, left = element->first->num_elements - even;
    read_floats(weights.checkpoint(), *element->first, even, std::span(pair).first(static_cast<std::size_t>(std::min<std::uint64_t>(2, left))));
    return static_cast<double>(pair[static_cast<std::size_t>(element->second - even)]);
  }

 private:
  RunningModel& running_;
  RunOptions options_;
};

}  // namespace

void measure_super_weights(RunningModel& running, const BlockWeights& weights, const RunOptions& run_options, const Selection& selection,
                           std::span<const std::uint32_t> ids, std::size_t window, MeasuredModel& out) {
  const std::size_t layers = running.config().layers.size();
  std::vector<std::uint32_t> prompt;
  // Spikes sit on the token that begins a text.
  std::optional<std::uint32_t> bos = running.tokenizer("a text").named_id("bos_token");
  if (!bos)
    if (const Json* id = running.json().find("bos_token_id");
        id != nullptr && id->unsigned_integer() && *id->unsigned_integer() < static_cast<std::uint64_t>(running.config().vocab))
      bos = static_cast<std::uint32_t>(*id->unsigned_integer());
  if (bos) prompt.push_back(*bos);
  for (std::size_t i = 0; i < ids.size() && prompt.size() < kPromptTokens; ++i) prompt.push_back(ids[i]);
  const std::vector<TokenChunk> chunks = {{nullptr, prompt, {}}};
  const Ablated ablated(running, run_options);

  std::vector<Ablated::Place> found;
  std::vector<Spike> first;
  std::size_t rounds = 0;
  Ablated::Model changed;
  std::optional<BlockWeights> changed_weights;
  while (found.size() < kMaxSuperWeights) {
    running.check_cancelled();
    SpikeTap tap(changed_weights ? *changed_weights : weights, prompt.size(), layers);
    (void)(changed.network != nullptr ? *changed.network : running.network()).run(chunks, &tap);
    ++rounds;
    if (first.empty()) first = tap.spikes;
    const auto hit =
        std::find_if(tap.spikes.begin(), tap.spikes.end(), [](const Spike& spike) { return spike.in > kSpikeBar && spike.out > kSpikeBar; });
    if (hit == tap.spikes.end()) break;
    const Ablated::Place place{static_cast<int>(hit - tap.spikes.begin()), hit->out_channel, hit->in_channel};
    if (std::any_of(found.begin(), found.end(),
                    [&](const Ablated::Place& old) { return old.layer == place.layer && old.row == place.row && old.column == place.column; }))
      break;
    const std::string at = fmt::format("super_weights.found.{}.", found.size());
    put(out.model, at + "layer", place.layer);
    put(out.model, at + "row", static_cast<double>(place.row));
    put(out.model, at + "col", static_cast<double>(place.column));
    put(out.model, at + "value", Ablated::value(place, weights));
    found.push_back(place);
    changed = ablated.without(found, weights);
    changed_weights.emplace(changed.checkpoint, running.config().architecture);
  }
  std::vector<double> in, outs;
  for (const Spike& spike : first) {
    if (!spike.any) continue;
    in.push_back(spike.in);
    outs.push_back(spike.out);
  }
  if (in.empty()) return measure::skip_group(out.model, "super_weights", "no down projection that all tokens pass through");
  put(out.model, "super_weights.count", static_cast<double>(found.size()));
  put(out.model, "super_weights.rounds", static_cast<double>(rounds));
  put(out.model, "super_weights.median.in", median(in));
  put(out.model, "super_weights.median.out", median(outs));
  double relative = 0;
  for (std::size_t l = 0; l < first.size(); ++l) {
    const Spike& spike = first[l];
    if (!spike.any) continue;
    Measures& block = block_of(out, static_cast<int>(l)).measures;
    put(block, "super_weights.in", spike.in);
    put(block, "super_weights.in_position", static_cast<double>(spike.in_position));
    put(block, "super_weights.in_channel", static_cast<double>(spike.in_channel));
    put(block, "super_weights.out", spike.out);
    put(block, "super_weights.out_position", static_cast<double>(spike.out_position));
    put(block, "super_weights.out_channel", static_cast<double>(spike.out_channel));
    relative += spike.in > kSpikeRatio * median(in) && spike.out > kSpikeRatio * median(outs);
  }
  put(out.model, "super_weights.layers_over_20_medians", relative);

  // What each layer's candidate is worth: the loss without that one weight.
  const std::size_t rows = std::min(ids.size() / window, std::max<std::size_t>(1, kImpactTokens / window)) * window;
  double parameters = 0;
  for (const TensorInfo& tensor : running.files().checkpoint->tensors()) parameters += static_cast<double>(tensor.num_elements);
  if (selection.spares() && parameters * static_cast<double>(rows * layers) > kSparedProducts)
    return measure::skip_group(out.model, "super_weights.loss_change", "costly for a model of this size: ask for it with --what super_weights");
  const std::span<const std::uint32_t> some = ids.first(rows);
  const std::vector<TokenChunk> windows = chunks_of(some, window);
  const double plain = mean_loss(running, running.network(), running.network().run(windows), some, window, rows);
  if (std::isnan(plain)) return;
  for (std::size_t l = 0; l < first.size(); ++l) {
    if (!first[l].any) continue;
    running.check_cancelled();
    const Ablated::Place place{static_cast<int>(l), first[l].out_channel, first[l].in_channel};
    const Ablated::Model without = ablated.without({place}, weights);
    put(block_of(out, place.layer).measures, "super_weights.loss_change",
        mean_loss(running, *without.network, without.network->run(windows), some, window, rows) - plain);
  }
}

}  // namespace weft::engine
