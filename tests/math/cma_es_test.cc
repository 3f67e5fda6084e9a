#include "math/cma_es.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace weft::math {
namespace {

template <class F>
double minimise(const F& f, std::vector<double> start, double sigma, int generations, std::uint64_t seed) {
  CmaEs search(start, sigma, seed);
  double best = f(start);
  for (int g = 0; g < generations; ++g) {
    const auto candidates = search.ask();
    std::vector<double> values;
    for (const auto& x : candidates) values.push_back(f(x));
    search.tell(candidates, values);
    for (const double value : values) best = std::min(best, value);
  }
  return best;
}

TEST(CmaEs, finds_the_bottom_of_an_ellipsoid_whose_axes_differ_a_thousandfold) {
  const auto f = [](const std::vector<double>& x) {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double rotated = x[i] + (i > 0 ? 0.5 * x[i - 1] : 0.0) - 1;
      sum += std::pow(1e6, static_cast<double>(i) / static_cast<double>(x.size() - 1)) * rotated * rotated;
    }
    return sum;
  };
  for (const std::uint64_t seed : {1U, 2U, 3U}) EXPECT_LT(minimise(f, std::vector<double>(6, 0.0), 0.5, 400, seed), 1e-9) << seed;
}

TEST(CmaEs, follows_a_bent_valley) {
  const auto f = [](const std::vector<double>& x) {
    double sum = 0;
    for (std::size_t i = 0; i + 1 < x.size(); ++i) sum += 100 * std::pow(x[i + 1] - x[i] * x[i], 2) + std::pow(1 - x[i], 2);
    return sum;
  };
  EXPECT_LT(minimise(f, {-0.5, 0.5, 0.0, 0.3}, 0.3, 400, 7), 1e-6);
}

TEST(CmaEs, repeats_itself_for_a_seed_and_takes_nan_as_worst) {
  const auto f = [](const std::vector<double>& x) { return x[0] < -1 ? std::nan("") : (x[0] - 2) * (x[0] - 2) + x[1] * x[1]; };
  EXPECT_EQ(minimise(f, {0, 1}, 1, 30, 5), minimise(f, {0, 1}, 1, 30, 5));
  EXPECT_LT(minimise(f, {0, 1}, 1, 60, 5), 1e-6);
}

}  // namespace
}  // namespace weft::math
