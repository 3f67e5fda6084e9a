#include "math/select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string_view>
#include <vector>

#include "kernel_checks.h"
#include "weft/error.h"

namespace weft::math {
namespace {

using test::on_every_target;
using test::Random;
using Ties = RankSelector::Ties;

/// What a run took.
struct Selected {
  std::vector<RankedElement> results;
  int passes = 0;
};

/// Drives a selector as an engine would: several workers, tiles of an odd size, out of order.
/// fill(first, span): writes the elements first ...
Selected drive(RankSelector selector, std::uint64_t n, const std::function<void(std::uint64_t, std::span<float>)>& fill, std::size_t tile,
               std::size_t workers) {
  Selected run;
  std::vector<float> values(tile);
  while (selector.next_pass() != RankSelector::Pass::done) {
    if (++run.passes > 7) {
      ADD_FAILURE() << "more than seven passes";
      break;
    }
    const bool whole = selector.next_pass() == RankSelector::Pass::whole;
    std::vector<std::unique_ptr<RankSelector::Tally>> tallies;
    for (std::size_t w = 0; w < workers; ++w) tallies.push_back(selector.new_tally());
    const std::uint64_t num_tiles = (n + tile - 1) / tile;
    for (std::uint64_t t = 0; t < num_tiles; ++t) {
      const std::uint64_t first = (num_tiles - 1 - t) * tile;
      const auto part = std::span(values).first(static_cast<std::size_t>(std::min<std::uint64_t>(tile, n - first)));
      bool wanted = whole;
      for (std::uint64_t b = first / RankSelector::kSampleBlock; b * RankSelector::kSampleBlock < first + part.size(); ++b)
        wanted = wanted || selector.wants_block(b);
      if (!wanted) continue;
      fill(first, part);
      selector.add(*tallies[t % workers], first, part);
    }
    for (const auto& tally : tallies) selector.merge(*tally);
    selector.finish_pass();
  }
  run.results.assign(selector.results().begin(), selector.results().end());
  return run;
}

Selected select(std::uint64_t n, const std::vector<std::uint64_t>& ranks, const std::function<void(std::uint64_t, std::span<float>)>& fill,
                Ties ties = Ties::lower_index_is_larger, std::size_t tile = 8192, std::size_t workers = 3) {
  return drive(RankSelector(n, ranks, ties), n, fill, tile, workers);
}

Selected select(const std::vector<float>& x, const std::vector<std::uint64_t>& ranks, Ties ties = Ties::lower_index_is_larger,
                std::size_t tile = 8192) {
  return select(
      x.size(), ranks,
      [&x](std::uint64_t first, std::span<float> out) { std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(first), out.size(), out.begin()); }, ties,
      tile);
}

/// All elements, the largest first. The bits of a magnitude are ordered as it is.
std::vector<std::uint64_t> sorted_indices(const std::vector<float>& x, Ties ties) {
  std::vector<std::uint64_t> keys(x.size());
  const std::uint64_t flip = ties == Ties::lower_index_is_larger ? 0xFFFFFFFF : 0;
  for (std::size_t i = 0; i < x.size(); ++i) keys[i] = std::uint64_t{std::bit_cast<std::uint32_t>(std::abs(x[i]))} << 32 | (i ^ flip);
  std::sort(keys.begin(), keys.end(), std::greater<>());
  for (std::uint64_t& key : keys) key = (key & 0xFFFFFFFF) ^ flip;
  return keys;
}

/// Ranks at the ends, in the middle and next to each other.
std::vector<std::uint64_t> some_ranks(std::uint64_t n) {
  std::vector<std::uint64_t> ranks = {0, n / 5, n / 2, n - 1 - n / 10, n - 1};
  if (n / 2 + 1 < n) ranks.push_back(n / 2 + 1);
  return ranks;
}

void expect_right(const std::vector<float>& x, const std::vector<std::uint64_t>& ranks, const std::string& what, int max_passes = 7,
                  std::size_t tile = 8192) {
  for (const Ties ties : {Ties::lower_index_is_larger, Ties::lower_index_is_smaller}) {
    const std::vector<std::uint64_t> order = sorted_indices(x, ties);
    const Selected run = select(x, ranks, ties, tile);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      ASSERT_EQ(run.results[r].index, order[ranks[r]]) << what << ", rank " << ranks[r] << " of " << x.size();
      ASSERT_EQ(run.results[r].magnitude, std::abs(x[order[ranks[r]]])) << what << ", rank " << ranks[r] << " of " << x.size();
    }
    ASSERT_LE(run.passes, max_passes) << what;
  }
}

/// Tensors as they occur: smooth, zero in part, on a coarse grid, constant, rows of differing scale.
struct Kind {
  const char* name;
  std::function<float(Random&, std::size_t)> element;
};
std::vector<Kind> kinds() {
  return {
      {"normal", [](Random& r, std::size_t) { return r.normal(); }},
      {"all zero", [](Random&, std::size_t) { return 0.0F; }},
      {"all equal", [](Random&, std::size_t i) { return i % 2 == 0 ? 0.25F : -0.25F; }},
      {"mostly zero", [](Random& r, std::size_t) { return r.below(10) < 7 ? -0.0F : r.normal(); }},
      {"a grid of seven", [](Random& r, std::size_t) { return std::round(r.normal(1)); }},
      {"a grid as of bfloat16 differences", [](Random& r, std::size_t) { return std::round(r.normal(30)) * 0x1p-14F; }},
      {"rows of several scales", [](Random& r, std::size_t i) { return r.normal(1.0 + static_cast<double>(i / 4096 % 7)); }},
      {"ascending", [](Random&, std::size_t i) { return static_cast<float>(i); }},
      {"any float", [](Random& r, std::size_t) { return r.any_finite(); }},
  };
}

TEST(Select, small_tensors_are_settled_in_one_pass) {
  on_every_target([] {
    for (const Kind& kind : kinds()) {
      for (const std::size_t n : {1U, 2U, 3U, 17U, 1000U, 8192U, 20001U}) {
        Random random(n);
        std::vector<float> x(n);
        for (std::size_t i = 0; i < n; ++i) x[i] = kind.element(random, i);
        ASSERT_NO_FATAL_FAILURE(expect_right(x, some_ranks(n), kind.name, 1, 777));
      }
    }
  });
}

/// More than are kept whole.
constexpr std::size_t kLarge = (std::size_t{1} << 22) + 4321;

/// Of an element of rank r exactly r elements are above: this needs no sort.
void expect_ranks(const std::vector<float>& x, const std::vector<std::uint64_t>& ranks, const Selected& run, Ties ties, const std::string& what) {
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const RankedElement found = run.results[r];
    ASSERT_LT(found.index, x.size());
    ASSERT_EQ(found.magnitude, std::abs(x[found.index])) << what;
    std::uint64_t above = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float m = std::abs(x[i]);
      const bool wins_tie = ties == Ties::lower_index_is_larger ? i < found.index : i > found.index;
      above += m > found.magnitude || (m == found.magnitude && wins_tie) ? 1U : 0U;
    }
    ASSERT_EQ(above, ranks[r]) << what << ", rank " << ranks[r] << " of " << x.size();
  }
}

std::vector<float> tensor_of(const Kind& kind, std::size_t n) {
  Random random(n);
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = kind.element(random, i);
  return x;
}

TEST(Select, large_tensors_are_settled_in_a_sample_a_whole_pass_and_a_few_blocks) {
  for (const Kind& kind : kinds()) {
    const std::vector<float> x = tensor_of(kind, kLarge);
    const std::vector<std::uint64_t> ranks = some_ranks(kLarge);
    for (const Ties ties : {Ties::lower_index_is_larger, Ties::lower_index_is_smaller}) {
      const Selected run = select(x, ranks, ties);
      ASSERT_NO_FATAL_FAILURE(expect_ranks(x, ranks, run, ties, kind.name));
      EXPECT_LE(run.passes, 3) << kind.name;
    }
  }
}

TEST(Select, large_tensors_are_settled_on_every_target) {
  for (const std::size_t k : {0U, 5U}) {
    const Kind kind = kinds()[k];
    const std::vector<float> x = tensor_of(kind, kLarge);
    const std::vector<std::uint64_t> ranks = {kLarge / 5, kLarge - kLarge / 100};
    on_every_target([&] {
      const Selected run = select(x, ranks, Ties::lower_index_is_larger, 5000);
      expect_ranks(x, ranks, run, Ties::lower_index_is_larger, kind.name);
    });
  }
}

TEST(Select, a_sample_that_misleads_costs_passes_but_not_exactness) {
  const RankSelector probe(kLarge, {0});
  ASSERT_EQ(probe.next_pass(), RankSelector::Pass::sample);
  const auto sampled = [&probe](std::size_t i) { return probe.wants_block(i / RankSelector::kSampleBlock); };
  const std::vector<Kind> misleading = {
      {"smooth", [&](Random& random, std::size_t i) { return random.normal(sampled(i) ? 1e-3 : 10); }},
      {"grid", [&](Random& random, std::size_t i) { return std::round(random.normal(sampled(i) ? 1e-3 : 10)); }},
      // So close together that their upper bits do not tell them apart.
      {"crowded", [&](Random& random, std::size_t i) { return sampled(i) ? 0.0F : static_cast<float>(1 + random.uniform() / 1024); }},
  };
  for (const Kind& kind : misleading) {
    const std::vector<float> x = tensor_of(kind, kLarge);
    const std::vector<std::uint64_t> ranks = {kLarge / 2, kLarge / 5, kLarge / 5 * 4};
    for (const Ties ties : {Ties::lower_index_is_larger, Ties::lower_index_is_smaller}) {
      const Selected run = select(x, ranks, ties);
      EXPECT_GT(run.passes, 3) << kind.name;
      ASSERT_NO_FATAL_FAILURE(expect_ranks(x, ranks, run, ties, kind.name));
    }
  }
}

TEST(Select, too_many_candidates_are_not_kept) {
  // Where the sample looks, there is nothing between 1 and 3; elsewhere half of the elements are.
  const std::size_t n = std::size_t{8} << 20;
  const RankSelector probe(n, {0});
  const std::vector<float> x = tensor_of({"",
                                          [&](Random& random, std::size_t i) {
                                            const double u = random.uniform();
                                            if (probe.wants_block(i / RankSelector::kSampleBlock)) return u < 0.5 ? 1.0F : 3.0F;
                                            return u < 0.25 ? 1.0F : u < 0.5 ? 3.0F : static_cast<float>(8 * u - 3 - (u < 0.75 ? 0 : 2));
                                          }},
                                         n);
  const Selected run = select(x, {n / 2});
  EXPECT_EQ(run.passes, 4);
  expect_ranks(x, {n / 2}, run, Ties::lower_index_is_larger, "half between");
}

TEST(Select, a_sample_that_says_too_little_is_not_followed_by_a_pass_in_vain) {
  // A quarter of the blocks holds all that is large: how many of them a sample meets varies so much that the bracket would hold most of the tensor.
  const auto element = [](Random& random, std::size_t i) { return random.normal(i / 8192 * 2654435761U % 1000 < 250 ? 1e6 : 1); };
  const std::vector<float> x = tensor_of({"", element}, std::size_t{10} << 20);
  const std::vector<std::uint64_t> ranks = {x.size() / 8, x.size() / 4, x.size() / 2};
  const Selected run = select(x, ranks);
  EXPECT_EQ(run.passes, 3);
  expect_ranks(x, ranks, run, Ties::lower_index_is_larger, "blocks of two kinds");
}

TEST(Select, the_answer_does_not_depend_on_how_the_tensor_is_cut) {
  const std::vector<float> x = tensor_of({"", [](Random& random, std::size_t) { return std::round(random.normal(3)); }}, kLarge);
  const Selected whole = select(x, {kLarge / 3, kLarge / 2});
  for (const std::size_t tile : {std::size_t{1000}, std::size_t{8191}, std::size_t{65536}, kLarge}) {
    const Selected run = select(x, {kLarge / 3, kLarge / 2}, Ties::lower_index_is_larger, tile);
    for (std::size_t r = 0; r < 2; ++r) {
      EXPECT_EQ(run.results[r].index, whole.results[r].index) << tile;
      EXPECT_EQ(run.results[r].magnitude, whole.results[r].magnitude) << tile;
    }
  }
}

TEST(Select, eight_ranks_are_found_together) {
  const std::vector<float> x = tensor_of(kinds()[0], kLarge);
  const std::vector<std::uint64_t> ranks = {0, 1, kLarge / 8, kLarge / 4, kLarge / 2, kLarge / 2 + 100, kLarge - 2, kLarge - 1};
  const Selected run = select(x, ranks);
  EXPECT_EQ(run.passes, 2);
  expect_ranks(x, ranks, run, Ties::lower_index_is_larger, "eight ranks");
}

TEST(Select, a_share_of_what_is_not_zero_is_found_without_a_pass_that_counts_them) {
  for (const std::size_t n : {std::size_t{1}, std::size_t{1000}, kLarge}) {
    for (const Kind& kind : kinds()) {
      const std::vector<float> x = tensor_of(kind, n);
      const auto nonzero = static_cast<std::uint64_t>(std::count_if(x.begin(), x.end(), [](float v) { return v != 0; }));
      for (const double share : {0.0, 1e-6, 0.5, 1.0}) {
        const Selected run = drive(
            RankSelector::of_share_of_nonzero(n, share), n,
            [&x](std::uint64_t first, std::span<float> out) { std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(first), out.size(), out.begin()); },
            8192, 3);
        const auto kept = static_cast<std::uint64_t>(static_cast<double>(nonzero) * share);
        ASSERT_EQ(run.results.size(), kept == 0 ? 0U : 1U) << kind.name << ", " << share << " of " << n;
        if (kept == 0) continue;
        ASSERT_NO_FATAL_FAILURE(expect_ranks(x, {kept - 1}, run, Ties::lower_index_is_larger, kind.name));
        if (std::string_view(kind.name) == "normal") {
          EXPECT_LE(run.passes, n == kLarge ? 2 : 1) << share << " of " << n;
        }
      }
    }
  }
  EXPECT_EQ(RankSelector::of_share_of_nonzero(0, 0.5).next_pass(), RankSelector::Pass::done);
}

TEST(Select, no_ranks_need_no_pass) { EXPECT_EQ(RankSelector(100, {}).next_pass(), RankSelector::Pass::done); }

TEST(Select, a_rank_beyond_the_elements_is_our_mistake) {
  try {
    RankSelector(5, {5});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::internal);
    EXPECT_NE(error.message().find("rank 5"), std::string::npos);
  }
}

TEST(Select, an_element_that_was_not_shown_is_noticed) {
  RankSelector selector(10, {3});
  const auto tally = selector.new_tally();
  const std::vector<float> x(9, 1.0F);
  selector.add(*tally, 0, x);
  selector.merge(*tally);
  EXPECT_THROW(selector.finish_pass(), Error);
}

TEST(Select, at_or_above_agrees_with_the_ranks) {
  std::vector<float> x = test::whole_numbers(9, 5000, 20);
  const std::uint64_t rank = 1234;
  const RankedElement threshold = select(x, {rank}).results[0];
  std::uint64_t kept = 0;
  for (std::size_t i = 0; i < x.size(); ++i) kept += at_or_above(std::abs(x[i]), i, threshold) ? 1U : 0U;
  EXPECT_EQ(kept, rank + 1);
}

/// 50 million elements, made as they are asked for.
TEST(SlowSelect, fifty_million_elements_are_counted_right) {
  const std::uint64_t n = 50000000;
  for (const int grid : {0, 1}) {
    const auto fill = [grid](std::uint64_t first, std::span<float> out) {
      for (std::size_t i = 0; i < out.size(); ++i) {
        std::uint64_t h = (first + i + 1) * 0x9E3779B97F4A7C15ULL;
        h ^= h >> 31;
        h *= 0xBF58476D1CE4E5B9ULL;
        h ^= h >> 29;
        const double u = static_cast<double>(h >> 11) * 0x1p-53 - 0.5;
        const auto v = static_cast<float>(u * u * u);
        out[i] = grid != 0 ? std::round(v * 64) : v;
      }
    };
    const std::vector<std::uint64_t> ranks = {n / 5, n / 100, n - n / 10};
    const Selected run = select(n, ranks, fill);
    EXPECT_LE(run.passes, 3);
    // Exactly `rank` elements are above the one found.
    std::vector<std::uint64_t> above(ranks.size(), 0);
    std::vector<float> tile(8192);
    for (std::uint64_t first = 0; first < n; first += tile.size()) {
      const auto part = std::span(tile).first(static_cast<std::size_t>(std::min<std::uint64_t>(tile.size(), n - first)));
      fill(first, part);
      for (std::size_t i = 0; i < part.size(); ++i)
        for (std::size_t r = 0; r < ranks.size(); ++r)
          above[r] += at_or_above(std::abs(part[i]), first + i, run.results[r]) && first + i != run.results[r].index ? 1U : 0U;
    }
    EXPECT_EQ(above, ranks);
  }
}

}  // namespace
}  // namespace weft::math
