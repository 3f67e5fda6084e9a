#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "merge/method.h"

namespace weft::testing {

/// n values, roughly normal, repeatable.
[[nodiscard]] std::vector<float> normal_values(std::size_t n, std::uint64_t seed, double scale = 1.0);
/// The same rounded to multiples of `grid`, so that magnitudes repeat often and some are zero.
[[nodiscard]] std::vector<float> gridded_values(std::size_t n, std::uint64_t seed, double scale, double grid);
/// base + delta in float32.
[[nodiscard]] std::vector<float> plus(std::span<const float> base, std::span<const float> delta);

/// Every |got - want| <= relative |want| + of_largest max|want|; otherwise fails naming the worst element.
void expect_close(std::span<const float> got, std::span<const double> want, double relative, double of_largest, std::string_view what = "");
/// The same bits everywhere.
void expect_same_bits(std::span<const float> got, std::span<const float> want, std::string_view what = "");

/// The method of this name; fails the test and throws if there is none.
[[nodiscard]] const merge::Method& method_named(std::string_view name);

/// Sets a parameter of every non-base input.
void set_for_models(merge::TensorContext& context, std::string_view name, double value);
void set_for_models(merge::TensorContext& context, std::string_view name, std::span<const double> values);

/// The 2 x 3 example of the method descriptions: a base and two fine-tunes, weights 1 and 0.5.
struct SmallExample {
  std::vector<float> base = {1, 0, -1, 2, -2, 0.5F};
  std::vector<float> delta1 = {0.5F, -0.2F, 0, 0.1F, 0.4F, -0.3F};
  std::vector<float> delta2 = {-0.3F, -0.1F, 0.2F, 0.05F, -0.6F, -0.3F};
  std::vector<float> model1 = {1.5F, -0.2F, -1, 2.1F, -1.6F, 0.2F};
  std::vector<float> model2 = {0.7F, -0.1F, -0.8F, 2.05F, -2.6F, 0.2F};

  /// Of a method that takes the base and both models, with the weights set if it has any.
  [[nodiscard]] merge::TensorContext context(const merge::Method& method) const;
  [[nodiscard]] std::vector<std::vector<float>> inputs() const { return {base, model1, model2}; }
  /// base + these.
  [[nodiscard]] std::vector<double> with(std::span<const double> delta) const;
};

}  // namespace weft::testing
