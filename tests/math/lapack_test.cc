#include "math/lapack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <thread>
#include <vector>

#include "base/philox.h"

namespace weft::math {
namespace {

std::vector<double> random_matrix(std::size_t count, std::uint64_t seed) {
  const RandomStream random = RandomStream::of(seed, "lapack", 0, 0);
  std::vector<double> x(count);
  for (std::size_t i = 0; i < count; ++i) x[i] = random.uniform(i) - 0.5;
  return x;
}

TEST(Lapack, products_of_row_major_matrices_are_those_of_three_loops) {
  const std::int64_t m = 5, n = 7, k = 3;
  const std::vector<double> a = random_matrix(15, 1), b = random_matrix(21, 2);
  for (const Transpose a_form : {Transpose::no, Transpose::yes}) {
    for (const Transpose b_form : {Transpose::no, Transpose::yes}) {
      std::vector<double> c(35, std::nan(""));
      gemm(a_form, b_form, m, n, k, 2.0, a.data(), a_form == Transpose::no ? k : m, b.data(), b_form == Transpose::no ? n : k, 0.0, c.data(), n);
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          double want = 0;
          for (std::int64_t l = 0; l < k; ++l)
            want += 2 * a[static_cast<std::size_t>(a_form == Transpose::no ? i * k + l : l * m + i)] *
                    b[static_cast<std::size_t>(b_form == Transpose::no ? l * n + j : j * k + l)];
          EXPECT_NEAR(c[static_cast<std::size_t>(i * n + j)], want, 1e-15) << i << ", " << j;
        }
      }
    }
  }
}

TEST(Lapack, the_gram_matrix_of_either_side_has_the_squared_singular_values_as_eigenvalues) {
  for (const auto& [rows, columns] : {std::pair<std::int64_t, std::int64_t>{9, 4}, {4, 9}, {6, 6}, {1, 5}}) {
    std::vector<double> x = random_matrix(static_cast<std::size_t>(rows * columns), 3);
    const GramOf side = rows < columns ? GramOf::rows : GramOf::columns;
    const auto n = std::min(rows, columns);
    std::vector<double> gram(static_cast<std::size_t>(n * n));
    add_gram(side, x.data(), rows, columns, gram);
    const std::vector<double> values = symmetric_eigen(gram, n, Vectors::no);
    const std::vector<double> singular = singular_values(x, rows, columns);
    ASSERT_EQ(singular.size(), values.size());
    for (std::size_t i = 0; i < values.size(); ++i)
      EXPECT_NEAR(std::sqrt(values[values.size() - 1 - i]), singular[i], 1e-13) << rows << " x " << columns;
  }
}

TEST(Lapack, eigenvectors_are_the_rows_in_the_order_of_the_values) {
  const std::int64_t n = 6;
  const std::vector<double> x = random_matrix(60, 4);
  std::vector<double> gram(36), full(36);
  add_gram(GramOf::columns, x.data(), 10, n, gram);
  full = gram;
  mirror_upper(full, n);
  const std::vector<double> values = symmetric_eigen(gram, n, Vectors::yes);
  for (std::size_t v = 0; v < 6; ++v) {
    for (std::size_t i = 0; i < 6; ++i) {
      double product = 0;
      for (std::size_t j = 0; j < 6; ++j) product += full[i * 6 + j] * gram[v * 6 + j];
      EXPECT_NEAR(product, values[v] * gram[v * 6 + i], 1e-14);
    }
  }
}

TEST(Lapack, a_decomposition_multiplies_back_to_the_matrix) {
  for (const auto& [rows, columns] : {std::pair<std::size_t, std::size_t>{7, 3}, {3, 7}, {4, 4}}) {
    std::vector<double> x = random_matrix(rows * columns, 5);
    const std::vector<double> kept = x;
    const Svd result = svd(x, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns));
    const std::size_t least = std::min(rows, columns);
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < columns; ++j) {
        double value = 0;
        for (std::size_t k = 0; k < least; ++k) value += result.left[i * least + k] * result.values[k] * result.right[k * columns + j];
        EXPECT_NEAR(value, kept[i * columns + j], 1e-14);
      }
    }
  }
}

TEST(Lapack, pivoted_qr_takes_the_longest_vector_first_and_leaves_what_it_does_not_span) {
  // (3, 0), (0, 1), (3, 4): the last is the longest; of the others (3, 0) keeps 2.4 beside it, (0, 1) only 0.6.
  std::vector<double> x = {3, 0, 0, 1, 3, 4};
  const std::vector<std::int64_t> taken = pivoted_qr(x, 3, 2);
  EXPECT_EQ(taken, (std::vector<std::int64_t>{2, 0, 1}));
  EXPECT_NEAR(std::abs(x[0]), 5.0, 1e-14);
  EXPECT_NEAR(std::abs(x[3]), 2.4, 1e-14);
}

TEST(Lapack, many_threads_may_compute_at_once_and_get_what_one_gets) {
  const std::vector<double> x = random_matrix(120 * 80, 6);
  const auto spectrum = [&] {
    std::vector<double> gram(80 * 80);
    add_gram(GramOf::columns, x.data(), 120, 80, gram);
    return symmetric_eigen(gram, 80, Vectors::no);
  };
  const std::vector<double> alone = spectrum();
  std::vector<std::vector<double>> together(4);
  {
    std::vector<std::jthread> threads;
    for (auto& result : together) threads.emplace_back([&result, &spectrum] { result = spectrum(); });
  }
  for (const auto& result : together) EXPECT_EQ(result, alone);
}

TEST(Lapack, empty_matrices_have_no_values) {
  std::vector<double> none;
  EXPECT_TRUE(singular_values(none, 0, 5).empty());
  EXPECT_TRUE(symmetric_eigen(none, 0, Vectors::yes).empty());
  EXPECT_TRUE(pivoted_qr(none, 0, 3).empty());
}

}  // namespace
}  // namespace weft::math
