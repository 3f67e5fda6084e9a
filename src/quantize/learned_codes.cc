#include "quantize/learned_codes.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/philox.h"
#include "math/lapack.h"
#include "quantize/stored_number.h"
#include "weft/error.h"

namespace weft::quantize {
namespace {

using codec::Levels;
using codec::QuantizedLinear;

constexpr std::size_t kRowsAUnit = 16;
constexpr double kFirstLogit = 4;      // OmniQuant: the ends begin at 0.982 of the extremes
constexpr double kMostLogDivisor = 1;  // beyond it the divisor would overflow before anything is gained
constexpr double kInsideCell = 0.45;   // of a scale: how far a weight may be from the code that it is to keep

template <typename Real>
Real sigmoid(Real x) {
  return Real(1) / (Real(1) + std::exp(-x));
}

template <typename F>
void for_row_units(ThreadTeam& team, std::size_t rows, const F& body) {
  team.for_each((rows + kRowsAUnit - 1) / kRowsAUnit,
                [&](std::size_t unit, int) { body(unit * kRowsAUnit, std::min(rows, (unit + 1) * kRowsAUnit)); });
}

/// As the type has it; the start's where the type has no such number.
float stored_scale(DType type, double scale, float otherwise) {
  const float rounded = stored(type, scale);
  return rounded != 0 && std::isfinite(rounded) ? rounded : otherwise;
}
float stored_zero(DType type, double zero, float otherwise) {
  const float rounded = stored(type, zero);
  return std::isfinite(rounded) ? rounded : otherwise;
}

}  // namespace

template <typename Real>
LearnedCodes<Real>::LearnedCodes(std::span<const float> weights, const QuantizedLinear& start, const SolverOptions& solver,
                                 const LearnedOptions& options, std::string_view name)
    : start_(start), solver_(solver), options_(options) {
  WEFT_ASSERT(weights.size() == static_cast<std::size_t>(start.rows * start.columns) && start.codes.size() == weights.size());
  between_ = solver.format.zero == codec::Zero::offset || solver.format.zero == codec::Zero::halfway;
  one_zero_ = start.symmetric || solver.format.zero == codec::Zero::halfway;
  const bool is_between = std::any_of(start.zeros.begin(), start.zeros.end(), [](float zero) { return zero != std::nearbyint(zero); });
  if ((is_between && !between_) || start.levels != Levels::integer || start.row_group != 1 || start.rank != 0)
    throw Error(ErrorCode::invalid_argument, "only integer codes can be learned", {.key = "method"},
                "use --numbers int, and rtn or gptq before what learns");
  const auto rows = static_cast<std::size_t>(start.rows), columns = static_cast<std::size_t>(start.columns);
  groups_ = static_cast<std::size_t>(start.num_groups());
  most_ = static_cast<Real>((1 << start.bits) - 1);
  group_of_.resize(columns);
  for (std::size_t c = 0; c < columns; ++c) group_of_[c] = static_cast<std::uint32_t>(start.scale_index(0, static_cast<std::int64_t>(c)));
  weights_.assign(weights.begin(), weights.end());
  scales_.assign(start.scales.begin(), start.scales.end());
  zeros_.assign(start.zeros.begin(), start.zeros.end());
  if (options.keeps_codes && options.what != Learned::scale) {
    // A weight that the code would not round to moves just into its cell.
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < columns; ++c) {
        const std::size_t i = r * columns + c, s = scale_at(r, c);
        if (codec::encode(weights[i], {start.scales[s], start.zeros[s]}, solver.format) == start.codes[i]) continue;
        const Real centre = scales_[s] * (static_cast<Real>(start.codes[i]) - zeros_[s]), reach = std::fabs(scales_[s]) * Real(kInsideCell);
        weights_[i] = std::clamp(weights_[i], centre - reach, centre + reach);
      }
  }
  const std::size_t num_scales = rows * groups_;
  switch (options.what) {
    case Learned::clip: {
      low_.assign(num_scales, 0);
      high_.assign(num_scales, 0);
      // A range that was searched for, or that codes were made for, is where learning begins; otherwise the extremes, as published.
      if (options.keeps_codes || solver.format.search != codec::Search::none) {
        const Real open = sigmoid(static_cast<Real>(kFirstLogit));
        for (std::size_t s = 0; s < num_scales; ++s) {
          low_[s] = -scales_[s] * zeros_[s] / open;
          high_[s] = (one_zero_ ? scales_[s] * most_ / 2 : scales_[s] * (most_ - zeros_[s])) / open;
        }
      } else {
        for (std::size_t r = 0; r < rows; ++r)
          for (std::size_t c = 0; c < columns; ++c) {
            const std::size_t s = scale_at(r, c);
            const Real w = weights_[r * columns + c];
            low_[s] = std::min(low_[s], w);
            high_[s] = std::max(high_[s], one_zero_ ? std::fabs(w) : w);
          }
      }
      add_part("high", num_scales, 1);
      if (!one_zero_) add_part("low", num_scales, 1);
      std::fill(parameters_.begin(), parameters_.end(), static_cast<Real>(kFirstLogit));
      break;
    }
    case Learned::divisor:
      add_part("scale", num_scales, 0.3);
      add_part("divisor", rows * columns, 1);
      add_part("row", rows, 0.3);
      break;
    case Learned::low_rank: {
      const auto rank = static_cast<std::size_t>(std::max<std::int64_t>(1, options.rank));
      add_part("scale", num_scales, 0.3);
      add_part("left", rows * rank, 1);
      add_part("right", rank * columns, 1);
      add_part("row", rows, 0.3);
      add_part("column", columns, 1);
      // Kaiming's uniform bound for what follows no nonlinearity: sqrt(3 / fan in), fan in the columns. Since left is 0, learning begins at the
      // start.
      const RandomStream random = RandomStream::of(options.seed, name, 0, 17);
      const Real bound = std::sqrt(Real(3) / static_cast<Real>(columns));
      const std::span<Real> right = part("right");
      for (std::size_t i = 0; i < right.size(); ++i) right[i] = bound * (2 * static_cast<Real>(random.uniform(i)) - 1);
      break;
    }
    case Learned::weight:
      add_part("scale", num_scales, 0.3);
      add_part("weight", rows * columns, 1);
      break;
    case Learned::scale:
      add_part("scale", num_scales, 1);
      break;
  }
  // A zero point that may be any number is learned as what is added to it.
  if (options.what != Learned::clip && solver.format.zero == codec::Zero::offset) add_part("zero", num_scales, 1);
  if (const std::span<Real> logs = part("scale"); !logs.empty())
    for (std::size_t s = 0; s < num_scales; ++s) logs[s] = 0;  // of the share of the start's scale
  if (options.what == Learned::divisor || options.what == Learned::low_rank) {
    shrink_.assign(rows * columns, 1);
    log_divisor_.assign(rows * columns, 0);
  }
}

template <typename Real>
void LearnedCodes<Real>::add_part(std::string_view name, std::size_t count, double rate) {
  parts_.push_back({name, parameters_.size(), count, rate});
  parameters_.resize(parameters_.size() + count);
}

template <typename Real>
std::size_t LearnedCodes<Real>::first_of(std::string_view name) const {
  for (const Part& one : parts_)
    if (one.name == name) return one.first;
  return parameters_.size();
}

template <typename Real>
std::span<Real> LearnedCodes<Real>::part(std::string_view name) {
  for (const Part& one : parts_)
    if (one.name == name) return std::span(parameters_).subspan(one.first, one.count);
  return {};
}

template <typename Real>
void LearnedCodes<Real>::update_scales() {
  if (options_.what != Learned::clip) {
    const Real* logs = parameters_.data() + first_of("scale");
    for (std::size_t s = 0; s < scales_.size(); ++s) scales_[s] = static_cast<Real>(start_.scales[s]) * std::exp(logs[s]);
    if (const std::size_t first = first_of("zero"); first < parameters_.size())
      for (std::size_t s = 0; s < zeros_.size(); ++s) zeros_[s] = static_cast<Real>(start_.zeros[s]) + parameters_[first + s];
    return;
  }
  const Real* high = parameters_.data() + first_of("high");
  const Real* low = parameters_.data() + first_of("low");
  for (std::size_t s = 0; s < scales_.size(); ++s) {
    if (!(high_[s] - low_[s] > 0)) continue;  // nothing but zeros: the start's
    if (one_zero_) {
      scales_[s] = 2 * sigmoid(high[s]) * high_[s] / most_;
      continue;
    }
    const Real from = sigmoid(low[s]) * low_[s], to = sigmoid(high[s]) * high_[s];
    scales_[s] = (to - from) / most_;
    const Real zero = -from / scales_[s];
    zeros_[s] = between_ ? zero : frozen_ ? zero + frozen_zero_[s] : std::nearbyint(zero);
  }
}

template <typename Real>
void LearnedCodes<Real>::update_divisors(std::size_t first_row, std::size_t last_row) {
  if (shrink_.empty()) return;
  const auto columns = static_cast<std::size_t>(start_.columns);
  const Real* row = parameters_.data() + first_of("row");
  if (options_.what == Learned::divisor) {
    std::copy_n(parameters_.data() + first_of("divisor") + first_row * columns, (last_row - first_row) * columns,
                log_divisor_.data() + first_row * columns);
  } else {
    const auto rank = static_cast<std::int64_t>(std::max<std::int64_t>(1, options_.rank)), width = start_.columns;
    math::gemm(math::Transpose::no, math::Transpose::no, static_cast<std::int64_t>(last_row - first_row), width, rank, Real(1),
               parameters_.data() + first_of("left") + first_row * static_cast<std::size_t>(rank), rank, parameters_.data() + first_of("right"),
               width, Real(0), log_divisor_.data() + first_row * columns, width);
  }
  const Real* column = options_.what == Learned::low_rank ? parameters_.data() + first_of("column") : nullptr;
  const auto bound = static_cast<Real>(kMostLogDivisor);
  for (std::size_t r = first_row; r < last_row; ++r)
    for (std::size_t c = 0; c < columns; ++c) {
      Real& log_divisor = log_divisor_[r * columns + c];
      log_divisor += row[r] + (column != nullptr ? column[c] : Real(0));
      shrink_[r * columns + c] = std::exp(-std::clamp(log_divisor, -bound, bound));
    }
}

template <typename Real>
Real LearnedCodes<Real>::weight_at(std::size_t i, std::size_t s) const {
  if (options_.what != Learned::weight) return weights_[i];
  // What is added counts in the start's scales, so that one rate of learning fits all layers.
  return weights_[i] + parameters_[parts_[1].first + i] * static_cast<Real>(start_.scales[s]);
}

template <typename Real>
auto LearnedCodes<Real>::point_at(std::size_t i, std::size_t s) const -> Point {
  if (options_.what == Learned::scale) return {0, static_cast<Real>(start_.codes[i]), false};
  const Real position = weight_at(i, s) * (shrink_.empty() ? Real(1) : shrink_[i]) / scales_[s];
  if (frozen_) return {position, frozen_inside_[i] ? position + frozen_add_[i] + zeros_[s] : frozen_code_[i], frozen_inside_[i]};
  const Real code = between_ ? std::nearbyint(position + zeros_[s]) : std::nearbyint(position) + zeros_[s];
  if (code < 0) return {position, 0, false};
  if (code > most_) return {position, most_, false};
  return {position, code, true};
}

template <typename Real>
void LearnedCodes<Real>::values(ThreadTeam& team, std::span<Real> out) {
  const auto rows = static_cast<std::size_t>(start_.rows), columns = static_cast<std::size_t>(start_.columns);
  WEFT_ASSERT(out.size() == rows * columns);
  update_scales();
  for_row_units(team, rows, [&](std::size_t first, std::size_t last) {
    update_divisors(first, last);
    for (std::size_t r = first; r < last; ++r)
      for (std::size_t c = 0; c < columns; ++c) {
        const std::size_t s = scale_at(r, c);
        out[r * columns + c] = scales_[s] * (point_at(r * columns + c, s).code - zeros_[s]);
      }
  });
  for (std::size_t i = 0; i < start_.added_at.size(); ++i) out[static_cast<std::size_t>(start_.added_at[i])] += static_cast<Real>(start_.added[i]);
}

template <typename Real>
void LearnedCodes<Real>::backward(ThreadTeam& team, std::span<const Real> d_values, std::span<Real> gradient) const {
  const auto rows = static_cast<std::size_t>(start_.rows), columns = static_cast<std::size_t>(start_.columns);
  WEFT_ASSERT(d_values.size() == rows * columns && gradient.size() == parameters_.size());
  // d loss / d scale and zero point of each group; d loss / d log divisor of each weight.
  std::vector<Real> d_scales(scales_.size()), d_zeros(scales_.size()), d_divisors(shrink_.size());
  Real* d_weights = options_.what == Learned::weight ? gradient.data() + first_of("weight") : nullptr;
  const auto bound = static_cast<Real>(kMostLogDivisor);
  for_row_units(team, rows, [&](std::size_t first, std::size_t last) {
    for (std::size_t r = first; r < last; ++r)
      for (std::size_t c = 0; c < columns; ++c) {
        const std::size_t i = r * columns + c, s = scale_at(r, c);
        const Point point = point_at(i, s);
        const Real d = d_values[i];
        d_scales[s] += d * (point.code - zeros_[s] - (point.inside ? point.position : Real(0)));
        if (!point.inside) {
          d_zeros[s] -= d * scales_[s];
          continue;
        }
        if (d_weights != nullptr) d_weights[i] += d * static_cast<Real>(start_.scales[s]);
        if (!d_divisors.empty() && std::fabs(log_divisor_[i]) <= bound) d_divisors[i] = -d * scales_[s] * point.position;
      }
  });
  if (options_.what == Learned::clip) {
    const std::size_t first_high = first_of("high"), first_low = first_of("low");
    for (std::size_t s = 0; s < scales_.size(); ++s) {
      if (!(high_[s] - low_[s] > 0)) continue;
      const Real high = sigmoid(parameters_[first_high + s]);
      const Real d_high = high_[s] * high * (1 - high);
      if (one_zero_) {
        gradient[first_high + s] += d_scales[s] * 2 / most_ * d_high;
        continue;
      }
      const Real low = sigmoid(parameters_[first_low + s]);
      const Real from = low * low_[s], scale = scales_[s];
      // zero = -from / scale: through the scale, and by itself.
      const Real d_scale = d_scales[s] + d_zeros[s] * from / (scale * scale);
      gradient[first_high + s] += d_scale / most_ * d_high;
      gradient[first_low + s] += (-d_scale / most_ - d_zeros[s] / scale) * low_[s] * low * (1 - low);
    }
    return;
  }
  const std::size_t first_scale = first_of("scale");
  for (std::size_t s = 0; s < scales_.size(); ++s) gradient[first_scale + s] += d_scales[s] * scales_[s];
  if (const std::size_t first = first_of("zero"); first < parameters_.size())
    for (std::size_t s = 0; s < zeros_.size(); ++s) gradient[first + s] += d_zeros[s];
  if (d_divisors.empty()) return;
  const std::size_t first_row = first_of("row");
  for (std::size_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (std::size_t c = 0; c < columns; ++c) sum += static_cast<double>(d_divisors[r * columns + c]);
    gradient[first_row + r] += static_cast<Real>(sum);
  }
  if (options_.what == Learned::divisor) {
    Real* own = gradient.data() + first_of("divisor");
    for (std::size_t i = 0; i < d_divisors.size(); ++i) own[i] += d_divisors[i];
    return;
  }
  const std::size_t first_column = first_of("column");
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) gradient[first_column + c] += d_divisors[r * columns + c];
  const std::int64_t rank = std::max<std::int64_t>(1, options_.rank), width = start_.columns;
  const Real* left = parameters_.data() + first_of("left");
  const Real* right = parameters_.data() + first_of("right");
  for_row_units(team, rows, [&](std::size_t first, std::size_t last) {
    math::gemm(math::Transpose::no, math::Transpose::yes, static_cast<std::int64_t>(last - first), rank, width, Real(1),
               d_divisors.data() + first * columns, width, right, width, Real(1),
               gradient.data() + first_of("left") + first * static_cast<std::size_t>(rank), rank);
  });
  math::gemm(math::Transpose::yes, math::Transpose::no, rank, width, start_.rows, Real(1), left, rank, d_divisors.data(), width, Real(1),
             gradient.data() + first_of("right"), width);
}

template <typename Real>
QuantizedLinear LearnedCodes<Real>::codes() const {
  LearnedCodes now = *this;
  now.frozen_ = false;
  now.update_scales();
  const auto rows = static_cast<std::size_t>(start_.rows), columns = static_cast<std::size_t>(start_.columns);
  now.update_divisors(0, rows);
  QuantizedLinear out = start_;
  const auto encode_all = [&] {
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < columns; ++c)
        out.codes[r * columns + c] = static_cast<std::uint8_t>(now.point_at(r * columns + c, scale_at(r, c)).code);
  };
  // Learned weights gather where one code ends: the last bits of a scale would send many of them the other way at once. Their codes are those that
  // were learned. Weights as they are get the codes that are best for the scale as it is stored.
  if (options_.what != Learned::clip) encode_all();
  for (std::size_t s = 0; s < scales_.size(); ++s) {
    out.scales[s] = stored_scale(start_.scale_type, static_cast<double>(now.scales_[s]), start_.scales[s]);
    if (!between_)
      out.zeros[s] = std::clamp(static_cast<float>(now.zeros_[s]), 0.0F, static_cast<float>(most_));
    else if (!one_zero_)
      out.zeros[s] = stored_zero(start_.scale_type, static_cast<double>(now.zeros_[s]), start_.zeros[s]);
    now.scales_[s] = static_cast<Real>(out.scales[s]);
    now.zeros_[s] = static_cast<Real>(out.zeros[s]);
  }
  if (options_.what == Learned::clip) encode_all();
  return out;
}

template <typename Real>
void LearnedCodes<Real>::freeze_rounding(ThreadTeam& team) {
  const auto rows = static_cast<std::size_t>(start_.rows), columns = static_cast<std::size_t>(start_.columns);
  std::vector<Real> now(rows * columns);
  frozen_ = false;
  values(team, now);
  frozen_add_.assign(rows * columns, 0);
  frozen_code_ = frozen_add_;
  frozen_inside_.assign(rows * columns, false);
  frozen_zero_.assign(scales_.size(), 0);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) {
      const std::size_t i = r * columns + c, s = scale_at(r, c);
      const Point point = point_at(i, s);
      frozen_inside_[i] = point.inside;
      frozen_code_[i] = point.code;
      const Real before = between_ ? point.position + zeros_[s] : point.position;
      frozen_add_[i] = std::nearbyint(before) - before;
    }
  if (options_.what == Learned::clip && !one_zero_ && !between_)
    for (std::size_t s = 0; s < scales_.size(); ++s)
      if (high_[s] - low_[s] > 0) frozen_zero_[s] = zeros_[s] + sigmoid(parameters_[first_of("low") + s]) * low_[s] / scales_[s];
  frozen_ = true;
}

template class LearnedCodes<float>;
template class LearnedCodes<double>;

}  // namespace weft::quantize
