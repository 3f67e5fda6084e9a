#include "codec/scalar_grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

namespace weft::codec {
namespace {

constexpr Levels kFloats[] = {Levels::e4m3, Levels::e5m2, Levels::e2m3, Levels::e3m2, Levels::e2m1, Levels::e3m0};

std::vector<int> codes_of(const std::vector<float>& values, const SliceScale& scale, const SliceFormat& format) {
  std::vector<int> codes;
  for (const float value : values) codes.push_back(encode(value, scale, format));
  return codes;
}

double squared_error(const std::vector<float>& values, const SliceFormat& format) {
  return slice_error(values, {}, fit_slice(values, {}, format), format, 2);
}

/// Mean squared error of blocks of normal numbers.
double gaussian_error(std::size_t block, const SliceFormat& format, int num_blocks = 4000) {
  std::mt19937_64 generator(20261);
  std::normal_distribution<float> normal;
  double sum = 0;
  std::vector<float> values(block);
  for (int i = 0; i < num_blocks; ++i) {
    for (float& value : values) value = normal(generator);
    sum += squared_error(values, format);
  }
  return sum / (static_cast<double>(num_blocks) * static_cast<double>(block));
}

TEST(ScalarGrid, every_code_of_a_table_decodes_to_a_value_that_encodes_to_it) {
  for (const Levels levels : {Levels::e4m3, Levels::e5m2, Levels::e2m3, Levels::e3m2, Levels::e2m1, Levels::e3m0, Levels::nf4, Levels::bnb_fp4}) {
    for (int code = 0; code < 1 << info(levels).bits; ++code) {
      const float value = level(levels, static_cast<std::uint8_t>(code));
      if (!std::isfinite(value)) continue;
      // Code 8 of bitsandbytes' FP4 is -0, but stands for what is hardly positive.
      if (levels == Levels::bnb_fp4 && code == 8) continue;
      EXPECT_EQ(nearest_level(levels, value), code) << info(levels).name;
      EXPECT_LE(std::fabs(value), info(levels).largest);
    }
  }
}

TEST(ScalarGrid, a_floating_point_code_is_the_nearest_value_with_ties_to_the_even_mantissa) {
  std::mt19937_64 generator(7);
  for (const Levels levels : kFloats) {
    std::uniform_real_distribution<float> uniform(-1.2F * info(levels).largest, 1.2F * info(levels).largest);
    for (int i = 0; i < 20000; ++i) {
      const float value = i % 2 == 0 ? uniform(generator) : uniform(generator) / 256;
      double least = 1e300;
      for (int code = 0; code < 1 << info(levels).bits; ++code) {
        const float candidate = level(levels, static_cast<std::uint8_t>(code));
        if (std::isfinite(candidate)) least = std::min(least, std::fabs(static_cast<double>(value) - candidate));
      }
      EXPECT_EQ(std::fabs(static_cast<double>(value) - level(levels, nearest_level(levels, value))), least) << info(levels).name << ' ' << value;
    }
  }
  const auto e2m1 = [](float value) { return level(Levels::e2m1, nearest_level(Levels::e2m1, value)); };
  EXPECT_EQ(e2m1(0.25F), 0);
  EXPECT_EQ(e2m1(0.75F), 1);
  EXPECT_EQ(e2m1(1.25F), 1);
  EXPECT_EQ(e2m1(1.75F), 2);
  EXPECT_EQ(e2m1(2.5F), 2);
  EXPECT_EQ(e2m1(3.5F), 4);
  EXPECT_EQ(e2m1(5.0F), 4);
  EXPECT_EQ(e2m1(-100.0F), -6);
  for (int code = 1; code < 8; ++code) EXPECT_EQ(level(Levels::e3m0, static_cast<std::uint8_t>(code)), std::ldexp(0.25F, code - 1));
  EXPECT_EQ(level(Levels::e4m3, nearest_level(Levels::e4m3, INFINITY)), 448);
  EXPECT_EQ(level(Levels::e5m2, nearest_level(Levels::e5m2, INFINITY)), 57344);
  EXPECT_EQ(level(Levels::e2m3, 1), 0.125F);
  EXPECT_EQ(level(Levels::e3m2, 1), 0.0625F);
}

TEST(ScalarGrid, worked_slices_come_out_as_by_hand) {
  const std::vector<float> x = {-0.4F, 0.1F, 0.3F, 1.1F};
  const SliceFormat affine{.bits = 2, .zero = Zero::affine};
  SliceScale scale = fit_slice(x, {}, affine);
  EXPECT_FLOAT_EQ(scale.scale, 0.5F);
  EXPECT_EQ(scale.zero, 1);
  EXPECT_EQ(codes_of(x, scale, affine), (std::vector<int>{0, 1, 2, 3}));

  const SliceFormat restricted{.bits = 4, .zero = Zero::restricted};
  scale = fit_slice(x, {}, restricted);
  EXPECT_NEAR(scale.scale, 0.157142857, 1e-7);
  EXPECT_EQ(codes_of(x, scale, restricted), (std::vector<int>{5, 9, 10, 15}));
  EXPECT_NEAR(slice_error(x, {}, scale, restricted, 2), 0.008571, 1e-6);

  const std::vector<float> y = {.11F, -.23F, .31F, -.42F, .5F, -.08F, .27F, 2.0F};
  SliceFormat three{.bits = 3, .zero = Zero::affine};
  EXPECT_NEAR(slice_error(y, {}, fit_slice(y, {}, three), three, 2.4F), 0.030537, 2e-6);
  three.search = Search::shrink;
  EXPECT_NEAR(slice_error(y, {}, fit_slice(y, {}, three), three, 2.4F), 0.026365, 2e-6);

  const std::vector<float> z = {.9F, -.31F, .2F, -2.4F};
  const SliceFormat fp4{.levels = Levels::e2m1};
  scale = fit_slice(z, {}, fp4);
  EXPECT_FLOAT_EQ(scale.scale, 0.4F);
  EXPECT_FLOAT_EQ(round_trip(.9F, scale, fp4), .8F);
  EXPECT_FLOAT_EQ(round_trip(-.31F, scale, fp4), -.4F);
  EXPECT_NEAR(slice_error(z, {}, scale, fp4, 2), .0181, 1e-6);

  const SliceFormat signed_largest{.bits = 4, .zero = Zero::signed_largest};
  for (const std::vector<float>& values : {x, y, z}) {
    scale = fit_slice(values, {}, signed_largest);
    const float largest = *std::max_element(values.begin(), values.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
    EXPECT_EQ(encode(largest, scale, signed_largest), 0);
    EXPECT_EQ(round_trip(largest, scale, signed_largest), largest);
  }
}

TEST(ScalarGrid, the_soft_threshold_of_hqq_is_that_of_the_paper) {
  const float expected[] = {0, 0, 0.37689F, 1.91877F};
  const float values[] = {.05F, .15F, .5F, 2.0F};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(hqq_shrink(values[i], 10), expected[i], 1e-5);
    EXPECT_EQ(hqq_shrink(-values[i], 10), -hqq_shrink(values[i], 10));
  }
  EXPECT_EQ(hqq_shrink(0, 10), 0);
  EXPECT_EQ(hqq_shrink(0.1701F, 10), 0);
  EXPECT_GT(hqq_shrink(0.1702F, 10), 0);
}

TEST(ScalarGrid, normal_numbers_lose_what_the_table_of_the_literature_says) {
  const auto check = [](double expected, std::size_t block, SliceFormat format, double tolerance = 0.02) {
    format.norm = 2;
    EXPECT_NEAR(gaussian_error(block, format) / expected, 1, tolerance) << info(format.levels).name << format.bits << ' ' << block;
  };
  check(0.0116, 64, {.bits = 4, .zero = Zero::restricted});
  check(0.0083, 64, {.bits = 4, .zero = Zero::affine});
  check(0.0090, 64, {.bits = 4, .zero = Zero::restricted, .search = Search::shrink});
  check(0.0632, 64, {.bits = 3, .zero = Zero::restricted});
  check(0.0383, 64, {.bits = 3, .zero = Zero::affine});
  check(0.0360, 64, {.bits = 3, .zero = Zero::restricted, .search = Search::shrink});
  check(0.516, 64, {.bits = 2, .zero = Zero::restricted});
  check(0.210, 64, {.bits = 2, .zero = Zero::affine});
  check(0.143, 64, {.bits = 2, .zero = Zero::restricted, .search = Search::shrink});
  check(0.0085, 64, {.levels = Levels::nf4});
  check(0.0102, 32, {.levels = Levels::e2m1});
  check(0.0134, 32, {.levels = Levels::e2m1, .scale_type = DType::f8_e8m0});
  check(0.0125, 32, {.levels = Levels::e2m1, .search = Search::shrink, .scale_type = DType::f8_e8m0});
}

TEST(ScalarGrid, a_search_never_makes_the_error_larger) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const Zero zero : {Zero::centred, Zero::affine, Zero::offset}) {
      SliceFormat format{.bits = bits, .zero = zero, .norm = 2};
      const double plain = gaussian_error(32, format, 100);
      format.search = Search::shrink;
      const double shrunk = gaussian_error(32, format, 100);
      format.search = Search::least_squares;
      const double refined = gaussian_error(32, format, 100);
      EXPECT_LE(shrunk, plain);
      EXPECT_LE(refined, shrunk);
      EXPECT_LT(refined, plain);
    }
  }
}

TEST(ScalarGrid, odd_slices_give_finite_values) {
  const float huge = 3.0e38F, tiny = 1e-42F;
  const std::vector<std::vector<float>> slices = {
      {}, {0, 0, 0}, {0.02F, 0.02F}, {-5}, {1, 1, 1, 1e6F}, {huge, -huge}, {tiny, -tiny}, {1e-9F, -1e-9F}, {-1, -2, -3}, {-0.0F, 0}};
  for (const std::vector<float>& slice : slices) {
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3}) {
      for (const Search search : {Search::none, Search::shrink, Search::least_squares}) {
        for (const Zero zero : {Zero::centred, Zero::restricted, Zero::signed_largest, Zero::affine, Zero::offset}) {
          const SliceFormat format{.bits = 4, .zero = zero, .search = search, .scale_type = type};
          const SliceScale scale = fit_slice(slice, {}, format);
          EXPECT_TRUE(std::isfinite(scale.scale) && scale.scale != 0 && std::isfinite(scale.zero));
          for (const float value : slice) EXPECT_TRUE(std::isfinite(round_trip(value, scale, format)));
        }
        const SliceFormat format{.levels = Levels::e2m1, .search = search, .scale_type = type};
        const SliceScale scale = fit_slice(slice, {}, format);
        EXPECT_TRUE(std::isfinite(scale.scale) && scale.scale != 0);
      }
    }
    const SliceFormat format{.levels = Levels::e2m1, .scale_type = DType::f8_e8m0};
    EXPECT_TRUE(std::isfinite(fit_slice(slice, {}, format).scale));
  }
  const SliceFormat format{.bits = 4, .zero = Zero::affine};
  const std::vector<float> zeros(4);
  EXPECT_EQ(fit_slice(zeros, {}, format).scale, 1);
  EXPECT_EQ(round_trip(0, fit_slice(zeros, {}, format), format), 0);
}

TEST(ScalarGrid, half_quadratic_splitting_keeps_the_mean_absolute_error_below_that_of_rounding) {
  std::mt19937_64 generator(5);
  std::student_t_distribution<float> heavy(3);
  double plain = 0, hqq = 0;
  std::vector<float> values(64);
  for (int i = 0; i < 500; ++i) {
    for (float& value : values) value = heavy(generator);
    SliceFormat format{.bits = 3, .zero = Zero::offset};
    const double before = slice_error(values, {}, fit_slice(values, {}, format), format, 1);
    format.search = Search::hqq;
    const double after = slice_error(values, {}, fit_slice(values, {}, format), format, 1);
    EXPECT_LE(after, before * (1 + 1e-5));
    plain += before;
    hqq += after;
  }
  EXPECT_LT(hqq, 0.98 * plain);
}

TEST(ScalarGrid, products_of_codes_and_fp8_scales_are_the_numbers_of_fp8_that_are_nearest) {
  // All that E4M3 has, slowly.
  std::vector<double> numbers;
  for (int exponent = 0; exponent < 16; ++exponent)
    for (int mantissa = 0; mantissa < 8; ++mantissa)
      if (exponent < 15 || mantissa < 7) numbers.push_back(exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10));
  constexpr float kUnit = 0.00037F;
  for (const double scale : numbers) {
    if (scale == 0 || scale > 64) continue;
    const SliceFormat format{.bits = 4, .zero = Zero::restricted, .scale_type = DType::f8_e4m3, .scale_unit = kUnit, .rounds_products = true};
    const float stored = static_cast<float>(scale) * kUnit;
    EXPECT_EQ(storable_scale(stored, format), stored);
    for (int code = 1; code < 16; ++code) {
      const double product = (code - 8) * scale;
      double nearest = 0, least = 1e9;
      bool tie = false;
      for (const double number : numbers)
        for (const double candidate : {number, -number}) {
          const double distance = std::fabs(candidate - product);
          tie = distance == least ? tie || std::fabs(candidate) != std::fabs(nearest) : distance < least ? false : tie;
          if (distance < least) least = distance, nearest = candidate;
        }
      const float got = decode(static_cast<std::uint8_t>(code), {stored, 8}, format);
      if (!tie) {
        EXPECT_EQ(got, kUnit * static_cast<float>(nearest)) << product;
      }
      EXPECT_LE(std::fabs(static_cast<double>(got / kUnit) - product), least * (1 + 1e-6) + 1e-6 * std::fabs(product));
    }
  }
}

}  // namespace
}  // namespace weft::codec
