#include "math/reduce.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "kernel_checks.h"

namespace weft::math {
namespace {

using test::Guarded;
using test::kLengths;
using test::kOffsets;
using test::on_every_target;

/// The definition: element i to partial i % 16, zeros to a whole number of 16, then the tree.
double fixed_sum(std::size_t n, const std::function<double(std::size_t)>& term) {
  std::array<double, 16> p{};
  for (std::size_t i = 0; i < (n + 15) / 16 * 16; ++i) p[i % 16] += i < n ? term(i) : 0.0;
  for (std::size_t width = 8; width > 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) p[i] += p[i + width];
  return p[0];
}

double wide(float x) { return x; }

TEST(Reduce, sums_have_the_fixed_order_bit_for_bit) {
  on_every_target([] {
    for (const std::size_t n : kLengths) {
      for (const std::size_t offset : kOffsets) {
        Guarded<float> x(test::normals(n, n), offset);
        Guarded<float> y(test::normals(n + 1, n, 1000), offset + 1);
        const auto a = x.span();
        const auto b = y.span();
        ASSERT_EQ(sum(a), fixed_sum(n, [&](std::size_t i) { return wide(a[i]); })) << n;
        ASSERT_EQ(sum_abs(a), fixed_sum(n, [&](std::size_t i) { return std::abs(wide(a[i])); })) << n;
        ASSERT_EQ(sum_squares(a), fixed_sum(n, [&](std::size_t i) { return wide(a[i]) * wide(a[i]); })) << n;
        ASSERT_EQ(dot(a, b), fixed_sum(n, [&](std::size_t i) { return wide(a[i]) * wide(b[i]); })) << n;
      }
    }
  });
}

TEST(Reduce, sums_of_whole_numbers_are_exact) {
  on_every_target([] {
    for (const std::size_t n : kLengths) {
      const std::vector<float> x = test::whole_numbers(1, n, 1000);
      const std::vector<float> y = test::whole_numbers(2, n, 1000);
      std::int64_t s = 0;
      std::int64_t magnitudes = 0;
      std::int64_t squares = 0;
      std::int64_t products = 0;
      for (std::size_t i = 0; i < n; ++i) {
        const auto a = static_cast<std::int64_t>(x[i]);
        const auto b = static_cast<std::int64_t>(y[i]);
        s += a;
        magnitudes += std::abs(a);
        squares += a * a;
        products += a * b;
      }
      EXPECT_EQ(sum(x), static_cast<double>(s));
      EXPECT_EQ(sum_abs(x), static_cast<double>(magnitudes));
      EXPECT_EQ(sum_squares(x), static_cast<double>(squares));
      EXPECT_EQ(dot(x, y), static_cast<double>(products));
    }
  });
}

TEST(Reduce, the_largest_magnitude_is_found_wherever_it_is) {
  on_every_target([] {
    EXPECT_EQ(max_abs({}), 0.0F);
    for (const std::size_t n : kLengths) {
      for (std::size_t at = 0; at < n; at += 1 + n / 20) {
        Guarded<float> x(test::normals(n, n), 1);
        x.span()[at] = at % 2 == 0 ? 100.5F : -100.5F;
        ASSERT_EQ(max_abs(x.span()), 100.5F) << at << " of " << n;
      }
    }
  });
}

TEST(Reduce, gram_matrices_have_the_fixed_order_bit_for_bit) {
  on_every_target([] {
    for (std::size_t count = 1; count <= 9; ++count) {
      for (const std::size_t n : {0U, 1U, 15U, 16U, 17U, 511U, 512U, 513U, 1030U}) {
        std::vector<Guarded<float>> x;
        std::vector<const float*> pointers;
        for (std::size_t k = 0; k < count; ++k) {
          x.emplace_back(test::normals(17 * k + n, n), k);
          pointers.push_back(x.back().data());
        }
        Guarded<float> base(test::normals(99, n, 1e-6), 5);
        std::vector<double> plain(count * (count + 1) / 2, -1);
        std::vector<double> deltas = plain;
        gram(pointers, n, plain);
        gram_of_deltas(base.data(), pointers, n, deltas);
        for (std::size_t i = 0; i < count; ++i) {
          for (std::size_t j = i; j < count; ++j) {
            const std::size_t at = gram_index(i, j, count);
            ASSERT_EQ(plain[at], fixed_sum(n, [&](std::size_t e) { return wide(pointers[i][e]) * wide(pointers[j][e]); }))
                << i << ", " << j << " of " << count;
            ASSERT_EQ(deltas[at], fixed_sum(n,
                                            [&](std::size_t e) {
                                              const double b = base.data()[e];
                                              return (wide(pointers[i][e]) - b) * (wide(pointers[j][e]) - b);
                                            }))
                << i << ", " << j << " of " << count;
          }
        }
      }
    }
    gram({}, 100, {});
  });
}

TEST(Reduce, column_dots_go_down_the_rows_in_order) {
  on_every_target([] {
    for (const std::size_t rows : {0U, 1U, 2U, 7U}) {
      for (const std::size_t columns : {0U, 1U, 3U, 16U, 17U, 50U, 1023U, 1024U, 1025U, 2100U}) {
        Guarded<float> x(test::normals(rows, rows * columns), 1);
        Guarded<float> y(test::normals(columns, rows * columns), 2);
        Guarded<double> sums(columns, 1);
        for (std::size_t c = 0; c < columns; ++c) sums.span()[c] = static_cast<double>(c) * 0.1;
        column_dots(x.data(), y.data(), rows, columns, sums.span());
        for (std::size_t c = 0; c < columns; ++c) {
          double want = static_cast<double>(c) * 0.1;
          for (std::size_t r = 0; r < rows; ++r) want += wide(x.data()[r * columns + c]) * wide(y.data()[r * columns + c]);
          ASSERT_EQ(sums.span()[c], want) << rows << " x " << columns << ", column " << c;
        }
        ASSERT_TRUE(sums.intact());
      }
    }
  });
}

}  // namespace
}  // namespace weft::math
