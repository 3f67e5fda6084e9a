#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

/// Slice by slice, in double, as the sheet says. base: empty for none.
std::vector<double> reference(const Shape& shape, const Tensor& a, const Tensor& b, const Tensor& base, double t, Slices how) {
  std::vector<double> out(a.size());
  for (const std::vector<std::size_t>& slice : slices_of(shape, how)) {
    std::vector<double> x1;
    std::vector<double> x2;
    for (const std::size_t i : slice) {
      const double origin = base.empty() ? 0.0 : static_cast<double>(base[i]);
      x1.push_back(static_cast<double>(a[i]) - origin);
      x2.push_back(static_cast<double>(b[i]) - origin);
    }
    const double cosine = std::clamp(dot_of(x1, x2) / std::max(norm_of(x1), 1e-7) / std::max(norm_of(x2), 1e-7), -1.0, 1.0);
    const double angle = std::acos(cosine);
    const bool chord = 1 - cosine * cosine <= 1e-16 || cosine < -1 + 1e-6;
    const double w1 = chord ? 1 - t : std::sin((1 - t) * angle) / std::sin(angle);
    const double w2 = chord ? t : std::sin(t * angle) / std::sin(angle);
    for (std::size_t k = 0; k < slice.size(); ++k) {
      out[slice[k]] = w1 * x1[k] + w2 * x2[k] + (base.empty() ? 0.0 : static_cast<double>(base[slice[k]]));
    }
  }
  return out;
}

MergeCase nuslerp_of(const Shape& shape, const Tensor& a, const Tensor& b, const Tensor& base, std::vector<double> weights, Slices how) {
  MergeCase c(merge::nuslerp(), shape, {a, b}, base);
  c.each("weight", weights);
  c.set("nuslerp_flatten", how == Slices::whole ? 1 : 0).set("nuslerp_row_wise", how == Slices::columns ? 1 : 0);
  return c;
}

TEST(NuSlerp, gives_the_worked_numbers_of_the_sheet) {
  const auto run = [](Slices how) { return nuslerp_of(kFixtureShape, kFixtureA1, kFixtureA2, {}, {0.75, 0.25}, how).run(); };
  expect_printed(run(Slices::whole), {1.316232, -0.177203, -0.962759, 2.116444, -1.878087, 0.202784});
  expect_printed(run(Slices::rows), {1.307622, -0.176034, -0.955990, 2.099949, -1.862078, 0.201198});
  expect_printed(run(Slices::columns), {1.309350, -0.175110, -0.950195, 2.104168, -1.851396, 0.200042});
}

TEST(NuSlerp, equals_the_definition_in_double_for_any_shape_slices_and_base) {
  for (const Shape& shape : telling_shapes()) {
    const Tensor base = random_tensor(elements_of(shape), 1);
    const Tensor a = changed(base, 2, 0.1F);
    const Tensor b = changed(base, 3, 0.2F);
    for (const Slices how : {Slices::whole, Slices::rows, Slices::columns}) {
      for (const bool with_base : {false, true}) {
        const Tensor origin = with_base ? base : Tensor();
        // Columns of differences to a base are taken from differences rounded to float32.
        expect_rounded_once(nuslerp_of(shape, a, b, origin, {3, 1}, how).run(), reference(shape, a, b, origin, 0.25, how),
                            with_base && how == Slices::columns ? 0x1p-24 : 1e-11,
                            to_string(shape) + " slices " + std::to_string(static_cast<int>(how)) + (with_base ? " with base" : ""));
      }
    }
  }
}

TEST(NuSlerp, equals_slerp_where_the_models_are_not_nearly_parallel) {
  MergeCase slerp(merge::slerp(), kFixtureShape, {kFixtureA2}, kFixtureA1);
  const Tensor want = slerp.set("t", 0.25).run();
  const Tensor got = nuslerp_of(kFixtureShape, kFixtureA1, kFixtureA2, {}, {0.75, 0.25}, Slices::whole).run();
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-6);
}

TEST(NuSlerp, takes_the_middle_when_the_weights_cancel_and_copies_when_one_is_zero) {
  const std::vector<double> middle = reference(kFixtureShape, kFixtureA1, kFixtureA2, {}, 0.5, Slices::whole);
  expect_rounded_once(nuslerp_of(kFixtureShape, kFixtureA1, kFixtureA2, {}, {1, -1}, Slices::whole).run(), middle, 1e-14);
  EXPECT_EQ(nuslerp_of(kFixtureShape, kFixtureA1, kFixtureA2, {}, {7, 0}, Slices::whole).copied(), 0U);
  EXPECT_EQ(nuslerp_of(kFixtureShape, kFixtureA1, kFixtureA2, kFixtureBase, {0, 0.1}, Slices::rows).copied(), 2U);
  EXPECT_THAT(nuslerp_of(kFixtureShape, kFixtureA1, kFixtureA2, {}, {1e6, -1e6 + 2e-6}, Slices::whole).refusal(),
              ::testing::HasSubstr("nearly cancel"));
}

TEST(NuSlerp, steps_linearly_between_opposite_vectors_instead_of_blowing_up_rounding) {
  MergeCase c = nuslerp_of({3}, {1, 2, 3}, {-1, -2, -3}, {}, {0.75, 0.25}, Slices::whole);
  EXPECT_EQ(c.run(), (Tensor{0.5, 1, 1.5}));
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("opposite directions")));
  // One of two rows.
  MergeCase rows = nuslerp_of({2, 2}, {1, 2, 3, 4}, {-1, -2, 4, 3}, {}, {0.75, 0.25}, Slices::rows);
  rows.run();
  EXPECT_THAT(rows.warnings, ::testing::ElementsAre(::testing::HasSubstr("(1 of 2 rows)")));
  MergeCase columns = nuslerp_of({2, 2}, {1, 2, 3, 4}, {-1, 2, -3, 5}, {}, {0.75, 0.25}, Slices::columns);
  columns.run();
  EXPECT_THAT(columns.warnings, ::testing::ElementsAre(::testing::HasSubstr("(1 of 2 columns)")));
}

TEST(NuSlerp, keeps_a_larger_difference_to_the_base_than_the_mean_of_the_models) {
  const Tensor base = random_tensor(4000, 5);
  const Tensor a = changed(base, 6, 0.1F);
  const Tensor b = changed(base, 7, 0.1F);
  const Tensor out = nuslerp_of({4000}, a, b, base, {1, 1}, Slices::whole).run();
  double slerp_squares = 0;
  double mean_squares = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    slerp_squares += std::pow(out[i] - base[i], 2);
    mean_squares += std::pow((a[i] + b[i]) / 2 - base[i], 2);
  }
  EXPECT_GT(slerp_squares, 1.5 * mean_squares);  // twice, for directions at right angles
}

TEST(NuSlerp, refuses_one_or_three_models_beside_the_base) {
  MergeCase three(merge::nuslerp(), kFixtureShape, {kFixtureA1, kFixtureA2, kFixtureBase});
  EXPECT_THAT(three.each("weight", {1, 1, 1}).refusal(), ::testing::HasSubstr("has 3"));
  MergeCase one(merge::nuslerp(), kFixtureShape, {kFixtureA1}, kFixtureBase);
  EXPECT_THAT(one.each("weight", {1}).refusal(), ::testing::HasSubstr("has 1"));
}

}  // namespace
}  // namespace weft::testing
