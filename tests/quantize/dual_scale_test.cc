#include "quantize/dual_scale.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

std::vector<double> identity(std::size_t n) {
  std::vector<double> out(n * n);
  for (std::size_t i = 0; i < n; ++i) out[i * n + i] = 1;
  return out;
}

TEST(DualScale, a_matrix_that_is_a_product_of_scales_and_small_integers_is_kept_exactly) {
  // diag(r) C diag(1, 1, 4, 1), C of integers within [-3, 3] that reach 3 in every row.
  const std::vector<int> codes = {3, -1, 2, 1, -2, 3, 1, -1, 1, 2, -3, 3, 2, -3, 3, -2, -1, 1, 3, 3, 3, 2, -2, 1, -3, 3, 1, 2, 1, -2, 2, 3};
  const std::vector<float> row = {0.5F, 1, 0.25F, 2, 1.5F, 0.75F, 1, 0.5F}, column = {1, 1, 4, 1};
  std::vector<float> weights;
  for (std::size_t i = 0; i < codes.size(); ++i) weights.push_back(row[i / 4] * static_cast<float>(codes[i]) * column[i % 4]);
  const SolverOptions options{.format = {.bits = 3, .zero = codec::Zero::restricted}, .group = 0};
  const DualScale found = search_dual_scale(weights, 8, 4, identity(4), options, 20);
  EXPECT_GT(found.plain_loss, 1);
  EXPECT_LT(found.loss, 1e-9);
  EXPECT_NEAR(found.channel[2] / found.channel[0], 4, 1e-4);
  EXPECT_NEAR(found.channel[1] / found.channel[0], 1, 1e-4);
}

TEST(DualScale, losses_are_those_of_the_definition_and_never_above_rounding) {
  constexpr std::size_t kRows = 12, kColumns = 20;
  std::vector<float> weights = testing::random_values(kRows * kColumns, 5, 0.1F);
  for (std::size_t r = 0; r < kRows; ++r) weights[r * kColumns + 7] *= 6;  // a loud column
  const std::vector<float> x = testing::random_values(64 * kColumns, 6);
  std::vector<double> gram(kColumns * kColumns);
  for (std::size_t t = 0; t < 64; ++t)
    for (std::size_t i = 0; i < kColumns; ++i)
      for (std::size_t j = 0; j < kColumns; ++j)
        gram[i * kColumns + j] += static_cast<double>(x[t * kColumns + i]) * static_cast<double>(x[t * kColumns + j]);
  const SolverOptions options{.format = {.bits = 3, .zero = codec::Zero::affine}, .group = 10};
  const DualScale found = search_dual_scale(weights, kRows, kColumns, gram, options);
  std::vector<float> inner = weights;
  for (std::size_t i = 0; i < inner.size(); ++i) inner[i] /= found.channel[i % kColumns];
  const std::vector<float> rounded = round_to_nearest(inner, kRows, kColumns, options).decoded();
  double loss = 0;
  for (std::size_t t = 0; t < 64; ++t)
    for (std::size_t o = 0; o < kRows; ++o) {
      double error = 0;
      for (std::size_t j = 0; j < kColumns; ++j)
        error += (static_cast<double>(rounded[o * kColumns + j]) * static_cast<double>(found.channel[j]) -
                  static_cast<double>(weights[o * kColumns + j])) *
                 static_cast<double>(x[t * kColumns + j]);
      loss += error * error;
    }
  EXPECT_NEAR(found.loss, loss, 1e-5 * loss);
  EXPECT_LT(found.loss, 0.9 * found.plain_loss);
  for (const float scale : found.channel) EXPECT_TRUE(scale >= 0.125F && scale <= 8) << scale;
}

TEST(DualScale, columns_of_zeros_do_no_harm) {
  std::vector<float> weights = testing::random_values(6 * 8, 9);
  for (std::size_t r = 0; r < 6; ++r) weights[r * 8 + 2] = 0;
  const SolverOptions options{.format = {.bits = 2, .zero = codec::Zero::affine}, .group = 4};
  for (const float scale : search_dual_scale(weights, 6, 8, identity(8), options).channel) EXPECT_TRUE(std::isfinite(scale) && scale > 0);
  for (const float scale : search_dual_scale(std::vector<float>(48), 6, 8, identity(8), options).channel) EXPECT_EQ(scale, 1);
}

TEST(DualScale, a_shift_of_means_is_made_good_by_biases) {
  constexpr std::size_t kTokens = 50, kColumns = 6;
  const std::vector<float> original = testing::random_values(kTokens * kColumns, 1);
  std::vector<float> changed = testing::random_values(kTokens * kColumns, 2);
  for (float& value : changed) value += 0.3F;
  std::vector<double> before(kColumns), after(kColumns);
  for (std::size_t i = 0; i < original.size(); ++i) {
    before[i % kColumns] += static_cast<double>(original[i]);
    after[i % kColumns] += static_cast<double>(changed[i]);
  }
  const std::vector<double> shift = mean_shift(before, after, kTokens, 0);
  for (std::size_t j = 0; j < kColumns; ++j) EXPECT_NEAR(after[j] / kTokens + shift[j], before[j] / kTokens, 1e-12);
  const std::vector<double> held_back = mean_shift(before, after, kTokens);
  for (std::size_t j = 0; j < kColumns; ++j) EXPECT_NEAR(held_back[j], shift[j] * kTokens / (kTokens + 256.0), 1e-12);
  EXPECT_EQ(mean_shift(before, after, 0, 0), std::vector<double>(kColumns));
  // W (x + shift) and W x + W shift.
  const std::vector<float> weights = testing::random_values(4 * kColumns, 3);
  const std::vector<double> bias = shifted_bias(weights, 4, kColumns, shift);
  for (std::size_t o = 0; o < 4; ++o) {
    double expected = 0;
    for (std::size_t j = 0; j < kColumns; ++j) expected += static_cast<double>(weights[o * kColumns + j]) * shift[j];
    EXPECT_NEAR(bias[o], expected, 1e-12);
  }
}

}  // namespace
}  // namespace weft::quantize
