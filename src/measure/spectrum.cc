#include "measure/spectrum.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "math/lapack.h"

namespace weft::measure {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

}  // namespace

std::vector<double> Spectrum::eigenvalues() const {
  std::vector<double> result(s.size());
  std::transform(s.rbegin(), s.rend(), result.begin(), [](double value) { return value * value; });
  return result;
}

Spectrum spectrum_from_gram(std::span<double> gram, std::int64_t rows, std::int64_t columns) {
  std::vector<double> values = math::symmetric_eigen(gram, std::min(rows, columns), math::Vectors::no);
  Spectrum spectrum{{}, rows, columns};
  spectrum.s.resize(values.size());
  std::transform(values.rbegin(), values.rend(), spectrum.s.begin(), [](double value) { return std::sqrt(std::max(0.0, value)); });
  return spectrum;
}

Spectrum spectrum_of(const Matrix& m) {
  const auto n = static_cast<std::size_t>(m.shorter());
  {
    std::vector<double> gram(n * n);
    math::add_gram(m.rows < m.columns ? math::GramOf::rows : math::GramOf::columns, m.values.data(), m.rows, m.columns, gram);
    Spectrum spectrum = spectrum_from_gram(gram, m.rows, m.columns);
    // The squares carry an error of a few eps times the largest, which is 1e-8 of a value at 1e-4 of the largest squared: below, take the long way.
    if (spectrum.s.empty() || spectrum.s.back() > 1e-5 * spectrum.s.front()) return spectrum;
  }
  std::vector<double> copy(m.values.begin(), m.values.end());
  return {math::singular_values(copy, m.rows, m.columns), m.rows, m.columns};
}

std::uint64_t spectrum_bytes(std::int64_t rows, std::int64_t columns) {
  const auto r = static_cast<std::uint64_t>(rows), c = static_cast<std::uint64_t>(columns), least = std::min(r, c);
  // A copy and the workspace of the long way; the Gram matrix and its eigenvalues need less.
  return 8 * std::max(r * c + 8 * least * least, 3 * least * least) + (1 << 20);
}

double entropy_rank(std::span<const double> p) {
  double total = 0, entropy = 0;
  for (const double value : p) total += value;
  for (const double value : p)
    if (value > 0) entropy -= value / total * std::log(value / total);
  return std::exp(entropy);
}

double condition_of(const Spectrum& spectrum) {
  if (spectrum.s.empty()) return kNone;
  return spectrum.s.back() > spectrum.s.front() * spectrum.longer() * kEps ? spectrum.s.front() / spectrum.s.back() : kNone;
}

std::uint64_t energy_rank(std::span<const double> s, double share) {
  double total = 0, sum = 0;
  for (const double value : s) total += value * value;
  for (std::size_t k = 0; k < s.size(); ++k) {
    sum += s[k] * s[k];
    if (sum / total >= share - 1e-12) return k + 1;
  }
  return s.size();
}

void put_spectrum_curve(const Spectrum& spectrum, Measures& out) {
  constexpr std::size_t kPoints = 64;
  const std::size_t n = spectrum.s.size();
  MeasuredCurve& curve = out.curves.emplace_back();
  curve.name = "spectrum";
  std::size_t next = 0;
  for (std::size_t i = 0; i < kPoints; ++i) {
    const double t = static_cast<double>(i) / (kPoints - 1);
    const std::size_t at = std::max(next, static_cast<std::size_t>(std::lround(static_cast<double>(n - 1) * t * t)));
    if (at >= n) break;
    curve.x.push_back(static_cast<float>(at));
    curve.y.push_back(static_cast<float>(spectrum.s[at]));
    next = at + 1;
  }
}

void measure_ranks(const Spectrum& spectrum, const std::string& prefix, Measures& out) {
  const std::vector<double>& s = spectrum.s;
  std::vector<double> l(s.size());
  double total = 0, squares = 0;
  for (std::size_t i = 0; i < s.size(); ++i) {
    l[i] = s[i] * s[i];
    total += l[i];
    squares += l[i] * l[i];
  }
  const double limit = s.front() * spectrum.longer() * kEps;
  std::uint64_t rank = 0, relative = 0, weak = 0;
  double entropy = 0;
  for (std::size_t i = 0; i < s.size(); ++i) {
    rank += s[i] > limit;
    relative += s[i] > 1e-6 * s.front();
    weak += l[i] < 1e-6;
    const double p = l[i] / total + 1e-10;
    entropy -= p * std::log(p);
  }
  const auto name = [&prefix](const char* key) { return prefix + "." + key; };
  put(out, name("frobenius"), std::sqrt(total));
  put(out, name("spectral"), s.front());
  put(out, name("smallest"), s.back());
  put(out, name("condition"), condition_of(spectrum), "undefined (singular to working precision)");
  put(out, name("stable_rank"), total / l.front());
  put(out, name("participation"), total * total / squares);
  put(out, name("entropy_rank_s"), entropy_rank(s));
  put(out, name("entropy_rank_s2"), entropy_rank(l));
  for (const auto& [key, share] : {std::pair("energy_rank.0.9", 0.9), std::pair("energy_rank.0.95", 0.95), std::pair("energy_rank.0.99", 0.99)})
    put(out, name(key), static_cast<double>(energy_rank(s, share)));
  put(out, name("numerical_rank"), static_cast<double>(rank));
  put(out, name("rank_1e-6"), static_cast<double>(relative));
  put(out, name("weak_rank_loss"), static_cast<double>(weak));
  put(out, name("log_norm"), std::log10(total));
  put(out, name("log_spectral_norm"), std::log10(l.front()));
  put(out, name("entropy"), rank > 1 ? entropy / std::log(static_cast<double>(rank) + 1e-10) : kNone, "undefined (rank one)");
}

DetX find_detx(std::span<const double> x) {
  DetX result;
  if (x.size() < 2 || !(x.front() < x.back())) return result;
  result.found = true;
  double sum = 0;
  for (const double value : x) sum += value;
  const double scale = static_cast<double>(x.size()) / sum;
  // Sums of logarithms: the product of many large values overflows.
  double product = 0;
  std::size_t i = x.size() - 1;
  for (;; --i) {
    product += std::log(x[i] * scale);
    if (product < 0 || i == 1) break;
  }
  result.num = product < 0 ? x.size() - i : x.size();
  result.value = x[i] > 1e-12 * x.back() ? x[i] : kNone;
  result.rescaled = x[i] * scale;
  return result;
}

void measure_detx(std::span<const double> eigenvalues, Measures& out) {
  const DetX found = find_detx(eigenvalues);
  if (!found.found) return skip_group(out, "detX", "all eigenvalues are equal");
  put(out, "detX.detX_num", static_cast<double>(found.num));
  put(out, "detX.detX_val", found.value, "rounding noise");
}

void measure_noise_floor(const Spectrum& spectrum, double noise_rms, Measures& out) {
  // The edge of the spectrum of a random matrix with elements of that size.
  const double floor = noise_rms * (std::sqrt(spectrum.longer()) + std::sqrt(spectrum.shorter()));
  put(out, "storage.noise_floor", floor);
  put(out, "storage.below_noise", static_cast<double>(std::count_if(spectrum.s.begin(), spectrum.s.end(), [floor](double s) { return s < floor; })));
}

}  // namespace weft::measure
