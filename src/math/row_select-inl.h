#if defined(WEFT_MATH_ROW_SELECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_ROW_SELECT_INL_H_
#undef WEFT_MATH_ROW_SELECT_INL_H_
#else
#define WEFT_MATH_ROW_SELECT_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// Keys are the bits of magnitudes, below 2^31, so that signed comparisons order them.

std::uint32_t MagnitudeKeys(const float* values, std::size_t n, std::uint32_t* keys) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToFloat<decltype(d)> df;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto all_but_sign = hn::Set(d, 0x7FFFFFFF);
  auto largest = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto key = hn::And(hn::BitCast(d, hn::LoadU(df, values + i)), all_but_sign);
    largest = hn::Max(largest, key);
    hn::StoreU(hn::BitCast(du, key), du, keys + i);
  }
  std::int32_t lanes[kLanes];
  hn::StoreU(largest, d, lanes);
  auto result = static_cast<std::uint32_t>(*std::max_element(lanes, lanes + kLanes));
  for (; i < n; ++i) {
    keys[i] = std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU;
    result = std::max(result, keys[i]);
  }
  return result;
}

/// buckets[i] = max(0, (keys[i] >> shift) + offset).
void FillBuckets(const std::uint32_t* keys, std::size_t n, int shift, std::int32_t offset, std::uint32_t* buckets) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const auto plus = hn::Set(d, offset);
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) {
    const auto high = hn::BitCast(d, hn::ShiftRightSame(hn::LoadU(du, keys + i), shift));
    hn::StoreU(hn::BitCast(du, hn::Max(hn::Add(high, plus), hn::Zero(d))), du, buckets + i);
  }
  for (; i < n; ++i) buckets[i] = static_cast<std::uint32_t>(std::max(0, static_cast<std::int32_t>(keys[i] >> shift) + offset));
}

/// How many of n < 2^31 keys are at least this.
HWY_INLINE std::size_t CountAtLeast(const std::uint32_t* keys, std::size_t n, std::uint32_t bound) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto limit = hn::Set(d, static_cast<std::int32_t>(bound) - 1);
  auto count0 = hn::Zero(d);
  auto count1 = hn::Zero(d);
  std::size_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    count0 = hn::Sub(count0, hn::VecFromMask(d, hn::Gt(hn::BitCast(d, hn::LoadU(du, keys + i)), limit)));
    count1 = hn::Sub(count1, hn::VecFromMask(d, hn::Gt(hn::BitCast(d, hn::LoadU(du, keys + i + kLanes)), limit)));
  }
  std::int32_t lanes[kLanes];
  hn::StoreU(hn::Add(count0, count1), d, lanes);
  std::size_t count = 0;
  for (const std::int32_t lane : lanes) count += static_cast<std::size_t>(lane);
  for (; i < n; ++i) count += keys[i] >= bound ? 1U : 0U;
  return count;
}

/// How many come before entry i in ascending order: smaller ones, and equal ones with a lower index.
std::size_t RankOf(const std::uint32_t* keys, std::size_t n, std::size_t i) {
  const std::uint32_t key = keys[i];
  return (i - CountAtLeast(keys, i, key + 1)) + (n - i - CountAtLeast(keys + i, n - i, key));
}

/// The largest value that at least `count` keys reach, by bisection; how many reach it, and how many are above it.
std::uint32_t ThresholdOfLargest(const std::uint32_t* keys, std::size_t n, std::size_t count, std::size_t* num_reached, std::size_t* num_above) {
  std::uint32_t low = 0;             // reached by at least `count`
  std::uint32_t high = 0x80000000U;  // reached by fewer
  *num_reached = n;
  *num_above = 0;
  while (high - low > 1) {
    const std::uint32_t middle = low + (high - low) / 2;
    const std::size_t reached = CountAtLeast(keys, n, middle);
    if (reached < count) {
      high = middle;
      *num_above = reached;
      continue;
    }
    low = middle;
    *num_reached = reached;
    if (reached > count) continue;
    // These are the ones; the threshold is the least of them.
    std::uint32_t least = 0x7FFFFFFFU;
    for (std::size_t i = 0; i < n; ++i) least = std::min(least, keys[i] >= middle ? keys[i] : 0x7FFFFFFFU);
    *num_above = CountAtLeast(keys, n, least + 1);
    return least;
  }
  return low;
}

/// Zeroes values whose number is not below `high`; lists those that are not zero and whose number is not below `low` either, in order. Returns how
/// many. candidates: [n + 64] (whole vectors are stored).
std::size_t FindCandidates(float* values, const float* uniform, std::size_t n, float low, float high, std::uint32_t* candidates) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto low_v = hn::Set(d, low);
  const auto high_v = hn::Set(d, high);
  std::size_t found = 0;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto u = hn::LoadU(d, uniform + i);
    const auto v = hn::IfThenElseZero(hn::Lt(u, high_v), hn::LoadU(d, values + i));
    hn::StoreU(v, d, values + i);
    const auto open = hn::And(hn::Ge(u, low_v), hn::Ne(v, hn::Zero(d)));
    // Not CompressStore: its store with a mask takes a hundred cycles on some CPUs (Zen 4).
    hn::StoreU(hn::Compress(hn::Iota(du, static_cast<std::uint32_t>(i)), hn::RebindMask(du, open)), du, candidates + found);
    found += hn::CountTrue(d, open);
  }
  for (; i < n; ++i) {
    if (!(uniform[i] < high)) values[i] = 0;
    if (uniform[i] >= low && values[i] != 0) candidates[found++] = static_cast<std::uint32_t>(i);
  }
  return found;
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
