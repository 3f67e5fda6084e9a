#pragma once
#include <cstddef>

// How well values lie on a grid of integers: the inner loop of every search for a scale. Class A.
namespace weft::math {

/// value = scale * (code - zero), code an integer from lowest to most.
struct IntegerGrid {
  float scale = 1, zero = 0, lowest = 0, most = 15;
  bool any_zero = false;  ///< zero is no integer, and is added before rounding; otherwise behind it
};

/// sum weights[i] * (values[i] - the nearest of the grid)^2; weights null: all 1. Stops where the sum has reached `enough`, and returns what it then
/// is. Squares in float32, sums of 128 of them in float32 by 16 partial sums, those in float64: within 1e-6 of the exact sum.
[[nodiscard]] double integer_grid_error(const float* values, const float* weights, std::size_t n, const IntegerGrid& grid, double enough);

}  // namespace weft::math
