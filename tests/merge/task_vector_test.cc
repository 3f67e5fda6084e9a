#include "merge/task_vector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "base/philox.h"
#include "support/merge_data.h"
#include "support/merge_driver.h"
#include "weft/error.h"

// task_arithmetic, ties, dare_linear, dare_ties, della_linear, della, breadcrumbs, breadcrumbs_ties.
namespace weft::merge {
namespace {

using namespace weft::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The tolerance of float32 results against the peer: the sheets' own.
constexpr double kRelative = 1e-6;
constexpr double kOfLargest = 3e-7;

struct Case {
  const char* name;
  Keep keep;
  bool consensus;
};
constexpr Case kCases[] = {
    {"task_arithmetic", Keep::all, false},         {"ties", Keep::largest, true},
    {"dare_linear", Keep::random, false},          {"dare_ties", Keep::random, true},
    {"della_linear", Keep::random_by_rank, false}, {"della", Keep::random_by_rank, true},
    {"breadcrumbs", Keep::middle, false},          {"breadcrumbs_ties", Keep::middle, true},
};

// ---- the reference: slow, by sorting, in double except where a choice is made (signs are voted on in float32)

/// Positions along axis 1, line by line; a vector is one line.
std::vector<std::vector<std::size_t>> lines_of(const Shape& shape, std::size_t n) {
  const auto length = shape.size() < 2 ? n : static_cast<std::size_t>(shape[1]);
  std::size_t stride = 1;
  for (std::size_t axis = 2; axis < shape.size(); ++axis) stride *= static_cast<std::size_t>(shape[axis]);
  std::vector<std::vector<std::size_t>> lines;
  for (std::size_t slab = 0; slab < n; slab += length * stride)
    for (std::size_t k = 0; k < stride; ++k) {
      lines.emplace_back();
      for (std::size_t i = 0; i < length; ++i) lines.back().push_back(slab + i * stride + k);
    }
  return lines;
}

std::vector<std::size_t> ascending(const std::vector<float>& d, std::vector<std::size_t> positions) {
  std::stable_sort(positions.begin(), positions.end(), [&](std::size_t i, std::size_t j) { return std::abs(d[i]) < std::abs(d[j]); });
  return positions;
}

void sparsify(std::vector<float>& d, const Case& method, const TensorContext& context, const Input& input) {
  const auto n = d.size();
  const double density = input.values.number("density");
  if (method.keep == Keep::all || density >= 1) return;
  std::vector<bool> kept(n, false);
  std::vector<double> divided_by(n, 1.0);
  std::vector<std::size_t> all(n);
  std::iota(all.begin(), all.end(), std::size_t{0});
  const RandomStream stream = RandomStream::of(context.seed, context.name, input.index, 0);
  const auto unbiased = [&] { return context.values.flag("rescale") && context.values.flag("unbiased_rescale"); };
  if (density > 0) {
    switch (method.keep) {
      case Keep::all:
        break;
      case Keep::largest: {
        std::stable_sort(all.begin(), all.end(), [&](std::size_t i, std::size_t j) { return std::abs(d[i]) > std::abs(d[j]); });
        const auto k = std::max<std::size_t>(1, static_cast<std::size_t>(density * static_cast<double>(n)));
        for (std::size_t r = 0; r < k; ++r) kept[all[r]] = true;
        break;
      }
      case Keep::middle: {
        const auto keep = static_cast<std::ptrdiff_t>(density * static_cast<double>(n));
        auto top = static_cast<std::ptrdiff_t>(input.values.number("gamma") * static_cast<double>(n));
        auto bottom = static_cast<std::ptrdiff_t>(n) - keep - top;
        if (bottom < 0) {
          top += bottom;
          bottom = 0;
        }
        const auto order = ascending(d, all);
        for (std::ptrdiff_t r = bottom; r < static_cast<std::ptrdiff_t>(n) - top; ++r) kept[order[static_cast<std::size_t>(r)]] = true;
        break;
      }
      case Keep::random:
        for (std::size_t i = 0; i < n; ++i) {
          kept[i] = static_cast<double>(stream.uniform(i)) < density;
          if (unbiased()) divided_by[i] = density;
        }
        break;
      case Keep::random_by_rank: {
        const double epsilon = input.values.number("epsilon");
        for (const auto& line : lines_of(context.shape, n)) {
          const auto order = ascending(d, line);
          for (std::size_t r = 0; r < order.size(); ++r) {
            const double p =
                order.size() == 1 ? density : (density - epsilon) + 2 * epsilon * static_cast<double>(r) / static_cast<double>(order.size() - 1);
            kept[order[r]] = static_cast<double>(stream.uniform(order[r])) < p;
            if (unbiased()) divided_by[order[r]] = p;
          }
        }
        break;
      }
    }
  }
  double before = 0;
  double after = 0;
  for (std::size_t i = 0; i < n; ++i) {
    before += std::abs(static_cast<double>(d[i]));
    d[i] = kept[i] ? static_cast<float>(static_cast<double>(d[i]) / divided_by[i]) : 0.0F;
    after += std::abs(static_cast<double>(d[i]));
  }
  const bool random = method.keep == Keep::random || method.keep == Keep::random_by_rank;
  if (!context.values.flag("rescale") || (random && unbiased()) || before < 1e-7 || after < 1e-7) return;
  for (float& x : d) x *= static_cast<float>(before / after);
}

std::vector<double> reference(const Case& method, const TensorContext& context, const std::vector<std::vector<float>>& inputs) {
  const std::vector<float>& base = inputs[*context.base()];
  std::vector<std::vector<float>> vectors;
  std::vector<float> weights;
  float sum_of_weights = 0;
  for (const std::size_t position : context.non_base()) {
    std::vector<float> d(base.size());
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = inputs[position][i] - base[i];
    sparsify(d, method, context, context.inputs[position]);
    weights.push_back(static_cast<float>(context.inputs[position].values.number("weight")));
    sum_of_weights += weights.back();
    for (float& x : d) x *= weights.back();
    vectors.push_back(std::move(d));
  }
  std::vector<double> out(base.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    float vote = 0;
    for (const auto& v : vectors) vote += v[i];
    double mixed = 0;
    double divisor = 0;
    for (std::size_t k = 0; k < vectors.size(); ++k) {
      const float v = vectors[k][i];
      if (method.consensus && !(vote >= 0 ? v > 0 : v < 0)) continue;
      mixed += static_cast<double>(v);
      divisor += static_cast<double>(weights[k]);
    }
    if (!method.consensus) divisor = std::abs(sum_of_weights) < 1e-8F ? 1 : static_cast<double>(sum_of_weights);
    if (divisor == 0) divisor = 1;
    if (context.values.flag("normalize")) mixed /= divisor;
    out[i] = static_cast<double>(base[i]) + context.values.number("lambda") * mixed;
  }
  return out;
}

/// Both, in several orders of the work.
void expect_as_reference(const Case& c, const TensorContext& context, const std::vector<std::vector<float>>& inputs, const std::string& what) {
  const Method& method = method_named(c.name);
  const std::vector<float> got = run_phases(method, context, inputs);
  expect_close(got, reference(c, context, inputs), kRelative, kOfLargest, std::string(c.name) + " " + what);
  expect_same_bits(run_phases(method, context, inputs, {.num_tallies = 3, .reverse_tiles = true}), got, std::string(c.name) + " reversed " + what);
  expect_same_bits(run_phases(method, context, inputs, {.reverse_tiles = true, .use_cache = true}), got, std::string(c.name) + " cached " + what);
}

TensorContext sized_context(const Method& method, Shape shape, int num_models, double density) {
  TensorContext context = make_context(method, std::move(shape), num_models, true);
  context.seed = 42;
  set_for_models(context, "weight", 1);
  set_for_models(context, "density", density);
  return context;
}

// ---- worked numbers

TEST(TaskArithmetic, adds_weighted_changes) {
  const SmallExample example;
  const Method& method = method_named("task_arithmetic");
  TensorContext context = example.context(method);
  expect_close(run_phases(method, context, example.inputs()), example.with(std::vector{0.35, -0.25, 0.1, 0.125, 0.1, -0.45}), 1e-6, 3e-7);
  context.values.set("normalize", 1);
  expect_close(run_phases(method, context, example.inputs()), example.with(std::vector{0.233333, -0.166667, 0.066667, 0.083333, 0.066667, -0.3}), 0,
               5e-7);
}

TEST(TaskArithmetic, negation_of_one_model_and_addition_cancel_exactly) {
  const SmallExample example;
  const Method& method = method_named("task_arithmetic");
  TensorContext context = example.context(method);
  set_for_models(context, "weight", std::vector<double>{1, -1});
  expect_same_bits(run_phases(method, context, {example.base, example.model1, example.model1}), example.base);
}

TEST(TaskArithmetic, one_model_of_weight_one_is_copied_and_lambda_zero_copies_the_base) {
  const Method& method = method_named("task_arithmetic");
  TensorContext context = sized_context(method, {5}, 1, 1);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 1U);
  context.inputs[1].values.set("weight", 0.5);
  context.values.set("normalize", 1);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 1U);
  context.values.set("lambda", 0);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 0U);
  context.values.set("lambda", 0.5);
  EXPECT_EQ(make_merge(method, context)->copied_input(), std::nullopt);
  context.inputs[1].values.set("weight", 0);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 0U);
}

TEST(TaskArithmetic, copies_of_a_model_average_to_it_bit_for_bit_and_leave_the_base_unread) {
  const Method& method = method_named("task_arithmetic");
  TensorContext context = sized_context(method, {1000}, 3, 1);
  set_for_models(context, "weight", std::vector<double>{0.2, 0.3, 0.5});
  const auto model = normal_values(1000, 1, 1e-6);  // small beside the base, so that base + (model - base) would lose it
  expect_same_bits(run_phases(method, context, {normal_values(1000, 2, 100), model, model, model}), model);
  EXPECT_FALSE(make_merge(method, context)->reads_input(0));
}

TEST(TaskArithmetic, models_of_weight_zero_are_not_read) {
  const Method& method = method_named("task_arithmetic");
  TensorContext context = sized_context(method, {5}, 3, 1);
  set_for_models(context, "weight", std::vector<double>{0.5, 0, 0.25});
  const auto merge = make_merge(method, context);
  EXPECT_TRUE(merge->reads_input(0));
  EXPECT_TRUE(merge->reads_input(1));
  EXPECT_FALSE(merge->reads_input(2));
  EXPECT_TRUE(merge->reads_input(3));
}

TEST(Ties, keeps_the_largest_and_elects_signs) {
  const SmallExample example;
  const Method& method = method_named("ties");
  TensorContext context = example.context(method);
  set_for_models(context, "density", 0.5);
  expect_close(run_phases(method, context, example.inputs()), example.with(std::vector{0.5, 0., 0., 0., 0.4, -0.3}), 1e-6, 3e-7);
  set_for_models(context, "density", 1);
  expect_close(run_phases(method, context, example.inputs()), example.with(std::vector{0.5, -0.166667, 0.2, 0.083333, 0.4, -0.3}), 0, 5e-7);
  context.values.set("normalize", 0);
  expect_close(run_phases(method, context, example.inputs()), example.with(std::vector{0.5, -0.25, 0.1, 0.125, 0.4, -0.45}), 1e-6, 3e-7);
}

TEST(Ties, keeps_one_entry_and_warns_where_the_density_is_less_than_one) {
  const SmallExample example;
  const Method& method = method_named("ties");
  TensorContext context = make_context(method, {2, 3}, 1, true);
  std::vector<std::string> warnings;
  context.warnings = &warnings;
  set_for_models(context, "weight", 1);
  set_for_models(context, "density", 0.1);
  expect_close(run_phases(method, context, {example.base, example.model1}), example.with(std::vector{0.5, 0., 0., 0., 0., 0.}), 1e-6, 3e-7);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("one is kept")));
  set_for_models(context, "density", 0);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 0U);
}

TEST(Ties, an_equal_magnitude_at_the_threshold_goes_to_the_lower_index) {
  const Method& method = method_named("ties");
  TensorContext context = sized_context(method, {6}, 1, 0.5);
  expect_same_bits(run_phases(method, context, {std::vector<float>(6, 0.0F), {0.5F, 1, -1, 1, 2, -1}}), std::vector<float>{0, 1, -1, 0, 2, 0});
}

TEST(Ties, warns_where_weights_can_cancel) {
  const Method& method = method_named("ties");
  TensorContext context = sized_context(method, {6}, 2, 0.5);
  std::vector<std::string> warnings;
  context.warnings = &warnings;
  set_for_models(context, "weight", std::vector<double>{1, -0.5});
  static_cast<void>(make_merge(method, context));
  EXPECT_TRUE(warnings.empty());
  set_for_models(context, "weight", std::vector<double>{1, -0.9999});
  static_cast<void>(make_merge(method, context));
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("cancel")));
}

TEST(DareLinear, restores_the_norm_of_what_the_numbers_keep) {
  const SmallExample example;
  const Method& method = method_named("dare_linear");
  TensorContext context = make_context(method, {2, 3}, 1, true, "w");
  context.seed = 42;
  set_for_models(context, "weight", 1);
  set_for_models(context, "density", 0.5);
  expect_close(run_phases(method, context, {example.base, example.model1}), example.with(std::vector{0., -0.6, 0., 0., 0., -0.9}), 1e-6, 5e-7);
  context.values.set("rescale", 0);
  expect_close(run_phases(method, context, {example.base, example.model1}), example.with(std::vector{0., -0.2, 0., 0., 0., -0.3}), 1e-6, 3e-7);
}

TEST(DareLinear, dividing_by_the_density_is_unbiased) {
  const SmallExample example;
  const Method& method = method_named("dare_linear");
  TensorContext context = make_context(method, {2, 3}, 1, true, "w");
  set_for_models(context, "weight", 1);
  constexpr double kDensity = 0.3;
  set_for_models(context, "density", kDensity);
  context.values.set("unbiased_rescale", 1);
  EXPECT_EQ(make_merge(method, context)->next_pass(), Pass::none);
  constexpr int kSeeds = 1000;
  std::vector<double> mean(6, 0.0);
  for (int seed = 0; seed < kSeeds; ++seed) {
    context.seed = static_cast<std::uint64_t>(seed);
    const auto out = run_phases(method, context, {std::vector<float>(6, 0.0F), example.delta1});
    for (std::size_t i = 0; i < 6; ++i) mean[i] += static_cast<double>(out[i]) / kSeeds;
  }
  for (std::size_t i = 0; i < 6; ++i) {
    const double d = static_cast<double>(example.delta1[i]);
    EXPECT_NEAR(mean[i], d, 3 * std::abs(d) * std::sqrt((1 / kDensity - 1) / kSeeds)) << i;
  }
}

TEST(DareTies, keeps_about_the_density) {
  const Method& method = method_named("dare_ties");
  constexpr std::size_t n = 100000;
  const TensorContext context = sized_context(method, {static_cast<std::int64_t>(n)}, 1, 0.3);
  const auto out = run_phases(method, context, {std::vector<float>(n, 0.0F), std::vector<float>(n, 1.0F)});
  const auto kept = static_cast<double>(n) - static_cast<double>(std::count(out.begin(), out.end(), 0.0F));
  EXPECT_NEAR(kept / n, 0.3, 5 * std::sqrt(0.3 * 0.7 / n));
  double sum = 0;
  for (const float x : out) sum += static_cast<double>(x);
  EXPECT_NEAR(sum / n, 1, 1e-6);
}

TEST(Della, keeps_the_upper_half_of_each_row_more_often_by_epsilon) {
  const Method& method = method_named("della");
  constexpr std::size_t kRows = 2000;
  constexpr std::size_t kColumns = 64;
  TensorContext context = sized_context(method, {kRows, kColumns}, 1, 0.5);
  context.values.set("rescale", 0);
  std::vector<float> d(kRows * kColumns);
  for (std::size_t i = 0; i < d.size(); ++i) d[i] = static_cast<float>((i * 37) % kColumns + 1);  // each row a permutation of 1..64
  const auto out = run_phases(method, context, {std::vector<float>(d.size(), 0.0F), d});
  double upper = 0;
  double lower = 0;
  for (std::size_t i = 0; i < d.size(); ++i) (d[i] > kColumns / 2.0F ? upper : lower) += out[i] != 0;
  const double half = kRows * kColumns / 2.0;
  EXPECT_NEAR((upper - lower) / half, 0.15 * kColumns / (kColumns - 1), 5 * std::sqrt(0.5 / half));
  EXPECT_NEAR((upper + lower) / (2 * half), 0.5, 5 * std::sqrt(0.125 / half));
}

TEST(DellaLinear, refuses_probabilities_outside_zero_and_one_only_where_it_draws) {
  const Method& method = method_named("della_linear");
  TensorContext context = sized_context(method, {4, 4}, 1, 0.1);
  try {
    static_cast<void>(make_merge(method, context));
    FAIL() << "density 0.1 with epsilon 0.15 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(error.place().key, "epsilon");
    EXPECT_EQ(error.place().tensor, "w");
    EXPECT_THAT(error.message(), HasSubstr("between 0 and 1"));
  }
  set_for_models(context, "density", 0.85);
  EXPECT_THROW(static_cast<void>(make_merge(method, context)), Error);
  set_for_models(context, "density", 1);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 1U);
  set_for_models(context, "density", 0);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 0U);
}

TEST(Della, refuses_a_row_too_long_to_rank) {
  const Method& method = method_named("della");
  TensorContext context = sized_context(method, {std::int64_t{1} << 31}, 1, 0.5);
  try {
    static_cast<void>(make_merge(method, context));
    FAIL() << "a row of 2^31 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::unsupported);
    EXPECT_EQ(error.place().tensor, "w");
    EXPECT_THAT(error.message(), HasSubstr("2147483648 elements to rank"));
  }
  context.shape = {std::int64_t{1} << 30, 2};
  EXPECT_NE(make_merge(method, context), nullptr);
}

TEST(Breadcrumbs, drops_both_ends) {
  const SmallExample example;
  const Method& method = method_named("breadcrumbs");
  TensorContext context = make_context(method, {2, 3}, 1, true);
  set_for_models(context, "weight", 1);
  set_for_models(context, "density", 0.5);
  const auto with_gamma = [&](double gamma) {
    set_for_models(context, "gamma", gamma);
    return run_phases(method, context, {example.base, example.model1});
  };
  expect_close(with_gamma(0.2), example.with(std::vector{0., -0.2, 0., 0., 0.4, -0.3}), 1e-6, 3e-7);
  expect_close(with_gamma(0.34), example.with(std::vector{0., -0.2, 0., 0.1, 0., -0.3}), 1e-6, 3e-7);
  expect_close(with_gamma(0.9), example.with(std::vector{0., -0.2, 0., 0.1, 0., 0.}), 1e-6, 3e-7);
  expect_close(with_gamma(0), example.with(std::vector{0.5, 0., 0., 0., 0.4, -0.3}), 1e-6, 3e-7);
}

TEST(Breadcrumbs, an_equal_magnitude_at_a_threshold_is_the_smaller_with_the_lower_index) {
  const Method& method = method_named("breadcrumbs");
  TensorContext context = sized_context(method, {6}, 1, 0.5);
  set_for_models(context, "gamma", 0.17);
  // Ascending: 0 (0.5), 1, 2, 3, 5 (all 1), 4 (2); top 1, bottom 2: positions 2 to 4.
  expect_same_bits(run_phases(method, context, {std::vector<float>(6, 0.0F), {0.5F, 1, -1, 1, 2, -1}}), std::vector<float>{0, 0, -1, 1, 0, -1});
}

TEST(BreadcrumbsTies, the_older_behaviour_without_a_top_is_a_switch) {
  const Method& method = method_named("breadcrumbs_ties");
  TensorContext context = sized_context(method, {6}, 1, 0.5);
  std::vector<std::string> warnings;
  context.warnings = &warnings;
  EXPECT_NE(make_merge(method, context)->copied_input(), 0U);
  EXPECT_TRUE(warnings.empty());
  context.values.set("drop_all_without_top", 1);
  EXPECT_EQ(make_merge(method, context)->copied_input(), 0U);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("0.1.4")));
}

// ---- against the reference

TEST(TaskVectors, equal_the_reference_on_many_shapes) {
  const std::vector<Shape> shapes = {{},       {1},        {7},       {3000},      {1, 1},    {5, 1},       {3, 5},
                                     {64, 33}, {130, 517}, {4, 6, 5}, {300, 1, 4}, {50, 700}, {2, 3, 3, 3}, {3, 40, 2, 50}};
  for (const Case& c : kCases) {
    const Method& method = method_named(c.name);
    for (const Shape& shape : shapes) {
      TensorContext context = sized_context(method, shape, 3, 0.4);
      set_for_models(context, "weight", std::vector<double>{1, 0.6, 0.3});
      const std::size_t n = context.num_elements;
      const auto base = normal_values(n, 1);
      const std::vector<std::vector<float>> dense = {base, normal_values(n, 2), normal_values(n, 3), normal_values(n, 4)};
      const std::vector<std::vector<float>> sparse = {base, plus(base, gridded_values(n, 5, 0.01, 0.01)),
                                                      plus(base, gridded_values(n, 6, 0.01, 0.01)), base};
      for (const auto& inputs : {dense, sparse}) {
        expect_as_reference(c, context, inputs, to_string(shape));
        TensorContext other = context;
        other.values.set("normalize", context.values.flag("normalize") ? 0 : 1);
        other.values.set("lambda", -0.7);
        other.values.set("rescale", context.values.flag("rescale") ? 0 : 1);
        set_for_models(other, "density", std::vector<double>{0.5, 0.2, 1});
        expect_as_reference(c, other, inputs, "other settings " + to_string(shape));
      }
    }
  }
}

TEST(TaskVectors, equal_the_reference_with_negative_and_zero_weights) {
  for (const Case& c : kCases) {
    TensorContext context = sized_context(method_named(c.name), {40, 50}, 4, 0.5);
    set_for_models(context, "weight", std::vector<double>{1, -0.5, 0, 0.25});
    std::vector<std::vector<float>> inputs;
    for (std::uint64_t k = 0; k < 5; ++k) inputs.push_back(normal_values(2000, k));
    expect_as_reference(c, context, inputs, "negative weights");
  }
}

TEST(TaskVectors, the_paper_rescaling_equals_the_reference) {
  for (const Case& c : kCases) {
    if (c.keep != Keep::random && c.keep != Keep::random_by_rank) continue;
    TensorContext context = sized_context(method_named(c.name), {40, 50}, 2, 0.5);
    context.values.set("unbiased_rescale", 1);
    expect_as_reference(c, context, {normal_values(2000, 1), normal_values(2000, 2), normal_values(2000, 3)}, "unbiased");
  }
}

TEST(TaskVectors, equal_the_reference_beyond_a_million_elements) {
  constexpr std::size_t n = 1100 * 1001;
  const auto base = normal_values(n, 1);
  // One model with many equal magnitudes and zeros, one without.
  const std::vector<std::vector<float>> inputs = {base, plus(base, gridded_values(n, 2, 0.01, 0.002)), plus(base, normal_values(n, 3, 0.01))};
  for (const Case& c : kCases) {
    if (c.keep == Keep::all) continue;
    TensorContext context = sized_context(method_named(c.name), {1100, 1001}, 2, 0.3);
    set_for_models(context, "density", std::vector<double>{0.3, 0.61});
    expect_as_reference(c, context, inputs, "large");
  }
}

TEST(TaskVectors, the_position_of_the_base_does_not_matter) {
  for (const Case& c : kCases) {
    TensorContext context = sized_context(method_named(c.name), {30, 20}, 2, 0.5);
    const std::vector<std::vector<float>> inputs = {normal_values(600, 1), normal_values(600, 2), normal_values(600, 3)};
    const auto want = run_phases(method_named(c.name), context, inputs);
    std::swap(context.inputs[0], context.inputs[2]);
    std::swap(context.inputs[0], context.inputs[1]);
    expect_same_bits(run_phases(method_named(c.name), context, {inputs[1], inputs[2], inputs[0]}), want, c.name);
  }
}

TEST(TaskVectors, no_change_and_no_elements_give_the_base) {
  for (const Case& c : kCases) {
    const Method& method = method_named(c.name);
    const auto base = normal_values(600, 1);
    expect_same_bits(run_phases(method, sized_context(method, {30, 20}, 2, 0.5), {base, base, base}), base, c.name);
    EXPECT_TRUE(run_phases(method, sized_context(method, {0}, 2, 0.5), {{}, {}, {}}).empty()) << c.name;
    EXPECT_TRUE(run_phases(method, sized_context(method, {4, 0, 3}, 2, 0.5), {{}, {}, {}}).empty()) << c.name;
  }
}

TEST(TaskVectors, random_choices_differ_by_seed_tensor_and_model_and_repeat) {
  for (const char* name : {"dare_linear", "della_linear"}) {
    const Method& method = method_named(name);
    TensorContext context = sized_context(method, {30, 20}, 2, 0.5);
    const std::vector<float> zero(600, 0.0F);
    const std::vector<float> model = normal_values(600, 2);
    const auto first_alone = [&](const TensorContext& with) { return run_phases(method, with, {zero, model, zero}); };
    const auto second_alone = [&](const TensorContext& with) { return run_phases(method, with, {zero, zero, model}); };
    const auto want = first_alone(context);
    expect_same_bits(first_alone(context), want, name);
    EXPECT_NE(second_alone(context), want) << name;
    TensorContext other = context;
    other.seed = 43;
    EXPECT_NE(first_alone(other), want) << name;
    other = context;
    other.name = "v";
    EXPECT_NE(first_alone(other), want) << name;
  }
}

}  // namespace
}  // namespace weft::merge
