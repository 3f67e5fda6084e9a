#include "quantize/dual_scale.h"

#include <algorithm>
#include <cmath>

namespace weft::quantize {
namespace {

/// To a geometric mean of 1, held within [1/8, 8]. A column of zeros has none of its own.
std::vector<float> settled(const std::vector<double>& raw) {
  constexpr double kMost = 8;
  double sum = 0;
  std::size_t count = 0;
  for (const double value : raw)
    if (value > 0 && std::isfinite(value)) {
      sum += std::log(value);
      ++count;
    }
  const double centre = count > 0 ? std::exp(sum / static_cast<double>(count)) : 1;
  std::vector<float> out;
  for (const double value : raw)
    out.push_back(value > 0 && std::isfinite(value) ? static_cast<float>(std::clamp(value / centre, 1 / kMost, kMost)) : 1.0F);
  return out;
}

}  // namespace

DualScale search_dual_scale(std::span<const float> weights, std::int64_t rows, std::int64_t columns, std::span<const double> gram,
                            const SolverOptions& options, int rounds) {
  const auto n = static_cast<std::size_t>(columns), m = static_cast<std::size_t>(rows);
  std::vector<float> inner(weights.size()), difference(weights.size()), importance(n), rounded;
  /// Rounds with these scales taken out, and says what is lost.
  const auto loss_with = [&](const std::vector<float>& channel) {
    for (std::size_t i = 0; i < inner.size(); ++i) inner[i] = weights[i] / channel[i % n];
    for (std::size_t j = 0; j < n; ++j) importance[j] = static_cast<float>(gram[j * n + j]) * channel[j] * channel[j];
    rounded = round_to_nearest(inner, rows, columns, options, importance).decoded();
    for (std::size_t i = 0; i < difference.size(); ++i) difference[i] = rounded[i] * channel[i % n] - weights[i];
    return quadratic_form(difference, rows, columns, gram);
  };

  std::vector<double> squares(n), largest(n);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto value = static_cast<double>(weights[i]);
    squares[i % n] += value * value;
    largest[i % n] = std::max(largest[i % n], std::fabs(value));
  }
  for (double& value : squares) value = std::sqrt(value / static_cast<double>(std::max<std::size_t>(m, 1)));
  for (double& value : largest) value = std::sqrt(value);

  DualScale best;
  best.channel.assign(n, 1);
  best.loss = best.plain_loss = loss_with(best.channel);
  for (std::vector<float> channel : {best.channel, settled(squares), settled(largest)}) {
    double before = loss_with(channel);
    for (int round = 0;; ++round) {
      if (before < best.loss) {
        best.loss = before;
        best.channel = channel;
      }
      if (round == rounds) break;
      // With codes as they are, each column has its own best scale.
      std::vector<double> next(n);
      for (std::size_t j = 0; j < n; ++j) {
        double product = 0, size = 0;
        for (std::size_t o = 0; o < m; ++o) {
          const auto d = static_cast<double>(rounded[o * n + j]);
          product += static_cast<double>(weights[o * n + j]) * d;
          size += d * d;
        }
        next[j] = size > 0 && product > 0 ? product / size : static_cast<double>(channel[j]);
      }
      channel = settled(next);
      const double loss = loss_with(channel);
      if (!(loss < before)) break;
      before = loss;
    }
  }
  return best;
}

std::vector<double> mean_shift(std::span<const double> original_sum, std::span<const double> changed_sum, std::uint64_t num_tokens,
                               double prior_tokens) {
  std::vector<double> out(original_sum.size());
  const double divisor = static_cast<double>(num_tokens) + prior_tokens;
  for (std::size_t j = 0; j < out.size(); ++j) out[j] = divisor > 0 ? (original_sum[j] - changed_sum[j]) / divisor : 0;
  return out;
}

std::vector<double> shifted_bias(std::span<const float> weights, std::int64_t rows, std::int64_t columns, std::span<const double> shift) {
  const auto n = static_cast<std::size_t>(columns);
  std::vector<double> out(static_cast<std::size_t>(rows));
  for (std::size_t o = 0; o < out.size(); ++o)
    for (std::size_t j = 0; j < n; ++j) out[o] += static_cast<double>(weights[o * n + j]) * shift[j];
  return out;
}

}  // namespace weft::quantize
