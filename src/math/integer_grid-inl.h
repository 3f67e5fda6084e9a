#if defined(WEFT_MATH_INTEGER_GRID_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_INTEGER_GRID_INL_H_
#undef WEFT_MATH_INTEGER_GRID_INL_H_
#else
#define WEFT_MATH_INTEGER_GRID_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "math/integer_grid.h"
#include "math/reduce_order.h"
#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

inline constexpr std::size_t kGridBlock = 128;

template <bool kAnyZero, bool kWeighted>
HWY_INLINE double GridErrorOf(const float* values, const float* weights, std::size_t n, const IntegerGrid& grid, double enough) {
  const hn::CappedTag<float, kPartialSums> d;
  using V = hn::Vec<decltype(d)>;
  constexpr std::size_t kLanes = hn::MaxLanes(d), kVectors = kPartialSums / kLanes;
  const V scale = hn::Set(d, grid.scale), zero = hn::Set(d, grid.zero), lowest = hn::Set(d, grid.lowest), most = hn::Set(d, grid.most);
  double total = 0;
  for (std::size_t block = 0; block < n; block += kGridBlock) {
    V sums[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
    const auto add = [&](const float* x, const float* w) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        const V value = hn::LoadU(d, x + v * kLanes);
        const V step = hn::Div(value, scale);
        V code = kAnyZero ? hn::Round(hn::Add(step, zero)) : hn::Add(hn::Round(step), zero);
        code = hn::Min(hn::Max(code, lowest), most);
        const V lost = hn::Sub(value, hn::Mul(scale, hn::Sub(code, zero)));
        V square = hn::Mul(lost, lost);
        if constexpr (kWeighted) square = hn::Mul(square, hn::LoadU(d, w + v * kLanes));
        sums[v] = hn::Add(sums[v], square);
      }
    };
    const std::size_t end = std::min(n, block + kGridBlock);
    std::size_t i = block;
    for (; i + kPartialSums <= end; i += kPartialSums) add(values + i, kWeighted ? weights + i : nullptr);
    HWY_ALIGN float parts[kPartialSums];
    if (i < end) {
      // The rest, with what is missing taken out of the sums again: a value of 0 may lie off the grid.
      HWY_ALIGN float x[kPartialSums] = {};
      HWY_ALIGN float w[kPartialSums] = {};
      std::memcpy(x, values + i, (end - i) * sizeof(float));
      if constexpr (kWeighted) std::memcpy(w, weights + i, (end - i) * sizeof(float));
      V before[kVectors];
      for (std::size_t v = 0; v < kVectors; ++v) before[v] = sums[v];
      add(x, w);
      HWY_ALIGN float whole[kPartialSums];
      for (std::size_t v = 0; v < kVectors; ++v) {
        hn::Store(before[v], d, parts + v * kLanes);
        hn::Store(sums[v], d, whole + v * kLanes);
      }
      for (std::size_t k = 0; k < end - i; ++k) parts[k] = whole[k];
    } else {
      for (std::size_t v = 0; v < kVectors; ++v) hn::Store(sums[v], d, parts + v * kLanes);
    }
    Partials partials;
    for (std::size_t k = 0; k < kPartialSums; ++k) partials.sums[k] = static_cast<double>(parts[k]);
    total += add_partials(partials);
    if (total >= enough) break;
  }
  return total;
}

inline double GridError(const float* values, const float* weights, std::size_t n, const IntegerGrid& grid, double enough) {
  if (grid.any_zero)
    return weights != nullptr ? GridErrorOf<true, true>(values, weights, n, grid, enough)
                              : GridErrorOf<true, false>(values, weights, n, grid, enough);
  return weights != nullptr ? GridErrorOf<false, true>(values, weights, n, grid, enough)
                            : GridErrorOf<false, false>(values, weights, n, grid, enough);
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
