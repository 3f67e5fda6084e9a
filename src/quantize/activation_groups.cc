#include "quantize/activation_groups.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "math/convert.h"

namespace weft::quantize {
namespace {

constexpr float kLeastScale = 1e-8F;
constexpr float kLargestE4m3 = 448;
constexpr int kMostRounds = 100;

struct Range {
  double least = 0, most = 0;
};
double distance(const Range& a, const Range& b) { return (a.least - b.least) * (a.least - b.least) + (a.most - b.most) * (a.most - b.most); }

}  // namespace

double range_spread(std::span<const float> least, std::span<const float> most) {
  if (least.empty()) return 0;
  const auto [low, high] = std::minmax_element(least.begin(), least.end());
  const auto [low_most, high_most] = std::minmax_element(most.begin(), most.end());
  return (static_cast<double>(*high_most) - static_cast<double>(*low_most)) + (static_cast<double>(*high) - static_cast<double>(*low));
}

std::vector<int> cluster_ranges(std::span<const float> least, std::span<const float> most, int groups) {
  WEFT_ASSERT(least.size() == most.size() && groups >= 1);
  std::vector<Range> points;
  for (std::size_t c = 0; c < least.size(); ++c) points.push_back({static_cast<double>(least[c]), static_cast<double>(most[c])});
  std::vector<int> group_of(points.size());
  if (points.empty()) return group_of;
  std::vector<Range> centres = {
      *std::max_element(points.begin(), points.end(), [](const Range& a, const Range& b) { return a.most - a.least < b.most - b.least; })};
  std::vector<double> nearest(points.size(), std::numeric_limits<double>::infinity());
  while (static_cast<int>(centres.size()) < groups) {
    for (std::size_t c = 0; c < points.size(); ++c) nearest[c] = std::min(nearest[c], distance(points[c], centres.back()));
    const auto farthest = std::max_element(nearest.begin(), nearest.end());
    if (!(*farthest > 0)) break;  // no more different ranges than that
    centres.push_back(points[static_cast<std::size_t>(farthest - nearest.begin())]);
  }
  for (int round = 0; round < kMostRounds; ++round) {
    bool changed = false;
    for (std::size_t c = 0; c < points.size(); ++c) {
      int best = 0;
      for (std::size_t k = 1; k < centres.size(); ++k)
        if (distance(points[c], centres[k]) < distance(points[c], centres[static_cast<std::size_t>(best)])) best = static_cast<int>(k);
      changed = changed || best != group_of[c];
      group_of[c] = best;
    }
    if (!changed && round > 0) break;
    std::vector<Range> sums(centres.size());
    std::vector<double> counts(centres.size());
    for (std::size_t c = 0; c < points.size(); ++c) {
      const auto k = static_cast<std::size_t>(group_of[c]);
      sums[k].least += points[c].least;
      sums[k].most += points[c].most;
      counts[k] += 1;
    }
    for (std::size_t k = 0; k < centres.size(); ++k)
      if (counts[k] > 0) centres[k] = {sums[k].least / counts[k], sums[k].most / counts[k]};
  }
  return group_of;
}

ActivationGroups group_channels(std::span<const float> least, std::span<const float> most, int groups, const ActivationNumbers& numbers, float clip) {
  WEFT_ASSERT(numbers.bits >= 2 && numbers.bits <= 16);
  ActivationGroups out;
  out.numbers = numbers;
  out.group_of = cluster_ranges(least, most, groups);
  std::vector<float> low(static_cast<std::size_t>(groups), std::numeric_limits<float>::infinity()), high(low.size(), -low.front());
  for (std::size_t c = 0; c < out.group_of.size(); ++c) {
    const auto k = static_cast<std::size_t>(out.group_of[c]);
    low[k] = std::min(low[k], least[c]);
    high[k] = std::max(high[k], most[c]);
  }
  const auto most_code = static_cast<float>((1 << numbers.bits) - 1);
  for (std::size_t k = 0; k < low.size(); ++k) {
    const bool used = low[k] <= high[k];
    if (numbers.is_e4m3) {
      out.scale.push_back(used ? std::max(clip * std::max(std::fabs(low[k]), std::fabs(high[k])) / kLargestE4m3, kLeastScale) : 1.0F);
      out.zero.push_back(0);
      continue;
    }
    out.scale.push_back(used ? std::max(clip * (high[k] - low[k]) / most_code, kLeastScale) : 1.0F);
    out.zero.push_back(used ? std::nearbyint(-clip * low[k] / out.scale.back()) : 0.0F);
  }
  return out;
}

void ActivationGroups::round(std::span<float> row) const {
  WEFT_ASSERT(row.size() == group_of.size());
  if (numbers.is_e4m3) {
    for (std::size_t c = 0; c < row.size(); ++c) row[c] /= scale[static_cast<std::size_t>(group_of[c])];
    math::round_through(DType::f8_e4m3, row);
    for (std::size_t c = 0; c < row.size(); ++c) row[c] *= scale[static_cast<std::size_t>(group_of[c])];
    return;
  }
  const auto most_code = static_cast<float>((1 << numbers.bits) - 1);
  for (std::size_t c = 0; c < row.size(); ++c) {
    const auto k = static_cast<std::size_t>(group_of[c]);
    row[c] = scale[k] * (std::clamp(std::nearbyint(row[c] / scale[k]) + zero[k], 0.0F, most_code) - zero[k]);
  }
}

void round_token(std::span<float> row, const ActivationNumbers& numbers, std::size_t group, float clip) {
  if (group == 0) group = row.size();
  for (std::size_t first = 0; first < row.size(); first += group) {
    const std::span<float> own = row.subspan(first, std::min(group, row.size() - first));
    float largest = 0;
    for (const float value : own) largest = std::max(largest, std::fabs(value));
    if (!(largest > 0)) continue;
    const auto most_code = numbers.is_e4m3 ? kLargestE4m3 : static_cast<float>((1 << (numbers.bits - 1)) - 1);
    const float scale = std::max(clip * largest / most_code, kLeastScale);
    if (numbers.is_e4m3) {
      for (float& value : own) value /= scale;
      math::round_through(DType::f8_e4m3, own);
      for (float& value : own) value *= scale;
    } else {
      for (float& value : own) value = scale * std::clamp(std::nearbyint(value / scale), -most_code, most_code);
    }
  }
}

std::uint8_t encode_share(float share, float largest, int bits) {
  const int most_code = (1 << bits) - 1;
  if (!(share > 0) || !(largest > 0)) return static_cast<std::uint8_t>(most_code);
  return static_cast<std::uint8_t>(std::clamp(static_cast<int>(std::nearbyint(-std::log2(share / largest))), 0, most_code));
}

float decode_share(std::uint8_t code, float largest) { return std::ldexp(largest, -static_cast<int>(code)); }

void round_shares(std::span<float> shares, int bits, bool is_first) {
  const auto rest = is_first && !shares.empty() ? shares.subspan(1) : shares;
  if (rest.empty()) return;
  const float largest = *std::max_element(rest.begin(), rest.end());
  for (float& share : rest) share = decode_share(encode_share(share, largest, bits), largest);
}

void round_shares_evenly(std::span<float> shares, int bits) {
  const auto most_code = static_cast<float>((1 << bits) - 1);
  for (float& share : shares) share = std::nearbyint(share * most_code) / most_code;
}

}  // namespace weft::quantize
