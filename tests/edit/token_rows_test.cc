#include "edit/token_rows.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/memory_checkpoint.h"

namespace weft::edit {
namespace {

std::vector<double> combined(const Combination& combination, Rows points) {
  std::vector<double> out(points.width, 0.0);
  for (std::size_t i = 0; i < combination.points.size(); ++i)
    for (std::size_t c = 0; c < points.width; ++c) out[c] += combination.weights[i] * static_cast<double>(points.row(combination.points[i])[c]);
  return out;
}

double error(const std::vector<double>& a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(a[i] - static_cast<double>(b[i]), 2);
  return std::sqrt(sum);
}

TEST(TokenRows, pursuit_finds_a_target_that_is_made_of_few_points) {
  const std::vector<float> points = testing::random_values(50 * 24, 1);
  const Rows rows{points, 24};
  std::vector<float> target(24);
  for (std::size_t i = 0; i < 24; ++i) target[i] = 3 * rows.row(7)[i] - 2 * rows.row(31)[i];
  const Combination found = orthogonal_matching_pursuit({target, 24}, rows, 4).front();
  EXPECT_EQ(found.points.size(), 4u);
  EXPECT_LT(error(combined(found, rows), target), 1e-4);
}

TEST(TokenRows, pursuit_takes_the_points_that_a_slow_one_takes_and_its_error_falls_with_k) {
  const std::size_t width = 16, count = 40;
  const std::vector<float> points = testing::random_values(count * width, 2), targets = testing::random_values(5 * width, 3);
  const Rows rows{points, width};
  for (std::size_t b = 0; b < 5; ++b) {
    const std::vector<float> target(targets.begin() + static_cast<std::ptrdiff_t>(b * width),
                                    targets.begin() + static_cast<std::ptrdiff_t>((b + 1) * width));
    // Straight from the definition, all in double: project out what is chosen.
    std::vector<double> left(target.begin(), target.end());
    std::vector<std::vector<double>> basis;
    std::vector<std::uint32_t> want;
    for (int t = 0; t < 6; ++t) {
      double best = -1;
      std::uint32_t at = 0;
      for (std::uint32_t p = 0; p < count; ++p) {
        double product = 0;
        for (std::size_t i = 0; i < width; ++i) product += left[i] * static_cast<double>(rows.row(p)[i]);
        if (std::abs(product) > best && std::find(want.begin(), want.end(), p) == want.end()) best = std::abs(product), at = p;
      }
      want.push_back(at);
      std::vector<double> q(rows.row(at).begin(), rows.row(at).end());
      for (const auto& other : basis) {
        double along = 0;
        for (std::size_t i = 0; i < width; ++i) along += other[i] * q[i];
        for (std::size_t i = 0; i < width; ++i) q[i] -= along * other[i];
      }
      double norm = 0, along = 0;
      for (const double x : q) norm += x * x;
      for (double& x : q) x /= std::sqrt(norm);
      for (std::size_t i = 0; i < width; ++i) along += q[i] * left[i];
      for (std::size_t i = 0; i < width; ++i) left[i] -= along * q[i];
      basis.push_back(q);
    }
    double last = 1e9;
    for (std::size_t k = 1; k <= 6; ++k) {
      const Combination found = orthogonal_matching_pursuit({target, width}, rows, k).front();
      EXPECT_EQ(found.points, std::vector<std::uint32_t>(want.begin(), want.begin() + static_cast<std::ptrdiff_t>(k)));
      const double now = error(combined(found, rows), target);
      EXPECT_LT(now, last + 1e-6);
      last = now;
    }
    double left_over = 0;
    for (const double x : left) left_over += x * x;
    EXPECT_NEAR(last, std::sqrt(left_over), 1e-5);
  }
}

TEST(TokenRows, a_batch_gives_each_target_what_it_gets_alone) {
  const std::vector<float> points = testing::random_values(30 * 8, 4), targets = testing::random_values(7 * 8, 5);
  const auto all = orthogonal_matching_pursuit({targets, 8}, {points, 8}, 3);
  for (std::size_t b = 0; b < 7; ++b) {
    const std::vector<float> one(targets.begin() + static_cast<std::ptrdiff_t>(8 * b), targets.begin() + static_cast<std::ptrdiff_t>(8 * b + 8));
    EXPECT_EQ(orthogonal_matching_pursuit({one, 8}, {points, 8}, 3).front().points, all[b].points);
  }
}

TEST(TokenRows, nearest_points_are_weighted_by_the_reciprocal_of_their_distance) {
  const std::vector<float> points = {0, 0, 4, 0, 0, 1, 100, 100}, target = {1, 0};
  const Combination found = nearest_points({target, 2}, {points, 2}, 2, Distance::euclidean, Weighting::distance_proportional).front();
  EXPECT_EQ(found.points, (std::vector<std::uint32_t>{0, 2}));
  EXPECT_NEAR(found.weights[0], 1 / (1 + 1 / std::sqrt(2.0)), 1e-12);
  const Combination by_angle = nearest_points({target, 2}, {points, 2}, 1, Distance::cosine, Weighting::distance_proportional).front();
  EXPECT_EQ(by_angle.points, (std::vector<std::uint32_t>{1}));
  EXPECT_NEAR(by_angle.weights[0], 1, 1e-6);
}

TEST(TokenRows, least_squares_weights_come_nearest_and_barycentric_ones_sum_to_one) {
  const std::vector<float> points = testing::random_values(20 * 6, 6), target = testing::random_values(6, 7);
  const Rows rows{points, 6};
  const Combination exact = nearest_points({target, 6}, rows, 6, Distance::euclidean, Weighting::least_squares).front();
  EXPECT_LT(error(combined(exact, rows), target), 1e-4);
  const Combination few = nearest_points({target, 6}, rows, 3, Distance::euclidean, Weighting::least_squares).front();
  const Combination affine = nearest_points({target, 6}, rows, 3, Distance::euclidean, Weighting::barycentric).front();
  EXPECT_NEAR(affine.weights[0] + affine.weights[1] + affine.weights[2], 1, 1e-5);
  EXPECT_LE(error(combined(few, rows), target), error(combined(affine, rows), target) + 1e-6);
}

}  // namespace
}  // namespace weft::edit
