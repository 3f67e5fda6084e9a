#include "fold.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "base/text.h"

namespace weft::app {
namespace {

/// A name in parts: "model.layers." 7 ".mlp.up_proj.weight". Only whole components between dots count as numbers.
struct SplitName {
  std::vector<std::string> texts;  ///< one more than numbers
  std::vector<std::uint64_t> numbers;
  auto operator<=>(const SplitName&) const = default;
};

SplitName split(const std::string& name) {
  SplitName parts;
  std::string text;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('.', at), name.size());
    const std::string component = name.substr(at, end - at);
    constexpr std::size_t kMostDigits = 9;
    const bool number = !component.empty() && component.size() <= kMostDigits && component.find_first_not_of("0123456789") == std::string::npos &&
                        (component.size() == 1 || component.front() != '0');
    if (number) {
      parts.texts.push_back(std::exchange(text, ""));
      parts.numbers.push_back(std::stoull(component));
    } else {
      text += component;
    }
    if (end < name.size()) text += '.';
    at = end + 1;
  }
  parts.texts.push_back(text);
  return parts;
}

std::string ranges(const std::set<std::uint64_t>& numbers) {
  std::string text;
  for (auto at = numbers.begin(); at != numbers.end();) {
    const std::uint64_t first = *at;
    std::uint64_t last = first;
    for (++at; at != numbers.end() && *at == last + 1; ++at) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(first);
    if (last > first) text += "-" + std::to_string(last);
  }
  return text;
}

// Compares part by part, numbers as numbers.
bool natural_less(const SplitName& a, const SplitName& b) {
  for (std::size_t i = 0;; ++i) {
    if (a.texts[i] != b.texts[i]) return a.texts[i] < b.texts[i];
    if (i == a.numbers.size() || i == b.numbers.size()) return a.numbers.size() < b.numbers.size();
    if (a.numbers[i] != b.numbers[i]) return a.numbers[i] < b.numbers[i];
  }
}

}  // namespace

std::vector<FoldedTensors> fold_tensors(const std::vector<std::string>& names, const std::vector<std::string>& alike, bool unfolded) {
  std::vector<SplitName> parts;
  for (const std::string& name : names) parts.push_back(split(name));
  std::vector<std::size_t> order(names.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return natural_less(parts[a], parts[b]); });

  std::vector<FoldedTensors> folded;
  std::map<std::pair<std::vector<std::string>, std::string>, std::size_t> place;
  for (const std::size_t i : order) {
    if (unfolded) {
      folded.push_back({.name = printable(names[i]), .members = {i}});
      continue;
    }
    const auto [found, added] = place.try_emplace({parts[i].texts, alike[i]}, folded.size());
    if (added) folded.emplace_back();
    folded[found->second].members.push_back(i);
  }
  if (unfolded) return folded;

  for (FoldedTensors& group : folded) {
    const SplitName& first = parts[group.members.front()];
    std::string name = first.texts.front();
    for (std::size_t slot = 0; slot < first.numbers.size(); ++slot) {
      std::set<std::uint64_t> numbers;
      for (const std::size_t i : group.members) numbers.insert(parts[i].numbers[slot]);
      name += ranges(numbers) + first.texts[slot + 1];
    }
    group.name = printable(name);
  }
  return folded;
}

}  // namespace weft::app
