#include "measure/structure.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <set>
#include <string>
#include <vector>

#include "base/philox.h"
#include "math/lapack.h"
#include "measure/marchenko_pastur.h"
#include "measure/powerlaw.h"

namespace weft::measure {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
// The cosines of all pairs of a vocabulary would take longer than everything else together.
constexpr std::int64_t kMostVectors = 1 << 15;

std::vector<double> transposed(const Matrix& m) {
  const auto rows = static_cast<std::size_t>(m.rows), columns = static_cast<std::size_t>(m.columns);
  std::vector<double> result(rows * columns);
  constexpr std::size_t kSquare = 32;
  for (std::size_t top = 0; top < rows; top += kSquare)
    for (std::size_t left = 0; left < columns; left += kSquare)
      for (std::size_t i = top; i < std::min(rows, top + kSquare); ++i)
        for (std::size_t j = left; j < std::min(columns, left + kSquare); ++j) result[j * rows + i] = m.values[i * columns + j];
  return result;
}

/// Mean of |cos| over pairs of the vectors that are not zero; NaN where there are fewer than two. vectors: [count, length], changed.
double mean_abs_cosine(std::vector<double>& vectors, std::size_t count, std::size_t length) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < count; ++i) {
    double squares = 0;
    for (std::size_t j = 0; j < length; ++j) squares += vectors[i * length + j] * vectors[i * length + j];
    if (!(squares > 0)) continue;
    const double scale = 1 / std::sqrt(squares);
    for (std::size_t j = 0; j < length; ++j) vectors[kept * length + j] = vectors[i * length + j] * scale;
    ++kept;
  }
  if (kept < 2) return kNone;
  // In strips, from the diagonal on: the pairs of a large matrix would not fit into memory.
  constexpr std::size_t kStrip = 256;
  std::vector<double> products(kStrip * kept);
  double sum = 0;
  for (std::size_t top = 0; top < kept; top += kStrip) {
    const std::size_t height = std::min(kStrip, kept - top), width = kept - top;
    math::gemm(math::Transpose::no, math::Transpose::yes, static_cast<std::int64_t>(height), static_cast<std::int64_t>(width),
               static_cast<std::int64_t>(length), 1.0, &vectors[top * length], static_cast<std::int64_t>(length), &vectors[top * length],
               static_cast<std::int64_t>(length), 0.0, products.data(), static_cast<std::int64_t>(width));
    for (std::size_t i = 0; i < height; ++i) {
      double row = 0;
      for (std::size_t j = i + 1; j < width; ++j) row += std::abs(products[i * width + j]);
      sum += row;
    }
  }
  return 2 * sum / (static_cast<double>(kept) * static_cast<double>(kept - 1));
}

/// Numbers for drawing permutations.
class Draws {
 public:
  Draws(std::uint64_t seed, std::string_view name, std::uint32_t stream) : key_(seed ^ fnv1a64(name)), stream_(stream) {}
  std::uint64_t next() {
    if (left_ == 0) {
      const auto words = philox4x32({static_cast<std::uint32_t>(block_), static_cast<std::uint32_t>(block_ >> 32), 0, stream_},
                                    {static_cast<std::uint32_t>(key_), static_cast<std::uint32_t>(key_ >> 32)});
      words_[0] = std::uint64_t{words[0]} << 32 | words[1];
      words_[1] = std::uint64_t{words[2]} << 32 | words[3];
      ++block_;
      left_ = 2;
    }
    return words_[--left_];
  }
  /// Below n; the bias of 2^-64 n is no matter here.
  std::size_t below(std::size_t n) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<std::size_t>(static_cast<Wide>(next()) * n >> 64);
  }

 private:
  std::uint64_t key_;
  std::uint32_t stream_;
  std::uint64_t block_ = 0;
  std::uint64_t words_[2] = {};
  int left_ = 0;
};

void permute(std::vector<double>& values, Draws& draws) {
  for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[draws.below(i)]);
}

/// Jensen and Shannon's distance between two vectors, each divided by its sum.
double jensen_shannon(std::span<const double> p, std::span<const double> q) {
  double p_sum = 0, q_sum = 0, divergence = 0;
  for (const double value : p) p_sum += value;
  for (const double value : q) q_sum += value;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double a = p[i] / p_sum, b = q[i] / q_sum, m = (a + b) / 2;
    if (a > 0) divergence += a * std::log(a / m);
    if (b > 0) divergence += b * std::log(b / m);
  }
  return std::sqrt(std::max(0.0, divergence / 2));
}

}  // namespace

NormalStream::NormalStream(std::uint64_t seed, std::string_view name, std::uint32_t stream) : key_(seed ^ fnv1a64(name)), stream_(stream) {}

void NormalStream::fill(std::span<double> out) {
  for (std::size_t i = 0; i < out.size(); i += 2) {
    const auto words = philox4x32({static_cast<std::uint32_t>(next_), static_cast<std::uint32_t>(next_ >> 32), 0, stream_},
                                  {static_cast<std::uint32_t>(key_), static_cast<std::uint32_t>(key_ >> 32)});
    ++next_;
    // Box and Muller; the first uniform is never zero.
    const double u = (static_cast<double>(std::uint64_t{words[0]} << 21 | words[1] >> 11) + 0.5) * 0x1p-53;
    const double v = static_cast<double>(std::uint64_t{words[2]} << 21 | words[3] >> 11) * 0x1p-53;
    const double radius = std::sqrt(-2 * std::log(u));
    out[i] = radius * std::cos(2 * std::numbers::pi * v);
    if (i + 1 < out.size()) out[i + 1] = radius * std::sin(2 * std::numbers::pi * v);
  }
}

std::uint64_t structure_bytes(std::int64_t rows, std::int64_t columns) {
  const auto r = static_cast<std::uint64_t>(rows), c = static_cast<std::uint64_t>(columns), least = std::min(r, c);
  return 8 * (2 * r * c + 3 * least * least + 256 * std::max(r, c)) + (4 << 20);
}

void measure_orthogonality(const Matrix& m, const std::string& prefix, Measures& out) {
  const auto n = static_cast<std::size_t>(m.shorter());
  {
    std::vector<double> gram(n * n);
    math::add_gram(m.rows < m.columns ? math::GramOf::rows : math::GramOf::columns, m.values.data(), m.rows, m.columns, gram);
    double trace = 0;
    for (std::size_t i = 0; i < n; ++i) trace += gram[i * n + i];
    const double mean = trace / static_cast<double>(n);
    double penalty = 0, error = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double diagonal = gram[i * n + i];
      penalty += (diagonal - 1) * (diagonal - 1);
      error += (diagonal / mean - 1) * (diagonal / mean - 1);
      double row = 0;
      for (std::size_t j = i + 1; j < n; ++j) row += gram[i * n + j] * gram[i * n + j];
      penalty += 2 * row;
      error += 2 * row / (mean * mean);
    }
    const auto count = static_cast<double>(n);
    put(out, prefix + ".penalty", std::sqrt(penalty));
    if (n > 1) put(out, prefix + ".error", trace > 0 ? std::sqrt(error) / std::sqrt(count * (count - 1)) : kNone, "undefined (zero tensor)");
  }
  const auto cosines = [&](const char* key, std::vector<double> vectors, std::int64_t count, std::int64_t length) {
    if (count > kMostVectors) {
      out.skipped.emplace_back(prefix + key, "more than 32768 vectors: their pairs are not compared");
      return;
    }
    put(out, prefix + key, mean_abs_cosine(vectors, static_cast<std::size_t>(count), static_cast<std::size_t>(length)),
        "fewer than two vectors that are not zero");
  };
  cosines(".mean_abs_cos_rows", {m.values.begin(), m.values.end()}, m.rows, m.columns);
  cosines(".mean_abs_cos_cols", m.columns > kMostVectors ? std::vector<double>() : transposed(m), m.columns, m.rows);
}

void measure_conditioning(const Matrix& m, const Spectrum& spectrum, Measures& out) {
  std::vector<double> scaled(m.values.begin(), m.values.end());
  const auto columns = static_cast<std::size_t>(m.columns);
  double least = std::numeric_limits<double>::infinity(), most = 0;
  std::uint64_t zero_rows = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(m.rows); ++i) {
    double* row = &scaled[i * columns];
    double squares = 0;
    for (std::size_t j = 0; j < columns; ++j) squares += row[j] * row[j];
    const double norm = std::sqrt(squares);
    least = std::min(least, norm);
    most = std::max(most, norm);
    if (norm == 0) ++zero_rows;
    if (norm > 0)
      for (std::size_t j = 0; j < columns; ++j) row[j] /= norm;
  }
  constexpr const char* kSingular = "undefined (singular to working precision)";
  put(out, "conditioning.before", condition_of(spectrum), kSingular);
  put(out, "conditioning.after", condition_of(spectrum_of({scaled, m.rows, m.columns})), kSingular);
  put(out, "conditioning.zero_rows", static_cast<double>(zero_rows));
  put(out, "conditioning.row_norm_min", least);
  put(out, "conditioning.row_norm_max", most);
}

void measure_weight_space(const Matrix& m, const Spectrum& spectrum, Measures& out) {
  const std::int64_t M = m.shorter();
  const std::set<std::int64_t> kept = {std::max<std::int64_t>(1, M / 4), std::max<std::int64_t>(1, M / 2), std::max<std::int64_t>(1, 3 * M / 4)};
  // Tails of squares, summed from the small end.
  std::vector<double> tails(spectrum.s.size() + 1);
  for (std::size_t i = spectrum.s.size(); i-- > 0;) tails[i] = tails[i + 1] + spectrum.s[i] * spectrum.s[i];
  const double total = std::sqrt(tails[0]);
  std::vector<std::string> pivots[2];
  for (const std::int64_t k : kept) put(out, "weight_space.k." + std::to_string(k) + ".svd", std::sqrt(tails[static_cast<std::size_t>(k)]) / total);
  for (const bool of_columns : {true, false}) {
    std::vector<double> x = of_columns ? transposed(m) : std::vector<double>(m.values.begin(), m.values.end());
    const std::int64_t vectors = of_columns ? m.columns : m.rows, length = of_columns ? m.rows : m.columns;
    const std::vector<std::int64_t> taken = math::pivoted_qr(x, vectors, length);
    const char* side = of_columns ? "col" : "row";
    for (const std::int64_t k : kept) {
      double squares = 0;
      for (std::int64_t i = k; i < vectors; ++i)
        for (std::int64_t j = k; j <= std::min(i, length - 1); ++j) {
          const double value = x[static_cast<std::size_t>(i * length + j)];
          squares += value * value;
        }
      put(out, "weight_space.k." + std::to_string(k) + "." + side, std::sqrt(squares) / total);
    }
    for (std::size_t i = 0; i < std::min<std::size_t>(8, taken.size()); ++i)
      put(out, std::string("weight_space.first_pivots.") + side + "." + std::to_string(i), static_cast<double>(taken[i]));
  }
}

void measure_random(const Matrix& m, const Spectrum& spectrum, std::string_view name, std::uint64_t seed, Measures& out) {
  const std::vector<double> l = spectrum.eigenvalues();
  if (l.size() < 8) return skip_group(out, "random", "fewer than 8 eigenvalues");
  std::vector<double> values(m.values.begin(), m.values.end());
  Draws draws(seed, name, 0);
  // The first draw, of several where one has few eigenvalues.
  std::vector<double> pooled, single;
  const int replicas = l.size() < 100 ? 5 : 1;
  for (int i = 0; i < replicas; ++i) {
    permute(values, draws);
    const std::vector<double> more = spectrum_of({values, m.rows, m.columns}).eigenvalues();
    if (i == 0) single = more;
    pooled.insert(pooled.end(), more.begin(), more.end());
  }
  std::sort(pooled.begin(), pooled.end());
  // The second.
  permute(values, draws);
  const std::vector<double> second = spectrum_of({values, m.rows, m.columns}).eigenvalues();
  put(out, "random.max_rand_eval", pooled.back());
  put(out, "random.rand_distance", jensen_shannon(l, second));
  put(out, "random.ww_softrank", second.back() / l.back());
  put(out, "random.ww_maxdist", l.back() - second.back());
  const MpFit fit = fit_mp_density(pooled, spectrum.longer(), spectrum.shorter());
  if (fit.valid) {
    put(out, "random.rand_sigma_mp", fit.sigma);
    put(out, "random.rand_bulk_min", fit.bulk_min);
    put(out, "random.rand_bulk_max", fit.bulk_max);
    put(out, "random.rand_mp_softrank", fit.softrank);
    put(out, "random.rand_num_spikes", static_cast<double>(fit.spikes));
  } else {
    for (const char* key : {"rand_sigma_mp", "rand_bulk_min", "rand_bulk_max", "rand_mp_softrank", "rand_num_spikes"})
      out.skipped.emplace_back(std::string("random.") + key, "no width of the law fits");
  }

  // What the power law says where there is none: only D below these is evidence.
  double squares = 0;
  for (const double value : m.values) {
    squares += value * value;
  }
  const double deviation = std::sqrt(squares / static_cast<double>(m.values.size()));
  NormalStream(seed, name, 1).fill(values);
  for (double& value : values) value *= deviation;
  const std::vector<double> gaussian = spectrum_of({values, m.rows, m.columns}).eigenvalues();
  const auto put_null = [&](const std::vector<double>& eigenvalues, const char* alpha, const char* distance) {
    const PowerLawFit null = fit_powerlaw(eigenvalues, kAbsoluteCut);
    put(out, std::string("random.") + alpha, null.reason == nullptr ? null.alpha : kNone, "no power law fits");
    put(out, std::string("random.") + distance, null.reason == nullptr ? null.D : kNone, "no power law fits");
  };
  put_null(single, "alpha_permuted", "D_permuted");
  put_null(gaussian, "alpha_gaussian", "D_gaussian");
  const PowerLawFit real = fit_powerlaw(l, kAbsoluteCut);
  if (real.reason != nullptr) {
    out.skipped.emplace_back("random.p_value", real.reason);
  } else if (real.kept > 1024) {
    out.skipped.emplace_back("random.p_value", "more than 1024 eigenvalues: a hundred searches would take too long");
  } else {
    put(out, "random.p_value", powerlaw_p_value(l, real, seed));
  }
}

}  // namespace weft::measure
