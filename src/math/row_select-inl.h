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

/// As MagnitudeKeys; returns about the mean of the magnitudes (in an order of its own).
float KeysAndMean(const float* values, std::size_t n, std::uint32_t* keys) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  auto sum = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto magnitude = hn::Abs(hn::LoadU(d, values + i));
    sum = hn::Add(sum, magnitude);
    hn::StoreU(hn::BitCast(du, magnitude), du, keys + i);
  }
  float lanes[kLanes];
  hn::StoreU(sum, d, lanes);
  float total = 0;
  for (const float lane : lanes) total += lane;
  for (; i < n; ++i) {
    keys[i] = std::bit_cast<std::uint32_t>(values[i]) & 0x7FFFFFFFU;
    total += std::bit_cast<float>(keys[i]);
  }
  return total / static_cast<float>(n);
}

/// bins[i]: where clamp((keys[i] >> shift) + offset, 0, 2^(coarse_bits + fine_bits) - 1) = coarse * 2^fine_bits + fine is counted: fine *
/// 2^coarse_bits + coarse. Lists the entries of which the shift lost bits and returns how many; lossy: [n + 64] (whole vectors are stored).
std::size_t FillBins(const std::uint32_t* keys, std::size_t n, int shift, std::int32_t offset, int coarse_bits, int fine_bits, std::uint32_t* bins,
                     std::uint32_t* lossy) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto plus = hn::Set(d, offset);
  const std::uint32_t fine_mask = (std::uint32_t{1} << fine_bits) - 1;
  const std::int32_t last = (1 << (coarse_bits + fine_bits)) - 1;
  const std::uint32_t lost_mask = (std::uint32_t{1} << shift) - 1;
  const auto steps = hn::Iota(du, 0);
  std::size_t num_lossy = 0;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto key = hn::LoadU(du, keys + i);
    const auto lost = hn::Ne(hn::And(key, hn::Set(du, lost_mask)), hn::Zero(du));
    hn::StoreU(hn::Compress(hn::Add(steps, hn::Set(du, static_cast<std::uint32_t>(i))), lost), du, lossy + num_lossy);
    num_lossy += hn::CountTrue(du, lost);
    const auto place =
        hn::BitCast(du, hn::Min(hn::Max(hn::Add(hn::BitCast(d, hn::ShiftRightSame(key, shift)), plus), hn::Zero(d)), hn::Set(d, last)));
    const auto fine = hn::ShiftLeftSame(hn::And(place, hn::Set(du, fine_mask)), coarse_bits);
    hn::StoreU(hn::Add(fine, hn::ShiftRightSame(place, fine_bits)), du, bins + i);
  }
  for (; i < n; ++i) {
    if ((keys[i] & lost_mask) != 0) lossy[num_lossy++] = static_cast<std::uint32_t>(i);
    const auto place = static_cast<std::uint32_t>(std::clamp(static_cast<std::int32_t>(keys[i] >> shift) + offset, 0, last));
    bins[i] = ((place & fine_mask) << coarse_bits) + (place >> fine_bits);
  }
  return num_lossy;
}

/// sums[c] = the sum of counts[f * num_sums + c] over f < num_rows.
void SumRows(const std::uint32_t* counts, std::size_t num_rows, std::size_t num_sums, std::int32_t* sums) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  static_assert(hn::MaxLanes(d) <= 64);
  for (std::size_t c = 0; c < num_sums; c += hn::MaxLanes(d)) {
    auto sum = hn::Zero(d);
    for (std::size_t f = 0; f < num_rows; ++f) sum = hn::Add(sum, hn::BitCast(d, hn::LoadU(du, counts + f * num_sums + c)));
    hn::StoreU(sum, d, sums + c);
  }
}

/// How many of n < 2^31 keys are at least this.
HWY_INLINE std::size_t CountAtLeast(const std::uint32_t* keys, std::size_t n, std::uint32_t bound) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto limit = hn::Set(d, static_cast<std::int32_t>(bound - 1));
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

/// keys[i] = those of values[i] - origin[i], or 0 where taken[i] has all bits set (it has all or none). Returns the largest.
std::uint32_t ChangeKeys(const float* values, const float* origin, const std::uint32_t* taken, std::size_t n, std::uint32_t* keys) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToFloat<decltype(d)> df;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto all_but_sign = hn::Set(du, 0x7FFFFFFF);
  auto largest = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto change = hn::BitCast(du, hn::Sub(hn::LoadU(df, values + i), hn::LoadU(df, origin + i)));
    const auto key = hn::AndNot(hn::LoadU(du, taken + i), hn::And(change, all_but_sign));
    largest = hn::Max(largest, hn::BitCast(d, key));
    hn::StoreU(key, du, keys + i);
  }
  std::int32_t lanes[kLanes];
  hn::StoreU(largest, d, lanes);
  auto result = static_cast<std::uint32_t>(*std::max_element(lanes, lanes + kLanes));
  for (; i < n; ++i) {
    keys[i] = std::bit_cast<std::uint32_t>(values[i] - origin[i]) & 0x7FFFFFFFU & ~taken[i];
    result = std::max(result, keys[i]);
  }
  return result;
}

/// How keys lie around a bound > 0.
struct Around {
  std::size_t reached;  ///< at least the bound
  std::uint32_t least;  ///< of those (2^31 - 1: none)
  std::uint32_t below;  ///< the greatest below the bound (0: none)
};
HWY_INLINE Around KeysAround(const std::uint32_t* keys, std::size_t n, std::uint32_t bound) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto limit = hn::Set(d, static_cast<std::int32_t>(bound - 1));
  const auto none = hn::Set(d, 0x7FFFFFFF);
  auto least = none;
  auto below = hn::Zero(d);
  std::size_t reached = 0;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto key = hn::BitCast(d, hn::LoadU(du, keys + i));
    const auto reaches = hn::Gt(key, limit);
    reached += hn::CountTrue(d, reaches);
    least = hn::Min(least, hn::IfThenElse(reaches, key, none));
    below = hn::Max(below, hn::IfThenZeroElse(reaches, key));
  }
  std::int32_t lanes[kLanes];
  hn::StoreU(least, d, lanes);
  auto smallest = static_cast<std::uint32_t>(*std::min_element(lanes, lanes + kLanes));
  hn::StoreU(below, d, lanes);
  auto largest = static_cast<std::uint32_t>(*std::max_element(lanes, lanes + kLanes));
  for (; i < n; ++i) {
    const bool reaches = keys[i] >= bound;
    reached += reaches ? 1U : 0U;
    smallest = reaches ? std::min(smallest, keys[i]) : smallest;
    largest = reaches ? largest : std::max(largest, keys[i]);
  }
  return {reached, smallest, largest};
}

/// The largest value that at least `count` keys reach; how many reach it, and how many are above it. By bisection, from `hint`, which costs time at
/// worst; every step goes on to keys that exist, so that ties end it. largest: of the keys.
std::uint32_t ThresholdOfLargest(const std::uint32_t* keys, std::size_t n, std::size_t count, std::uint32_t largest, std::uint32_t hint,
                                 std::size_t* num_reached, std::size_t* num_above) {
  std::uint32_t low = 0;             // reached by at least `count`
  std::uint32_t high = largest + 1;  // reached by fewer
  *num_reached = n;
  *num_above = 0;
  // About an eighth of the hint's magnitude, then twice as much.
  std::uint32_t stride = std::uint32_t{1} << 20;
  std::uint32_t middle = hint;
  bool was_low = false;
  bool was_high = false;
  while (high - low > 1) {
    if (middle <= low || middle >= high) middle = low + (high - low) / 2;
    const Around around = KeysAround(keys, n, middle);
    if (around.reached < count) {
      high = around.below + 1;
      *num_above = around.reached;
      was_high = true;
    } else {
      low = around.least;
      *num_reached = around.reached;
      if (around.reached == count) {
        *num_above = CountAtLeast(keys, n, low + 1);
        return low;
      }
      was_low = true;
    }
    if (was_low && was_high) {
      middle = low + (high - low) / 2;
    } else {
      middle = was_low ? middle + stride : middle - std::min(middle, stride);
      stride *= 2;
    }
  }
  return low;
}

/// The index of the nth key (from 0) that equals this one.
std::size_t IndexOfEqual(const std::uint32_t* keys, std::size_t n, std::uint32_t key, std::size_t nth) {
  const hn::ScalableTag<std::uint32_t> d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const std::size_t found = hn::CountTrue(d, hn::Eq(hn::LoadU(d, keys + i), hn::Set(d, key)));
    if (found > nth) break;
    nth -= found;
  }
  for (; i < n; ++i)
    if (keys[i] == key && nth-- == 0) return i;
  return n;
}

/// Where a key is above the threshold, or at it and its index is at most last_tie: sets taken[i], and result[i] to base + factor (value - base) in
/// float64 (the value itself when factor is 1).
void TakeLargest(const std::uint32_t* keys, std::uint32_t threshold, std::uint32_t last_tie, const float* values, const float* base, double factor,
                 std::size_t n, std::uint32_t* taken, float* result) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::RebindToUnsigned<decltype(df)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto bound = hn::Set(di, static_cast<std::int32_t>(threshold));
  const auto last = hn::Set(di, static_cast<std::int32_t>(last_tie));
  const auto steps = hn::Iota(di, 0);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto key = hn::BitCast(di, hn::LoadU(du, keys + i));
    const auto index = hn::Add(steps, hn::Set(di, static_cast<std::int32_t>(i)));
    const auto tie = hn::AndNot(hn::Gt(index, last), hn::Eq(key, bound));
    const auto kept = hn::Or(hn::Gt(key, bound), tie);
    auto value = hn::LoadU(df, values + i);
    if (factor != 1) {
      const auto origin = LoadAsDouble(d, base + i);
      value = RoundToFloat(df, hn::Add(origin, hn::Mul(hn::Set(d, factor), hn::Sub(hn::PromoteTo(d, value), origin))));
    }
    hn::StoreU(hn::IfThenElse(hn::RebindMask(df, kept), value, hn::LoadU(df, result + i)), df, result + i);
    hn::StoreU(hn::Or(hn::LoadU(du, taken + i), hn::BitCast(du, hn::VecFromMask(di, kept))), du, taken + i);
  }
  for (; i < n; ++i) {
    if (keys[i] < threshold || (keys[i] == threshold && i > last_tie)) continue;
    const double origin = static_cast<double>(base[i]);
    result[i] = factor == 1 ? values[i] : static_cast<float>(origin + factor * (static_cast<double>(values[i]) - origin));
    taken[i] = 0xFFFFFFFFU;
  }
}

/// Zeroes values whose number is not below `high`; lists those that are not zero and whose number is not below `low` either, in order, with their
/// numbers. Returns how many. candidates, numbers: [n + 64] (whole vectors are stored).
std::size_t FindCandidates(float* values, const float* uniform, std::size_t n, float low, float high, std::uint32_t* candidates, float* numbers) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto low_v = hn::Set(d, low);
  const auto high_v = hn::Set(d, high);
  const auto steps = hn::Iota(du, 0);  // a new one for every i is slow in this release
  std::size_t found = 0;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto u = hn::LoadU(d, uniform + i);
    const auto v = hn::IfThenElseZero(hn::Lt(u, high_v), hn::LoadU(d, values + i));
    hn::StoreU(v, d, values + i);
    const auto open = hn::And(hn::Ge(u, low_v), hn::Ne(v, hn::Zero(d)));
    // Not CompressStore: its store with a mask takes a hundred cycles on some CPUs (Zen 4).
    hn::StoreU(hn::Compress(hn::Add(steps, hn::Set(du, static_cast<std::uint32_t>(i))), hn::RebindMask(du, open)), du, candidates + found);
    hn::StoreU(hn::Compress(u, open), d, numbers + found);
    found += hn::CountTrue(d, open);
  }
  for (; i < n; ++i) {
    if (!(uniform[i] < high)) values[i] = 0;
    if (!(uniform[i] >= low) || values[i] == 0) continue;
    candidates[found] = static_cast<std::uint32_t>(i);
    numbers[found++] = uniform[i];
  }
  return found;
}

/// Lists the candidates whose number is not below the second bound of their bin, which go, and keeps in the list those that are not below the first
/// either, whose rank decides. Returns how many these are. dropped: [num_candidates + 64].
std::size_t SettleByBounds(std::uint32_t* candidates, const float* numbers, std::size_t num_candidates, const std::uint32_t* bins,
                           std::uint32_t bin_mask, const float* keep_below, const float* drop_from, std::uint32_t* dropped,
                           std::size_t* num_dropped) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  std::size_t num_gone = 0;
  std::size_t num_open = 0;
  std::size_t k = 0;
  for (; k + kLanes <= num_candidates; k += kLanes) {
    const auto index = hn::LoadU(du, candidates + k);
    const auto bin = hn::BitCast(di, hn::And(hn::GatherIndex(du, bins, hn::BitCast(di, index)), hn::Set(du, bin_mask)));
    const auto u = hn::LoadU(d, numbers + k);
    const auto may_stay = hn::Lt(u, hn::GatherIndex(d, drop_from, bin));
    const auto stays = hn::Lt(u, hn::GatherIndex(d, keep_below, bin));
    const auto goes = hn::RebindMask(du, hn::Not(may_stay));
    const auto open = hn::RebindMask(du, hn::AndNot(stays, may_stay));
    hn::StoreU(hn::Compress(index, goes), du, dropped + num_gone);
    num_gone += hn::CountTrue(du, goes);
    // Never beyond the vector that was just read.
    hn::StoreU(hn::Compress(index, open), du, candidates + num_open);
    num_open += hn::CountTrue(du, open);
  }
  for (; k < num_candidates; ++k) {
    const std::uint32_t index = candidates[k];
    const std::uint32_t bin = bins[index] & bin_mask;
    if (!(numbers[k] < drop_from[bin])) {
      dropped[num_gone++] = index;
    } else if (!(numbers[k] < keep_below[bin])) {
      candidates[num_open++] = index;
    }
  }
  *num_dropped = num_gone;
  return num_open;
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
