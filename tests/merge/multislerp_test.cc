#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

/// The long form: a step in the tangent space at the mean direction. base: empty for none.
std::vector<double> reference(const std::vector<Tensor>& models, const Tensor& base, std::vector<double> weights, bool normalize, double eps) {
  const std::size_t n = models[0].size();
  double sum = 0;
  for (const double w : weights) sum += w;
  std::vector<std::vector<double>> units;
  double length = 0;
  for (std::size_t k = 0; k < models.size(); ++k) {
    if (normalize) weights[k] /= sum;
    std::vector<double> x = as_doubles(models[k]);
    for (std::size_t i = 0; i < n && !base.empty(); ++i) x[i] -= static_cast<double>(base[i]);
    const double norm = norm_of(x);
    length += weights[k] * norm;
    for (double& v : x) v /= norm + eps;
    units.push_back(x);
  }
  std::vector<double> mean(n);
  for (std::size_t k = 0; k < units.size(); ++k)
    for (std::size_t i = 0; i < n; ++i) mean[i] += weights[k] * units[k][i];
  const double mean_norm = norm_of(mean);
  for (double& v : mean) v /= mean_norm;
  std::vector<double> tangent(n);
  for (std::size_t k = 0; k < units.size(); ++k) {
    const double along = dot_of(units[k], mean);
    for (std::size_t i = 0; i < n; ++i) tangent[i] += weights[k] * (units[k][i] - along * mean[i]);
  }
  const double q = norm_of(tangent) + eps;
  std::vector<double> out(n);
  for (std::size_t i = 0; i < n; ++i) {
    out[i] = length * (mean[i] * std::cos(q) + tangent[i] * std::sin(q) / q) + (base.empty() ? 0.0 : static_cast<double>(base[i]));
  }
  return out;
}

MergeCase multislerp_of(const Shape& shape, const std::vector<Tensor>& models, const Tensor& base, const std::vector<double>& weights) {
  MergeCase c(merge::multislerp(), shape, models, base);
  c.each("weight", weights);
  return c;
}

TEST(MultiSlerp, gives_the_worked_numbers_of_the_sheet) {
  expect_printed(multislerp_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {}, {1, 0.5}).run(),
                 {1.270204, -0.171500, -0.953795, 2.121732, -1.949763, 0.203598});
  expect_printed(multislerp_of(kFixtureShape, {kFixtureA1, kFixtureA2}, kFixtureBase, {1, 0.5}).run(),
                 {1.410690, -0.286717, -0.888690, 2.143358, -1.871807, -0.013559});
}

TEST(MultiSlerp, equals_the_step_in_the_tangent_space_for_any_shape_weights_and_base) {
  for (const Shape& shape : telling_shapes()) {
    const Tensor base = random_tensor(elements_of(shape), 1);
    std::vector<Tensor> models;
    for (std::uint64_t seed : {2, 3, 4}) models.push_back(changed(base, seed, 0.3F));
    for (const Tensor& origin : {Tensor(), base}) {
      for (const double eps : {1e-8, 0.25}) {
        for (const bool normalize : {true, false}) {
          const std::vector<double> weights = {1, 0.5, 2.5};
          MergeCase c = multislerp_of(shape, models, origin, weights);
          c.set("eps", eps).set("normalize_weights", normalize ? 1 : 0);
          // With a base, an element alone can have directions +1 and -1 that cancel; the mean is then as long as it is short.
          expect_rounded_once(c.run(), reference(models, origin, weights, normalize, eps), 1e-10, to_string(shape) + " eps " + std::to_string(eps));
        }
      }
    }
  }
}

TEST(MultiSlerp, returns_a_single_model_even_with_a_base) {
  EXPECT_EQ(multislerp_of(kFixtureShape, {kFixtureA1}, {}, {3}).copied(), 0U);
  EXPECT_EQ(multislerp_of(kFixtureShape, {kFixtureA1}, kFixtureBase, {3}).copied(), 1U);
}

TEST(MultiSlerp, averages_two_opposite_models_linearly_and_says_so) {
  MergeCase c = multislerp_of({3}, {{1, 2, 3}, {-1, -2, -3}}, {}, {1, 1});
  EXPECT_EQ(c.run(), (Tensor{0, 0, 0}));
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("cancel")));
}

TEST(MultiSlerp, refuses_three_models_whose_directions_cancel) {
  const float h = std::sqrt(0.75F);
  EXPECT_THAT(multislerp_of({2}, {{1, 0}, {-0.5F, h}, {-0.5F, -h}}, {}, {1, 1, 1}).refusal(), ::testing::HasSubstr("points nowhere"));
}

TEST(MultiSlerp, leaves_a_tensor_that_no_model_changed_as_the_base_has_it) {
  MergeCase c = multislerp_of(kFixtureShape, {kFixtureBase, kFixtureBase, kFixtureBase}, kFixtureBase, {1, 2, 3});
  EXPECT_EQ(c.run(), kFixtureBase);
  EXPECT_TRUE(c.warnings.empty());
}

TEST(MultiSlerp, refuses_to_normalise_weights_that_sum_to_zero) {
  MergeCase c = multislerp_of(kFixtureShape, {kFixtureA1, kFixtureA2}, {}, {1, -1});
  EXPECT_THAT(c.refusal(), ::testing::HasSubstr("sum to zero"));
  EXPECT_EQ(c.set("normalize_weights", 0).run().size(), 6U);
}

}  // namespace
}  // namespace weft::testing
