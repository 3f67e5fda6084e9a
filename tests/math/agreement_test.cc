#include "math/agreement.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <vector>

#include "kernel_checks.h"
#include "support/merge_data.h"

namespace weft::math {
namespace {

using test::on_every_target;
using weft::testing::gridded_values;
using weft::testing::normal_values;

struct Models {
  std::vector<float> base;
  std::vector<std::vector<float>> models;
  [[nodiscard]] std::vector<const float*> pointers() const {
    std::vector<const float*> p;
    for (const auto& m : models) p.push_back(m.data());
    return p;
  }
};

Models models_of(std::size_t n, std::size_t count, bool grid) {
  Models m;
  m.base = normal_values(n, 1);
  for (std::size_t k = 0; k < count; ++k) {
    m.models.push_back(grid ? gridded_values(n, 2 + k, 1, 0.5) : normal_values(n, 2 + k));
    for (std::size_t i = 0; i < n; i += 7) m.models[k][i] = m.base[i];
  }
  return m;
}

TEST(Agreement, variances_are_those_of_the_definition_on_every_target) {
  on_every_target([] {
    for (const std::size_t n : {1U, 5U, 16U, 67U})
      for (std::size_t count = 1; count <= 6; ++count) {
        const Models m = models_of(n, count, count % 2 == 0);
        std::vector<float> got(n);
        delta_variances(m.base, m.pointers(), got);
        for (std::size_t i = 0; i < n; ++i) {
          double mean = 0;
          double squares = 0;
          for (const auto& x : m.models) mean += static_cast<double>(x[i] - m.base[i]) / static_cast<double>(count);
          for (const auto& x : m.models) squares += std::pow(static_cast<double>(x[i] - m.base[i]) - mean, 2);
          const double want = squares / static_cast<double>(count);
          // One rounding to float32, and in float64 a cancellation that loses at most a factor N.
          ASSERT_NEAR(static_cast<double>(got[i]), want, want * 0x1p-23 + 1e-14) << i << " of " << n << ", " << count << " models";
          if (i % 7 == 0) {
            ASSERT_EQ(got[i], 0.0F) << "all are equal there";
          }
        }
      }
  });
}

TEST(Agreement, a_variance_that_exists_is_neither_zero_nor_infinite) {
  on_every_target([] {
    const std::vector<float> base(9, 0.0F);
    const std::vector<float> tiny(9, 1e-40F);
    const std::vector<float> huge(9, 3e38F);
    std::vector<float> got(9);
    delta_variances(base, std::vector<const float*>{base.data(), tiny.data()}, got);
    EXPECT_EQ(got, std::vector<float>(9, FLT_TRUE_MIN));
    delta_variances(base, std::vector<const float*>{base.data(), huge.data()}, got);
    EXPECT_EQ(got, std::vector<float>(9, FLT_MAX));
  });
}

TEST(Agreement, the_mean_is_of_the_models_that_agree_with_the_sum_on_every_target) {
  on_every_target([] {
    for (const std::size_t n : {1U, 5U, 16U, 67U})
      for (std::size_t count = 1; count <= 6; ++count) {
        const Models m = models_of(n, count, count % 2 == 0);
        std::vector<double> weights;
        for (std::size_t k = 0; k < count; ++k) weights.push_back(0.1 + 0.2 * static_cast<double>(k));
        std::vector<float> got(n);
        add_agreeing_mean(m.base, m.pointers(), weights, 0.25, got);
        for (std::size_t i = 0; i < n; ++i) {
          float vote = 0;
          for (const auto& x : m.models) vote += x[i] - m.base[i];
          double sum = 0;
          double divisor = 0;
          for (std::size_t k = 0; k < count; ++k) {
            const double change = static_cast<double>(m.models[k][i]) - static_cast<double>(m.base[i]);
            if (change == 0 || (change > 0) != (vote >= 0)) continue;
            sum += weights[k] * change;
            divisor += weights[k];
          }
          ASSERT_EQ(got[i], static_cast<float>(static_cast<double>(m.base[i]) + sum / std::max(divisor, 0.25))) << i << " of " << n << ", " << count;
        }
      }
  });
}

}  // namespace
}  // namespace weft::math
