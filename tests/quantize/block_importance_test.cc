#include "quantize/block_importance.h"

#include <gtest/gtest.h>

namespace weft::quantize {
namespace {

TEST(BlockImportance, a_block_that_turns_what_it_reads_further_is_more_important) {
  ChangeScore one;
  one.add(std::vector<float>{1, 0}, std::vector<float>{.6F, .8F}, 2);
  EXPECT_NEAR(one.score(), -.6, 1e-7);
  one.add(std::vector<float>{0, 2, 0, 0}, std::vector<float>{0, 5, 1, 1}, 2);
  EXPECT_NEAR(one.score(), -(.6 + 1 + 1) / 3, 1e-7);
  EXPECT_EQ(ChangeScore().score(), 0);
}

TEST(BlockImportance, weights_far_above_the_mean_are_counted_over_all_matrices) {
  EXPECT_DOUBLE_EQ(share_above_deviation(std::vector<std::vector<float>>{{0, 0, 0, 0, 0}, {0, 0, 0, 0, 10}}), .1);
  // z = 1 is not above 1; what lies below the mean never counts.
  EXPECT_EQ(share_above_deviation(std::vector<std::vector<float>>{{-1, 1}}), 0);
  EXPECT_EQ(share_above_deviation(std::vector<std::vector<float>>{{0, 0, 0, -10}}), 0);
  EXPECT_EQ(share_above_deviation(std::vector<std::vector<float>>{{2, 2}}), 0);
  EXPECT_EQ(share_above_deviation({}), 0);
}

}  // namespace
}  // namespace weft::quantize
