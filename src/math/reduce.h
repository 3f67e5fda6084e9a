#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

// Sums in float64 in a fixed order: 16 partial sums (element i goes to partial i % 16), the tail padded with zeros, then a fixed tree
// (p[i] += p[i + 8], then 4, 2, 1). Class A: the same bits on every target. Products of two float32 are exact in float64.
namespace weft::math {

[[nodiscard]] double sum(std::span<const float> x);
[[nodiscard]] double sum_abs(std::span<const float> x);
[[nodiscard]] double sum_squares(std::span<const float> x);
[[nodiscard]] double dot(std::span<const float> x, std::span<const float> y);
/// Largest |x|; 0 when empty. NaN-free input.
[[nodiscard]] float max_abs(std::span<const float> x);

/// Upper triangle of the Gram matrix of the inputs: gram[k] for pairs (0,0), (0,1), .., (0,N-1), (1,1), ..: N (N + 1) / 2 values, written.
void gram(std::span<const float* const> inputs, std::size_t count, std::span<double> gram);
/// The same of the differences x_k - base, taken in float64 (exact).
void gram_of_deltas(const float* base, std::span<const float* const> inputs, std::size_t count, std::span<double> gram);
/// Index of pair (i, j), i <= j, in such a triangle of N.
[[nodiscard]] constexpr std::size_t gram_index(std::size_t i, std::size_t j, std::size_t n) noexcept { return i * n - i * (i + 1) / 2 + j; }

/// sums[c] += sum over rows of x[r][c] * y[r][c], rows in order. x, y: [rows, columns].
void column_dots(const float* x, const float* y, std::size_t rows, std::size_t columns, std::span<double> sums);

}  // namespace weft::math
