#include "quantize/learned_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/errors.h"
#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

constexpr std::int64_t kRows = 6, kColumns = 20;
constexpr Learned kAll[] = {Learned::clip, Learned::divisor, Learned::low_rank, Learned::weight, Learned::scale};

SolverOptions solver_of(int bits, std::int64_t group, codec::Zero zero) {
  SolverOptions solver;
  solver.format.bits = bits;
  solver.format.zero = zero;
  solver.format.scale_type = DType::f16;
  solver.group = group;
  return solver;
}
SolverOptions solver_of(int bits, std::int64_t group, bool symmetric) {
  return solver_of(bits, group, symmetric ? codec::Zero::centred : codec::Zero::affine);
}

constexpr codec::Zero kZeros[] = {codec::Zero::centred, codec::Zero::affine, codec::Zero::halfway, codec::Zero::offset};

std::vector<float> decoded_by(const std::vector<float>& weights, const SolverOptions& solver) {
  return round_to_nearest(weights, kRows, kColumns, solver).decoded();
}

/// One weight, whose scale is 0.1.
float after_dividing(double log_divisor) {
  ThreadTeam team(1);
  codec::QuantizedLinear start;
  start.rows = start.columns = start.group = 1;
  start.scale_type = DType::f32;
  start.symmetric = true;
  start.codes = {11};
  start.scales = {0.1F};
  start.zeros = {8};
  const std::vector<float> weights = {0.34F};
  LearnedCodes<float> codes(weights, start, solver_of(4, 0, true), {.what = Learned::divisor});
  codes.part("divisor")[0] = static_cast<float>(log_divisor);
  std::vector<float> value(1);
  codes.values(team, value);
  EXPECT_EQ(codes.codes().decoded()[0], value[0]);
  return value[0];
}

TEST(LearnedCodes, a_divisor_moves_codes_by_more_than_one) {
  EXPECT_NEAR(after_dividing(0), 0.3, 1e-6);
  EXPECT_NEAR(after_dividing(-0.2), 0.4, 1e-6);
  EXPECT_NEAR(after_dividing(0.35), 0.2, 1e-6);
  EXPECT_NEAR(after_dividing(-0.7), 0.7, 1e-6);
  // Held to e^-1 and e^1.
  EXPECT_EQ(after_dividing(-50), after_dividing(-1));
}

TEST(LearnedCodes, learning_begins_with_the_codes_of_rounding) {
  const std::vector<float> weights = testing::random_values(kRows * kColumns, 1, 0.05F);
  ThreadTeam team(2);
  for (const codec::Zero zero : kZeros)
    for (const std::int64_t group : {0, 8})
      for (const Learned what : {Learned::divisor, Learned::low_rank, Learned::weight, Learned::scale}) {
        const SolverOptions solver = solver_of(3, group, zero);
        const codec::QuantizedLinear start = round_to_nearest(weights, kRows, kColumns, solver);
        LearnedCodes<float> codes(weights, start, solver, {.what = what});
        std::vector<float> values(weights.size());
        codes.values(team, values);
        EXPECT_EQ(values, start.decoded());
        EXPECT_EQ(codes.codes().codes, start.codes);
      }
}

TEST(LearnedCodes, ends_at_the_extremes_are_those_of_rounding_and_at_first_they_are_held_in_by_2_percent) {
  const std::vector<float> weights = testing::random_values(kRows * kColumns, 2, 0.05F);
  ThreadTeam team(2);
  for (const bool symmetric : {false, true}) {
    const SolverOptions solver = solver_of(3, 8, symmetric);
    const codec::QuantizedLinear start = round_to_nearest(weights, kRows, kColumns, solver);
    LearnedCodes<float> codes(weights, start, solver, {.what = Learned::clip});
    const codec::QuantizedLinear first = codes.codes();
    // Rounding with every group's ends at sigmoid(4) of its extremes.
    const double share = 1 / (1 + std::exp(-4.0));
    for (std::int64_t r = 0; r < kRows; ++r)
      for (std::int64_t g = 0; g < 3; ++g) {
        double low = 0, high = 0;
        for (std::int64_t c = g * 8; c < std::min(kColumns, g * 8 + 8); ++c) {
          low = std::min(low, static_cast<double>(weights[static_cast<std::size_t>(r * kColumns + c)]));
          high = std::max(high, static_cast<double>(weights[static_cast<std::size_t>(r * kColumns + c)]));
        }
        const double scale = symmetric ? share * std::max(-low, high) * 2 / 7 : share * (high - low) / 7;
        const float stored = first.scales[static_cast<std::size_t>(r * 3 + g)];
        EXPECT_NEAR(stored, scale, scale * 6e-4);
        const double zero = symmetric ? 4 : std::nearbyint(-low / ((high - low) / 7));
        EXPECT_EQ(first.zeros[static_cast<std::size_t>(r * 3 + g)], static_cast<float>(zero));
        for (std::int64_t c = g * 8; c < std::min(kColumns, g * 8 + 8); ++c) {
          const auto i = static_cast<std::size_t>(r * kColumns + c);
          const double code = std::clamp(std::nearbyint(static_cast<double>(weights[i] / stored)) + zero, 0.0, 7.0);
          EXPECT_EQ(static_cast<double>(first.codes[i]), code);
        }
      }
    std::fill(codes.parameters().begin(), codes.parameters().end(), 40.0F);
    EXPECT_EQ(codes.codes().decoded(), decoded_by(weights, solver));
  }
}

TEST(LearnedCodes, codes_that_were_made_otherwise_are_kept) {
  const std::vector<float> weights = testing::random_values(kRows * kColumns, 3, 0.05F);
  ThreadTeam team(2);
  for (const codec::Zero zero : kZeros) {
    const SolverOptions solver = solver_of(2, 8, zero);
    codec::QuantizedLinear start = round_to_nearest(weights, kRows, kColumns, solver);
    for (std::size_t i = 0; i < start.codes.size(); ++i) start.codes[i] = static_cast<std::uint8_t>((start.codes[i] + i % 3) % 4);
    for (const Learned what : kAll) {
      LearnedCodes<float> codes(weights, start, solver, {.what = what, .keeps_codes = true});
      EXPECT_EQ(codes.codes().codes, start.codes) << static_cast<int>(what);
      for (std::size_t s = 0; s < start.scales.size(); ++s) EXPECT_NEAR(codes.codes().scales[s], start.scales[s], 1e-3F * start.scales[s]);
    }
  }
}

TEST(LearnedCodes, groups_that_follow_the_order_of_columns_are_kept) {
  const std::vector<float> weights = testing::random_values(kRows * kColumns, 4, 0.05F);
  const SolverOptions solver = solver_of(4, 10, false);
  codec::QuantizedLinear start = round_to_nearest(weights, kRows, kColumns, solver);
  for (std::int32_t c = 0; c < kColumns; ++c) start.group_of.push_back(c % 2);
  for (std::size_t i = 0; i < start.codes.size(); ++i) {
    const std::size_t s = start.scale_index(static_cast<std::int64_t>(i) / kColumns, static_cast<std::int64_t>(i) % kColumns);
    start.codes[i] = codec::encode(weights[i], {start.scales[s], start.zeros[s]}, solver.format);
  }
  LearnedCodes<float> codes(weights, start, solver, {.what = Learned::divisor});
  EXPECT_EQ(codes.codes().decoded(), start.decoded());
  EXPECT_EQ(codes.codes().group_of, start.group_of);
}

TEST(LearnedCodes, a_row_of_zeros_stays_one) {
  std::vector<float> weights = testing::random_values(kRows * kColumns, 5, 0.05F);
  std::fill(weights.begin(), weights.begin() + kColumns, 0.0F);
  ThreadTeam team(1);
  for (const bool symmetric : {false, true})
    for (const Learned what : kAll) {
      const SolverOptions solver = solver_of(4, 8, symmetric);
      LearnedCodes<float> codes(weights, round_to_nearest(weights, kRows, kColumns, solver), solver, {.what = what});
      std::vector<float> values(weights.size()), ones(weights.size(), 1.0F), gradient(codes.parameters().size());
      codes.values(team, values);
      codes.backward(team, ones, gradient);
      for (const float g : gradient) EXPECT_TRUE(std::isfinite(g));
      const std::vector<float> decoded = codes.codes().decoded();
      for (std::size_t c = 0; c < kColumns; ++c) EXPECT_EQ(decoded[c], 0);
    }
}

/// sum of c[i] values[i], with every rounding adding what it added at first.
TEST(LearnedCodes, gradients_are_those_of_finite_differences_where_rounding_adds_a_constant) {
  const std::vector<float> weights = testing::random_values(kRows * kColumns, 6, 0.05F), weighing = testing::random_values(kRows * kColumns, 7);
  const std::vector<double> c(weighing.begin(), weighing.end());
  ThreadTeam team(2);
  for (const codec::Zero zero : kZeros)
    for (const bool keeps : {false, true})
      for (const Learned what : kAll) {
        SCOPED_TRACE(std::to_string(static_cast<int>(what)) + " with zero points " + std::to_string(static_cast<int>(zero)));
        const SolverOptions solver = solver_of(3, 8, zero);
        LearnedCodes<double> codes(weights, round_to_nearest(weights, kRows, kColumns, solver), solver,
                                   {.what = what, .rank = 3, .keeps_codes = keeps});
        // Away from where it begins, so that some weights are beyond the range.
        std::size_t k = 0;
        for (double& parameter : codes.parameters()) parameter = (what == Learned::clip ? 0.8 : parameter) + 0.2 * std::sin(static_cast<double>(++k));
        codes.freeze_rounding(team);
        std::vector<double> values(c.size()), gradient(codes.parameters().size());
        const auto loss = [&] {
          codes.values(team, values);
          return std::inner_product(values.begin(), values.end(), c.begin(), 0.0);
        };
        static_cast<void>(loss());
        codes.backward(team, c, gradient);
        double largest = 0;
        for (const double g : gradient) largest = std::max(largest, std::fabs(g));
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          constexpr double kStep = 1e-6;
          const double before = codes.parameters()[i];
          codes.parameters()[i] = before + kStep;
          const double above = loss();
          codes.parameters()[i] = before - kStep;
          const double below = loss();
          codes.parameters()[i] = before;
          ASSERT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-7 * largest + 1e-9) << i << " of " << gradient.size();
        }
      }
}

TEST(LearnedCodes, thin_matrices_are_fewer_parameters_where_their_rank_is_small_enough) {
  const std::vector<float> weights = testing::random_values(24 * 40, 8, 0.05F);
  const SolverOptions solver = solver_of(4, 0, false);
  const codec::QuantizedLinear start = round_to_nearest(weights, 24, 40, solver);
  LearnedCodes<float> full(weights, start, solver, {.what = Learned::divisor});
  for (const std::int64_t rank : {1, 8, 14, 15, 16, 20}) {
    LearnedCodes<float> thin(weights, start, solver, {.what = Learned::low_rank, .rank = rank});
    EXPECT_EQ(thin.part("left").size() + thin.part("right").size() < full.part("divisor").size(), rank * (24 + 40) < 24 * 40);
  }
}

TEST(LearnedCodes, threads_change_nothing) {
  const std::vector<float> weights = testing::random_values(70 * 40, 9, 0.05F), d = testing::random_values(70 * 40, 10);
  const SolverOptions solver = solver_of(3, 16, false);
  const codec::QuantizedLinear start = round_to_nearest(weights, 70, 40, solver);
  for (const Learned what : kAll) {
    std::vector<std::vector<float>> all;
    for (const int threads : {1, 3}) {
      ThreadTeam team(threads);
      LearnedCodes<float> codes(weights, start, solver, {.what = what, .rank = 4});
      for (float& parameter : codes.parameters()) parameter -= 0.1F;
      std::vector<float> values(weights.size()), gradient(codes.parameters().size());
      codes.values(team, values);
      codes.backward(team, d, gradient);
      values.insert(values.end(), gradient.begin(), gradient.end());
      all.push_back(values);
    }
    EXPECT_EQ(all[0], all[1]);
  }
}

TEST(LearnedCodes, codes_that_are_no_integers_are_refused) {
  const std::vector<float> weights = testing::random_values(kRows * kColumns, 11, 0.05F);
  SolverOptions solver = solver_of(4, 8, false);
  solver.format.levels = codec::Levels::nf4;
  const codec::QuantizedLinear start = round_to_nearest(weights, kRows, kColumns, solver);
  EXPECT_WEFT_ERROR(LearnedCodes<float>(weights, start, solver, {}), invalid_argument, "integer codes");
}

}  // namespace
}  // namespace weft::quantize
