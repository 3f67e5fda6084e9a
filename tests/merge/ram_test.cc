#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/merge_data.h"
#include "support/merge_driver.h"

// ram, ramplus_tl.
namespace weft::merge {
namespace {

using namespace weft::testing;

const std::vector<float> kZero(6, 0.0F);
const std::vector<float> kSparse1 = {0.5F, 0, 0, 0.1F, 0, -0.3F};
const std::vector<float> kSparse2 = {-0.3F, 0, 0.2F, 0, 0, -0.1F};

std::vector<double> reference(const TensorContext& context, const std::vector<std::vector<float>>& inputs, bool plus_tl) {
  const std::size_t n = inputs[0].size();
  const std::size_t num_models = inputs.size() - 1;
  const auto epsilon = static_cast<float>(context.values.number("epsilon"));
  std::vector<int> count(n, 0);
  const auto active = [&](std::size_t k, std::size_t i) { return std::abs(inputs[k + 1][i] - inputs[0][i]) > epsilon; };
  for (std::size_t k = 0; k < num_models; ++k)
    for (std::size_t i = 0; i < n; ++i) count[i] += active(k, i);
  std::vector<double> out(inputs[0].begin(), inputs[0].end());
  for (std::size_t k = 0; k < num_models; ++k) {
    double shared = 0;
    double unique = 0;
    for (std::size_t i = 0; i < n; ++i)
      if (active(k, i)) (count[i] > 1 ? shared : unique) += 1;
    double factor = 1;
    if (plus_tl) {
      const double ratio = shared / std::max(unique, context.values.number("epsilon"));
      factor += context.values.number("r") * std::clamp(ratio, 0.0, context.values.number("alpha"));
    }
    for (std::size_t i = 0; i < n; ++i)
      if (active(k, i)) out[i] += static_cast<double>(inputs[k + 1][i] - inputs[0][i]) * (count[i] == 1 ? factor : 1.0 / count[i]);
  }
  return out;
}

TEST(Ram, averages_shared_changes_and_keeps_unique_ones) {
  const Method& method = method_named("ram");
  const auto out = run_phases(method, make_context(method, {2, 3}, 2, true), {kZero, kSparse1, kSparse2});
  expect_close(out, std::vector{0.1, 0., 0.2, 0.1, 0., -0.2}, 1e-6, 3e-7);
}

TEST(RamplusTl, amplifies_unique_changes_by_the_shared_ones) {
  const Method& method = method_named("ramplus_tl");
  TensorContext context = make_context(method, {2, 3}, 2, true);
  expect_close(run_phases(method, context, {kZero, kSparse1, kSparse2}), std::vector{0.1, 0., 0.204, 0.102, 0., -0.2}, 1e-6, 3e-7);
  context.values.set("r", 0.5);
  context.values.set("alpha", 1);
  expect_close(run_phases(method, context, {kZero, kSparse1, kSparse2}), std::vector{0.1, 0., 0.3, 0.15, 0., -0.2}, 1e-6, 3e-7);
}

TEST(RamplusTl, a_model_without_unique_changes_is_not_divided_by_zero) {
  const Method& method = method_named("ramplus_tl");
  TensorContext context = make_context(method, {4}, 2, true);
  const std::vector<float> zero(4, 0.0F);
  const std::vector<float> same = {1, 2, 0, 0};
  expect_same_bits(run_phases(method, context, {zero, same, same}), same);
  context.values.set("epsilon", 0);
  expect_same_bits(run_phases(method, context, {zero, same, same}), same);
  expect_same_bits(run_phases(method, context, {zero, zero, zero}), zero);
}

TEST(Ram, equals_the_definition_on_sparse_and_dense_changes_in_any_order) {
  for (const char* name : {"ram", "ramplus_tl"}) {
    const Method& method = method_named(name);
    for (const Shape& shape : std::vector<Shape>{{}, {1}, {5}, {3, 7}, {200, 97}, {4, 5, 6}, {2049}, {0}}) {
      TensorContext context = make_context(method, shape, 3, true);
      const std::size_t n = context.num_elements;
      const auto base = normal_values(n, 1);
      std::vector<std::vector<float>> inputs = {base};
      for (std::uint64_t k = 2; k < 5; ++k) inputs.push_back(plus(base, gridded_values(n, k, 0.01, 0.02)));
      for (const double epsilon : {1e-5, 0.015}) {
        context.values.set("epsilon", epsilon);
        const auto out = run_phases(method, context, inputs);
        expect_close(out, reference(context, inputs, method.name == "ramplus_tl"), 1e-6, 3e-7, name);
        expect_same_bits(run_phases(method, context, inputs, {.num_tallies = 3, .reverse_tiles = true}), out, name);
      }
    }
  }
}

}  // namespace
}  // namespace weft::merge
