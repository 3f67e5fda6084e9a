#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/merge_data.h"
#include "support/merge_driver.h"

namespace weft::merge {
namespace {

using namespace weft::testing;

TEST(Negmerge, subtracts_the_mean_where_all_signs_agree) {
  const Method& method = method_named("negmerge");
  const TensorContext context = make_context(method, {4}, 3, true);
  const auto out = run_phases(method, context, {{0, 0, 0, 0}, {0.2F, -0.1F, 0.3F, 0}, {0.4F, -0.3F, -0.1F, 0.2F}, {0.6F, -0.2F, 0.2F, 0.1F}});
  expect_close(out, std::vector{-0.4, 0.2, 0., 0.}, 1e-6, 1e-7);
}

TEST(Negmerge, one_model_is_plain_negation) {
  const Method& method = method_named("negmerge");
  TensorContext context = make_context(method, {1000}, 1, true);
  context.values.set("lambda", 0.5);
  const auto base = normal_values(1000, 1);
  const auto model = normal_values(1000, 2);
  std::vector<double> want(1000);
  for (std::size_t i = 0; i < want.size(); ++i) want[i] = 1.5 * static_cast<double>(base[i]) - 0.5 * static_cast<double>(model[i]);
  expect_close(run_phases(method, context, {base, model}), want, 1e-6, 3e-7);
}

TEST(Negmerge, equals_the_definition_on_many_models_and_keeps_other_weights_bit_for_bit) {
  const Method& method = method_named("negmerge");
  TensorContext context = make_context(method, {70, 90}, 4, true);
  context.values.set("lambda", 0.35);
  const std::size_t n = context.num_elements;
  const auto base = normal_values(n, 1);
  std::vector<std::vector<float>> inputs = {base};
  for (std::uint64_t k = 0; k < 4; ++k) inputs.push_back(plus(base, gridded_values(n, 2 + k, 0.01, 0.005)));
  std::vector<double> want(n);
  std::size_t agreed = 0;
  const auto out = run_phases(method, context, inputs);
  for (std::size_t i = 0; i < n; ++i) {
    int signs = 0;
    double sum = 0;
    for (std::size_t k = 1; k < inputs.size(); ++k) {
      const float d = inputs[k][i] - base[i];
      signs += (d > 0) - (d < 0);
      sum += static_cast<double>(d);
    }
    want[i] = static_cast<double>(base[i]) - (std::abs(signs) == 4 ? 0.35 * sum / 4 : 0.0);
    if (std::abs(signs) == 4) {
      ++agreed;
    } else {
      ASSERT_EQ(out[i], base[i]);
    }
  }
  EXPECT_GT(agreed, n / 50);
  expect_close(out, want, 1e-6, 3e-7);
}

TEST(Negmerge, says_when_nothing_agrees) {
  const Method& method = method_named("negmerge");
  TensorContext context = make_context(method, {2}, 2, true, "layer.weight");
  std::vector<std::string> warnings;
  context.warnings = &warnings;
  expect_same_bits(run_phases(method, context, {{1, 1}, {2, 1}, {0, 1}}), std::vector<float>{1, 1});
  EXPECT_THAT(warnings, ::testing::ElementsAre(::testing::HasSubstr("'layer.weight'")));
  warnings.clear();
  static_cast<void>(run_phases(method, context, {{1, 1}, {1, 1}, {1, 1}}));
  static_cast<void>(run_phases(method, context, {{1, 1}, {2, 1}, {3, 1}}));
  EXPECT_TRUE(warnings.empty());
}

TEST(Negmerge, lambda_zero_copies_the_base) {
  const Method& method = method_named("negmerge");
  TensorContext context = make_context(method, {2}, 2, true);
  context.values.set("lambda", 0);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 0U);
}

}  // namespace
}  // namespace weft::merge
