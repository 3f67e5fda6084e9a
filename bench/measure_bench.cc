// What measuring costs, on one core.
//
//   measure_bench [--benchmark_filter=REGEX] [--benchmark_repetitions=10]
//
// count_patterns: elements a second through the counts of a 16-bit type, 64 MiB of normal weights, beside a plain read of the same bytes.
// spectrum: a matrix's singular values as measured, beside the Gram product and the eigenvalue call alone.
#include <benchmark/benchmark.h>

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

}  // namespace

BENCHMARK_MAIN();
