#include "measure/pairs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include <fmt/format.h>

#include "math/lapack.h"
#include "measure/structure.h"

namespace weft::measure {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

/// left: vectors as rows [k, rows]; right: [k, columns].
struct Vectors {
  std::vector<double> values, left, right;
};

/// All singular vectors of the thin decomposition, as rows.
Vectors vectors_of(const Matrix& m) {
  const auto n = static_cast<std::size_t>(m.shorter()), rows = static_cast<std::size_t>(m.rows), columns = static_cast<std::size_t>(m.columns);
  Vectors result;
  const bool wide = m.rows < m.columns;
  std::vector<double> gram(n * n);
  math::add_gram(wide ? math::GramOf::rows : math::GramOf::columns, m.values.data(), m.rows, m.columns, gram);
  const std::vector<double> ascending = math::symmetric_eigen(gram, m.shorter(), math::Vectors::yes);
  if (ascending.front() > 1e-8 * ascending.back()) {
    result.values.resize(n);
    std::vector<double> shorter(n * n), longer(n * (wide ? columns : rows));
    for (std::size_t k = 0; k < n; ++k) {
      result.values[k] = std::sqrt(ascending[n - 1 - k]);
      std::copy_n(&gram[(n - 1 - k) * n], n, &shorter[k * n]);
    }
    // The other side: W^T u / s or W v / s.
    const auto count = static_cast<std::int64_t>(n);
    math::gemm(math::Transpose::no, wide ? math::Transpose::no : math::Transpose::yes, count, m.longer(), count, 1.0, shorter.data(), count,
               m.values.data(), m.columns, 0.0, longer.data(), m.longer());
    const auto length = static_cast<std::size_t>(m.longer());
    for (std::size_t k = 0; k < n; ++k)
      for (std::size_t j = 0; j < length; ++j) longer[k * length + j] /= result.values[k];
    (wide ? result.left : result.right) = std::move(shorter);
    (wide ? result.right : result.left) = std::move(longer);
    return result;
  }
  std::vector<double> copy(m.values.begin(), m.values.end());
  math::Svd svd = math::svd(copy, m.rows, m.columns);
  result.values = std::move(svd.values);
  result.right = std::move(svd.right);
  result.left.resize(n * rows);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t k = 0; k < n; ++k) result.left[k * rows + i] = svd.left[i * n + k];
  return result;
}

/// |cosines| of the first `count` rows of a with all rows of b: [count, rows of b].
std::vector<double> cosines(const std::vector<double>& a, std::size_t count, const std::vector<double>& b, std::size_t b_rows) {
  const auto length = static_cast<std::int64_t>(b.size() / b_rows);
  std::vector<double> result(count * b_rows);
  math::gemm(math::Transpose::no, math::Transpose::yes, static_cast<std::int64_t>(count), static_cast<std::int64_t>(b_rows), length, 1.0, a.data(),
             length, b.data(), length, 0.0, result.data(), static_cast<std::int64_t>(b_rows));
  for (double& value : result) value = std::abs(value);
  return result;
}

}  // namespace

void measure_difference(std::span<const double> base, std::span<const double> tuned, std::int64_t rows, std::int64_t columns, Measures& out) {
  std::vector<double> difference(base.size());
  double squares = 0, base_squares = 0, tuned_squares = 0, product = 0, largest = 0, changed = 0;
  for (std::size_t i = 0; i < base.size(); ++i) {
    const double d = difference[i] = tuned[i] - base[i];
    squares += d * d;
    base_squares += base[i] * base[i];
    tuned_squares += tuned[i] * tuned[i];
    product += base[i] * tuned[i];
    largest = std::max(largest, std::abs(d));
    changed += d != 0;
  }
  put(out, "difference.norm", std::sqrt(squares), "non-finite");
  put(out, "difference.relative", std::sqrt(squares) / std::sqrt(base_squares), base_squares > 0 ? "non-finite" : "undefined (zero tensor)");
  put(out, "difference.max_abs", largest);
  put(out, "difference.changed", changed);
  put(out, "difference.cos", product / std::sqrt(base_squares) / std::sqrt(tuned_squares), "undefined (zero or non-finite tensor)");
  if (std::min(rows, columns) < 2 || !(squares > 0) || !std::isfinite(squares)) return;
  const Matrix matrix{difference, rows, columns};
  const Spectrum spectrum = spectrum_of(matrix);
  Measures all;
  measure_ranks(spectrum, "difference", all);
  for (std::size_t i = 0; i < std::min<std::size_t>(8, spectrum.s.size()); ++i) put(out, "difference.s_top." + std::to_string(i), spectrum.s[i]);
  for (const char* key : {"stable_rank", "entropy_rank_s", "energy_rank.0.9", "energy_rank.0.95", "energy_rank.0.99", "rank_1e-6"})
    put(out, std::string("difference.") + key, *all.find(std::string("difference.") + key));
  measure_orthogonality(matrix, "difference.orthogonality", out);
}

void measure_intruders(const Matrix& base, const Matrix& tuned, Measures& out) {
  const Vectors v0 = vectors_of(base), v = vectors_of(tuned);
  const std::size_t n = v.values.size(), looked = std::min(kIntrudersLooked, n), kept = std::min(3 * kIntrudersLooked, n);
  const std::vector<double> left = cosines(v.left, looked, v0.left, n), right = cosines(v.right, looked, v0.right, n);
  std::vector<double> most_left(looked), most_right(looked), subspace(looked);
  for (std::size_t j = 0; j < looked; ++j) {
    most_left[j] = *std::max_element(&left[j * n], &left[j * n] + n);
    most_right[j] = *std::max_element(&right[j * n], &right[j * n] + n);
    double squares = 0;
    for (std::size_t i = 0; i < kept; ++i) squares += left[j * n + i] * left[j * n + i];
    subspace[j] = std::sqrt(squares);
  }
  double alarms = 0;
  for (std::size_t j = 0; j < looked; ++j) {
    double gap = std::numeric_limits<double>::infinity();
    if (j > 0) gap = std::min(gap, std::abs(v.values[j] - v.values[j - 1]));
    if (j + 1 < n) gap = std::min(gap, std::abs(v.values[j] - v.values[j + 1]));
    const std::string at = "." + std::to_string(j);
    put(out, "intruders.s" + at, v.values[j]);
    put(out, "intruders.max_cos_left" + at, most_left[j]);
    put(out, "intruders.max_cos_right" + at, most_right[j]);
    put(out, "intruders.subspace_left" + at, subspace[j]);
    put(out, "intruders.relative_gap" + at, gap / v.values[0], "one singular value");
    // Inside a bulk of nearly equal values single vectors turn freely, and only the subspace tells.
    alarms += most_left[j] < 0.5 && subspace[j] < 0.9;
  }
  for (const double bar : kIntruderBars) {
    const auto under = [&](const std::vector<double>& cosine) {
      return static_cast<double>(std::count_if(cosine.begin(), cosine.end(), [bar](double c) { return c < bar; }));
    };
    put(out, fmt::format("intruders.count_left.{:.1f}", bar), under(most_left));
    put(out, fmt::format("intruders.count_right.{:.1f}", bar), under(most_right));
  }
  put(out, "intruders.outside_subspace", alarms);
}

TaskVectorSums::TaskVectorSums(std::size_t models) : num_models(models), gram(models * models), both(models * models), opposite(models * models) {}

void TaskVectorSums::add(std::span<const double> base, std::span<const std::vector<double>> tuned) {
  const std::size_t n = num_models;
  std::vector<double> delta(n);
  elements += base.size();
  for (std::size_t e = 0; e < base.size(); ++e) {
    std::size_t changed = 0;
    bool plus = false, minus = false;
    for (std::size_t i = 0; i < n; ++i) {
      delta[i] = tuned[i][e] - base[e];
      changed += delta[i] != 0;
      plus = plus || delta[i] > 0;
      minus = minus || delta[i] < 0;
    }
    if (changed == 0) continue;
    ++changed_by_any;
    changed_by_two += changed >= 2;
    conflicting += plus && minus;
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = i; j < n; ++j) {
        const double product = delta[i] * delta[j];
        gram[i * n + j] += product;
        both[i * n + j] += delta[i] != 0 && delta[j] != 0;
        opposite[i * n + j] += (delta[i] > 0 && delta[j] < 0) || (delta[i] < 0 && delta[j] > 0);
      }
    }
  }
}

void TaskVectorSums::add(const TaskVectorSums& other) {
  for (std::size_t i = 0; i < gram.size(); ++i) {
    gram[i] += other.gram[i];
    both[i] += other.both[i];
    opposite[i] += other.opposite[i];
  }
  elements += other.elements;
  changed_by_any += other.changed_by_any;
  changed_by_two += other.changed_by_two;
  conflicting += other.conflicting;
}

void put_cosines(const TaskVectorSums& sums, const std::string& set, Measures& out) {
  const std::size_t n = sums.num_models;
  const auto norm = [&](std::size_t i) { return std::sqrt(sums.gram[i * n + i]); };
  for (std::size_t i = 0; i < n; ++i) put(out, fmt::format("task_vectors.norm.{}.{}", set, i), norm(i), "non-finite");
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) {
      const double norms = norm(i) * norm(j);
      put(out, fmt::format("task_vectors.cosine.{}.{}.{}", set, i, j), norms > 0 ? sums.gram[std::min(i, j) * n + std::max(i, j)] / norms : kNone,
          "undefined (nothing changed)");
    }
}

void put_signs(const TaskVectorSums& sums, Measures& out) {
  const std::size_t n = sums.num_models;
  for (const auto& [name, counts] : {std::pair("both_changed", &sums.both), std::pair("opposite", &sums.opposite)})
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j)
        put(out, fmt::format("task_vectors.signs.{}.{}.{}", name, i, j), static_cast<double>((*counts)[std::min(i, j) * n + std::max(i, j)]));
  put(out, "task_vectors.signs.changed_by_any", static_cast<double>(sums.changed_by_any));
  put(out, "task_vectors.signs.changed_by_two_or_more", static_cast<double>(sums.changed_by_two));
  put(out, "task_vectors.signs.conflicting", static_cast<double>(sums.conflicting));
  put(out, "task_vectors.signs.elements", static_cast<double>(sums.elements));
}

}  // namespace weft::measure
