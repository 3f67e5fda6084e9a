#if defined(WEFT_MATH_BIT_MASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_BIT_MASK_INL_H_
#undef WEFT_MATH_BIT_MASK_INL_H_
#else
#define WEFT_MATH_BIT_MASK_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// Vectors of at least eight lanes fill whole bytes, those of four half ones; the portable one-lane target takes the loop for the tail.

/// Sets bit i where the test holds of element i; the first `begin` elements (a multiple of 8) are done.
template <class Test>
HWY_INLINE void PackWhere(const Test& test, std::size_t begin, std::size_t n, std::uint8_t* bits) {
  std::size_t i = begin;
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<float> d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  static_assert(kLanes >= 4);
  if constexpr (kLanes >= 8) {
    for (; i + kLanes <= n; i += kLanes) hn::StoreMaskBits(d, test.OfVector(d, i), bits + i / 8);
  } else {
    for (; i + 8 <= n; i += 8) {
      // StoreMaskBits may write a whole word.
      std::uint8_t low[8];
      std::uint8_t high[8];
      hn::StoreMaskBits(d, test.OfVector(d, i), low);
      hn::StoreMaskBits(d, test.OfVector(d, i + 4), high);
      bits[i / 8] = static_cast<std::uint8_t>(low[0] | high[0] << 4);
    }
  }
#endif
  for (; i < n; i += 8) {
    unsigned byte = 0;
    for (std::size_t k = 0; k < 8 && i + k < n; ++k) byte |= (test.OfElement(i + k) ? 1U : 0U) << k;
    bits[i / 8] = static_cast<std::uint8_t>(byte);
  }
}

struct IsNonzero {
  const float* values;
  template <class D>
  HWY_INLINE hn::Mask<D> OfVector(D d, std::size_t i) const {
    return hn::Ne(hn::LoadU(d, values + i), hn::Zero(d));
  }
  HWY_INLINE bool OfElement(std::size_t i) const { return values[i] != 0; }
};

template <bool kOrEqual>
struct IsAbove {
  const float* values;
  float threshold;
  template <class D>
  HWY_INLINE hn::Mask<D> OfVector(D d, std::size_t i) const {
    const auto bound = hn::Set(d, threshold);
    return kOrEqual ? hn::Ge(hn::LoadU(d, values + i), bound) : hn::Gt(hn::LoadU(d, values + i), bound);
  }
  HWY_INLINE bool OfElement(std::size_t i) const { return kOrEqual ? values[i] >= threshold : values[i] > threshold; }
};

void PackNonzero(const float* values, std::size_t n, std::uint8_t* bits) { PackWhere(IsNonzero{values}, 0, n, bits); }

/// Whether each value is above the threshold; of the first num_ties also whether it is the threshold.
void PackAtLeast(const float* values, std::size_t n, float threshold, std::size_t num_ties, std::uint8_t* bits) {
  const std::size_t whole = num_ties / 8 * 8;
  PackWhere(IsAbove<true>{values, threshold}, 0, whole, bits);
  if (whole == n) return;
  PackWhere(IsAbove<false>{values, threshold}, whole, n, bits);
  for (std::size_t i = whole; i < num_ties; ++i)
    if (values[i] == threshold) bits[i / 8] = static_cast<std::uint8_t>(bits[i / 8] | 1U << (i % 8));
}

/// Replaces the values whose bit is 0 by those of `otherwise`, or by zero where that is null.
template <bool kZero>
HWY_INLINE void ReplaceLoop(float* values, const float* otherwise, std::size_t n, const std::uint8_t* bits) {
  std::size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<float> d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto replace = [&](std::size_t at, hn::Mask<decltype(d)> kept) HWY_ATTR {
    const auto other = kZero ? hn::Zero(d) : hn::LoadU(d, otherwise + (kZero ? 0 : at));
    hn::StoreU(hn::IfThenElse(kept, hn::LoadU(d, values + at), other), d, values + at);
  };
  if constexpr (kLanes >= 8) {
    // LoadMaskBits may read a whole word, so the last ones are copied to where one is.
    for (; i + kLanes <= n && i + 64 <= n; i += kLanes) replace(i, hn::LoadMaskBits(d, bits + i / 8));
    if (i < n) {
      const std::size_t first = i;
      std::uint8_t last[16] = {};
      std::memcpy(last, bits + first / 8, (n - first + 7) / 8);
      for (; i + kLanes <= n; i += kLanes) replace(i, hn::LoadMaskBits(d, last + (i - first) / 8));
    }
  } else {
    for (; i + 8 <= n; i += 8) {
      std::uint8_t low[8] = {bits[i / 8]};
      std::uint8_t high[8] = {static_cast<std::uint8_t>(bits[i / 8] >> 4)};
      replace(i, hn::LoadMaskBits(d, low));
      replace(i + 4, hn::LoadMaskBits(d, high));
    }
  }
#endif
  for (; i < n; ++i)
    if ((bits[i / 8] >> (i % 8) & 1U) == 0) values[i] = kZero ? 0.0F : otherwise[i];
}

void KeepPacked(float* values, std::size_t n, const std::uint8_t* bits) { ReplaceLoop<true>(values, nullptr, n, bits); }
void ReplaceUnpacked(float* values, const float* otherwise, std::size_t n, const std::uint8_t* bits) {
  ReplaceLoop<false>(values, otherwise, n, bits);
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
