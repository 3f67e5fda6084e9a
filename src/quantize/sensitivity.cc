#include "quantize/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace weft::quantize {

std::vector<std::int64_t> largest_scores(std::span<const float> scores, std::size_t count) {
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  count = std::min(count, order.size());
  const auto score_at = [&](std::int64_t i) {
    const float score = scores[static_cast<std::size_t>(i)];
    return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
  };
  std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), [&](std::int64_t a, std::int64_t b) {
    const float x = score_at(a), y = score_at(b);
    return x != y ? x > y : a < b;
  });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<double> path_points(int n) {
  std::vector<double> points;
  for (int k = 0; k < n; ++k) points.push_back((k + 0.5) / n);
  return points;
}

void PathGradient::add(std::span<const float> gradient) {
  if (sum_.empty()) sum_.resize(gradient.size());
  WEFT_ASSERT(sum_.size() == gradient.size());
  for (std::size_t i = 0; i < sum_.size(); ++i) sum_[i] += gradient[i];
  ++count_;
}

std::vector<float> PathGradient::scores(std::span<const float> weights, std::span<const float> quantized) const {
  std::vector<float> scores(weights.size());
  if (count_ == 0) return scores;
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = std::fabs((quantized[i] - weights[i]) * sum_[i]) / static_cast<float>(count_);
  return scores;
}

double PathGradient::change(std::span<const float> weights, std::span<const float> quantized) const {
  if (count_ == 0) return 0;
  double change = 0;
  for (std::size_t i = 0; i < weights.size(); ++i)
    change += (static_cast<double>(quantized[i]) - static_cast<double>(weights[i])) * static_cast<double>(sum_[i]);
  return change / count_;
}

std::vector<std::uint64_t> spread_over(std::span<const double> scores, std::span<const std::uint64_t> sizes, std::uint64_t total, double exponent) {
  WEFT_ASSERT(scores.size() == sizes.size());
  std::vector<double> wishes(sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const double density = sizes[i] == 0 ? 0 : std::max(0.0, scores[i]) / static_cast<double>(sizes[i]);
    wishes[i] = static_cast<double>(sizes[i]) * (exponent == 0 ? 1 : std::pow(density, exponent));
    if (!std::isfinite(wishes[i])) wishes[i] = 0;
  }
  const std::uint64_t all = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  total = std::min(total, all);
  std::vector<std::uint64_t> given(sizes.size());
  std::vector<bool> full(sizes.size());
  // Those that would get more than they have get all that they have; then the rest is shared anew.
  while (true) {
    std::uint64_t left = total;
    double wished = 0;
    std::size_t open = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (full[i]) {
        left -= sizes[i];
      } else {
        wished += wishes[i];
        ++open;
      }
    }
    if (open == 0) return given;
    bool again = false;
    std::vector<std::pair<double, std::size_t>> rests;
    std::uint64_t spent = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (full[i]) continue;
      const double share = static_cast<double>(left) * (wished > 0 ? wishes[i] / wished : 1.0 / static_cast<double>(open));
      if (share >= static_cast<double>(sizes[i])) {
        full[i] = again = true;
        given[i] = sizes[i];
        continue;
      }
      given[i] = static_cast<std::uint64_t>(share);
      spent += given[i];
      rests.emplace_back(-(share - std::floor(share)), i);
    }
    if (again) continue;
    // What rounding down left over, by the largest remainders.
    std::sort(rests.begin(), rests.end());
    for (std::size_t k = 0; spent < left && !rests.empty(); k = (k + 1) % rests.size()) {
      if (given[rests[k].second] >= sizes[rests[k].second]) continue;
      ++given[rests[k].second];
      ++spent;
    }
    return given;
  }
}

}  // namespace weft::quantize
