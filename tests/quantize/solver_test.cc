#include "quantize/solver.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

using codec::QuantizedLinear;
using codec::Zero;
using testing::random_values;

constexpr std::int64_t kRows = 24, kColumns = 64;

/// Correlated inputs: sum x^T x of `samples` rows.
std::vector<double> gram_of(std::int64_t columns, std::int64_t samples, std::uint64_t seed) {
  const auto n = static_cast<std::size_t>(columns);
  const std::vector<float> base = random_values(static_cast<std::size_t>(samples) * n, seed);
  const std::vector<float> mix = random_values(n * 8, 99);
  std::vector<double> gram(n * n);
  std::vector<double> x(n);
  for (std::size_t t = 0; t < static_cast<std::size_t>(samples); ++t) {
    for (std::size_t i = 0; i < n; ++i) {
      x[i] = 0.3 * static_cast<double>(base[t * n + i]);
      for (std::size_t k = 0; k < 8; ++k) x[i] += static_cast<double>(mix[k * n + i]) * static_cast<double>(base[t * n + k]);
    }
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) gram[i * n + j] += x[i] * x[j];
  }
  return gram;
}

/// Solves A x = b by elimination with pivots.
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

/// The method from its definition: after each column, the columns not yet fixed become the exact minimisers of the loss, found by solving
/// w_F - (q_S - w_S) H_SF H_FF^-1 anew. H with its damping; scales fixed beforehand.
std::vector<std::uint8_t> reference_codes(const std::vector<float>& weights, std::int64_t rows, std::int64_t columns, std::vector<double> h,
                                          double damping, const std::vector<std::int64_t>& order, const SolverOptions& options) {
  const auto n = static_cast<std::size_t>(columns);
  double mean = 0;
  for (std::size_t i = 0; i < n; ++i) mean += h[i * n + i] / static_cast<double>(n);
  std::vector<float> diagonal(n);
  for (std::size_t i = 0; i < n; ++i) diagonal[i] = static_cast<float>(h[i * n + i]);
  for (std::size_t i = 0; i < n; ++i) h[i * n + i] += damping * mean;
  std::vector<std::uint8_t> codes(weights.size());
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
    const std::span<const float> row = std::span(weights).subspan(r * n, n);
    std::vector<codec::SliceScale> scales;
    const std::size_t group = options.group <= 0 ? n : static_cast<std::size_t>(options.group);
    for (std::size_t g = 0; g * group < n; ++g)
      scales.push_back(codec::fit_slice(row.subspan(g * group, group), std::span<const float>(diagonal).subspan(g * group, group), options.format));
    std::vector<double> error(n);  // q - w of the fixed ones
    for (std::size_t k = 0; k < n; ++k) {
      const auto own = static_cast<std::size_t>(order[k]);
      double value = row[own];
      if (k > 0) {
        const std::size_t left = n - k;
        std::vector<double> a(left * left), b(left);
        for (std::size_t i = 0; i < left; ++i) {
          for (std::size_t j = 0; j < left; ++j)
            a[i * left + j] = h[static_cast<std::size_t>(order[k + i]) * n + static_cast<std::size_t>(order[k + j])];
          for (std::size_t s = 0; s < k; ++s)
            b[i] += error[static_cast<std::size_t>(order[s])] * h[static_cast<std::size_t>(order[s]) * n + static_cast<std::size_t>(order[k + i])];
        }
        value -= solve(a, b)[0];
      }
      const codec::SliceScale& scale = scales[own / group];
      codes[r * n + own] = codec::encode(static_cast<float>(value), scale, options.format);
      error[own] = static_cast<double>(codec::decode(codes[r * n + own], scale, options.format)) - row[own];
    }
  }
  return codes;
}

double loss_of(const std::vector<float>& weights, const QuantizedLinear& linear, const std::vector<double>& gram) {
  return relative_loss(weights, linear.decoded(), linear.rows, linear.columns, gram);
}

TEST(Solver, two_weights_come_out_as_by_hand) {
  // A third weight of 15 that correlates with neither makes the grid that of the integers.
  const std::vector<float> weights = {0.4F, 0.4F, 15};
  const auto solved = [&](double own, double common) {
    const std::vector<double> gram = {own, common, 0, common, own, 0, 0, 0, 1};
    const SolverOptions options{.format = {.bits = 4, .zero = Zero::affine}, .group = 0, .order = Order::as_stored, .damping = 0};
    const QuantizedLinear linear = compensate(weights, 1, 3, factorise(gram, 3, options), options);
    EXPECT_EQ(linear.scales, std::vector<float>{1});
    const std::vector<float> decoded = linear.decoded();
    EXPECT_EQ(decoded, (std::vector<float>{0, 1, 15}));
    std::vector<float> difference(3);
    for (std::size_t i = 0; i < 3; ++i) difference[i] = decoded[i] - weights[i];
    return quadratic_form(difference, 1, 3, gram);
  };
  EXPECT_NEAR(solved(2, 1), 0.56, 1e-6);
  EXPECT_NEAR(solved(1, 0.9), 0.088, 1e-6);
  const std::vector<float> rounding = {-0.4F, -0.4F};
  EXPECT_NEAR(quadratic_form(rounding, 1, 2, std::vector<double>{2, 1, 1, 2}), 0.96, 1e-6);
  EXPECT_NEAR(quadratic_form(rounding, 1, 2, std::vector<double>{1, 0.9, 0.9, 1}), 0.608, 1e-6);
}

TEST(Solver, after_each_column_the_others_are_the_exact_minimisers_of_the_loss) {
  const std::vector<float> weights = random_values(kRows * kColumns, 1, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 300, 2);
  for (const Order order : {Order::as_stored, Order::by_activation}) {
    for (const std::int64_t group : {0, 16}) {
      for (const double damping : {0.0, 0.01}) {
        SolverOptions options{.format = {.bits = 3, .zero = Zero::affine}, .group = group, .order = order, .static_groups = true, .damping = damping};
        const Factor factor = factorise(gram, kColumns, options);
        ASSERT_TRUE(factor.usable);
        EXPECT_EQ(factor.damping, damping);
        EXPECT_EQ(compensate(weights, kRows, kColumns, factor, options).codes,
                  reference_codes(weights, kRows, kColumns, gram, damping, factor.order, options));
      }
    }
  }
}

TEST(Solver, the_block_size_and_how_rows_are_cut_change_no_code) {
  const std::vector<float> weights = random_values(kRows * kColumns, 3, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 400, 4);
  for (const auto& [order, static_groups] :
       {std::pair(Order::by_activation, true), std::pair(Order::by_activation, false), std::pair(Order::by_group, false)}) {
    SolverOptions options{.format = {.bits = 4, .zero = Zero::centred}, .group = 16, .order = order, .static_groups = static_groups};
    const Factor factor = factorise(gram, kColumns, options);
    const QuantizedLinear whole = compensate(weights, kRows, kColumns, factor, options);
    EXPECT_EQ(whole.group_of.empty(), static_groups || order == Order::by_group);
    for (const std::int64_t block : {1, 7, 16, 48, 1000}) {
      options.block = block;
      QuantizedLinear cut = prepare(kRows, kColumns, options, factor);
      compensate_rows(weights, factor, options, 0, 5, cut);
      compensate_rows(weights, factor, options, 5, kRows - 5, cut);
      EXPECT_EQ(cut.codes, whole.codes);
      EXPECT_EQ(cut.scales, whole.scales);
      EXPECT_EQ(cut.zeros, whole.zeros);
    }
  }
}

TEST(Solver, inputs_that_do_not_correlate_leave_plain_rounding) {
  const std::vector<float> weights = random_values(kRows * kColumns, 5, 0.05F);
  std::vector<double> gram(kColumns * kColumns);
  for (std::size_t i = 0; i < kColumns; ++i) gram[i * kColumns + i] = 3;
  const SolverOptions options{.format = {.bits = 3, .zero = Zero::affine}, .group = 16, .order = Order::as_stored};
  const QuantizedLinear rounded = round_to_nearest(weights, kRows, kColumns, options);
  EXPECT_EQ(compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options).codes, rounded.codes);
}

TEST(Solver, compensating_loses_less_than_half_of_what_rounding_loses_on_correlated_inputs) {
  const std::vector<float> weights = random_values(kRows * kColumns, 6, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 4096, 7), unseen = gram_of(kColumns, 2048, 8);
  for (const int bits : {2, 3, 4}) {
    const SolverOptions options{.format = {.bits = bits, .zero = Zero::affine}, .group = 0};
    const double plain = loss_of(weights, round_to_nearest(weights, kRows, kColumns, options), unseen);
    const double better = loss_of(weights, compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options), unseen);
    EXPECT_LT(better, 0.5 * plain) << bits;
  }
}

TEST(Solver, permuting_the_inputs_permutes_the_codes_when_columns_are_taken_by_activation) {
  const std::vector<float> weights = random_values(kRows * kColumns, 9, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 300, 10);
  std::vector<std::size_t> order(kColumns);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(4));
  std::vector<float> turned(weights.size());
  std::vector<double> turned_gram(gram.size());
  for (std::size_t i = 0; i < kColumns; ++i) {
    for (std::size_t r = 0; r < kRows; ++r) turned[r * kColumns + i] = weights[r * kColumns + order[i]];
    for (std::size_t j = 0; j < kColumns; ++j) turned_gram[i * kColumns + j] = gram[order[i] * kColumns + order[j]];
  }
  const SolverOptions options{.format = {.bits = 3, .zero = Zero::affine}, .group = 0};
  const QuantizedLinear a = compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options);
  const QuantizedLinear b = compensate(turned, kRows, kColumns, factorise(turned_gram, kColumns, options), options);
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t i = 0; i < kColumns; ++i) ASSERT_EQ(b.codes[r * kColumns + i], a.codes[r * kColumns + order[i]]);
}

TEST(Solver, statistics_of_too_few_tokens_are_damped_until_they_can_be_used) {
  const std::vector<float> weights = random_values(kRows * kColumns, 11, 0.05F);
  SolverOptions options{.format = {.bits = 4}, .group = 16, .damping = 0};
  const Factor few = factorise(gram_of(kColumns, 5, 12), kColumns, options);
  EXPECT_TRUE(few.usable);
  EXPECT_GT(few.damping, 0);
  for (const float value : compensate(weights, kRows, kColumns, few, options).decoded()) EXPECT_TRUE(std::isfinite(value));
  // Nothing at all was read, or what was read is no number: rounding.
  const std::vector<double> nothing(kColumns * kColumns);
  EXPECT_FALSE(factorise(nothing, kColumns, options).usable);
  std::vector<double> broken = gram_of(kColumns, 100, 13);
  broken[5 * kColumns + 5] = NAN;
  EXPECT_FALSE(factorise(broken, kColumns, options).usable);
  broken = gram_of(kColumns, 100, 13);
  for (std::size_t i = 0; i < kColumns; ++i) broken[7 * kColumns + i] = broken[i * kColumns + 7] = NAN;
  EXPECT_FALSE(factorise(broken, kColumns, options).usable);
  EXPECT_EQ(compensate(weights, kRows, kColumns, factorise(nothing, kColumns, options), options).codes,
            round_to_nearest(weights, kRows, kColumns, options).codes);
}

TEST(Solver, weights_on_inputs_that_are_never_read_become_zero) {
  const std::vector<float> weights = random_values(kRows * kColumns, 14, 0.05F);
  std::vector<double> gram = gram_of(kColumns, 300, 15);
  for (std::size_t i = 0; i < kColumns; ++i) gram[9 * kColumns + i] = gram[i * kColumns + 9] = 0;
  const SolverOptions options{.format = {.bits = 4, .zero = Zero::affine}, .group = 16};
  const std::vector<float> decoded = compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options).decoded();
  for (std::size_t r = 0; r < kRows; ++r) EXPECT_EQ(decoded[r * kColumns + 9], 0);
}

TEST(Solver, inputs_that_have_not_drifted_change_nothing_and_drift_is_projected_on_what_follows) {
  const std::vector<float> weights = random_values(kRows * kColumns, 16, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 300, 17), none(kColumns * kColumns);
  SolverOptions options{.format = {.bits = 4, .zero = Zero::affine}, .group = 16, .drift = 0.25};
  SolverOptions plain = options;
  plain.drift = 0;
  EXPECT_EQ(compensate(weights, kRows, kColumns, factorise(gram, kColumns, options, none), options).codes,
            compensate(weights, kRows, kColumns, factorise(gram, kColumns, plain), plain).codes);
  // Of two columns, undamped: P_01 = D_01 / H_11.
  const std::vector<double> two = {2, 0.5, 0.5, 3}, cross = {0.1, 0.7, -0.2, 0.3};
  options = {.format = {}, .order = Order::as_stored, .damping = 0, .drift = 1};
  EXPECT_NEAR(factorise(two, 2, options, cross).drift[1], 0.7 / 3, 1e-14);
}

TEST(Solver, the_same_engine_drives_floating_point_codes) {
  const std::vector<float> weights = random_values(kRows * kColumns, 18, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 2000, 19);
  for (const codec::Levels levels : {codec::Levels::e2m1, codec::Levels::nf4, codec::Levels::e2m3}) {
    const SolverOptions options{.format = {.levels = levels}, .group = 32};
    const double plain = loss_of(weights, round_to_nearest(weights, kRows, kColumns, options), gram);
    EXPECT_LT(loss_of(weights, compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options), gram), 0.6 * plain);
  }
}

/// by_group from its definition, in double: the group with the loudest column first (a short one last), its scales from what is left of it then, its
/// columns in the order of how loudly they are read; after each column the others become the exact minimisers.
TEST(Solver, a_group_s_scale_is_found_when_its_turn_comes_and_the_loudest_group_comes_first) {
  const std::vector<float> weights = random_values(kRows * kColumns, 22, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 300, 23);
  for (const std::int64_t group : {16, 24, 0}) {
    const SolverOptions options{.format = {.bits = 3, .zero = Zero::affine, .search = codec::Search::shrink, .norm = 2},
                                .group = group,
                                .order = Order::by_group,
                                .static_groups = false,
                                .damping = 0.01};
    const auto width = static_cast<std::size_t>(group == 0 ? kColumns : group);
    std::vector<std::size_t> groups;
    for (std::size_t g = 0; g * width < kColumns; ++g) groups.push_back(g);
    const auto loudness = [&](std::size_t column) { return gram[column * kColumns + column]; };
    const auto loudest = [&](std::size_t g) {
      double most = 0;
      for (std::size_t c = g * width; c < std::min<std::size_t>(kColumns, (g + 1) * width); ++c) most = std::max(most, loudness(c));
      return (g + 1) * width > kColumns ? -1 : most;
    };
    std::stable_sort(groups.begin(), groups.end(), [&](std::size_t a, std::size_t b) { return loudest(a) > loudest(b); });
    std::vector<std::size_t> order;
    for (const std::size_t g : groups) {
      const std::size_t first = order.size();
      for (std::size_t c = g * width; c < std::min<std::size_t>(kColumns, (g + 1) * width); ++c) order.push_back(c);
      std::stable_sort(order.begin() + static_cast<std::ptrdiff_t>(first), order.end(),
                       [&](std::size_t a, std::size_t b) { return loudness(a) > loudness(b); });
    }
    double mean = 0;
    for (std::size_t i = 0; i < kColumns; ++i) mean += loudness(i) / kColumns;
    const QuantizedLinear linear = compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options);
    EXPECT_TRUE(linear.group_of.empty());
    std::size_t other = 0;
    for (std::size_t r = 0; r < kRows; ++r) {
      std::vector<double> now(weights.begin() + static_cast<std::ptrdiff_t>(r * kColumns),
                              weights.begin() + static_cast<std::ptrdiff_t>((r + 1) * kColumns));
      for (std::size_t k = 0; k < kColumns; ++k) {
        const std::size_t own = order[k], g = own / width;
        if (k == 0 || order[k - 1] / width != g) {
          std::vector<float> slice, importance;
          for (std::size_t i = k; i < kColumns && order[i] / width == g; ++i) {
            slice.push_back(static_cast<float>(now[order[i]]));
            importance.push_back(static_cast<float>(loudness(order[i])));
          }
          const codec::SliceScale scale = codec::fit_slice(slice, importance, options.format);
          EXPECT_EQ(linear.scales[r * groups.size() + g], scale.scale);
          EXPECT_EQ(linear.zeros[r * groups.size() + g], scale.zero);
        }
        const codec::SliceScale scale{linear.scales[r * groups.size() + g], linear.zeros[r * groups.size() + g]};
        const std::uint8_t code = codec::encode(static_cast<float>(now[own]), scale, options.format);
        other += code != linear.codes[r * kColumns + own] ? 1 : 0;
        const double error = static_cast<double>(codec::decode(code, scale, options.format)) - now[own];
        const std::size_t left = kColumns - k - 1;
        if (left == 0) continue;
        std::vector<double> a(left * left), b(left);
        for (std::size_t i = 0; i < left; ++i) {
          for (std::size_t j = 0; j < left; ++j)
            a[i * left + j] = gram[order[k + 1 + i] * kColumns + order[k + 1 + j]] + (i == j ? options.damping * mean : 0);
          b[i] = error * gram[own * kColumns + order[k + 1 + i]];
        }
        const std::vector<double> moves = solve(a, b);
        for (std::size_t i = 0; i < left; ++i) now[order[k + 1 + i]] -= moves[i];
      }
    }
    EXPECT_EQ(other, 0U);
  }
}

TEST(Solver, groups_may_be_short_at_the_end_or_longer_than_the_row) {
  const std::vector<float> weights = random_values(kRows * kColumns, 20, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 300, 21);
  for (const std::int64_t group : {48, 64, 100}) {
    for (const auto& [order, static_groups] :
         {std::pair(Order::by_activation, true), std::pair(Order::by_activation, false), std::pair(Order::by_group, false)}) {
      const SolverOptions options{.format = {.bits = 8}, .group = group, .order = order, .static_groups = static_groups};
      const QuantizedLinear linear = compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options);
      EXPECT_EQ(linear.num_groups(), group == 48 ? 2 : 1);
      EXPECT_LT(loss_of(weights, linear, gram), 1e-3);
    }
  }
}

TEST(Solver, scales_become_powers_of_two_or_ratios_of_them) {
  // Groups of two of E2M1 whose largest values are 6 times the scales.
  const std::vector<float> values = {0.66F, 0.1F, 1.2F, 0.3F, 2.22F, -0.4F};
  SolverOptions options{.format = {.levels = codec::Levels::e2m1}, .group = 2, .scale_rule = ScaleRule::powers};
  const auto scales_of = [&](std::vector<float> scales) {
    constrain_scales(scales, {}, values, {}, options);
    return scales;
  };
  EXPECT_EQ(scales_of({0.11F, 0.2F, 0.37F}), (std::vector<float>{0.125F, 0.25F, 0.5F}));
  EXPECT_EQ(scales_of({0.125F, 0.5F, 1}), (std::vector<float>{0.125F, 0.5F, 1})) << "powers stay";
  options.scale_rule = ScaleRule::ratios;
  const std::vector<float> ratios = scales_of({0.11F, 0.2F, 0.37F});
  // Of 0.0925 and 0.185 either, whichever loses less; never another.
  for (std::size_t g = 0; g < 2; ++g) {
    double least = 1e9;
    float wanted = 0;
    for (const float candidate : {0.37F / 2, 0.37F / (g == 0 ? 4.0F : 1.0F)}) {
      const double error = codec::slice_error(std::span(values).subspan(2 * g, 2), {}, {candidate, 0}, options.format, 2);
      if (error < least) least = error, wanted = candidate;
    }
    EXPECT_EQ(ratios[g], wanted);
  }
  EXPECT_EQ(ratios[2], 0.37F);
  const std::vector<float> silent = {0, 0, 1.2F, 0.3F, 2.22F, -0.4F};
  std::vector<float> scales = {1, 0.2F, 0.37F};
  constrain_scales(scales, {}, silent, {}, options);
  EXPECT_EQ(scales[0], 0.37F) << "a group of nothing but 0 does not count";
}

TEST(Solver, every_row_of_constrained_scales_keeps_to_its_rule_and_loses_little_more) {
  const std::vector<float> weights = random_values(kRows * kColumns, 22, 0.05F);
  const std::vector<double> gram = gram_of(kColumns, 2000, 23);
  for (const bool integers : {false, true}) {
    std::vector<double> losses;
    for (const ScaleRule rule : {ScaleRule::any, ScaleRule::ratios, ScaleRule::powers}) {
      SolverOptions options{.format = {.levels = integers ? codec::Levels::integer : codec::Levels::e2m1, .scale_type = DType::f16}, .group = 16};
      options.scale_rule = rule;
      double loss = 0;
      for (const QuantizedLinear& linear :
           {round_to_nearest(weights, kRows, kColumns, options), compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options)}) {
        for (std::size_t i = 0; i < linear.scales.size() && rule != ScaleRule::any; ++i) {
          const auto row = linear.scales.begin() + static_cast<std::ptrdiff_t>(i / 4 * 4);
          const float largest = rule == ScaleRule::powers ? 1 : *std::max_element(row, row + 4);
          const float steps = std::log2(linear.scales[i] / largest);
          EXPECT_EQ(steps, std::nearbyint(steps));
        }
        loss += loss_of(weights, linear, gram);
      }
      losses.push_back(loss);
    }
    EXPECT_LT(losses[1], 1.7 * losses[0]);
    EXPECT_LT(losses[2], 2.6 * losses[0]) << "steps are 1.5 times as wide, whose squares are 2.2 times as large in the mean";
  }
}

}  // namespace
}  // namespace weft::quantize
