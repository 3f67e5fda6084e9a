#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

struct Scores {
  std::vector<double> importance;
  double threshold = 0;
};

std::vector<double> softmax(const std::vector<double>& x) {
  const double largest = *std::max_element(x.begin(), x.end());
  std::vector<double> p;
  double sum = 0;
  for (const double v : x) p.push_back(std::exp(v - largest));
  for (const double v : p) sum += v;
  for (double& v : p) v = v / sum + 1e-8;
  return p;
}

Scores reference(const Shape& shape, const Tensor& base, const Tensor& other) {
  Scores scores;
  scores.importance.resize(base.size());
  for (const std::vector<std::size_t>& row : slices_of(shape, Slices::rows)) {
    std::vector<double> a;
    std::vector<double> b;
    for (const std::size_t i : row) {
      a.push_back(other[i]);
      b.push_back(base[i]);
    }
    const std::vector<double> p = softmax(a);
    const std::vector<double> q = softmax(b);
    double divergence = 0;
    for (std::size_t i = 0; i < p.size(); ++i) divergence += p[i] * std::log(p[i] / q[i]);
    for (std::size_t i = 0; i < row.size(); ++i) scores.importance[row[i]] = std::abs(a[i] - b[i]) * std::max(divergence, 0.0);
  }
  std::vector<double> sorted = scores.importance;
  std::sort(sorted.begin(), sorted.end());
  const auto quantile = [&](double x) { return sorted[static_cast<std::size_t>(x * static_cast<double>(sorted.size() - 1))]; };
  scores.threshold = quantile(0.5) + 1.5 * (quantile(0.75) - quantile(0.25));
  return scores;
}

/// Most changes small, some large: so that some stand out.
Tensor fine_tuned(const Tensor& base) {
  const Tensor u = random_tensor(base.size(), 2);
  Tensor other = base;
  for (std::size_t i = 0; i < base.size(); ++i) other[i] += 0.5F * u[i] * u[i] * u[i] * u[i] * u[i];
  return other;
}

MergeCase fusion_of(const Shape& shape, const Tensor& base, const Tensor& other) { return MergeCase(merge::arcee_fusion(), shape, {other}, base); }

TEST(ArceeFusion, gives_the_worked_numbers_of_the_sheet) {
  EXPECT_EQ(fusion_of(kFixtureShape, kFixtureBase, kFixtureA1).run(), (Tensor{1.5F, 0, -1, 2, -2, 0.5F}));
  const Scores scores = reference(kFixtureShape, kFixtureBase, kFixtureA1);
  EXPECT_NEAR(scores.threshold, 0.0082347, 0.5e-7);
  // The sheet's come from float32 sums of terms of size 0.1, so their last digit is rounding.
  EXPECT_NEAR(scores.importance[0] / 0.5, 0.0391581, 1e-7);
  EXPECT_NEAR(scores.importance[4] / 0.4, 0.0109796, 1e-7);
}

TEST(ArceeFusion, copies_what_scores_at_or_above_the_threshold_and_nothing_else) {
  for (const Shape& shape : telling_shapes()) {
    const Tensor base = random_tensor(elements_of(shape), 1);
    Tensor other = fine_tuned(base);
    for (std::size_t i = 0; i < other.size(); i += 5) other[i] = base[i];
    const Scores scores = reference(shape, base, other);
    const Tensor out = fusion_of(shape, base, other).run();
    for (std::size_t i = 0; i < out.size(); ++i) {
      // A divergence is a difference of sums of up to n terms near 1e-16 each; nothing closer than that to the threshold can be told.
      const double doubt = 1e-6 * scores.threshold + 1e-13;
      if (std::abs(scores.importance[i] - scores.threshold) <= doubt && scores.threshold > 0) continue;
      ASSERT_EQ(out[i], scores.importance[i] >= scores.threshold ? other[i] : base[i]) << to_string(shape) << " element " << i;
    }
    if (shape.size() > 1 && out.size() > 1000) {
      EXPECT_NE(out, base);
      EXPECT_NE(out, other);
    }
  }
}

TEST(ArceeFusion, gives_the_same_bits_for_any_order_and_number_of_workers) {
  const Tensor base = random_tensor(300 * 257, 1);
  MergeCase c = fusion_of({300, 257}, base, fine_tuned(base));
  const Tensor want = c.run();
  EXPECT_EQ(c.run({.num_tallies = 5, .reverse_tiles = true}), want);
  EXPECT_NE(want, base);
}

TEST(ArceeFusion, copies_everything_where_every_score_is_zero) {
  EXPECT_EQ(fusion_of(kFixtureShape, kFixtureA1, kFixtureA1).run(), kFixtureA1);
  // Rows of one element have one distribution.
  EXPECT_EQ(fusion_of({3, 1}, {1, 2, 3}, {4, 5, 6}).run(), (Tensor{4, 5, 6}));
}

TEST(ArceeFusion, copies_a_tensor_that_one_model_alone_has_and_refuses_three) {
  MergeCase one = fusion_of(kFixtureShape, kFixtureBase, kFixtureA1);
  one.context.inputs.pop_back();
  EXPECT_EQ(one.copied(), 0U);
  EXPECT_THAT(MergeCase(merge::arcee_fusion(), kFixtureShape, {kFixtureA1, kFixtureA2}, kFixtureBase).refusal(), ::testing::HasSubstr("has 3"));
  EXPECT_THAT(MergeCase(merge::arcee_fusion(), kFixtureShape, {kFixtureA1, kFixtureA2}).refusal(), ::testing::HasSubstr("no base"));
}

}  // namespace
}  // namespace weft::testing
