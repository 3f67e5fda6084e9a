#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

/// base: the t = 0 end.
std::vector<double> reference(const Tensor& base, const Tensor& other, double t) {
  const std::vector<double> v0 = as_doubles(base);
  const std::vector<double> v1 = as_doubles(other);
  const auto scale = [](double norm) { return norm > 1e-8 ? norm : 1.0; };
  const double cosine = dot_of(v0, v1) / scale(norm_of(v0)) / scale(norm_of(v1));
  const double angle = std::acos(cosine);
  std::vector<double> out(v0.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] =
        std::abs(cosine) > 0.9995 ? (1 - t) * v0[i] + t * v1[i] : (std::sin((1 - t) * angle) * v0[i] + std::sin(t * angle) * v1[i]) / std::sin(angle);
  }
  return out;
}

MergeCase slerp_of(const Shape& shape, const Tensor& base, const Tensor& other, double t) {
  MergeCase c(merge::slerp(), shape, {other}, base);
  c.set("t", t);
  return c;
}

TEST(Slerp, gives_the_worked_numbers_of_the_sheet) {
  expect_printed(slerp_of(kFixtureShape, kFixtureA1, kFixtureA2, 0.25).run(), {1.316231, -0.177203, -0.962759, 2.116444, -1.878087, 0.202784});
  expect_printed(slerp_of(kFixtureShape, kFixtureA1, kFixtureA2, 0.5).run(), {1.120433, -0.152786, -0.916718, 2.113545, -2.139009, 0.203715});
  expect_printed(slerp_of({2, 2}, {1, 0, 0, 0}, {0, 0, 0, 2}, 0.5).run(), {0.707107, 0, 0, 1.414214});
}

TEST(Slerp, copies_the_base_at_0_and_the_other_at_1_wherever_the_base_is_listed) {
  MergeCase c = slerp_of(kFixtureShape, kFixtureA1, kFixtureA2, 0);
  EXPECT_EQ(c.copied(), 0U);
  EXPECT_EQ(c.run(), kFixtureA1);
  EXPECT_EQ(c.set("t", 1).copied(), 1U);
  EXPECT_EQ(c.run(), kFixtureA2);
  std::swap(c.context.inputs[0], c.context.inputs[1]);
  std::swap(c.inputs[0], c.inputs[1]);
  EXPECT_EQ(c.run(), kFixtureA2);
  EXPECT_EQ(c.set("t", 0).run(), kFixtureA1);
  expect_rounded_once(c.set("t", 0.25).run(), reference(kFixtureA1, kFixtureA2, 0.25), 1e-14);
}

TEST(Slerp, equals_the_definition_in_double_for_any_shape_and_t) {
  for (const Shape& shape : telling_shapes()) {
    const Tensor base = random_tensor(elements_of(shape), 1);
    const Tensor other = changed(base, 2, 0.5F);
    for (const double t : {0.1, 0.5, 0.99, -0.5, 1.7}) {
      expect_rounded_once(slerp_of(shape, base, other, t).run(), reference(base, other, t), 1e-12, to_string(shape) + " t " + std::to_string(t));
    }
  }
}

TEST(Slerp, keeps_the_length_of_vectors_of_equal_length) {
  const Tensor base = random_tensor(5000, 3);
  Tensor other = random_tensor(5000, 4);
  const double factor = norm_of(as_doubles(base)) / norm_of(as_doubles(other));
  for (float& x : other) x = static_cast<float>(x * factor);
  for (const double t : {0.2, 0.5, 0.8}) {
    const Tensor out = slerp_of({5000}, base, other, t).run();
    EXPECT_NEAR(norm_of(as_doubles(out)) / norm_of(as_doubles(base)), 1.0, 1e-7) << t;
  }
}

TEST(Slerp, takes_the_chord_beyond_a_cosine_of_09995_and_the_arc_before) {
  for (const double cosine : {0.9994, 0.9996, -0.9994}) {
    const Tensor other = {static_cast<float>(cosine), static_cast<float>(std::sqrt(1 - cosine * cosine))};
    const Tensor out = slerp_of({2}, {1, 0}, other, 0.5).run();
    const double length = std::hypot(static_cast<double>(out[0]), static_cast<double>(out[1]));
    EXPECT_NEAR(length, cosine > 0.9995 ? std::sqrt((1 + cosine) / 2) : 1.0, 1e-6) << cosine;
  }
}

TEST(Slerp, steps_linearly_between_opposite_models_and_says_so) {
  MergeCase c = slerp_of({3}, {1, 2, 3}, {-1, -2, -3}, 0.25);
  EXPECT_EQ(c.run(), (Tensor{0.5, 1, 1.5}));
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("opposite directions")));
}

TEST(Slerp, treats_a_zero_tensor_as_at_a_right_angle) { expect_printed(slerp_of({2}, {0, 0}, {0, 2}, 0.5).run(), {0, 1.414214}); }

TEST(Slerp, copies_a_tensor_that_one_model_alone_has) {
  MergeCase c = slerp_of(kFixtureShape, kFixtureA1, kFixtureA2, 0.5);
  c.context.inputs.pop_back();
  c.inputs.pop_back();
  EXPECT_EQ(c.copied(), 0U);
  c.context.inputs[0].is_base = false;
  EXPECT_EQ(c.copied(), 0U);
}

TEST(Slerp, refuses_three_models_and_a_missing_base) {
  MergeCase three(merge::slerp(), kFixtureShape, {kFixtureA1, kFixtureA2}, kFixtureBase);
  EXPECT_THAT(three.set("t", 0.5).refusal(), ::testing::HasSubstr("has 3"));
  MergeCase no_base(merge::slerp(), kFixtureShape, {kFixtureA1, kFixtureA2});
  EXPECT_THAT(no_base.set("t", 0.5).refusal(), ::testing::HasSubstr("no base"));
  MergeCase no_t(merge::slerp(), kFixtureShape, {kFixtureA1}, kFixtureA2);
  EXPECT_THAT(no_t.refusal(), ::testing::HasSubstr("'t'"));
}

}  // namespace
}  // namespace weft::testing
