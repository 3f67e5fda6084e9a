#include "math/divergence.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "kernel_checks.h"
#include "support/merge_data.h"

namespace weft::math {
namespace {

using test::on_every_target;
using weft::testing::normal_values;

long double reference(const std::vector<float>& a, const std::vector<float>& b, long double added) {
  const auto softmax = [added](const std::vector<float>& x) {
    std::vector<long double> p;
    const float largest = *std::max_element(x.begin(), x.end());
    long double sum = 0;
    for (const float v : x) p.push_back(std::exp(static_cast<long double>(v) - static_cast<long double>(largest)));
    for (const long double e : p) sum += e;
    for (long double& e : p) e = e / sum + added;
    return p;
  };
  const auto p = softmax(a);
  const auto q = softmax(b);
  long double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) sum += p[i] * std::log(p[i] / q[i]);
  return sum;
}

std::vector<float> scaled(std::vector<float> x, float by) {
  for (float& v : x) v *= by;
  return x;
}

TEST(Divergence, is_what_the_definition_gives_for_small_and_large_values) {
  std::vector<double> scratch;
  for (const std::size_t n : {1U, 2U, 15U, 16U, 17U, 300U, 1536U})
    for (const float size : {0.01F, 0.05F, 1.0F, 30.0F, 1e30F})
      for (const float change : {0.0F, 1e-3F, 0.1F, 2.0F}) {
        const std::vector<float> b = scaled(normal_values(n, n), size);
        std::vector<float> a = scaled(normal_values(n, n + 1), size * change);
        for (std::size_t i = 0; i < n; ++i) a[i] += b[i];
        const double got = softmax_divergence(a, b, 1e-8, scratch);
        const auto want = static_cast<double>(reference(a, b, 1e-8L));
        // Terms of p ln(p / q): each within 2e-14 of its size; those add up to what they would without signs.
        EXPECT_NEAR(got, want, 1e-13 * std::max(1.0, want)) << n << " " << size << " " << change;
        if (change == 0) {
          EXPECT_EQ(got, 0.0);
        }
      }
}

TEST(Divergence, has_the_same_bits_on_every_target) {
  std::vector<double> scratch;
  for (const float size : {0.05F, 1.0F}) {
    const std::vector<float> b = scaled(normal_values(1006, 1), size);
    // Next to each other ratios for which the short series does and does not do.
    std::vector<float> a = b;
    const std::vector<float> noise = normal_values(1006, 2);
    for (std::size_t i = 0; i < a.size(); ++i) a[i] += noise[i] * (i % 5 == 0 ? 0.2F : 0.003F) * size;
    const double want = softmax_divergence(a, b, 1e-8, scratch);
    EXPECT_GT(want, 0.0);
    on_every_target([&] { EXPECT_EQ(softmax_divergence(a, b, 1e-8, scratch), want) << size; });
  }
}

TEST(Divergence, changes_are_scaled_and_compared_on_every_target) {
  on_every_target([] {
    for (const std::size_t n : {1U, 8U, 61U}) {
      const std::vector<float> base = normal_values(n, 1);
      std::vector<float> other = normal_values(n, 2);
      other[0] = base[0];
      for (const double scale : {0.0, 0.37, 1e60}) {
        std::vector<float> scores(n);
        scaled_changes(other, base, scale, scores);
        const auto least = static_cast<float>(0.2);
        std::vector<float> taken(n);
        take_large_changes(base, other, scale, least, taken);
        for (std::size_t i = 0; i < n; ++i) {
          const double score = std::abs(static_cast<double>(other[i]) - static_cast<double>(base[i])) * scale;
          ASSERT_EQ(scores[i], static_cast<float>(std::min(score, double{FLT_MAX})));
          ASSERT_EQ(taken[i], scores[i] >= least ? other[i] : base[i]);
        }
      }
    }
    const std::vector<float> nan(3, std::numeric_limits<float>::quiet_NaN());
    std::vector<float> scores(3, 1.0F);
    scaled_changes(nan, std::vector<float>(3, 0.0F), 1, scores);
    EXPECT_EQ(scores, std::vector<float>(3, 0.0F));
  });
}

}  // namespace
}  // namespace weft::math
