#include "merge/merge_cases.h"

namespace weft::testing {
namespace {

std::vector<double> reference(const Shape& shape, const std::vector<Tensor>& models, const Tensor& base, Slices how, bool clamps) {
  const auto count = static_cast<double>(models.size());
  std::vector<double> out(base.size());
  // A 1-D tensor is one row.
  for (const std::vector<std::size_t>& slice : slices_of(shape, how)) {
    std::vector<std::vector<double>> deltas;
    for (const Tensor& model : models) {
      deltas.emplace_back();
      for (const std::size_t i : slice) deltas.back().push_back(static_cast<double>(model[i]) - static_cast<double>(base[i]));
    }
    double sum = 0;
    double pairs = 0;
    for (std::size_t i = 0; i < deltas.size(); ++i)
      for (std::size_t j = 0; j < i; ++j, ++pairs)
        sum += std::clamp(dot_of(deltas[i], deltas[j]) / std::max(norm_of(deltas[i]) * norm_of(deltas[j]), 1e-6), -1.0, 1.0);
    const double cosine = sum / pairs;
    const double divisor = 1 + (count - 1) * cosine;
    double t = std::abs(divisor) < 1e-6 ? 0.0 : count * cosine / divisor;
    if (clamps) t = std::clamp(t, 0.0, 1.0);
    for (std::size_t i : slice) {
      double mean = 0;
      for (const Tensor& model : models) mean += static_cast<double>(model[i]) / count;
      out[i] = t * mean + (1 - t) * static_cast<double>(base[i]);
    }
  }
  return out;
}

TEST(ModelStock, gives_the_worked_numbers_of_the_sheet) {
  expect_printed(MergeCase(merge::model_stock(), {2}, {{1, 0}, {1, 1}}, {0, 0}).run(), {0.828427, 0.414214});
  MergeCase fixture(merge::model_stock(), kFixtureShape, {kFixtureA1, kFixtureA2}, kFixtureBase);
  expect_printed(fixture.run(), {0.814098, 0.278853, -1.185902, 1.860574, -1.814098, 1.057706});
  EXPECT_THAT(fixture.warnings, ::testing::ElementsAre(::testing::HasSubstr("outside [0, 1]")));
}

TEST(ModelStock, equals_the_definition_in_double_for_any_shape_and_number_of_models) {
  for (const Shape& shape : telling_shapes()) {
    const Tensor base = random_tensor(elements_of(shape), 1);
    const Tensor common = changed(base, 9, 0.2F);
    std::vector<Tensor> models = {changed(common, 2, 0.1F), changed(common, 3, 0.1F)};
    for (int extra = 0; extra < 2; ++extra) {
      for (const Slices how : {Slices::whole, Slices::rows}) {
        for (const bool clamps : {false, true}) {
          MergeCase c(merge::model_stock(), shape, models, base);
          c.set("filter_wise", how == Slices::rows ? 1 : 0).set("clamp_t", clamps ? 1 : 0);
          // Rows whose divisor is near zero step far; the reference rounds there like everyone.
          expect_rounded_once(c.run(), reference(shape, models, base, how, clamps), 1e-9, to_string(shape) + (how == Slices::rows ? " rows" : ""));
        }
      }
      models.push_back(changed(common, 4, 0.3F));
    }
  }
}

TEST(ModelStock, takes_the_base_where_the_changes_cancel) {
  MergeCase c(merge::model_stock(), {2}, {{2, 1}, {0, 1}}, {1, 1});
  EXPECT_EQ(c.run(), (Tensor{1, 1}));
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("cancel")));
  // Only in the first of two rows.
  MergeCase rows(merge::model_stock(), {2, 2}, {{2, 1, 2, 2}, {0, 1, 2, 2}}, {1, 1, 1, 1});
  EXPECT_EQ(rows.set("filter_wise", 1).run(), (Tensor{1, 1, 2, 2}));
}

TEST(ModelStock, clamps_the_step_when_asked) {
  MergeCase c(merge::model_stock(), kFixtureShape, {kFixtureA1, kFixtureA2}, kFixtureBase);
  EXPECT_EQ(c.set("clamp_t", 1).run(), kFixtureBase);
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("clamped")));
}

TEST(ModelStock, says_when_the_floor_hides_the_angle_of_small_changes) {
  const std::vector<Tensor> models = {{1e-4F, 0}, {1e-4F, 0}};
  MergeCase c(merge::model_stock(), {2}, models, {0, 0});
  expect_rounded_once(c.run(), reference({2}, models, {0, 0}, Slices::whole, false), 1e-14);
  EXPECT_THAT(c.warnings, ::testing::ElementsAre(::testing::HasSubstr("floor of 1e-6")));
}

TEST(ModelStock, copies_a_tensor_that_the_base_alone_has_and_refuses_one_model) {
  EXPECT_EQ(MergeCase(merge::model_stock(), kFixtureShape, {}, kFixtureBase).copied(), 0U);
  EXPECT_THAT(MergeCase(merge::model_stock(), kFixtureShape, {kFixtureA1}, kFixtureBase).refusal(), ::testing::HasSubstr("1 model"));
  EXPECT_THAT(MergeCase(merge::model_stock(), kFixtureShape, {kFixtureA1, kFixtureA2}).refusal(), ::testing::HasSubstr("no base"));
}

}  // namespace
}  // namespace weft::testing
