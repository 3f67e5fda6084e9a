#include "quantize/scale_fold.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

TEST(ScaleFold, a_channel_that_is_read_loudly_is_kept_more_exactly) {
  const std::vector<float> weights = {.22F, -.5F, .9F, -.13F};
  const std::vector<double> mean_abs = {8, 1, 1, 1};
  // Outputs weighted by |x|, channel by channel.
  std::vector<double> gram(16);
  for (std::size_t i = 0; i < 4; ++i) gram[i * 5] = mean_abs[i] * mean_abs[i];
  const SolverOptions options{.format = {.bits = 2, .zero = codec::Zero::affine}, .group = 0};
  const Reader reader{weights, 1};
  const ScaleChoice choice = search_awq(std::span(&reader, 1), 4, mean_abs, gram, options);
  EXPECT_NEAR(choice.plain_loss, 3.117, 2e-3);
  EXPECT_LE(choice.loss, 0.0351);
  EXPECT_GT(choice.scales[0], 2 * choice.scales[1]);
}

TEST(ScaleFold, a_channel_that_nothing_is_read_from_does_no_harm) {
  const std::vector<float> weights = testing::random_values(8 * 16, 1, 0.05F);
  std::vector<double> gram(256), silent(16);
  const SolverOptions options{.format = {.bits = 3, .zero = codec::Zero::affine}, .group = 8};
  const Reader reader{weights, 8};
  for (const float scale : search_awq(std::span(&reader, 1), 16, silent, gram, options).scales) EXPECT_EQ(scale, 1);
  silent[3] = 5;
  gram[3 * 17] = 25;
  for (const float scale : search_awq(std::span(&reader, 1), 16, silent, gram, options).scales) EXPECT_TRUE(std::isfinite(scale) && scale > 0);
}

TEST(ScaleFold, smoothing_makes_activations_and_weights_alike) {
  const std::vector<float> weights = {.2F, .5F}, max_abs = {10, 1};
  const Reader reader{weights, 1};
  const std::vector<float> scales = smooth_scales(std::span(&reader, 1), 2, max_abs, 0.5);
  EXPECT_NEAR(scales[0], 7.071, 1e-3);
  EXPECT_NEAR(scales[1], 1.414, 1e-3);
  EXPECT_NEAR(max_abs[0] / scales[0], weights[0] * scales[0], 1e-5);
  EXPECT_NEAR(max_abs[1] / scales[1], weights[1] * scales[1], 1e-5);
}

TEST(ScaleFold, what_is_folded_leaves_the_product_alone) {
  std::vector<float> writer = testing::random_values(6 * 5, 2), reader = testing::random_values(4 * 6, 3);
  const std::vector<float> scales = {1, 2, 0.5F, 3, 0.1F, 7};
  const auto product = [&] {
    std::vector<double> out(20);
    for (std::size_t i = 0; i < 4; ++i)
      for (std::size_t j = 0; j < 5; ++j)
        for (std::size_t k = 0; k < 6; ++k) out[i * 5 + j] += static_cast<double>(reader[i * 6 + k]) * static_cast<double>(writer[k * 5 + j]);
    return out;
  };
  const std::vector<double> before = product();
  scale_columns(reader, 6, scales);
  divide_rows(writer, 5, scales);
  const std::vector<double> after = product();
  for (std::size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(after[i], before[i], 1e-5);
}

TEST(ScaleFold, clipping_never_loses_more_than_rounding_alone) {
  std::vector<float> weights = testing::random_values(16 * 32, 4, 0.02F);
  for (std::size_t r = 0; r < 16; ++r) weights[r * 32 + 5] = 0.2F;
  std::vector<double> gram(32 * 32);
  for (std::size_t i = 0; i < 32; ++i) gram[i * 33] = 1;
  gram[5 * 33] = 0.01;
  const SolverOptions options{.format = {.bits = 3, .zero = codec::Zero::affine}, .group = 32};
  std::vector<float> clipped = weights;
  clip_groups(clipped, 16, 32, gram, options);
  const double plain = relative_loss(weights, round_to_nearest(weights, 16, 32, options).decoded(), 16, 32, gram);
  EXPECT_LT(relative_loss(weights, round_to_nearest(clipped, 16, 32, options).decoded(), 16, 32, gram), 0.7 * plain);
}

}  // namespace
}  // namespace weft::quantize
