#include "quantize/solver.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "math/lapack.h"

namespace weft::quantize {
namespace {

using codec::Levels;
using codec::QuantizedLinear;
using codec::SliceFormat;
using codec::SliceScale;

/// Columns within a block whose effect on each other is added one by one.
constexpr std::int64_t kNearColumns = 16;

std::int64_t group_of(const SolverOptions& options, std::int64_t size) { return options.group <= 0 || options.group > size ? size : options.group; }

QuantizedLinear empty_linear(std::int64_t rows, std::int64_t columns, const SolverOptions& options) {
  QuantizedLinear out;
  out.rows = rows;
  out.columns = columns;
  out.levels = options.format.levels;
  out.bits = options.format.code_bits();
  out.group = options.by_output ? 1 : group_of(options, columns);
  out.row_group = options.by_output ? group_of(options, rows) : 1;
  out.scale_type = options.format.scale_type;
  out.scale_unit = options.format.scale_unit;
  out.rounds_products = options.format.rounds_products;
  const bool integers = out.levels == Levels::integer;
  out.symmetric = integers && options.format.zero != codec::Zero::affine && options.format.zero != codec::Zero::offset &&
                  options.format.zero != codec::Zero::halfway;
  out.codes.resize(static_cast<std::size_t>(rows * columns));
  out.scales.resize(static_cast<std::size_t>(out.num_row_groups() * out.num_groups()));
  if (integers) out.zeros.resize(out.scales.size());
  return out;
}

void put_scale(QuantizedLinear& out, std::int64_t row, std::int64_t group, const SliceScale& scale) {
  const auto at = static_cast<std::size_t>(row / out.row_group * out.num_groups() + group);
  out.scales[at] = scale.scale;
  if (!out.zeros.empty()) out.zeros[at] = scale.zero;
}
SliceScale scale_at(const QuantizedLinear& out, std::int64_t row, std::int64_t group) {
  const auto at = static_cast<std::size_t>(row / out.row_group * out.num_groups() + group);
  return {out.scales[at], out.zeros.empty() ? 0.0F : out.zeros[at]};
}

/// A symmetric matrix of damped H in working order, or the like of it.
std::vector<double> ordered(std::span<const double> matrix, std::int64_t n, const std::vector<std::int64_t>& order) {
  std::vector<double> out(static_cast<std::size_t>(n * n));
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      out[static_cast<std::size_t>(i * n + j)] =
          matrix[static_cast<std::size_t>(order[static_cast<std::size_t>(i)] * n + order[static_cast<std::size_t>(j)])];
  return out;
}

/// The columns in the order in which they are worked on, by what they are read with.
std::vector<std::int64_t> order_of(const std::vector<float>& diagonal, std::int64_t columns, const SolverOptions& options) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(columns));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (options.order == Order::as_stored) return order;
  const auto louder = [&](std::int64_t a, std::int64_t b) { return diagonal[static_cast<std::size_t>(a)] > diagonal[static_cast<std::size_t>(b)]; };
  std::stable_sort(order.begin(), order.end(), louder);
  const std::int64_t group = options.by_output ? columns : group_of(options, columns);
  if (options.order == Order::by_activation || group == columns) return order;
  // Groups in the order of their loudest column. A short one comes last, so that all others lie at multiples of the group.
  std::vector<std::int64_t> place(static_cast<std::size_t>((columns + group - 1) / group), -1);
  const std::int64_t num_whole = columns / group;
  std::int64_t next = 0;
  for (const std::int64_t column : order)
    if (std::int64_t& own = place[static_cast<std::size_t>(column / group)]; own < 0) own = column / group < num_whole ? next++ : num_whole;
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return place[static_cast<std::size_t>(a / group)] < place[static_cast<std::size_t>(b / group)];
  });
  return order;
}

/// share * (strictly upper part of M U^T) U, M in working order.
std::vector<double> projected(const std::vector<double>& matrix, const std::vector<double>& upper, std::int64_t n, double share) {
  std::vector<double> inner(matrix.size()), out(matrix.size());
  math::gemm(math::Transpose::no, math::Transpose::yes, n, n, n, 1.0, matrix.data(), n, upper.data(), n, 0.0, inner.data(), n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) inner[static_cast<std::size_t>(i * n + j)] = 0;
  math::gemm(math::Transpose::no, math::Transpose::no, n, n, n, share, inner.data(), n, upper.data(), n, 0.0, out.data(), n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j <= i; ++j) out[static_cast<std::size_t>(i * n + j)] = 0;
  return out;
}

/// The scales of a row, which are those of its groups, to what the rule allows.
void constrain_row(QuantizedLinear& out, std::int64_t row, std::span<const float> values, std::span<const float> importance,
                   const SolverOptions& options) {
  if (options.scale_rule == ScaleRule::any) return;
  const auto first = static_cast<std::size_t>(row * out.num_groups()), count = static_cast<std::size_t>(out.num_groups());
  constrain_scales(std::span(out.scales).subspan(first, count),
                   out.zeros.empty() ? std::span<const float>() : std::span(out.zeros).subspan(first, count), values, importance, options);
}

}  // namespace

void constrain_scales(std::span<float> scales, std::span<const float> zeros, std::span<const float> values, std::span<const float> importance,
                      const SolverOptions& options) {
  if (options.scale_rule == ScaleRule::any || scales.empty()) return;
  if (options.scale_rule == ScaleRule::powers) {
    for (float& scale : scales) {
      int exponent = 0;
      const float fraction = std::frexp(scale, &exponent);  // in [0.5, 1)
      scale = codec::storable_scale(std::ldexp(1.0F, fraction == 0.5F ? exponent - 1 : exponent), options.format);
    }
    return;
  }
  const auto group = static_cast<std::size_t>(group_of(options, static_cast<std::int64_t>(values.size())));
  // The scale of a group of nothing but 0 says nothing.
  const auto is_empty = [&](std::size_t g) {
    const auto slice = values.subspan(g * group, std::min(group, values.size() - g * group));
    return std::all_of(slice.begin(), slice.end(), [](float value) { return value == 0; });
  };
  float largest = 0;
  for (std::size_t g = 0; g < scales.size(); ++g)
    if (!is_empty(g)) largest = std::max(largest, scales[g]);
  if (!(largest > 0)) return;
  for (std::size_t g = 0; g < scales.size(); ++g) {
    if (is_empty(g)) {
      scales[g] = largest;
      continue;
    }
    const std::size_t first = g * group, count = std::min(group, values.size() - first);
    const double steps = std::log2(static_cast<double>(largest) / static_cast<double>(scales[g]));
    float best = 0;
    double least = 0;
    for (const double step : {std::floor(steps), std::ceil(steps)}) {
      const float candidate = codec::storable_scale(std::ldexp(largest, -static_cast<int>(step)), options.format);
      const double error = codec::slice_error(values.subspan(first, count), importance.empty() ? importance : importance.subspan(first, count),
                                              {candidate, zeros.empty() ? 0.0F : zeros[g]}, options.format, 2);
      if (best != 0 && !(error < least)) continue;
      best = candidate;
      least = error;
    }
    scales[g] = best;
  }
}

QuantizedLinear round_to_nearest(std::span<const float> weights, std::int64_t rows, std::int64_t columns, const SolverOptions& options,
                                 std::span<const float> importance) {
  QuantizedLinear out = empty_linear(rows, columns, options);
  if (options.by_output) {
    std::vector<float> slice;
    for (std::int64_t first = 0; first < rows; first += out.row_group)
      for (std::int64_t c = 0; c < columns; ++c) {
        const std::int64_t end = std::min(rows, first + out.row_group);
        slice.clear();
        for (std::int64_t r = first; r < end; ++r) slice.push_back(weights[static_cast<std::size_t>(r * columns + c)]);
        const SliceScale scale = codec::fit_slice(slice, {}, options.format);
        put_scale(out, first, c, scale);
        for (std::int64_t r = first; r < end; ++r)
          out.codes[static_cast<std::size_t>(r * columns + c)] = codec::encode(slice[static_cast<std::size_t>(r - first)], scale, options.format);
      }
    return out;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto row = weights.subspan(static_cast<std::size_t>(r * columns), static_cast<std::size_t>(columns));
    const auto slice_of = [&](std::span<const float> all, std::int64_t g) {
      const std::int64_t first = g * out.group;
      return all.empty() ? all : all.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(std::min(out.group, columns - first)));
    };
    for (std::int64_t g = 0; g < out.num_groups(); ++g)
      put_scale(out, r, g, codec::fit_slice(slice_of(row, g), slice_of(importance, g), options.format));
    constrain_row(out, r, row, importance, options);
    for (std::int64_t g = 0; g < out.num_groups(); ++g)
      codec::encode_slice(slice_of(row, g), scale_at(out, r, g), options.format, out.codes.data() + r * columns + g * out.group);
  }
  return out;
}

Factor factorise(std::span<const double> gram, std::int64_t columns, const SolverOptions& options, std::span<const double> cross) {
  const auto n = static_cast<std::size_t>(columns);
  Factor factor;
  factor.dead.resize(n);
  factor.diagonal.resize(n);
  double mean = 0;
  bool finite = true;
  for (std::size_t i = 0; i < n; ++i) {
    const double own = gram[i * n + i];
    finite = finite && std::isfinite(own);
    factor.diagonal[i] = static_cast<float>(own);
    factor.dead[i] = !(own > 0);
    if (!factor.dead[i]) mean += own;
  }
  factor.order = order_of(factor.diagonal, columns, options);
  if (!finite || !(mean > 0) || !std::isfinite(mean)) return factor;
  mean /= static_cast<double>(n);
  constexpr double kMostDamping = 1000;
  for (double damping = std::max(options.damping, 0.0); damping <= kMostDamping; damping = damping > 0 ? damping * 10 : 1e-6) {
    // With both axes turned round, the lower factor L of H is an upper one, and so is its inverse: H^-1 = U^T U without inverting H.
    std::vector<double>& turned = factor.upper;
    turned.resize(n * n);
    for (std::size_t i = 0; i < n; ++i) {
      const auto row = static_cast<std::size_t>(factor.order[n - 1 - i]);
      for (std::size_t j = 0; j <= i; ++j) turned[i * n + j] = gram[row * n + static_cast<std::size_t>(factor.order[n - 1 - j])];
      double& own = turned[i * n + i];
      own = (factor.dead[row] ? mean : own) + damping * mean;
    }
    if (!math::cholesky(turned, columns) || !math::invert_lower(turned, columns)) continue;
    std::reverse(turned.begin(), turned.end());
    bool good = true;
    for (std::size_t i = 0; i < n; ++i) {
      std::fill(turned.begin() + static_cast<std::ptrdiff_t>(i * n), turned.begin() + static_cast<std::ptrdiff_t>(i * n + i), 0.0);
      for (std::size_t j = i; j < n; ++j) good = good && std::isfinite(turned[i * n + j]);
      good = good && turned[i * n + i] > 0;
    }
    if (!good) continue;
    factor.damping = damping;
    factor.usable = true;
    factor.importance = factor.diagonal;
    for (std::size_t i = 0; options.leftover && i < n; ++i) {
      const double own = turned[i * n + i];
      factor.importance[static_cast<std::size_t>(factor.order[i])] = static_cast<float>(1 / (own * own));
    }
    break;
  }
  if (!factor.usable || cross.empty() || (options.drift == 0 && options.residual == 0)) return factor;
  std::vector<double> drift = ordered(cross, columns, factor.order);
  // A dead input has no say.
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j)
      if (factor.dead[static_cast<std::size_t>(factor.order[j])]) drift[i * n + j] = 0;
  if (options.drift != 0) factor.drift = projected(drift, factor.upper, columns, options.drift);
  if (options.residual != 0) {
    const std::vector<double> second = ordered(gram, columns, factor.order);
    for (std::size_t i = 0; i < drift.size(); ++i) drift[i] += second[i];
    factor.residual = projected(drift, factor.upper, columns, options.residual);
  }
  return factor;
}

QuantizedLinear prepare(std::int64_t rows, std::int64_t columns, const SolverOptions& options, const Factor& factor) {
  QuantizedLinear out = empty_linear(rows, columns, options);
  if (factor.usable && options.order == Order::by_activation && !options.by_output && !options.static_groups && out.num_groups() > 1) {
    out.group_of.resize(static_cast<std::size_t>(columns));
    for (std::int64_t p = 0; p < columns; ++p)
      out.group_of[static_cast<std::size_t>(factor.order[static_cast<std::size_t>(p)])] = static_cast<std::int32_t>(p / out.group);
  }
  return out;
}

void compensate_rows(std::span<const float> weights, const Factor& factor, const SolverOptions& options, std::int64_t first, std::int64_t count,
                     QuantizedLinear& out) {
  const std::int64_t n = out.columns;
  const auto num_rows = static_cast<std::size_t>(count);
  const bool by_output = options.by_output;
  const bool fixed_scales = !by_output && (out.num_groups() == 1 || options.static_groups);
  // A column after another, in working order; what nothing is read from becomes 0.
  std::vector<double> work(static_cast<std::size_t>(n) * num_rows);
  for (std::int64_t p = 0; p < n; ++p) {
    const std::int64_t column = factor.order[static_cast<std::size_t>(p)];
    if (factor.dead[static_cast<std::size_t>(column)]) continue;
    for (std::int64_t r = 0; r < count; ++r)
      work[static_cast<std::size_t>(p * count + r)] = weights[static_cast<std::size_t>((first + r) * n + column)];
  }
  std::vector<float> slice, importance;
  // What a group's scale is found for: its columns as they are stored, or as they are worked on.
  const auto fit = [&](std::int64_t row, std::int64_t group, std::int64_t begin, auto&& value_of) {
    const std::int64_t end = std::min(n, begin + out.group);
    slice.clear();
    importance.clear();
    for (std::int64_t c = begin; c < end; ++c) value_of(c);
    put_scale(out, row, group, codec::fit_slice(slice, importance, options.format));
  };
  if (fixed_scales) {
    std::vector<float> row(static_cast<std::size_t>(n));
    for (std::int64_t r = first; r < first + count; ++r) {
      for (std::int64_t c = 0; c < n; ++c)
        row[static_cast<std::size_t>(c)] = factor.dead[static_cast<std::size_t>(c)] ? 0.0F : weights[static_cast<std::size_t>(r * n + c)];
      for (std::int64_t g = 0; g < out.num_groups(); ++g)
        fit(r, g, g * out.group, [&](std::int64_t c) {
          slice.push_back(row[static_cast<std::size_t>(c)]);
          importance.push_back(factor.importance[static_cast<std::size_t>(c)]);
        });
      constrain_row(out, r, row, factor.importance, options);
    }
  }
  // Blocks end where groups begin, so that no group is fitted to weights that an error has still to reach.
  std::int64_t step = std::max<std::int64_t>(1, options.block);
  if (!fixed_scales && !by_output) step = out.group >= step ? out.group : step / out.group * out.group;
  const std::int64_t small = fixed_scales || by_output || out.group % kNearColumns == 0 || kNearColumns % out.group == 0 ? kNearColumns : step;
  const bool drifts = !factor.drift.empty(), has_residual = !factor.residual.empty();
  std::vector<double> errors(static_cast<std::size_t>(step) * num_rows), before, residual;
  if (drifts) before.resize(errors.size());
  if (has_residual) residual.resize(errors.size());
  // What the errors of columns [from, to) of the block at `begin` do to columns [first_column, last_column).
  const auto follow = [&](std::int64_t from, std::int64_t to, std::int64_t begin, std::int64_t first_column, std::int64_t last_column) {
    const auto add = [&](double share, const std::vector<double>& matrix, const std::vector<double>& values) {
      math::gemm(math::Transpose::yes, math::Transpose::no, last_column - first_column, count, to - from, share,
                 matrix.data() + from * n + first_column, n, values.data() + (from - begin) * count, count, 1.0, work.data() + first_column * count,
                 count);
    };
    add(-1, factor.upper, errors);
    if (drifts) add(1, factor.drift, before);
    if (has_residual) add(1, factor.residual, residual);
  };
  for (std::int64_t begin = 0; begin < n; begin += step) {
    const std::int64_t end = std::min(n, begin + step);
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t column = factor.order[static_cast<std::size_t>(p)];
      // Where groups are of columns as they are worked on, the file has a map of them; otherwise they are of neighbours.
      const std::int64_t group = by_output ? column : out.group_of.empty() ? column / out.group : p / out.group;
      if (by_output) {
        for (std::int64_t r = 0; r < count; r += out.row_group) {
          slice.clear();
          for (std::int64_t i = r; i < std::min(count, r + out.row_group); ++i)
            slice.push_back(static_cast<float>(work[static_cast<std::size_t>(p * count + i)]));
          put_scale(out, first + r, group, codec::fit_slice(slice, {}, options.format));
        }
      } else if (!fixed_scales && p % out.group == 0) {
        for (std::int64_t r = 0; r < count; ++r)
          fit(first + r, group, p, [&](std::int64_t c) {
            slice.push_back(static_cast<float>(work[static_cast<std::size_t>(c * count + r)]));
            importance.push_back(factor.importance[static_cast<std::size_t>(factor.order[static_cast<std::size_t>(c)])]);
          });
      }
      const double* upper = factor.upper.data() + p * n;
      double* values = work.data() + p * count;
      double* error = errors.data() + (p - begin) * count;
      for (std::int64_t r = 0; r < count; ++r) {
        const SliceScale scale = scale_at(out, first + r, group);
        const std::uint8_t code = codec::encode(static_cast<float>(values[r]), scale, options.format);
        out.codes[static_cast<std::size_t>((first + r) * n + column)] = code;
        error[r] = (values[r] - static_cast<double>(codec::decode(code, scale, options.format))) / upper[p];
        if (drifts) before[static_cast<std::size_t>((p - begin) * count + r)] = values[r];
        if (has_residual)
          residual[static_cast<std::size_t>((p - begin) * count + r)] = weights[static_cast<std::size_t>((first + r) * n + column)] - values[r];
      }
      // To the end of its small block at once; to the rest of the block when the small one is done, as products.
      const std::int64_t near = std::min(end, begin + ((p - begin) / small + 1) * small);
      for (std::int64_t q = p + 1; q < near; ++q) {
        double* next = work.data() + q * count;
        const double share = upper[q];
        for (std::int64_t r = 0; r < count; ++r) next[r] -= error[r] * share;
        if (drifts) {
          const double* w = before.data() + (p - begin) * count;
          const double drift = factor.drift[static_cast<std::size_t>(p * n + q)];
          for (std::int64_t r = 0; r < count; ++r) next[r] += w[r] * drift;
        }
        if (has_residual) {
          const double* w = residual.data() + (p - begin) * count;
          const double term = factor.residual[static_cast<std::size_t>(p * n + q)];
          for (std::int64_t r = 0; r < count; ++r) next[r] += w[r] * term;
        }
      }
      if (p + 1 == near && near < end) follow(begin + (p - begin) / small * small, near, begin, near, end);
    }
    if (end == n) break;
    follow(begin, end, begin, end, n);
  }
}

QuantizedLinear compensate(std::span<const float> weights, std::int64_t rows, std::int64_t columns, const Factor& factor,
                           const SolverOptions& options) {
  if (!factor.usable) return round_to_nearest(weights, rows, columns, options);
  QuantizedLinear out = prepare(rows, columns, options, factor);
  compensate_rows(weights, factor, options, 0, rows, out);
  return out;
}

double quadratic_form(std::span<const float> difference, std::int64_t rows, std::int64_t columns, std::span<const double> gram) {
  constexpr std::int64_t kRows = 64;
  const auto n = static_cast<std::size_t>(columns);
  double sum = 0;
  std::vector<double> d(kRows * n), product(kRows * n);
  for (std::int64_t first = 0; first < rows; first += kRows) {
    const std::int64_t count = std::min(kRows, rows - first);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count) * n; ++i) d[i] = difference[static_cast<std::size_t>(first) * n + i];
    math::gemm(math::Transpose::no, math::Transpose::no, count, columns, columns, 1.0, d.data(), columns, gram.data(), columns, 0.0, product.data(),
               columns);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count) * n; ++i) sum += d[i] * product[i];
  }
  return sum;
}

double relative_loss(std::span<const float> weights, std::span<const float> quantized, std::int64_t rows, std::int64_t columns,
                     std::span<const double> gram) {
  std::vector<float> difference(weights.size());
  for (std::size_t i = 0; i < difference.size(); ++i) difference[i] = quantized[i] - weights[i];
  const double lost = quadratic_form(difference, rows, columns, gram), whole = quadratic_form(weights, rows, columns, gram);
  return whole > 0 ? std::max(0.0, lost) / whole : lost > 0 ? 1 : 0;
}

}  // namespace weft::quantize
