#include "math/select.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/select-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/select-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(StoreMagnitudes);
HWY_EXPORT(CountAround);
HWY_EXPORT(FindBetween);

// How it works. Small tensors: one pass keeps all magnitudes, then a radix selection. Large ones: a sample gives for each rank two values that the
// answer almost surely lies between. The next pass counts what is above, keeps what is strictly between (with its index), and counts what equals
// either value by ranges of indices, since heavy ties (zeros, values of a coarse grid) are common and must not be kept one by one. If the answer is
// one of the ties, a last pass looks only at the range of indices that holds it. If the sample misled (the rank is outside) or says too little (too
// much is between), a whole pass counts by the upper bits of the magnitude instead. Then it is known exactly how many elements share them with the
// answer: if few, the next pass keeps those; if many, it counts by the lower bits, which leaves ties only. That always ends.

namespace {

constexpr std::uint64_t kBlock = RankSelector::kSampleBlock;
/// Up to here all magnitudes are kept (16 MiB): of fewer elements a sample would be too small to bracket anything narrowly.
constexpr std::uint64_t kKeepAll = std::uint64_t{1} << 22;
/// Ranges of indices by which ties are counted.
constexpr std::uint64_t kNumRanges = 4096;
/// A range of ties of at most this many elements is searched by listing them (8 MiB).
constexpr std::uint64_t kMaxListed = std::uint64_t{1} << 20;
/// Candidates are kept in chunks of this many, so that no growing copies them.
constexpr std::size_t kCandidateChunk = 1024;
constexpr std::uint64_t kMinCandidates = std::uint64_t{1} << 20;
constexpr std::uint64_t kMaxCandidates = std::uint64_t{1} << 21;
/// What a search holds an element: of those that are all kept or sampled (itself and a copy of its bin), of candidates (itself and a copy to sort),
/// of listed ties (in a list that grows, and in the list of all workers).
constexpr std::uint64_t kBytesOfKept = 8;
constexpr std::uint64_t kBytesOfCandidate = 32;
constexpr std::uint64_t kBytesOfListed = 32;
/// The least that is given to those.
constexpr std::uint64_t kLeastVariable = std::uint64_t{1} << 20;

// The 31 bits of a magnitude are cut into 16 and 15.
constexpr int kLowBits = 15;
constexpr std::size_t kNumHigh = std::size_t{1} << 16;
constexpr std::size_t kNumLow = std::size_t{1} << kLowBits;

// Values beyond every magnitude.
constexpr std::int32_t kBelowAll = -1;
constexpr std::int32_t kAboveAll = std::numeric_limits<std::int32_t>::max();

std::int32_t bits_of(float value) noexcept { return std::bit_cast<std::int32_t>(value) & 0x7FFFFFFF; }
std::size_t high_part(std::int32_t bits) noexcept { return static_cast<std::size_t>(bits) >> kLowBits; }
std::size_t low_part(std::int32_t bits) noexcept { return static_cast<std::size_t>(bits) & (kNumLow - 1); }

/// Where a rank falls in a histogram of descending values: the bin and how many elements are above it. Past the end: bin 0.
struct BinOfRank {
  std::size_t bin = 0;
  std::uint64_t above = 0;
};
BinOfRank find_bin(std::span<const std::uint64_t> histogram, std::uint64_t rank) {
  std::uint64_t above = 0;
  std::size_t bin = histogram.size();
  while (--bin > 0) {
    if (rank < above + histogram[bin]) break;
    above += histogram[bin];
  }
  return {bin, above};
}

/// Order statistics of magnitudes in memory.
class Ordered {
 public:
  explicit Ordered(std::span<const float> magnitudes) : magnitudes_(magnitudes), high_(kNumHigh) {
    for (const float m : magnitudes_) ++high_[high_part(bits_of(m))];
  }

  /// About the value of this rank: the least value of its bin.
  [[nodiscard]] std::int32_t roughly(std::uint64_t rank) const { return static_cast<std::int32_t>(find_bin(high_, rank).bin << kLowBits); }

  struct Value {
    std::int32_t bits = 0;
    std::uint64_t above = 0;  ///< elements larger than it
    std::uint64_t equal = 0;
  };
  /// For each rank its value; one scan for all.
  [[nodiscard]] std::vector<Value> values(std::span<const std::uint64_t> ranks) const {
    std::vector<BinOfRank> bins;
    std::vector<std::vector<std::int32_t>> members;
    std::vector<std::uint16_t> slot_of_bin(kNumHigh, 0);  // 0: not wanted
    for (const std::uint64_t rank : ranks) {
      bins.push_back(find_bin(high_, rank));
      std::uint16_t& slot = slot_of_bin[bins.back().bin];
      if (slot != 0) continue;
      members.emplace_back().reserve(high_[bins.back().bin]);
      slot = static_cast<std::uint16_t>(members.size());
    }
    for (const float m : magnitudes_) {
      const std::int32_t bits = bits_of(m);
      if (const std::uint16_t slot = slot_of_bin[high_part(bits)]; slot != 0) members[slot - 1U].push_back(bits);
    }
    std::vector<Value> values;
    for (std::size_t k = 0; k < ranks.size(); ++k) {
      std::vector<std::int32_t>& in_bin = members[slot_of_bin[bins[k].bin] - 1U];
      const auto nth = in_bin.begin() + static_cast<std::ptrdiff_t>(ranks[k] - bins[k].above);
      std::nth_element(in_bin.begin(), nth, in_bin.end(), std::greater<>());
      const std::int32_t bits = *nth;
      const auto larger = std::count_if(in_bin.begin(), in_bin.end(), [bits](std::int32_t other) { return other > bits; });
      const auto equal = std::count(in_bin.begin(), in_bin.end(), bits);
      values.push_back({bits, bins[k].above + static_cast<std::uint64_t>(larger), static_cast<std::uint64_t>(equal)});
    }
    return values;
  }

 private:
  std::span<const float> magnitudes_;
  std::vector<std::uint64_t> high_;
};

/// An element strictly between two edges.
struct Candidate {
  std::int32_t bits;
  std::uint32_t gap;  ///< number of the edge above it
  std::uint64_t index;
};

/// Ties by ranges of indices.
using Ranges = std::vector<std::uint64_t>;

/// A rank known to be the offset-th (in index order) of the elements of this magnitude within [first, first + length).
struct Tie {
  std::size_t rank_slot = 0;
  std::int32_t bits = 0;
  std::uint64_t offset = 0;
  std::uint64_t first = 0;
  std::uint64_t length = 0;
};

/// A value that the whole pass counts around. Edges are in descending order.
struct Edge {
  std::int32_t bits = 0;
  bool collects = false;        ///< whether elements between this edge and the next are kept
  bool first_of_chain = false;  ///< whether `above` is counted (else it follows from the edge before)
  std::uint64_t above = 0;
  std::uint64_t equal = 0;
  std::uint64_t between = 0;  ///< this edge and the next
};

/// Values that an answer lies between, or at.
struct Interval {
  std::int32_t above = kAboveAll;
  std::int32_t below = kBelowAll;
};

std::uint64_t length_of_ranges(std::uint64_t num_elements) {
  // Multiples of a block, so that a part of a block never spans two ranges.
  const std::uint64_t blocks = (num_elements + kBlock - 1) / kBlock;
  return (blocks + kNumRanges - 1) / kNumRanges * kBlock;
}

/// Gives the memory of a vector back, which assigning {} does not.
template <class T>
void release(std::vector<T>& v) {
  std::vector<T>().swap(v);
}

void add_to(std::vector<std::uint64_t>& sums, std::span<const std::uint64_t> more) {
  for (std::size_t i = 0; i < more.size(); ++i) sums[i] += more[i];
}

/// Scrambles bits: where in its stratum a sample block lies. (The finaliser of splitmix64.)
std::uint64_t scramble(std::uint64_t x) noexcept {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

struct TallyOf final : RankSelector::Tally {
  std::uint64_t elements_seen = 0;
  std::uint64_t num_zeros = 0;
  std::vector<Edge> edges;
  std::vector<Ranges> ranges;
  std::vector<std::vector<Candidate>> candidates;  ///< chunks; the last one has room or too many were found
  std::vector<std::uint32_t> positions;
  std::vector<std::uint64_t> histogram;
  std::vector<std::vector<std::uint64_t>> listed;
};

}  // namespace

struct RankSelector::State {
  enum class Phase { keep_all, sample, bracket, radix_high, radix_low, count_ties, list_ties, done };

  std::uint64_t num_elements = 0;
  std::vector<std::uint64_t> ranks;
  Ties tie_rule = Ties::lower_index_is_larger;
  std::vector<RankedElement> results;
  Phase phase = Phase::done;
  std::uint64_t elements_seen = 0;

  // A rank that depends on how many are not zero: `ranks` holds a place for it until a whole pass has counted.
  std::optional<double> share_of_nonzero;
  bool rank_pending = false;
  std::uint64_t num_zeros = 0;

  // keep_all: all of them; sample: the sample's. Workers write disjoint parts. Allocated when the pass begins, because a job makes the selectors of
  // all its tensors before it runs the first.
  std::vector<float> magnitudes;
  std::size_t num_kept = 0;
  std::mutex allocating;
  std::vector<std::uint64_t> sample_blocks;  ///< ascending

  // What may be held besides the tables (see limit_memory).
  std::uint64_t variable_bytes = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t max_listed = kMaxListed;

  // bracket
  std::vector<Edge> edges;
  std::vector<std::vector<Candidate>> candidates;  ///< chunks of all workers
  std::uint64_t max_candidates = 0;
  std::atomic<std::uint64_t> candidates_granted = 0;
  std::atomic<bool> too_many = false;

  // radix
  std::vector<std::uint64_t> histogram;     ///< of high parts, or of low parts by slot
  std::vector<std::size_t> high_of_slot;    ///< high parts that some rank falls in
  std::vector<std::uint16_t> slot_of_high;  ///< 0: none, else slot + 1
  std::vector<BinOfRank> found_high;        ///< by rank
  bool counted_high = false;                ///< whether the upper bits have been counted

  // ties
  std::vector<Tie> ties;                           ///< unresolved
  std::vector<Ranges> ranges;                      ///< by edge (bracket) or tie (count_ties)
  std::uint64_t range_length = 0;                  ///< of ranges, from the tie's first
  std::vector<std::vector<std::uint64_t>> listed;  ///< by tie

  [[nodiscard]] bool whole_pass() const {
    return phase == Phase::keep_all || phase == Phase::bracket || phase == Phase::radix_high || phase == Phase::radix_low ||
           (phase == Phase::count_ties && ties.front().length == num_elements);
  }

  /// Of `equal` elements of one magnitude the one with `larger` others above it: its place in order of indices.
  [[nodiscard]] std::uint64_t place_by_index(std::uint64_t larger, std::uint64_t equal) const noexcept {
    return tie_rule == Ties::lower_index_is_larger ? larger : equal - 1 - larger;
  }
  void start();
  std::uint64_t limit_memory(std::uint64_t bytes, int workers);
  [[nodiscard]] std::uint64_t num_sample_blocks() const noexcept;
  [[nodiscard]] std::uint64_t most_candidates() const noexcept;
  /// Takes the pending rank from the number of zeros, which is now known. False when there is none, which ends the search.
  bool settle_rank();
  void finish_keep_all();
  void finish_sample();
  void start_bracket(const std::vector<Interval>& intervals);
  void finish_bracket();
  void start_radix();
  void finish_radix_high();
  void finish_radix_low();
  void finish_count_ties();
  void finish_list_ties();
  /// Narrows a tie to one range of its counts.
  void narrow(Tie& tie, const Ranges& counts) const;
  void start_count_ties();
  void resolve_ties();
  /// values: part of one block.
  void add_part(TallyOf& tally, std::uint64_t first, const float* values, std::size_t count);
};

// ---- Starting

std::uint64_t RankSelector::State::num_sample_blocks() const noexcept {
  const std::uint64_t whole_blocks = num_elements / kBlock;
  const std::uint64_t wanted = std::clamp<std::uint64_t>(whole_blocks / 64, std::min<std::uint64_t>(whole_blocks / 8, 128), 512);
  return std::clamp<std::uint64_t>(variable_bytes / (kBytesOfKept * kBlock), 2, std::max<std::uint64_t>(2, wanted));
}

std::uint64_t RankSelector::State::most_candidates() const noexcept {
  const std::uint64_t wanted = std::clamp<std::uint64_t>(num_elements / 16 * ranks.size(), kMinCandidates, kMaxCandidates);
  return std::min(wanted, variable_bytes / kBytesOfCandidate);
}

std::uint64_t RankSelector::State::limit_memory(std::uint64_t bytes, int workers) {
  if (ranks.empty()) return 0;
  const auto tables = static_cast<std::uint64_t>(workers) + 1;
  const std::uint64_t num_ranks = ranks.size();
  // Of the bracket: two edges a rank; of the radix search: the upper bits, or the lower ones of each rank.
  const std::uint64_t counted =
      tables * 8 * std::max({2 * num_ranks * kNumRanges, std::uint64_t{kNumHigh}, num_ranks * kNumLow}) + tables * 4 * kBlock;
  const std::uint64_t fixed = counted + kNumHigh * (sizeof(std::uint64_t) + sizeof(std::uint16_t));
  variable_bytes = std::max(kLeastVariable, bytes > fixed ? bytes - fixed : 0);
  max_listed = std::clamp<std::uint64_t>(variable_bytes / kBytesOfListed / num_ranks, kBlock, kMaxListed);
  start();
  if (phase == Phase::keep_all) return fixed + num_elements * kBytesOfKept;
  return fixed + std::max({num_kept * kBytesOfKept, most_candidates() * kBytesOfCandidate, max_listed * kBytesOfListed * num_ranks});
}

void RankSelector::State::start() {
  results.resize(ranks.size());
  for (const std::uint64_t rank : ranks) {
    if (rank >= num_elements)
      throw Error(ErrorCode::internal, "rank " + std::to_string(rank) + " asked of " + std::to_string(num_elements) + " elements");
  }
  if (ranks.empty()) return;
  if (num_elements <= kKeepAll && num_elements * kBytesOfKept <= variable_bytes) {
    phase = Phase::keep_all;
    num_kept = static_cast<std::size_t>(num_elements);
    return;
  }
  // About a million elements (half of that of the smallest tensors); of huge ones one block of 64, at most 4 million elements.
  phase = Phase::sample;
  const std::uint64_t whole_blocks = num_elements / kBlock;
  const std::uint64_t wanted = num_sample_blocks();
  sample_blocks.clear();
  for (std::uint64_t j = 0; j < wanted; ++j) {
    // One at a random place of each stratum: a regular grid could meet the same columns of every row.
    const std::uint64_t first = j * whole_blocks / wanted;
    const std::uint64_t next = (j + 1) * whole_blocks / wanted;
    sample_blocks.push_back(first + scramble(j ^ (num_elements << 16)) % (next - first));
  }
  num_kept = static_cast<std::size_t>(wanted * kBlock);
}

bool RankSelector::State::settle_rank() {
  if (!rank_pending) return true;
  rank_pending = false;
  const std::uint64_t nonzero = num_elements - num_zeros;
  const auto chosen = static_cast<std::uint64_t>(static_cast<double>(nonzero) * *share_of_nonzero);
  if (chosen != 0) {
    ranks.front() = std::min(chosen, nonzero) - 1;
    return true;
  }
  ranks.clear();
  results.clear();
  release(magnitudes);
  release(histogram);
  release(candidates);
  release(ranges);
  phase = Phase::done;
  return false;
}

// ---- Everything in memory

void RankSelector::State::finish_keep_all() {
  if (rank_pending) num_zeros = static_cast<std::uint64_t>(std::count(magnitudes.begin(), magnitudes.end(), 0.0F));
  if (!settle_rank()) return;
  const std::vector<Ordered::Value> values = Ordered(magnitudes).values(ranks);
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    std::uint64_t offset = place_by_index(ranks[r] - values[r].above, values[r].equal);
    std::size_t index = 0;
    for (;; ++index)
      if (bits_of(magnitudes[index]) == values[r].bits && offset-- == 0) break;
    results[r] = {magnitudes[index], index};
  }
  release(magnitudes);
  phase = Phase::done;
}

// ---- Sample and bracket

void RankSelector::State::finish_sample() {
  const Ordered sample(magnitudes);
  const auto num_sampled = static_cast<double>(magnitudes.size());
  const auto num_blocks = static_cast<double>(sample_blocks.size());
  std::vector<std::uint64_t> wanted;  // ranks in the sample
  struct Bracket {
    bool open_above, open_below;
  };
  std::vector<Bracket> brackets;
  // A pending rank is a share of the elements that are not zero, in the sample as in the whole.
  std::vector<double> expected(sample_blocks.size(), 0.0);  // by block: how many of the pending rank's elements, less a constant
  double pending_position = 0;
  if (rank_pending) {
    for (std::size_t j = 0; j < sample_blocks.size(); ++j) {
      std::uint64_t above = 0;
      std::uint64_t zeros = 0;
      HWY_DYNAMIC_DISPATCH(CountAround)(magnitudes.data() + j * kBlock, kBlock, 0, &above, &zeros);
      expected[j] = *share_of_nonzero * static_cast<double>(above);
      pending_position += expected[j];
    }
    pending_position = std::max(0.0, pending_position - 0.5);
  }
  for (const std::uint64_t rank : ranks) {
    const double position = rank_pending ? pending_position : (static_cast<double>(rank) + 0.5) * num_sampled / static_cast<double>(num_elements);
    // Standard error of the position, from how the blocks differ (rows have scales of their own, so elements of a block are not independent).
    const std::int32_t near = sample.roughly(static_cast<std::uint64_t>(position));
    // Neighbouring blocks are compared, so that a trend along the tensor, which the strata follow, does not count.
    double sum_of_squares = 0;
    double before = 0;
    for (std::size_t j = 0; j < sample_blocks.size(); ++j) {
      std::uint64_t above = 0;
      std::uint64_t equal = 0;
      HWY_DYNAMIC_DISPATCH(CountAround)(magnitudes.data() + j * kBlock, kBlock, near, &above, &equal);
      const double excess = static_cast<double>(above) - expected[j];
      if (j != 0) sum_of_squares += (excess - before) * (excess - before);
      before = excess;
    }
    const double variance = sum_of_squares / 2 * num_blocks / (num_blocks - 1);
    // Six standard errors, more where few blocks give a poor estimate of it, and a constant for the tails where they may give none.
    const double margin = (6 + 48 / num_blocks) * std::sqrt(variance) + 64;
    const bool open_above = position - margin < 0;
    const bool open_below = position + margin >= num_sampled;
    brackets.push_back({open_above, open_below});
    wanted.push_back(open_above ? 0 : static_cast<std::uint64_t>(position - margin));
    wanted.push_back(open_below ? magnitudes.size() - 1 : static_cast<std::uint64_t>(position + margin));
  }
  const std::vector<Ordered::Value> values = sample.values(wanted);
  std::vector<Interval> intervals;
  double sampled_between = 0;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const Ordered::Value& above = values[2 * r];
    const Ordered::Value& below = values[2 * r + 1];
    intervals.push_back({brackets[r].open_above ? kAboveAll : above.bits, brackets[r].open_below ? kBelowAll : below.bits});
    const double from = brackets[r].open_above ? 0.0 : static_cast<double>(above.above + above.equal);
    const double to = brackets[r].open_below ? num_sampled : static_cast<double>(below.above);
    sampled_between += std::max(0.0, to - from);
  }
  release(magnitudes);
  max_candidates = most_candidates();
  if (sampled_between / num_sampled * static_cast<double>(num_elements) * 1.25 > static_cast<double>(max_candidates)) {
    start_radix();
  } else {
    start_bracket(intervals);
  }
}

void RankSelector::State::start_bracket(const std::vector<Interval>& intervals) {
  std::vector<std::int32_t> places;
  for (const Interval& interval : intervals) {
    places.push_back(interval.above);
    places.push_back(interval.below);
  }
  std::sort(places.begin(), places.end(), std::greater<>());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  edges.clear();
  for (const std::int32_t place : places) {
    Edge edge;
    edge.bits = place;
    edge.first_of_chain = edges.empty() || !edges.back().collects;
    edge.collects = std::any_of(intervals.begin(), intervals.end(), [place](const Interval& i) { return place <= i.above && place > i.below; });
    edges.push_back(edge);
  }
  range_length = length_of_ranges(num_elements);
  ranges.assign(edges.size(), Ranges((num_elements + range_length - 1) / range_length));
  candidates.clear();
  candidates_granted = 0;
  too_many = false;
  phase = Phase::bracket;
}

void RankSelector::State::finish_bracket() {
  if (!settle_rank()) return;
  for (std::size_t e = 1; e < edges.size(); ++e)
    if (!edges[e].first_of_chain) edges[e].above = edges[e - 1].above + edges[e - 1].equal + edges[e - 1].between;
  bool missed = too_many.load();
  std::vector<Tie> found_ties;
  struct Inside {
    std::size_t rank_slot;
    std::uint32_t gap;
    std::uint64_t offset;
  };
  std::vector<Inside> found_inside;
  for (std::size_t r = 0; r < ranks.size() && !missed; ++r) {
    const std::uint64_t rank = ranks[r];
    bool found = false;
    for (std::size_t e = 0; e < edges.size() && !found; ++e) {
      const Edge& edge = edges[e];
      if (rank < edge.above) break;
      const std::uint64_t offset = rank - edge.above;
      if (offset < edge.equal) {
        Tie tie{r, edge.bits, place_by_index(offset, edge.equal), 0, num_elements};
        narrow(tie, ranges[e]);
        found_ties.push_back(tie);
        found = true;
      } else if (edge.collects && offset - edge.equal < edge.between) {
        found_inside.push_back({r, static_cast<std::uint32_t>(e), offset - edge.equal});
        found = true;
      }
    }
    missed = !found;
  }
  if (missed) {
    // After exact counts nothing can be missing, unless the elements are no longer those that were counted.
    if (counted_high) throw Error(ErrorCode::internal, "rank selection was shown other elements in a later pass");
    release(candidates);
    start_radix();
    return;
  }
  const bool ascending = tie_rule == Ties::lower_index_is_larger;
  const auto larger = [ascending](const Candidate& a, const Candidate& b) {
    return a.bits != b.bits ? a.bits > b.bits : (a.index < b.index) == ascending && a.index != b.index;
  };
  std::vector<Candidate> in_gap;
  for (std::size_t e = 0; e < edges.size(); ++e) {
    in_gap.clear();
    for (const Inside& wanted : found_inside) {
      if (wanted.gap != e) continue;
      if (in_gap.empty()) {
        in_gap.reserve(static_cast<std::size_t>(edges[e].between));
        for (const std::vector<Candidate>& part : candidates)
          for (const Candidate& candidate : part)
            if (candidate.gap == e) in_gap.push_back(candidate);
      }
      const auto nth = in_gap.begin() + static_cast<std::ptrdiff_t>(wanted.offset);
      std::nth_element(in_gap.begin(), nth, in_gap.end(), larger);
      results[wanted.rank_slot] = {std::bit_cast<float>(nth->bits), nth->index};
    }
  }
  release(candidates);
  ties = std::move(found_ties);
  resolve_ties();
}

// ---- Radix search

void RankSelector::State::start_radix() {
  counted_high = true;
  histogram.assign(kNumHigh, 0);
  phase = Phase::radix_high;
}

void RankSelector::State::finish_radix_high() {
  if (!settle_rank()) return;
  high_of_slot.clear();
  slot_of_high.assign(kNumHigh, 0);
  found_high.clear();
  for (const std::uint64_t rank : ranks) {
    const BinOfRank found = find_bin(histogram, rank);
    found_high.push_back(found);
    if (slot_of_high[found.bin] != 0) continue;
    high_of_slot.push_back(found.bin);
    slot_of_high[found.bin] = static_cast<std::uint16_t>(high_of_slot.size());
  }
  std::uint64_t num_sharing = 0;
  std::vector<Interval> intervals;
  for (const std::size_t high : high_of_slot) {
    num_sharing += histogram[high];
    const auto least = static_cast<std::int32_t>(high << kLowBits);
    intervals.push_back({least + static_cast<std::int32_t>(kNumLow - 1) + 1, least - 1});
  }
  if (num_sharing <= max_candidates) {
    release(histogram);
    // Their number is known, so nothing need stop the workers (whose room, granted in steps, is not all used).
    max_candidates = std::numeric_limits<std::uint64_t>::max();
    start_bracket(intervals);
    return;
  }
  histogram.assign(high_of_slot.size() * kNumLow, 0);
  phase = Phase::radix_low;
}

void RankSelector::State::finish_radix_low() {
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const BinOfRank& high = found_high[r];
    const std::size_t slot = slot_of_high[high.bin] - 1U;
    const std::uint64_t rank_in_high = ranks[r] - high.above;
    const auto counts = std::span(histogram).subspan(slot * kNumLow, kNumLow);
    const BinOfRank low = find_bin(counts, rank_in_high);
    const auto bits = static_cast<std::int32_t>((high.bin << kLowBits) | low.bin);
    ties.push_back({r, bits, place_by_index(rank_in_high - low.above, counts[low.bin]), 0, num_elements});
  }
  release(histogram);
  release(slot_of_high);
  start_count_ties();
}

// ---- Ties

void RankSelector::State::narrow(Tie& tie, const Ranges& counts) const {
  std::size_t range = 0;
  while (range + 1 < counts.size() && tie.offset >= counts[range]) tie.offset -= counts[range++];
  const std::uint64_t end = tie.first + tie.length;
  tie.first += range * range_length;
  tie.length = std::min(range_length, end - tie.first);
}

void RankSelector::State::start_count_ties() {
  range_length = length_of_ranges(ties.front().length);
  ranges.clear();
  for (const Tie& tie : ties) ranges.emplace_back((tie.length + range_length - 1) / range_length);
  phase = Phase::count_ties;
}

void RankSelector::State::finish_count_ties() {
  for (std::size_t t = 0; t < ties.size(); ++t) narrow(ties[t], ranges[t]);
  resolve_ties();
}

void RankSelector::State::resolve_ties() {
  release(ranges);
  if (ties.empty()) {
    phase = Phase::done;
  } else if (range_length > max_listed) {
    start_count_ties();
  } else {
    listed.assign(ties.size(), {});
    phase = Phase::list_ties;
  }
}

void RankSelector::State::finish_list_ties() {
  for (std::size_t t = 0; t < ties.size(); ++t) {
    std::vector<std::uint64_t>& indices = listed[t];
    if (ties[t].offset >= indices.size())
      throw Error(ErrorCode::internal,
                  "rank selection was shown " + std::to_string(indices.size()) + " of at least " + std::to_string(ties[t].offset + 1) + " ties");
    const auto nth = indices.begin() + static_cast<std::ptrdiff_t>(ties[t].offset);
    std::nth_element(indices.begin(), nth, indices.end());
    results[ties[t].rank_slot] = {std::bit_cast<float>(ties[t].bits), *nth};
  }
  release(listed);
  release(ties);
  phase = Phase::done;
}

// ---- The public face

RankSelector::RankSelector(std::uint64_t num_elements, std::vector<std::uint64_t> ranks, Ties ties) : state_(std::make_unique<State>()) {
  state_->num_elements = num_elements;
  state_->ranks = std::move(ranks);
  state_->tie_rule = ties;
  state_->start();
}
RankSelector::RankSelector(std::unique_ptr<State> state) : state_(std::move(state)) {}
RankSelector RankSelector::of_share_of_nonzero(std::uint64_t num_elements, double share) {
  auto state = std::make_unique<State>();
  state->num_elements = num_elements;
  if (num_elements != 0) {
    state->ranks = {0};
    state->share_of_nonzero = share;
    state->rank_pending = true;
  }
  state->start();
  return RankSelector(std::move(state));
}
RankSelector::~RankSelector() = default;
RankSelector::RankSelector(RankSelector&&) noexcept = default;
RankSelector& RankSelector::operator=(RankSelector&&) noexcept = default;

std::uint64_t RankSelector::limit_memory(std::uint64_t bytes, int workers) { return state_->limit_memory(bytes, workers); }

RankSelector::Pass RankSelector::next_pass() const noexcept {
  if (state_->phase == State::Phase::done) return Pass::done;
  return state_->whole_pass() ? Pass::whole : Pass::sample;
}

bool RankSelector::wants_block(std::uint64_t block) const noexcept {
  const State& s = *state_;
  if (s.phase == State::Phase::done) return false;
  if (s.phase == State::Phase::sample) return std::binary_search(s.sample_blocks.begin(), s.sample_blocks.end(), block);
  if (s.whole_pass()) return true;
  const std::uint64_t first = block * kBlock;
  return std::any_of(s.ties.begin(), s.ties.end(), [first](const Tie& tie) { return first + kBlock > tie.first && first < tie.first + tie.length; });
}

std::unique_ptr<RankSelector::Tally> RankSelector::new_tally() const {
  const State& s = *state_;
  auto tally = std::make_unique<TallyOf>();
  switch (s.phase) {
    case State::Phase::bracket:
      tally->edges = s.edges;
      for (const Ranges& ranges : s.ranges) tally->ranges.emplace_back(ranges.size());
      tally->positions.resize(kBlock + 64);
      break;
    case State::Phase::radix_high:
    case State::Phase::radix_low:
      tally->histogram.resize(s.histogram.size());
      break;
    case State::Phase::count_ties:
      for (const Ranges& ranges : s.ranges) tally->ranges.emplace_back(ranges.size());
      break;
    case State::Phase::list_ties:
      tally->listed.resize(s.ties.size());
      tally->positions.resize(kBlock + 64);
      break;
    case State::Phase::keep_all:
    case State::Phase::sample: {
      const std::lock_guard lock(state_->allocating);
      if (state_->magnitudes.empty()) state_->magnitudes.resize(s.num_kept);
      break;
    }
    case State::Phase::done:
      break;
  }
  return tally;
}

void RankSelector::State::add_part(TallyOf& tally, std::uint64_t first, const float* values, std::size_t count) {
  if (rank_pending && (phase == Phase::bracket || phase == Phase::radix_high)) {
    std::uint64_t above = 0;
    HWY_DYNAMIC_DISPATCH(CountAround)(values, count, 0, &above, &tally.num_zeros);
  }
  switch (phase) {
    case Phase::keep_all:
      HWY_DYNAMIC_DISPATCH(StoreMagnitudes)(values, count, magnitudes.data() + first);
      return;
    case Phase::sample: {
      const auto block = std::lower_bound(sample_blocks.begin(), sample_blocks.end(), first / kBlock);
      if (block == sample_blocks.end() || *block != first / kBlock) return;
      const std::uint64_t to = static_cast<std::uint64_t>(block - sample_blocks.begin()) * kBlock + first % kBlock;
      HWY_DYNAMIC_DISPATCH(StoreMagnitudes)(values, count, magnitudes.data() + to);
      return;
    }
    case Phase::bracket:
      for (std::size_t e = 0; e < tally.edges.size(); ++e) {
        Edge& edge = tally.edges[e];
        if (edge.first_of_chain) {
          std::uint64_t equal = 0;
          HWY_DYNAMIC_DISPATCH(CountAround)(values, count, edge.bits, &edge.above, &equal);
          edge.equal += equal;
          tally.ranges[e][first / range_length] += equal;
        }
        if (!edge.collects) continue;
        std::uint64_t equal_next = 0;
        const std::size_t found =
            HWY_DYNAMIC_DISPATCH(FindBetween)(values, count, tally.edges[e + 1].bits, edge.bits, tally.positions.data(), &equal_next);
        edge.between += found;
        tally.edges[e + 1].equal += equal_next;
        tally.ranges[e + 1][first / range_length] += equal_next;
        for (std::size_t i = 0; i < found; ++i) {
          if (tally.candidates.empty() || tally.candidates.back().size() == kCandidateChunk) {
            if (too_many.load(std::memory_order_relaxed)) break;
            if (candidates_granted.fetch_add(kCandidateChunk, std::memory_order_relaxed) + kCandidateChunk > max_candidates) {
              too_many.store(true, std::memory_order_relaxed);
              break;
            }
            tally.candidates.emplace_back().reserve(kCandidateChunk);
          }
          const std::uint32_t at = tally.positions[i];
          tally.candidates.back().push_back({bits_of(values[at]), static_cast<std::uint32_t>(e), first + at});
        }
      }
      return;
    case Phase::radix_high:
      for (std::size_t i = 0; i < count; ++i) ++tally.histogram[high_part(bits_of(values[i]))];
      return;
    case Phase::radix_low:
      for (std::size_t i = 0; i < count; ++i) {
        const std::int32_t bits = bits_of(values[i]);
        if (const std::uint16_t slot = slot_of_high[high_part(bits)]; slot != 0) ++tally.histogram[(slot - 1U) * kNumLow + low_part(bits)];
      }
      return;
    case Phase::count_ties:
      for (std::size_t t = 0; t < ties.size(); ++t) {
        const Tie& tie = ties[t];
        if (first < tie.first || first >= tie.first + tie.length) continue;
        std::uint64_t above = 0;
        HWY_DYNAMIC_DISPATCH(CountAround)(values, count, tie.bits, &above, &tally.ranges[t][(first - tie.first) / range_length]);
      }
      return;
    case Phase::list_ties:
      for (std::size_t t = 0; t < ties.size(); ++t) {
        const Tie& tie = ties[t];
        if (first < tie.first || first >= tie.first + tie.length) continue;
        std::uint64_t equal = 0;
        const std::size_t found = HWY_DYNAMIC_DISPATCH(FindBetween)(values, count, tie.bits - 1, tie.bits + 1, tally.positions.data(), &equal);
        for (std::size_t i = 0; i < found; ++i) tally.listed[t].push_back(first + tally.positions[i]);
      }
      return;
    case Phase::done:
      return;
  }
}

void RankSelector::add(Tally& tally, std::uint64_t first_index, std::span<const float> values) const {
  auto& mine = static_cast<TallyOf&>(tally);
  WEFT_ASSERT(first_index + values.size() <= state_->num_elements);
  mine.elements_seen += values.size();
  // By parts of blocks: each lies in one sample block and in one range of ties.
  for (std::size_t done = 0; done < values.size();) {
    const std::uint64_t first = first_index + done;
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(values.size() - done, kBlock - first % kBlock));
    state_->add_part(mine, first, values.data() + done, count);
    done += count;
  }
}

void RankSelector::merge(Tally& tally) {
  auto& from = static_cast<TallyOf&>(tally);
  State& s = *state_;
  s.elements_seen += from.elements_seen;
  s.num_zeros += from.num_zeros;
  for (std::size_t e = 0; e < from.edges.size(); ++e) {
    s.edges[e].above += from.edges[e].above;
    s.edges[e].equal += from.edges[e].equal;
    s.edges[e].between += from.edges[e].between;
  }
  for (std::size_t k = 0; k < from.ranges.size(); ++k) add_to(s.ranges[k], from.ranges[k]);
  s.candidates.insert(s.candidates.end(), std::make_move_iterator(from.candidates.begin()), std::make_move_iterator(from.candidates.end()));
  add_to(s.histogram, from.histogram);
  for (std::size_t t = 0; t < from.listed.size(); ++t) s.listed[t].insert(s.listed[t].end(), from.listed[t].begin(), from.listed[t].end());
  from = {};
}

void RankSelector::finish_pass() {
  State& s = *state_;
  if (s.whole_pass() && s.elements_seen != s.num_elements) {
    throw Error(ErrorCode::internal,
                "rank selection was shown " + std::to_string(s.elements_seen) + " of " + std::to_string(s.num_elements) + " elements");
  }
  s.elements_seen = 0;
  switch (s.phase) {
    case State::Phase::keep_all:
      return s.finish_keep_all();
    case State::Phase::sample:
      return s.finish_sample();
    case State::Phase::bracket:
      return s.finish_bracket();
    case State::Phase::radix_high:
      return s.finish_radix_high();
    case State::Phase::radix_low:
      return s.finish_radix_low();
    case State::Phase::count_ties:
      return s.finish_count_ties();
    case State::Phase::list_ties:
      return s.finish_list_ties();
    case State::Phase::done:
      return;
  }
}

std::span<const RankedElement> RankSelector::results() const noexcept { return state_->results; }

}  // namespace weft::math
#endif
