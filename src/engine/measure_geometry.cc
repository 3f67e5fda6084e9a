#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <tuple>

#include "engine/measure_layers.h"
#include "measure/activations.h"
#include "measure/distances.h"

namespace weft::engine {
namespace {

using measure::put;
using model::Role;
using model::Rows;

/// Norms of what linear layers read.
class NormTap final : public model::NetworkTap {
 public:
  std::map<std::pair<int, Slot>, std::vector<double>> squares;
  void linear_input(int layer, Role role, int expert, std::size_t, const Rows& rows) override {
    const std::optional<Slot> slot = dense_slot(role, expert);
    if (!slot) return;
    std::vector<double>& sums = squares[{layer, *slot}];
    sums.resize(rows.num_columns);
    for (std::size_t r = 0; r < rows.num_rows; ++r)
      for (std::size_t c = 0; c < rows.num_columns; ++c) sums[c] += static_cast<double>(rows.row(r)[c]) * static_cast<double>(rows.row(r)[c]);
  }
};

/// A map of the texts and the tree of their nearest, from Hamming distances.
void put_pictures(const std::vector<std::uint64_t>& differ, double total, std::size_t n, const std::string& at, Measures& out) {
  std::vector<double> distances(n * n);
  for (std::size_t a = 0; a < n; ++a)
    for (std::size_t b = 0; b < n; ++b) distances[a * n + b] = static_cast<double>(differ[std::min(a, b) * n + std::max(a, b)]) / total;
  constexpr std::size_t kDimensions = 2;
  const measure::Map map = measure::classical_map(distances, n, kDimensions);
  for (std::size_t t = 0; t < n; ++t)
    for (std::size_t d = 0; d < kDimensions; ++d) put(out, fmt::format("{}map.{}.{}", at, t, d), map.points[t * kDimensions + d]);
  for (std::size_t d = 0; d < kDimensions; ++d) put(out, fmt::format("{}map_spread.{}", at, d), map.spread[d]);
  const std::vector<measure::Merge> tree = measure::average_linkage(distances, n);
  for (std::size_t k = 0; k < tree.size(); ++k) {
    put(out, fmt::format("{}tree.{}.a", at, k), static_cast<double>(tree[k].a));
    put(out, fmt::format("{}tree.{}.b", at, k), static_cast<double>(tree[k].b));
    put(out, fmt::format("{}tree.{}.height", at, k), tree[k].height);
    put(out, fmt::format("{}tree.{}.size", at, k), static_cast<double>(tree[k].size));
  }
}

}  // namespace

void measure_geometry(RunningModel& running, const BlockWeights& weights, const std::vector<GeometryText>& texts, std::size_t window,
                      MeasuredModel& out) {
  std::vector<NormTap> taps(texts.size());
  for (std::size_t t = 0; t < texts.size(); ++t) {
    running.check_cancelled();
    (void)running.network().run(chunks_of(texts[t].ids, window), &taps[t]);
  }
  const std::size_t n = texts.size();
  for (const double share : {0.5, 0.1}) {
    std::vector<std::uint64_t> differ(n * n), both(n * n);
    double total = 0;
    std::mutex mutex;
    std::vector<std::tuple<int, const TensorInfo*, Role>> all;
    for (std::size_t l = 0; l < running.config().layers.size(); ++l)
      for (const auto& [tensor, role] : weights.of(static_cast<int>(l))) all.emplace_back(static_cast<int>(l), tensor, role);
    running.network().team().for_each(all.size(), [&](std::size_t i, int) {
      const auto& [layer, tensor, role] = all[i];
      const Slot slot = *slot_of(role);
      const auto first = taps[0].squares.find({layer, slot});
      if (first == taps[0].squares.end()) return;
      const BlockWeight weight = weights.load(*tensor, static_cast<std::int64_t>(first->second.size()));
      if (weight.columns != static_cast<std::int64_t>(first->second.size())) return;
      std::vector<measure::ImportanceMask> masks;
      for (const NormTap& tap : taps) {
        std::vector<double> norms = tap.squares.at({layer, slot});
        for (double& value : norms) value = std::sqrt(value);
        masks.emplace_back(weight.matrix(), norms, share);
      }
      const std::lock_guard lock(mutex);
      total += static_cast<double>(weight.values.size());
      for (std::size_t a = 0; a < n; ++a) {
        for (std::size_t b = a + 1; b < n; ++b) {
          const measure::MaskCounts counts = measure::compare_masks(masks[a], masks[b]);
          differ[a * n + b] += counts.differ;
          both[a * n + b] += counts.both;
        }
      }
    });
    if (total == 0) return measure::skip_group(out.model, "language_geometry", "no dense linear layer");
    for (std::size_t a = 0; a < n; ++a) {
      for (std::size_t b = a + 1; b < n; ++b) {
        const auto apart = static_cast<double>(differ[a * n + b]), shared = static_cast<double>(both[a * n + b]);
        put(out.model, fmt::format("language_geometry.{}.hamming.{}.{}", share, a, b), apart / total);
        put(out.model, fmt::format("language_geometry.{}.jaccard.{}.{}", share, a, b), apart / std::max(1.0, apart + shared));
      }
    }
    put(out.model, fmt::format("language_geometry.{}.elements", share), total);
    put_pictures(differ, total, n, fmt::format("language_geometry.{}.", share), out.model);
  }
  if (std::any_of(running.config().layers.begin(), running.config().layers.end(), [](const auto& layer) { return layer.experts; }))
    out.model.skipped.emplace_back("language_geometry.experts", "routed experts are left out: not every text reaches each");
  for (std::size_t t = 0; t < n; ++t) out.model.labels.emplace_back(fmt::format("language_geometry.texts.{}", t), texts[t].name);
}

}  // namespace weft::engine
