// GPTQ of one layer beside its matrix products and its Cholesky factor alone, on one core.
//
//   gptq_bench [--benchmark_filter=REGEX] [--benchmark_repetitions=3] [--benchmark_out=FILE.json]
//
// `products/ROWS/COLUMNS` is what nobody gets around: the factor of a symmetric matrix [COLUMNS, COLUMNS] and the inverse of that factor, by LAPACK,
// and the products of each block's errors [64, 128] with the rest of the factor, by BLAS. `gptq` is the method whole: damping, order, search of 80
// scales a group, codes, compensation. Its `times` is the ratio to the former, measured first in the same run; `refine` is one round of moving codes
// and scales behind it. 4096 by 11008 is a down projection of a 7-billion-parameter model and takes about a minute and 3 GiB.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "math/lapack.h"
#include "quantize/refine.h"
#include "quantize/solver.h"

namespace {

using namespace weft;
using benchmark::State;

constexpr std::int64_t kSlab = 64, kBlock = 128;

/// Of this process on its core: what else the machine does does not count.
double seconds_since(std::clock_t start) { return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC; }

std::map<std::pair<std::int64_t, std::int64_t>, double> seconds_of_products;

/// A second moment with a few strong directions.
std::vector<double> moment_of(std::int64_t n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  constexpr std::int64_t kDirections = 16;
  std::vector<float> directions(static_cast<std::size_t>(kDirections * n));
  for (float& value : directions) value = normal(random);
  std::vector<float> scaled = directions;
  std::vector<double> gram(static_cast<std::size_t>(n * n));
  std::vector<float> row(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    math::gemm(math::Transpose::yes, math::Transpose::no, 1, n, kDirections, 1.0F, directions.data() + i, n, directions.data(), n, 0.0F, row.data(),
               n);
    for (std::int64_t j = 0; j < n; ++j) gram[static_cast<std::size_t>(i * n + j)] = static_cast<double>(row[static_cast<std::size_t>(j)]);
    gram[static_cast<std::size_t>(i * n + i)] += 8.0;
  }
  return gram;
}

std::vector<float> weights_of(std::int64_t rows, std::int64_t columns) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, 0.02F);
  std::vector<float> weights(static_cast<std::size_t>(rows * columns));
  for (float& value : weights) value = normal(random);
  return weights;
}

quantize::SolverOptions options_of() {
  quantize::SolverOptions options;
  options.format.search = codec::Search::shrink;
  options.format.norm = 2;
  options.format.scale_type = DType::f16;
  options.damping = 0.05;
  return options;
}

double products(std::int64_t rows, std::int64_t columns) {
  std::vector<double> matrix = moment_of(columns);
  std::vector<double> errors(static_cast<std::size_t>(kBlock * kSlab), 0.01), work(static_cast<std::size_t>(columns * kSlab), 1.0);
  const std::clock_t start = std::clock();
  if (!math::cholesky(matrix, columns) || !math::invert_lower(matrix, columns)) std::exit(1);
  for (std::int64_t first = 0; first < rows; first += kSlab)
    for (std::int64_t end = kBlock; end < columns; end += kBlock)
      math::gemm(math::Transpose::yes, math::Transpose::no, columns - end, kSlab, kBlock, -1.0, matrix.data() + (end - kBlock) * columns + end,
                 columns, errors.data(), kSlab, 1.0, work.data() + end * kSlab, kSlab);
  benchmark::DoNotOptimize(work.data());
  return seconds_since(start);
}

void products_alone(State& state) {
  for (auto _ : state) {
    const double seconds = products(state.range(0), state.range(1));
    double& least = seconds_of_products[{state.range(0), state.range(1)}];
    least = least == 0 ? seconds : std::min(least, seconds);
    state.SetIterationTime(seconds);
  }
}

void gptq(State& state) {
  const std::int64_t rows = state.range(0), columns = state.range(1);
  const std::vector<double> gram = moment_of(columns);
  const std::vector<float> weights = weights_of(rows, columns);
  const quantize::SolverOptions options = options_of();
  double least = 0;
  for (auto _ : state) {
    const std::clock_t start = std::clock();
    const quantize::Factor factor = quantize::factorise(gram, columns, options);
    codec::QuantizedLinear out = quantize::prepare(rows, columns, options, factor);
    for (std::int64_t first = 0; first < rows; first += kSlab)
      quantize::compensate_rows(weights, factor, options, first, std::min(kSlab, rows - first), out);
    const double seconds = seconds_since(start);
    least = least == 0 ? seconds : std::min(least, seconds);
    state.SetIterationTime(seconds);
  }
  if (const double alone = seconds_of_products[{rows, columns}]; alone > 0) state.counters["times"] = least / alone;
}

void refine(State& state) {
  const std::int64_t rows = state.range(0), columns = state.range(1);
  const std::vector<double> gram = moment_of(columns);
  const std::vector<float> weights = weights_of(rows, columns);
  const quantize::SolverOptions options = options_of();
  const codec::QuantizedLinear rounded = quantize::round_to_nearest(weights, rows, columns, options);
  const quantize::RefineBasis basis = quantize::refine_basis(gram, columns, options.damping);
  for (auto _ : state) {
    codec::QuantizedLinear out = rounded;
    const std::clock_t start = std::clock();
    for (std::int64_t first = 0; first < rows; first += kSlab)
      quantize::refine_rows(weights, basis, options, 1, first, std::min(kSlab, rows - first), out);
    state.SetIterationTime(seconds_since(start));
  }
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->Args({256, 768})->Args({1024, 2816})->Args({4096, 11008})->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(1);
}

BENCHMARK(products_alone)->Apply(shapes)->Name("products");
BENCHMARK(gptq)->Apply(shapes);
BENCHMARK(refine)->Args({256, 768})->Args({1024, 2816})->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(1);

}  // namespace

BENCHMARK_MAIN();
