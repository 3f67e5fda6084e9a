#include "math/row_select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

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
HWY_EXPORT(KeysAndMean);
HWY_EXPORT(FillBins);
HWY_EXPORT(SumRows);
HWY_EXPORT(RankOf);
HWY_EXPORT(ChangeKeys);
HWY_EXPORT(ThresholdOfLargest);
HWY_EXPORT(IndexOfEqual);
HWY_EXPORT(TakeLargest);
HWY_EXPORT(FindCandidates);
HWY_EXPORT(SettleByBounds);

namespace {

// Rows up to this long are ranked entry by entry: that is cheaper than a histogram.
constexpr std::size_t kShortRow = 48;
// Up to so many entries are ranked by a scan of the row each, more by sorting it.
constexpr std::size_t kFewToRank = 24;
constexpr std::size_t kManyToRank = 96;
// What whole vectors may write past the end of a list.
constexpr std::size_t kPadding = 64;

/// Maps magnitudes to bins, in order: the float's leading bits, in the 8 octaves around the row's mean that hold nearly all; what lies below or above
/// shares the first or the last. Coarse bins bound ranks; each is made of fine ones, which as a rule hold one value only where weights of 16 bits
/// were subtracted.
struct Bins {
  int coarse_bits;
  int fine_bits;
  int shift;
  std::int32_t offset;

  Bins(std::size_t row_length, float mean) noexcept {
    int mantissa_bits = 2;  // 4 coarse bins an octave, more for longer rows so that one holds a few dozen entries at most
    while (mantissa_bits < 12 && (std::size_t{128} << mantissa_bits) < row_length) ++mantissa_bits;
    coarse_bits = 3 + mantissa_bits;
    fine_bits = std::clamp(8 - mantissa_bits, 2, 4);
    shift = 23 - mantissa_bits - fine_bits;
    constexpr std::int32_t kOctavesAbove = 4;
    offset = static_cast<std::int32_t>(num_coarse() * num_fine()) -
             static_cast<std::int32_t>((std::bit_cast<std::uint32_t>(mean) >> 23) + kOctavesAbove) * (1 << (23 - shift));
  }
  [[nodiscard]] std::size_t num_coarse() const noexcept { return std::size_t{1} << coarse_bits; }
  [[nodiscard]] std::size_t num_fine() const noexcept { return std::size_t{1} << fine_bits; }
};

// What makes a float32 surely smaller or larger than the probability that it stands for: that is lowest + slope * rank with five roundings at most,
// each of 2^-24 of the result, since no term is negative.
constexpr float kBelow = 1 - 0x1p-21F;
constexpr float kAbove = 1 + 0x1p-21F;

}  // namespace

std::uint32_t magnitude_keys(std::span<const float> values, std::span<std::uint32_t> keys) {
  WEFT_ASSERT(values.size() == keys.size());
  return HWY_DYNAMIC_DISPATCH(MagnitudeKeys)(values.data(), values.size(), keys.data());
}

std::uint32_t change_keys(std::span<const float> values, std::span<const float> origin, std::span<const std::uint32_t> taken,
                          std::span<std::uint32_t> keys) {
  WEFT_ASSERT(values.size() == keys.size() && origin.size() == keys.size() && taken.size() == keys.size());
  return HWY_DYNAMIC_DISPATCH(ChangeKeys)(values.data(), origin.data(), taken.data(), values.size(), keys.data());
}

LargestKeys largest_keys(std::span<const std::uint32_t> keys, std::size_t count, std::uint32_t largest, std::uint32_t hint) {
  WEFT_ASSERT(count >= 1 && count <= keys.size() && keys.size() < 0x80000000U);
  std::size_t num_reached = 0;
  std::size_t num_above = 0;
  const std::uint32_t threshold = HWY_DYNAMIC_DISPATCH(ThresholdOfLargest)(keys.data(), keys.size(), count, largest, hint, &num_reached, &num_above);
  std::size_t last_tie = keys.size() - 1;
  if (num_reached > count) last_tie = HWY_DYNAMIC_DISPATCH(IndexOfEqual)(keys.data(), keys.size(), threshold, count - num_above - 1);
  return {threshold, static_cast<std::uint32_t>(last_tie)};
}

void take_largest(std::span<const std::uint32_t> keys, const LargestKeys& which, std::span<const float> values, std::span<const float> base,
                  double factor, std::span<std::uint32_t> taken, std::span<float> result) {
  WEFT_ASSERT(values.size() == keys.size() && base.size() == keys.size() && taken.size() == keys.size() && result.size() == keys.size());
  HWY_DYNAMIC_DISPATCH(TakeLargest)
  (keys.data(), which.threshold, which.last_tie, values.data(), base.data(), factor, keys.size(), taken.data(), result.data());
}

float as_threshold(double p) noexcept { return static_cast<float>(std::ceil(p * 0x1p24) * 0x1p-24); }

void RowRankMask::apply(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const {
  WEFT_ASSERT(values.size() == uniform.size());
  const std::size_t length = values.size();
  auto& keys = scratch.keys;
  keys.resize(length);
  const float mean = HWY_DYNAMIC_DISPATCH(KeysAndMean)(values.data(), length, keys.data());

  // Most numbers decide alone; whether a zero stays makes no difference.
  auto& candidates = scratch.candidates;
  candidates.resize(length + kPadding);
  scratch.numbers.resize(length + kPadding);
  const double lowest = length < 2 ? density_ : density_ - epsilon_;
  const double highest = length < 2 ? density_ : density_ + epsilon_;
  std::size_t num_candidates = HWY_DYNAMIC_DISPATCH(FindCandidates)(values.data(), uniform.data(), length, static_cast<float>(lowest) * kBelow,
                                                                    static_cast<float>(highest) * kAbove, candidates.data(), scratch.numbers.data());
  const auto settle = [&](std::uint32_t i, std::uint64_t rank) {
    if (!(static_cast<double>(uniform[i]) < probability(rank, length))) values[i] = 0;
  };
  const auto settle_by_scan = [&] {
    for (const std::uint32_t i : std::span(candidates).first(num_candidates)) settle(i, HWY_DYNAMIC_DISPATCH(RankOf)(keys.data(), length, i));
  };
  if (length <= kShortRow || num_candidates <= kFewToRank) return settle_by_scan();

  const Bins bins(length, mean);
  const std::size_t num_coarse = bins.num_coarse();
  const std::size_t num_bins = num_coarse * bins.num_fine();
  scratch.bins.resize(length);
  scratch.places.resize(length);
  scratch.listed.resize(length + kPadding);
  const std::size_t num_lossy = HWY_DYNAMIC_DISPATCH(FillBins)(keys.data(), length, bins.shift, bins.offset, bins.coarse_bits, bins.fine_bits,
                                                               scratch.bins.data(), scratch.listed.data());
  const std::uint32_t* const bin_of = scratch.bins.data();
  // An entry's place among those of its bin, in order of index. The two halves of the row are counted apart, because adding to one counter again and
  // again waits for its own store.
  scratch.counts.assign(2 * num_bins, 0);
  std::uint32_t* const counts = scratch.counts.data();
  std::uint32_t* const counts_of_second = counts + num_bins;
  std::uint32_t* const places = scratch.places.data();
  const std::size_t half = length / 2;
  for (std::size_t i = 0; i < half; ++i) {
    places[i] = counts[bin_of[i]]++;
    places[half + i] = counts_of_second[bin_of[half + i]]++;
  }
  if (length % 2 != 0) places[length - 1] = counts_of_second[bin_of[length - 1]]++;

  // Bound the rank of the candidates by their coarse bin, and so their probability.
  scratch.begins.resize(num_coarse + 1);
  scratch.keep_below.resize(num_coarse);
  scratch.drop_from.resize(num_coarse);
  std::int32_t* const begins = scratch.begins.data();
  HWY_DYNAMIC_DISPATCH(SumRows)(counts, 2 * bins.num_fine(), num_coarse, scratch.begins.data());
  std::int32_t before = 0;
  for (std::size_t b = 0; b <= num_coarse; ++b) before += std::exchange(begins[b], before);
  const auto lowest_f = static_cast<float>(lowest);
  const auto slope = static_cast<float>(2 * epsilon_ / static_cast<double>(length - 1));
  float* const keep_below = scratch.keep_below.data();
  float* const drop_from = scratch.drop_from.data();
  for (std::size_t b = 0; b < num_coarse; ++b) keep_below[b] = (lowest_f + slope * static_cast<float>(begins[b])) * kBelow;
  // Of the rank after its last, near enough.
  for (std::size_t b = 0; b < num_coarse; ++b) drop_from[b] = (lowest_f + slope * static_cast<float>(begins[b + 1])) * kAbove;
  scratch.dropped.resize(num_candidates + kPadding);
  std::size_t num_dropped = 0;
  const std::size_t num_open =
      HWY_DYNAMIC_DISPATCH(SettleByBounds)(candidates.data(), scratch.numbers.data(), num_candidates, bin_of,
                                           static_cast<std::uint32_t>(num_coarse - 1), keep_below, drop_from, scratch.dropped.data(), &num_dropped);
  for (const std::uint32_t i : std::span(scratch.dropped).first(num_dropped)) values[i] = 0;

  // Where a fine bin holds one entry, or equal ones, the counts give the rank. Entries that share a bin are equal when the shift lost nothing of
  // them, except in the first bin and the last.
  constexpr std::uint32_t kMixed = 0x80000000U;
  for (const std::uint32_t i : std::span(scratch.listed).first(num_lossy)) counts[bin_of[i]] |= kMixed;
  counts[0] |= kMixed;
  counts[num_bins - 1] |= kMixed;
  num_candidates = 0;
  for (const std::uint32_t i : std::span(candidates).first(num_open)) {
    const std::uint32_t bin = bin_of[i];
    if ((counts[bin] & kMixed) != 0 && (counts[bin] & ~kMixed) + counts_of_second[bin] != 1) {
      candidates[num_candidates++] = i;
      continue;
    }
    std::uint64_t rank = places[i] + (i < half ? 0 : counts[bin] & ~kMixed);
    std::size_t below = bin & (num_coarse - 1);
    rank += static_cast<std::uint64_t>(begins[below]);
    for (; below < bin; below += num_coarse) rank += (counts[below] & ~kMixed) + counts_of_second[below];
    settle(i, rank);
  }
  if (num_candidates <= kManyToRank) return settle_by_scan();
  const std::span<const std::uint32_t> order = ascending(scratch);
  scratch.places.resize(length);
  for (std::size_t r = 0; r < length; ++r) scratch.places[order[r]] = static_cast<std::uint32_t>(r);
  for (const std::uint32_t i : std::span(candidates).first(num_candidates)) settle(i, scratch.places[i]);
}

std::span<const std::uint32_t> RowRankMask::ascending(Scratch& scratch) {
  const std::vector<std::uint32_t>& keys = scratch.keys;
  scratch.order.resize(keys.size());
  std::iota(scratch.order.begin(), scratch.order.end(), 0U);
  std::sort(scratch.order.begin(), scratch.order.end(),
            [&keys](std::uint32_t i, std::uint32_t j) { return keys[i] != keys[j] ? keys[i] < keys[j] : i < j; });
  return scratch.order;
}

void RowRankMask::apply_unbiased(std::span<float> values, std::span<const float> uniform, Scratch& scratch) const {
  WEFT_ASSERT(values.size() == uniform.size());
  const std::size_t length = values.size();
  scratch.keys.resize(length);
  magnitude_keys(values, scratch.keys);
  const std::span<const std::uint32_t> order = ascending(scratch);
  for (std::size_t r = 0; r < length; ++r) {
    const std::uint32_t i = order[r];
    const double p = probability(r, length);
    values[i] = static_cast<double>(uniform[i]) < p ? static_cast<float>(static_cast<double>(values[i]) / p) : 0.0F;
  }
}

}  // namespace weft::math
#endif
