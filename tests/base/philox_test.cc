#include "base/philox.h"

#include <gtest/gtest.h>

#include <vector>

namespace weft {
namespace {

TEST(Philox, counter_zero_and_key_zero_give_the_published_words) {
  const std::array<std::uint32_t, 4> expected = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), expected);
}

TEST(Philox, every_word_of_counter_and_key_matters) {
  // The other known answers of the paper's own library (Random123).
  const std::array<std::uint32_t, 4> ones = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), ones);
  const std::array<std::uint32_t, 4> pi = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}), pi);
}

TEST(Fnv1a64, gives_the_published_values) {
  EXPECT_EQ(fnv1a64(""), 0xcbf29ce484222325u);
  EXPECT_EQ(fnv1a64("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(fnv1a64("foobar"), 0x85944171f73967e8u);
}

void expect_first_elements(std::uint32_t model, const std::vector<float>& expected) {
  const RandomStream stream = RandomStream::of(42, "w", model, 0);
  for (std::size_t e = 0; e < expected.size(); ++e) EXPECT_NEAR(stream.uniform(e), expected[e], 5e-7) << "element " << e;  // printed to six digits
}

TEST(RandomStream, has_the_known_answers_of_seed_42_for_two_models) {
  expect_first_elements(0, {0.728099f, 0.282851f, 0.269707f, 0.592538f, 0.877912f, 0.063511f});
  expect_first_elements(1, {0.851311f, 0.420428f, 0.295106f, 0.812293f, 0.454261f, 0.587455f});
}

TEST(RandomStream, is_a_multiple_of_two_to_the_minus_24_below_one) {
  const RandomStream stream = RandomStream::of(7, "layers.0.weight", 3, 1);
  for (std::uint64_t e = 0; e < 10'000; ++e) {
    const float u = stream.uniform(e);
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    ASSERT_EQ(u * 0x1p24f, static_cast<float>(static_cast<std::uint32_t>(u * 0x1p24f)));
  }
}

TEST(RandomStream, elements_beyond_two_to_the_34_do_not_repeat_the_first_ones) {
  const RandomStream stream = RandomStream::of(1, "w", 0, 0);
  const auto first = philox4x32({0, 1, 0, 0}, {static_cast<std::uint32_t>(stream.key), static_cast<std::uint32_t>(stream.key >> 32)});
  EXPECT_EQ(stream.uniform(std::uint64_t{1} << 34), static_cast<float>(first[0] >> 8) * 0x1p-24f);
  EXPECT_NE(stream.uniform(std::uint64_t{1} << 34), stream.uniform(0));
}

TEST(RandomStream, differs_by_seed_name_model_and_stream) {
  const float u = RandomStream::of(1, "w", 0, 0).uniform(0);
  EXPECT_NE(u, RandomStream::of(2, "w", 0, 0).uniform(0));
  EXPECT_NE(u, RandomStream::of(1, "v", 0, 0).uniform(0));
  EXPECT_NE(u, RandomStream::of(1, "w", 1, 0).uniform(0));
  EXPECT_NE(u, RandomStream::of(1, "w", 0, 1).uniform(0));
}

}  // namespace
}  // namespace weft
