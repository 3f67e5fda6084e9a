#include "edit/token_spaces.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/memory_checkpoint.h"

namespace weft::edit {
namespace {

const auto kOneByOne = [](std::size_t count, const std::function<void(std::size_t)>& one) {
  for (std::size_t i = count; i-- > 0;) one(i);
};

/// points [count, from] times matrix [from, to], plus a vector.
std::vector<float> mapped(const std::vector<float>& points, std::size_t from, const std::vector<double>& matrix, const std::vector<double>& shift) {
  const std::size_t to = shift.size();
  std::vector<float> out;
  for (std::size_t row = 0; row < points.size(); row += from)
    for (std::size_t c = 0; c < to; ++c) {
      double sum = shift[c];
      for (std::size_t i = 0; i < from; ++i) sum += static_cast<double>(points[row + i]) * matrix[i * to + c];
      out.push_back(static_cast<float>(sum));
    }
  return out;
}

/// Products of plane rotations: orthonormal rows [from, to], from <= to.
std::vector<double> rotation(std::size_t from, std::size_t to) {
  std::vector<double> matrix(from * to, 0.0);
  for (std::size_t i = 0; i < from; ++i) matrix[i * to + i] = 1;
  for (std::size_t a = 0; a < to; ++a)
    for (std::size_t b = a + 1; b < to; ++b) {
      const double angle = 0.7 + 0.3 * static_cast<double>(a) - 0.2 * static_cast<double>(b);
      for (std::size_t i = 0; i < from; ++i) {
        const double x = matrix[i * to + a], y = matrix[i * to + b];
        matrix[i * to + a] = std::cos(angle) * x - std::sin(angle) * y;
        matrix[i * to + b] = std::sin(angle) * x + std::cos(angle) * y;
      }
    }
  return matrix;
}

double worst(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

TEST(TokenSpaces, a_turn_between_two_spaces_is_found_from_shared_points) {
  // Points of 5 dimensions, turned into a space of as many or of more; a turn is not its own inverse, so the direction counts.
  for (const std::size_t to : {5u, 8u}) {
    const std::vector<float> shared = testing::random_values(60 * 5, 1), others = testing::random_values(7 * 5, 2);
    const std::vector<double> turn = rotation(5, to);
    std::vector<double> shift(to);
    for (std::size_t i = 0; i < to; ++i) shift[i] = 0.1 * static_cast<double>(i) - 0.3;
    const std::vector<float> image = mapped(shared, 5, turn, shift);
    const AffineMap map = principal_turn({shared, 5}, {image, to});
    std::vector<float> got(7 * to);
    map.apply({others, 5}, got);
    // Inputs are rounded to float32 once: some eps times the size of the points.
    EXPECT_LT(worst(got, mapped(others, 5, turn, shift)), 1e-5) << to;
    EXPECT_EQ(map.to.size(), to);
    // Back again: the narrower space is reached from the wider one.
    const AffineMap back = principal_turn({image, to}, {shared, 5});
    std::vector<float> returned(7 * 5);
    back.apply({got, to}, returned);
    EXPECT_LT(worst(returned, others), 1e-5) << to;
  }
}

TEST(TokenSpaces, a_basis_of_tokens_carries_any_linear_map) {
  const std::size_t from = 6, to = 9;
  const std::vector<float> shared = testing::random_values(80 * from, 3), others = testing::random_values(5 * from, 4);
  std::vector<double> matrix;
  for (const float value : testing::random_values(from * to, 5)) matrix.push_back(static_cast<double>(value));
  const std::vector<double> shift(to, 0.0);
  const std::vector<float> image = mapped(shared, from, matrix, shift);
  const std::vector<double> zero_there(from, 0.0), zero_here(to, 0.0);
  const AffineMap map = token_basis({shared, from}, {image, to}, 4, zero_there, zero_here, kOneByOne);
  std::vector<float> got(5 * to);
  map.apply({others, from}, got);
  EXPECT_LT(worst(got, mapped(others, from, matrix, shift)), 1e-4);
  // The means move with the points.
  std::vector<double> there_mean(from, 0.25), here_mean(to, -0.5);
  const AffineMap moved = token_basis({shared, from}, {image, to}, 4, there_mean, here_mean, kOneByOne);
  std::vector<float> far = others;
  for (float& x : far) x += 0.25F;
  std::vector<float> there(5 * to);
  moved.apply({far, from}, there);
  for (float& x : there) x += 0.5F;
  EXPECT_LT(worst(there, got), 1e-5);
}

TEST(TokenSpaces, the_root_of_a_covariance_gives_it_back_and_is_none_where_rows_are_too_few) {
  const std::size_t width = 5;
  const std::vector<float> values = testing::random_values(40 * width, 6);
  const Rows rows{values, width};
  const std::vector<double> mean = mean_of(rows), root = covariance_root(rows, mean);
  ASSERT_EQ(root.size(), width * width);
  for (std::size_t a = 0; a < width; ++a)
    for (std::size_t b = 0; b < width; ++b) {
      double covariance = 0, product = 0;
      for (std::size_t i = 0; i < 40; ++i)
        covariance += (static_cast<double>(rows.row(i)[a]) - mean[a]) * (static_cast<double>(rows.row(i)[b]) - mean[b]) / 40;
      for (std::size_t k = 0; k < width; ++k) product += root[a * width + k] * root[b * width + k];
      EXPECT_NEAR(product, covariance, 1e-12);
      if (b > a) {
        EXPECT_EQ(root[a * width + b], 0.0);
      }
    }
  EXPECT_TRUE(covariance_root({std::span(values).first(width), width}, mean_of({std::span(values).first(width), width})).empty());
}

}  // namespace
}  // namespace weft::edit
