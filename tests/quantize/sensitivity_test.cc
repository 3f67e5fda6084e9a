#include "quantize/sensitivity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

/// What the way from one weight to another changes in a function with this slope.
double change_by(int n, double from, double to, const std::function<double(double)>& slope) {
  PathGradient path;
  for (const double t : path_points(n)) {
    const std::vector<float> gradient = {static_cast<float>(slope(from + t * (to - from)))};
    path.add(gradient);
  }
  const std::vector<float> w = {static_cast<float>(from)}, q = {static_cast<float>(to)};
  EXPECT_NEAR(path.scores(w, q)[0], std::fabs(path.change(w, q)), 1e-6);
  return path.change(w, q);
}

TEST(PathGradient, midpoints_come_near_to_what_a_step_changes_where_its_derivatives_at_the_start_do_not) {
  // w^4 from 1 to 0.6: -0.8704; by the slope at the start -1.6.
  const auto fourth = [](double w) { return 4 * w * w * w; };
  EXPECT_NEAR(change_by(1, 1, 0.6, fourth), -0.8192, 1e-6);
  EXPECT_NEAR(change_by(4, 1, 0.6, fourth), -0.8672, 1e-6);
  EXPECT_NEAR(change_by(32, 1, 0.6, fourth), -0.87035, 1e-6);
  // 0.01 (w - 1)^2 + 5 (w - 1)^4: 0.1296, while the slope at the start is 0 and the curvature gives 0.0016.
  const auto flat = [](double w) { return 0.02 * (w - 1) + 20 * std::pow(w - 1, 3); };
  EXPECT_NEAR(change_by(32, 1, 0.6, flat), 0.12954, 1e-5);
}

TEST(PathGradient, weights_that_stay_count_nothing) {
  PathGradient path;
  EXPECT_TRUE(path.is_empty());
  const std::vector<float> w = {1, 2, 3}, q = {1, 2.5F, 2}, g = {5, 1, 1};
  path.add(g);
  EXPECT_EQ(path.scores(w, q), (std::vector<float>{0, 0.5F, 1}));
  EXPECT_NEAR(path.change(w, q), -0.5, 1e-12);
}

TEST(LargestScores, the_number_is_exact_and_ties_go_to_the_first) {
  const std::vector<float> scores = {1, 3, 2, 3, std::nanf(""), 3};
  EXPECT_EQ(largest_scores(scores, 0), std::vector<std::int64_t>{});
  EXPECT_EQ(largest_scores(scores, 2), (std::vector<std::int64_t>{1, 3}));
  EXPECT_EQ(largest_scores(scores, 5), (std::vector<std::int64_t>{0, 1, 2, 3, 5}));
  EXPECT_EQ(largest_scores(scores, 99).size(), 6u);
  const std::vector<float> many = testing::random_values(1000, 1);
  const std::vector<std::int64_t> chosen = largest_scores(many, 137);
  ASSERT_EQ(chosen.size(), 137u);
  float least = std::numeric_limits<float>::infinity();
  for (const std::int64_t i : chosen) least = std::min(least, many[static_cast<std::size_t>(i)]);
  EXPECT_EQ(std::count_if(many.begin(), many.end(), [&](float value) { return value > least; }), 136);
}

TEST(SpreadOver, a_total_is_spent_whole_by_scores_or_by_size_alone) {
  const std::vector<double> scores = {1, 8, 1};
  const std::vector<std::uint64_t> sizes = {100, 200, 100};
  EXPECT_EQ(spread_over(scores, sizes, 40, 0), (std::vector<std::uint64_t>{10, 20, 10}));
  EXPECT_EQ(spread_over(scores, sizes, 40, 1), (std::vector<std::uint64_t>{4, 32, 4}));
  // None gets more than it has.
  EXPECT_EQ(spread_over(scores, sizes, 300, 1), (std::vector<std::uint64_t>{50, 200, 50}));
  EXPECT_EQ(spread_over(scores, sizes, 1000, 1), sizes);
  const std::vector<double> nothing = {0, 0, 0};
  for (const double exponent : {0.0, 0.5, 1.0})
    for (const std::uint64_t total : {0u, 1u, 7u, 41u, 399u})
      for (const std::vector<double>& by : {scores, nothing}) {
        const std::vector<std::uint64_t> given = spread_over(by, sizes, total, exponent);
        EXPECT_EQ(std::accumulate(given.begin(), given.end(), std::uint64_t{0}), total);
        for (std::size_t i = 0; i < sizes.size(); ++i) EXPECT_LE(given[i], sizes[i]);
      }
}

}  // namespace
}  // namespace weft::quantize
