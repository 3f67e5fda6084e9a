#if defined(WEFT_MATH_ROUND_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_ROUND_CODES_INL_H_
#undef WEFT_MATH_ROUND_CODES_INL_H_
#else
#define WEFT_MATH_ROUND_CODES_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "math/round_codes.h"
#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

Extent ExtentOf(const float* x, std::size_t n) {
  const hn::CappedTag<float, 16> d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  Extent extent{x[0], x[0]};
  std::size_t i = 0;
  if (n >= 2 * kLanes) {
    auto low0 = hn::LoadU(d, x), low1 = hn::LoadU(d, x + kLanes);
    auto high0 = low0, high1 = low1;
    for (i = 2 * kLanes; i + 2 * kLanes <= n; i += 2 * kLanes) {
      __builtin_prefetch(x + i + 512);  // slices come one after the other
      const auto a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + i + kLanes);
      low0 = hn::Min(low0, a);
      low1 = hn::Min(low1, b);
      high0 = hn::Max(high0, a);
      high1 = hn::Max(high1, b);
    }
    extent = {hn::GetLane(hn::MinOfLanes(d, hn::Min(low0, low1))), hn::GetLane(hn::MaxOfLanes(d, hn::Max(high0, high1)))};
  }
  for (; i < n; ++i) {
    extent.low = std::min(extent.low, x[i]);
    extent.high = std::max(extent.high, x[i]);
  }
  return extent;
}

void RoundToCodes(const float* x, std::size_t n, float scale, float zero, float lowest, float most, std::uint8_t* codes) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::uint8_t, decltype(d)> d8;
  const auto s = hn::Set(d, scale), inverse = hn::Set(d, 1 / scale);
  const auto z = hn::Set(d, zero);
  const auto low = hn::Set(d, lowest);
  const auto high = hn::Set(d, most);
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) {
    // A product with 1 / scale is less than 2^-22 of itself away from the quotient, so that both round to the same number unless one lies that close
    // to the middle between two: then, or where the inverse is no number, it is divided.
    const auto v = hn::LoadU(d, x + i), product = hn::Mul(v, inverse);
    auto rounded = hn::Round(product);
    const auto room = hn::NegMulAdd(hn::Abs(product), hn::Set(d, 0x1p-21F), hn::Set(d, 0.5F));
    if (!hn::AllTrue(d, hn::Lt(hn::Abs(hn::Sub(product, rounded)), room))) rounded = hn::Round(hn::Div(v, s));
    const auto q = hn::Add(rounded, z);
    // A NaN is not at least anything.
    const auto held = hn::IfThenElse(hn::Ge(q, low), hn::Min(q, high), low);
    hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(di, held)), d8, codes + i);
  }
  for (; i < n; ++i) {
    const float q = std::nearbyint(x[i] / scale) + zero;
    codes[i] = static_cast<std::uint8_t>(q > most ? most : q >= lowest ? q : lowest);
  }
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
