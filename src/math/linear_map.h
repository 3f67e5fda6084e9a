#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

// Square linear maps as they are applied to many vectors: orthogonal ones that cost no more than a few additions an element, and given ones.
namespace weft::math {

/// y = M x for vectors of one size. Immutable; thread-safe.
class LinearMap {
 public:
  virtual ~LinearMap() = default;
  [[nodiscard]] virtual std::size_t size() const noexcept = 0;
  /// Whether M M^T is the identity to within 1e-9 an element.
  [[nodiscard]] virtual bool is_orthogonal() const noexcept = 0;
  /// Each row of x [rows, size] becomes M row.
  virtual void apply(double* x, std::size_t rows) const = 0;
  /// Each row becomes M^-T row: what a vector becomes that is multiplied with those that M maps, so that the products stay.
  virtual void apply_dual(double* x, std::size_t rows) const = 0;
};

/// A Hadamard matrix of this order, entries 1 and -1, as rows: Sylvester's doubling of one of Paley's two constructions over a prime field. Empty for
/// an order that these do not give.
[[nodiscard]] std::vector<double> hadamard_matrix(std::int64_t order);

/// x [n, inner] becomes H x / sqrt(n), H Sylvester's matrix of order n, a power of two: n log2(n) additions for each column.
void fast_hadamard(double* x, std::size_t n, std::size_t inner);

enum class Signs : std::uint8_t { none, random };
/// H diag(signs) / sqrt(size), H a Hadamard matrix: one of a small order times Sylvester's. Where the size has none, a random orthogonal matrix of
/// its odd part takes the small one's place (drawn from the seed, also with Signs::none). Class A but for that part (class C). Errors:
/// invalid_argument for a size of 0, or one whose odd part exceeds 4096.
[[nodiscard]] std::shared_ptr<const LinearMap> make_hadamard_map(std::int64_t size, Signs signs = Signs::none, std::uint64_t seed = 0);

/// A random orthogonal matrix (Haar). Class C. Errors: invalid_argument for a size of 0 or beyond 4096.
[[nodiscard]] std::shared_ptr<const LinearMap> make_random_orthogonal(std::int64_t size, std::uint64_t seed);

/// A given matrix [size, size] as rows, orthogonal or not. Class C. Errors: invalid_argument for one that is not square, holds NaN or infinities, or
/// is singular (a condition above 1e12).
[[nodiscard]] std::shared_ptr<const LinearMap> make_matrix_map(std::vector<double> values, std::int64_t size);

/// The orthogonal map, followed by the reflection that takes the vector of ones back to where it was: what results leaves the mean alone.
[[nodiscard]] std::shared_ptr<const LinearMap> keeping_the_mean(std::shared_ptr<const LinearMap> map);
/// Whether M leaves the vector of ones alone, to within 1e-9 an element.
[[nodiscard]] bool keeps_the_mean(const LinearMap& map);

}  // namespace weft::math
