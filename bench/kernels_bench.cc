// Kernels beside a plain copy, on one core.
//
//   kernels_bench [--benchmark_filter=REGEX] [--benchmark_repetitions=10] [--benchmark_out=FILE.json]
//
// Tiles have 8192 elements, as in a merge. What a merge takes from memory (stored bytes: copy, decode, merge_tile) goes through 64 MiB; what it takes
// from the step before (float32) goes through a few tiles that stay in the second-level cache. bytes_per_second counts stored bytes read and written;
// items_per_second counts elements. Inputs are random. Choose the instruction set with WEFT_SIMD. Each kernel's result is checked against plain code
// before it is timed.
#include <benchmark/benchmark.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <span>
#include <vector>

#include "math/combine.h"
#include "math/convert.h"
#include "math/elementary.h"
#include "math/reduce.h"
#include "math/select.h"
#include "math/targets.h"
#include "weft/error.h"
#include "weft/version.h"

namespace {

using namespace weft;
using benchmark::State;

constexpr std::size_t kTile = 8192;
constexpr std::size_t kElements = std::size_t{1} << 24;  // 64 MiB of float32

/// Buffers begin at a cache line, as those of a merge do.
template <typename T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <typename U>
  explicit LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, std::size_t) { ::operator delete (p, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const = default;
};
template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

void check(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s does not give what plain code gives\n", what);
  std::exit(1);
}

std::uint64_t random_bits(std::uint64_t& state) {
  std::uint64_t x = state += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// Weights: about normal, of the scale of a model's.
const Buffer<float>& weights(std::size_t which) {
  static std::array<Buffer<float>, 4> inputs;
  Buffer<float>& x = inputs[which];
  if (x.empty()) {
    std::uint64_t state = which + 1;
    x.resize(kElements);
    for (float& v : x) {
      double sum = -2;
      for (int i = 0; i < 4; ++i) sum += static_cast<double>(random_bits(state) >> 40) * 0x1p-24;
      v = static_cast<float>(sum * 0.03);
    }
  }
  return x;
}

/// The same as stored.
const Buffer<std::byte>& stored(DType dtype, std::size_t which) {
  static std::array<std::array<Buffer<std::byte>, 4>, kNumDTypes> inputs;
  Buffer<std::byte>& bytes = inputs[static_cast<std::size_t>(dtype)][which];
  if (bytes.empty()) {
    bytes.resize(kElements * static_cast<std::size_t>(info(dtype).bits) / 8);
    math::encode(dtype, weights(which), bytes);
  }
  return bytes;
}

std::size_t tile_bytes(DType dtype) { return kTile * static_cast<std::size_t>(info(dtype).bits) / 8; }

/// Goes round the first tiles of an input.
class Tiles {
 public:
  explicit Tiles(std::size_t count) : count_(count) {}
  std::size_t next() {
    const std::size_t tile = next_;
    next_ = (next_ + 1) % count_;
    return tile * kTile;
  }

 private:
  std::size_t count_;
  std::size_t next_ = 0;
};
constexpr std::size_t kAllTiles = kElements / kTile;
constexpr std::size_t kCachedTiles = 4;

void report(State& state, double bytes_an_element) {
  const auto elements = static_cast<double>(state.iterations()) * kTile;
  state.SetItemsProcessed(static_cast<std::int64_t>(elements));
  state.SetBytesProcessed(static_cast<std::int64_t>(elements * bytes_an_element));
}

// ---- The yardstick

/// Copies 64 MiB to 64 MiB, 32 KiB at a time. bytes_per_second: read and written.
void copy(State& state) {
  const Buffer<float>& from = weights(0);
  Buffer<float> to(kElements);
  Tiles tiles(kAllTiles);
  for (auto _ : state) {
    const std::size_t at = tiles.next();
    std::memcpy(to.data() + at, from.data() + at, kTile * sizeof(float));
    benchmark::ClobberMemory();
  }
  report(state, 8);
}
BENCHMARK(copy);

// ---- Conversion

void decode(State& state, DType dtype) {
  const Buffer<std::byte>& from = stored(dtype, 0);
  Buffer<float> to(kTile);
  const std::size_t bytes = tile_bytes(dtype);
  math::decode(dtype, std::span(from).first(bytes), to);
  for (std::size_t i = 0; i < kTile; ++i) check(to[i] == math::decode_one(dtype, math::encode_one(dtype, weights(0)[i])), "decode");
  Tiles tiles(kAllTiles);
  for (auto _ : state) {
    math::decode(dtype, std::span(from).subspan(tiles.next() / kTile * bytes, bytes), to);
    benchmark::ClobberMemory();
  }
  report(state, static_cast<double>(bytes) / kTile + 4);
}
BENCHMARK_CAPTURE(decode, bf16, DType::bf16);
BENCHMARK_CAPTURE(decode, f16, DType::f16);
BENCHMARK_CAPTURE(decode, f8_e4m3, DType::f8_e4m3);
BENCHMARK_CAPTURE(decode, f8_e5m2, DType::f8_e5m2);
BENCHMARK_CAPTURE(decode, f4, DType::f4);
BENCHMARK_CAPTURE(decode, f64, DType::f64);

void encode(State& state, DType dtype) {
  const Buffer<float>& from = weights(0);
  Buffer<std::byte> to(tile_bytes(dtype));
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    math::encode(dtype, std::span(from).subspan(tiles.next(), kTile), to);
    benchmark::ClobberMemory();
  }
  report(state, static_cast<double>(to.size()) / kTile + 4);
}
BENCHMARK_CAPTURE(encode, bf16, DType::bf16);
BENCHMARK_CAPTURE(encode, f16, DType::f16);
BENCHMARK_CAPTURE(encode, f8_e4m3, DType::f8_e4m3);
BENCHMARK_CAPTURE(encode, f8_e5m2, DType::f8_e5m2);
BENCHMARK_CAPTURE(encode, f4, DType::f4);
BENCHMARK_CAPTURE(encode, f64, DType::f64);

void count_non_finite(State& state) {
  Tiles tiles(kCachedTiles);
  for (auto _ : state) benchmark::DoNotOptimize(math::count_non_finite(std::span(weights(0)).subspan(tiles.next(), kTile)));
  report(state, 4);
}
BENCHMARK(count_non_finite);

// ---- Combination, from float32 tiles

/// Tiles of the first inputs.
template <std::size_t kCount>
std::array<const float*, kCount> tiles_at(std::size_t at) {
  std::array<const float*, kCount> pointers;
  for (std::size_t k = 0; k < kCount; ++k) pointers[k] = weights(k).data() + at;
  return pointers;
}

template <std::size_t kCount>
void weighted_sum_f64(State& state) {
  std::array<double, kCount> w;
  for (std::size_t k = 0; k < kCount; ++k) w[k] = 0.3 + 0.1 * static_cast<double>(k);
  Buffer<float> out(kTile);
  math::weighted_sum_f64(tiles_at<kCount>(0), w, 0.7, out);
  for (std::size_t i = 0; i < kTile; ++i) {
    double sum = 0;
    for (std::size_t k = 0; k < kCount; ++k) sum += w[k] * weights(k)[i];
    check(out[i] == static_cast<float>(sum * 0.7), "weighted_sum_f64");
  }
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    math::weighted_sum_f64(tiles_at<kCount>(tiles.next()), w, 0.7, out);
    benchmark::ClobberMemory();
  }
  report(state, 4 * kCount + 4);
}
BENCHMARK(weighted_sum_f64<2>);
BENCHMARK(weighted_sum_f64<3>);
BENCHMARK(weighted_sum_f64<4>);

template <std::size_t kCount>
void weighted_deltas_f64(State& state) {
  std::array<double, kCount> w;
  w.fill(0.4);
  Buffer<float> out(kTile);
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    const std::size_t at = tiles.next();
    math::add_weighted_deltas_f64(std::span(weights(3)).subspan(at, kTile), tiles_at<kCount>(at), w, 0.7, out);
    benchmark::ClobberMemory();
  }
  report(state, 4 * kCount + 8);
}
BENCHMARK(weighted_deltas_f64<2>);
BENCHMARK(weighted_deltas_f64<3>);

void sign_consensus(State& state) {
  const std::array<float, 3> w = {0.5F, 0.3F, 0.2F};
  Buffer<float> mixed(kTile);
  Buffer<float> divisor(kTile);
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    math::sign_consensus(tiles_at<3>(tiles.next()), w, mixed, divisor);
    benchmark::ClobberMemory();
  }
  report(state, 20);
}
BENCHMARK(sign_consensus);

void subtract(State& state) {
  Buffer<float> out(kTile);
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    const auto x = tiles_at<2>(tiles.next());
    math::subtract({x[0], kTile}, {x[1], kTile}, out);
    benchmark::ClobberMemory();
  }
  report(state, 12);
}
BENCHMARK(subtract);

void philox(State& state) {
  Buffer<float> out(kTile);
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    math::philox_uniform(42, 1, 0, tiles.next(), out);
    benchmark::ClobberMemory();
  }
  report(state, 4);
}
BENCHMARK(philox);

// ---- What a merge does to a tile: decode the inputs, combine, encode

void merge_tile(State& state, DType dtype, std::size_t count) {
  std::vector<Buffer<float>> x(count);
  std::vector<const float*> pointers(count);
  Buffer<double> w(count);
  for (std::size_t k = 0; k < count; ++k) {
    x[k].resize(kTile);
    pointers[k] = x[k].data();
    w[k] = 0.3 + 0.1 * static_cast<double>(k);
  }
  Buffer<float> sum(kTile);
  const std::size_t bytes = tile_bytes(dtype);
  Buffer<std::byte> to(bytes * (kElements / kTile));
  for (std::size_t k = 0; k < count; ++k) stored(dtype, k);
  Tiles tiles(kAllTiles);
  for (auto _ : state) {
    const std::size_t at = tiles.next() / kTile * bytes;
    for (std::size_t k = 0; k < count; ++k) math::decode(dtype, std::span(stored(dtype, k)).subspan(at, bytes), x[k]);
    math::weighted_sum_f64(pointers, w, 0.7, sum);
    math::encode(dtype, sum, std::span(to).subspan(at, bytes));
    benchmark::ClobberMemory();
  }
  report(state, static_cast<double>(bytes) / kTile * static_cast<double>(count + 1));
}
BENCHMARK_CAPTURE(merge_tile, two_bf16, DType::bf16, 2);
BENCHMARK_CAPTURE(merge_tile, three_bf16, DType::bf16, 3);
BENCHMARK_CAPTURE(merge_tile, three_f16, DType::f16, 3);

// ---- Sums

void sum_squares(State& state) {
  Tiles tiles(kCachedTiles);
  for (auto _ : state) benchmark::DoNotOptimize(math::sum_squares(std::span(weights(0)).subspan(tiles.next(), kTile)));
  report(state, 4);
}
BENCHMARK(sum_squares);

template <std::size_t kCount>
void gram(State& state) {
  std::array<double, kCount*(kCount + 1) / 2> sums;
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    math::gram(tiles_at<kCount>(tiles.next()), kTile, sums);
    benchmark::ClobberMemory();
  }
  report(state, 4 * kCount);
}
BENCHMARK(gram<2>);
BENCHMARK(gram<3>);
BENCHMARK(gram<4>);

void gram_of_deltas(State& state) {
  std::array<double, 6> sums;
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    const std::size_t at = tiles.next();
    math::gram_of_deltas(weights(3).data() + at, tiles_at<3>(at), kTile, sums);
    benchmark::ClobberMemory();
  }
  report(state, 16);
}
BENCHMARK(gram_of_deltas);

// ---- Elementary functions

void exp_shifted(State& state) {
  Buffer<double> out(kTile);
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    math::exp_shifted(std::span(weights(0)).subspan(tiles.next(), kTile), -1, out);
    benchmark::ClobberMemory();
  }
  report(state, 12);
}
BENCHMARK(exp_shifted);

void log_of(State& state) {
  Buffer<double> x(kTile);
  for (std::size_t i = 0; i < kTile; ++i) x[i] = std::abs(weights(0)[i]) + 1e-6;
  Buffer<double> out(kTile);
  for (auto _ : state) {
    math::log_of(x, out);
    benchmark::ClobberMemory();
  }
  report(state, 16);
}
BENCHMARK(log_of);

// ---- Selection

/// The whole pass over 16 million elements after its sample; ranks: how many are sought. grid: values as of differences of bfloat16 weights, one in
/// three zero.
void select_pass(State& state, std::size_t num_ranks, bool grid) {
  Buffer<float> x = weights(0);
  if (grid)
    for (float& v : x) v = std::round(v * 200) * 0x1p-14F;
  std::vector<std::uint64_t> ranks;
  for (std::size_t r = 0; r < num_ranks; ++r) ranks.push_back(kElements / 5 * (r + 1) - 1);
  const auto pass = [&x](math::RankSelector& selector) {
    const auto tally = selector.new_tally();
    const bool whole = selector.next_pass() == math::RankSelector::Pass::whole;
    for (std::size_t first = 0; first < kElements; first += kTile)
      if (whole || selector.wants_block(first / kTile)) selector.add(*tally, first, std::span(x).subspan(first, kTile));
    selector.merge(*tally);
    selector.finish_pass();
  };
  for (auto _ : state) {
    state.PauseTiming();
    math::RankSelector selector(kElements, ranks);
    pass(selector);
    check(selector.next_pass() == math::RankSelector::Pass::whole, "the sample");
    state.ResumeTiming();
    pass(selector);
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(kElements));
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(kElements * 4));
}
BENCHMARK_CAPTURE(select_pass, one_rank, 1, false)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(select_pass, one_rank_on_a_grid, 1, true)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(select_pass, two_ranks, 2, false)->Unit(benchmark::kMillisecond);

/// Everything it takes, from start to answer.
void select_all_passes(State& state, bool grid) {
  Buffer<float> x = weights(0);
  if (grid)
    for (float& v : x) v = std::round(v * 200) * 0x1p-14F;
  for (auto _ : state) {
    math::RankSelector selector(kElements, {kElements / 5});
    while (selector.next_pass() != math::RankSelector::Pass::done) {
      const bool whole = selector.next_pass() == math::RankSelector::Pass::whole;
      const auto tally = selector.new_tally();
      for (std::size_t first = 0; first < kElements; first += kTile)
        if (whole || selector.wants_block(first / kTile)) selector.add(*tally, first, std::span(x).subspan(first, kTile));
      selector.merge(*tally);
      selector.finish_pass();
    }
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(kElements));
}
BENCHMARK_CAPTURE(select_all_passes, smooth, false)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(select_all_passes, grid, true)->Unit(benchmark::kMillisecond);

void keep_at_least(State& state) {
  Buffer<float> tile(kTile);
  Tiles tiles(kCachedTiles);
  for (auto _ : state) {
    std::memcpy(tile.data(), weights(0).data() + tiles.next(), kTile * sizeof(float));
    math::keep_at_least(tile, 0.02F, 0, 100);
    benchmark::ClobberMemory();
  }
  report(state, 8);
}
BENCHMARK(keep_at_least);

}  // namespace

int main(int argc, char** argv) {
  try {
    math::apply_target_from_environment();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.exit_status();
  }
  benchmark::AddCustomContext("simd_target", math::active_target());
  benchmark::AddCustomContext("compiler", std::string(compiler()));
  benchmark::AddCustomContext("commit", std::string(commit()));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
