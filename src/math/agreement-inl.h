#if defined(WEFT_MATH_AGREEMENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_AGREEMENT_INL_H_
#undef WEFT_MATH_AGREEMENT_INL_H_
#else
#define WEFT_MATH_AGREEMENT_INL_H_
#endif

#include <cfloat>
#include <cstddef>

#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// kInputs: the number of models, or 0 for num_inputs.

template <std::size_t kInputs, class D>
HWY_INLINE void VarianceVector(D d, const float* base, const float* const* x, std::size_t num_inputs, std::size_t i, float* out) {
  using V = hn::Vec<D>;
  const hn::Rebind<float, D> df;
  const std::size_t count = kInputs == 0 ? num_inputs : kInputs;
  const auto base_v = hn::LoadU(df, base + i);
  const auto delta = [&](std::size_t k) { return hn::PromoteTo(d, hn::Sub(hn::LoadU(df, x[k] + i), base_v)); };
  // With e_k = d_k - d_0 it is (N sum e^2 - (sum e)^2) / N^2; as e_0 = 0, that loses no more than a factor N to cancellation, and is 0 exactly where
  // all d are equal.
  const V origin = delta(0);
  V sum = hn::Zero(d);
  V squares = hn::Zero(d);
  for (std::size_t k = 1; k < count; ++k) {
    const V e = hn::Sub(delta(k), origin);
    sum = hn::Add(sum, e);
    squares = hn::Add(squares, hn::Mul(e, e));
  }
  const double n = static_cast<double>(count);
  const V variance = hn::Mul(hn::Sub(hn::Mul(hn::Set(d, n), squares), hn::Mul(sum, sum)), hn::Set(d, 1 / (n * n)));
  const auto exists = hn::Gt(variance, hn::Zero(d));  // not for NaN
  const V bounded = hn::Min(hn::Max(hn::IfThenElseZero(exists, variance), hn::Set(d, double{FLT_TRUE_MIN})), hn::Set(d, double{FLT_MAX}));
  hn::StoreU(RoundToFloat(df, hn::IfThenElseZero(exists, bounded)), df, out + i);
}

template <std::size_t kInputs, class D>
HWY_INLINE void AgreeingVector(D d, const float* base, const float* const* x, const double* weights, std::size_t num_inputs, double smallest_divisor,
                               std::size_t i, float* out) {
  using V = hn::Vec<D>;
  const hn::Rebind<float, D> df;
  const std::size_t count = kInputs == 0 ? num_inputs : kInputs;
  const auto base_v = hn::LoadU(df, base + i);
  // The vote is a float32 sum in the models' order, as elsewhere: near zero its rounding decides.
  auto vote = hn::Zero(df);
  for (std::size_t k = 0; k < count; ++k) vote = hn::Add(vote, hn::Sub(hn::LoadU(df, x[k] + i), base_v));
  const V zero = hn::Zero(d);
  const V origin = hn::PromoteTo(d, base_v);
  const auto positive = hn::Ge(hn::PromoteTo(d, vote), zero);
  V mixed = zero;
  V divisor = zero;
  for (std::size_t k = 0; k < count; ++k) {
    // The exact difference, so that one model, or copies of it, come back bit for bit. It has the sign of the rounded one.
    const V e = hn::Sub(LoadAsDouble(d, x[k] + i), origin);
    const auto agrees = hn::Or(hn::And(positive, hn::Gt(e, zero)), hn::AndNot(positive, hn::Lt(e, zero)));
    const V weight = hn::IfThenElseZero(agrees, hn::Set(d, weights[k]));
    mixed = hn::Add(mixed, hn::Mul(weight, e));
    divisor = hn::Add(divisor, weight);
  }
  const V result = hn::Add(origin, hn::Div(mixed, hn::Max(divisor, hn::Set(d, smallest_divisor))));
  hn::StoreU(RoundToFloat(df, result), df, out + i);
}

template <std::size_t kInputs>
HWY_INLINE void VarianceLoop(const float* base, const float* const* inputs, std::size_t num_inputs, std::size_t n, float* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  const float* x[kInputs == 0 ? 1 : kInputs];
  for (std::size_t k = 0; k < kInputs; ++k) x[k] = inputs[k];
  const float* const* xs = kInputs == 0 ? inputs : x;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) VarianceVector<kInputs>(d, base, xs, num_inputs, i, out);
  for (; i < n; ++i) VarianceVector<kInputs>(d1, base, xs, num_inputs, i, out);
}

template <std::size_t kInputs>
HWY_INLINE void AgreeingLoop(const float* base, const float* const* inputs, const double* weights, std::size_t num_inputs, double smallest_divisor,
                             std::size_t n, float* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  const float* x[kInputs == 0 ? 1 : kInputs];
  double w[kInputs == 0 ? 1 : kInputs];
  for (std::size_t k = 0; k < kInputs; ++k) {
    x[k] = inputs[k];
    w[k] = weights[k];
  }
  const float* const* xs = kInputs == 0 ? inputs : x;
  const double* ws = kInputs == 0 ? weights : w;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) AgreeingVector<kInputs>(d, base, xs, ws, num_inputs, smallest_divisor, i, out);
  for (; i < n; ++i) AgreeingVector<kInputs>(d1, base, xs, ws, num_inputs, smallest_divisor, i, out);
}

void DeltaVariances(const float* base, const float* const* inputs, std::size_t num_inputs, std::size_t n, float* out) {
  switch (num_inputs) {
    case 2:
      return VarianceLoop<2>(base, inputs, 2, n, out);
    case 3:
      return VarianceLoop<3>(base, inputs, 3, n, out);
    case 4:
      return VarianceLoop<4>(base, inputs, 4, n, out);
    default:
      return VarianceLoop<0>(base, inputs, num_inputs, n, out);
  }
}

void AddAgreeingMean(const float* base, const float* const* inputs, const double* weights, std::size_t num_inputs, double smallest_divisor,
                     std::size_t n, float* out) {
  switch (num_inputs) {
    case 2:
      return AgreeingLoop<2>(base, inputs, weights, 2, smallest_divisor, n, out);
    case 3:
      return AgreeingLoop<3>(base, inputs, weights, 3, smallest_divisor, n, out);
    case 4:
      return AgreeingLoop<4>(base, inputs, weights, 4, smallest_divisor, n, out);
    default:
      return AgreeingLoop<0>(base, inputs, weights, num_inputs, smallest_divisor, n, out);
  }
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
