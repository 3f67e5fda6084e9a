#include "quantize/decouple.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

using codec::Levels;
using codec::QuantizedLinear;
using codec::Search;
using codec::Zero;
using testing::random_values;

struct Inputs {
  std::vector<double> gram;   ///< sum x^T x
  std::vector<double> cross;  ///< sum (original - x)^T x
};
Inputs correlated(std::int64_t columns, std::int64_t samples, std::uint64_t seed) {
  const auto n = static_cast<std::size_t>(columns);
  const std::vector<float> base = random_values(static_cast<std::size_t>(samples) * n, seed), mix = random_values(n * 4, 99);
  const std::vector<float> noise = random_values(base.size(), seed + 1000);
  Inputs out{std::vector<double>(n * n), std::vector<double>(n * n)};
  std::vector<double> x(n);
  for (std::size_t t = 0; t < static_cast<std::size_t>(samples); ++t) {
    for (std::size_t i = 0; i < n; ++i) {
      x[i] = 0.3 * static_cast<double>(base[t * n + i]);
      for (std::size_t k = 0; k < 4; ++k) x[i] += static_cast<double>(mix[k * n + i]) * static_cast<double>(base[t * n + k % n]);
    }
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) {
        out.gram[i * n + j] += x[i] * x[j];
        out.cross[i * n + j] += 0.1 * (static_cast<double>(noise[t * n + i]) + x[(i + 1) % n]) * x[j];
      }
  }
  return out;
}

/// By elimination with pivots.
std::vector<double> solve(std::vector<double> a, std::vector<double> b) {
  const std::size_t n = b.size();
  for (std::size_t k = 0; k < n; ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k + 1; i < n; ++i)
      if (std::fabs(a[i * n + k]) > std::fabs(a[pivot * n + k])) pivot = i;
    for (std::size_t j = 0; j < n; ++j) std::swap(a[k * n + j], a[pivot * n + j]);
    std::swap(b[k], b[pivot]);
    for (std::size_t i = k + 1; i < n; ++i) {
      const double f = a[i * n + k] / a[k * n + k];
      for (std::size_t j = k; j < n; ++j) a[i * n + j] -= f * a[k * n + j];
      b[i] -= f * b[k];
    }
  }
  for (std::size_t k = n; k-- > 0;) {
    for (std::size_t j = k + 1; j < n; ++j) b[k] -= a[k * n + j] * b[j];
    b[k] /= a[k * n + k];
  }
  return b;
}

/// d H d^T of a row, term by term.
double form_of(const std::vector<double>& d, const std::vector<double>& h) {
  double sum = 0;
  for (std::size_t i = 0; i < d.size(); ++i)
    for (std::size_t j = 0; j < d.size(); ++j) sum += d[i] * h[i * d.size() + j] * d[j];
  return sum;
}

/// Scale and offset of each group for given codes, all at once, from the normal equations written out: value = s code + m.
std::vector<double> reference_scales(const std::vector<double>& weights, const std::vector<std::uint8_t>& codes, std::size_t group,
                                     const std::vector<double>& h) {
  const std::size_t n = weights.size(), groups = (n + group - 1) / group;
  const auto basis = [&](std::size_t unknown, std::size_t column) {
    if (column / group != unknown % groups) return 0.0;
    return unknown < groups ? static_cast<double>(codes[column]) : 1.0;
  };
  std::vector<double> a(4 * groups * groups), b(2 * groups);
  for (std::size_t u = 0; u < 2 * groups; ++u)
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) {
        for (std::size_t v = 0; v < 2 * groups; ++v) a[u * 2 * groups + v] += basis(u, i) * h[i * n + j] * basis(v, j);
        b[u] += basis(u, i) * h[i * n + j] * weights[j];
      }
  return solve(a, b);
}

QuantizedLinear with_codes(std::int64_t rows, std::int64_t columns, std::int64_t group, std::vector<std::uint8_t> codes) {
  QuantizedLinear linear;
  linear.rows = rows;
  linear.columns = columns;
  linear.bits = 2;
  linear.group = group;
  linear.scale_type = DType::f32;
  linear.codes = std::move(codes);
  linear.scales.assign(static_cast<std::size_t>(rows * linear.num_groups()), 0.5F);
  linear.zeros.assign(linear.scales.size(), 0.8F);
  return linear;
}

double loss_of(const std::vector<double>& weights, const QuantizedLinear& linear, const std::vector<double>& h) {
  const std::vector<float> decoded = linear.decoded();
  std::vector<double> difference(weights.size());
  for (std::size_t i = 0; i < difference.size(); ++i) difference[i] = static_cast<double>(decoded[i]) - weights[i];
  double sum = 0;
  for (const double loss : row_losses(difference, linear.rows, linear.columns, h)) sum += loss;
  return sum;
}

SolverOptions two_bits(Zero zero = Zero::offset, std::int64_t group = 0) {
  return {.format = {.bits = 2, .zero = zero, .search = Search::shrink, .norm = 2}, .group = group, .damping = 0.01};
}

TEST(Decouple, scale_and_offset_of_given_codes_come_out_as_by_hand) {
  const std::vector<double> weights = {-0.4, 0.1, 0.3, 1.1};
  const std::vector<double> h = {1, 0, 0, 0, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
  QuantizedLinear linear = with_codes(1, 4, 4, {0, 1, 1, 3});  // -2, -1, -1, 1
  EXPECT_NEAR(loss_of(weights, linear, h), 0.04, 1e-6) << "of the range of the values";
  fit_scales(weights, h, {.bits = 2, .zero = Zero::offset}, linear);
  EXPECT_NEAR(linear.scales[0], 0.494118, 1e-6);
  EXPECT_NEAR(linear.scales[0] * (2 - linear.zeros[0]), 0.623529, 1e-6);
  EXPECT_NEAR(loss_of(weights, linear, h), 0.034118, 1e-6);
}

TEST(Decouple, scales_of_all_groups_are_those_of_the_normal_equations) {
  constexpr std::int64_t kRows = 5, kColumns = 20, kGroup = 8;  // the last group is short
  const std::vector<double> h = correlated(kColumns, 200, 3).gram;
  const std::vector<float> values = random_values(kRows * kColumns, 4);
  const std::vector<double> weights(values.begin(), values.end());
  std::vector<std::uint8_t> codes;
  for (const float value : values) codes.push_back(value < -0.5F ? 0 : value < 0.1F ? 1 : value < 0.6F ? 2 : 3);
  QuantizedLinear linear = with_codes(kRows, kColumns, kGroup, codes);
  fit_scales(weights, h, {.bits = 2, .zero = Zero::offset}, linear);
  const std::vector<float> decoded = linear.decoded();
  for (std::size_t r = 0; r < kRows; ++r) {
    const std::vector<double> expected = reference_scales(
        {weights.begin() + static_cast<std::ptrdiff_t>(r * kColumns), weights.begin() + static_cast<std::ptrdiff_t>((r + 1) * kColumns)},
        {codes.begin() + static_cast<std::ptrdiff_t>(r * kColumns), codes.begin() + static_cast<std::ptrdiff_t>((r + 1) * kColumns)}, kGroup, h);
    // Where a scale comes out negative its codes are turned round: what counts is the values.
    for (std::size_t c = 0; c < kColumns; ++c) {
      const std::size_t g = c / kGroup;
      EXPECT_NEAR(decoded[r * kColumns + c], expected[g] * codes[r * kColumns + c] + expected[3 + g], 1e-5);
    }
  }
  for (const float scale : linear.scales) EXPECT_GT(scale, 0);
}

TEST(Decouple, groups_of_one_code_or_of_falling_codes_keep_a_positive_scale) {
  const std::vector<double> weights = {0.5, 0.7, 0.6, 0.6, 0.3, 0.1, -0.1, -0.3};
  std::vector<double> h(64);
  for (std::size_t i = 0; i < 8; ++i) h[i * 9] = 1;
  QuantizedLinear linear = with_codes(1, 8, 4, {2, 2, 2, 2, 0, 1, 2, 3});
  fit_scales(weights, h, {.bits = 2, .zero = Zero::offset}, linear);
  const std::vector<float> decoded = linear.decoded();
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(decoded[i], 0.6, 1e-6);
  for (std::size_t i = 4; i < 8; ++i) EXPECT_NEAR(decoded[i], weights[i], 1e-6);
  EXPECT_GT(linear.scales[0], 0);
  EXPECT_GT(linear.scales[1], 0);
  EXPECT_EQ(linear.codes[4], 3);
}

TEST(Decouple, no_row_loses_more_with_another_round) {
  constexpr std::int64_t kRows = 30, kColumns = 48;
  const std::vector<double> gram = correlated(kColumns, 300, 5).gram;
  const std::vector<float> values = random_values(kRows * kColumns, 6);
  for (const Zero zero : {Zero::offset, Zero::affine, Zero::centred}) {
    DecoupleOptions options{.solver = two_bits(zero, 16)};
    const DecoupleMetric metric = decouple_metric(gram, kColumns, options.solver);
    const auto losses_after = [&](int rounds) {
      options.rounds = rounds;
      const std::vector<float> decoded = decouple(values, kRows, kColumns, metric, options).decoded();
      std::vector<double> difference(decoded.size());
      for (std::size_t i = 0; i < decoded.size(); ++i) difference[i] = static_cast<double>(decoded[i]) - values[i];
      return row_losses(difference, kRows, kColumns, metric.matrix);
    };
    std::vector<double> before = losses_after(1);
    double first = 0, last = 0;
    for (const double loss : before) first += loss;
    for (int rounds = 2; rounds <= 6; ++rounds) {
      const std::vector<double> now = losses_after(rounds);
      for (std::size_t r = 0; r < now.size(); ++r) EXPECT_LE(now[r], before[r] * (1 + 1e-12));
      before = now;
    }
    for (const double loss : before) last += loss;
    EXPECT_LT(last, 0.95 * first);
  }
}

TEST(Decouple, loses_little_more_than_the_best_of_all_codes) {
  constexpr std::size_t kColumns = 6;
  double best_sum = 0, own_sum = 0, compensated_sum = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    DecoupleOptions options{.solver = two_bits()};
    const DecoupleMetric metric = decouple_metric(correlated(kColumns, 40, 100 + seed).gram, kColumns, options.solver);
    const std::vector<float> values = random_values(kColumns, 200 + seed);
    const std::vector<double> weights(values.begin(), values.end());
    double best = std::numeric_limits<double>::infinity();
    for (std::size_t word = 0; word < 4096; ++word) {
      std::vector<std::uint8_t> codes(kColumns);
      for (std::size_t i = 0; i < kColumns; ++i) codes[i] = static_cast<std::uint8_t>(word >> (2 * i) & 3);
      if (std::all_of(codes.begin(), codes.end(), [&](std::uint8_t code) { return code == codes[0]; })) continue;
      const std::vector<double> scales = reference_scales(weights, codes, kColumns, metric.matrix);
      std::vector<double> difference(kColumns);
      for (std::size_t i = 0; i < kColumns; ++i) difference[i] = scales[0] * codes[i] + scales[1] - weights[i];
      best = std::min(best, form_of(difference, metric.matrix));
    }
    const double own = loss_of(weights, decouple(values, 1, kColumns, metric, options), metric.matrix);
    EXPECT_GE(own, best * (1 - 1e-4));
    best_sum += best;
    own_sum += own;
    compensated_sum += loss_of(weights, compensate(values, 1, kColumns, metric.factor, options.solver), metric.matrix);
  }
  EXPECT_LT(own_sum, 2 * best_sum);
  EXPECT_GT(compensated_sum, 3 * best_sum) << "the same codes by GPTQ";
}

TEST(Decouple, loses_less_than_rounding_and_compensation_with_numbers_of_every_kind) {
  constexpr std::int64_t kRows = 24, kColumns = 64;
  const std::vector<double> gram = correlated(kColumns, 500, 7).gram;
  const std::vector<float> values = random_values(kRows * kColumns, 8);
  std::vector<codec::SliceFormat> formats;
  for (const Zero zero : {Zero::offset, Zero::affine, Zero::centred})
    for (const int bits : {2, 3, 4}) formats.push_back({.bits = bits, .zero = zero, .scale_type = DType::f16});
  for (const Levels levels : {Levels::e2m1, Levels::e3m0, Levels::nf4, Levels::e4m3})
    formats.push_back({.levels = levels, .scale_type = DType::bf16});
  formats.push_back({.levels = Levels::e2m1, .scale_type = DType::f8_e8m0});
  for (codec::SliceFormat format : formats) {
    SCOPED_TRACE(std::string(info(format.levels).name) + " " + std::to_string(format.code_bits()) + " " +
                 std::to_string(static_cast<int>(format.zero)));
    format.search = Search::shrink;
    format.norm = 2;
    const DecoupleOptions options{.solver = {.format = format, .group = 32, .damping = 0.01}};
    const DecoupleMetric metric = decouple_metric(gram, kColumns, options.solver);
    const QuantizedLinear own = decouple(values, kRows, kColumns, metric, options);
    const auto loss = [&](const QuantizedLinear& linear) { return relative_loss(values, linear.decoded(), kRows, kColumns, gram); };
    EXPECT_LT(loss(own), loss(round_to_nearest(values, kRows, kColumns, options.solver, metric.factor.diagonal)));
    EXPECT_LT(loss(own), loss(compensate(values, kRows, kColumns, metric.factor, options.solver)));
    for (const float scale : own.scales) {
      EXPECT_GT(scale, 0);
      if (format.scale_type == DType::f8_e8m0) {
        EXPECT_EQ(std::exp2(std::round(std::log2(scale))), scale);
      }
    }
    for (const float zero : own.zeros) {
      if (format.zero == Zero::centred) {
        EXPECT_EQ(zero, format.middle());
      }
      if (format.zero == Zero::affine) {
        EXPECT_EQ(zero, std::nearbyint(zero));
        EXPECT_GE(zero, 0);
        EXPECT_LT(zero, 1 << format.bits);
      }
    }
  }
}

TEST(Decouple, columns_that_nothing_is_read_from_and_statistics_beyond_repair_do_no_harm) {
  constexpr std::int64_t kRows = 3, kColumns = 16;
  std::vector<double> gram = correlated(kColumns, 100, 9).gram;
  std::vector<float> values = random_values(kRows * kColumns, 10);
  for (std::size_t i = 0; i < kColumns; ++i) gram[i * kColumns + 5] = gram[5 * kColumns + i] = 0;
  values[5] = 1000;
  const DecoupleOptions options{.solver = two_bits()};
  const DecoupleMetric metric = decouple_metric(gram, kColumns, options.solver);
  ASSERT_TRUE(metric.factor.usable);
  EXPECT_LT(relative_loss(values, decouple(values, kRows, kColumns, metric, options).decoded(), kRows, kColumns, gram), 0.2);
  std::vector<double> unknown = gram;
  unknown[0] = std::numeric_limits<double>::quiet_NaN();
  const DecoupleMetric broken = decouple_metric(unknown, kColumns, options.solver);
  EXPECT_FALSE(broken.factor.usable);
  EXPECT_EQ(decouple(values, kRows, kColumns, broken, options).codes, round_to_nearest(values, kRows, kColumns, options.solver).codes);
  // Nothing to tell apart.
  const std::vector<float> flat(kRows * kColumns, 0.25F), none(kRows * kColumns, 0.0F);
  const QuantizedLinear of_flat = decouple(flat, kRows, kColumns, metric, options), of_none = decouple(none, kRows, kColumns, metric, options);
  EXPECT_LT(relative_loss(flat, of_flat.decoded(), kRows, kColumns, gram), 0.01);
  for (const float value : of_none.decoded()) EXPECT_EQ(value, 0);
}

TEST(Decouple, targets_of_drifted_inputs_are_those_of_least_squares) {
  constexpr std::int64_t kRows = 4, kColumns = 10;
  const Inputs inputs = correlated(kColumns, 100, 11);
  const std::vector<float> values = random_values(kRows * kColumns, 12);
  SolverOptions options = two_bits();
  options.damping = 0;
  const Factor factor = factorise(inputs.gram, kColumns, options);
  ASSERT_TRUE(factor.usable);
  const std::vector<float> target = drifted_target(values, kRows, kColumns, inputs.cross, factor, 0.5);
  for (std::size_t r = 0; r < kRows; ++r) {
    // T H = W (H + C / 2).
    std::vector<double> right(kColumns);
    for (std::size_t i = 0; i < kColumns; ++i)
      for (std::size_t j = 0; j < kColumns; ++j)
        right[j] += static_cast<double>(values[r * kColumns + i]) * (inputs.gram[i * kColumns + j] + 0.5 * inputs.cross[i * kColumns + j]);
    const std::vector<double> expected = solve(inputs.gram, right);
    for (std::size_t j = 0; j < kColumns; ++j) EXPECT_NEAR(target[r * kColumns + j], expected[j], 1e-4);
  }
  EXPECT_EQ(drifted_target(values, kRows, kColumns, {}, factor, 1), values);
}

}  // namespace
}  // namespace weft::quantize
