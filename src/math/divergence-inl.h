#if defined(WEFT_MATH_DIVERGENCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_DIVERGENCE_INL_H_
#undef WEFT_MATH_DIVERGENCE_INL_H_
#else
#define WEFT_MATH_DIVERGENCE_INL_H_
#endif

#include <cfloat>
#include <cstddef>

#include "math/exp_log-inl.h"
#include "math/reduce_order.h"
#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// Sums go to 16 partial sums, element i to i % 16, as in reduce-inl.h.

/// e^x where |x| <= 0.34: the series to x^11 / 11!, relative error below 6e-15.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpOfSmall(D d, V x) {
  namespace e = elementary;
  constexpr std::size_t kFirst = 2;
  V series = hn::Set(d, e::kExpSeries[kFirst]);
  for (std::size_t k = kFirst + 1; k < e::kExpSeries.size(); ++k) series = hn::Add(hn::Mul(series, x), hn::Set(d, e::kExpSeries[k]));
  return hn::Add(hn::Set(d, 1.0), hn::Add(x, hn::Mul(hn::Mul(x, x), series)));
}

template <bool kSmall, class D>
HWY_INLINE hn::Vec<D> Exponential(D d, const float* x, double shift) {
  if constexpr (kSmall) {
    (void)shift;
    return ExpOfSmall(d, LoadAsDouble(d, x));
  } else {
    return VectorExp(d, hn::Add(LoadAsDouble(d, x), hn::Set(d, shift)));
  }
}

template <bool kSmall>
HWY_INLINE void ExponentialsOf(const float* x, double shift, std::size_t n, double* out, double* partials) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  constexpr std::size_t kVectors = kPartialSums / kLanes;
  hn::Vec<decltype(d)> sums[kVectors];
  for (std::size_t v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kPartialSums <= n; i += kPartialSums) {
    for (std::size_t v = 0; v < kVectors; ++v) {
      const auto e = Exponential<kSmall>(d, x + i + v * kLanes, shift);
      hn::StoreU(e, d, out + i + v * kLanes);
      sums[v] = hn::Add(sums[v], e);
    }
  }
  for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, partials + v * kLanes);
  for (; i < n; ++i) {
    hn::StoreU(Exponential<kSmall>(d1, x + i, shift), d1, out + i);
    partials[i % kPartialSums] += out[i];
  }
}

/// out[i] = exp(x[i] + shift); partials: [16], written. small: all |x| <= 0.34 and no shift.
void Exponentials(const float* x, bool small, double shift, std::size_t n, double* out, double* partials) {
  if (small) {
    ExponentialsOf<true>(x, shift, n, out, partials);
  } else {
    ExponentialsOf<false>(x, shift, n, out, partials);
  }
}

/// p ln(p / q), p = a * scale_a + added, q likewise.
template <class D>
HWY_INLINE hn::Vec<D> DivergenceTerm(D d, const double* a, double scale_a, const double* b, double scale_b, double added) {
  using V = hn::Vec<D>;
  const V p = hn::Add(hn::Mul(hn::LoadU(d, a), hn::Set(d, scale_a)), hn::Set(d, added));
  const V q = hn::Add(hn::Mul(hn::LoadU(d, b), hn::Set(d, scale_b)), hn::Set(d, added));
  // ln(p / q) = 2 artanh(s): s + s^3 / 3 + ..., to s^11 where s is small, as it nearly always is.
  const V s = hn::Div(hn::Sub(p, q), hn::Add(p, q));
  const V z = hn::Mul(s, s);
  constexpr double kSeries[] = {2.0 / 11, 2.0 / 9, 2.0 / 7, 2.0 / 5, 2.0 / 3};
  V series = hn::Set(d, kSeries[0]);
  for (std::size_t k = 1; k < 5; ++k) series = hn::Add(hn::Mul(series, z), hn::Set(d, kSeries[k]));
  V log_ratio = hn::Add(hn::Add(s, s), hn::Mul(hn::Mul(s, z), series));
  // Each element by its own s, so that its neighbours do not matter.
  const auto small = hn::Le(hn::Abs(s), hn::Set(d, 0x1p-6));
  if (HWY_UNLIKELY(!hn::AllTrue(d, small))) log_ratio = hn::IfThenElse(small, log_ratio, VectorLog(d, hn::Div(p, q)));
  return hn::Mul(p, log_ratio);
}

/// partials: [16], written.
void DivergenceSums(const double* a, double scale_a, const double* b, double scale_b, double added, std::size_t n, double* partials) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  constexpr std::size_t kVectors = kPartialSums / kLanes;
  hn::Vec<decltype(d)> sums[kVectors];
  for (std::size_t v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kPartialSums <= n; i += kPartialSums)
    for (std::size_t v = 0; v < kVectors; ++v)
      sums[v] = hn::Add(sums[v], DivergenceTerm(d, a + i + v * kLanes, scale_a, b + i + v * kLanes, scale_b, added));
  for (std::size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, partials + v * kLanes);
  for (; i < n; ++i) partials[i % kPartialSums] += hn::GetLane(DivergenceTerm(d1, a + i, scale_a, b + i, scale_b, added));
}

template <class D>
HWY_INLINE hn::Vec<hn::Rebind<float, D>> ScaledChange(D d, const float* x, const float* y, double scale) {
  const hn::Rebind<float, D> df;
  const auto change = hn::Mul(hn::Abs(hn::Sub(LoadAsDouble(d, x), LoadAsDouble(d, y))), hn::Set(d, scale));
  const auto exists = hn::Gt(change, hn::Zero(d));  // not for NaN
  return RoundToFloat(df, hn::IfThenElseZero(exists, hn::Min(change, hn::Set(d, double{FLT_MAX}))));
}

void ScaledChanges(const float* x, const float* y, double scale, std::size_t n, float* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) hn::StoreU(ScaledChange(d, x + i, y + i, scale), hn::Rebind<float, decltype(d)>(), out + i);
  for (; i < n; ++i) hn::StoreU(ScaledChange(d1, x + i, y + i, scale), hn::Rebind<float, decltype(d1)>(), out + i);
}

template <class D>
HWY_INLINE void TakeLargeChange(D d, const float* base, const float* other, double scale, float least, float* out) {
  const hn::Rebind<float, D> df;
  const auto large = hn::Ge(ScaledChange(d, other, base, scale), hn::Set(df, least));
  hn::StoreU(hn::IfThenElse(large, hn::LoadU(df, other), hn::LoadU(df, base)), df, out);
}

void TakeLargeChanges(const float* base, const float* other, double scale, float least, std::size_t n, float* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) TakeLargeChange(d, base + i, other + i, scale, least, out + i);
  for (; i < n; ++i) TakeLargeChange(d1, base + i, other + i, scale, least, out + i);
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
