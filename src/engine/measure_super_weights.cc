#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/measure_layers.h"
#include "engine/super_weights.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

using measure::put;
using measure::Selection;
using model::TokenChunk;

constexpr std::size_t kImpactTokens = 1024;
// Loss impacts are left out when all their forward passes together would multiply more than this.
constexpr double kSparedProducts = 2e13;
constexpr double kSpikeRatio = 20;

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace

void measure_super_weights(RunningModel& running, const BlockWeights& weights, const RunOptions& run_options, const Selection& selection,
                           std::span<const std::uint32_t> ids, std::size_t window, MeasuredModel& out) {
  const std::size_t layers = running.config().layers.size();
  const SuperWeights search = find_super_weights(running, weights, run_options, ids);
  const std::vector<DownSpike>& first = search.first;
  for (std::size_t i = 0; i < search.found.size(); ++i) {
    const std::string at = fmt::format("super_weights.found.{}.", i);
    const SuperWeight& found = search.found[i];
    put(out.model, at + "layer", found.place.layer);
    put(out.model, at + "row", static_cast<double>(found.place.row));
    put(out.model, at + "col", static_cast<double>(found.place.column));
    put(out.model, at + "value", found.value);
  }
  std::vector<double> in, outs;
  for (const DownSpike& spike : first) {
    if (!spike.any) continue;
    in.push_back(spike.in);
    outs.push_back(spike.out);
  }
  if (in.empty()) return measure::skip_group(out.model, "super_weights", "no down projection that all tokens pass through");
  put(out.model, "super_weights.count", static_cast<double>(search.found.size()));
  put(out.model, "super_weights.rounds", static_cast<double>(search.rounds));
  put(out.model, "super_weights.median.in", median(in));
  put(out.model, "super_weights.median.out", median(outs));
  double relative = 0;
  for (std::size_t l = 0; l < first.size(); ++l) {
    const DownSpike& spike = first[l];
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
    const WeightPlace place{static_cast<int>(l), first[l].out_channel, first[l].in_channel};
    const AblatedModel without = without_weights(running, weights, run_options, std::span(&place, 1));
    put(block_of(out, place.layer).measures, "super_weights.loss_change",
        mean_loss(running, *without.network, without.network->run(windows), some, window, rows) - plain);
  }
}

}  // namespace weft::engine
