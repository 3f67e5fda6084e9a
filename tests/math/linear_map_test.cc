#include "math/linear_map.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/errors.h"
#include "support/memory_checkpoint.h"

namespace weft::math {
namespace {

std::vector<double> random_rows(std::size_t count, std::uint64_t seed) {
  std::vector<double> values;
  for (const float value : weft::testing::random_values(count, seed)) values.push_back(static_cast<double>(value));
  return values;
}

/// The matrix of a map: column j is what it makes of unit vector j.
std::vector<double> matrix_of(const LinearMap& map, bool dual = false) {
  const std::size_t n = map.size();
  std::vector<double> unit(n * n), m(n * n);
  for (std::size_t i = 0; i < n; ++i) unit[i * n + i] = 1;
  dual ? map.apply_dual(unit.data(), n) : map.apply(unit.data(), n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) m[i * n + j] = unit[j * n + i];
  return m;
}

double worst_product(const std::vector<double>& a, const std::vector<double>& b, std::size_t n) {
  double worst = 0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < n; ++k) sum += a[i * n + k] * b[j * n + k];
      worst = std::max(worst, std::abs(sum - (i == j ? 1 : 0)));
    }
  return worst;
}

TEST(Hadamard, matrices_have_entries_of_one_and_orthogonal_rows_in_every_order_that_is_promised) {
  for (const std::int64_t order : {1,  2,  4,  8,  12, 16,  20,  24,  28,  32,  36,  40,  44,  48,  56,  60,  64, 68,
                                   72, 76, 80, 84, 96, 104, 108, 124, 128, 140, 148, 160, 168, 180, 224, 256, 384}) {
    const std::vector<double> h = hadamard_matrix(order);
    const auto n = static_cast<std::size_t>(order);
    ASSERT_EQ(h.size(), n * n) << order;
    for (const double value : h) ASSERT_EQ(std::abs(value), 1);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = i; j < n; ++j) {
        double sum = 0;
        for (std::size_t k = 0; k < n; ++k) sum += h[i * n + k] * h[j * n + k];
        ASSERT_EQ(sum, i == j ? static_cast<double>(n) : 0) << order;
      }
  }
  for (const std::int64_t order : {0, -4, 3, 6, 10, 14, 50, 92}) EXPECT_TRUE(hadamard_matrix(order).empty()) << order;
}

TEST(Hadamard, four_eights_in_one_element_become_four_fours) {
  std::vector<double> x = {8, 0, 0, 0};
  make_hadamard_map(4)->apply(x.data(), 1);
  EXPECT_EQ(x, (std::vector<double>{4, 4, 4, 4}));
}

TEST(Hadamard, the_fast_transform_is_the_matrix_also_beside_inner_columns) {
  for (const std::size_t n : {1U, 2U, 8U, 64U})
    for (const std::size_t inner : {1U, 3U}) {
      const std::vector<double> x = random_rows(n * inner, n);
      std::vector<double> fast = x;
      fast_hadamard(fast.data(), n, inner);
      const std::vector<double> h = hadamard_matrix(static_cast<std::int64_t>(n));
      for (std::size_t i = 0; i < n; ++i)
        for (std::size_t c = 0; c < inner; ++c) {
          double sum = 0;
          for (std::size_t k = 0; k < n; ++k) sum += h[i * n + k] * x[k * inner + c];
          EXPECT_NEAR(fast[i * inner + c], sum / std::sqrt(static_cast<double>(n)), 1e-12);
        }
    }
}

TEST(LinearMap, hadamard_maps_of_any_size_are_orthogonal_to_a_part_in_a_trillion_and_mix_everything) {
  for (const std::int64_t size : {1, 2, 3, 7, 12, 24, 28, 33, 96, 112, 160, 192, 200, 896}) {
    const auto map = make_hadamard_map(size, Signs::random, 5);
    const auto n = static_cast<std::size_t>(size);
    ASSERT_EQ(map->size(), n);
    const std::vector<double> m = matrix_of(*map);
    EXPECT_LT(worst_product(m, m, n), 1e-12) << size;
    if (hadamard_matrix(size).empty()) continue;
    for (const double value : m) EXPECT_NEAR(std::abs(value), 1 / std::sqrt(static_cast<double>(size)), 1e-12);
  }
  EXPECT_NE(matrix_of(*make_hadamard_map(24, Signs::random, 1)), matrix_of(*make_hadamard_map(24, Signs::random, 2)));
}

TEST(LinearMap, given_matrices_know_whether_they_are_orthogonal_and_their_duals_keep_products) {
  const auto turn = make_matrix_map({0.6, -0.8, 0.8, 0.6}, 2);
  EXPECT_TRUE(turn->is_orthogonal());
  std::vector<double> given = random_rows(49, 3);
  for (std::size_t i = 0; i < 7; ++i) given[i * 8] += 2;
  const auto map = make_matrix_map(given, 7);
  EXPECT_FALSE(map->is_orthogonal());
  const std::vector<double> m = matrix_of(*map);
  for (std::size_t i = 0; i < 49; ++i) EXPECT_NEAR(m[i], given[i], 1e-12);
  std::vector<double> x = random_rows(7, 4), y = random_rows(7, 5);
  double before = 0, after = 0;
  for (std::size_t i = 0; i < 7; ++i) before += x[i] * y[i];
  map->apply(x.data(), 1);
  map->apply_dual(y.data(), 1);
  for (std::size_t i = 0; i < 7; ++i) after += x[i] * y[i];
  EXPECT_NEAR(before, after, 1e-9);
  EXPECT_WEFT_ERROR(make_matrix_map({1, 2, 2, 4}, 2), invalid_argument, "singular");
  EXPECT_WEFT_ERROR(make_matrix_map({1, NAN, 2, 4}, 2), invalid_argument, "NaN");
  EXPECT_WEFT_ERROR(make_matrix_map({1, 2, 3}, 2), invalid_argument, "3 numbers");
  EXPECT_WEFT_ERROR(make_hadamard_map(0), invalid_argument, "size 0");
  EXPECT_WEFT_ERROR(make_hadamard_map(8193), invalid_argument, "8193");
}

TEST(LinearMap, a_reflection_makes_any_rotation_leave_the_mean_alone) {
  for (const std::int64_t size : {2, 8, 24, 33}) {
    const auto map = keeping_the_mean(make_random_orthogonal(size, 7));
    EXPECT_TRUE(keeps_the_mean(*map));
    const auto n = static_cast<std::size_t>(size);
    const std::vector<double> m = matrix_of(*map);
    EXPECT_LT(worst_product(m, m, n), 1e-12);
    EXPECT_TRUE(keeps_the_mean(*keeping_the_mean(map))) << "also where there is nothing to do";
  }
  EXPECT_FALSE(keeps_the_mean(*make_hadamard_map(8)));
}

}  // namespace
}  // namespace weft::math
