#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/merge_data.h"
#include "support/merge_driver.h"

// tvq, rtvq.
namespace weft::merge {
namespace {

using namespace weft::testing;

/// Codes and back, straight from the definition.
std::vector<double> through_grid(const std::vector<double>& t, int bits) {
  const auto [low, high] = std::minmax_element(t.begin(), t.end());
  if (t.empty() || *low == *high) return t;
  const double s = (std::exp2(bits) - 1) / (*high - *low);
  const double z = -std::nearbyint(s * *low);
  std::vector<double> out;
  for (const double x : t) out.push_back((std::clamp(std::nearbyint(s * x + z), 0.0, std::exp2(bits) - 1) - z) / s);
  return out;
}

std::vector<double> in_groups(const std::vector<double>& t, int bits, std::size_t group) {
  if (group == 0) return through_grid(t, bits);
  std::vector<double> out;
  for (std::size_t begin = 0; begin < t.size(); begin += group) {
    const auto end = std::min(t.size(), begin + group);
    const auto part = through_grid({t.begin() + static_cast<std::ptrdiff_t>(begin), t.begin() + static_cast<std::ptrdiff_t>(end)}, bits);
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

std::vector<std::vector<double>> vectors_of(const std::vector<std::vector<float>>& inputs) {
  std::vector<std::vector<double>> vectors;
  for (std::size_t k = 1; k < inputs.size(); ++k) {
    vectors.emplace_back();
    for (std::size_t i = 0; i < inputs[0].size(); ++i) vectors.back().push_back(static_cast<double>(inputs[k][i] - inputs[0][i]));
  }
  return vectors;
}

std::vector<double> reference(const TensorContext& context, const std::vector<std::vector<float>>& inputs) {
  auto vectors = vectors_of(inputs);
  const std::size_t n = inputs[0].size();
  const auto group = static_cast<std::size_t>(context.values.number("group_size"));
  std::vector<double> mean(n, 0.0);
  int bits = 0;
  if (context.values.find("bits")) {
    bits = static_cast<int>(context.values.number("bits"));
  } else {
    bits = static_cast<int>(context.values.number("offset_bits"));
    for (const auto& v : vectors)
      for (std::size_t i = 0; i < n; ++i) mean[i] += v[i];
    for (double& m : mean) m /= static_cast<double>(vectors.size());
    mean = in_groups(mean, static_cast<int>(context.values.number("base_bits")), group);
    for (auto& v : vectors)
      for (std::size_t i = 0; i < n; ++i) v[i] -= mean[i];
  }
  std::vector<double> out(inputs[0].begin(), inputs[0].end());
  for (std::size_t k = 0; k < vectors.size(); ++k) {
    const auto stored = in_groups(vectors[k], bits, group);
    const double factor = context.values.number("lambda") * context.inputs[k + 1].values.number("weight");
    for (std::size_t i = 0; i < n; ++i) out[i] += factor * (mean[i] + stored[i]);
  }
  return out;
}

TEST(Tvq, gives_the_worked_numbers) {
  const Method& method = method_named("tvq");
  TensorContext context = make_context(method, {2, 3}, 1, true);
  const std::vector<float> zero(6, 0.0F);
  const std::vector<float> t = {-0.04F, 0, 0.02F, 0.01F, 0.05F, -0.02F};
  context.values.set("bits", 2);
  expect_close(run_phases(method, context, {zero, t}), std::vector{-0.03, 0., 0.03, 0., 0.06, -0.03}, 1e-6, 3e-7);
  context.values.set("bits", 4);
  expect_close(run_phases(method, context, {zero, t}), std::vector{-0.042, 0., 0.018, 0.012, 0.048, -0.018}, 1e-6, 3e-7);
}

TEST(Rtvq, has_the_worked_errors) {
  const std::vector<float> zero(4, 0.0F);
  // (0.10, 0.02, -0.06, 0.04) and (0.06, -0.02, -0.02, 0.08) times 50: one code lies exactly between two, which decimal fractions in float32 would
  // hide.
  const std::vector<float> t1 = {5, 1, -3, 2};
  const std::vector<float> t2 = {3, -1, -1, 4};
  const auto error_of = [&](const char* name, double w1, double w2, const std::vector<float>& want) {
    const Method& method = method_named(name);
    TensorContext context = make_context(method, {4}, 2, true);
    if (method.name == "tvq") context.values.set("bits", 2);
    set_for_models(context, "weight", std::vector<double>{w1, w2});
    const auto got = run_phases(method, context, {zero, t1, t2});
    double worst = 0;
    for (std::size_t i = 0; i < 4; ++i) worst = std::max(worst, static_cast<double>(std::abs(got[i] - want[i])));
    return worst / 50;
  };
  EXPECT_NEAR(error_of("rtvq", 1, 0, t1), 0.00667, 5e-6);
  EXPECT_NEAR(error_of("rtvq", 0, 1, t2), 0.00667, 5e-6);
  EXPECT_NEAR(error_of("tvq", 1, 0, t1), 0.0200, 5e-6);
  EXPECT_NEAR(error_of("tvq", 0, 1, t2), 0.0133, 4e-5);
}

TEST(Tvq, errs_by_at_most_half_a_step) {
  const Method& method = method_named("tvq");
  TensorContext context = make_context(method, {50, 41}, 1, true);
  const std::size_t n = context.num_elements;
  const std::vector<float> zero(n, 0.0F);
  const auto t = normal_values(n, 3, 0.01);
  const auto [low, high] = std::minmax_element(t.begin(), t.end());
  for (int bits = 1; bits <= 16; ++bits) {
    context.values.set("bits", bits);
    const auto out = run_phases(method, context, {zero, t});
    const double step = (static_cast<double>(*high) - static_cast<double>(*low)) / (std::exp2(bits) - 1);
    // Plus the rounding of the result to float32.
    for (std::size_t i = 0; i < n; ++i)
      ASSERT_LE(std::abs(static_cast<double>(out[i]) - static_cast<double>(t[i])), 0.5 * step * (1 + 1e-9) + 0.05 * 0x1p-24) << bits;
  }
}

TEST(Tvq, equals_the_definition_for_bits_groups_and_shapes_in_any_order) {
  for (const char* name : {"tvq", "rtvq"}) {
    const Method& method = method_named(name);
    for (const Shape& shape : std::vector<Shape>{{}, {1}, {5}, {3, 7}, {4, 5, 6}, {130, 517}, {0}}) {
      for (const double group : {0.0, 1.0, 32.0, 100.0, 9000.0}) {
        TensorContext context = make_context(method, shape, 3, true);
        context.values.set("group_size", group);
        context.values.set("lambda", 0.8);
        set_for_models(context, "weight", std::vector<double>{1, -0.5, 0.25});
        const std::size_t n = context.num_elements;
        const auto base = normal_values(n, 1);
        const std::vector<std::vector<float>> inputs = {base, plus(base, normal_values(n, 2, 0.01)), plus(base, gridded_values(n, 3, 0.01, 0.01)),
                                                        base};
        const auto out = run_phases(method, context, inputs);
        const std::string what = std::string(name) + " n " + std::to_string(n) + " group " + std::to_string(group);
        expect_close(out, reference(context, inputs), 1e-6, 3e-7, what);
        expect_same_bits(run_phases(method, context, inputs, {.num_tallies = 3, .reverse_tiles = true}), out, what);
      }
    }
  }
}

TEST(Tvq, a_change_that_is_the_same_everywhere_is_stored_exactly) {
  const Method& method = method_named("tvq");
  const TensorContext context = make_context(method, {100}, 1, true);
  expect_same_bits(run_phases(method, context, {std::vector<float>(100, 1.0F), std::vector<float>(100, 1.25F)}), std::vector<float>(100, 1.25F));
  const auto base = normal_values(100, 1);
  expect_same_bits(run_phases(method, context, {base, base}), base);
}

TEST(Tvq, survives_ranges_from_the_smallest_to_the_largest) {
  const Method& method = method_named("tvq");
  const TensorContext context = make_context(method, {4}, 1, true);
  const std::vector<float> zero(4, 0.0F);
  for (const float size : {1e-45F, 1e-38F, 1e38F}) {
    const auto out = run_phases(method, context, {zero, {size, 0, 2 * size, size}});
    for (const float x : out) EXPECT_TRUE(std::isfinite(x)) << size;
    EXPECT_EQ(out[2], 2 * size);
  }
}

TEST(Rtvq, a_model_of_weight_zero_is_part_of_the_mean_but_not_of_the_sum) {
  const Method& residual = method_named("rtvq");
  TensorContext context = make_context(residual, {500}, 2, true);
  set_for_models(context, "weight", std::vector<double>{1, 0});
  EXPECT_TRUE(make_merge(residual, context)->reads_input(2));
  const std::vector<std::vector<float>> inputs = {normal_values(500, 1), normal_values(500, 2), normal_values(500, 3)};
  expect_close(run_phases(residual, context, inputs), reference(context, inputs), 1e-6, 3e-7);
  const Method& plain = method_named("tvq");
  context = make_context(plain, {500}, 2, true);
  set_for_models(context, "weight", std::vector<double>{1, 0});
  EXPECT_FALSE(make_merge(plain, context)->reads_input(2));
  set_for_models(context, "weight", 0);
  EXPECT_EQ(make_merge(plain, context)->copied_input(), 0U);
}

}  // namespace
}  // namespace weft::merge
