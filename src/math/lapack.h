#pragma once
#include <cstdint>
#include <span>
#include <vector>

// Dense linear algebra by OpenBLAS. The library is loaded when the first of these is called, not when the program starts: loading costs milliseconds,
// megabytes and a thread for each core, which commands that only look at headers must not pay. It runs on the calling thread alone: work is spread
// over threads above, one unit a thread, so that threads change no result (class C: within the bounds of LAPACK, and another build may differ).
//
// Matrices are row-major: element (i, j) of a [rows, columns] matrix is at i * stride + j. Thread-safe.
// Errors: unsupported when OpenBLAS is not installed; invalid_argument for a dimension beyond 2^31 - 1; internal when LAPACK does not converge.
namespace weft::math {

enum class Transpose : std::uint8_t { no, yes };

/// C = alpha op(A) op(B) + beta C, op(A): [m, k], op(B): [k, n], C: [m, n]. With beta 0, C is written, never read.
void gemm(Transpose a_form, Transpose b_form, std::int64_t m, std::int64_t n, std::int64_t k, double alpha, const double* a, std::int64_t a_stride,
          const double* b, std::int64_t b_stride, double beta, double* c, std::int64_t c_stride);
void gemm(Transpose a_form, Transpose b_form, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t a_stride,
          const float* b, std::int64_t b_stride, float beta, float* c, std::int64_t c_stride);

/// Adds x x^T (of rows: gram is [rows, rows]) or x^T x (of columns: gram is [columns, columns]) to the upper triangle of gram; the rest is left
/// alone.
enum class GramOf : std::uint8_t { rows, columns };
void add_gram(GramOf side, const double* x, std::int64_t rows, std::int64_t columns, std::span<double> gram);
/// Makes the lower triangle equal to the upper one.
void mirror_upper(std::span<double> matrix, std::int64_t n);

/// Eigenvalues of a symmetric matrix [n, n] given by its upper triangle, ascending. The matrix is overwritten: with garbage, or, for
/// Vectors::yes, with the eigenvectors as rows, in the order of the values.
enum class Vectors : std::uint8_t { no, yes };
[[nodiscard]] std::vector<double> symmetric_eigen(std::span<double> matrix, std::int64_t n, Vectors vectors);

/// Singular values of x [rows, columns], descending, by bidiagonalisation: small ones are as good as eps times the largest. x is overwritten.
[[nodiscard]] std::vector<double> singular_values(std::span<double> x, std::int64_t rows, std::int64_t columns);
/// Thin decomposition x = sum_k values[k] left[:, k] right[k, :], k < min(rows, columns). left: [rows, k], right: [k, columns]. x is overwritten.
struct Svd {
  std::vector<double> values;
  std::vector<double> left;
  std::vector<double> right;
};
[[nodiscard]] Svd svd(std::span<double> x, std::int64_t rows, std::int64_t columns);

/// QR with column pivoting of the matrix whose columns are the rows of x, x: [vectors, length]. On return row i of x, from element 0 to min(i, length
/// - 1), holds column i of R (the rest is garbage), and pivots[i] is the vector that was taken i-th.
[[nodiscard]] std::vector<std::int64_t> pivoted_qr(std::span<double> x, std::int64_t vectors, std::int64_t length);

/// Makes of a symmetric positive definite matrix [n, n], given by its lower triangle, the lower triangle L with A = L L^T; what is above the diagonal
/// is left as it was. False where the matrix is not positive definite (or holds NaN); it is then garbage.
[[nodiscard]] bool cholesky(std::span<double> matrix, std::int64_t n);
/// The inverse of a lower triangle, in its place. False where an element of the diagonal is 0.
[[nodiscard]] bool invert_lower(std::span<double> matrix, std::int64_t n);

}  // namespace weft::math
