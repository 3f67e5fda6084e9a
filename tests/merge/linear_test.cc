#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

MergeCase linear_of(const Shape& shape, const std::vector<Tensor>& models, const std::vector<double>& weights, bool normalize = true) {
  MergeCase c(merge::linear(), shape, models);
  c.each("weight", weights).set("normalize", normalize ? 1 : 0);
  return c;
}

TEST(Linear, gives_the_worked_numbers_of_the_sheet) {
  expect_printed(linear_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {1, 0.5}).run(), {1.233333, -0.166667, -0.933333, 2.083333, -1.933333, 0.2});
  expect_printed(linear_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {1, 0.5}, false).run(), {1.85, -0.25, -1.4, 3.125, -2.9, 0.3});
}

TEST(Linear, averages_copies_of_a_model_to_that_model_bit_for_bit) {
  const Tensor model = random_tensor(10000, 1, 1e-3F);
  for (std::size_t copies = 1; copies <= 17; ++copies) {
    std::vector<double> weights;
    for (std::size_t i = 0; i < copies; ++i) weights.push_back(0.1 + 0.37 * static_cast<double>(i));
    ASSERT_EQ(linear_of({10000}, std::vector<Tensor>(copies, model), weights).run(), model) << copies;
  }
}

TEST(Linear, equals_the_definition_in_double_for_any_shape) {
  for (const Shape& shape : telling_shapes()) {
    const std::size_t n = elements_of(shape);
    const std::vector<Tensor> models = {random_tensor(n, 1), random_tensor(n, 2, 100), random_tensor(n, 3)};
    const std::vector<double> weights = {0.3, -1.5, 2};
    std::vector<double> want(n);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t k = 0; k < 3; ++k) want[i] += weights[k] / 0.8 * static_cast<double>(models[k][i]);
    expect_rounded_once(linear_of(shape, models, weights).run(), want, 1e-15, to_string(shape));
  }
}

TEST(Linear, copies_when_one_weight_alone_is_not_zero) {
  EXPECT_EQ(linear_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {0, 49}).copied(), 1U);
  EXPECT_EQ(linear_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {1, 0}, false).copied(), 0U);
  EXPECT_EQ(linear_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {2, 0}, false).copied(), std::nullopt);
}

TEST(Linear, does_not_read_models_of_weight_zero) {
  MergeCase c = linear_of({2}, {{1, 2}, {std::nanf(""), 1}, {3, 4}}, {1, 0, 1});
  const auto phases = merge::make_merge(c.method, c.context);
  EXPECT_TRUE(phases->reads_input(0));
  EXPECT_FALSE(phases->reads_input(1));
  const std::vector<const float*> inputs = {c.inputs[0].data(), c.inputs[1].data(), c.inputs[2].data()};
  Tensor out(2);
  phases->map({0, 2, inputs}, out);
  EXPECT_EQ(out, (Tensor{2, 3}));
  // Without any weight there is nothing to read.
  EXPECT_EQ(linear_of({2}, {{1, 2}}, {0}, false).run(), (Tensor{0, 0}));
}

TEST(Linear, refuses_to_normalise_weights_that_sum_to_zero) {
  EXPECT_THAT(linear_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {1, -1}).refusal(), ::testing::HasSubstr("sum to zero"));
  expect_printed(linear_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {1, -1}, false).run(), {0.8, -0.1, -0.2, 0.05, 1, 0});
}

TEST(Linear, asks_a_base_for_a_weight_too) {
  MergeCase c(merge::linear(), kFixtureShape, {kFixtureA1}, kFixtureBase);
  c.context.inputs[1].values.set("weight", 1);
  EXPECT_THAT(c.refusal(), ::testing::HasSubstr("'weight' of model 'base'"));
}

}  // namespace
}  // namespace weft::testing
