#include "math/row_select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

#include "base/check.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/row_select-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/row_select-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(MagnitudeKeys);
HWY_EXPORT(FillBuckets);
HWY_EXPORT(RankOf);
HWY_EXPORT(ThresholdOfLargest);
HWY_EXPORT(FindCandidates);

namespace {

// Rows up to this long are ranked entry by entry: that is cheaper than a histogram.
constexpr std::size_t kShortRow = 48;
// Up to so many entries are ranked by a scan of the row each, more by collecting the members of their buckets. A scan is a tenth of that.
constexpr std::size_t kFewToRank = 24;
// What whole vectors may write past the end of a list.
constexpr std::size_t kPadding = 64;

/// Maps magnitudes to buckets, in order: the float's leading bits, counted down from the row's largest. 16 octaves; what lies below shares bucket 0.
struct Buckets {
  int shift;
  std::int32_t offset;
  std::size_t count;

  Buckets(std::size_t row_length, std::uint32_t largest) noexcept {
    int mantissa_bits = 2;  // 4 buckets an octave, more for longer rows so that a bucket holds a few dozen entries at most
    while (mantissa_bits < 12 && (std::size_t{128} << mantissa_bits) < row_length) ++mantissa_bits;
    count = std::size_t{16} << mantissa_bits;
    shift = 23 - mantissa_bits;
    offset = static_cast<std::int32_t>(count) - 1 - static_cast<std::int32_t>(largest >> shift);
  }
};

/// counts[b], b < num_buckets. Four tables in turn, because adding to one counter again and again waits for its own store.
void count_buckets(std::span<const std::uint32_t> buckets, std::size_t num_buckets, std::vector<std::uint32_t>& counts) {
  counts.assign(4 * num_buckets, 0);
  std::uint32_t* const c0 = counts.data();
  std::uint32_t* const c1 = c0 + num_buckets;
  std::uint32_t* const c2 = c1 + num_buckets;
  std::uint32_t* const c3 = c2 + num_buckets;
  std::size_t i = 0;
  for (; i + 4 <= buckets.size(); i += 4) {
    ++c0[buckets[i]];
    ++c1[buckets[i + 1]];
    ++c2[buckets[i + 2]];
    ++c3[buckets[i + 3]];
  }
  for (; i < buckets.size(); ++i) ++c0[buckets[i]];
  for (std::size_t b = 0; b < num_buckets; ++b) c0[b] += c1[b] + c2[b] + c3[b];
}

// What makes a float32 surely smaller or larger than the probability that it stands for: that is lowest + slope * rank with five roundings at most,
// each of 2^-24 of the result, since no term is negative.
constexpr float kBelow = 1 - 0x1p-21F;
constexpr float kAbove = 1 + 0x1p-21F;

}  // namespace

std::uint32_t magnitude_keys(std::span<const float> values, std::span<std::uint32_t> keys) {
  WEFT_ASSERT(values.size() == keys.size());
  return HWY_DYNAMIC_DISPATCH(MagnitudeKeys)(values.data(), values.size(), keys.data());
}

LargestKeys largest_keys(std::span<const std::uint32_t> keys, std::size_t count) {
  WEFT_ASSERT(count >= 1 && count <= keys.size());
  std::size_t num_reached = 0;
  std::size_t num_above = 0;
  const std::uint32_t threshold = HWY_DYNAMIC_DISPATCH(ThresholdOfLargest)(keys.data(), keys.size(), count, &num_reached, &num_above);
  return {threshold, num_reached - num_above, count - num_above};
}

float as_threshold(double p) noexcept { return static_cast<float>(std::ceil(p * 0x1p24) * 0x1p-24); }

void RowRankMask::apply(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const {
  WEFT_ASSERT(values.size() == uniform.size());
  const std::size_t length = values.size();
  auto& keys = scratch.keys;
  keys.resize(length);
  const std::uint32_t largest = magnitude_keys(values, keys);

  // Most numbers decide alone; whether a zero stays makes no difference.
  auto& candidates = scratch.candidates;
  candidates.resize(length + kPadding);
  const double lowest = length < 2 ? density_ : density_ - epsilon_;
  const double highest = length < 2 ? density_ : density_ + epsilon_;
  std::size_t num_candidates = HWY_DYNAMIC_DISPATCH(FindCandidates)(values.data(), uniform.data(), length, static_cast<float>(lowest) * kBelow,
                                                                    static_cast<float>(highest) * kAbove, candidates.data());
  const auto settle = [&](std::uint32_t i, std::uint64_t rank) {
    if (!(static_cast<double>(uniform[i]) < probability(rank, length))) values[i] = 0;
  };
  const auto settle_by_scan = [&] {
    for (const std::uint32_t i : std::span(candidates).first(num_candidates)) settle(i, HWY_DYNAMIC_DISPATCH(RankOf)(keys.data(), length, i));
  };
  if (length <= kShortRow || num_candidates <= kFewToRank) return settle_by_scan();

  // Bound the rank of the others by their bucket, and so their probability.
  const Buckets map(length, largest);
  scratch.buckets.resize(length);
  const std::span<std::uint32_t> buckets(scratch.buckets);
  HWY_DYNAMIC_DISPATCH(FillBuckets)(keys.data(), length, map.shift, map.offset, buckets.data());
  count_buckets(buckets, map.count, scratch.counts);
  const auto counts = std::span(scratch.counts).first(map.count);
  scratch.keep_below.resize(map.count);
  scratch.drop_from.resize(map.count);
  scratch.ends.resize(map.count);
  std::int32_t end = 0;
  for (std::size_t b = 0; b < map.count; ++b) scratch.ends[b] = end += static_cast<std::int32_t>(counts[b]);
  const auto lowest_f = static_cast<float>(lowest);
  const auto slope = static_cast<float>(2 * epsilon_ / static_cast<double>(length - 1));
  for (std::size_t b = 0; b < map.count; ++b) {
    const std::int32_t begin = scratch.ends[b] - static_cast<std::int32_t>(counts[b]);
    scratch.keep_below[b] = (lowest_f + slope * static_cast<float>(begin)) * kBelow;
    scratch.drop_from[b] = (lowest_f + slope * static_cast<float>(scratch.ends[b])) * kAbove;  // of the rank after its last, near enough
  }
  std::size_t num_open = 0;
  for (std::size_t k = 0; k < num_candidates; ++k) {
    const std::uint32_t i = candidates[k];
    const float u = uniform[i];
    const auto may_stay = static_cast<std::uint32_t>(u < scratch.drop_from[buckets[i]]);
    const auto stays = static_cast<std::uint32_t>(u < scratch.keep_below[buckets[i]]);
    // No branches: both outcomes are common.
    values[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(values[i]) & (0U - may_stay));
    candidates[num_open] = i;
    num_open += may_stay & (stays ^ 1U);
  }
  num_candidates = num_open;
  if (num_candidates <= kFewToRank) return settle_by_scan();

  // Rank the members of the buckets that hold the rest. They are collected in order of index, so a bucket of equal magnitudes (common in changes of
  // 16-bit weights) is in order already.
  constexpr std::uint32_t kNotNeeded = 0xffffffffU;
  const auto open = std::span(candidates).first(num_candidates);
  auto& next = scratch.next;  // where a bucket's next member goes: its rank, were the bucket in order
  next.assign(map.count, kNotNeeded);
  for (const std::uint32_t i : open) next[buckets[i]] = 0;
  for (std::size_t b = 0; b < map.count; ++b)
    if (next[b] != kNotNeeded) next[b] = static_cast<std::uint32_t>(scratch.ends[b]) - counts[b];
  auto& members = scratch.members;
  members.resize(length);
  for (std::size_t i = 0; i < length; ++i) {
    std::uint32_t& place = next[buckets[i]];
    if (place != kNotNeeded) members[place++] = static_cast<std::uint32_t>(i);
  }
  auto& ranks = scratch.ranks;
  ranks.resize(length);
  for (std::size_t b = 0; b < map.count; ++b) {
    if (next[b] == kNotNeeded) continue;
    const std::uint32_t first = next[b] - counts[b];
    const std::span<std::uint32_t> bucket(members.data() + first, counts[b]);
    const auto comes_first = [&keys](std::uint32_t i, std::uint32_t j) { return keys[i] != keys[j] ? keys[i] < keys[j] : i < j; };
    if (!std::is_sorted(bucket.begin(), bucket.end(), comes_first)) std::sort(bucket.begin(), bucket.end(), comes_first);
    for (std::size_t k = 0; k < bucket.size(); ++k) ranks[bucket[k]] = first + static_cast<std::uint32_t>(k);
  }
  for (const std::uint32_t i : open) settle(i, ranks[i]);
}

void RowRankMask::apply_unbiased(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const {
  WEFT_ASSERT(values.size() == uniform.size());
  const std::size_t length = values.size();
  auto& keys = scratch.keys;
  auto& members = scratch.members;
  keys.resize(length);
  members.resize(length);
  magnitude_keys(values, keys);
  for (std::size_t i = 0; i < length; ++i) members[i] = static_cast<std::uint32_t>(i);
  std::sort(members.begin(), members.end(), [&keys](std::uint32_t i, std::uint32_t j) { return keys[i] != keys[j] ? keys[i] < keys[j] : i < j; });
  for (std::size_t r = 0; r < length; ++r) {
    const std::uint32_t i = members[r];
    const double p = probability(r, length);
    values[i] = static_cast<double>(uniform[i]) < p ? static_cast<float>(static_cast<double>(values[i]) / p) : 0.0F;
  }
}

}  // namespace weft::math
#endif
