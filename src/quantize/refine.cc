#include "quantize/refine.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "math/convert.h"
#include "math/lapack.h"

namespace weft::quantize {
namespace {

using codec::QuantizedLinear;
using codec::SliceFormat;
using codec::SliceScale;

/// Columns whose changes are told to all others together.
constexpr std::int64_t kBlock = 64;

/// What a code stands for before the scale.
double unit(std::uint8_t code, float zero, const SliceFormat& format) {
  return format.levels == codec::Levels::integer ? static_cast<double>(static_cast<float>(code) - zero)
                                                 : static_cast<double>(codec::level(format.levels, code));
}

float as_stored(double value, DType type) {
  auto rounded = static_cast<float>(value);
  math::round_through(type, std::span(&rounded, 1));
  return rounded;
}

/// The rows of a slab while they are refined. A column after another: [columns, rows].
class Slab {
 public:
  Slab(std::span<const float> weights, const RefineBasis& basis, const SolverOptions& options, std::int64_t first, std::int64_t count,
       QuantizedLinear& out)
      : basis_(basis), format_(options.format), first_(first), count_(count), n_(out.columns), out_(out) {
    pull_.resize(static_cast<std::size_t>(n_ * count_));
    std::vector<double> lost(pull_.size());
    for (std::int64_t p = 0; p < n_; ++p)
      for (std::int64_t r = 0; r < count_; ++r) {
        const auto at = index(r, p);
        lost[static_cast<std::size_t>(p * count_ + r)] = value(at, scale(r, p)) - static_cast<double>(weights[at]);
      }
    add_pull(0, n_, lost.data());
  }

  /// Whether anything has changed.
  bool round() {
    bool changed = false;
    for (std::int64_t begin = 0; begin < n_;) {
      const std::int64_t group = group_at(begin);
      std::int64_t end = begin + 1;
      while (end < n_ && group_at(end) == group) ++end;
      for (std::int64_t block = begin; block < end; block += kBlock) changed |= move_codes(block, std::min(end, block + kBlock));
      // A scale of several rows is not one row's to move.
      if (out_.row_group == 1) changed |= move_scales(begin, end);
      if (out_.row_group == 1 && format_.levels == codec::Levels::integer && format_.zero == codec::Zero::offset) changed |= move_zeros(begin, end);
      begin = end;
    }
    return changed;
  }

 private:
  [[nodiscard]] std::int64_t column(std::int64_t p) const { return basis_.order[static_cast<std::size_t>(p)]; }
  [[nodiscard]] std::size_t index(std::int64_t r, std::int64_t p) const { return static_cast<std::size_t>((first_ + r) * n_ + column(p)); }
  [[nodiscard]] std::size_t scale_at(std::int64_t r, std::int64_t p) const { return out_.scale_index(first_ + r, column(p)); }
  [[nodiscard]] std::int64_t group_at(std::int64_t p) const { return static_cast<std::int64_t>(out_.scale_index(0, column(p))); }
  [[nodiscard]] SliceScale scale(std::int64_t r, std::int64_t p) const {
    const std::size_t at = scale_at(r, p);
    return {out_.scales[at], out_.zeros.empty() ? 0.0F : out_.zeros[at]};
  }
  [[nodiscard]] double value(std::size_t at, const SliceScale& scale) const {
    return static_cast<double>(codec::decode(out_.codes[at], scale, format_));
  }
  [[nodiscard]] const double* moment(std::int64_t p, std::int64_t q) const { return basis_.moment.data() + p * n_ + q; }

  /// pull += H[:, begin .. end) changes, changes: [end - begin, rows].
  void add_pull(std::int64_t begin, std::int64_t end, const double* changes) {
    math::gemm(math::Transpose::yes, math::Transpose::no, n_, count_, end - begin, 1.0, moment(begin, 0), n_, changes, count_, 1.0, pull_.data(),
               count_);
  }

  bool move_codes(std::int64_t begin, std::int64_t end) {
    const std::int64_t width = end - begin;
    near_.assign(pull_.begin() + begin * count_, pull_.begin() + end * count_);
    changes_.assign(static_cast<std::size_t>(width * count_), 0.0);
    bool changed = false;
    for (std::int64_t p = begin; p < end; ++p) {
      if (basis_.dead[static_cast<std::size_t>(p)]) continue;
      const double stiffness = *moment(p, p);
      double* own = changes_.data() + (p - begin) * count_;
      const double* pull = near_.data() + (p - begin) * count_;
      bool moved = false;
      for (std::int64_t r = 0; r < count_; ++r) {
        const std::size_t at = index(r, p);
        const SliceScale with = scale(r, p);
        const double now = value(at, with);
        const std::uint8_t code = codec::encode(static_cast<float>(now - pull[r] / stiffness), with, format_);
        if (code == out_.codes[at]) continue;
        const double step = static_cast<double>(codec::decode(code, with, format_)) - now;
        // What the loss changes by; half a unit in the last place of a tie must not go back and forth for ever.
        if (!(step * (2 * pull[r] + step * stiffness) < 0)) continue;
        out_.codes[at] = code;
        own[r] = step;
        moved = true;
      }
      if (!moved) continue;
      changed = true;
      for (std::int64_t q = p + 1; q < end; ++q) {
        const double share = *moment(p, q);
        double* other = near_.data() + (q - begin) * count_;
        for (std::int64_t r = 0; r < count_; ++r) other[r] += share * own[r];
      }
    }
    if (changed) add_pull(begin, end, changes_.data());
    return changed;
  }

  /// What a change of each row's parameter by 1 along `units_` does: the slope and the curvature of half the loss.
  void weigh(std::int64_t begin, std::int64_t end, std::vector<double>& slope, std::vector<double>& curvature) {
    const std::int64_t width = end - begin;
    product_.resize(units_.size());
    math::gemm(math::Transpose::yes, math::Transpose::no, width, count_, width, 1.0, moment(begin, begin), n_, units_.data(), count_, 0.0,
               product_.data(), count_);
    slope.assign(static_cast<std::size_t>(count_), 0.0);
    curvature.assign(static_cast<std::size_t>(count_), 0.0);
    for (std::int64_t p = 0; p < width; ++p)
      for (std::int64_t r = 0; r < count_; ++r) {
        const auto at = static_cast<std::size_t>(p * count_ + r);
        slope[static_cast<std::size_t>(r)] += units_[at] * pull_[static_cast<std::size_t>(begin * count_) + at];
        curvature[static_cast<std::size_t>(r)] += units_[at] * product_[at];
      }
  }

  /// Takes the best step along `units_` where, rounded as `rounded` says, it loses less. rounded(row, step) returns the step that is possible.
  template <typename Rounded>
  bool take_steps(std::int64_t begin, std::int64_t end, const Rounded& rounded) {
    std::vector<double> slope, curvature;
    weigh(begin, end, slope, curvature);
    bool changed = false;
    std::vector<double> steps(static_cast<std::size_t>(count_));
    for (std::int64_t r = 0; r < count_; ++r) {
      const double c = slope[static_cast<std::size_t>(r)], a = curvature[static_cast<std::size_t>(r)];
      if (!(a > 0) || !std::isfinite(c)) continue;
      steps[static_cast<std::size_t>(r)] = rounded(r, -c / a, [&](double step) { return step * (2 * c + step * a) < 0; });
      changed = changed || steps[static_cast<std::size_t>(r)] != 0;
    }
    if (!changed) return false;
    for (std::int64_t p = 0; p < end - begin; ++p)
      for (std::int64_t r = 0; r < count_; ++r) units_[static_cast<std::size_t>(p * count_ + r)] *= steps[static_cast<std::size_t>(r)];
    add_pull(begin, end, units_.data());
    return true;
  }

  bool move_scales(std::int64_t begin, std::int64_t end) {
    // Powers of two are too far apart for a step to one to lose less often.
    if (out_.scale_type == DType::f8_e8m0) return false;
    units_.resize(static_cast<std::size_t>((end - begin) * count_));
    for (std::int64_t p = begin; p < end; ++p)
      for (std::int64_t r = 0; r < count_; ++r)
        units_[static_cast<std::size_t>((p - begin) * count_ + r)] = unit(out_.codes[index(r, p)], scale(r, p).zero, format_);
    return take_steps(begin, end, [&](std::int64_t r, double step, const auto& loses_less) {
      float& own = out_.scales[scale_at(r, begin)];
      const float next = as_stored(static_cast<double>(own) + step, out_.scale_type);
      // A scale of 0, of the other sign or beyond its type's range is none.
      if (!std::isfinite(next) || !(next * own > 0)) return 0.0;
      const double possible = static_cast<double>(next) - static_cast<double>(own);
      if (!loses_less(possible)) return 0.0;
      own = next;
      return possible;
    });
  }

  bool move_zeros(std::int64_t begin, std::int64_t end) {
    units_.resize(static_cast<std::size_t>((end - begin) * count_));
    for (std::int64_t r = 0; r < count_; ++r) {
      const double own = -static_cast<double>(scale(r, begin).scale);
      for (std::int64_t p = 0; p < end - begin; ++p) units_[static_cast<std::size_t>(p * count_ + r)] = own;
    }
    return take_steps(begin, end, [&](std::int64_t r, double step, const auto& loses_less) {
      float& own = out_.zeros[scale_at(r, begin)];
      const float next = as_stored(static_cast<double>(own) + step, out_.scale_type);
      const double possible = static_cast<double>(next) - static_cast<double>(own);
      if (!std::isfinite(next) || !loses_less(possible)) return 0.0;
      own = next;
      return possible;
    });
  }

  const RefineBasis& basis_;
  SliceFormat format_;
  std::int64_t first_, count_, n_;
  QuantizedLinear& out_;
  std::vector<double> pull_;  ///< H (Q - W)^T
  std::vector<double> near_, changes_, units_, product_;
};

}  // namespace

RefineBasis refine_basis(std::span<const double> gram, std::int64_t columns, double damping, std::span<const std::int32_t> group_of) {
  const auto n = static_cast<std::size_t>(columns);
  RefineBasis basis;
  basis.order.resize(n);
  std::iota(basis.order.begin(), basis.order.end(), std::int64_t{0});
  if (!group_of.empty())
    std::stable_sort(basis.order.begin(), basis.order.end(),
                     [&](std::int64_t a, std::int64_t b) { return group_of[static_cast<std::size_t>(a)] < group_of[static_cast<std::size_t>(b)]; });
  double mean = 0;
  for (std::size_t i = 0; i < n; ++i) mean += gram[i * n + i] / static_cast<double>(n);
  basis.moment.resize(n * n);
  basis.dead.resize(n);
  for (std::size_t p = 0; p < n; ++p) {
    const auto row = static_cast<std::size_t>(basis.order[p]);
    basis.dead[p] = !(gram[row * n + row] > 0);
    for (std::size_t q = 0; q < n; ++q) basis.moment[p * n + q] = gram[row * n + static_cast<std::size_t>(basis.order[q])];
    basis.moment[p * n + p] += damping * mean;
  }
  return basis;
}

void refine_rows(std::span<const float> weights, const RefineBasis& basis, const SolverOptions& options, int rounds, std::int64_t first,
                 std::int64_t count, QuantizedLinear& out) {
  Slab slab(weights, basis, options, first, count, out);
  for (int round = 0; round < rounds; ++round)
    if (!slab.round()) return;
}

}  // namespace weft::quantize
