#if defined(WEFT_MATH_SELECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_SELECT_INL_H_
#undef WEFT_MATH_SELECT_INL_H_
#else
#define WEFT_MATH_SELECT_INL_H_
#endif

#include <bit>
#include <cstddef>
#include <cstdint>

#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// Magnitudes are compared as the bits of |x| taken as signed integers, which are ordered as the magnitudes are.

template <class D>
HWY_INLINE hn::Vec<D> MagnitudeBits(D d, const float* x) {
  return hn::And(hn::BitCast(d, hn::LoadU(hn::Rebind<float, D>(), x)), hn::Set(d, 0x7FFFFFFF));
}

HWY_INLINE std::int32_t MagnitudeBitsOf(float x) { return std::bit_cast<std::int32_t>(x) & 0x7FFFFFFF; }

void StoreMagnitudes(const float* x, std::size_t n, float* out) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) hn::StoreU(hn::Abs(hn::LoadU(d, x + i)), d, out + i);
  for (; i < n; ++i) hn::StoreU(hn::Abs(hn::LoadU(d1, x + i)), d1, out + i);
}

/// Adds to *above and *equal how many of n < 2^31 elements are so, compared with `bound`.
void CountAround(const float* x, std::size_t n, std::int32_t bound, std::uint64_t* above, std::uint64_t* equal) {
  const hn::ScalableTag<std::int32_t> d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto limit = hn::Set(d, bound);
  auto num_above = hn::Zero(d);
  auto num_equal = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto bits = MagnitudeBits(d, x + i);
    num_above = hn::Sub(num_above, hn::VecFromMask(d, hn::Gt(bits, limit)));
    num_equal = hn::Sub(num_equal, hn::VecFromMask(d, hn::Eq(bits, limit)));
  }
  std::int32_t lanes_above[kLanes];
  std::int32_t lanes_equal[kLanes];
  hn::StoreU(num_above, d, lanes_above);
  hn::StoreU(num_equal, d, lanes_equal);
  for (std::size_t v = 0; v < kLanes; ++v) {
    *above += static_cast<std::uint64_t>(lanes_above[v]);
    *equal += static_cast<std::uint64_t>(lanes_equal[v]);
  }
  for (; i < n; ++i) {
    *above += MagnitudeBitsOf(x[i]) > bound ? 1U : 0U;
    *equal += MagnitudeBitsOf(x[i]) == bound ? 1U : 0U;
  }
}

/// Positions of the elements strictly between the bounds, in order; returns how many. Adds to *equal_low how many are at the lower bound.
/// positions: [n + 64] (whole vectors are stored).
std::size_t FindBetween(const float* x, std::size_t n, std::int32_t low, std::int32_t high, std::uint32_t* positions, std::uint64_t* equal_low) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  constexpr std::size_t kGroup = 4;
  const auto low_v = hn::Set(d, low);
  const auto high_v = hn::Set(d, high);
  auto num_low = hn::Zero(d);
  std::size_t found = 0;
  std::size_t i = 0;
  for (; i + kGroup * kLanes <= n; i += kGroup * kLanes) {
    // Few groups hold any, so the group is tested as a whole first.
    auto any = hn::Zero(d);
    for (std::size_t g = 0; g < kGroup; ++g) {
      const auto bits = MagnitudeBits(d, x + i + g * kLanes);
      num_low = hn::Sub(num_low, hn::VecFromMask(d, hn::Eq(bits, low_v)));
      any = hn::Or(any, hn::VecFromMask(d, hn::And(hn::Gt(bits, low_v), hn::Lt(bits, high_v))));
    }
    if (hn::AllTrue(d, hn::Eq(any, hn::Zero(d)))) continue;
    for (std::size_t g = 0; g < kGroup; ++g) {
      const auto bits = MagnitudeBits(d, x + i + g * kLanes);
      const auto inside = hn::And(hn::Gt(bits, low_v), hn::Lt(bits, high_v));
      if (hn::AllFalse(d, inside)) continue;
      const auto at = hn::Iota(du, static_cast<std::uint32_t>(i + g * kLanes));
      found += hn::CompressStore(at, hn::RebindMask(du, inside), du, positions + found);
    }
  }
  std::int32_t lanes_low[kLanes];
  hn::StoreU(num_low, d, lanes_low);
  for (std::size_t v = 0; v < kLanes; ++v) *equal_low += static_cast<std::uint64_t>(lanes_low[v]);
  for (; i < n; ++i) {
    const std::int32_t bits = MagnitudeBitsOf(x[i]);
    *equal_low += bits == low ? 1U : 0U;
    if (bits > low && bits < high) positions[found++] = static_cast<std::uint32_t>(i);
  }
  return found;
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
