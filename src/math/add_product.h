#pragma once
#include <cstddef>
#include <span>
#include <vector>

// Products with a thin matrix, as adapters need them: rows += left * right, each element by the same sequence of separately rounded operations in
// float64 (left to right over the inner dimension). Class A.
namespace weft::math {

/// A matrix [rank, columns] laid out in panels of 16 columns, so that the product reads it in order whatever its width.
struct PanelMatrix {
  std::size_t rank = 0;
  std::size_t columns = 0;
  std::vector<float> panels;  ///< [ceil(columns / 16)][rank][16], the last one padded with zeros
};
/// values: [rank, columns], row-major.
[[nodiscard]] PanelMatrix pack_matrix(std::span<const float> values, std::size_t rank, std::size_t columns);

/// out[i][j] = ((out[i][j] + left[i][0] * right[0][j]) + left[i][1] * right[1][j]) + ... for i < rows.
/// left: [rows, rank] with left_stride elements from row to row; out: [rows, columns] with out_stride.
void add_product(const double* left, std::size_t left_stride, std::size_t rows, const PanelMatrix& right, double* out, std::size_t out_stride);

}  // namespace weft::math
