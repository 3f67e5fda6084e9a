#include "measure/elements.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "math/convert.h"
#include "measure/structure.h"

namespace weft::measure {
namespace {

const Selection kAll{std::vector<std::string>{"all"}};

std::vector<float> normal(std::size_t count, double sigma, std::uint64_t seed) {
  std::vector<double> values(count);
  NormalStream(seed, "elements", 0).fill(values);
  std::vector<float> result(count);
  for (std::size_t i = 0; i < count; ++i) result[i] = static_cast<float>(values[i] * sigma);
  return result;
}

/// A fit to the exact distribution of magnitudes: the counts that a sample without end would have.
WeibullFit fit_exact(double (*share_below)(double), double low = 0.1, double high = 0.9) {
  std::vector<std::uint64_t> counts(kWeibullBins);
  for (std::size_t j = 0; j < kWeibullBins; ++j) {
    const double from = std::pow(10.0, -12 + static_cast<double>(j) * 14 / kWeibullBins),
                 to = std::pow(10.0, -12 + static_cast<double>(j + 1) * 14 / kWeibullBins);
    counts[j] = static_cast<std::uint64_t>(std::llround(1e15 * (share_below(to) - share_below(from))));
  }
  return fit_weibull(counts, low, high);
}

TEST(Elements, the_weibull_protocol_has_the_published_limits_on_known_distributions) {
  const WeibullFit gaussian = fit_exact([](double x) { return std::erf(x / 0.02 / std::sqrt(2.0)); });
  EXPECT_NEAR(gaussian.k, 1.20525, 5e-5);
  EXPECT_NEAR(gaussian.lambda, 0.017757, 2e-6);
  EXPECT_NEAR(gaussian.r2, 0.9978, 1e-4);
  EXPECT_NEAR(fit_exact([](double x) { return -std::expm1(-x / 0.01); }).k, 1.0, 1e-3);
  EXPECT_NEAR(fit_exact([](double x) { return std::min(1.0, x); }).k, 1.3683, 2e-3);
  const WeibullFit weibull = fit_exact([](double x) { return -std::expm1(-std::pow(x / 2, 1.5)); });
  EXPECT_NEAR(weibull.k, 1.4997, 5e-4);
  EXPECT_NEAR(weibull.lambda, 2.0, 5e-4);
  EXPECT_NEAR(fit_exact([](double x) { return std::erf(x / 0.02 / std::sqrt(2.0)); }, 0.05, 0.95).k, 1.1907, 1e-3);
}

TEST(Elements, scaling_moves_the_weibull_scale_and_keeps_the_shape) {
  std::vector<float> small = normal(200'000, 0.02, 1), large = small;
  for (float& value : large) value *= 3;
  Measures a, b;
  (void)measure_elements(small, DType::f32, kAll, a);
  (void)measure_elements(large, DType::f32, kAll, b);
  EXPECT_NEAR(*a.find("weibull.k"), *b.find("weibull.k"), 0.003);
  EXPECT_NEAR(*b.find("weibull.lambda") / *a.find("weibull.lambda"), 3, 0.01);
}

TEST(Elements, a_normal_sample_has_the_ratios_of_half_a_normal_distribution) {
  std::vector<float> values = normal(1'000'000, 1, 2);
  Measures out;
  (void)measure_elements(values, DType::f32, kAll, out);
  EXPECT_NEAR(*out.find("moments.q90_q10"), 13.0896, 0.1);
  EXPECT_NEAR(*out.find("moments.q99_q50"), 3.8189, 0.02);
  EXPECT_NEAR(*out.find("moments.q999_q50"), 4.8785, 0.05);
  EXPECT_NEAR(*out.find("moments.gini"), 0.41421, 0.001);
  EXPECT_NEAR(*out.find("moments.above_one_std"), 0.158655, 0.001);
}

TEST(Elements, counting_patterns_gives_what_the_values_give) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    std::vector<float> values = normal(50'003, 0.05, 3);
    values[17] = 0;
    values[29] = -0.0f;
    math::round_through(dtype, values);
    std::vector<std::uint16_t> patterns(values.size());
    math::encode(dtype, values, std::as_writable_bytes(std::span(patterns)));
    PatternCounts counts(dtype);
    // In uneven pieces.
    counts.add(std::span(patterns).first(9001));
    counts.add(std::span(patterns).subspan(9001));
    Measures by_counts, by_values;
    (void)measure_elements(counts, kAll, by_counts);
    (void)measure_elements(values, dtype, kAll, by_values);
    ASSERT_EQ(by_counts.values.size(), by_values.values.size());
    for (const auto& [name, value] : by_values.values) {
      const double* counted = by_counts.find(name);
      ASSERT_NE(counted, nullptr) << name;
      EXPECT_NEAR(*counted, value, 1e-11 * std::abs(value) + 1e-13) << name;
    }
  }
}

TEST(Elements, the_first_largest_and_the_first_non_finite_element_are_named) {
  std::vector<float> values = {1, -3, 3, 2};
  Measures out;
  (void)measure_elements(values, DType::f32, kAll, out);
  EXPECT_EQ(*out.find("moments.argmax_abs"), 1);
  std::vector<float> broken = {1, 2, std::numeric_limits<float>::infinity(), std::nanf("")};
  Measures bad;
  EXPECT_FALSE(measure_elements(broken, DType::f32, kAll, bad).finite);
  EXPECT_EQ(*bad.find("moments.inf"), 1);
  EXPECT_EQ(*bad.find("moments.nan"), 1);
  EXPECT_EQ(*bad.find("moments.first_nonfinite"), 2);
  EXPECT_EQ(bad.find("moments.mean"), nullptr);
  EXPECT_EQ(*bad.find_skipped("moments.mean"), "non-finite");

  const std::vector<std::uint16_t> patterns = {0x3F80, 0x7F80, 0xFFC0, 0x4000};
  PatternCounts counts(DType::bf16);
  counts.add(patterns);
  Measures counted;
  (void)measure_elements(counts, kAll, counted);
  EXPECT_EQ(*counted.find("moments.inf"), 1);
  EXPECT_EQ(*counted.find("moments.nan"), 1);
  EXPECT_EQ(*counted.find("moments.first_nonfinite"), 1);
}

TEST(Elements, constant_zero_and_empty_tensors_have_no_number_that_is_not_one) {
  std::vector<float> constant(1000, 0.125f), zero(1000, 0.0f), none;
  Measures a, b, c;
  (void)measure_elements(constant, DType::f32, kAll, a);
  EXPECT_EQ(*a.find("moments.variance"), 0);
  EXPECT_EQ(*a.find_skipped("moments.skewness"), "undefined (zero variance)");
  EXPECT_EQ(*a.find_skipped("weibull.k"), "fewer than 64 distinct magnitudes");
  EXPECT_TRUE(measure_elements(zero, DType::f32, kAll, b).zero);
  EXPECT_EQ(*b.find("moments.zero"), 1000);
  EXPECT_EQ(*b.find_skipped("moments.gini"), "undefined (zero denominator)");
  (void)measure_elements(none, DType::f32, kAll, c);
  EXPECT_EQ(*c.find_skipped("moments.mean"), "empty");
}

TEST(Elements, rounding_noise_of_bfloat16_is_what_rounding_a_normal_sample_adds) {
  std::vector<float> values = normal(300'000, 0.02, 4), rounded = values;
  math::round_through(DType::bf16, rounded);
  double noise = 0, squares = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    noise += std::pow(static_cast<double>(rounded[i]) - static_cast<double>(values[i]), 2);
    squares += std::pow(static_cast<double>(values[i]), 2);
  }
  Measures out;
  (void)measure_elements(rounded, DType::bf16, kAll, out);
  EXPECT_NEAR(*out.find("storage.noise_relative"), std::sqrt(noise / squares), 2e-5);
  EXPECT_NEAR(*out.find("storage.noise_relative"), 0.0017, 1e-4);
}

}  // namespace
}  // namespace weft::measure
