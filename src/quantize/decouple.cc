#include "quantize/decouple.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "math/lapack.h"
#include "quantize/stored_number.h"

namespace weft::quantize {
namespace {

using codec::Levels;
using codec::QuantizedLinear;
using codec::SliceFormat;
using codec::SliceScale;
using codec::Zero;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// What a code counts before its scale.
double basis_of(std::uint8_t code, float zero, const SliceFormat& format, bool joint) {
  if (format.levels != Levels::integer) return codec::level(format.levels, code);
  return joint ? code : static_cast<double>(code) - zero;
}

float zero_of(const QuantizedLinear& linear, std::size_t scale_index) { return linear.zeros.empty() ? 0.0F : linear.zeros[scale_index]; }

/// decoded - weights, in double.
std::vector<double> differences(std::span<const double> weights, const QuantizedLinear& linear, const SliceFormat& format) {
  std::vector<double> out(weights.size());
  for (std::int64_t r = 0; r < linear.rows; ++r)
    for (std::int64_t c = 0; c < linear.columns; ++c) {
      const std::size_t i = at(r * linear.columns + c), s = linear.scale_index(r, c);
      out[i] = static_cast<double>(codec::decode(linear.codes[i], {linear.scales[s], zero_of(linear, s)}, format)) - weights[i];
    }
  return out;
}

/// D H.
std::vector<double> through(std::span<const double> difference, std::int64_t rows, std::int64_t columns, std::span<const double> matrix) {
  std::vector<double> out(difference.size());
  math::gemm(math::Transpose::no, math::Transpose::no, rows, columns, columns, 1.0, difference.data(), columns, matrix.data(), columns, 0.0,
             out.data(), columns);
  return out;
}

std::vector<double> dots(std::span<const double> a, std::span<const double> b, std::int64_t rows, std::int64_t columns) {
  std::vector<double> out(at(rows));
  for (std::int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (std::int64_t c = 0; c < columns; ++c) sum += a[at(r * columns + c)] * b[at(r * columns + c)];
    out[at(r)] = sum;
  }
  return out;
}

/// Solves A x = b, A [n, n] positive definite by its lower triangle; both are overwritten. False where A is not.
bool solve_definite(std::span<double> a, std::span<double> b) {
  const auto n = static_cast<std::int64_t>(b.size());
  if (!math::cholesky(a, n)) return false;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < i; ++j) b[at(i)] -= a[at(i * n + j)] * b[at(j)];
    b[at(i)] /= a[at(i * n + i)];
  }
  for (std::int64_t i = n; i-- > 0;) {
    for (std::int64_t j = i + 1; j < n; ++j) b[at(i)] -= a[at(j * n + i)] * b[at(j)];
    b[at(i)] /= a[at(i * n + i)];
  }
  return std::all_of(b.begin(), b.end(), [](double value) { return std::isfinite(value); });
}

/// Scales, and offsets where they are found jointly, of a slab of rows.
class ScaleSystem {
 public:
  ScaleSystem(std::span<const double> matrix, const SliceFormat& format, std::int64_t columns, std::int64_t group, bool joint)
      : matrix_(matrix), format_(format), columns_(columns), group_(group), groups_((columns + group - 1) / group), joint_(joint) {
    if (!joint_) return;
    ones_.assign(at(groups_ * columns_), 0);
    for (std::int64_t i = 0; i < columns_; ++i)
      for (std::int64_t j = 0; j < columns_; ++j) ones_[at(i / group_ * columns_ + j)] += matrix_[at(i * columns_ + j)];
  }

  /// For rows [first, first + count) of the layer.
  void solve(std::span<const double> weights, std::int64_t first, std::int64_t count, QuantizedLinear& linear) const {
    const std::int64_t unknowns = joint_ ? 2 * groups_ : groups_;
    std::vector<double> basis(at(count * columns_)), left(at(count * unknowns * unknowns)), right(at(count * unknowns));
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t c = 0; c < columns_; ++c)
        basis[at(r * columns_ + c)] =
            basis_of(linear.codes[at((first + r) * columns_ + c)], zero_of(linear, linear.scale_index(first + r, c)), format_, joint_);
    const auto weight = [&](std::int64_t r, std::int64_t c) { return weights[at((first + r) * columns_ + c)]; };
    std::vector<double> product(at(count * columns_));
    for (std::int64_t k = 0; k < groups_; ++k) {
      const std::int64_t begin = k * group_, width = std::min(group_, columns_ - begin);
      math::gemm(math::Transpose::no, math::Transpose::no, count, columns_, width, 1.0, basis.data() + begin, columns_,
                 matrix_.data() + begin * columns_, columns_, 0.0, product.data(), columns_);
      for (std::int64_t r = 0; r < count; ++r) {
        double* row = left.data() + (r * unknowns + k) * unknowns;
        for (std::int64_t c = 0; c < columns_; ++c) {
          const double value = product[at(r * columns_ + c)];
          row[c / group_] += value * basis[at(r * columns_ + c)];
          if (joint_) left[at((r * unknowns + groups_ + c / group_) * unknowns + k)] += value;
          right[at(r * unknowns + k)] += value * weight(r, c);
        }
      }
    }
    for (std::int64_t r = 0; joint_ && r < count; ++r)
      for (std::int64_t k = 0; k < groups_; ++k)
        for (std::int64_t c = 0; c < columns_; ++c) {
          const double value = ones_[at(k * columns_ + c)];
          left[at((r * unknowns + groups_ + k) * unknowns + groups_ + c / group_)] += value;
          right[at(r * unknowns + groups_ + k)] += value * weight(r, c);
        }
    for (std::int64_t r = 0; r < count; ++r)
      put(std::span(left).subspan(at(r * unknowns * unknowns), at(unknowns * unknowns)), std::span(right).subspan(at(r * unknowns), at(unknowns)),
          first + r, linear);
  }

 private:
  /// Whether the codes of a group say nothing that the offset could not: their scale is left out of the system.
  [[nodiscard]] bool is_flat(std::int64_t row, std::int64_t group, const QuantizedLinear& linear) const {
    const std::int64_t begin = group * group_, end = std::min(columns_, begin + group_);
    const float zero = zero_of(linear, linear.scale_index(row, begin));
    for (std::int64_t c = begin; c < end; ++c) {
      const std::uint8_t code = linear.codes[at(row * columns_ + c)];
      if (joint_ ? code != linear.codes[at(row * columns_ + begin)] : basis_of(code, zero, format_, false) != 0) return false;
    }
    return true;
  }

  void put(std::span<double> left, std::span<double> right, std::int64_t row, QuantizedLinear& linear) const {
    const auto unknowns = static_cast<std::int64_t>(right.size());
    std::vector<bool> flat(at(groups_));
    double mean = 0;
    for (std::int64_t k = 0; k < groups_; ++k) {
      flat[at(k)] = is_flat(row, k, linear);
      if (!flat[at(k)]) continue;
      for (std::int64_t j = 0; j < unknowns; ++j) left[at(k * unknowns + j)] = left[at(j * unknowns + k)] = 0;
      left[at(k * unknowns + k)] = 1;
      right[at(k)] = 0;
    }
    for (std::int64_t k = 0; k < unknowns; ++k) mean += left[at(k * unknowns + k)] / static_cast<double>(unknowns);
    std::vector<double> factor, solution;
    constexpr int kTries = 3;
    bool solved = false;
    for (int i = 0; i < kTries && !solved; ++i) {
      factor.assign(left.begin(), left.end());
      solution.assign(right.begin(), right.end());
      for (std::int64_t k = 0; i > 0 && k < unknowns; ++k) factor[at(k * unknowns + k)] += 0.01 * mean * i;
      solved = solve_definite(factor, solution);
    }
    if (!solved) return;
    // All of the row or nothing: the scales were found together.
    struct New {
      float scale = 1, zero = 0;
      bool turned = false;
    };
    std::vector<New> scales(at(groups_));
    const double most = (1 << format_.bits) - 1;
    for (std::int64_t k = 0; k < groups_; ++k) {
      const std::size_t index = linear.scale_index(row, k * group_);
      New& own = scales[at(k)];
      own.scale = linear.scales[index];
      own.zero = zero_of(linear, index);
      double scale = solution[at(k)], offset = joint_ ? solution[at(groups_ + k)] : 0;
      if (flat[at(k)]) {
        if (!joint_) continue;
        own.zero = stored(linear.scale_type, linear.codes[at(row * columns_ + k * group_)] - offset / own.scale);
      } else {
        if (scale < 0) {
          if (!joint_) return;
          offset += scale * most;
          scale = -scale;
          own.turned = true;
        }
        own.scale = stored(linear.scale_type, scale);
        if (joint_) own.zero = stored(linear.scale_type, -offset / own.scale);
      }
      if (!(own.scale > 0) || !std::isfinite(own.scale) || !std::isfinite(own.zero)) return;
    }
    for (std::int64_t k = 0; k < groups_; ++k) {
      const std::size_t index = linear.scale_index(row, k * group_);
      const New& own = scales[at(k)];
      linear.scales[index] = own.scale;
      if (!linear.zeros.empty()) linear.zeros[index] = own.zero;
      for (std::int64_t c = k * group_; own.turned && c < std::min(columns_, (k + 1) * group_); ++c) {
        std::uint8_t& code = linear.codes[at(row * columns_ + c)];
        code = static_cast<std::uint8_t>((1 << format_.bits) - 1 - code);
      }
    }
  }

  std::span<const double> matrix_;
  SliceFormat format_;
  std::int64_t columns_, group_, groups_;
  bool joint_;
  std::vector<double> ones_;  ///< [groups, columns]: sums of H's rows
};

void fit_scales_jointly(std::span<const double> weights, std::span<const double> matrix, const SliceFormat& format, bool joint,
                        QuantizedLinear& linear) {
  constexpr std::int64_t kMostSystemValues = std::int64_t{1} << 23;  // of all rows that are solved at once
  const ScaleSystem system(matrix, format, linear.columns, linear.group, joint);
  const std::int64_t unknowns = linear.num_groups() * (joint ? 2 : 1);
  const std::int64_t rows = std::clamp<std::int64_t>(kMostSystemValues / (unknowns * unknowns), 1, 64);
  for (std::int64_t first = 0; first < linear.rows; first += rows) system.solve(weights, first, std::min(rows, linear.rows - first), linear);
}

/// A slab of rows on its way.
class Slab {
 public:
  Slab(std::span<const float> weights, const DecoupleMetric& metric, const DecoupleOptions& options, std::int64_t first, const QuantizedLinear& whole,
       std::int64_t count)
      : metric_(metric), options_(options), format_(options.solver.format), best_(prepare(count, whole.columns, options.solver, metric.factor)) {
    const std::int64_t n = whole.columns;
    values_.resize(at(count * n));
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t c = 0; c < n; ++c) values_[at(r * n + c)] = metric.factor.dead[at(c)] ? 0.0F : weights[at((first + r) * n + c)];
    target_.assign(values_.begin(), values_.end());
  }

  /// From both beginnings: neither is always the better one.
  QuantizedLinear run() {
    start_by_columns();
    alternate();
    const QuantizedLinear first = best_;
    const std::vector<double> losses = std::move(losses_);
    losses_.clear();
    start_by_rows();
    alternate();
    accept(first, losses);
    return std::move(best_);
  }

 private:
  [[nodiscard]] std::int64_t rows() const { return best_.rows; }
  [[nodiscard]] std::int64_t columns() const { return best_.columns; }

  void alternate() {
    for (int round = 0; round < std::max(1, options_.rounds); ++round) {
      std::int64_t improved = 0;
      if (round > 0) improved += refit();
      improved += compensate_codes();
      improved += change_codes();
      if (round > 0 && improved == 0) break;
    }
  }

  /// Takes the rows that lose less; all of them at first.
  std::int64_t accept(const QuantizedLinear& trial) {
    return accept(trial, row_losses(differences(target_, trial, format_), rows(), columns(), metric_.matrix));
  }
  std::int64_t accept(const QuantizedLinear& trial, const std::vector<double>& losses) {
    std::int64_t accepted = 0;
    const std::int64_t groups = best_.num_groups();
    for (std::int64_t r = 0; r < rows(); ++r) {
      if (!losses_.empty() && !(losses[at(r)] < losses_[at(r)])) continue;
      if (!losses_.empty()) losses_[at(r)] = losses[at(r)];
      std::copy_n(trial.codes.begin() + r * columns(), columns(), best_.codes.begin() + r * columns());
      std::copy_n(trial.scales.begin() + r * groups, groups, best_.scales.begin() + r * groups);
      if (!best_.zeros.empty()) std::copy_n(trial.zeros.begin() + r * groups, groups, best_.zeros.begin() + r * groups);
      ++accepted;
    }
    if (losses_.empty()) losses_ = losses;
    return accepted;
  }

  /// A range for each group, by how loudly its columns are read.
  void start_by_columns() {
    SolverOptions plain = options_.solver;
    plain.format.search = codec::Search::shrink;
    plain.format.norm = 2;
    accept(round_to_nearest(values_, rows(), columns(), plain, metric_.factor.diagonal));
  }

  /// A share of all ranges of a row, by what is lost in the end.
  void start_by_rows() {
    SolverOptions plain = options_.solver;
    plain.format.search = codec::Search::none;
    accept(round_to_nearest(values_, rows(), columns(), plain));
    if (format_.scale_type == DType::f8_e8m0) return;
    constexpr double kNarrowest = 0.2;

    for (int step = 1; step < options_.shrinks; ++step) {
      const double share = 1 - (1 - kNarrowest) * step / options_.shrinks;
      QuantizedLinear trial = prepare(rows(), columns(), plain, metric_.factor);
      for (std::int64_t r = 0; r < rows(); ++r)
        for (std::int64_t g = 0; g < trial.num_groups(); ++g) {
          const std::int64_t begin = r * columns() + g * trial.group, width = std::min(trial.group, columns() - g * trial.group);
          const auto slice = std::span<const float>(values_).subspan(at(begin), at(width));
          const auto [low, high] = std::minmax_element(slice.begin(), slice.end());
          const double centre = format_.zero == Zero::offset && format_.levels == Levels::integer ? 0.5 * *low + 0.5 * *high : 0.0;
          const std::array<float, 2> ends = {static_cast<float>(centre + share * (*low - centre)),
                                             static_cast<float>(centre + share * (*high - centre))};
          const SliceScale scale = codec::fit_slice(ends, {}, plain.format);
          const std::size_t index = trial.scale_index(r, g * trial.group);
          trial.scales[index] = scale.scale;
          if (!trial.zeros.empty()) trial.zeros[index] = scale.zero;
          for (std::size_t i = 0; i < slice.size(); ++i) trial.codes[at(begin) + i] = codec::encode(slice[i], scale, format_);
        }
      accept(trial);
    }
  }

  /// GPTQ with the scales as they are.
  std::int64_t compensate_codes() {
    QuantizedLinear trial = best_;
    const std::int64_t n = columns();
    const Factor& factor = metric_.factor;
    std::vector<double> left(at(n));
    for (std::int64_t r = 0; r < rows(); ++r) {
      for (std::int64_t p = 0; p < n; ++p) left[at(p)] = target_[at(r * n + factor.order[at(p)])];
      for (std::int64_t p = 0; p < n; ++p) {
        const std::int64_t column = factor.order[at(p)];
        const std::size_t index = trial.scale_index(r, column);
        const SliceScale scale{trial.scales[index], zero_of(trial, index)};
        const std::uint8_t code = codec::encode(static_cast<float>(left[at(p)]), scale, format_);
        trial.codes[at(r * n + column)] = code;
        const double* upper = factor.upper.data() + p * n;
        const double error = (left[at(p)] - static_cast<double>(codec::decode(code, scale, format_))) / upper[p];
        for (std::int64_t q = p + 1; q < n; ++q) left[at(q)] -= error * upper[q];
      }
    }
    return accept(trial);
  }

  /// Each code in turn becomes the best for all others, as long as any changes.
  std::int64_t change_codes() {
    QuantizedLinear trial = best_;
    const std::int64_t n = columns();
    const std::vector<double> difference = differences(target_, trial, format_);
    std::vector<double> gradient = through(difference, rows(), n, metric_.matrix);
    for (std::int64_t r = 0; r < rows(); ++r) {
      double* slope = gradient.data() + r * n;
      for (int sweep = 0; sweep < options_.sweeps; ++sweep) {
        bool changed = false;
        for (const std::int64_t c : metric_.factor.order) {
          const double curvature = metric_.matrix[at(c * n + c)];
          std::uint8_t& code = trial.codes[at(r * n + c)];
          const std::size_t index = trial.scale_index(r, c);
          const SliceScale scale{trial.scales[index], zero_of(trial, index)};
          const double now = codec::decode(code, scale, format_);
          const std::uint8_t next = codec::encode(static_cast<float>(now - slope[c] / curvature), scale, format_);
          if (next == code) continue;
          const double step = static_cast<double>(codec::decode(next, scale, format_)) - now;
          // Ties, and what rounding makes of them, would go back and forth.
          if (!(step * (2 * slope[c] + step * curvature) < -1e-9 * std::fabs(step * slope[c]))) continue;
          code = next;
          changed = true;
          const double* row = metric_.matrix.data() + c * n;
          for (std::int64_t j = 0; j < n; ++j) slope[j] += step * row[j];
        }
        if (!changed) break;
      }
    }
    return accept(trial);
  }

  std::int64_t refit() {
    const bool joint = format_.levels == Levels::integer && format_.zero == Zero::offset;
    QuantizedLinear trial = best_;
    fit_scales_jointly(target_, metric_.matrix, format_, joint, trial);
    std::int64_t improved = accept(trial);
    if (format_.levels == Levels::integer && format_.zero == Zero::affine) {
      // Scale and offset together, the offset then rounded to a number of steps, and the scales once more for those.
      trial = best_;
      fit_scales_jointly(target_, metric_.matrix, format_, true, trial);
      for (float& zero : trial.zeros) zero = std::clamp(std::nearbyint(zero), 0.0F, static_cast<float>((1 << format_.bits) - 1));
      fit_scales_jointly(target_, metric_.matrix, format_, false, trial);
      improved += accept(trial);
    }
    return improved;
  }

  const DecoupleMetric& metric_;
  const DecoupleOptions& options_;
  SliceFormat format_;
  std::vector<float> values_;
  std::vector<double> target_;
  std::vector<double> losses_;
  QuantizedLinear best_;
};

}  // namespace

DecoupleMetric decouple_metric(std::span<const double> gram, std::int64_t columns, const SolverOptions& options) {
  DecoupleMetric metric;
  metric.factor = factorise(gram, columns, options);
  if (!metric.factor.usable) return metric;
  metric.matrix.assign(gram.begin(), gram.end());
  double mean = 0;
  for (std::int64_t i = 0; i < columns; ++i) mean += std::max(0.0, gram[at(i * columns + i)]) / static_cast<double>(columns);
  // What nothing is read from has no say in scales, but some code must be the best.
  constexpr double kLeast = 1e-6;
  for (std::int64_t i = 0; i < columns; ++i) {
    double& own = metric.matrix[at(i * columns + i)];
    own = std::max(own, 0.0) + std::max(metric.factor.damping, metric.factor.dead[at(i)] ? kLeast : 0.0) * mean;
  }
  return metric;
}

std::vector<double> row_losses(std::span<const double> difference, std::int64_t rows, std::int64_t columns, std::span<const double> matrix) {
  return dots(difference, through(difference, rows, columns, matrix), rows, columns);
}

void fit_scales(std::span<const double> weights, std::span<const double> matrix, const SliceFormat& format, QuantizedLinear& linear) {
  fit_scales_jointly(weights, matrix, format, format.levels == Levels::integer && format.zero == Zero::offset, linear);
}

void decouple_rows(std::span<const float> weights, const DecoupleMetric& metric, const DecoupleOptions& options, std::int64_t first,
                   std::int64_t count, QuantizedLinear& out) {
  const QuantizedLinear slab = Slab(weights, metric, options, first, out, count).run();
  const std::int64_t groups = out.num_groups();
  std::copy(slab.codes.begin(), slab.codes.end(), out.codes.begin() + first * out.columns);
  std::copy(slab.scales.begin(), slab.scales.end(), out.scales.begin() + first * groups);
  if (!out.zeros.empty()) std::copy(slab.zeros.begin(), slab.zeros.end(), out.zeros.begin() + first * groups);
}

QuantizedLinear decouple(std::span<const float> weights, std::int64_t rows, std::int64_t columns, const DecoupleMetric& metric,
                         const DecoupleOptions& options) {
  if (!metric.factor.usable) return round_to_nearest(weights, rows, columns, options.solver);
  QuantizedLinear out = prepare(rows, columns, options.solver, metric.factor);
  decouple_rows(weights, metric, options, 0, rows, out);
  return out;
}

std::vector<float> drifted_target(std::span<const float> weights, std::int64_t rows, std::int64_t columns, std::span<const double> cross,
                                  const Factor& factor, double share) {
  std::vector<float> out(weights.begin(), weights.end());
  if (!factor.usable || cross.empty() || share == 0) return out;
  constexpr std::int64_t kRows = 64;
  const std::int64_t n = columns;
  std::vector<double> values, moved(at(kRows * n)), ordered(at(kRows * n));
  for (std::int64_t first = 0; first < rows; first += kRows) {
    const std::int64_t count = std::min(kRows, rows - first);
    values.assign(weights.begin() + first * n, weights.begin() + (first + count) * n);
    math::gemm(math::Transpose::no, math::Transpose::no, count, n, n, share, values.data(), n, cross.data(), n, 0.0, moved.data(), n);
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t p = 0; p < n; ++p) {
        const std::int64_t column = factor.order[at(p)];
        ordered[at(r * n + p)] = factor.dead[at(column)] ? 0.0 : moved[at(r * n + column)];
      }
    // H^-1 = U^T U.
    math::gemm(math::Transpose::no, math::Transpose::yes, count, n, n, 1.0, ordered.data(), n, factor.upper.data(), n, 0.0, moved.data(), n);
    math::gemm(math::Transpose::no, math::Transpose::no, count, n, n, 1.0, moved.data(), n, factor.upper.data(), n, 0.0, ordered.data(), n);
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t p = 0; p < n; ++p) {
        float& own = out[at((first + r) * n + factor.order[at(p)])];
        const auto next = static_cast<float>(own + ordered[at(r * n + p)]);
        if (std::isfinite(next)) own = next;
      }
  }
  return out;
}

}  // namespace weft::quantize
