#include "quantize/statistic_repair.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

using testing::random_values;

constexpr std::size_t kRows = 7, kColumns = 6, kTokens = 50;

std::vector<double> sum_of_products(const std::vector<float>& x) {
  std::vector<double> gram(kColumns * kColumns);
  for (std::size_t t = 0; t < kTokens; ++t)
    for (std::size_t i = 0; i < kColumns; ++i)
      for (std::size_t j = 0; j < kColumns; ++j)
        gram[i * kColumns + j] += static_cast<double>(x[t * kColumns + i]) * static_cast<double>(x[t * kColumns + j]);
  return gram;
}

/// sum over tokens and rows of (Q diag(t) x - W y)^2, token by token.
double loss_of(const std::vector<float>& w, const std::vector<float>& y, const std::vector<float>& q, const std::vector<float>& x,
               const std::vector<double>& t) {
  double sum = 0;
  for (std::size_t token = 0; token < kTokens; ++token)
    for (std::size_t r = 0; r < kRows; ++r) {
      double difference = 0;
      for (std::size_t c = 0; c < kColumns; ++c)
        difference += q[r * kColumns + c] * t[c] * x[token * kColumns + c] - static_cast<double>(w[r * kColumns + c]) * y[token * kColumns + c];
      sum += difference * difference;
    }
  return sum;
}

TEST(StatisticRepair, the_shift_of_the_mean_makes_the_mean_output_what_it_was) {
  const std::vector<float> w = random_values(kRows * kColumns, 1), x = random_values(kTokens * kColumns, 2);
  std::vector<float> q = w;
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = std::nearbyint(2 * q[i]) / 2;
  std::vector<double> mean(kColumns);
  for (std::size_t i = 0; i < x.size(); ++i) mean[i % kColumns] += static_cast<double>(x[i]) / kTokens;
  const std::vector<double> shift = mean_shift(w, q, kRows, kColumns, mean);
  for (std::size_t r = 0; r < kRows; ++r) {
    double before = 0, after = 0;
    for (std::size_t t = 0; t < kTokens; ++t)
      for (std::size_t c = 0; c < kColumns; ++c) {
        before += static_cast<double>(w[r * kColumns + c]) * x[t * kColumns + c];
        after += static_cast<double>(q[r * kColumns + c]) * x[t * kColumns + c];
      }
    EXPECT_NEAR(after / kTokens + shift[r], before / kTokens, 1e-9);
  }
}

TEST(StatisticRepair, gains_are_where_no_step_to_either_side_loses_less) {
  const std::vector<float> w = random_values(kRows * kColumns, 3), v = random_values(kRows * kColumns, 4), x = random_values(kTokens * kColumns, 5);
  const std::vector<float> noise = random_values(kTokens * kColumns, 8);
  std::vector<float> q = w, u = v, y = x;
  for (std::size_t i = 0; i < q.size(); ++i) {
    q[i] = std::nearbyint(2 * q[i]) / 2;
    u[i] = std::nearbyint(2 * u[i]) / 2;
  }
  const std::vector<double> gram = sum_of_products(x), ones(kColumns, 1);
  const std::vector<TunedReader> readers = {{w, q, kRows}, {v, u, kRows}};
  for (const bool drifted : {false, true}) {
    std::vector<double> cross;
    if (drifted) {
      cross.assign(gram.size(), 0);
      for (std::size_t i = 0; i < y.size(); ++i) y[i] += 0.2F * noise[i] + 0.1F * x[i];
      for (std::size_t t = 0; t < kTokens; ++t)
        for (std::size_t i = 0; i < kColumns; ++i)
          for (std::size_t j = 0; j < kColumns; ++j)
            cross[i * kColumns + j] += (static_cast<double>(y[t * kColumns + i]) - x[t * kColumns + i]) * x[t * kColumns + j];
    }
    const TunedGains tuned = tune_gains(readers, kColumns, gram, cross, 0);
    const auto loss = [&](const std::vector<double>& t) { return loss_of(w, y, q, x, t) + loss_of(v, y, u, x, t); };
    EXPECT_NEAR(tuned.saved, loss(ones) - loss(tuned.factors), 1e-5 * loss(ones));
    EXPECT_GT(tuned.saved, 0.01 * loss(ones));
    for (std::size_t c = 0; c < kColumns; ++c)
      for (const double step : {-1e-3, 1e-3}) {
        std::vector<double> other = tuned.factors;
        other[c] += step;
        EXPECT_GT(loss(other), loss(tuned.factors));
      }
  }
  // Held to 1.
  const TunedGains held = tune_gains(readers, kColumns, gram, {}, 1e6);
  for (const double factor : held.factors) EXPECT_NEAR(factor, 1, 1e-4);
}

TEST(StatisticRepair, gains_stay_where_nothing_was_lost_or_nothing_is_left) {
  const std::vector<float> w = random_values(kRows * kColumns, 6), none(kRows * kColumns, 0.0F), x = random_values(kTokens * kColumns, 7);
  const std::vector<double> gram = sum_of_products(x), ones(kColumns, 1);
  EXPECT_EQ(tune_gains(std::vector<TunedReader>{{w, none, kRows}}, kColumns, gram, {}, 0.01).factors, ones);
  for (const double factor : tune_gains(std::vector<TunedReader>{{w, w, kRows}}, kColumns, gram, {}, 0.01).factors) EXPECT_NEAR(factor, 1, 1e-9);
}

TEST(StatisticRepair, values_are_held_to_the_mean_of_their_sizes_and_some_deviations) {
  std::vector<float> values = {1, -1, 1, -3, /* next group */ 0, 0, 0, 0, /* a short one */ 2, -4};
  clip_to_deviation(values, 1, 10, 4, 1);
  // Sizes 1, 1, 1, 3: mean 1.5, deviation sqrt(0.75).
  EXPECT_EQ(values[0], 1);
  EXPECT_NEAR(values[3], -(1.5 + std::sqrt(0.75)), 1e-6);
  EXPECT_EQ(values[5], 0);
  EXPECT_EQ(values[8], 2);
  EXPECT_EQ(values[9], -4);  // mean 3, deviation 1
  std::vector<float> row = {1, 1, 1, 1, 1, 1, 1, 1000};
  clip_to_deviation(row, 1, 8, 0, 2);
  EXPECT_LT(row[7], 800);
  EXPECT_GT(row[7], 700);
}

}  // namespace
}  // namespace weft::quantize
