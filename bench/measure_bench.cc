// What measuring costs, on one core.
//
//   measure_bench [--benchmark_filter=REGEX] [--benchmark_repetitions=10]
//
// count_patterns: elements a second through the counts of a 16-bit type, 64 MiB of normal weights, beside a plain read of the same bytes.
// spectrum: a matrix's singular values as measured, beside the Gram product and the eigenvalue call alone.
//
// Without options it ends with two lines that stand beside their aims: elements a second, and the rate of the spectra of all matrices in the layers
// of a model of 1.5 B parameters beside their Gram products and eigenvalue calls.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "math/convert.h"
#include "math/lapack.h"
#include "measure/elements.h"
#include "measure/spectrum.h"
#include "measure/structure.h"

namespace {

using namespace weft;
using benchmark::State;

constexpr std::size_t kElements = std::size_t{1} << 25;

const std::vector<std::uint16_t>& weights() {
  static const std::vector<std::uint16_t> patterns = [] {
    std::vector<double> values(kElements);
    measure::NormalStream(1, "bench", 0).fill(values);
    std::vector<float> floats(kElements);
    for (std::size_t i = 0; i < kElements; ++i) floats[i] = static_cast<float>(values[i] * 0.02);
    std::vector<std::uint16_t> result(kElements);
    math::encode(DType::bf16, floats, std::as_writable_bytes(std::span(result)));
    return result;
  }();
  return patterns;
}

void count_patterns(State& state) {
  const auto& patterns = weights();
  for (auto _ : state) {
    measure::PatternCounts counts(DType::bf16);
    counts.add(patterns);
    std::uint64_t total = 0;
    for (std::uint32_t pattern = 0; pattern < 0x10000; ++pattern) total += counts.count(pattern);
    if (total != kElements) {
      std::fprintf(stderr, "the counts do not add up\n");
      std::exit(1);
    }
    benchmark::DoNotOptimize(total);
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * kElements));
}

void read_patterns(State& state) {
  const auto& patterns = weights();
  for (auto _ : state) benchmark::DoNotOptimize(std::accumulate(patterns.begin(), patterns.end(), std::uint64_t{0}));
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * kElements));
}

std::vector<double> matrix(std::int64_t rows, std::int64_t columns) {
  std::vector<double> values(static_cast<std::size_t>(rows * columns));
  measure::NormalStream(2, "bench", 0).fill(values);
  return values;
}

void spectrum(State& state) {
  const std::int64_t rows = state.range(0), columns = state.range(1);
  const std::vector<double> values = matrix(rows, columns);
  for (auto _ : state) benchmark::DoNotOptimize(measure::spectrum_of({values, rows, columns}));
}

void gram_and_eigenvalues(State& state) {
  const std::int64_t rows = state.range(0), columns = state.range(1);
  const std::vector<double> values = matrix(rows, columns);
  std::vector<double> gram(static_cast<std::size_t>(columns * columns));
  for (auto _ : state) {
    std::fill(gram.begin(), gram.end(), 0.0);
    math::add_gram(math::GramOf::columns, values.data(), rows, columns, gram);
    benchmark::DoNotOptimize(math::symmetric_eigen(gram, columns, math::Vectors::no));
  }
}

BENCHMARK(count_patterns)->Unit(benchmark::kMillisecond);
BENCHMARK(read_patterns)->Unit(benchmark::kMillisecond);
BENCHMARK(spectrum)->Args({768, 256})->Args({2048, 1024})->Unit(benchmark::kMillisecond);
BENCHMARK(gram_and_eigenvalues)->Args({768, 256})->Args({2048, 1024})->Unit(benchmark::kMillisecond);

template <typename Work>
double seconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void print_aims() {
  constexpr int kRounds = 5;
  std::vector<double> counting;
  for (int round = 0; round < kRounds; ++round)
    counting.push_back(seconds([] {
      measure::PatternCounts counts(DType::bf16);
      counts.add(weights());
      benchmark::DoNotOptimize(counts.count(0));
    }));
  std::sort(counting.begin(), counting.end());
  std::printf("\npass A over 16-bit weights: %.2f G elements/s on one core (aim 1)\n", static_cast<double>(kElements) / counting[kRounds / 2] / 1e9);

  // The matrices of a layer, and how many there are of each: q and o, k and v, gate, up and down.
  struct Shape {
    std::int64_t rows, columns;
    double count;
  };
  constexpr Shape kLayer[] = {{1536, 1536, 2}, {256, 1536, 2}, {8960, 1536, 3}};
  double measured = 0, alone = 0;
  for (const Shape& shape : kLayer) {
    const std::vector<double> values = matrix(shape.rows, shape.columns);
    const std::int64_t side = std::min(shape.rows, shape.columns);
    std::vector<double> gram(static_cast<std::size_t>(side * side));
    double best = 1e9, best_alone = 1e9;
    // Turn by turn, so that what else goes on meets both.
    for (int round = 0; round < 3; ++round) {
      best = std::min(best, seconds([&] { benchmark::DoNotOptimize(measure::spectrum_of({values, shape.rows, shape.columns})); }));
      best_alone = std::min(best_alone, seconds([&] {
                              std::fill(gram.begin(), gram.end(), 0.0);
                              math::add_gram(shape.rows <= shape.columns ? math::GramOf::rows : math::GramOf::columns, values.data(), shape.rows,
                                             shape.columns, gram);
                              benchmark::DoNotOptimize(math::symmetric_eigen(gram, side, math::Vectors::no));
                            }));
    }
    measured += shape.count * best;
    alone += shape.count * best_alone;
  }
  std::printf("spectra of a layer of 1.5 B parameters' model: %.2f s, %.0f %% of the rate of their Gram products and eigenvalue calls (aim 60 %%)\n",
              measured, 100 * alone / measured);
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = argc == 1;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  if (all) print_aims();
  return 0;
}
