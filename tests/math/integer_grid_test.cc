#include "math/integer_grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "math/kernel_checks.h"

namespace weft::math {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

double reference(const std::vector<float>& values, const std::vector<float>& weights, const IntegerGrid& grid) {
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float step = values[i] / grid.scale;
    float code = grid.any_zero ? std::nearbyint(step + grid.zero) : std::nearbyint(step) + grid.zero;
    code = std::clamp(code, grid.lowest, grid.most);
    const float lost = values[i] - grid.scale * (code - grid.zero);
    sum += (weights.empty() ? 1.0 : static_cast<double>(weights[i])) * static_cast<double>(lost) * static_cast<double>(lost);
  }
  return sum;
}

TEST(IntegerGrid, errors_are_those_of_the_loop_for_every_length_and_the_same_on_every_target) {
  test::Random random(11);
  for (const std::size_t size : {0U, 1U, 7U, 15U, 16U, 17U, 31U, 127U, 128U, 129U, 200U, 256U, 300U, 1000U}) {
    std::vector<float> values(size), weights(size);
    for (float& value : values) value = static_cast<float>(random.uniform() * 4 - 2);
    for (float& weight : weights) weight = static_cast<float>(random.uniform());
    for (const IntegerGrid& grid : {IntegerGrid{0.17F, 8, 0, 15, false}, IntegerGrid{0.3F, 3, 1, 7, false}, IntegerGrid{-0.11F, 8, 0, 15, false},
                                    IntegerGrid{0.21F, 6.37F, 0, 15, true}, IntegerGrid{1e-30F, 8, 0, 15, false}}) {
      for (const bool weighted : {false, true}) {
        const std::vector<float> used = weighted ? weights : std::vector<float>{};
        const double want = reference(values, used, grid);
        std::optional<double> first;
        test::on_every_target([&] {
          const double got = integer_grid_error(values.data(), weighted ? weights.data() : nullptr, size, grid, kNever);
          // A product and a square are rounded, and at most 8 numbers are added in float32.
          EXPECT_NEAR(got, want, 12 * 6e-8 * want) << size;
          if (first) {
            EXPECT_EQ(got, *first) << size;
          }
          first = got;
        });
      }
    }
  }
}

TEST(IntegerGrid, a_sum_that_is_large_enough_is_not_finished_and_not_small) {
  const std::vector<float> values(1000, 0.5F);
  const IntegerGrid grid{1, 8, 0, 15, false};
  const double whole = integer_grid_error(values.data(), nullptr, values.size(), grid, kNever);
  EXPECT_EQ(whole, 250);
  const double part = integer_grid_error(values.data(), nullptr, values.size(), grid, 40);
  EXPECT_GE(part, 40);
  EXPECT_LT(part, whole);
}

}  // namespace
}  // namespace weft::math
