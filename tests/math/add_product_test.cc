#include "math/add_product.h"

#include <gtest/gtest.h>

#include "math/kernel_checks.h"
#include "support/memory_checkpoint.h"

namespace weft::math {
namespace {

TEST(AddProduct, it_adds_left_to_right_in_float64_for_any_shape) {
  test::on_every_target([] {
    for (const std::size_t rows : {0U, 1U, 3U, 4U, 9U}) {
      for (const std::size_t columns : {0U, 1U, 15U, 16U, 17U, 50U}) {
        for (const std::size_t rank : {0U, 1U, 5U, 33U}) {
          const std::vector<float> l = testing::random_values(rows * rank, 1), r = testing::random_values(rank * columns, 2);
          std::vector<double> left(rows * (rank + 2), -1e30);
          for (std::size_t i = 0; i < rows; ++i)
            for (std::size_t k = 0; k < rank; ++k) left[i * (rank + 2) + k] = static_cast<double>(l[i * rank + k]) * 1.1;
          std::vector<double> got(rows * (columns + 3), 0.75), want = got;
          for (std::size_t i = 0; i < rows; ++i)
            for (std::size_t j = 0; j < columns; ++j)
              for (std::size_t k = 0; k < rank; ++k)
                want[i * (columns + 3) + j] += left[i * (rank + 2) + k] * static_cast<double>(r[k * columns + j]);
          add_product(left.data(), rank + 2, rows, pack_matrix(r, rank, columns), got.data(), columns + 3);
          ASSERT_EQ(got, want) << rows << " x " << rank << " x " << columns;  // also what lies between the rows
        }
      }
    }
  });
}

}  // namespace
}  // namespace weft::math
