#if defined(WEFT_MATH_ELEMENTARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_ELEMENTARY_INL_H_
#undef WEFT_MATH_ELEMENTARY_INL_H_
#else
#define WEFT_MATH_ELEMENTARY_INL_H_
#endif

#include <cstddef>

#include "math/exp_log-inl.h"
#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

template <class D>
HWY_INLINE void ExpShiftedVector(D d, const float* x, double shift, double* out) {
  hn::StoreU(VectorExp(d, hn::Add(LoadAsDouble(d, x), hn::Set(d, shift))), d, out);
}

void ExpShifted(const float* x, double shift, std::size_t n, double* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) ExpShiftedVector(d, x + i, shift, out + i);
  for (; i < n; ++i) ExpShiftedVector(d1, x + i, shift, out + i);
}

template <class D>
HWY_INLINE void LogVector(D d, const double* in, double* out) {
  hn::StoreU(VectorLog(d, hn::LoadU(d, in)), d, out);
}

void LogOf(const double* x, std::size_t n, double* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) LogVector(d, x + i, out + i);
  for (; i < n; ++i) LogVector(d1, x + i, out + i);
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
