#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

/// With the whole vectors, in double.
std::vector<double> reference(const std::vector<Tensor>& models, int max_iterations, double tolerance) {
  const std::size_t n = models[0].size();
  std::vector<std::vector<double>> units;
  double scale = 0;
  for (const Tensor& model : models) {
    std::vector<double> x = as_doubles(model);
    const double norm = norm_of(x);
    scale += norm / static_cast<double>(models.size());
    if (norm <= tolerance) continue;
    for (double& v : x) v /= norm;
    units.push_back(x);
  }
  std::vector<double> u(n);
  if (units.empty()) return u;
  const double share = 1.0 / static_cast<double>(units.size());
  for (const auto& unit : units)
    for (std::size_t i = 0; i < n; ++i) u[i] += share * unit[i];
  const auto normalise = [](std::vector<double>& x) {
    const double norm = norm_of(x);
    for (double& v : x) v /= norm;
  };
  if (norm_of(u) < tolerance)
    u = units[0];
  else
    normalise(u);
  for (int iteration = 0; iteration < max_iterations; ++iteration) {
    std::vector<double> tangent(n);
    for (const auto& unit : units) {
      const double cosine = std::clamp(dot_of(u, unit), -1.0, 1.0);
      const double angle = std::acos(cosine);
      if (angle < tolerance) continue;
      for (std::size_t i = 0; i < n; ++i) tangent[i] += share * angle / std::sin(angle) * (unit[i] - cosine * u[i]);
    }
    const double step = norm_of(tangent);
    if (step < tolerance) break;
    for (std::size_t i = 0; i < n; ++i) u[i] = std::cos(step) * u[i] + std::sin(step) * tangent[i] / step;
    normalise(u);
  }
  for (double& v : u) v *= scale;
  return u;
}

TEST(Karcher, gives_the_worked_numbers_of_the_sheet) {
  expect_printed(MergeCase(merge::karcher(), kFixtureShape, {kFixtureA1, kFixtureA2}).run(),
                 {1.139112, -0.155143, -0.922466, 2.118173, -2.121655, 0.204060});
  expect_printed(MergeCase(merge::karcher(), {3}, {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}).run(), {0.577350, 0.577350, 0.577350});
}

TEST(Karcher, equals_the_iteration_on_whole_vectors) {
  for (const Shape& shape : telling_shapes()) {
    std::vector<Tensor> models = {random_tensor(elements_of(shape), 1, 2)};
    for (std::uint64_t seed = 2; seed < 6; ++seed) models.push_back(changed(models[0], seed, static_cast<float>(seed)));
    for (const int max_iterations : {0, 1, 3, 10, 100}) {
      for (const double tolerance : {1e-5, 0.01}) {
        MergeCase c(merge::karcher(), shape, models);
        c.set("max_iter", max_iterations).set("tol", tolerance);
        expect_rounded_once(c.run(), reference(models, max_iterations, tolerance), 1e-10,
                            to_string(shape) + " iterations " + std::to_string(max_iterations));
      }
    }
  }
}

TEST(Karcher, is_the_mean_on_the_sphere_not_the_mean_of_directions) {
  // Two copies of one axis and one of another, at a right angle: a third of the way along the arc is 30 degrees.
  const Tensor out = MergeCase(merge::karcher(), {2}, {{1, 0}, {1, 0}, {0, 1}}).set("max_iter", 100).set("tol", 1e-7).run();
  EXPECT_NEAR(out[0], std::cos(std::acos(-1.0) / 6), 1e-6);
  EXPECT_NEAR(out[1], 0.5, 1e-6);
}

TEST(Karcher, agrees_with_multislerp_of_equal_weights_for_two_models) {
  MergeCase multislerp(merge::multislerp(), kFixtureShape, {kFixtureA1, kFixtureA2});
  const Tensor want = multislerp.each("weight", {1, 1}).run();
  const Tensor got = MergeCase(merge::karcher(), kFixtureShape, {kFixtureA1, kFixtureA2}).run();
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5);
}

TEST(Karcher, takes_the_first_direction_between_antipodes_and_says_so) {
  MergeCase c(merge::karcher(), {2}, {{3, 4}, {-6, -8}});
  expect_printed(c.run(), {4.5, 6});
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("cancel")));
}

TEST(Karcher, counts_a_zero_model_in_the_length_but_not_in_the_direction) {
  expect_printed(MergeCase(merge::karcher(), {2}, {{0, 0}, {3, 4}}).run(), {1.5, 2});
  EXPECT_EQ(MergeCase(merge::karcher(), {2}, {{0, 0}, {0, 0}}).run(), (Tensor{0, 0}));
}

TEST(Karcher, says_when_the_tolerance_makes_a_tensor_zero) {
  MergeCase c(merge::karcher(), {2}, {{1e-7F, 0}, {0, 1e-7F}});
  EXPECT_EQ(c.run(), (Tensor{0, 0}));
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("tolerance")));
}

TEST(Karcher, takes_a_base_as_one_more_model) {
  MergeCase with_base(merge::karcher(), kFixtureShape, {kFixtureA1, kFixtureA2}, kFixtureBase);
  EXPECT_EQ(with_base.run(), MergeCase(merge::karcher(), kFixtureShape, {kFixtureBase, kFixtureA1, kFixtureA2}).run());
}

}  // namespace
}  // namespace weft::testing
