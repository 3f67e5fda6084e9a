#include "engine/super_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "engine/computed_checkpoint.h"
#include "math/lapack.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using model::Role;
using model::Rows;
using model::TokenChunk;

constexpr std::size_t kPromptTokens = 64;
constexpr double kSpikeBar = 50;
constexpr std::size_t kMaxSuperWeights = 10;

/// The largest input and output of every down projection.
class SpikeTap final : public model::NetworkTap {
 public:
  SpikeTap(const BlockWeights& weights, std::size_t tokens, std::size_t layers) : spikes(layers), weights_(weights), tokens_(tokens) {}
  std::vector<DownSpike> spikes;

  void linear_input(int layer, Role role, int expert, std::size_t first_row, const Rows& rows) override {
    if (dense_slot(role, expert) != kDown) return;
    if (first_row == 0) inputs_.clear();
    const std::size_t d = rows.num_columns;
    for (std::size_t r = 0; r < rows.num_rows; ++r) inputs_.insert(inputs_.end(), rows.row(r), rows.row(r) + d);
    if (inputs_.size() != tokens_ * d) return;
    DownSpike& spike = spikes[static_cast<std::size_t>(layer)];
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

/// The tensor and the element that holds a place.
std::optional<std::pair<const TensorInfo*, std::uint64_t>> find(const WeightPlace& place, const BlockWeights& weights) {
  for (const auto& [tensor, role] : weights.of(place.layer)) {
    if (slot_of(role) != kDown) continue;
    const bool turned = weights.is_transposed(*tensor, std::max(tensor->shape[0], tensor->shape[1]));
    const auto columns = static_cast<std::uint64_t>(tensor->shape[1]);
    return std::pair(tensor, turned ? place.column * columns + place.row : place.row * columns + place.column);
  }
  return std::nullopt;
}

double value_at(const TensorInfo& tensor, std::uint64_t element, const BlockWeights& weights) {
  // Types of half a byte want an even begin.
  std::array<float, 2> pair{};
  const std::uint64_t even = element / 2 * 2, left = tensor.num_elements - even;
  read_floats(weights.checkpoint(), tensor, even, std::span(pair).first(static_cast<std::size_t>(std::min<std::uint64_t>(2, left))));
  return static_cast<double>(pair[static_cast<std::size_t>(element - even)]);
}

}  // namespace

AblatedModel without_weights(RunningModel& running, const BlockWeights& weights, const RunOptions& options, std::span<const WeightPlace> places) {
  std::vector<ElementPatch> patches;
  for (const WeightPlace& place : places)
    if (const auto element = find(place, weights)) patches.push_back({element->first->name, element->second, 0.0F});
  AblatedModel result;
  result.checkpoint = patched(running.files().checkpoint, patches);
  result.network = std::make_unique<model::Network>(
      result.checkpoint, running.json(), model::NetworkOptions{options.precision, options.threads, options.memory_bytes, options.allow_non_finite});
  return result;
}

SuperWeights find_super_weights(RunningModel& running, const BlockWeights& weights, const RunOptions& options, std::span<const std::uint32_t> ids) {
  const std::size_t layers = running.config().layers.size();
  std::vector<std::uint32_t> prompt;
  // Spikes sit on the token that begins a text.
  std::optional<std::uint32_t> bos;
  if (running.has_tokenizer()) bos = running.tokenizer("a text").named_id("bos_token");
  if (!bos)
    if (const Json* id = running.json().find("bos_token_id");
        id != nullptr && id->unsigned_integer() && *id->unsigned_integer() < static_cast<std::uint64_t>(running.config().vocab))
      bos = static_cast<std::uint32_t>(*id->unsigned_integer());
  if (bos) prompt.push_back(*bos);
  for (std::size_t i = 0; i < ids.size() && prompt.size() < kPromptTokens; ++i) prompt.push_back(ids[i]);
  const std::vector<TokenChunk> chunks = {{nullptr, prompt, {}}};

  SuperWeights result;
  std::vector<WeightPlace> places;
  AblatedModel changed;
  std::optional<BlockWeights> changed_weights;
  while (places.size() < kMaxSuperWeights) {
    running.check_cancelled();
    SpikeTap tap(changed_weights ? *changed_weights : weights, prompt.size(), layers);
    static_cast<void>((changed.network != nullptr ? *changed.network : running.network()).run(chunks, &tap));
    ++result.rounds;
    if (result.first.empty()) result.first = tap.spikes;
    const auto hit =
        std::find_if(tap.spikes.begin(), tap.spikes.end(), [](const DownSpike& spike) { return spike.in > kSpikeBar && spike.out > kSpikeBar; });
    if (hit == tap.spikes.end()) break;
    const WeightPlace place{static_cast<int>(hit - tap.spikes.begin()), hit->out_channel, hit->in_channel};
    if (std::find(places.begin(), places.end(), place) != places.end()) break;
    SuperWeight found{place, "", 0, 0};
    if (const auto element = find(place, weights)) {
      found.tensor = element->first->name;
      found.element = element->second;
      found.value = value_at(*element->first, element->second, weights);
    }
    result.found.push_back(std::move(found));
    places.push_back(place);
    changed = without_weights(running, weights, options, places);
    changed_weights.emplace(changed.checkpoint, running.config().architecture);
  }
  return result;
}

}  // namespace weft::engine
