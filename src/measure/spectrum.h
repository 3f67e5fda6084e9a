#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "measure/table.h"

// Singular values, and what follows from them alone.
namespace weft::measure {

/// A matrix [rows, columns], row-major.
struct Matrix {
  std::span<const double> values;
  std::int64_t rows = 0, columns = 0;
  [[nodiscard]] std::int64_t longer() const noexcept { return rows > columns ? rows : columns; }
  [[nodiscard]] std::int64_t shorter() const noexcept { return rows < columns ? rows : columns; }
};

/// Singular values, descending.
struct Spectrum {
  std::vector<double> s;
  std::int64_t rows = 0, columns = 0;
  [[nodiscard]] double longer() const noexcept { return static_cast<double>(rows > columns ? rows : columns); }
  [[nodiscard]] double shorter() const noexcept { return static_cast<double>(rows < columns ? rows : columns); }
  /// Squares, ascending.
  [[nodiscard]] std::vector<double> eigenvalues() const;
};

/// From a Gram matrix of the shorter side (its upper triangle; overwritten). Values below about 1e-8 of the largest are noise.
[[nodiscard]] Spectrum spectrum_from_gram(std::span<double> gram, std::int64_t rows, std::int64_t columns);
/// By the Gram matrix, and by bidiagonalisation where that would not tell small values from none.
[[nodiscard]] Spectrum spectrum_of(const Matrix& matrix);
/// The bytes that spectrum_of takes beside the matrix, at most.
[[nodiscard]] std::uint64_t spectrum_bytes(std::int64_t rows, std::int64_t columns);

/// The group `ranks`; with this prefix ("ranks", "difference").
void measure_ranks(const Spectrum& spectrum, const std::string& prefix, Measures& out);
/// A few dozen of the values, denser where they are largest, as the curve `spectrum`.
void put_spectrum_curve(const Spectrum& spectrum, Measures& out);
/// exp of the entropy of p / sum p.
[[nodiscard]] double entropy_rank(std::span<const double> p);
/// s[0] / s[last], or NaN when singular to working precision.
[[nodiscard]] double condition_of(const Spectrum& spectrum);
/// Least k whose squares hold this share of all.
[[nodiscard]] std::uint64_t energy_rank(std::span<const double> s, double share);

/// Where the product of the largest rescaled eigenvalues passes one.
struct DetX {
  bool found = false;
  std::uint64_t num = 0;
  double value = 0;     ///< NaN where it is rounding noise
  double rescaled = 0;  ///< the same in units of the mean eigenvalue
};
/// eigenvalues: ascending.
[[nodiscard]] DetX find_detx(std::span<const double> eigenvalues);
void measure_detx(std::span<const double> eigenvalues, Measures& out);

/// The rest of the group `storage`: the largest singular value of rounding noise, and how many lie below it.
void measure_noise_floor(const Spectrum& spectrum, double noise_rms, Measures& out);

}  // namespace weft::measure
