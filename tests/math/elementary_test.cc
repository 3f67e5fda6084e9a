#include "math/elementary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernel_checks.h"

namespace weft::math {
namespace {

using test::Guarded;
using test::kLengths;
using test::on_every_target;
using test::Random;

constexpr double kBound = 1e-15;  // relative, as the header promises
constexpr double kInf = std::numeric_limits<double>::infinity();

/// Checks got against the reference in long double (64 bits of mantissa); `absolute` is added to the relative bound.
void expect_near(const char* name, double x, double got, long double want, double absolute = 0) {
  const long double error = std::abs(static_cast<long double>(got) - want);
  EXPECT_LE(error, kBound * std::abs(want) + absolute) << name << '(' << x << ") = " << got << ", not " << static_cast<double>(want);
}

TEST(Elementary, sin_and_cos_are_within_their_bound) {
  Random random(1);
  const auto check = [](double x) {
    // Near a zero of the function the result is the difference of x and a multiple of pi, known to 119 bits.
    expect_near("sin", x, sin(x), std::sin(static_cast<long double>(x)), 1e-16);
    expect_near("cos", x, cos(x), std::cos(static_cast<long double>(x)), 1e-16);
  };
  for (int i = -200000; i <= 200000; ++i) check(i * 1e-4);
  for (int i = 0; i < 200000; ++i) check((random.uniform() - 0.5) * 2 * 0x1p20);
  for (int i = 0; i < 2000; ++i) check(std::ldexp(random.uniform(), -static_cast<int>(random.below(1070))));
  // Next to multiples of pi/2.
  for (int n = 1; n < 2000; ++n) check(n * 1.5707963267948966);
  check(0x1p20);
  EXPECT_EQ(sin(0.0), 0.0);
  EXPECT_TRUE(std::signbit(sin(-0.0)));
  EXPECT_EQ(cos(0.0), 1.0);
  for (const double x : {kInf, -kInf, std::nan(""), 0x1p21}) EXPECT_TRUE(std::isnan(sin(x)) && std::isnan(cos(x))) << x;
}

TEST(Elementary, sin_stays_accurate_relative_to_small_results_below_pi) {
  // The double next to pi: its sine is what pi has beyond it, which is known.
  EXPECT_NEAR(sin(3.141592653589793), 1.2246467991473532e-16, 1e-31);
  EXPECT_NEAR(cos(1.5707963267948966), 6.123233995736766e-17, 1e-32);
}

TEST(Elementary, acos_is_within_its_bound) {
  Random random(2);
  const auto check = [](double x) { expect_near("acos", x, acos(x), std::acos(static_cast<long double>(x))); };
  for (int i = -200000; i <= 200000; ++i) check(i / 200000.0);
  for (int i = 0; i < 200000; ++i) check(random.uniform() * 2 - 1);
  for (int i = 1; i < 1000; ++i) {
    check(1 - std::ldexp(random.uniform(), -i % 53));
    check(std::ldexp(random.uniform(), -i) - 1);
    check(std::ldexp(random.uniform(), -i));
  }
  EXPECT_EQ(acos(1.0), 0.0);
  EXPECT_EQ(acos(-1.0), 3.141592653589793);
  for (const double x : {1.0000000000000002, -1.0000000000000002, kInf, std::nan("")}) EXPECT_TRUE(std::isnan(acos(x))) << x;
}

TEST(Elementary, exp_is_within_its_bound) {
  Random random(3);
  const auto check = [](double x) {
    // A subnormal result has fewer bits: half of the smallest number is added to the bound.
    expect_near("exp", x, exp(x), std::exp(static_cast<long double>(x)), x < -708 ? 0x1p-1074 : 0);
  };
  for (int i = -300000; i <= 300000; ++i) check(i * 1e-4);
  for (int i = 0; i < 300000; ++i) check(random.uniform() * 1454 - 745);
  for (int i = 0; i < 2000; ++i) check(std::ldexp(random.uniform() - 0.5, -static_cast<int>(random.below(1070))));
  EXPECT_EQ(exp(0.0), 1.0);
  EXPECT_EQ(exp(-kInf), 0.0);
  EXPECT_EQ(exp(-1e300), 0.0);
  EXPECT_EQ(exp(-745.2), 0.0);
  EXPECT_EQ(exp(kInf), kInf);
  EXPECT_EQ(exp(709.79), kInf);
  EXPECT_TRUE(std::isfinite(exp(709.78)));
  EXPECT_TRUE(std::isnan(exp(std::nan(""))));
}

TEST(Elementary, log_is_within_its_bound) {
  Random random(4);
  const auto check = [](double x) { expect_near("log", x, log(x), std::log(static_cast<long double>(x))); };
  for (int i = 1; i <= 400000; ++i) check(i * 1e-5);
  for (int i = 0; i < 300000; ++i) {
    const auto x = std::bit_cast<double>(random.bits() >> 1);
    if (std::isfinite(x) && x > 0) check(x);
  }
  // Next to 1, where the result is small.
  for (int i = 0; i < 53; ++i) {
    check(1 + std::ldexp(1.0, -i));
    check(1 - std::ldexp(1.0, -i - 1));
  }
  check(5e-324);
  EXPECT_EQ(log(1.0), 0.0);
  EXPECT_EQ(log(0.0), -kInf);
  EXPECT_EQ(log(-0.0), -kInf);
  EXPECT_EQ(log(kInf), kInf);
  for (const double x : {-1.0, -kInf, std::nan("")}) EXPECT_TRUE(std::isnan(log(x))) << x;
}

TEST(Elementary, functions_lean_to_neither_side) {
  // A bias of a few hundredths of an ulp would show in the mean of many signed errors; 6 standard errors of a uniform error of 1 ulp are below it.
  Random random(5);
  const int n = 200000;
  double exp_bias = 0;
  double log_bias = 0;
  double sin_bias = 0;
  for (int i = 0; i < n; ++i) {
    const double x = random.uniform() * 20 + 0.1;
    const auto relative = [](double got, long double want) { return static_cast<double>((static_cast<long double>(got) - want) / want); };
    exp_bias += relative(exp(x), std::exp(static_cast<long double>(x)));
    log_bias += relative(log(x + 1), std::log(static_cast<long double>(x + 1)));
    sin_bias += relative(sin(x / 7), std::sin(static_cast<long double>(x / 7)));
  }
  for (const double bias : {exp_bias, log_bias, sin_bias}) EXPECT_LE(std::abs(bias / n), 0.02 * 0x1p-52);
}

TEST(Elementary, vector_exp_is_the_scalar_one_bit_for_bit) {
  on_every_target([] {
    for (const std::size_t n : kLengths) {
      Guarded<float> x(test::normals(n, n, 200), 1);
      Random random(n);
      const std::vector<double> special = {kInf, -kInf, std::nan(""), -std::nan("1234"), 0, -0.0, 709.5, -745.1, 1e30, -1e30};
      for (std::size_t i = 0; i < n; i += 7) x.span()[i] = static_cast<float>(special[(i / 7 + n) % special.size()]);
      for (const double shift : {0.0, -3.3, 123.456}) {
        Guarded<double> out(n, 1);
        exp_shifted(x.span(), shift, out.span());
        ASSERT_TRUE(out.intact());
        for (std::size_t i = 0; i < n; ++i) {
          const double want = exp(static_cast<double>(x.span()[i]) + shift);
          ASSERT_EQ(std::bit_cast<std::uint64_t>(out.span()[i]), std::bit_cast<std::uint64_t>(want)) << x.span()[i] << " + " << shift;
        }
      }
    }
  });
}

TEST(Elementary, vector_log_is_the_scalar_one_bit_for_bit) {
  on_every_target([] {
    for (const std::size_t n : kLengths) {
      Random random(n);
      Guarded<double> x(n, 1);
      const std::vector<double> special = {kInf, -kInf, std::nan(""), -std::nan("1234"), 0, -0.0, 1, 5e-324, 2.2e-308, -3};
      for (std::size_t i = 0; i < n; ++i)
        x.span()[i] = i % 7 == 0 ? special[(i / 7 + n) % special.size()] : std::bit_cast<double>(random.bits() >> 1);
      Guarded<double> out(n, 0);
      log_of(x.span(), out.span());
      ASSERT_TRUE(out.intact());
      for (std::size_t i = 0; i < n; ++i)
        ASSERT_EQ(std::bit_cast<std::uint64_t>(out.span()[i]), std::bit_cast<std::uint64_t>(log(x.span()[i]))) << x.span()[i];
    }
  });
}

}  // namespace
}  // namespace weft::math
