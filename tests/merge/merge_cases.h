#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/philox.h"
#include "merge/table.h"
#include "support/merge_driver.h"
#include "weft/error.h"

// What the tests of single merge methods share: the fixture of the worked numbers, random tensors, and comparisons that name the worst element.
namespace weft::testing {

using Tensor = std::vector<float>;

inline const Shape kFixtureShape = {2, 3};
inline const Tensor kFixtureBase = {1, 0, -1, 2, -2, 0.5F};
inline const Tensor kFixtureA1 = {1.5F, -0.2F, -1, 2.1F, -1.6F, 0.2F};
inline const Tensor kFixtureA2 = {0.7F, -0.1F, -0.8F, 2.05F, -2.6F, 0.2F};

/// Uniform in (-scale, scale), the same on every machine.
inline Tensor random_tensor(std::size_t size, std::uint64_t seed, float scale = 1) {
  const RandomStream stream = RandomStream::of(seed, "test", 0, 0);
  Tensor values(size);
  for (std::size_t i = 0; i < size; ++i) values[i] = (2 * stream.uniform(i) - 1) * scale;
  return values;
}

/// base plus a small random change.
inline Tensor changed(const Tensor& base, std::uint64_t seed, float scale) {
  Tensor values = random_tensor(base.size(), seed, scale);
  for (std::size_t i = 0; i < base.size(); ++i) values[i] += base[i];
  return values;
}

/// Every element agrees with a number printed with six digits behind the point.
inline void expect_printed(const Tensor& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 0.5e-6 + std::abs(want[i]) * std::numeric_limits<float>::epsilon()) << "element " << i;
  }
}

/// |got - want| <= |want| 2^-24 (one rounding to float32) + slack * (largest |want|).
inline void expect_rounded_once(const Tensor& got, const std::vector<double>& want, double slack, const std::string& what = "") {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 0;
  for (const double w : want) largest = std::max(largest, std::abs(w));
  std::size_t worst = 0;
  double worst_excess = -1;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double bound = std::abs(want[i]) * 0x1p-24 + slack * largest + 0x1p-150;
    const double excess = std::abs(static_cast<double>(got[i]) - want[i]) / bound;
    // Written so that NaN counts as worst.
    if (excess <= worst_excess) continue;
    worst = i;
    worst_excess = excess;
    if (std::isnan(excess)) break;
  }
  if (!got.empty()) {
    EXPECT_LE(worst_excess, 1.0) << what << ": element " << worst << " is " << got[worst] << ", want " << want[worst];
  }
}

inline double dot_of(const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}
inline double norm_of(const std::vector<double>& x) { return std::sqrt(dot_of(x, x)); }
inline std::vector<double> as_doubles(const Tensor& x) { return {x.begin(), x.end()}; }

/// One merge of one tensor: a context that is filled in step by step.
struct MergeCase {
  merge::Method method;
  merge::TensorContext context;
  std::vector<Tensor> inputs;
  std::vector<std::string> warnings;

  /// models: the non-base ones; base: empty for none. The base is the first input.
  MergeCase(merge::Method m, const Shape& shape, const std::vector<Tensor>& models, const Tensor& base = {}) : method(std::move(m)) {
    context = make_context(method, shape, static_cast<int>(models.size()), !base.empty());
    if (!base.empty()) inputs.push_back(base);
    inputs.insert(inputs.end(), models.begin(), models.end());
  }
  MergeCase& set(const std::string& parameter, double value) {
    context.values.set(parameter, value);
    return *this;
  }
  /// One value for each non-base model.
  MergeCase& each(const std::string& parameter, const std::vector<double>& values) {
    const std::vector<std::size_t> models = context.non_base();
    for (std::size_t i = 0; i < models.size(); ++i) context.inputs[models[i]].values.set(parameter, values.at(i));
    return *this;
  }
  Tensor run(const DriverOptions& options = {}) {
    warnings.clear();
    context.warnings = &warnings;
    return run_phases(method, context, inputs, options);
  }
  [[nodiscard]] std::optional<std::size_t> copied() const { return merge::make_merge(method, context)->copied_input(); }
  /// The message of the invalid_argument that running throws.
  std::string refusal() {
    try {
      run();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::invalid_argument) << error.what();
      EXPECT_EQ(error.place().tensor, context.name);
      return error.message();
    }
    ADD_FAILURE() << method.name << " accepted what it must refuse";
    return {};
  }
};

/// Shapes around the sizes of tiles: empty, rank 0 to 3, one row, one column.
inline std::vector<Shape> telling_shapes() {
  return {{},     {1},    {7},      {8191},     {8192},    {8193},    {3 * 8192 + 2}, {1, 5},
          {5, 1}, {3, 1}, {13, 17}, {100, 100}, {3, 5, 7}, {70, 300}, {2, 9000},      {129, 64}};
}
inline std::size_t elements_of(const Shape& shape) {
  std::size_t n = 1;
  for (const std::int64_t d : shape) n *= static_cast<std::size_t>(d);
  return n;
}

/// The slices of a tensor along its last axis ("rows"), its first ("columns"), or the whole of it, as lists of flat indices.
enum class Slices { whole, rows, columns };
inline std::vector<std::vector<std::size_t>> slices_of(const Shape& shape, Slices how) {
  const std::size_t n = elements_of(shape);
  std::vector<std::vector<std::size_t>> slices;
  if (n == 0) return slices;
  if (shape.empty()) how = Slices::whole;
  const std::size_t length = how == Slices::whole ? n : static_cast<std::size_t>(how == Slices::rows ? shape.back() : shape.front());
  const std::size_t stride = how == Slices::columns ? n / length : 1;
  for (std::size_t s = 0; s < n / length; ++s) {
    std::vector<std::size_t> slice;
    for (std::size_t i = 0; i < length; ++i) slice.push_back(how == Slices::columns ? s + i * stride : s * length + i);
    slices.push_back(slice);
  }
  return slices;
}

}  // namespace weft::testing
