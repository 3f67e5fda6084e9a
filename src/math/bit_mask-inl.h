#if defined(WEFT_MATH_BIT_MASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_BIT_MASK_INL_H_
#undef WEFT_MATH_BIT_MASK_INL_H_
#else
#define WEFT_MATH_BIT_MASK_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// Vectors of at least eight lanes fill whole bytes, those of four half ones; the portable one-lane target takes the loop for the tail.

void PackNonzero(const float* values, std::size_t n, std::uint8_t* bits) {
  std::size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<float> d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  static_assert(kLanes >= 4);
  const auto zero = hn::Zero(d);
  if constexpr (kLanes >= 8) {
    for (; i + kLanes <= n; i += kLanes) hn::StoreMaskBits(d, hn::Ne(hn::LoadU(d, values + i), zero), bits + i / 8);
  } else {
    for (; i + 8 <= n; i += 8) {
      // StoreMaskBits may write a whole word.
      std::uint8_t low[8];
      std::uint8_t high[8];
      hn::StoreMaskBits(d, hn::Ne(hn::LoadU(d, values + i), zero), low);
      hn::StoreMaskBits(d, hn::Ne(hn::LoadU(d, values + i + 4), zero), high);
      bits[i / 8] = static_cast<std::uint8_t>(low[0] | high[0] << 4);
    }
  }
#endif
  for (; i < n; i += 8) {
    unsigned byte = 0;
    for (std::size_t k = 0; k < 8 && i + k < n; ++k) byte |= (values[i + k] != 0 ? 1U : 0U) << k;
    bits[i / 8] = static_cast<std::uint8_t>(byte);
  }
}

void KeepPacked(float* values, std::size_t n, const std::uint8_t* bits) {
  std::size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<float> d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  if constexpr (kLanes >= 8) {
    // LoadMaskBits may read a whole word, so the last ones go through the loop below.
    for (; i + kLanes <= n && i + 64 <= n; i += kLanes) {
      const auto kept = hn::LoadMaskBits(d, bits + i / 8);
      hn::StoreU(hn::IfThenElseZero(kept, hn::LoadU(d, values + i)), d, values + i);
    }
  } else {
    for (; i + 8 <= n; i += 8) {
      std::uint8_t low[8] = {bits[i / 8]};
      std::uint8_t high[8] = {static_cast<std::uint8_t>(bits[i / 8] >> 4)};
      hn::StoreU(hn::IfThenElseZero(hn::LoadMaskBits(d, low), hn::LoadU(d, values + i)), d, values + i);
      hn::StoreU(hn::IfThenElseZero(hn::LoadMaskBits(d, high), hn::LoadU(d, values + i + 4)), d, values + i + 4);
    }
  }
#endif
  for (; i < n; ++i)
    if ((bits[i / 8] >> (i % 8) & 1U) == 0) values[i] = 0;
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
