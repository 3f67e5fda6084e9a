#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "weft/error.h"

namespace weft::model {
namespace {

const std::vector<float> kLogits = {1.0F, 3.0F, 2.0F, 3.0F, -1.0F};

std::map<std::uint32_t, double> shares(const Sampling& sampling, std::span<const std::uint32_t> seen = {}, int draws = 20'000) {
  Sampler sampler(sampling, 5);
  std::map<std::uint32_t, double> counts;
  for (int i = 0; i < draws; ++i) counts[sampler.choose(kLogits, seen)] += 1.0 / draws;
  return counts;
}

TEST(Sampler, temperature_zero_takes_the_likeliest_and_of_equals_the_lower_id) {
  Sampler sampler({.temperature = 0}, 1);
  EXPECT_EQ(sampler.choose(kLogits, {}), 1U);
  const std::uint32_t seen[] = {1};
  Sampler penal({.temperature = 0, .repetition_penalty = 1.5}, 1);
  EXPECT_EQ(penal.choose(kLogits, seen), 3U) << "3 / 1.5 is below 3";
}

TEST(Sampler, draws_have_the_shares_of_softmax) {
  double total = 0;
  for (const float logit : kLogits) total += std::exp(static_cast<double>(logit) / 0.7);
  // 4 standard deviations of 20,000 draws are below 0.0142.
  for (const auto& [id, share] : shares({.temperature = 0.7}))
    EXPECT_NEAR(share, std::exp(static_cast<double>(kLogits[id]) / 0.7) / total, 0.0142) << id;
}

TEST(Sampler, top_k_top_p_and_min_p_cut_where_they_say) {
  EXPECT_EQ(shares({.top_k = 1}).size(), 1U);
  EXPECT_EQ(shares({.top_k = 3}).size(), 3U);
  // Shares: 0.397, 0.397, 0.146, 0.054, 0.007.
  EXPECT_EQ(shares({.top_p = 0.39}).size(), 1U);
  EXPECT_EQ(shares({.top_p = 0.41}).size(), 2U);
  EXPECT_EQ(shares({.top_p = 0.80}).size(), 3U);
  // Relative to the likeliest: 1, 1, 0.368, 0.135, 0.018.
  EXPECT_EQ(shares({.min_p = 0.2}).size(), 3U);
  EXPECT_EQ(shares({.min_p = 1}).size(), 2U);
}

TEST(Sampler, a_penalty_makes_negative_logits_more_so) {
  const std::uint32_t seen[] = {4, 4, 4};
  EXPECT_LT(shares({.repetition_penalty = 4}, seen)[4], shares({})[4]) << "-1 became -4";
}

TEST(Sampler, the_same_seed_draws_the_same_and_another_does_not) {
  const auto draw = [](std::uint64_t seed, std::uint32_t stream) {
    Sampler sampler({}, seed, stream);
    std::vector<std::uint32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.choose(kLogits, {}));
    return ids;
  };
  EXPECT_EQ(draw(1, 0), draw(1, 0));
  EXPECT_NE(draw(1, 0), draw(2, 0));
  EXPECT_NE(draw(1, 0), draw(1, 1));
}

TEST(Sampler, numbers_that_make_no_sense_are_refused) {
  EXPECT_THROW(Sampler({.temperature = -1}, 0), Error);
  EXPECT_THROW(Sampler({.temperature = NAN}, 0), Error);
  EXPECT_THROW(Sampler({.top_p = 0}, 0), Error);
  EXPECT_THROW(Sampler({.min_p = 1.1}, 0), Error);
  EXPECT_THROW(Sampler({.repetition_penalty = 0}, 0), Error);
}

}  // namespace
}  // namespace weft::model
