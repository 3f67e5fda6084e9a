#include "quantize/token_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/solver.h"
#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

TEST(TokenWeights, come_out_as_by_hand) {
  const std::vector<double> received = {1, 3, 2};
  const std::vector<std::size_t> lengths = {3};
  const TokenWeights weights = weigh_tokens(received, lengths, 0.005);
  // 0.005, 1 and 0.5025, over their mean.
  EXPECT_NEAR(weights.weights[0], 0.00995, 5e-6);
  EXPECT_NEAR(weights.weights[1], 1.99005, 5e-6);
  EXPECT_NEAR(weights.weights[2], 1.0, 5e-6);
  EXPECT_NEAR(weights.effective, 9 / (0.00995 * 0.00995 + 1.99005 * 1.99005 + 1), 1e-4);
}

TEST(TokenWeights, are_found_within_each_sequence_by_the_definition) {
  const std::vector<std::size_t> lengths = {5, 1, 17, 8};
  std::vector<double> received;
  for (const float value : testing::random_values(31, 3)) received.push_back(std::fabs(static_cast<double>(value)));
  const double least = 0.02;
  const TokenWeights weights = weigh_tokens(received, lengths, least);
  std::size_t first = 0;
  for (const std::size_t length : lengths) {
    double low = 1e300, high = -1e300, sum = 0;
    for (std::size_t t = first; t < first + length; ++t) low = std::min(low, received[t]), high = std::max(high, received[t]);
    const auto ranged = [&](std::size_t t) { return length == 1 ? 1.0 : (received[t] - low) / (high - low) * (1.0 - least) + least; };
    for (std::size_t t = first; t < first + length; ++t) sum += ranged(t);
    for (std::size_t t = first; t < first + length; ++t) EXPECT_NEAR(weights.weights[t], ranged(t) * static_cast<double>(length) / sum, 1e-12) << t;
    first += length;
  }
}

TEST(TokenWeights, are_1_where_all_tokens_received_the_same) {
  const std::vector<double> received(12, 0.7);
  const std::vector<std::size_t> lengths = {7, 1, 4};
  const TokenWeights weights = weigh_tokens(received, lengths, 0.005);
  for (const double weight : weights.weights) EXPECT_EQ(weight, 1);
  EXPECT_EQ(weights.effective, 12);
}

TEST(TokenWeights, are_evened_out_until_enough_tokens_count) {
  // One token of each sequence takes nearly all, as the first does in many models.
  std::vector<double> received;
  const std::vector<std::size_t> lengths(4, 64);
  for (std::size_t i = 0; i < 256; ++i) received.push_back(i % 64 == 0 ? 50 : 0.01 * static_cast<double>(i % 7));
  EXPECT_LT(weigh_tokens(received, lengths, 0.005).effective, 20);
  const TokenWeights evened = weigh_tokens(received, lengths, 0.005, 100);
  EXPECT_GE(evened.effective, 100);
  EXPECT_LT(weigh_tokens(received, lengths, evened.least / 2).effective, 100);
  // More than there are is never reached: then all count alike.
  const TokenWeights all = weigh_tokens(received, lengths, 0.005, 1000);
  EXPECT_EQ(all.least, 1);
  EXPECT_EQ(all.effective, 256);
}

TEST(TokenWeights, of_the_first_tokens_leave_out_all_others) {
  const std::vector<std::size_t> lengths = {16, 3};
  const std::vector<double> expected = {8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0};
  EXPECT_EQ(weigh_first_tokens(lengths).weights, expected);
}

}  // namespace
}  // namespace weft::quantize
