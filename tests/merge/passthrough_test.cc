#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

TEST(Passthrough, copies_the_stored_bytes_without_a_scale_and_with_scale_1) {
  MergeCase c(merge::passthrough(), kFixtureShape, {kFixtureA1});
  EXPECT_EQ(c.copied(), 0U);
  EXPECT_EQ(c.each("scale", {1}).copied(), 0U);
}

TEST(Passthrough, scales_each_element_and_rounds_once) {
  MergeCase c(merge::passthrough(), {8193}, {random_tensor(8193, 1)});
  const Tensor out = c.each("scale", {-0.3}).run();
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], static_cast<float>(static_cast<double>(c.inputs[0][i]) * -0.3)) << i;
}

TEST(Passthrough, zeroes_with_scale_0) {
  MergeCase c(merge::passthrough(), kFixtureShape, {kFixtureA1});
  for (const float x : c.each("scale", {0}).run()) EXPECT_EQ(x, 0.0F);
}

TEST(Passthrough, refuses_two_models) {
  EXPECT_THAT(MergeCase(merge::passthrough(), kFixtureShape, {kFixtureA1, kFixtureA2}).refusal(), ::testing::HasSubstr("has 2"));
}

}  // namespace
}  // namespace weft::testing
