#include "support/merge_data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>

#include "base/philox.h"
#include "support/merge_driver.h"

namespace weft::testing {

std::vector<float> normal_values(std::size_t n, std::uint64_t seed, double scale) {
  // The scaled sum of four uniform numbers: near enough, and the same on every machine.
  std::vector<RandomStream> streams;
  for (std::uint32_t k = 0; k < 4; ++k) streams.push_back(RandomStream::of(seed, "normal_values", k, 7));
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) {
    double sum = -2;
    for (const RandomStream& stream : streams) sum += static_cast<double>(stream.uniform(i));
    values[i] = static_cast<float>(sum * 1.7320508075688772 * scale);
  }
  return values;
}

std::vector<float> gridded_values(std::size_t n, std::uint64_t seed, double scale, double grid) {
  std::vector<float> values = normal_values(n, seed, scale);
  for (float& v : values) v = static_cast<float>(std::nearbyint(static_cast<double>(v) / grid) * grid);
  return values;
}

std::vector<float> plus(std::span<const float> base, std::span<const float> delta) {
  std::vector<float> sum(base.size());
  for (std::size_t i = 0; i < base.size(); ++i) sum[i] = base[i] + delta[i];
  return sum;
}

void expect_close(std::span<const float> got, std::span<const double> want, double relative, double of_largest, std::string_view what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 0;
  for (const double w : want) largest = std::max(largest, std::abs(w));
  std::size_t worst = 0;
  double worst_excess = -1;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    const double excess = std::isnan(error) ? HUGE_VAL : error - relative * std::abs(want[i]) - of_largest * largest;
    if (excess > worst_excess) {
      worst_excess = excess;
      worst = i;
    }
  }
  if (want.empty()) return;
  EXPECT_LE(worst_excess, 0) << what << ": element " << worst << " of " << want.size() << " is " << got[worst] << ", want " << want[worst]
                             << " within " << relative * std::abs(want[worst]) + of_largest * largest;
}

void expect_same_bits(std::span<const float> got, std::span<const float> want, std::string_view what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < want.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want[i]))
        << what << ": element " << i << " is " << got[i] << ", want " << want[i];
}

const merge::Method& method_named(std::string_view name) {
  const merge::Method* method = merge::find_method(name);
  if (method == nullptr) {
    ADD_FAILURE() << "no method '" << name << "'";
    throw std::runtime_error("no such method");
  }
  return *method;
}

void set_for_models(merge::TensorContext& context, std::string_view name, double value) {
  for (const std::size_t i : context.non_base()) context.inputs[i].values.set(name, value);
}

void set_for_models(merge::TensorContext& context, std::string_view name, std::span<const double> values) {
  const auto models = context.non_base();
  for (std::size_t k = 0; k < models.size(); ++k) context.inputs[models[k]].values.set(name, values[k]);
}

merge::TensorContext SmallExample::context(const merge::Method& method) const {
  merge::TensorContext context = make_context(method, {2, 3}, 2, true);
  const bool weighted = std::any_of(method.parameters.begin(), method.parameters.end(), [](const merge::Parameter& p) { return p.name == "weight"; });
  if (weighted) set_for_models(context, "weight", std::vector<double>{1, 0.5});
  return context;
}

std::vector<double> SmallExample::with(std::span<const double> delta) const {
  std::vector<double> sum(base.size());
  for (std::size_t i = 0; i < base.size(); ++i) sum[i] = static_cast<double>(base[i]) + delta[i];
  return sum;
}

}  // namespace weft::testing
