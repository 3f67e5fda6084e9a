#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/merge_data.h"
#include "support/merge_driver.h"

namespace weft::merge {
namespace {

using namespace weft::testing;

TensorContext context_with(double t, Shape shape) {
  TensorContext context = make_context(method_named("nearswap"), std::move(shape), 1, true);
  context.values.set("t", t);
  return context;
}

TEST(Nearswap, moves_the_base_by_at_most_t) {
  const SmallExample example;
  const Method& method = method_named("nearswap");
  expect_close(run_phases(method, context_with(0.1, {2, 3}), {example.base, example.model1}), std::vector{1.1, -0.1, -1., 2.1, -1.9, 0.4}, 1e-6,
               3e-7);
}

TEST(Nearswap, equals_the_definition_for_large_and_tiny_t) {
  const Method& method = method_named("nearswap");
  constexpr std::size_t n = 5000;
  const auto base = normal_values(n, 1);
  auto other = plus(base, normal_values(n, 2, 1e-3));
  for (std::size_t i = 0; i < n; i += 3) other[i] = base[i] + 5e-7F;
  for (const double t : {10.0, 1e-3, 1e-6, 5e-7, 1e-9}) {
    std::vector<double> want(n);
    for (std::size_t i = 0; i < n; ++i) {
      const double a = static_cast<double>(base[i]);
      const double b = static_cast<double>(other[i]);
      const double q = std::clamp(t / std::max(std::abs(a - b), 1e-6), 0.0, 1.0);
      want[i] = q * b + (1 - q) * a;
    }
    expect_close(run_phases(method, context_with(t, {50, 100}), {base, other}), want, 1e-7, 0, std::to_string(t));
  }
}

TEST(Nearswap, a_large_t_gives_the_other_model_bit_for_bit_and_none_the_base) {
  const Method& method = method_named("nearswap");
  const auto base = normal_values(1000, 1);
  const auto other = normal_values(1000, 2, 1e-9);
  expect_same_bits(run_phases(method, context_with(100, {1000}), {base, other}), other);
  EXPECT_EQ(make_merge(method, context_with(0, {1000}))->copied_input(), 0U);
  EXPECT_EQ(make_merge(method, context_with(-1, {1000}))->copied_input(), 0U);
}

}  // namespace
}  // namespace weft::merge
