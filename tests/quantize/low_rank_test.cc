#include "quantize/low_rank.h"

#include <gtest/gtest.h>

#include <cmath>

#include "quantize/solver.h"
#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

constexpr std::int64_t kRows = 20, kColumns = 32;

std::vector<float> rest_of(const std::vector<float>& residual, const LowRank& repair) {
  std::vector<float> rest = residual;
  const auto rank = static_cast<std::size_t>(repair.rank);
  for (std::size_t i = 0; i < kRows; ++i)
    for (std::size_t j = 0; j < kColumns; ++j)
      for (std::size_t k = 0; k < rank; ++k) rest[i * kColumns + j] -= repair.left[i * rank + k] * repair.right[k * kColumns + j];
  return rest;
}

std::vector<double> correlated() {
  const std::vector<float> x = testing::random_values(200 * kColumns, 3);
  std::vector<double> gram(kColumns * kColumns);
  for (std::size_t t = 0; t < 200; ++t)
    for (std::size_t i = 0; i < kColumns; ++i)
      for (std::size_t j = 0; j < kColumns; ++j)
        gram[i * kColumns + j] += static_cast<double>(x[t * kColumns + i] * (1 + static_cast<float>(i))) *
                                  static_cast<double>(x[t * kColumns + j] * (1 + static_cast<float>(j)));
  return gram;
}

TEST(LowRank, a_full_rank_gives_everything_back) {
  const std::vector<float> residual = testing::random_values(kRows * kColumns, 1, 0.01F);
  for (const bool weighted : {false, true}) {
    const LowRank whole = repair(residual, kRows, kColumns, 100, weighted ? correlated() : std::vector<double>());
    EXPECT_EQ(whole.rank, kRows);
    for (const float value : rest_of(residual, whole)) EXPECT_NEAR(value, 0, 1e-6);
  }
}

TEST(LowRank, the_weighted_repair_gives_back_more_of_the_outputs_and_the_plain_one_more_of_the_weights) {
  const std::vector<float> residual = testing::random_values(kRows * kColumns, 2, 0.01F);
  const std::vector<double> gram = correlated();
  std::vector<double> identity(gram.size());
  for (std::size_t i = 0; i < kColumns; ++i) identity[i * (kColumns + 1)] = 1;
  double before = 1e300;
  for (const std::int64_t rank : {1, 4, 8}) {
    const std::vector<float> plain = rest_of(residual, repair(residual, kRows, kColumns, rank)),
                             weighted = rest_of(residual, repair(residual, kRows, kColumns, rank, gram));
    EXPECT_LT(quadratic_form(weighted, kRows, kColumns, gram), quadratic_form(plain, kRows, kColumns, gram));
    EXPECT_LT(quadratic_form(plain, kRows, kColumns, identity), quadratic_form(weighted, kRows, kColumns, identity));
    EXPECT_LT(quadratic_form(weighted, kRows, kColumns, gram), before);
    before = quadratic_form(weighted, kRows, kColumns, gram);
  }
}

}  // namespace
}  // namespace weft::quantize
