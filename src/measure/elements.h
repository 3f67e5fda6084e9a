#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "measure/table.h"
#include "weft/dtype.h"

// What the elements of a tensor show in any order. Tensors of 16-bit types are never expanded: their 65,536 patterns are counted while they are read,
// and everything follows from the counts.
namespace weft::measure {

/// Counts of every pattern of a 16-bit type.
class PatternCounts {
 public:
  explicit PatternCounts(DType dtype);
  /// The next elements, as stored.
  void add(std::span<const std::uint16_t> patterns);

  [[nodiscard]] DType dtype() const noexcept { return dtype_; }
  [[nodiscard]] std::uint64_t num_elements() const noexcept { return num_elements_; }
  [[nodiscard]] std::uint64_t count(std::uint32_t pattern) const noexcept;
  /// Index of the first element that is NaN or infinite.
  [[nodiscard]] std::optional<std::uint64_t> first_non_finite() const noexcept { return first_non_finite_; }
  /// Index of the first element of the largest magnitude.
  [[nodiscard]] std::uint64_t argmax_abs() const noexcept { return argmax_; }

 private:
  void fold();
  static constexpr std::size_t kPatterns = 1 << 16;

  DType dtype_;
  std::uint16_t infinity_;  // patterns from here on, the sign taken off, are no numbers
  std::uint64_t num_elements_ = 0;
  std::uint64_t unfolded_ = 0;
  std::optional<std::uint64_t> first_non_finite_;
  std::uint64_t argmax_ = 0;
  std::uint16_t largest_ = 0;
  bool any_ = false;
  std::vector<std::uint32_t> partial_;  // [2, kPatterns]: two tables, so that runs of one value do not wait for their own store
  std::vector<std::uint64_t> counts_;   // [kPatterns]
};

/// Whether a type's patterns are counted.
[[nodiscard]] bool is_counted(DType dtype) noexcept;

/// What later passes need to know.
struct ElementSummary {
  std::uint64_t num_elements = 0;
  bool finite = true;
  bool zero = true;  ///< nothing but zeros, or empty
  double mean = 0;
  double variance = 0;
  double noise_rms = 0;  ///< of rounding to the stored type
};

/// The groups `moments`, `weibull` and `storage`. The spans are sorted in place.
ElementSummary measure_elements(const PatternCounts& counts, const Selection& selection, Measures& out);
ElementSummary measure_elements(std::span<float> values, DType stored, const Selection& selection, Measures& out);
ElementSummary measure_elements(std::span<double> values, const Selection& selection, Measures& out);

/// A Weibull fit to magnitudes by least squares over the middle of their distribution.
struct WeibullFit {
  const char* reason = nullptr;  ///< why there is none
  double k = 0, lambda = 0, r2 = 0, ks = 0;
  std::uint64_t bins = 0, counted = 0;
};
inline constexpr std::size_t kWeibullBins = 1024;
/// counts of log10 |w| in 1024 equal bins on [-12, 2]. low, high: the share of the distribution that is fitted.
[[nodiscard]] WeibullFit fit_weibull(std::span<const std::uint64_t> counts, double low = 0.1, double high = 0.9);
/// The bin of a magnitude; -1 outside. Magnitudes below 1e-13 count as that.
[[nodiscard]] int weibull_bin(float magnitude) noexcept;

}  // namespace weft::measure
