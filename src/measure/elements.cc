#include "measure/elements.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <string>

#include "math/convert.h"
#include "math/sort.h"

namespace weft::measure {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

/// Edges of the bins of log10 |w|, as evenly spaced as float64 allows.
const std::array<double, kWeibullBins + 1>& weibull_edges() {
  static const auto edges = [] {
    std::array<double, kWeibullBins + 1> result{};
    for (std::size_t i = 0; i <= kWeibullBins; ++i) result[i] = -12.0 + static_cast<double>(i) * (14.0 / kWeibullBins);
    return result;
  }();
  return edges;
}

// ---- Three forms in which a tensor's elements may be at hand ----
//
// Each offers: for_each(f(value, count)) over the signed values; and, over distinct or sorted magnitudes in ascending order, entries(), magnitude(i)
// and before(i), the number of elements of smaller index.

class FromCounts {
 public:
  explicit FromCounts(const PatternCounts& counts) {
    std::uint64_t before = 0;
    for (std::uint32_t pattern = 0; pattern < 0x8000; ++pattern) {
      const std::uint64_t positive = counts.count(pattern), negative = counts.count(pattern | 0x8000);
      if (positive + negative == 0) continue;
      const double value = math::decode_one(counts.dtype(), pattern);
      if (!std::isfinite(value)) continue;
      entries_.push_back({value, positive, negative, before});
      before += positive + negative;
    }
    total_ = before;
  }

  template <typename F>
  void for_each(F&& f) const {
    for (const Entry& e : entries_) {
      if (e.positive > 0) f(e.magnitude, static_cast<double>(e.positive));
      if (e.negative > 0) f(-e.magnitude, static_cast<double>(e.negative));
    }
  }
  [[nodiscard]] std::size_t entries() const { return entries_.size(); }
  [[nodiscard]] std::uint64_t total() const { return total_; }
  [[nodiscard]] double magnitude(std::size_t i) const { return entries_[i].magnitude; }
  [[nodiscard]] std::uint64_t before(std::size_t i) const { return i < entries_.size() ? entries_[i].before : total_; }
  /// The k-th smallest magnitude.
  [[nodiscard]] double order(std::uint64_t k) const {
    const auto after = std::partition_point(entries_.begin(), entries_.end(), [k](const Entry& e) { return e.before <= k; });
    return std::prev(after)->magnitude;
  }

 private:
  struct Entry {
    double magnitude;
    std::uint64_t positive, negative, before;
  };
  std::vector<Entry> entries_;
  std::uint64_t total_ = 0;
};

/// Elements in memory; magnitudes only after sort().
template <typename T, typename Bits>
class FromValues {
 public:
  explicit FromValues(std::span<T> values) : values_(values) {}

  template <typename F>
  void for_each(F&& f) const {
    for (const T value : values_) f(static_cast<double>(value), 1.0);
  }
  void sort() {
    for (T& value : values_) value = std::abs(value);
    // The bits of magnitudes sort as they do.
    math::sort_ascending(std::span(reinterpret_cast<Bits*>(values_.data()), values_.size()));
  }
  [[nodiscard]] std::size_t entries() const { return values_.size(); }
  [[nodiscard]] std::uint64_t total() const { return values_.size(); }
  [[nodiscard]] double magnitude(std::size_t i) const { return static_cast<double>(values_[i]); }
  [[nodiscard]] std::uint64_t before(std::size_t i) const { return i; }
  [[nodiscard]] double order(std::uint64_t k) const { return static_cast<double>(values_[static_cast<std::size_t>(k)]); }

 private:
  std::span<T> values_;
};

/// A sum whose error does not grow with the number of its terms (Neumaier).
class ExactSum {
 public:
  void add(double x) {
    const double t = sum_ + x;
    carry_ += std::abs(sum_) >= std::abs(x) ? (sum_ - t) + x : (x - t) + sum_;
    sum_ = t;
  }
  [[nodiscard]] double value() const { return sum_ + carry_; }

 private:
  double sum_ = 0, carry_ = 0;
};

/// numpy's linear interpolation between order statistics.
template <typename Source>
double quantile(const Source& source, double q) {
  const double at = q * static_cast<double>(source.total() - 1);
  const auto low = static_cast<std::uint64_t>(std::floor(at));
  const double t = at - static_cast<double>(low);
  const double a = source.order(low), b = source.order(std::min(low + 1, source.total() - 1));
  const double step = b - a;
  return t >= 0.5 ? b - step * (1 - t) : a + step * t;
}

/// Rounding to a type with `mantissa` stored bits moves a value by up to half a unit of its last place, any amount being as likely.
double rounding_variance(double magnitude, int mantissa, int least_exponent) {
  if (magnitude == 0) return 0;
  int exponent = 0;
  (void)std::frexp(magnitude, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - 1, least_exponent) - mantissa);
  return unit * unit / 12;
}

template <typename Source>
void measure_storage(const Source& source, DType stored, ElementSummary& summary, const Selection& selection, Measures& out) {
  int mantissa = 0, least_exponent = 0;
  switch (stored) {
    case DType::f16:
      mantissa = 10;
      least_exponent = -14;
      break;
    case DType::bf16:
      mantissa = 7;
      least_exponent = -126;
      break;
    case DType::f32:
      mantissa = 23;
      least_exponent = -126;
      break;
    case DType::f64:
      mantissa = 52;
      least_exponent = -1022;
      break;
    case DType::f8_e4m3:
      mantissa = 3;
      least_exponent = -6;
      break;
    case DType::f8_e5m2:
      mantissa = 2;
      least_exponent = -14;
      break;
    default:
      if (selection.wants("storage")) skip_group(out, "storage", "the rounding of this type depends on scales beside it");
      return;
  }
  ExactSum noise, squares;
  source.for_each([&](double value, double count) {
    noise.add(rounding_variance(std::abs(value), mantissa, least_exponent) * count);
    squares.add(value * value * count);
  });
  const auto n = static_cast<double>(summary.num_elements);
  summary.noise_rms = std::sqrt(noise.value() / n);
  if (!selection.wants("storage")) return;
  put(out, "storage.noise_rms", summary.noise_rms);
  put(out, "storage.noise_relative", squares.value() > 0 ? std::sqrt(noise.value() / squares.value()) : kNone, "undefined (zero tensor)");
}

/// What must be known before the elements are sorted.
struct Moments {
  double sum = 0, squares = 0, sum_abs = 0, mean = 0, variance = 0, skewness = kNone, kurtosis = kNone, min = 0, max = 0, above = kNone;
  std::uint64_t zero = 0;
};

template <typename Source>
Moments moments_of(const Source& source) {
  Moments m;
  const auto n = static_cast<double>(source.total());
  ExactSum sum, squares, sum_abs, second, third, fourth;
  double zero = 0;
  m.min = std::numeric_limits<double>::infinity();
  m.max = -m.min;
  source.for_each([&](double w, double count) {
    sum.add(w * count);
    squares.add(w * w * count);
    sum_abs.add(std::abs(w) * count);
    if (w == 0) zero += count;
    m.min = std::min(m.min, w);
    m.max = std::max(m.max, w);
  });
  m.sum = sum.value();
  m.squares = squares.value();
  m.sum_abs = sum_abs.value();
  m.mean = m.sum / n;
  m.zero = static_cast<std::uint64_t>(zero);
  // A constant tensor has no spread, whatever rounding does to its mean.
  if (m.min == m.max) {
    m.mean = m.min;
    return m;
  }
  source.for_each([&](double w, double count) {
    const double c = w - m.mean, c2 = c * c;
    second.add(c2 * count);
    third.add(c2 * c * count);
    fourth.add(c2 * c2 * count);
  });
  m.variance = second.value() / n;
  if (m.variance > 0) {
    const double std = std::sqrt(m.variance);
    m.skewness = third.value() / n / (m.variance * std);
    m.kurtosis = fourth.value() / n / (m.variance * m.variance) - 3;
    double above = 0;
    source.for_each([&](double w, double count) {
      if ((w - m.mean) / std > 1) above += count;
    });
    m.above = above / n;
  }
  return m;
}

template <typename Source>
void put_moments(const Source& source, const Moments& m, std::uint64_t argmax, Measures& out) {
  const std::uint64_t n = source.total();
  constexpr const char* kFlat = "undefined (zero variance)";
  constexpr const char* kZero = "undefined (zero denominator)";
  put(out, "moments.zero", static_cast<double>(m.zero));
  put(out, "moments.sum", m.sum);
  put(out, "moments.sum_squares", m.squares);
  put(out, "moments.sum_abs", m.sum_abs);
  put(out, "moments.mean", m.mean);
  put(out, "moments.variance", m.variance);
  put(out, "moments.skewness", m.skewness, kFlat);
  put(out, "moments.excess_kurtosis", m.kurtosis, kFlat);
  put(out, "moments.min", m.min);
  put(out, "moments.max", m.max);
  put(out, "moments.max_abs", std::max(std::abs(m.min), std::abs(m.max)));
  put(out, "moments.argmax_abs", static_cast<double>(argmax));
  constexpr double kQuantiles[] = {0.1, 0.5, 0.9, 0.99, 0.999};
  constexpr const char* kNames[] = {"0.1", "0.5", "0.9", "0.99", "0.999"};
  double q[5];
  for (std::size_t i = 0; i < 5; ++i) {
    q[i] = quantile(source, kQuantiles[i]);
    put(out, std::string("moments.abs_quantiles.q") + kNames[i], q[i]);
  }
  put(out, "moments.q90_q10", q[0] > 0 ? q[2] / q[0] : kNone, kZero);
  put(out, "moments.q99_q50", q[1] > 0 ? q[3] / q[1] : kNone, kZero);
  put(out, "moments.q999_q50", q[1] > 0 ? q[4] / q[1] : kNone, kZero);
  // Gini: sum of rank times magnitude; the ranks of a run of equal ones sum to c r + c (c + 1) / 2.
  ExactSum ranked;
  std::uint64_t distinct = 0;
  for (std::size_t i = 0; i < source.entries(); ++i) {
    const double magnitude = source.magnitude(i);
    if (i == 0 || magnitude != source.magnitude(i - 1)) ++distinct;
    const auto r = static_cast<double>(source.before(i)), c = static_cast<double>(source.before(i + 1)) - r;
    ranked.add(magnitude * (c * r + c * (c + 1) / 2));
  }
  const auto count = static_cast<double>(n);
  put(out, "moments.gini", m.sum_abs > 0 ? 2 * ranked.value() / (count * m.sum_abs) - (count + 1) / count : kNone, kZero);
  put(out, "moments.distinct_abs", static_cast<double>(distinct));
  put(out, "moments.above_one_std", m.above, kFlat);
}

/// A coarser histogram to look at, from the first bin that holds anything to the last.
void put_histogram(const std::array<std::uint64_t, kWeibullBins>& counts, Measures& out) {
  constexpr std::size_t kTogether = 4, kCoarse = kWeibullBins / kTogether;
  constexpr double kFirst = -12, kStep = 14.0 / kCoarse;
  std::array<double, kCoarse> sums{};
  for (std::size_t i = 0; i < kWeibullBins; ++i) sums[i / kTogether] += static_cast<double>(counts[i]);
  std::size_t begin = 0, end = kCoarse;
  while (begin < end && sums[begin] == 0) ++begin;
  while (end > begin && sums[end - 1] == 0) --end;
  if (begin == end) return;
  MeasuredCurve& curve = out.curves.emplace_back();
  curve.name = "histogram";
  for (std::size_t i = begin; i < std::max(end, begin + 2); ++i) {
    curve.x.push_back(static_cast<float>(kFirst + kStep * static_cast<double>(i)));
    curve.y.push_back(i < kCoarse ? static_cast<float>(sums[i]) : 0.0F);
  }
}

template <typename Source>
void measure_weibull(const Source& source, Measures& out) {
  // A float32 histogram: magnitudes that float32 cannot hold are no weights.
  if (source.entries() > 0 && !std::isfinite(static_cast<float>(source.magnitude(source.entries() - 1))))
    return skip_group(out, "weibull", "non-finite");
  std::array<std::uint64_t, kWeibullBins> counts{};
  // The bins of sorted magnitudes ascend: find where each begins.
  std::size_t begin = 0;
  while (begin < source.entries()) {
    const int bin = weibull_bin(static_cast<float>(source.magnitude(begin)));
    const bool beyond = bin < 0 && source.magnitude(begin) > 1;
    if (beyond) break;
    std::size_t low = begin + 1, high = source.entries();
    while (low < high) {
      const std::size_t middle = low + (high - low) / 2;
      const int other = weibull_bin(static_cast<float>(source.magnitude(middle)));
      const bool same = other == bin && !(other < 0 && source.magnitude(middle) > 1);
      (same ? low : high) = same ? middle + 1 : middle;
    }
    if (bin >= 0) counts[static_cast<std::size_t>(bin)] = source.before(low) - source.before(begin);
    begin = low;
  }
  put_histogram(counts, out);
  std::size_t distinct = 0;
  float last = -1;
  for (std::size_t i = 0; i < source.entries() && distinct < 64; ++i) {
    const auto magnitude = static_cast<float>(source.magnitude(i));
    distinct += magnitude != last;
    last = magnitude;
  }
  if (distinct < 64) return skip_group(out, "weibull", "fewer than 64 distinct magnitudes");
  const WeibullFit fit = fit_weibull(counts);
  if (fit.reason != nullptr) return skip_group(out, "weibull", fit.reason);
  put(out, "weibull.k", fit.k);
  put(out, "weibull.lambda", fit.lambda);
  put(out, "weibull.r2", fit.r2);
  put(out, "weibull.ks", fit.ks);
  put(out, "weibull.bins", static_cast<double>(fit.bins));
  put(out, "weibull.counted", static_cast<double>(fit.counted));
  put(out, "weibull.sampling_error", 1.4 / std::sqrt(static_cast<double>(fit.counted)));
  const char* label = fit.k < 0.95                      ? "strong selection"
                      : fit.k > 1.21                    ? "above band"
                      : fit.k >= 1.18 && fit.r2 >= 0.95 ? "transmission"
                                                        : "mild selection";
  out.labels.emplace_back("weibull.class", label);
}

/// Everything but what needs the order of the elements.
template <typename Source>
void measure_sorted(const Source& source, const Moments& m, std::uint64_t argmax, const Selection& selection, Measures& out) {
  if (selection.wants("moments")) put_moments(source, m, argmax, out);
  if (selection.wants("weibull")) measure_weibull(source, out);
}

struct Counted {
  std::uint64_t num_elements = 0, num_nan = 0, num_infinite = 0;
  std::optional<std::uint64_t> first_non_finite;
};

/// Handles what has no moments; false when nothing more is to be done.
bool measure_counts(const Counted& counted, const Selection& selection, Measures& out) {
  if (selection.wants("moments")) {
    put(out, "moments.n", static_cast<double>(counted.num_elements));
    put(out, "moments.nan", static_cast<double>(counted.num_nan));
    put(out, "moments.inf", static_cast<double>(counted.num_infinite));
    if (counted.first_non_finite) put(out, "moments.first_nonfinite", static_cast<double>(*counted.first_non_finite));
  }
  const char* reason = counted.first_non_finite ? "non-finite" : counted.num_elements == 0 ? "empty" : nullptr;
  if (reason == nullptr) return true;
  for (const char* group : {"moments", "weibull", "storage"})
    if (selection.wants(group)) skip_group(out, group, reason);
  return false;
}

ElementSummary summary_of(const Counted& counted, const Moments& m) {
  ElementSummary summary;
  summary.num_elements = counted.num_elements;
  summary.zero = m.sum_abs == 0;
  summary.mean = m.mean;
  summary.variance = m.variance;
  return summary;
}

template <typename T, typename Bits>
ElementSummary measure_values(std::span<T> values, DType stored, const Selection& selection, Measures& out) {
  Counted counted;
  counted.num_elements = values.size();
  std::uint64_t argmax = 0;
  T largest = -1;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const T magnitude = std::abs(values[i]);
    if (!(magnitude <= std::numeric_limits<T>::max())) {
      ++(std::isnan(magnitude) ? counted.num_nan : counted.num_infinite);
      if (!counted.first_non_finite) counted.first_non_finite = i;
    } else if (magnitude > largest) {
      largest = magnitude;
      argmax = i;
    }
  }
  if (!measure_counts(counted, selection, out)) return {.num_elements = values.size(), .finite = !counted.first_non_finite};
  FromValues<T, Bits> source(values);
  const Moments m = moments_of(source);
  ElementSummary summary = summary_of(counted, m);
  Measures storage;
  measure_storage(source, stored, summary, selection, storage);
  source.sort();
  measure_sorted(source, m, argmax, selection, out);
  for (auto& value : storage.values) out.values.push_back(std::move(value));
  for (auto& reason : storage.skipped) out.skipped.push_back(std::move(reason));
  return summary;
}

}  // namespace

bool is_counted(DType dtype) noexcept { return dtype == DType::f16 || dtype == DType::bf16; }

PatternCounts::PatternCounts(DType dtype)
    : dtype_(dtype), infinity_(dtype == DType::f16 ? 0x7C00 : 0x7F80), partial_(2 * kPatterns), counts_(kPatterns) {}

std::uint64_t PatternCounts::count(std::uint32_t pattern) const noexcept {
  return counts_[pattern] + partial_[pattern] + partial_[kPatterns + pattern];
}

void PatternCounts::fold() {
  for (std::size_t i = 0; i < kPatterns; ++i) counts_[i] += std::uint64_t{partial_[i]} + partial_[kPatterns + i];
  std::fill(partial_.begin(), partial_.end(), 0);
  unfolded_ = 0;
}

void PatternCounts::add(std::span<const std::uint16_t> patterns) {
  // Pieces small enough for the first-level cache, so that looking for the largest costs no second read from memory.
  constexpr std::size_t kPiece = 8192;
  for (std::size_t begin = 0; begin < patterns.size(); begin += kPiece) {
    const std::span<const std::uint16_t> piece = patterns.subspan(begin, std::min(kPiece, patterns.size() - begin));
    if (unfolded_ + piece.size() > std::numeric_limits<std::uint32_t>::max()) fold();
    std::uint32_t* first = partial_.data();
    std::uint32_t* second = first + kPatterns;
    std::size_t i = 0;
    for (; i + 8 <= piece.size(); i += 8) {
      std::uint64_t a, b;
      std::memcpy(&a, &piece[i], 8);
      std::memcpy(&b, &piece[i + 4], 8);
      ++first[a & 0xFFFF];
      ++second[b & 0xFFFF];
      ++first[a >> 16 & 0xFFFF];
      ++second[b >> 16 & 0xFFFF];
      ++first[a >> 32 & 0xFFFF];
      ++second[b >> 32 & 0xFFFF];
      ++first[a >> 48];
      ++second[b >> 48];
    }
    for (; i < piece.size(); ++i) ++first[piece[i]];
    unfolded_ += piece.size();

    // Fixed groups, which compilers turn into vectors; then what is left.
    constexpr std::size_t kGroup = 64;
    std::array<std::uint16_t, kGroup> most{};
    std::size_t at = 0;
    for (; at + kGroup <= piece.size(); at += kGroup) {
      const std::uint16_t* group = &piece[at];
      for (std::size_t k = 0; k < kGroup; ++k) most[k] = std::max<std::uint16_t>(most[k], group[k] & 0x7FFF);
    }
    std::uint16_t largest = *std::max_element(most.begin(), most.end());
    for (; at < piece.size(); ++at) largest = std::max<std::uint16_t>(largest, piece[at] & 0x7FFF);
    const auto find = [&](auto&& wanted) {
      return num_elements_ + static_cast<std::uint64_t>(std::find_if(piece.begin(), piece.end(), wanted) - piece.begin());
    };
    if (largest >= infinity_) {
      if (!first_non_finite_) first_non_finite_ = find([this](std::uint16_t pattern) { return (pattern & 0x7FFF) >= infinity_; });
    } else if (!any_ || largest > largest_) {
      any_ = true;
      largest_ = largest;
      argmax_ = find([largest](std::uint16_t pattern) { return (pattern & 0x7FFF) == largest; });
    }
    num_elements_ += piece.size();
  }
}

ElementSummary measure_elements(const PatternCounts& counts, const Selection& selection, Measures& out) {
  Counted counted;
  counted.num_elements = counts.num_elements();
  counted.first_non_finite = counts.first_non_finite();
  const std::uint32_t infinity = counts.dtype() == DType::f16 ? 0x7C00 : 0x7F80;
  for (std::uint32_t pattern = infinity; pattern < 0x8000; ++pattern)
    (pattern == infinity ? counted.num_infinite : counted.num_nan) += counts.count(pattern) + counts.count(pattern | 0x8000);
  if (!measure_counts(counted, selection, out)) return {.num_elements = counted.num_elements, .finite = !counted.first_non_finite};
  const FromCounts source(counts);
  const Moments m = moments_of(source);
  ElementSummary summary = summary_of(counted, m);
  measure_sorted(source, m, counts.argmax_abs(), selection, out);
  measure_storage(source, counts.dtype(), summary, selection, out);
  return summary;
}

ElementSummary measure_elements(std::span<float> values, DType stored, const Selection& selection, Measures& out) {
  return measure_values<float, std::uint32_t>(values, stored, selection, out);
}

ElementSummary measure_elements(std::span<double> values, const Selection& selection, Measures& out) {
  return measure_values<double, std::uint64_t>(values, DType::f64, selection, out);
}

int weibull_bin(float magnitude) noexcept {
  const double x = std::log10(static_cast<double>(std::max(magnitude, 1e-13f)));
  if (!(x >= -12 && x <= 2)) return -1;
  const auto& edges = weibull_edges();
  auto bin = std::min(static_cast<std::size_t>((x + 12) * (kWeibullBins / 14.0)), kWeibullBins - 1);
  // The quotient may round over an edge.
  if (x < edges[bin]) {
    --bin;
  } else if (bin + 1 < kWeibullBins && x >= edges[bin + 1]) {
    ++bin;
  }
  return static_cast<int>(bin);
}

WeibullFit fit_weibull(std::span<const std::uint64_t> counts, double low, double high) {
  WeibullFit fit;
  const auto& edges = weibull_edges();
  for (const std::uint64_t count : counts) fit.counted += count;
  if (fit.counted < 100) {
    fit.reason = "fewer than 100 counted";
    return fit;
  }
  const auto total = static_cast<double>(fit.counted);
  struct Point {
    double weight, x, y;
  };
  std::vector<Point> points;
  double after = 0;
  for (std::size_t j = 0; j < kWeibullBins; ++j) {
    const auto count = static_cast<double>(counts[j]);
    const double before = after;
    after += count;
    const double F = (before + after) / (2 * total);
    if (count == 0 || F < low || F > high) continue;
    points.push_back({count, std::numbers::ln10 * (edges[j] + edges[j + 1]) / 2, std::log(std::max(-std::log(1 - F + 1e-12), 1e-300))});
  }
  if (points.size() < 5) {
    fit.reason = "fewer than 5 bins";
    return fit;
  }
  double weight = 0, mean_x = 0, mean_y = 0;
  for (const Point& p : points) {
    weight += p.weight;
    mean_x += p.weight * p.x;
    mean_y += p.weight * p.y;
  }
  mean_x /= weight;
  mean_y /= weight;
  double xy = 0, xx = 0, residual = 0, spread = 0;
  for (const Point& p : points) {
    xy += p.weight * (p.x - mean_x) * (p.y - mean_y);
    xx += p.weight * (p.x - mean_x) * (p.x - mean_x);
  }
  fit.k = xy / xx;
  const double b = mean_y - fit.k * mean_x;
  fit.lambda = std::exp(-b / fit.k);
  for (const Point& p : points) {
    residual += p.weight * (p.y - fit.k * p.x - b) * (p.y - fit.k * p.x - b);
    spread += p.weight * (p.y - mean_y) * (p.y - mean_y);
  }
  fit.r2 = 1 - residual / spread;
  fit.bins = points.size();
  after = 0;
  for (std::size_t j = 0; j < kWeibullBins; ++j) {
    after += static_cast<double>(counts[j]);
    const double centre = std::pow(10.0, (edges[j] + edges[j + 1]) / 2);
    fit.ks = std::max(fit.ks, std::abs(after / total - (1 - std::exp(-std::pow(centre / fit.lambda, fit.k)))));
  }
  return fit;
}

}  // namespace weft::measure
