#include "merge/regmean.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/memory_checkpoint.h"

namespace weft::merge {
namespace {

using Matrix = std::vector<float>;

Matrix merged(const std::vector<Matrix>& weights, const std::vector<std::vector<double>>& grams, double off_diagonal, std::size_t rows = 2) {
  std::vector<RegMean::Inputs> inputs;
  for (const auto& gram : grams) inputs.push_back({gram, 1});
  const auto columns = static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(grams.front().size()))));
  const RegMean method(inputs, columns, off_diagonal);
  const std::vector<std::span<const float>> spans(weights.begin(), weights.end());
  Matrix out(rows * columns);
  method.merge(spans, rows, out);
  return out;
}

void expect_near(const Matrix& got, const std::vector<double>& want, double bound) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], bound) << i;
}

const Matrix kIdentity = {1, 0, 0, 1}, kSwap = {0, 1, 1, 0};

TEST(RegMean, gives_the_worked_examples) {
  expect_near(merged({kIdentity, kSwap}, {{3, 0, 0, 1}, {1, 0, 0, 1}}, 1), {0.75, 0.5, 0.25, 0.5}, 1e-7);
  const std::vector<std::vector<double>> grams = {{2, 1, 1, 2}, {1, 0, 0, 3}};
  expect_near(merged({kIdentity, kSwap}, grams, 1), {0.428571, 0.714286, 0.571429, 0.285714}, 1e-6);
  expect_near(merged({kIdentity, kSwap}, grams, 0.9), {0.457364, 0.697674, 0.542636, 0.302326}, 1e-6);
  expect_near(merged({kIdentity, kSwap}, grams, 0), {0.666667, 0.6, 0.333333, 0.4}, 1e-6);
}

TEST(RegMean, equal_moments_give_the_plain_mean_and_no_inputs_too) {
  const std::vector<double> gram = {5, 2, 2, 3};
  expect_near(merged({kIdentity, kSwap}, {gram, gram}, 1), {0.5, 0.5, 0.5, 0.5}, 1e-6);
  expect_near(merged({kIdentity, kSwap}, {{0, 0, 0, 0}, {0, 0, 0, 0}}, 1), {0.5, 0.5, 0.5, 0.5}, 1e-6);
}

TEST(RegMean, the_number_of_tokens_does_not_weigh_a_model) {
  const std::vector<double> once = {2, 1, 1, 2}, thrice = {6, 3, 3, 6}, other = {1, 0, 0, 3};
  const std::vector<std::span<const float>> weights = {kIdentity, kSwap};
  Matrix a(4), b(4);
  RegMean(std::vector<RegMean::Inputs>{{once, 1}, {other, 1}}, 2, 1).merge(weights, 2, a);
  RegMean(std::vector<RegMean::Inputs>{{thrice, 3}, {other, 1}}, 2, 1).merge(weights, 2, b);
  EXPECT_EQ(a, b);
}

/// sum over models of ||X_k (W - W_k)^T||^2
double objective(const Matrix& w, const std::vector<Matrix>& weights, const std::vector<Matrix>& inputs, std::size_t rows, std::size_t columns) {
  double total = 0;
  for (std::size_t k = 0; k < weights.size(); ++k)
    for (std::size_t t = 0; t < inputs[k].size() / columns; ++t)
      for (std::size_t r = 0; r < rows; ++r) {
        double difference = 0;
        for (std::size_t c = 0; c < columns; ++c)
          difference += static_cast<double>(inputs[k][t * columns + c]) *
                        (static_cast<double>(w[r * columns + c]) - static_cast<double>(weights[k][r * columns + c]));
        total += difference * difference;
      }
  return total;
}

TEST(RegMean, no_other_matrix_reproduces_the_answers_better) {
  constexpr std::size_t kRows = 9, kColumns = 130, kTokens = 300;  // more than one panel of the factorisation
  std::vector<Matrix> weights, inputs;
  std::vector<std::vector<double>> grams;
  for (std::uint64_t k = 0; k < 3; ++k) {
    weights.push_back(testing::random_values(kRows * kColumns, 10 + k));
    inputs.push_back(testing::random_values(kTokens * kColumns, 20 + k, 0.5F + static_cast<float>(k)));
    auto& gram = grams.emplace_back(kColumns * kColumns, 0.0);
    for (std::size_t t = 0; t < kTokens; ++t)
      for (std::size_t i = 0; i < kColumns; ++i)
        for (std::size_t j = 0; j < kColumns; ++j)
          gram[i * kColumns + j] += static_cast<double>(inputs[k][t * kColumns + i]) * static_cast<double>(inputs[k][t * kColumns + j]);
  }
  const Matrix best = merged(weights, grams, 1, kRows);
  const double least = objective(best, weights, inputs, kRows, kColumns);
  Matrix mean(best.size());
  for (std::size_t i = 0; i < mean.size(); ++i) mean[i] = (weights[0][i] + weights[1][i] + weights[2][i]) / 3;
  EXPECT_LT(least, objective(mean, weights, inputs, kRows, kColumns));
  // The gradient is zero there: small steps anywhere are no better.
  for (std::uint64_t step = 0; step < 6; ++step) {
    Matrix near = best;
    const Matrix direction = testing::random_values(best.size(), 50 + step, 1e-2F);
    for (std::size_t i = 0; i < near.size(); ++i) near[i] += direction[i];
    EXPECT_GT(objective(near, weights, inputs, kRows, kColumns), least);
  }
}

TEST(RegMean, too_few_tokens_are_said_and_still_solved) {
  std::vector<double> gram(16, 1.0);  // of one token: rank 1
  const std::vector<RegMean::Inputs> inputs = {{gram, 1}, {gram, 1}};
  const RegMean method(inputs, 4, 1);
  EXPECT_TRUE(method.is_ridged());
  const Matrix a = {1, 2, 3, 4}, b = {3, 2, 1, 0};
  const std::vector<std::span<const float>> weights = {a, b};
  Matrix out(4);
  method.merge(weights, 1, out);
  // The answer to that one token is the mean of 10 and 6, and so is everything else that no token tells about.
  expect_near(out, {2, 2, 2, 2}, 1e-5);
}

}  // namespace
}  // namespace weft::merge
