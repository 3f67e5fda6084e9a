#include "measure/phases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "measure/table.h"

namespace weft::measure {
namespace {

constexpr std::size_t kLeastModels = 3;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// The last of cka.plain.0, 1, ...: behind the final norm.
const double* last_similarity(const Measures& total) {
  const double* last = nullptr;
  for (std::size_t p = 0;; ++p) {
    const double* value = total.find(fmt::format("cka.plain.{}", p));
    if (value == nullptr) return last;
    last = value;
  }
}

/// From the losses along the line.
std::optional<double> connectivity_of(const Measures& total) {
  std::vector<double> losses;
  while (const double* loss = total.find(fmt::format("barrier.loss.{}", losses.size()))) losses.push_back(*loss);
  if (losses.size() < 3) return std::nullopt;
  double furthest = 0;
  for (std::size_t i = 1; i + 1 < losses.size(); ++i) {
    const double t = static_cast<double>(i) / static_cast<double>(losses.size() - 1);
    const double away = (1 - t) * losses.front() + t * losses.back() - losses[i];
    if (std::abs(away) > std::abs(furthest)) furthest = away;
  }
  return furthest;
}

}  // namespace

const char* phase_of(const Standing& standing, double loss_bar, double similarity_bar) noexcept {
  const bool barrier = standing.connectivity < -kConnected;
  if (standing.loss > loss_bar) return barrier ? "I" : "II";
  if (barrier) return "III";
  return standing.similarity < similarity_bar ? "IV-A" : "IV-B";
}

void find_phases(MeasureReport& report) {
  std::vector<std::pair<ModelComparison*, Standing>> all;
  std::vector<ModelComparison*> others;
  std::vector<double> losses, similarities;
  for (ModelComparison& comparison : report.comparisons) {
    if (comparison.kind != "pair" && comparison.kind != "path") continue;
    const std::optional<double> connectivity = connectivity_of(comparison.total);
    const double* similarity = last_similarity(comparison.total);
    const double* loss = nullptr;
    for (const MeasuredModel& model : report.models)
      if (model.path == comparison.models.front()) loss = model.model.find("text.loss");
    if (!connectivity || similarity == nullptr || loss == nullptr) {
      others.push_back(&comparison);
      continue;
    }
    all.emplace_back(&comparison, Standing{*loss, *connectivity, *similarity});
    losses.push_back(*loss);
    similarities.push_back(*similarity);
  }
  for (ModelComparison* comparison : others)
    skip_group(comparison->total, "phases", "loss, barrier and similarity are not all known: --what text,cka,barrier,phases with --text");
  if (all.size() < kLeastModels) {
    for (const auto& [comparison, standing] : all)
      skip_group(comparison->total, "phases",
                 fmt::format("its bars are medians: it takes {} comparisons, and there are {}", kLeastModels, all.size()));
    return;
  }
  const double loss_bar = median(losses), similarity_bar = median(similarities);
  for (const auto& [comparison, standing] : all) {
    Measures& out = comparison->total;
    put(out, "phases.loss", standing.loss);
    put(out, "phases.connectivity", standing.connectivity);
    put(out, "phases.similarity", standing.similarity);
    put(out, "phases.bar.loss", loss_bar);
    put(out, "phases.bar.connectivity", -kConnected);
    put(out, "phases.bar.similarity", similarity_bar);
    out.labels.emplace_back("phases.phase", phase_of(standing, loss_bar, similarity_bar));
  }
}

}  // namespace weft::measure
