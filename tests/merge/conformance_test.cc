#include <bit>
#include <functional>
#include <iostream>

#include "math/targets.h"
#include "merge/merge_cases.h"

// What every row of the method table must do, whatever it computes. A new method is tested here without being named.
namespace weft::testing {
namespace {

using merge::Identity;
using merge::Method;
using merge::Parameter;
using merge::ParameterScope;
using merge::ParameterType;
using merge::TensorContext;

// --- Values for any parameter, from its declaration ---

/// Values worth trying, in range.
std::vector<double> candidates(const Parameter& parameter) {
  if (parameter.type == ParameterType::boolean) return {0, 1};
  // A tolerance: the generic values would be senseless.
  if (const double value = parameter.default_value.value_or(1); value > 0 && value < 1e-3) return {0, value / 10, value * 10, value * 1000};
  std::vector<double> values;
  for (const double value : {0.0, 0.05, 0.3, 0.5, 0.9, 1.0, 2.0, 3.0, 8.0, -0.5}) {
    if (value < parameter.min || value > parameter.max) continue;
    if (parameter.type == ParameterType::integer && value != std::trunc(value)) continue;
    values.push_back(value);
  }
  return values;
}

/// One value for a parameter without default.
double required_value(const Parameter& parameter) {
  const double value = parameter.type == ParameterType::number ? 0.3 : 1;
  return std::clamp(value, parameter.min, parameter.max);
}

void set_everywhere(TensorContext& context, const Parameter& parameter, double value) {
  if (parameter.scope == ParameterScope::global) {
    context.values.set(parameter.name, value);
    return;
  }
  for (merge::Input& input : context.inputs) input.values.set(parameter.name, value);
}

/// Shares that sum to one: equal, or 5 : 3 : 2 and the like.
void set_weights(TensorContext& context, bool equal) {
  const std::vector<std::size_t> models = context.non_base();
  double left = 1;
  for (std::size_t k = 0; k < models.size(); ++k) {
    const double share = equal ? 1.0 / static_cast<double>(models.size()) : k + 1 == models.size() ? left : left * 0.6;
    context.inputs[models[k]].values.set("weight", share);
    left -= share;
  }
}

bool has_weights(const Method& method) {
  return std::any_of(method.parameters.begin(), method.parameters.end(), [](const Parameter& p) { return p.name == "weight"; });
}

bool has_base(const Method& method) { return method.base == merge::BaseRule::required || method.base == merge::BaseRule::one_of_two; }

/// Numbers of non-base models to try, as make_context counts them.
std::vector<int> model_counts(const Method& method) {
  const int counted_base = method.base == merge::BaseRule::one_of_two ? 1 : 0;
  std::vector<int> counts;
  for (int n = std::max(1, method.min_models - counted_base); n <= std::min(method.max_models - counted_base, 3); ++n) counts.push_back(n);
  return counts;
}

/// Defaults, and something sensible where there is none.
TensorContext plain_context(const Method& method, const Shape& shape, int num_models, bool with_base) {
  TensorContext context = make_context(method, shape, num_models, with_base);
  context.layer = 1;
  context.num_layers = 3;
  for (const Parameter& parameter : method.parameters)
    if (!parameter.default_value && !parameter.optional_value) set_everywhere(context, parameter, required_value(parameter));
  if (has_weights(method)) set_weights(context, false);
  return context;
}

/// Whether the method accepts these values; what it refuses must be an invalid_argument.
bool accepts(const Method& method, const TensorContext& context) {
  try {
    static_cast<void>(merge::make_merge(method, context));
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument) << error.what();
    return false;
  }
}

struct Variant {
  std::string label;
  TensorContext context;
};

/// The plain context, and every accepted one that differs from it in one parameter.
std::vector<Variant> variants(const Method& method, const Shape& shape, int num_models, bool with_base) {
  const TensorContext plain = plain_context(method, shape, num_models, with_base);
  std::vector<Variant> all = {{"plain", plain}};
  for (const Parameter& parameter : method.parameters) {
    for (const double value : candidates(parameter)) {
      TensorContext context = plain;
      set_everywhere(context, parameter, value);
      if (accepts(method, context)) all.push_back({parameter.name + " " + std::to_string(value), std::move(context)});
    }
  }
  return all;
}

/// Whether a base is given: always, never, or both.
std::vector<bool> base_choices(const Method& method) {
  if (has_base(method)) return {true};
  return {false, true};
}

/// Calls body(label, context) for each variant with each number of models, with and without base.
void for_each_variant(const Method& method, const Shape& shape, const std::function<void(const std::string&, const TensorContext&)>& body) {
  for (const int num_models : model_counts(method)) {
    for (const bool with_base : base_choices(method)) {
      // Where a base is one of the inputs like any other, it counts.
      if (with_base && method.base == merge::BaseRule::unused && num_models + 1 > method.max_models) continue;
      for (const Variant& variant : variants(method, shape, num_models, with_base)) {
        body(method.name + " " + to_string(shape) + " models " + std::to_string(num_models) + (with_base ? " with base, " : ", ") + variant.label,
             variant.context);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

/// A base and fine-tunes of it (or unrelated models when scale is large): some elements untouched by some models, some zero.
std::vector<Tensor> inputs_for(const TensorContext& context, float size = 1) {
  const std::size_t n = context.num_elements;
  Tensor base = random_tensor(n, 1, size);
  for (std::size_t i = 0; i < n; i += 11) base[i] = 0;
  std::vector<Tensor> inputs;
  for (std::size_t k = 0; k < context.inputs.size(); ++k) {
    if (context.inputs[k].is_base) {
      inputs.push_back(base);
      continue;
    }
    inputs.push_back(changed(base, 2 + context.inputs[k].index, 0.3F * size));
    for (std::size_t i = context.inputs[k].index; i < n; i += 7) inputs.back()[i] = base[i];
  }
  return inputs;
}

/// What the phases give, or nothing where the method refuses these values for this tensor (weights that cancel, say).
std::optional<Tensor> merged(const Method& method, const TensorContext& context, const std::vector<Tensor>& inputs,
                             const DriverOptions& options = {}) {
  try {
    return run_phases(method, context, inputs, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument) << error.what();
    EXPECT_EQ(error.place().tensor, context.name);
    return std::nullopt;
  }
}

void expect_bits(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want[i]))
        << what << ": element " << i << " is " << got[i] << ", was " << want[i];
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y); });
}

void expect_finite(const Tensor& got, const std::string& what) {
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_TRUE(std::isfinite(got[i])) << what << ": element " << i << " is " << got[i];
}

float round_to_bf16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000U);
}

/// The largest distance between elements, in units of the rounding of what went into them.
double distance_in_roundings(const Tensor& a, const Tensor& b, const std::vector<Tensor>& inputs) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double size = std::max(std::abs(static_cast<double>(a[i])), std::abs(static_cast<double>(b[i])));
    for (const Tensor& input : inputs) size = std::max(size, std::abs(static_cast<double>(input[i])));
    if (a[i] != b[i]) worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])) / (size * 0x1p-24));
  }
  return worst;
}

class Conformance : public ::testing::TestWithParam<std::string> {
 protected:
  const Method& method() const { return *merge::find_method(GetParam()); }
};

// --- The claims ---

TEST_P(Conformance, merging_copies_of_a_model_returns_it_as_declared) {
  if (method().identity == Identity::none) GTEST_SKIP() << "declared not to";
  for (const Shape& shape : telling_shapes()) {
    for (const int num_models : model_counts(method())) {
      for (const bool with_base : base_choices(method())) {
        if (with_base && method().base == merge::BaseRule::unused) continue;
        for (const bool in_bf16 : {false, true}) {
          TensorContext context = plain_context(method(), shape, num_models, with_base);
          if (has_weights(method())) set_weights(context, true);
          std::vector<Tensor> inputs = inputs_for(context);
          Tensor model = changed(inputs[0], 77, 0.5F);
          if (in_bf16) {
            for (float& x : model) x = round_to_bf16(x);
            for (float& x : inputs[0]) x = round_to_bf16(x);
          }
          const bool one_of_two = method().base == merge::BaseRule::one_of_two;
          for (std::size_t k = 0; k < inputs.size(); ++k)
            if (!context.inputs[k].is_base || one_of_two) inputs[k] = model;
          Tensor out = run_phases(method(), context, inputs);
          const std::string what = to_string(shape) + " models " + std::to_string(num_models) + (in_bf16 ? " in bf16" : "");
          ASSERT_EQ(out.size(), model.size()) << what;
          for (std::size_t i = 0; i < out.size(); ++i) {
            // base + (model - base): one rounding of the difference, a few of sums of that size, one of the result.
            const float base = with_base ? inputs[0][i] : 0;
            const double bound = method().identity == Identity::exact
                                     ? 0
                                     : 4 * 0x1p-24 * (std::abs(static_cast<double>(model[i])) + std::abs(static_cast<double>(base)));
            if (in_bf16) out[i] = round_to_bf16(out[i]);
            ASSERT_LE(std::abs(static_cast<double>(out[i]) - static_cast<double>(model[i])), in_bf16 ? 0 : bound) << what << " element " << i;
          }
        }
      }
    }
  }
}

TEST_P(Conformance, order_of_tiles_and_number_of_workers_change_no_bit) {
  for (const Shape& shape : {Shape{70, 300}, Shape{3 * 8192 + 2}, Shape{3, 5, 7}}) {
    for_each_variant(method(), shape, [&](const std::string& what, const TensorContext& context) {
      const std::vector<Tensor> inputs = inputs_for(context);
      const std::optional<Tensor> want = merged(method(), context, inputs);
      if (!want) return;
      expect_bits(run_phases(method(), context, inputs, {.num_tallies = 3, .reverse_tiles = true}), *want, what);
      expect_bits(run_phases(method(), context, inputs, {.num_tallies = 16}), *want, what);
    });
  }
}

TEST_P(Conformance, every_shape_is_merged_to_finite_numbers) {
  std::vector<Shape> shapes = telling_shapes();
  for (const Shape& empty : {Shape{0}, Shape{0, 4}, Shape{4, 0}, Shape{2, 0, 3}}) shapes.push_back(empty);
  for (const Shape& shape : shapes) {
    for_each_variant(method(), shape, [&](const std::string& what, const TensorContext& context) {
      // The many variants are for small tensors; large ones are tried as they come.
      if (context.num_elements > 2000 && what.find("plain") == std::string::npos) return;
      const std::optional<Tensor> out = merged(method(), context, inputs_for(context));
      if (!out) return;
      ASSERT_EQ(out->size(), context.num_elements) << what;
      expect_finite(*out, what);
    });
  }
}

TEST_P(Conformance, zeros_are_merged_to_zeros) {
  for_each_variant(method(), {13, 17}, [&](const std::string& what, const TensorContext& context) {
    const std::optional<Tensor> out = merged(method(), context, std::vector<Tensor>(context.inputs.size(), Tensor(13 * 17)));
    for (const float x : out.value_or(Tensor())) ASSERT_EQ(x, 0.0F) << what;
  });
}

TEST_P(Conformance, numbers_of_the_smallest_and_largest_size_stay_finite) {
  for (const float size : {1e-44F, 1e-40F, 1e-30F, 1e30F, 1e37F}) {
    for (const int num_models : model_counts(method())) {
      const TensorContext context = plain_context(method(), {13, 17}, num_models, has_base(method()));
      const std::vector<Tensor> inputs = inputs_for(context, size);
      const Tensor out = run_phases(method(), context, inputs);
      const std::string what = "size " + std::to_string(std::log10(size)) + " models " + std::to_string(num_models);
      expect_finite(out, what);
      for (const float x : out) ASSERT_LE(std::abs(x), 10.0 * static_cast<double>(size)) << what;
    }
  }
}

TEST_P(Conformance, every_simd_target_gives_the_same_bits) {
  if (method().determinism != merge::Determinism::A) GTEST_SKIP() << "declared for one target only";
  struct AllTargets {
    ~AllTargets() { math::use_only_target(0); }
  } all_targets_again;
  std::vector<math::SimdTarget> targets;
  for (const math::SimdTarget& target : math::compiled_targets()) {
    if (target.supported)
      targets.push_back(target);
    else
      std::cout << "[ SKIPPED  ] " << target.name << ": not supported by this machine\n";
  }
  for (const Shape& shape : {Shape{33, 259}, Shape{3, 5, 7}}) {
    for_each_variant(method(), shape, [&](const std::string& what, const TensorContext& context) {
      const std::vector<Tensor> inputs = inputs_for(context);
      math::use_only_target(targets[0].bit);
      ASSERT_EQ(math::active_target(), targets[0].name);
      const std::optional<Tensor> want = merged(method(), context, inputs);
      if (!want) return;
      for (std::size_t t = 1; t < targets.size(); ++t) {
        math::use_only_target(targets[t].bit);
        ASSERT_EQ(math::active_target(), targets[t].name);
        expect_bits(run_phases(method(), context, inputs), *want, what + ", " + targets[t].name + " against " + targets[0].name);
      }
    });
  }
}

/// The same models in reverse order, each with its parameters; the base stays.
void reverse_models(TensorContext& context, std::vector<Tensor>& inputs) {
  const std::vector<std::size_t> models = context.non_base();
  for (std::size_t k = 0; k < models.size() / 2; ++k) {
    const std::size_t i = models[k];
    const std::size_t j = models[models.size() - 1 - k];
    std::swap(context.inputs[i], context.inputs[j]);
    std::swap(context.inputs[i].index, context.inputs[j].index);
    std::swap(inputs[i], inputs[j]);
  }
}

TEST_P(Conformance, models_may_be_permuted_exactly_where_declared) {
  if (model_counts(method()).back() < 2) GTEST_SKIP() << "takes one model";
  double farthest = 0;
  for_each_variant(method(), {20, 30}, [&](const std::string& what, const TensorContext& context) {
    const std::vector<Tensor> inputs = inputs_for(context);
    const std::optional<Tensor> want = merged(method(), context, inputs);
    if (!want) return;
    TensorContext permuted = context;
    std::vector<Tensor> permuted_inputs = inputs;
    reverse_models(permuted, permuted_inputs);
    const double distance = distance_in_roundings(run_phases(method(), permuted, permuted_inputs), *want, inputs);
    farthest = std::max(farthest, distance);
    // A few float32 additions of terms of the size of the inputs or the result.
    if (method().symmetric) {
      ASSERT_LE(distance, 16.0) << what;
    }
  });
  if (!method().symmetric) {
    EXPECT_GT(farthest, 1000.0) << "declared to depend on the order of models, but nothing shows it";
  }
}

TEST_P(Conformance, every_parameter_changes_something_unless_declared_ignored) {
  for (const Parameter& parameter : method().parameters) {
    bool used = false;
    // Some parameters matter for small changes only.
    for (const float size : {1.0F, 1e-3F}) {
      for_each_variant(method(), {6, 12}, [&](const std::string& what, const TensorContext& context) {
        if (used && !parameter.ignored) return;
        const std::vector<Tensor> inputs = inputs_for(context, size);
        const std::optional<Tensor> want = merged(method(), context, inputs);
        for (const double value : candidates(parameter)) {
          TensorContext other = context;
          set_everywhere(other, parameter, value);
          // Refusing a value is a use of it too.
          const std::optional<Tensor> got = merged(method(), other, inputs);
          if (got.has_value() == want.has_value() && (!got || same_bits(*got, *want))) continue;
          used = true;
          ASSERT_FALSE(parameter.ignored) << what << ": '" << parameter.name << "' is declared ignored but changes the result";
        }
      });
    }
    EXPECT_TRUE(used || parameter.ignored) << "'" << parameter.name << "' changes nothing; use it, or declare it ignored";
  }
}

TEST_P(Conformance, values_out_of_range_are_refused_with_parameter_and_tensor) {
  const TensorContext plain = plain_context(method(), {2, 3}, model_counts(method()).front(), has_base(method()));
  ASSERT_TRUE(accepts(method(), plain));
  for (const Parameter& parameter : method().parameters) {
    if (parameter.ignored) continue;  // nobody looks at its value
    std::vector<double> wrong = {std::nan(""), HUGE_VAL, -HUGE_VAL};
    if (parameter.min > -1e300) wrong.push_back(parameter.min - std::max(1.0, std::abs(parameter.min)));
    if (parameter.max < 1e300) wrong.push_back(parameter.max + std::max(1.0, std::abs(parameter.max)));
    if (parameter.type == ParameterType::integer) wrong.push_back(std::clamp(1.0, parameter.min, parameter.max) + 0.5);
    if (parameter.type == ParameterType::boolean) wrong.push_back(2);
    const auto expect_refusal = [&](const TensorContext& context, const std::string& what) {
      try {
        static_cast<void>(merge::make_merge(method(), context));
        ADD_FAILURE() << parameter.name << " " << what << " was accepted";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
        EXPECT_EQ(error.place().key, parameter.name);
        EXPECT_EQ(error.place().tensor, plain.name);
        EXPECT_THAT(error.message(), ::testing::HasSubstr("'" + parameter.name + "'"));
      }
    };
    for (const double value : wrong) {
      TensorContext context = plain;
      set_everywhere(context, parameter, value);
      expect_refusal(context, std::to_string(value));
    }
    if (parameter.optional_value) continue;
    TensorContext context = make_context(method(), {2, 3}, model_counts(method()).front(), has_base(method()));
    context.values = {};
    for (merge::Input& input : context.inputs) input.values = {};
    for (const Parameter& other : method().parameters) {
      if (other.name != parameter.name) set_everywhere(context, other, other.default_value.value_or(required_value(other)));
    }
    expect_refusal(context, "absent");
  }
}

TEST_P(Conformance, the_declaration_agrees_with_itself) {
  EXPECT_FALSE(method().summary.empty());
  EXPECT_LE(method().min_models, method().max_models);
  EXPECT_GE(method().passes, 1);
  for (const Parameter& parameter : method().parameters) {
    EXPECT_FALSE(parameter.help.empty()) << parameter.name;
    EXPECT_LE(parameter.min, parameter.max) << parameter.name;
    if (!parameter.default_value) continue;
    EXPECT_FALSE(parameter.optional_value) << parameter.name << " has a default, so it is never absent";
    EXPECT_GE(*parameter.default_value, parameter.min) << parameter.name;
    EXPECT_LE(*parameter.default_value, parameter.max) << parameter.name;
    if (parameter.type == ParameterType::boolean) {
      EXPECT_TRUE(*parameter.default_value == 0 || *parameter.default_value == 1) << parameter.name;
    }
  }
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const Method& method : merge::methods()) all.push_back(method.name);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Merge, Conformance, ::testing::ValuesIn(names()), [](const auto& name) { return name.param; });

}  // namespace
}  // namespace weft::testing
