#include "quantize/allocate.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "weft/error.h"

namespace weft::quantize {
namespace {

/// A way to store the items so far; the others of its item are none that is smaller and loses less.
struct State {
  std::uint64_t size = 0;
  double loss = 0;
  std::uint32_t before = 0;  ///< of the item before
  std::uint32_t choice = 0;
};

}  // namespace

std::vector<std::size_t> allocate(std::span<const std::vector<Choice>> items, std::uint64_t budget) {
  // What the items that follow take at least.
  std::vector<std::uint64_t> floor(items.size() + 1);
  for (std::size_t i = items.size(); i-- > 0;) {
    if (items[i].empty()) throw Error(ErrorCode::invalid_argument, "an item without choices cannot be stored");
    const auto least = std::min_element(items[i].begin(), items[i].end(), [](const Choice& a, const Choice& b) { return a.size < b.size; });
    floor[i] = checked_add(floor[i + 1], least->size, "budget");
  }
  if (floor.front() > budget)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the budget of {} is below the least that the layers can be stored in, {}", budget, floor.front()), {.key = "budget"},
                "give a larger budget, or narrower choices");
  std::vector<std::vector<State>> states = {{State{}}};
  for (std::size_t i = 0; i < items.size(); ++i) {
    std::vector<State> all;
    for (std::size_t s = 0; s < states.back().size(); ++s)
      for (std::size_t c = 0; c < items[i].size(); ++c) {
        const State next{states.back()[s].size + items[i][c].size, states.back()[s].loss + items[i][c].loss, static_cast<std::uint32_t>(s),
                         static_cast<std::uint32_t>(c)};
        if (next.size <= budget && floor[i + 1] <= budget - next.size) all.push_back(next);
      }
    std::sort(all.begin(), all.end(), [](const State& a, const State& b) { return a.size != b.size ? a.size < b.size : a.loss < b.loss; });
    std::vector<State> kept;
    for (const State& state : all)
      if (kept.empty() || state.loss < kept.back().loss) kept.push_back(state);
    states.push_back(std::move(kept));
  }
  // The last one kept loses least.
  std::vector<std::size_t> chosen(items.size());
  std::size_t at = states.back().size() - 1;
  for (std::size_t i = items.size(); i-- > 0;) {
    chosen[i] = states[i + 1][at].choice;
    at = states[i + 1][at].before;
  }
  return chosen;
}

}  // namespace weft::quantize
