#include <numeric>

#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

std::vector<double> reference(const std::vector<Tensor>& models, const Tensor& base, double select_topk, bool relative_floor) {
  const std::size_t n = base.size();
  const std::size_t count = models.size();
  std::vector<Tensor> deltas = models;
  for (Tensor& delta : deltas)
    for (std::size_t i = 0; i < n; ++i) delta[i] -= base[i];
  if (select_topk < 1) {
    std::vector<float> variance(n);
    std::size_t different = 0;
    for (std::size_t i = 0; i < n; ++i) {
      double mean = 0;
      for (const Tensor& delta : deltas) mean += delta[i] / static_cast<double>(count);
      double squares = 0;
      for (const Tensor& delta : deltas) squares += std::pow(delta[i] - mean, 2);
      variance[i] = static_cast<float>(squares / static_cast<double>(count));
      different += variance[i] != 0 ? 1 : 0;
    }
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return variance[a] > variance[b]; });
    const auto kept = static_cast<std::size_t>(static_cast<double>(different) * select_topk);
    for (std::size_t r = kept; r < n; ++r)
      for (Tensor& delta : deltas) delta[order[r]] = 0;
  }
  std::vector<double> weights(count);
  double total = 0;
  for (std::size_t k = 0; k < count; ++k) {
    for (const float d : deltas[k]) weights[k] += static_cast<double>(d) * static_cast<double>(d) / static_cast<double>(n);
    total += weights[k];
  }
  for (double& w : weights) w = (relative_floor ? total == 0 : total < 1e-6) ? 1.0 / static_cast<double>(count) : w / total;
  std::vector<double> out(n);
  for (std::size_t i = 0; i < n; ++i) {
    float vote = 0;
    for (const Tensor& delta : deltas) vote += delta[i];
    double mixed = 0;
    double divisor = 0;
    for (std::size_t k = 0; k < count; ++k) {
      if (deltas[k][i] == 0 || (deltas[k][i] > 0) != (vote >= 0)) continue;
      mixed += weights[k] * (static_cast<double>(models[k][i]) - static_cast<double>(base[i]));
      divisor += weights[k];
    }
    out[i] = static_cast<double>(base[i]) + mixed / std::max(divisor, 1e-6);
  }
  return out;
}

TEST(Sce, gives_the_worked_numbers_of_the_sheet) {
  const auto delta = [](const Tensor& out) {
    Tensor d = out;
    for (std::size_t i = 0; i < d.size(); ++i) d[i] -= kFixtureBase[i];
    return d;
  };
  MergeCase c(merge::sce(), kFixtureShape, {kFixtureA1, kFixtureA2}, kFixtureBase);
  expect_printed(delta(c.run()), {0.5, -0.148140, 0.2, 0.074070, -0.6, -0.3});
  expect_printed(delta(c.set("select_topk", 0.5).run()), {0.5, 0, 0, 0, -0.6, 0});
}

TEST(Sce, equals_the_definition_in_double_for_any_shape_and_share) {
  for (const Shape& shape : telling_shapes()) {
    const std::size_t n = elements_of(shape);
    const Tensor base = random_tensor(n, 1);
    for (std::size_t count = 1; count <= 3; ++count) {
      std::vector<Tensor> models;
      for (std::size_t k = 0; k < count; ++k) {
        models.push_back(changed(base, 2 + k, 0.1F * static_cast<float>(k + 1)));
        // Every third position is nobody's change, so fewer positions differ than there are.
        for (std::size_t i = 0; i < n; i += 3) models.back()[i] = base[i];
      }
      for (const double share : {1.0, 0.9, 0.3, 0.001}) {
        MergeCase c(merge::sce(), shape, models, base);
        expect_rounded_once(c.set("select_topk", share).run(), reference(models, base, share, false), 1e-12,
                            to_string(shape) + " models " + std::to_string(count) + " share " + std::to_string(share));
      }
    }
  }
}

TEST(Sce, keeps_exactly_the_share_of_positions_that_differ_the_lower_index_first) {
  // 40000 positions in several tiles; half of them differ, all by the same amount.
  const std::size_t n = 40000;
  const Tensor base(n, 1.0F);
  Tensor a = base;
  for (std::size_t i = 0; i < n; i += 2) a[i] = 1.5F;
  MergeCase c(merge::sce(), {200, 200}, {a, base}, base);
  const Tensor out = c.set("select_topk", 0.25).run();
  for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(out[i], i < n / 4 ? a[i] : base[i]) << i;
}

TEST(Sce, returns_the_base_when_nothing_is_selected) {
  // Identical models differ nowhere, and one model has no variance.
  EXPECT_EQ(MergeCase(merge::sce(), kFixtureShape, {kFixtureA1, kFixtureA1}, kFixtureBase).set("select_topk", 0.9).run(), kFixtureBase);
  EXPECT_EQ(MergeCase(merge::sce(), kFixtureShape, {kFixtureA1}, kFixtureBase).set("select_topk", 0.9).copied(), 0U);
  EXPECT_EQ(MergeCase(merge::sce(), kFixtureShape, {kFixtureA1, kFixtureA2}, kFixtureBase).set("select_topk", 0).run(), kFixtureBase);
}

TEST(Sce, weights_models_equally_below_an_absolute_floor_unless_asked_otherwise) {
  Tensor a = kFixtureBase;
  Tensor b = kFixtureBase;
  for (std::size_t i = 0; i < a.size(); ++i) {
    a[i] += 1e-3F * (kFixtureA1[i] - kFixtureBase[i]);
    b[i] += 1e-3F * (kFixtureA2[i] - kFixtureBase[i]);
  }
  MergeCase c(merge::sce(), kFixtureShape, {a, b}, kFixtureBase);
  expect_rounded_once(c.run(), reference({a, b}, kFixtureBase, 1, false), 1e-14);
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("floor of 1e-6")));
  // (0,1): both changes agree in sign, -0.2 and -0.1 thousandths, so equal weights give -0.15.
  EXPECT_NEAR(c.run()[1], -0.15e-3, 1e-9);
  EXPECT_NEAR(c.set("relative_floor", 1).run()[1], -0.148140e-3, 1e-8);
  EXPECT_TRUE(c.warnings.empty());
}

TEST(Sce, ranks_variances_beyond_the_range_of_float32) {
  MergeCase large(merge::sce(), {4}, {{1e30F, 2e30F, 0, 1}, {0, 0, 0, 0}}, {0, 0, 0, 0});
  EXPECT_EQ(large.set("select_topk", 0.34).run(), (Tensor{1e30F, 0, 0, 0}));  // two variances beyond the largest number: the first counts as larger
  MergeCase small(merge::sce(), {4}, {{0, 1e-30F, 0, 0}, {0, 0, 0, 0}}, {0, 0, 0, 0});
  EXPECT_EQ(small.set("select_topk", 0.999999).run(), (Tensor{0, 0, 0, 0}));  // int(1 * 0.999999) = 0
}

TEST(Sce, refuses_a_tensor_that_the_base_lacks) {
  EXPECT_THAT(MergeCase(merge::sce(), kFixtureShape, {kFixtureA1, kFixtureA2}).refusal(), ::testing::HasSubstr("base"));
}

}  // namespace
}  // namespace weft::testing
