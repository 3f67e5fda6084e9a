#include "math/row_select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "base/philox.h"
#include "math/targets.h"
#include "support/merge_data.h"

namespace weft::math {
namespace {

using weft::testing::gridded_values;
using weft::testing::normal_values;

std::vector<float> uniform_numbers(std::size_t n, std::uint64_t seed) {
  std::vector<float> u(n);
  const RandomStream stream = RandomStream::of(seed, "row", 0, 0);
  for (std::size_t i = 0; i < n; ++i) u[i] = stream.uniform(i);
  return u;
}

/// By sorting, straight from the definition.
std::vector<float> reference(std::vector<float> values, const std::vector<float>& uniform, double density, double epsilon, bool unbiased) {
  const std::size_t n = values.size();
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return std::abs(values[i]) < std::abs(values[j]); });
  for (std::size_t r = 0; r < n; ++r) {
    const double p = n == 1 ? density : (density - epsilon) + 2 * epsilon * static_cast<double>(r) / static_cast<double>(n - 1);
    float& v = values[order[r]];
    const bool stays = static_cast<double>(uniform[order[r]]) < p;
    v = !stays ? 0.0F : unbiased ? static_cast<float>(static_cast<double>(v) / p) : v;
  }
  return values;
}

void expect_as_sorted(const std::vector<float>& values, std::uint64_t seed, double density, double epsilon, const std::string& what) {
  const std::vector<float> uniform = uniform_numbers(values.size(), seed);
  const std::vector<float> want = reference(values, uniform, density, epsilon, false);
  const RowRankMask mask(density, epsilon);
  RowRankMask::Scratch scratch;
  struct AllTargets {
    ~AllTargets() { use_only_target(0); }
  } all_targets_again;
  for (const SimdTarget& target : compiled_targets()) {
    if (!target.supported) continue;
    use_only_target(target.bit);
    std::vector<float> got = values;
    mask.apply(got, uniform, scratch);
    ASSERT_EQ(got, want) << what << ", " << target.name;
  }
  std::vector<float> got = values;
  mask.apply_unbiased(got, uniform, scratch);
  ASSERT_EQ(got, reference(values, uniform, density, epsilon, true)) << what;
}

TEST(RowSelect, probabilities_grow_with_the_rank_and_average_to_the_density) {
  const RowRankMask mask(0.5, 0.1);
  EXPECT_DOUBLE_EQ(mask.probability(0, 3), 0.4);
  EXPECT_DOUBLE_EQ(mask.probability(1, 3), 0.5);
  EXPECT_DOUBLE_EQ(mask.probability(2, 3), 0.6);
  double sum = 0;
  for (std::uint64_t r = 0; r < 1000; ++r) sum += mask.probability(r, 1000);
  EXPECT_NEAR(sum / 1000, 0.5, 1e-12);
}

TEST(RowSelect, a_row_of_one_stays_with_the_density) { EXPECT_EQ(RowRankMask(0.3, 0.1).probability(0, 1), 0.3); }

TEST(RowSelect, histogram_gives_what_sorting_gives_for_every_length) {
  for (std::size_t n = 1; n <= 300; ++n) {
    expect_as_sorted(normal_values(n, n), n, 0.5, 0.15, "normal " + std::to_string(n));
    expect_as_sorted(gridded_values(n, n, 1, 0.25), n + 1000, 0.3, 0.25, "grid " + std::to_string(n));
  }
  for (const std::size_t n : {1536U, 8960U, 40000U}) expect_as_sorted(normal_values(n, n), n, 0.5, 0.15, "normal " + std::to_string(n));
}

TEST(RowSelect, histogram_gives_what_sorting_gives_for_awkward_rows) {
  constexpr std::size_t n = 2000;
  std::vector<float> values(n, 0.25F);
  expect_as_sorted(values, 1, 0.5, 0.4, "all equal");
  for (std::size_t i = 0; i < n; i += 2) values[i] = -0.25F;
  expect_as_sorted(values, 2, 0.5, 0.4, "equal but for the sign");
  std::fill(values.begin(), values.end(), 0.0F);
  expect_as_sorted(values, 3, 0.5, 0.4, "zeros");
  values[77] = 1e-30F;
  expect_as_sorted(values, 4, 0.5, 0.4, "one that is not zero");
  values = normal_values(n, 5);
  for (std::size_t i = 0; i < n; ++i) values[i] = std::ldexp(values[i], static_cast<int>(i % 250) - 125);
  expect_as_sorted(values, 6, 0.5, 0.4, "exponents from the smallest to the largest, subnormal ones too");
  values = normal_values(n, 7, 1e-3);
  for (float& v : values) v += 1;
  expect_as_sorted(values, 8, 0.5, 0.4, "crowded in one octave");
  for (std::size_t i = 0; i < n; ++i) values[i] = std::ldexp(1.0F, -40) * static_cast<float>(n - i);
  values[0] = 3e38F;
  expect_as_sorted(values, 9, 0.5, 0.4, "all but one in the lowest bin, descending");
  for (std::size_t i = 0; i < n; ++i) values[i] = 3e37F + std::ldexp(static_cast<float>(i % 97), 100);
  std::fill(values.begin(), values.begin() + 1500, 1e-20F);
  expect_as_sorted(values, 12, 0.5, 0.4, "a quarter in the highest bin");
  const std::vector<float> smooth = normal_values(n, 13, 30);
  for (std::size_t i = 0; i < n; ++i) values[i] = std::ldexp(std::round(smooth[i]), -14);
  expect_as_sorted(values, 14, 0.5, 0.4, "a grid, as of bfloat16 differences");
  for (std::size_t i = 0; i < n; i += 5) values[i] = std::nextafter(values[i], 1.0F);
  expect_as_sorted(values, 15, 0.5, 0.4, "a grid, some entries just beside it");
  expect_as_sorted(normal_values(n, 10), 11, 0.5, 0.0, "epsilon 0");
}

TEST(RowSelect, threshold_is_exact_where_rounding_to_float32_is_not) {
  for (const double p : {0.1, 0.3, 0.5, 0.7, 0.9999999, 1.0, std::ldexp(1.0, -24), 0.5 + std::ldexp(1.0, -52)}) {
    const double threshold = static_cast<double>(as_threshold(p));
    EXPECT_GE(threshold, p);
    EXPECT_LT(threshold - std::ldexp(1.0, -24), p);
  }
}

TEST(RowSelect, the_largest_keys_are_those_that_sorting_gives) {
  for (const std::size_t n : {1U, 2U, 5U, 16U, 31U, 256U, 1000U}) {
    for (const double grid : {0.0, 0.25, 8.0}) {
      const std::vector<float> values = grid == 0 ? normal_values(n, n) : gridded_values(n, n, 1, grid);
      std::vector<std::uint32_t> keys(n);
      const std::uint32_t largest = magnitude_keys(values, keys);
      std::vector<std::uint32_t> sorted = keys;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      EXPECT_EQ(largest, sorted[0]);
      for (std::size_t count = 1; count <= n; count += 1 + count / 7) {
        const std::uint32_t want = sorted[count - 1];
        // Whatever the hint.
        for (const std::uint32_t hint : {0U, want, want + 1, largest, 0x7FFFFFFFU, static_cast<std::uint32_t>(count) << 20}) {
          const LargestKeys got = largest_keys(keys, count, largest, hint);
          ASSERT_EQ(got.threshold, want) << n << " " << count << " from " << hint;
          std::size_t num_taken = 0;
          for (std::size_t i = 0; i < n; ++i) num_taken += keys[i] > got.threshold || (keys[i] == got.threshold && i <= got.last_tie) ? 1U : 0U;
          ASSERT_EQ(num_taken, count) << n << " from " << hint;
        }
      }
    }
  }
  const std::vector<std::uint32_t> extreme = {0x7F7FFFFF, 0, 0x7FFFFFFF};
  EXPECT_EQ(largest_keys(extreme, 1, 0x7FFFFFFF, 0).threshold, 0x7FFFFFFFU);
}

TEST(RowSelect, the_largest_changes_are_taken_and_no_entry_twice_on_every_target) {
  struct AllTargets {
    ~AllTargets() { use_only_target(0); }
  } all_targets_again;
  for (const std::size_t n : {1U, 7U, 16U, 61U, 256U}) {
    const std::vector<float> base = normal_values(n, n);
    const std::vector<float> values = gridded_values(n, n + 1, 1, 0.5);
    for (const double factor : {1.0, 0.3}) {
      for (const SimdTarget& target : compiled_targets()) {
        if (!target.supported) continue;
        use_only_target(target.bit);
        std::vector<std::uint32_t> taken(n, 0);
        std::vector<std::uint32_t> keys(n);
        for (std::size_t i = 0; i < n; i += 3) taken[i] = 0xFFFFFFFFU;
        const std::vector<std::uint32_t> before = taken;
        const std::uint32_t largest = change_keys(values, base, taken, keys);
        std::vector<std::size_t> order(n);
        std::iota(order.begin(), order.end(), std::size_t{0});
        const auto change = [&](std::size_t i) { return before[i] != 0 ? 0.0F : std::abs(values[i] - base[i]); };
        std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return change(i) > change(j); });
        ASSERT_EQ(std::bit_cast<float>(largest), change(order[0])) << target.name;
        const std::size_t count = (n + 3) / 4;
        std::vector<float> result(n, 9.0F);
        take_largest(keys, largest_keys(keys, count, largest, 0), values, base, factor, taken, result);
        for (std::size_t r = 0; r < n; ++r) {
          const std::size_t i = order[r];
          const double whole = static_cast<double>(base[i]) + factor * (static_cast<double>(values[i]) - static_cast<double>(base[i]));
          ASSERT_EQ(result[i], r >= count ? 9.0F : factor == 1 ? values[i] : static_cast<float>(whole)) << target.name << " " << i << " of " << n;
          ASSERT_EQ(taken[i], r < count || before[i] != 0 ? 0xFFFFFFFFU : 0U) << target.name << " " << i << " of " << n;
        }
      }
    }
  }
}

}  // namespace
}  // namespace weft::math
