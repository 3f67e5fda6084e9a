// What several kernel groups need on top of Highway 1.0.3. Compiled once per target.
#if defined(WEFT_MATH_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_SIMD_INL_H_
#undef WEFT_MATH_SIMD_INL_H_
#else
#define WEFT_MATH_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A trap of this release: on AVX2 and AVX-512 hn::Ne is false where an operand is NaN. IsNaN is the same everywhere.

/// Loads and stores at any byte address (the pointers of stored tensors are aligned to nothing).
template <class D>
HWY_INLINE hn::Vec<D> LoadBytes(D d, const std::uint8_t* p) {
#if HWY_TARGET == HWY_SCALAR
  hn::TFromD<D> value;
  std::memcpy(&value, p, sizeof(value));
  return hn::Set(d, value);
#else
  return hn::BitCast(d, hn::LoadU(hn::Repartition<std::uint8_t, D>(), p));
#endif
}

template <class D>
HWY_INLINE void StoreBytes(hn::Vec<D> v, D d, std::uint8_t* p) {
  (void)d;
#if HWY_TARGET == HWY_SCALAR
  const hn::TFromD<D> value = hn::GetLane(v);
  std::memcpy(p, &value, sizeof(value));
#else
  const hn::Repartition<std::uint8_t, D> d8;
  hn::StoreU(hn::BitCast(d8, v), d8, p);
#endif
}

/// Float64 to float32, to nearest even, overflow to infinity. Highway's portable targets would clamp to the largest finite value instead.
template <class DF, class VD>
HWY_INLINE hn::Vec<DF> RoundToFloat(DF df, VD v) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  const hn::Rebind<double, DF> dd;
  HWY_ALIGN double in[hn::MaxLanes(dd)];
  HWY_ALIGN float out[hn::MaxLanes(df)];
  hn::Store(v, dd, in);
  for (std::size_t i = 0; i < hn::MaxLanes(df); ++i) out[i] = static_cast<float>(in[i]);
  return hn::Load(df, out);
#else
  return hn::DemoteTo(df, v);
#endif
}

/// The next floats as doubles.
template <class D>
HWY_INLINE hn::Vec<D> LoadAsDouble(D d, const float* p) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, D>(), p));
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
