#include "quantize/key_smoothing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

using testing::random_values;

/// A head's channels at a position: channel i turns with channel half + i.
std::vector<double> rotated(const std::vector<double>& x, double position) {
  const std::size_t half = x.size() / 2;
  std::vector<double> out(x.size());
  for (std::size_t i = 0; i < half; ++i) {
    const double angle = position * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(x.size()));
    out[i] = std::cos(angle) * x[i] - std::sin(angle) * x[half + i];
    out[half + i] = std::sin(angle) * x[i] + std::cos(angle) * x[half + i];
  }
  return out;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

TEST(KeySmoothing, one_scale_for_a_pair_commutes_with_positions_and_two_do_not) {
  const std::vector<float> a = random_values(16, 1), b = random_values(16, 2);
  const std::vector<double> q(a.begin(), a.end()), k(b.begin(), b.end());
  const std::vector<double> scales = pair_scales(b, 0.5);
  ASSERT_EQ(scales.size(), 8u);
  const auto score_with = [&](double of_second) {
    std::vector<double> u = q, v = k;
    for (std::size_t i = 0; i < 16; ++i) {
      const double scale = scales[i % 8] * (i < 8 ? 1 : of_second);
      u[i] *= scale;
      v[i] /= scale;
    }
    return dot(rotated(u, 7), rotated(v, 3));
  };
  const double score = dot(rotated(q, 7), rotated(k, 3));
  EXPECT_NEAR(score_with(1), score, 1e-14);
  EXPECT_GT(std::fabs(score_with(3) - score), 0.1);
}

TEST(KeySmoothing, scales_are_balanced_and_leave_silent_channels_alone) {
  const std::vector<float> largest = {4, 0, 1, 0, 16, 0, 9, 0};  // pairs (4, 16), (0, 0), (1, 9), (0, 0)
  const std::vector<double> scales = pair_scales(largest, 0.5);
  EXPECT_NEAR(scales[0], std::sqrt(16.0 / 12), 1e-12);
  EXPECT_NEAR(scales[2], std::sqrt(9.0 / 12), 1e-12);
  EXPECT_EQ(scales[1], 1);
  EXPECT_EQ(scales[3], 1);
  EXPECT_NEAR(channel_scales(std::vector<float>{2, 8}, 1)[1], 2, 1e-12);
}

/// Errors of scores when keys are held in 4 bits, a scale for each token and head.
double score_error(const std::vector<float>& queries, const std::vector<float>& keys, std::size_t dims, const std::vector<double>& scales) {
  double sum = 0;
  const std::size_t tokens = keys.size() / dims;
  for (std::size_t t = 0; t < tokens; ++t) {
    std::vector<double> k(dims), q(dims);
    for (std::size_t i = 0; i < dims; ++i) {
      const double scale = scales[i % scales.size()];
      k[i] = keys[t * dims + i] / scale;
      q[i] = queries[t * dims + i] * scale;
    }
    k = rotated(k, static_cast<double>(t));
    q = rotated(q, static_cast<double>(t) + 5);
    double largest = 0;
    for (const double value : k) largest = std::max(largest, std::fabs(value));
    const double step = largest / 7;
    double difference = 0;
    for (std::size_t i = 0; i < dims; ++i) difference += q[i] * (step * std::nearbyint(k[i] / step) - k[i]);
    sum += difference * difference;
  }
  return sum;
}

TEST(KeySmoothing, keys_with_loud_channels_lose_less_than_half_in_four_bits) {
  constexpr std::size_t kDims = 32, kTokens = 200;
  std::vector<float> keys = random_values(kDims * kTokens, 3), queries = random_values(kDims * kTokens, 4);
  for (std::size_t t = 0; t < kTokens; ++t)
    for (const std::size_t channel : {std::size_t{3}, std::size_t{24}}) {
      keys[t * kDims + channel] *= 20;
      queries[t * kDims + channel] /= 20;
    }
  std::vector<float> largest(kDims);
  for (std::size_t i = 0; i < keys.size(); ++i) largest[i % kDims] = std::max(largest[i % kDims], std::fabs(keys[i]));
  const double plain = score_error(queries, keys, kDims, std::vector<double>(kDims / 2, 1.0));
  EXPECT_LT(score_error(queries, keys, kDims, pair_scales(largest, 0.5)), 0.5 * plain);
}

}  // namespace
}  // namespace weft::quantize
