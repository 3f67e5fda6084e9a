#include "measure/neurons.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>

#include "math/beta.h"
#include "math/lapack.h"
#include "measure/structure.h"

namespace weft::measure {
namespace {

// All pairs of neurons are compared for the bands of chance.
constexpr std::size_t kMostPaired = 2048;
constexpr double kBar = 6;
constexpr std::size_t kTopTokens = 10;
constexpr std::size_t kShownNeurons = 16;

/// Rows divided by their lengths; those of length zero stay and are marked.
void normalize_rows(std::vector<double>& x, std::size_t rows, std::vector<bool>& dead) {
  const std::size_t length = x.size() / rows;
  for (std::size_t i = 0; i < rows; ++i) {
    double squares = 0;
    for (std::size_t j = 0; j < length; ++j) squares += x[i * length + j] * x[i * length + j];
    if (!(squares > 0)) {
      dead[i] = true;
      continue;
    }
    const double scale = 1 / std::sqrt(squares);
    for (std::size_t j = 0; j < length; ++j) x[i * length + j] *= scale;
  }
}

double dot(const double* a, const double* b, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// Linear interpolation between order statistics; values are reordered.
double quantile(std::vector<double>& values, double q) {
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const auto nth = values.begin() + static_cast<std::ptrdiff_t>(low);
  std::nth_element(values.begin(), nth, values.end());
  const double a = *nth;
  if (low + 1 >= values.size()) return a;
  const double b = *std::min_element(nth + 1, values.end());
  return a + (b - a) * (at - static_cast<double>(low));
}

/// Products of every row of a with every other-numbered row of b.
std::vector<double> mismatched(const std::vector<double>& a, const std::vector<double>& b, std::size_t n) {
  const auto d = static_cast<std::int64_t>(a.size() / n), count = static_cast<std::int64_t>(n);
  std::vector<double> all(n * n);
  math::gemm(math::Transpose::no, math::Transpose::yes, count, count, d, 1.0, a.data(), d, b.data(), d, 0.0, all.data(), count);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j)
      if (i != j) all[kept++] = all[i * n + j];
  all.resize(kept);
  return all;
}

int sign_of(double cosine) { return cosine > 0.5 ? 1 : cosine < -0.5 ? -1 : 0; }

const char* class_of(int io, int go) {
  if (io > 0) return go != 0 ? "strengthening" : "conditional strengthening";
  if (io < 0) return go != 0 ? "weakening" : "conditional weakening";
  return go != 0 ? "proportional change" : "orthogonal output";
}

}  // namespace

void measure_gated(const Matrix& gate, const Matrix& up, const Matrix& down, std::span<const double> gain, Measures& out) {
  const auto n = static_cast<std::size_t>(gate.rows), d = static_cast<std::size_t>(gate.columns);
  if (up.rows != gate.rows || up.columns != gate.columns || down.rows != gate.columns || down.columns != gate.rows ||
      (!gain.empty() && gain.size() != d))
    return skip_group(out, "gated", "gate, up and down do not fit together");
  std::vector<double> g(gate.values.begin(), gate.values.end()), i(up.values.begin(), up.values.end()), o(n * d);
  for (std::size_t row = 0; row < n; ++row) {
    for (std::size_t j = 0; j < d; ++j) {
      if (!gain.empty()) {
        g[row * d + j] *= gain[j];
        i[row * d + j] *= gain[j];
      }
      o[row * d + j] = down.values[j * n + row];
    }
  }
  std::vector<bool> dead(n);
  for (std::vector<double>* vectors : {&g, &i, &o}) normalize_rows(*vectors, n, dead);

  const double band = math::cosine_quantile(0.975, static_cast<double>(d));
  std::map<std::string, double> classes;
  std::array<double, 3> sum{}, outside{};
  double alive = 0, nearest = 1;
  std::vector<std::array<double, 3>> first;
  for (std::size_t neuron = 0; neuron < n; ++neuron) {
    const double* gn = &g[neuron * d];
    const double* in = &i[neuron * d];
    const double* on = &o[neuron * d];
    const std::array<double, 3> c = {dot(in, on, d), dot(gn, on, d), dot(gn, in, d)};
    if (first.size() < kShownNeurons) first.push_back(c);
    if (dead[neuron]) {
      ++classes["dead"];
      continue;
    }
    ++alive;
    for (std::size_t k = 0; k < 3; ++k) {
      sum[k] += c[k];
      outside[k] += std::abs(c[k]) > band;
      nearest = std::min(nearest, std::abs(std::abs(c[k]) - 0.5));
    }
    const int io = sign_of(c[0]), go = sign_of(c[1]), gi = sign_of(c[2]);
    const bool typical = gi == io * go || (io == 0 && go == 0);
    ++classes[std::string(typical ? "" : "atypical ") + class_of(io, go)];
  }
  for (const auto& [name, count] : classes) put(out, "gated.classes." + name, count);
  constexpr const char* kPairs[] = {"io", "go", "gi"};
  for (std::size_t k = 0; k < 3; ++k) put(out, std::string("gated.mean.") + kPairs[k], sum[k] / alive, "every neuron is dead");
  put(out, "gated.analytic_band", band);
  for (std::size_t k = 0; k < 3; ++k) put(out, std::string("gated.outside_analytic.") + kPairs[k], outside[k] / alive, "every neuron is dead");
  put(out, "gated.nearest_to_half", nearest);
  for (std::size_t neuron = 0; neuron < first.size(); ++neuron)
    for (std::size_t k = 0; k < 3; ++k) put(out, "gated.first." + std::to_string(neuron) + "." + kPairs[k], first[neuron][k]);
  if (n < 2 || n > kMostPaired) {
    out.skipped.emplace_back("gated.mismatched", n < 2 ? "one neuron" : "more than 2048 neurons: the analytic band says the same");
    return;
  }
  for (const auto& [name, a, b] : {std::tuple("io", &i, &o), std::tuple("go", &g, &o)}) {
    std::vector<double> pairs = mismatched(*a, *b, n);
    put(out, std::string("gated.mismatched.") + name + ".0", quantile(pairs, 0.025));
    put(out, std::string("gated.mismatched.") + name + ".1", quantile(pairs, 0.975));
  }
  std::vector<double> pairs = mismatched(g, i, n);
  for (double& value : pairs) value = std::abs(value);
  put(out, "gated.mismatched.abs_gi_95", quantile(pairs, 0.95));
}

std::vector<std::uint32_t> measure_decoding(const Matrix& head, const Matrix& vectors, const std::string& name, std::size_t shown, Measures& out) {
  const auto vocabulary = static_cast<std::size_t>(head.rows), d = static_cast<std::size_t>(head.columns), n = static_cast<std::size_t>(vectors.rows);
  std::vector<std::uint32_t> tokens;
  std::vector<double> scores;
  double above = 0, below = 0;
  constexpr std::size_t kStrip = 64;
  std::vector<double> z(kStrip * vocabulary);
  std::vector<std::uint32_t> order(vocabulary);
  const std::string prefix = "decoding." + name + ".";
  Measures listed;
  for (std::size_t begin = 0; begin < n; begin += kStrip) {
    const std::size_t count = std::min(kStrip, n - begin);
    math::gemm(math::Transpose::no, math::Transpose::yes, static_cast<std::int64_t>(count), head.rows, head.columns, 1.0, &vectors.values[begin * d],
               head.columns, head.values.data(), head.columns, 0.0, z.data(), head.rows);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<const double> row(&z[i * vocabulary], vocabulary);
      double sum = 0, squares = 0;
      for (const double value : row) sum += value;
      const double mean = sum / static_cast<double>(vocabulary);
      for (const double value : row) squares += (value - mean) * (value - mean);
      const double deviation = std::sqrt(squares / static_cast<double>(vocabulary));
      const auto [least, most] = std::minmax_element(row.begin(), row.end());
      // minmax_element gives the last of several largest; the first is wanted.
      const auto top = std::max_element(row.begin(), row.end());
      tokens.push_back(static_cast<std::uint32_t>(top - row.begin()));
      const double score = deviation > 0 ? (*most - mean) / deviation : 0, low = deviation > 0 ? (mean - *least) / deviation : 0;
      scores.push_back(score);
      above += score > kBar;
      below += low > kBar;
      const std::size_t neuron = begin + i;
      if (neuron >= shown) continue;
      const std::string at = prefix + "first." + std::to_string(neuron) + ".";
      put(listed, at + "score", score);
      const std::size_t kept = std::min(kTopTokens, vocabulary);
      for (const bool largest : {true, false}) {
        std::iota(order.begin(), order.end(), 0u);
        std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), [&](std::uint32_t a, std::uint32_t b) {
          if (row[a] != row[b]) return largest ? row[a] > row[b] : row[a] < row[b];
          return a < b;
        });
        for (std::size_t k = 0; k < kept; ++k) {
          put(listed, at + (largest ? "top." : "bottom.") + std::to_string(k), order[k]);
          if (largest) put(listed, at + "top_logits." + std::to_string(k), row[order[k]]);
        }
      }
    }
  }
  if (n == 0) return tokens;
  put(out, prefix + "share_above_bar", above / static_cast<double>(n));
  put(out, prefix + "share_below_bar", below / static_cast<double>(n));
  const auto best = std::max_element(scores.begin(), scores.end());
  const double max_score = *best;
  const auto argmax = static_cast<double>(best - scores.begin());
  put(out, prefix + "median_score", quantile(scores, 0.5));
  put(out, prefix + "max_score", max_score);
  put(out, prefix + "argmax_score", argmax);
  for (auto& value : listed.values) out.values.push_back(std::move(value));
  return tokens;
}

double decoding_null(const Matrix& head, std::uint64_t seed) {
  const auto vocabulary = static_cast<std::size_t>(head.rows), d = static_cast<std::size_t>(head.columns);
  const std::size_t directions = std::clamp<std::size_t>(std::size_t{4'000'000'000} / std::max<std::size_t>(1, vocabulary * d), 64, 2000);
  NormalStream random(seed, "decoding", 0);
  constexpr std::size_t kStrip = 64;
  std::vector<double> vectors(kStrip * d), z(kStrip * vocabulary), scores;
  for (std::size_t begin = 0; begin < directions; begin += kStrip) {
    const std::size_t count = std::min(kStrip, directions - begin);
    random.fill(vectors);
    math::gemm(math::Transpose::no, math::Transpose::yes, static_cast<std::int64_t>(count), head.rows, head.columns, 1.0, vectors.data(),
               head.columns, head.values.data(), head.columns, 0.0, z.data(), head.rows);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<const double> row(&z[i * vocabulary], vocabulary);
      double sum = 0, squares = 0, most = 0;
      for (const double value : row) sum += value;
      const double mean = sum / static_cast<double>(vocabulary);
      for (const double value : row) {
        squares += (value - mean) * (value - mean);
        most = std::max(most, std::abs(value - mean));
      }
      scores.push_back(most / std::sqrt(squares / static_cast<double>(vocabulary)));
    }
  }
  return quantile(scores, 0.5);
}

}  // namespace weft::measure
