#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/solver.h"
#include "support/memory_checkpoint.h"

// Groups along a column: a scale for some outputs of one input.
namespace weft::quantize {
namespace {

using codec::QuantizedLinear;
using codec::SliceScale;
using codec::Zero;
using testing::random_values;

std::vector<double> gram_of(std::size_t columns, std::size_t samples, std::uint64_t seed) {
  const std::vector<float> base = random_values(samples * columns, seed), mix = random_values(columns * 4, 77);
  std::vector<double> gram(columns * columns), x(columns);
  for (std::size_t t = 0; t < samples; ++t) {
    for (std::size_t i = 0; i < columns; ++i) {
      x[i] = 0.4 * static_cast<double>(base[t * columns + i]);
      for (std::size_t k = 0; k < 4; ++k) x[i] += static_cast<double>(mix[k * columns + i]) * static_cast<double>(base[t * columns + k]);
    }
    for (std::size_t i = 0; i < columns; ++i)
      for (std::size_t j = 0; j < columns; ++j) gram[i * columns + j] += x[i] * x[j];
  }
  return gram;
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return sum;
}

TEST(GroupAxis, one_loud_input_costs_less_in_a_group_of_its_own) {
  const std::vector<float> weights = {.31F, 3.1F, -.22F, .47F, -.41F, -2.8F, .13F, .36F, .25F, 3.3F, .52F, -.18F, -.09F, 2.7F, -.33F, .44F};
  SolverOptions options{.format = {.bits = 3, .zero = Zero::restricted}, .group = 0};
  const double by_input = squared_error(weights, round_to_nearest(weights, 4, 4, options).decoded());
  options.by_output = true;
  const QuantizedLinear across = round_to_nearest(weights, 4, 4, options);
  const double by_output = squared_error(weights, across.decoded());
  EXPECT_LT(by_output, 0.7 * by_input);
  // By hand: a column's scale is a third of its largest magnitude.
  for (std::size_t c = 0; c < 4; ++c) {
    float largest = 0;
    for (std::size_t r = 0; r < 4; ++r) largest = std::max(largest, std::fabs(weights[r * 4 + c]));
    EXPECT_FLOAT_EQ(across.scales[c], largest / 3);
    for (std::size_t r = 0; r < 4; ++r)
      EXPECT_EQ(across.codes[r * 4 + c], 4 + static_cast<int>(std::nearbyint(static_cast<double>(weights[r * 4 + c] / across.scales[c]))));
  }
}

TEST(GroupAxis, rounding_by_output_is_rounding_the_transposed_matrix_by_input) {
  constexpr std::int64_t kRows = 21, kColumns = 13;
  const std::vector<float> weights = random_values(kRows * kColumns, 8);
  std::vector<float> turned(weights.size());
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t c = 0; c < kColumns; ++c) turned[c * kRows + r] = weights[r * kColumns + c];
  for (const std::int64_t group : {std::int64_t{0}, std::int64_t{8}}) {
    SolverOptions options{.format = {.bits = 4, .zero = Zero::affine, .search = codec::Search::shrink}, .group = group};
    const std::vector<float> expected = round_to_nearest(turned, kColumns, kRows, options).decoded();
    options.by_output = true;
    const QuantizedLinear linear = round_to_nearest(weights, kRows, kColumns, options);
    EXPECT_EQ(linear.row_group, group == 0 ? kRows : group);
    const std::vector<float> decoded = linear.decoded();
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t c = 0; c < kColumns; ++c) EXPECT_EQ(decoded[r * kColumns + c], expected[c * kRows + r]);
  }
}

TEST(GroupAxis, compensation_of_inputs_that_do_not_correlate_is_rounding) {
  constexpr std::int64_t kRows = 12, kColumns = 10;
  const std::vector<float> weights = random_values(kRows * kColumns, 4);
  std::vector<double> gram(kColumns * kColumns);
  for (std::size_t i = 0; i < kColumns; ++i) gram[i * kColumns + i] = 1 + static_cast<double>(i);
  const SolverOptions options{.format = {.bits = 3, .zero = Zero::affine}, .group = 4, .by_output = true};
  const QuantizedLinear made = compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options);
  const QuantizedLinear rounded = round_to_nearest(weights, kRows, kColumns, options);
  EXPECT_EQ(made.codes, rounded.codes);
  EXPECT_EQ(made.scales, rounded.scales);
}

/// By elimination.
std::vector<double> solve(std::vector<double> a, std::vector<double> b) {
  const std::size_t n = b.size();
  for (std::size_t k = 0; k < n; ++k)
    for (std::size_t i = k + 1; i < n; ++i) {
      const double f = a[i * n + k] / a[k * n + k];
      for (std::size_t j = k; j < n; ++j) a[i * n + j] -= f * a[k * n + j];
      b[i] -= f * b[k];
    }
  for (std::size_t k = n; k-- > 0;) {
    for (std::size_t j = k + 1; j < n; ++j) b[k] -= a[k * n + j] * b[j];
    b[k] /= a[k * n + k];
  }
  return b;
}

TEST(GroupAxis, compensation_is_that_of_the_definition_with_scales_of_what_is_left_of_each_column) {
  constexpr std::size_t kRows = 11, kColumns = 24, kGroup = 4;
  const std::vector<float> weights = random_values(kRows * kColumns, 21, 0.3F);
  const std::vector<double> gram = gram_of(kColumns, 400, 5);
  SolverOptions options{.format = {.bits = 3, .zero = Zero::affine}, .group = kGroup, .by_output = true, .damping = 0.01, .block = 5};
  const Factor factor = factorise(gram, kColumns, options);
  ASSERT_TRUE(factor.usable);
  const QuantizedLinear made = compensate(weights, kRows, kColumns, factor, options);

  std::vector<std::size_t> order(kColumns);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return gram[a * kColumns + a] > gram[b * kColumns + b]; });
  std::vector<double> damped = gram, error(kRows * kColumns);
  double mean = 0;
  for (std::size_t i = 0; i < kColumns; ++i) mean += gram[i * kColumns + i] / kColumns;
  for (std::size_t i = 0; i < kColumns; ++i) damped[i * kColumns + i] += 0.01 * mean;
  std::size_t different = 0;
  for (std::size_t k = 0; k < kColumns; ++k) {
    const std::size_t own = order[k];
    std::vector<float> now(kRows);
    for (std::size_t r = 0; r < kRows; ++r) {
      double value = weights[r * kColumns + own];
      if (k > 0) {
        const std::size_t left = kColumns - k;
        std::vector<double> a(left * left), b(left);
        for (std::size_t i = 0; i < left; ++i) {
          for (std::size_t j = 0; j < left; ++j) a[i * left + j] = damped[order[k + i] * kColumns + order[k + j]];
          for (std::size_t s = 0; s < k; ++s) b[i] += error[r * kColumns + order[s]] * damped[order[s] * kColumns + order[k + i]];
        }
        value -= solve(a, b)[0];
      }
      now[r] = static_cast<float>(value);
    }
    for (std::size_t first = 0; first < kRows; first += kGroup) {
      const std::size_t end = std::min(kRows, first + kGroup);
      const std::vector<float> slice(now.begin() + static_cast<std::ptrdiff_t>(first), now.begin() + static_cast<std::ptrdiff_t>(end));
      const SliceScale scale = codec::fit_slice(slice, {}, options.format);
      for (std::size_t r = first; r < end; ++r) {
        const std::uint8_t code = codec::encode(now[r], scale, options.format);
        different += code != made.codes[r * kColumns + own] ? 1 : 0;
        error[r * kColumns + own] =
            static_cast<double>(codec::decode(code, scale, options.format)) - static_cast<double>(weights[r * kColumns + own]);
      }
    }
  }
  // A code may fall to the other side of a tie in the last bit.
  EXPECT_LE(different, 1U);
  // Slabs of whole groups give the same as all rows at once.
  QuantizedLinear slabs = prepare(kRows, kColumns, options, factor);
  compensate_rows(weights, factor, options, 0, 8, slabs);
  compensate_rows(weights, factor, options, 8, 3, slabs);
  EXPECT_EQ(slabs.codes, made.codes);
  EXPECT_EQ(slabs.scales, made.scales);
  EXPECT_LT(relative_loss(weights, made.decoded(), kRows, kColumns, gram),
            relative_loss(weights, round_to_nearest(weights, kRows, kColumns, options).decoded(), kRows, kColumns, gram));
}

}  // namespace
}  // namespace weft::quantize
