#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/merge_data.h"
#include "support/merge_driver.h"
#include "weft/error.h"

namespace weft::merge {
namespace {

using namespace weft::testing;

TensorContext context_with(Shape shape, int num_models, double n, double m) {
  TensorContext context = make_context(method_named("cabs"), std::move(shape), num_models, true);
  context.values.set("n", n);
  context.values.set("m", m);
  return context;
}

/// By sorting each block; masks[k][i]: whether model k keeps entry i.
std::vector<double> reference(const TensorContext& context, const std::vector<std::vector<float>>& inputs, std::vector<std::vector<bool>>& masks) {
  const auto n = static_cast<std::size_t>(context.values.number("n"));
  const auto m = static_cast<std::size_t>(context.values.number("m"));
  const std::vector<float>& base = inputs[0];
  std::vector<double> out(base.begin(), base.end());
  std::vector<bool> taken(base.size(), false);
  masks.assign(inputs.size() - 1, std::vector<bool>(base.size(), false));
  for (std::size_t k = 1; k < inputs.size(); ++k) {
    std::vector<float> d(base.size());
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = taken[i] ? 0.0F : inputs[k][i] - base[i];
    for (std::size_t begin = 0; begin < d.size(); begin += m) {
      const std::size_t length = std::min(m, d.size() - begin);
      const auto quota = static_cast<std::size_t>(std::ceil(static_cast<double>(n * length) / static_cast<double>(m)));
      std::vector<std::size_t> order(length);
      std::iota(order.begin(), order.end(), begin);
      std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return std::abs(d[i]) > std::abs(d[j]); });
      for (std::size_t r = 0; r < quota; ++r) {
        const std::size_t i = order[r];
        if (d[i] == 0) continue;
        masks[k - 1][i] = true;
        taken[i] = true;
        out[i] += context.values.number("lambda") * context.inputs[k].values.number("weight") * static_cast<double>(d[i]);
      }
    }
  }
  return out;
}

TEST(Cabs, keeps_the_largest_of_each_block_that_no_earlier_model_kept) {
  const std::vector<float> v1 = {0.5F, -0.1F, 0.2F, 0.4F, 0.05F, -0.6F, 0.3F, 0.1F};
  const std::vector<float> v2 = {0.6F, 0.2F, -0.3F, 0.1F, -0.2F, 0.5F, 0.4F, 0};
  const std::vector<float> zero(8, 0.0F);
  const Method& method = method_named("cabs");
  expect_same_bits(run_phases(method, context_with({8}, 2, 1, 4), {zero, v1, zero}), std::vector<float>{0.5F, 0, 0, 0, 0, -0.6F, 0, 0});
  expect_same_bits(run_phases(method, context_with({8}, 2, 1, 4), {zero, v1, v2}), std::vector<float>{0.5F, 0, -0.3F, 0, 0, -0.6F, 0.4F, 0});
  // The order of the models decides who gets what.
  expect_same_bits(run_phases(method, context_with({8}, 2, 1, 4), {zero, v2, v1}), std::vector<float>{0.6F, 0, 0, 0.4F, 0, 0.5F, 0.3F, 0});
}

TEST(Cabs, equals_sorting_and_never_overlaps_for_many_block_sizes) {
  const Method& method = method_named("cabs");
  struct Block {
    double n, m;
  };
  for (const Block block : {Block{1, 4}, Block{64, 256}, Block{3, 5}, Block{7, 7}, Block{1, 1}, Block{1, 1000}, Block{100, 9000}}) {
    for (const Shape& shape : std::vector<Shape>{{1}, {37, 11}, {5, 3, 7}, {130, 517}, {0}}) {
      TensorContext context = context_with(shape, 3, block.n, block.m);
      context.values.set("lambda", 0.7);
      set_for_models(context, "weight", std::vector<double>{1, -0.5, 2});
      const std::size_t n = context.num_elements;
      const auto base = normal_values(n, 1);
      const std::vector<std::vector<float>> inputs = {base, plus(base, normal_values(n, 2, 0.1)), plus(base, gridded_values(n, 3, 0.1, 0.125)),
                                                      plus(base, gridded_values(n, 4, 0.1, 0.0625))};
      std::vector<std::vector<bool>> masks;
      const auto want = reference(context, inputs, masks);
      const std::string what = std::to_string(block.n) + ":" + std::to_string(block.m) + " n " + std::to_string(n);
      const auto out = run_phases(method, context, inputs);
      expect_close(out, want, 1e-6, 3e-7, what);
      expect_same_bits(run_phases(method, context, inputs, {.reverse_tiles = true}), out, what);
      for (std::size_t i = 0; i < n; ++i) ASSERT_LE(masks[0][i] + masks[1][i] + masks[2][i], 1);
    }
  }
}

TEST(Cabs, what_one_model_keeps_whole_is_that_model_bit_for_bit) {
  const Method& method = method_named("cabs");
  const auto model = normal_values(1000, 2, 1e-6);
  expect_same_bits(run_phases(method, context_with({1000}, 1, 8, 8), {normal_values(1000, 1), model}), model);
}

TEST(Cabs, refuses_more_entries_than_a_block_has) {
  try {
    static_cast<void>(make_merge(method_named("cabs"), context_with({8}, 1, 5, 4)));
    FAIL() << "5 of 4 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(error.place().key, "n");
    EXPECT_NE(error.message().find("more than the 4 entries"), std::string::npos);
  }
}

TEST(Cabs, a_weight_of_zero_leaves_a_model_out) {
  const Method& method = method_named("cabs");
  TensorContext context = context_with({1000}, 2, 64, 256);
  set_for_models(context, "weight", std::vector<double>{0, 1});
  EXPECT_FALSE(make_merge(method, context)->reads_input(1));
  const std::vector<std::vector<float>> inputs = {normal_values(1000, 1), normal_values(1000, 2), normal_values(1000, 3)};
  expect_same_bits(run_phases(method, context, inputs), run_phases(method, context_with({1000}, 1, 64, 256), {inputs[0], inputs[2]}));
  set_for_models(context, "weight", 0);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 0U);
}

}  // namespace
}  // namespace weft::merge
