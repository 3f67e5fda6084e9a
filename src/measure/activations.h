#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "measure/spectrum.h"
#include "measure/table.h"

// What layers do with data: from their inputs over some text, or from sums over them. Sums in float64.
namespace weft::measure {

/// Rows of float32, [rows, columns].
struct Inputs {
  std::span<const float> values;
  std::int64_t rows = 0, columns = 0;
};

/// The group `spectral_alignment`: cosines of inputs with the top right singular vector of w [out, in], whose largest component is positive.
void measure_alignment(const Matrix& w, const Inputs& x, Measures& out);

/// A symmetric positive matrix as the square root of its eigenvalues and its eigenvectors, so that spectra of products with it are cheap.
class SecondMoment {
 public:
  /// moment: [n, n], its upper triangle; taken over.
  SecondMoment(std::vector<double> moment, std::int64_t n);
  [[nodiscard]] std::int64_t size() const noexcept { return n_; }
  /// Ascending.
  [[nodiscard]] std::span<const double> eigenvalues() const noexcept { return values_; }
  /// Eigenvalues of w C w^T, w: [out, n], as many as the shorter side; in any order.
  [[nodiscard]] std::vector<double> eigenvalues_behind(const Matrix& w) const;

 private:
  std::int64_t n_;
  std::vector<double> values_;
  std::vector<double> vectors_;  // [n, n], as rows
};
inline constexpr std::array<double, 3> kUtilizedShares = {0.9, 0.99, 0.999};
/// The group `utilized_rank`: dimensions that hold these shares of the energy of what w reads (input_values: eigenvalues) and writes.
void measure_utilized(const Matrix& w, const SecondMoment& inputs, Measures& out);
/// Least k whose largest values hold at least this share (strict: more than it).
enum class Bar : std::uint8_t { reached, passed };
[[nodiscard]] std::uint64_t count_for_share(std::vector<double> values, double share, Bar bar);

/// Linear CKA of two sets of representations with the same rows.
[[nodiscard]] double cka(const Inputs& x, const Inputs& y);
/// Debiased, in batches of rows (0: all at once).
[[nodiscard]] double cka_debiased(const Inputs& x, const Inputs& y, std::int64_t batch = 0);
/// <X X^T, Y Y^T> / (norms), not centred.
[[nodiscard]] double representation_alignment(const Inputs& x, const Inputs& y);

/// Attention of several heads: shares [heads, sequences, tokens, tokens], of each token to each.
struct HeadMaps {
  std::vector<float> shares;
  std::size_t heads = 0, sequences = 0, tokens = 0;
  bool causal = true;
};
/// The group `heads`: how alike heads look, and how their mean entropies spread.
void measure_heads(const HeadMaps& maps, Measures& out);

/// Which inputs matter for each output by |w| times the input's norm: the largest share of each row, as bits.
class ImportanceMask {
 public:
  /// The floor(columns (1 - share)) smallest of a row are 0, of equal ones the first.
  ImportanceMask(const Matrix& w, std::span<const double> norms, double share);
  [[nodiscard]] std::span<const std::uint64_t> bits() const noexcept { return bits_; }

 private:
  std::vector<std::uint64_t> bits_;
};
struct MaskCounts {
  std::uint64_t differ = 0, both = 0;
};
[[nodiscard]] MaskCounts compare_masks(const ImportanceMask& a, const ImportanceMask& b);

/// Text filters as lists of words: for filter f and slot p the words by falling E_v . F_fp, the lower index first among equals.
struct WordRule {
  std::vector<std::vector<std::uint32_t>> words;  ///< [slots, top]
  std::vector<std::vector<double>> scores;
  double best_response = 0;  ///< of the n-gram of the first words
};
/// embeddings: [words, d]; filters: [filters, slots, d], one behind the other.
[[nodiscard]] std::vector<WordRule> word_rules(const Matrix& embeddings, std::span<const double> filters, std::size_t num_filters, std::size_t slots,
                                               std::size_t top);

}  // namespace weft::measure
