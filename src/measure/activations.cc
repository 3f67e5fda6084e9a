#include "measure/activations.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "math/lapack.h"

namespace weft::measure {
namespace {

using math::Transpose;

std::vector<double> doubles(const Inputs& x, bool centred) {
  std::vector<double> result(x.values.begin(), x.values.end());
  if (!centred) return result;
  const auto columns = static_cast<std::size_t>(x.columns), rows = static_cast<std::size_t>(x.rows);
  std::vector<double> means(columns);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) means[c] += result[r * columns + c];
  for (double& mean : means) mean /= static_cast<double>(rows);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) result[r * columns + c] -= means[c];
  return result;
}

double squares(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum;
}

/// ||X^T Y||_F^2, or the same as sum(X X^T * Y Y^T) where that is smaller.
double cross_squares(std::span<const double> x, std::int64_t dx, std::span<const double> y, std::int64_t dy, std::int64_t rows) {
  if (dx * dy <= rows * rows) {
    std::vector<double> product(static_cast<std::size_t>(dx * dy));
    math::gemm(Transpose::yes, Transpose::no, dx, dy, rows, 1.0, x.data(), dx, y.data(), dy, 0.0, product.data(), dy);
    return squares(product);
  }
  std::vector<double> k(static_cast<std::size_t>(rows * rows)), l(k.size());
  math::gemm(Transpose::no, Transpose::yes, rows, rows, dx, 1.0, x.data(), dx, x.data(), dx, 0.0, k.data(), rows);
  math::gemm(Transpose::no, Transpose::yes, rows, rows, dy, 1.0, y.data(), dy, y.data(), dy, 0.0, l.data(), rows);
  double sum = 0;
  for (std::size_t i = 0; i < k.size(); ++i) sum += k[i] * l[i];
  return sum;
}

double similarity(const Inputs& x, const Inputs& y, bool centred) {
  const std::vector<double> a = doubles(x, centred), b = doubles(y, centred);
  const double own = cross_squares(a, x.columns, a, x.columns, x.rows), other = cross_squares(b, y.columns, b, y.columns, y.rows);
  return cross_squares(a, x.columns, b, y.columns, x.rows) / (std::sqrt(own) * std::sqrt(other));
}

/// K = X X^T with a zero diagonal, and its row sums.
struct Kernel {
  std::vector<double> k, sums;
  double total = 0;
  explicit Kernel(const Inputs& x) {
    const std::vector<double> a = doubles(x, false);
    const auto n = static_cast<std::size_t>(x.rows);
    k.resize(n * n);
    math::gemm(Transpose::no, Transpose::yes, x.rows, x.rows, x.columns, 1.0, a.data(), x.columns, a.data(), x.columns, 0.0, k.data(), x.rows);
    sums.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      k[i * n + i] = 0;
      for (std::size_t j = 0; j < n; ++j) sums[i] += k[i * n + j];
      total += sums[i];
    }
  }
};

double hsic(const Kernel& a, const Kernel& b) {
  const auto n = static_cast<double>(a.sums.size());
  double product = 0, mixed = 0;
  for (std::size_t i = 0; i < a.k.size(); ++i) product += a.k[i] * b.k[i];
  for (std::size_t i = 0; i < a.sums.size(); ++i) mixed += a.sums[i] * b.sums[i];
  return (product + a.total * b.total / ((n - 1) * (n - 2)) - 2 / (n - 2) * mixed) / (n * (n - 3));
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

}  // namespace

void measure_alignment(const Matrix& w, const Inputs& x, Measures& out) {
  const auto rows = static_cast<std::size_t>(w.rows), columns = static_cast<std::size_t>(w.columns);
  const bool by_rows = w.rows <= w.columns;
  const std::int64_t side = w.shorter();
  std::vector<double> gram(static_cast<std::size_t>(side * side));
  math::add_gram(by_rows ? math::GramOf::rows : math::GramOf::columns, w.values.data(), w.rows, w.columns, gram);
  const std::vector<double> values = math::symmetric_eigen(gram, side, math::Vectors::yes);
  const double largest = values.back(), second = values.size() > 1 ? std::max(0.0, values[values.size() - 2]) : 0;
  if (!(largest > 0)) return skip_group(out, "spectral_alignment", "zero tensor");
  const std::span<const double> top(gram.data() + static_cast<std::size_t>((side - 1) * side), static_cast<std::size_t>(side));
  std::vector<double> v(columns);
  if (by_rows) {
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < columns; ++j) v[j] += w.values[i * columns + j] * top[i];
    const double norm = std::sqrt(squares(v));
    for (double& value : v) value /= norm;
  } else {
    std::copy(top.begin(), top.end(), v.begin());
  }
  const auto peak = std::max_element(v.begin(), v.end(), [](double a, double b) { return std::abs(a) < std::abs(b); });
  if (*peak < 0)
    for (double& value : v) value = -value;

  std::vector<double> cosines;
  for (std::int64_t r = 0; r < x.rows; ++r) {
    double dot = 0, norm = 0;
    for (std::size_t j = 0; j < columns; ++j) {
      const double value = x.values[static_cast<std::size_t>(r) * columns + j];
      dot += value * v[j];
      norm += value * value;
    }
    if (norm > 0) cosines.push_back(dot / std::sqrt(norm));
  }
  if (cosines.empty()) return skip_group(out, "spectral_alignment", "inputs are zero");
  const auto n = static_cast<double>(cosines.size());
  double positive = 0, near_zero = 0, mean_abs = 0;
  for (const double cosine : cosines) {
    positive += cosine > 0;
    near_zero += std::abs(cosine) < 1e-5;
    mean_abs += std::abs(cosine);
  }
  put(out, "spectral_alignment.positive", positive / n);
  put(out, "spectral_alignment.diversity", 1 - std::abs(2 * positive / n - 1));
  put(out, "spectral_alignment.mean_abs", mean_abs / n);
  for (const auto& [name, q] : {std::pair("q05", 0.05), std::pair("q50", 0.5), std::pair("q95", 0.95)})
    put(out, std::string("spectral_alignment.") + name, quantile(cosines, q));
  put(out, "spectral_alignment.s2_over_s1", std::sqrt(second / largest));
  put(out, "spectral_alignment.near_zero", near_zero);
}

SecondMoment::SecondMoment(std::vector<double> moment, std::int64_t n) : n_(n), vectors_(std::move(moment)) {
  values_ = math::symmetric_eigen(vectors_, n, math::Vectors::yes);
  for (double& value : values_) value = std::max(value, 0.0);
}

std::vector<double> SecondMoment::eigenvalues_behind(const Matrix& w) const {
  // With C = V^T c V this is the spectrum of (w V^T sqrt(c)) squared, from whichever side is shorter.
  std::vector<double> product(static_cast<std::size_t>(w.rows * n_));
  math::gemm(Transpose::no, Transpose::yes, w.rows, n_, n_, 1.0, w.values.data(), n_, vectors_.data(), n_, 0.0, product.data(), n_);
  for (std::size_t i = 0; i < product.size(); ++i) product[i] *= std::sqrt(values_[i % static_cast<std::size_t>(n_)]);
  const bool by_rows = w.rows <= n_;
  const std::int64_t side = std::min(w.rows, n_);
  std::vector<double> gram(static_cast<std::size_t>(side * side));
  math::add_gram(by_rows ? math::GramOf::rows : math::GramOf::columns, product.data(), w.rows, n_, gram);
  std::vector<double> values = math::symmetric_eigen(gram, side, math::Vectors::no);
  for (double& value : values) value = std::max(value, 0.0);
  return values;
}

std::uint64_t count_for_share(std::vector<double> values, double share, Bar bar) {
  std::sort(values.begin(), values.end(), std::greater<>());
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  double sum = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    sum += values[k];
    if (bar == Bar::reached ? sum / total >= share : sum / total > share) return k + 1;
  }
  return values.size();
}

void measure_utilized(const Matrix& w, const SecondMoment& inputs, Measures& out) {
  const std::vector<double> read(inputs.eigenvalues().begin(), inputs.eigenvalues().end()), written = inputs.eigenvalues_behind(w);
  if (!(read.back() > 0) || !(*std::max_element(written.begin(), written.end()) > 0))
    return skip_group(out, "utilized_rank", "inputs or outputs are zero");
  for (const double share : kUtilizedShares) {
    const std::string at = fmt::format("utilized_rank.{}.", share);
    const std::uint64_t k_in = count_for_share(read, share, Bar::reached), k_out = count_for_share(written, share, Bar::reached);
    put(out, at + "k_S", static_cast<double>(k_in));
    put(out, at + "k_T", static_cast<double>(k_out));
    put(out, at + "utilisation", static_cast<double>(std::min(k_in, k_out)) / static_cast<double>(w.shorter()));
  }
}

double cka(const Inputs& x, const Inputs& y) { return similarity(x, y, true); }
double representation_alignment(const Inputs& x, const Inputs& y) { return similarity(x, y, false); }

double cka_debiased(const Inputs& x, const Inputs& y, std::int64_t batch) {
  if (batch <= 0) batch = x.rows;
  double cross = 0, own = 0, other = 0;
  for (std::int64_t begin = 0; begin < x.rows; begin += batch) {
    const std::int64_t rows = std::min(batch, x.rows - begin);
    if (rows < 4) break;
    const auto part = [&](const Inputs& all) {
      return Inputs{all.values.subspan(static_cast<std::size_t>(begin * all.columns), static_cast<std::size_t>(rows * all.columns)), rows,
                    all.columns};
    };
    const Kernel a(part(x)), b(part(y));
    cross += hsic(a, b);
    own += hsic(a, a);
    other += hsic(b, b);
  }
  return cross / std::sqrt(own * other);
}

void measure_heads(const HeadMaps& maps, Measures& out) {
  const std::size_t n = maps.tokens, per_head = maps.sequences * n * n;
  const auto one = [&](std::size_t skip, const char* name) {
    const std::string at = std::string("heads.") + name + ".";
    if (maps.heads < 1 || n < skip + 2) {
      out.skipped.emplace_back(at + "head_cosine", "sequences are too short");
      return;
    }
    std::vector<double> gram(maps.heads * maps.heads);
    for (std::size_t a = 0; a < maps.heads; ++a) {
      for (std::size_t b = a; b < maps.heads; ++b) {
        double sum = 0;
        for (std::size_t s = 0; s < maps.sequences; ++s) {
          const float* x = &maps.shares[a * per_head + s * n * n];
          const float* y = &maps.shares[b * per_head + s * n * n];
          for (std::size_t i = skip * n; i < n * n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
        }
        gram[a * maps.heads + b] = sum;
      }
    }
    double cosines = 0;
    for (std::size_t a = 0; a < maps.heads; ++a)
      for (std::size_t b = a + 1; b < maps.heads; ++b)
        cosines += gram[a * maps.heads + b] / std::sqrt(gram[a * maps.heads + a] * gram[b * maps.heads + b]);
    const auto h = static_cast<double>(maps.heads);
    if (maps.heads > 1) {
      put(out, at + "head_cosine", cosines / (h * (h - 1) / 2));
    } else {
      out.skipped.emplace_back(at + "head_cosine", "there is one head");
    }
    const std::size_t first = maps.causal ? std::max<std::size_t>(skip, 1) : skip;
    std::vector<double> plain, scaled;
    for (std::size_t a = 0; a < maps.heads; ++a) {
      double sum = 0, sum_scaled = 0;
      for (std::size_t s = 0; s < maps.sequences; ++s) {
        for (std::size_t t = first; t < n; ++t) {
          const float* row = &maps.shares[a * per_head + s * n * n + t * n];
          double entropy = 0;
          for (std::size_t key = 0; key < n; ++key)
            if (row[key] > 0) entropy -= static_cast<double>(row[key]) * std::log(static_cast<double>(row[key]));
          sum += entropy;
          sum_scaled += entropy / std::log(static_cast<double>(maps.causal ? t + 1 : n));
        }
      }
      const auto count = static_cast<double>(maps.sequences * (n - first));
      plain.push_back(sum / count);
      scaled.push_back(sum_scaled / count);
      put(out, fmt::format("{}entropy.{}", at, a), plain.back());
    }
    const auto spread = [&](const std::vector<double>& values) {
      const double mean = std::accumulate(values.begin(), values.end(), 0.0) / h;
      double sum = 0;
      for (const double value : values) sum += (value - mean) * (value - mean);
      return std::sqrt(sum / h);
    };
    put(out, at + "entropy_std", spread(plain));
    put(out, at + "entropy_scaled_std", spread(scaled));
  };
  one(0, "all");
  one(2, "without_first_two");
}

ImportanceMask::ImportanceMask(const Matrix& w, std::span<const double> norms, double share) {
  const auto rows = static_cast<std::size_t>(w.rows), columns = static_cast<std::size_t>(w.columns);
  const auto dropped = static_cast<std::size_t>(std::floor(static_cast<double>(columns) * (1 - share) + 1e-9));
  const std::size_t words = (columns + 63) / 64;
  bits_.assign(rows * words, 0);
  std::vector<double> scores(columns);
  std::vector<std::uint32_t> order(columns);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < columns; ++c) scores[c] = std::abs(w.values[r * columns + c]) * norms[c];
    std::iota(order.begin(), order.end(), 0U);
    if (dropped > 0 && dropped < columns)
      std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(dropped), order.end(),
                       [&](std::uint32_t a, std::uint32_t b) { return scores[a] != scores[b] ? scores[a] < scores[b] : a < b; });
    for (std::size_t i = dropped; i < columns; ++i) bits_[r * words + order[i] / 64] |= std::uint64_t{1} << (order[i] % 64);
  }
}

MaskCounts compare_masks(const ImportanceMask& a, const ImportanceMask& b) {
  MaskCounts counts;
  for (std::size_t i = 0; i < a.bits().size(); ++i) {
    counts.differ += static_cast<std::uint64_t>(std::popcount(a.bits()[i] ^ b.bits()[i]));
    counts.both += static_cast<std::uint64_t>(std::popcount(a.bits()[i] & b.bits()[i]));
  }
  return counts;
}

std::vector<WordRule> word_rules(const Matrix& embeddings, std::span<const double> filters, std::size_t num_filters, std::size_t slots,
                                 std::size_t top) {
  const auto words = static_cast<std::size_t>(embeddings.rows), d = static_cast<std::size_t>(embeddings.columns);
  std::vector<WordRule> rules(num_filters);
  std::vector<double> scores(words);
  std::vector<std::uint32_t> order(words);
  top = std::min(top, words);
  for (std::size_t f = 0; f < num_filters; ++f) {
    for (std::size_t p = 0; p < slots; ++p) {
      const std::span<const double> filter = filters.subspan((f * slots + p) * d, d);
      for (std::size_t v = 0; v < words; ++v) {
        scores[v] = 0;
        for (std::size_t j = 0; j < d; ++j) scores[v] += embeddings.values[v * d + j] * filter[j];
      }
      std::iota(order.begin(), order.end(), 0U);
      std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                        [&](std::uint32_t a, std::uint32_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
      auto& list = rules[f].words.emplace_back(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top));
      auto& values = rules[f].scores.emplace_back();
      for (const std::uint32_t word : list) values.push_back(scores[word]);
      if (top > 0) rules[f].best_response += values.front();
    }
  }
  return rules;
}

}  // namespace weft::measure
