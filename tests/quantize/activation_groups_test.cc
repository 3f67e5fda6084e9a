#include "quantize/activation_groups.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "math/convert.h"
#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

/// Tokens with channels of two kinds: within [-1, 1] and within [-100, 100], in no order.
struct Mixed {
  std::size_t tokens = 400, channels = 32;
  std::vector<float> rows, least, most;
  [[nodiscard]] bool is_loud(std::size_t c) const { return c % 5 == 3; }
  Mixed() : rows(testing::random_values(tokens * channels, 11)) {
    float bound = 0;
    for (const float value : rows) bound = std::max(bound, std::fabs(value));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] *= (is_loud(i % channels) ? 100 : 1) / bound;
    least.assign(channels, 1e9F);
    most.assign(channels, -1e9F);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      least[i % channels] = std::min(least[i % channels], rows[i]);
      most[i % channels] = std::max(most[i % channels], rows[i]);
    }
  }
  [[nodiscard]] double quiet_error(int groups) const {
    const ActivationGroups how = group_channels(least, most, groups, {8});
    double sum = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      std::vector<float> row(rows.begin() + static_cast<std::ptrdiff_t>(t * channels),
                             rows.begin() + static_cast<std::ptrdiff_t>((t + 1) * channels));
      how.round(row);
      for (std::size_t c = 0; c < channels; ++c)
        if (!is_loud(c)) sum += std::pow(static_cast<double>(row[c]) - static_cast<double>(rows[t * channels + c]), 2);
    }
    return sum;
  }
};

TEST(ActivationGroups, two_kinds_of_channels_in_two_groups_lose_ten_thousand_times_less_where_they_are_quiet) {
  const Mixed mixed;
  const std::vector<int> groups = cluster_ranges(mixed.least, mixed.most, 2);
  for (std::size_t c = 0; c < mixed.channels; ++c) EXPECT_EQ(groups[c], groups[mixed.is_loud(c) ? 3 : 0]) << c;
  EXPECT_NE(groups[3], groups[0]);
  const double ratio = mixed.quiet_error(1) / mixed.quiet_error(2);
  EXPECT_GT(ratio, 3e3);
  EXPECT_LT(ratio, 3e4);
  // Channels differ from each other; tokens, each with channels of both kinds, hardly do.
  std::vector<float> token_least(mixed.tokens, -99), token_most(mixed.tokens, 99);
  token_most[3] = 98;
  EXPECT_NEAR(range_spread(token_least, token_most), 1, 1e-6);
  EXPECT_GT(range_spread(mixed.least, mixed.most), 100);
}

TEST(ActivationGroups, rounding_by_groups_is_scaling_columns_rounding_the_tensor_and_scaling_back) {
  const std::vector<float> least = {-1, -0.5F, -64, -64, -0.75F, -32}, most = {1, 1, 64, 48, 0.5F, 64};
  const ActivationGroups by_group = group_channels(least, most, 2, {8});
  std::vector<float> factors(6), scaled_least = least, scaled_most = most;
  for (std::size_t c = 0; c < 6; ++c) factors[c] = by_group.group_of[c] == by_group.group_of[2] ? 1.0F / 64 : 1.0F;
  for (std::size_t c = 0; c < 6; ++c) {
    scaled_least[c] *= factors[c];
    scaled_most[c] *= factors[c];
  }
  const ActivationGroups whole = group_channels(scaled_least, scaled_most, 1, {8});
  const std::vector<float> values = testing::random_values(600, 5);
  for (std::size_t t = 0; t < 100; ++t) {
    std::vector<float> a(6), b(6);
    for (std::size_t c = 0; c < 6; ++c) {
      a[c] = std::clamp(values[t * 6 + c], least[c], most[c]);
      b[c] = a[c] * factors[c];
    }
    by_group.round(a);
    whole.round(b);
    for (std::size_t c = 0; c < 6; ++c) EXPECT_EQ(a[c], b[c] / factors[c]);
  }
}

TEST(ActivationGroups, there_are_no_more_groups_than_different_ranges_and_flat_channels_do_no_harm) {
  const std::vector<float> same(9, -1.0F), most(9, 2.0F);
  for (const int group : cluster_ranges(same, most, 4)) EXPECT_EQ(group, 0);
  const std::vector<float> zero(5);
  std::vector<float> row(5);
  group_channels(zero, zero, 3, {4}).round(row);
  EXPECT_EQ(row, zero);
  EXPECT_TRUE(cluster_ranges({}, {}, 3).empty());
}

TEST(ActivationGroups, a_token_is_rounded_by_its_own_largest_value) {
  std::vector<float> row = {0.1F, -0.7F, 0.34F, 7};
  round_token(row, {4}, 0, 1);
  EXPECT_EQ(row, (std::vector<float>{0, -1, 0, 7}));
  std::vector<float> zeros(3);
  round_token(zeros, {4}, 2, 0.9F);
  EXPECT_EQ(zeros, std::vector<float>(3));
}

/// Tries every number of the type.
double nearest(double value, double scale, const ActivationNumbers& numbers) {
  double best = 0;
  const auto take = [&](double candidate) {
    if (std::fabs(candidate - value) < std::fabs(best - value)) best = candidate;
  };
  if (numbers.is_e4m3) {
    for (int code = 0; code < 256; ++code)
      if (const float number = math::decode_one(DType::f8_e4m3, static_cast<std::uint64_t>(code)); std::isfinite(number))
        take(static_cast<double>(number) * scale);
  } else {
    const int largest = (1 << (numbers.bits - 1)) - 1;
    for (int code = -largest; code <= largest; ++code) take(code * scale);
  }
  return best;
}

TEST(ActivationGroups, every_value_of_a_token_becomes_the_nearest_number_under_its_groups_scale) {
  for (const ActivationNumbers numbers : {ActivationNumbers{4}, ActivationNumbers{8}, ActivationNumbers{2}, ActivationNumbers{8, true}})
    for (const std::size_t group : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{100}})
      for (const float clip : {1.0F, 0.9F}) {
        const std::vector<float> row = testing::random_values(45, 3);
        std::vector<float> got = row;
        round_token(got, numbers, group, clip);
        const std::size_t size = group == 0 ? row.size() : group;
        for (std::size_t c = 0; c < row.size(); ++c) {
          double largest = 0;
          for (std::size_t o = c / size * size; o < std::min(row.size(), c / size * size + size); ++o)
            largest = std::max(largest, std::fabs(static_cast<double>(row[o])));
          const double most = numbers.is_e4m3 ? 448 : (1 << (numbers.bits - 1)) - 1;
          const double scale = static_cast<double>(clip) * largest / most;
          const double want = nearest(static_cast<double>(row[c]), scale, numbers);
          // As near as the nearest, where two are: the scale is a float32.
          EXPECT_NEAR(std::fabs(static_cast<double>(got[c]) - static_cast<double>(row[c])), std::fabs(want - static_cast<double>(row[c])),
                      1e-6 * largest)
              << numbers.bits << ' ' << numbers.is_e4m3 << ' ' << group << ' ' << c;
        }
      }
}

TEST(ActivationGroups, ranges_that_stay_hold_their_ends_and_cut_what_is_beyond) {
  const std::vector<float> least = {-3, 0.5F, -3}, most = {1, 2, 5};
  const ActivationGroups integers = group_channels(least, most, 1, {8});
  std::vector<float> row = {-9, 0, 40};
  integers.round(row);
  EXPECT_NEAR(row[0], -3, 8.0F / 255);
  EXPECT_EQ(row[1], 0);
  EXPECT_NEAR(row[2], 5, 8.0F / 255);
  const ActivationGroups halves = group_channels(least, most, 1, {8, true});
  row = {-9, 5, 40};
  halves.round(row);
  EXPECT_EQ(row, (std::vector<float>{-5, 5, 5}));
  std::vector<float> clipped = {4, 5, -5};
  group_channels(least, most, 1, {8, true}, 0.8F).round(clipped);
  EXPECT_EQ(clipped, (std::vector<float>{4, 4, -4}));
}

TEST(ActivationGroups, shares_become_powers_of_two_below_the_largest) {
  for (int q = 0; q < 16; ++q) EXPECT_EQ(encode_share(std::ldexp(0.3F, -q), 0.3F, 4), q);
  EXPECT_EQ(encode_share(0, 0.3F, 4), 15);
  EXPECT_EQ(encode_share(1e-30F, 0.3F, 4), 15);
  EXPECT_EQ(encode_share(0.5F, 0.3F, 4), 0);
  EXPECT_EQ(decode_share(3, 0.4F), 0.05F);
  // Few large shares and many small ones, as attention is: powers of two lose less than even steps, relative to each share.
  std::vector<float> shares = {0.9F};
  for (int i = 0; i < 60; ++i) shares.push_back(0.1F * std::exp2(-0.25F * static_cast<float>(i)) / 6.3F);
  std::vector<float> rounded = shares;
  round_shares(rounded, 4, true);
  EXPECT_EQ(rounded[0], shares[0]);
  double by_power = 0, by_step = 0;
  for (std::size_t i = 1; i < shares.size(); ++i) {
    by_power += std::fabs(static_cast<double>(rounded[i]) / static_cast<double>(shares[i]) - 1);
    by_step += std::fabs(static_cast<double>(std::nearbyint(shares[i] * 15) / 15) / static_cast<double>(shares[i]) - 1);
  }
  EXPECT_LT(by_power, 0.5 * by_step);
}

}  // namespace
}  // namespace weft::quantize
