#include "merge/row_ranks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

#include "base/check.h"

namespace weft::merge {
namespace {

// Rows up to this long are ranked by comparing all pairs: that is cheaper than filling a histogram.
constexpr std::size_t kPairwiseRow = 24;
// Up to so many undecided entries are ranked by a scan of the row each, more by collecting their buckets.
constexpr std::size_t kFewUndecided = 6;

std::uint32_t magnitude_bits(float x) noexcept { return std::bit_cast<std::uint32_t>(x) & 0x7fffffffU; }

/// How many come before entry i in ascending order.
std::uint32_t rank_of(std::span<const std::uint32_t> keys, std::size_t i) noexcept {
  const std::uint32_t key = keys[i];
  std::uint32_t rank = 0;
  for (std::size_t j = 0; j < i; ++j) rank += static_cast<std::uint32_t>(keys[j] <= key);
  for (std::size_t j = i + 1; j < keys.size(); ++j) rank += static_cast<std::uint32_t>(keys[j] < key);
  return rank;
}

/// Maps magnitudes to buckets, in order: the float's leading bits, counted down from the row's largest. 16 octaves; what lies below shares bucket 0.
struct Buckets {
  int shift;
  std::int32_t offset;
  std::size_t count;

  Buckets(std::size_t row_length, std::uint32_t largest) noexcept {
    int mantissa_bits = 2;  // 4 buckets an octave, more for longer rows so that a bucket holds a few dozen entries at most
    while (mantissa_bits < 12 && (std::size_t{64} << mantissa_bits) < row_length) ++mantissa_bits;
    count = std::size_t{16} << mantissa_bits;
    shift = 23 - mantissa_bits;
    offset = static_cast<std::int32_t>(count) - 1 - static_cast<std::int32_t>(largest >> shift);
  }
  [[nodiscard]] std::size_t of(std::uint32_t key) const noexcept {
    return static_cast<std::size_t>(std::max(0, static_cast<std::int32_t>(key >> shift) + offset));
  }
};

}  // namespace

float as_threshold(double p) noexcept { return static_cast<float>(std::ceil(p * 0x1p24) * 0x1p-24); }

void RowRankMask::apply(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const {
  WEFT_ASSERT(values.size() == uniform.size());
  const std::size_t length = values.size();
  auto& keys = scratch.keys;
  keys.resize(length);
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < length; ++i) {
    keys[i] = magnitude_bits(values[i]);
    largest = std::max(largest, keys[i]);
  }
  if (length <= kPairwiseRow) {
    for (std::size_t i = 0; i < length; ++i)
      if (!(static_cast<double>(uniform[i]) < probability(rank_of(keys, i), length))) values[i] = 0;
    return;
  }

  // Bound the rank of every entry by its bucket, and so its probability.
  const Buckets buckets(length, largest);
  auto& counts = scratch.counts;
  counts.assign(buckets.count, 0);
  for (const std::uint32_t key : keys) ++counts[buckets.of(key)];
  scratch.keep_below.resize(buckets.count);
  scratch.drop_from.resize(buckets.count);
  std::uint32_t rank = 0;
  for (std::size_t b = 0; b < buckets.count; ++b) {
    const std::uint32_t in_bucket = counts[b];
    if (in_bucket == 0) continue;
    scratch.keep_below[b] = as_threshold(probability(rank, length));
    scratch.drop_from[b] = as_threshold(probability(rank + in_bucket - 1, length));
    rank += in_bucket;
  }

  // Decide what the bounds decide; no branches, since both outcomes are common. Whether a zero stays makes no difference.
  auto& undecided = scratch.undecided;
  undecided.resize(length);
  std::size_t num_undecided = 0;
  for (std::size_t i = 0; i < length; ++i) {
    const std::size_t b = buckets.of(keys[i]);
    const float u = uniform[i];
    const bool may_stay = u < scratch.drop_from[b];
    values[i] = may_stay ? values[i] : 0.0F;
    undecided[num_undecided] = static_cast<std::uint32_t>(i);
    num_undecided += static_cast<std::size_t>(may_stay & !(u < scratch.keep_below[b]) & (keys[i] != 0));
  }
  undecided.resize(num_undecided);
  const auto settle = [&](std::uint32_t i, std::uint32_t exact_rank) {
    if (!(static_cast<double>(uniform[i]) < probability(exact_rank, length))) values[i] = 0;
  };
  if (num_undecided <= kFewUndecided) {
    for (const std::uint32_t i : undecided) settle(i, rank_of(keys, i));
    return;
  }

  // Rank the members of the buckets that hold undecided entries. They are collected in order of index, so a bucket of equal magnitudes (common in
  // deltas of 16-bit weights) is in order already.
  constexpr std::uint32_t kNotNeeded = 0xffffffffU;
  auto& next = scratch.next;  // where a bucket's next member goes: its rank, were the bucket in order
  next.assign(buckets.count, kNotNeeded);
  for (const std::uint32_t i : undecided) next[buckets.of(keys[i])] = 0;
  rank = 0;
  for (std::size_t b = 0; b < buckets.count; ++b) {
    if (next[b] != kNotNeeded) next[b] = rank;
    rank += counts[b];
  }
  auto& members = scratch.members;
  members.resize(length);
  for (std::size_t i = 0; i < length; ++i) {
    std::uint32_t& place = next[buckets.of(keys[i])];
    if (place != kNotNeeded) members[place++] = static_cast<std::uint32_t>(i);
  }
  auto& ranks = scratch.ranks;
  ranks.resize(length);
  for (std::size_t b = 0; b < buckets.count; ++b) {
    if (next[b] == kNotNeeded) continue;
    const std::span<std::uint32_t> bucket(members.data() + (next[b] - counts[b]), counts[b]);
    const auto comes_first = [&keys](std::uint32_t i, std::uint32_t j) { return keys[i] != keys[j] ? keys[i] < keys[j] : i < j; };
    if (!std::is_sorted(bucket.begin(), bucket.end(), comes_first)) std::sort(bucket.begin(), bucket.end(), comes_first);
    for (std::size_t k = 0; k < bucket.size(); ++k) ranks[bucket[k]] = next[b] - counts[b] + static_cast<std::uint32_t>(k);
  }
  for (const std::uint32_t i : undecided) settle(i, ranks[i]);
}

void RowRankMask::apply_unbiased(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const {
  WEFT_ASSERT(values.size() == uniform.size());
  const std::size_t length = values.size();
  auto& keys = scratch.keys;
  auto& members = scratch.members;
  keys.resize(length);
  members.resize(length);
  for (std::size_t i = 0; i < length; ++i) {
    keys[i] = magnitude_bits(values[i]);
    members[i] = static_cast<std::uint32_t>(i);
  }
  std::sort(members.begin(), members.end(), [&keys](std::uint32_t i, std::uint32_t j) { return keys[i] != keys[j] ? keys[i] < keys[j] : i < j; });
  for (std::size_t r = 0; r < length; ++r) {
    const std::uint32_t i = members[r];
    const double p = probability(r, length);
    values[i] = static_cast<double>(uniform[i]) < p ? static_cast<float>(static_cast<double>(values[i]) / p) : 0.0F;
  }
}

}  // namespace weft::merge
