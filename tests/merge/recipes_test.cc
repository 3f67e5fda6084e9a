#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/merge_data.h"
#include "support/merge_driver.h"
#include "weft/error.h"

// Methods that are one weighted sum: task_analogy, time_vectors, transfer, lcsc, restore_layers.
namespace weft::merge {
namespace {

using namespace weft::testing;
using ::testing::HasSubstr;

constexpr std::size_t kSize = 3000;

/// The sum of factors times tensors, in double.
std::vector<double> sum_of(const std::vector<double>& factors, const std::vector<std::vector<float>>& tensors) {
  std::vector<double> sum(tensors[0].size(), 0.0);
  for (std::size_t k = 0; k < tensors.size(); ++k)
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += factors[k] * static_cast<double>(tensors[k][i]);
  return sum;
}

std::vector<std::vector<float>> some_tensors(std::size_t count) {
  std::vector<std::vector<float>> tensors;
  for (std::size_t k = 0; k < count; ++k) tensors.push_back(normal_values(kSize, k + 1));
  return tensors;
}

TensorContext sized_context(const char* name, int num_models, bool with_base = true) {
  return make_context(method_named(name), {static_cast<std::int64_t>(kSize)}, num_models, with_base);
}

// ---- task_analogy

TEST(TaskAnalogy, adds_the_second_less_the_first_to_the_third) {
  const auto inputs = some_tensors(4);
  TensorContext context = sized_context("task_analogy", 3);
  expect_close(run_phases(method_named("task_analogy"), context, inputs), sum_of({0, -1, 1, 1}, inputs), 1e-6, 1e-7);
  context.values.set("lambda", 0.4);
  expect_close(run_phases(method_named("task_analogy"), context, inputs), sum_of({0.6, -0.4, 0.4, 0.4}, inputs), 1e-6, 1e-7);
}

TEST(TaskAnalogy, is_what_task_arithmetic_gives_with_weights_minus_one_one_one) {
  const auto inputs = some_tensors(4);
  TensorContext context = sized_context("task_arithmetic", 3);
  set_for_models(context, "weight", std::vector<double>{-1, 1, 1});
  expect_same_bits(run_phases(method_named("task_analogy"), sized_context("task_analogy", 3), inputs),
                   run_phases(method_named("task_arithmetic"), context, inputs));
}

TEST(TaskAnalogy, if_the_first_equals_the_second_the_answer_is_the_third) {
  auto inputs = some_tensors(4);
  inputs[2] = inputs[1];
  expect_same_bits(run_phases(method_named("task_analogy"), sized_context("task_analogy", 3), inputs), inputs[3]);
}

// ---- time_vectors

TEST(TimeVectors, positions_zero_and_one_copy_the_models) {
  const Method& method = method_named("time_vectors");
  TensorContext context = sized_context("time_vectors", 2);
  context.values.set("position", 0);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 1U);
  context.values.set("position", 1);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 2U);
}

TEST(TimeVectors, moves_along_the_line_between_the_models_and_beyond) {
  const Method& method = method_named("time_vectors");
  const auto inputs = some_tensors(3);
  TensorContext context = sized_context("time_vectors", 2);
  for (const double position : {0.1, 0.5, 0.7, 1.5, -0.3}) {
    context.values.set("position", position);
    context.values.set("lambda", 1);
    expect_close(run_phases(method, context, inputs), sum_of({0, 1 - position, position}, inputs), 1e-6, 1e-7);
    EXPECT_FALSE(make_merge(method, context)->reads_input(0));
    context.values.set("lambda", 0.5);
    expect_close(run_phases(method, context, inputs), sum_of({0.5, (1 - position) / 2, position / 2}, inputs), 1e-6, 1e-7);
  }
}

// ---- transfer

TEST(Transfer, an_equal_target_becomes_the_fine_tune_bit_for_bit) {
  auto inputs = some_tensors(3);
  for (std::size_t i = 0; i < kSize; i += 5) inputs[1][i] *= 1e-12F;  // too small to survive a subtraction from the base
  inputs[0][1] = 0;
  inputs[1][1] = -0.0F;
  inputs[2] = inputs[0];
  expect_same_bits(run_phases(method_named("transfer"), sized_context("transfer", 2), inputs), inputs[1]);
}

TEST(Transfer, an_unchanged_weight_stays_the_targets_bit_for_bit) {
  auto inputs = some_tensors(3);
  inputs[1] = inputs[0];
  TensorContext context = sized_context("transfer", 2);
  expect_same_bits(run_phases(method_named("transfer"), context, inputs), inputs[2]);
  context.values.set("lambda", 0.3);
  expect_same_bits(run_phases(method_named("transfer"), context, inputs), inputs[2]);
}

TEST(Transfer, adds_the_change_and_does_not_care_which_is_which) {
  const auto inputs = some_tensors(3);
  const Method& method = method_named("transfer");
  TensorContext context = sized_context("transfer", 2);
  const auto want = sum_of({-1, 1, 1}, inputs);
  expect_close(run_phases(method, context, inputs), want, 1e-6, 1e-7);
  expect_close(run_phases(method, context, {inputs[0], inputs[2], inputs[1]}), want, 1e-6, 1e-7);
  context.values.set("lambda", 0.25);
  expect_close(run_phases(method, context, inputs), sum_of({-0.25, 0.25, 1}, inputs), 1e-6, 1e-7);
  context.values.set("lambda", 0);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 2U);
}

// ---- lcsc

TEST(Lcsc, one_coefficient_of_one_copies_that_checkpoint) {
  TensorContext context = sized_context("lcsc", 4, false);
  set_for_models(context, "weight", std::vector<double>{0, 0, 1, 0});
  EXPECT_EQ(make_merge(method_named("lcsc"), context)->copied_input(), 2U);
}

TEST(Lcsc, equal_checkpoints_return_themselves_for_any_coefficients) {
  TensorContext context = sized_context("lcsc", 3, false);
  set_for_models(context, "weight", std::vector<double>{5.3, -7.4, 3.1000001});
  const auto w = normal_values(kSize, 1);
  expect_same_bits(run_phases(method_named("lcsc"), context, {w, w, w}), w);
}

TEST(Lcsc, combines_with_negative_coefficients) {
  TensorContext context = sized_context("lcsc", 4, false);
  const std::vector<double> weights = {0, -0.5, 0.25, 1.25};
  set_for_models(context, "weight", weights);
  const auto inputs = some_tensors(4);
  expect_close(run_phases(method_named("lcsc"), context, inputs), sum_of(weights, inputs), 1e-6, 1e-7);
  EXPECT_FALSE(make_merge(method_named("lcsc"), context)->reads_input(0));
}

TEST(Lcsc, refuses_coefficients_that_do_not_sum_to_one) {
  TensorContext context = sized_context("lcsc", 2, false);
  set_for_models(context, "weight", std::vector<double>{0.5, 0.4});
  try {
    static_cast<void>(make_merge(method_named("lcsc"), context));
    FAIL() << "0.9 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(error.place().key, "weight");
    EXPECT_THAT(error.message(), HasSubstr("sum to 0.9"));
  }
}

// ---- restore_layers

TensorContext restoring(int layer, double first, double last, double amount = 1) {
  TensorContext context = sized_context("restore_layers", 1);
  context.layer = layer;
  context.num_layers = 6;
  context.values.set("first_layer", first);
  context.values.set("last_layer", last);
  context.values.set("amount", amount);
  return context;
}

TEST(RestoreLayers, copies_the_base_inside_the_range_and_the_fine_tune_outside) {
  const Method& method = method_named("restore_layers");
  for (int layer = -1; layer < 6; ++layer) {
    const std::size_t want = layer >= 2 && layer <= 4 ? 0 : 1;
    EXPECT_EQ(make_merge(method, restoring(layer, 2, 4))->copied_input(), want) << layer;
    EXPECT_EQ(make_merge(method, restoring(layer, 4, 2))->copied_input(), 1U) << "an empty range, layer " << layer;
    EXPECT_EQ(make_merge(method, restoring(layer, 0, 5))->copied_input(), layer >= 0 ? 0U : 1U) << "every layer, layer " << layer;
    EXPECT_EQ(make_merge(method, restoring(layer, 2, 4, 0))->copied_input(), 1U) << "amount 0, layer " << layer;
  }
}

TEST(RestoreLayers, goes_part_of_the_way) {
  const auto inputs = some_tensors(2);
  expect_close(run_phases(method_named("restore_layers"), restoring(3, 2, 4, 0.3), inputs), sum_of({0.3, 0.7}, inputs), 1e-6, 1e-7);
}

TEST(RestoreLayers, refuses_layers_that_do_not_exist) {
  try {
    static_cast<void>(make_merge(method_named("restore_layers"), restoring(0, 2, 6)));
    FAIL() << "layer 6 of 6 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(error.place().key, "last_layer");
    EXPECT_THAT(error.message(), HasSubstr("0 to 5"));
  }
}

}  // namespace
}  // namespace weft::merge
