#include "quantize/refine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/memory_checkpoint.h"

namespace weft::quantize {
namespace {

using codec::QuantizedLinear;
using codec::Zero;
using testing::random_values;

constexpr std::int64_t kRows = 20, kColumns = 48;

/// Correlated inputs.
std::vector<double> gram_of(std::int64_t columns, std::uint64_t seed) {
  const auto n = static_cast<std::size_t>(columns);
  const std::size_t samples = 4 * n;
  const std::vector<float> base = random_values(samples * n, seed), mix = random_values(n * 6, 99);
  std::vector<double> gram(n * n), x(n);
  for (std::size_t t = 0; t < samples; ++t) {
    for (std::size_t i = 0; i < n; ++i) {
      x[i] = 0.4 * static_cast<double>(base[t * n + i]);
      for (std::size_t k = 0; k < 6; ++k) x[i] += static_cast<double>(mix[k * n + i]) * static_cast<double>(base[t * n + k]);
    }
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) gram[i * n + j] += x[i] * x[j];
  }
  return gram;
}

/// tr((Q - W) H (Q - W)^T), as it is written.
double loss_of(const std::vector<float>& weights, const QuantizedLinear& linear, const std::vector<double>& gram) {
  const std::vector<float> decoded = linear.decoded();
  const auto n = static_cast<std::size_t>(linear.columns);
  double sum = 0;
  for (std::size_t r = 0; r < static_cast<std::size_t>(linear.rows); ++r)
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j)
        sum += (static_cast<double>(decoded[r * n + i]) - static_cast<double>(weights[r * n + i])) * gram[i * n + j] *
               (static_cast<double>(decoded[r * n + j]) - static_cast<double>(weights[r * n + j]));
  return sum;
}

SolverOptions options_of(int bits, Zero zero, std::int64_t group) {
  SolverOptions options;
  options.format.bits = bits;
  options.format.zero = zero;
  options.format.search = codec::Search::shrink;
  options.format.norm = 2;
  options.format.scale_type = DType::f16;
  options.group = group;
  options.damping = 0.01;
  return options;
}

TEST(Refine, loses_less_than_compensation_left_and_then_no_single_code_loses_less) {
  const std::vector<double> gram = gram_of(kColumns, 3);
  const std::vector<float> weights = random_values(static_cast<std::size_t>(kRows * kColumns), 4);
  for (const Zero zero : {Zero::centred, Zero::affine, Zero::offset})
    for (const std::int64_t group : {16, 20, 0})
      for (const bool is_static : {true, false}) {
        SCOPED_TRACE(::testing::Message() << static_cast<int>(zero) << ' ' << group << ' ' << is_static);
        SolverOptions options = options_of(2, zero, group);
        options.static_groups = is_static;
        const Factor factor = factorise(gram, kColumns, options);
        QuantizedLinear linear = compensate(weights, kRows, kColumns, factor, options);
        const double before = loss_of(weights, linear, gram);
        const RefineBasis basis = refine_basis(gram, kColumns, 0, linear.group_of);
        double last = before;
        for (int round = 0; round < 3; ++round) {
          refine_rows(weights, basis, options, 1, 0, kRows, linear);
          const double now = loss_of(weights, linear, gram);
          EXPECT_LE(now, last * (1 + 1e-9));
          last = now;
        }
        EXPECT_LT(last, 0.95 * before);
        refine_rows(weights, basis, options, 200, 0, kRows, linear);
        const double least = loss_of(weights, linear, gram);
        for (std::size_t i = 0; i < linear.codes.size(); i += 7)
          for (const int step : {-1, 1}) {
            if (linear.codes[i] + step < 0 || linear.codes[i] + step > 3) continue;
            QuantizedLinear other = linear;
            other.codes[i] = static_cast<std::uint8_t>(other.codes[i] + step);
            EXPECT_GE(loss_of(weights, other, gram), least * (1 - 1e-6)) << i;
          }
      }
}

TEST(Refine, scales_are_the_best_of_their_type_for_the_codes) {
  const std::vector<double> gram = gram_of(kColumns, 5);
  const std::vector<float> weights = random_values(static_cast<std::size_t>(kRows * kColumns), 6);
  const SolverOptions options = options_of(3, Zero::centred, 16);
  QuantizedLinear linear = round_to_nearest(weights, kRows, kColumns, options);
  refine_rows(weights, refine_basis(gram, kColumns, 0), options, 300, 0, kRows, linear);
  const double least = loss_of(weights, linear, gram);
  for (std::size_t g = 0; g < linear.scales.size(); ++g)
    for (const float share : {0.998F, 1.002F}) {
      QuantizedLinear other = linear;
      other.scales[g] *= share;
      EXPECT_GT(loss_of(weights, other, gram), least * (1 - 1e-6)) << g;
    }
}

TEST(Refine, few_weights_come_out_between_compensation_and_the_best_of_all_codes) {
  // Every code of 6 weights with the scale that was found is tried.
  constexpr std::int64_t kFew = 6;
  double best_sum = 0, got_sum = 0, before_sum = 0;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const std::vector<double> gram = gram_of(kFew, 20 + seed);
    const std::vector<float> weights = random_values(kFew, 50 + seed);
    SolverOptions options = options_of(2, Zero::centred, 0);
    options.format.scale_type = DType::f32;
    QuantizedLinear linear = compensate(weights, 1, kFew, factorise(gram, kFew, options), options);
    before_sum += loss_of(weights, linear, gram);
    refine_rows(weights, refine_basis(gram, kFew, 0), options, 100, 0, 1, linear);
    got_sum += loss_of(weights, linear, gram);
    double best = std::numeric_limits<double>::infinity();
    for (int all = 0; all < 4096; ++all) {
      QuantizedLinear other = linear;
      for (std::size_t i = 0; i < kFew; ++i) other.codes[i] = static_cast<std::uint8_t>((all >> (2 * i)) & 3);
      best = std::min(best, loss_of(weights, other, gram));
    }
    best_sum += best;
  }
  EXPECT_LT(got_sum, 0.9 * before_sum);
  EXPECT_GE(got_sum, best_sum);
}

TEST(Refine, rows_are_refined_alone_and_inputs_that_are_never_read_keep_their_codes) {
  std::vector<double> gram = gram_of(kColumns, 7);
  for (std::int64_t i = 0; i < kColumns; ++i) gram[static_cast<std::size_t>(5 * kColumns + i)] = gram[static_cast<std::size_t>(i * kColumns + 5)] = 0;
  const std::vector<float> weights = random_values(static_cast<std::size_t>(kRows * kColumns), 8);
  const SolverOptions options = options_of(3, Zero::affine, 16);
  const QuantizedLinear start = compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options);
  const RefineBasis basis = refine_basis(gram, kColumns, 0.01);
  QuantizedLinear whole = start, parts = start;
  refine_rows(weights, basis, options, 4, 0, kRows, whole);
  for (std::int64_t first = 0; first < kRows; first += 7)
    refine_rows(weights, basis, options, 4, first, std::min<std::int64_t>(7, kRows - first), parts);
  EXPECT_EQ(whole.codes, parts.codes);
  EXPECT_EQ(whole.scales, parts.scales);
  for (std::int64_t r = 0; r < kRows; ++r)
    EXPECT_EQ(whole.codes[static_cast<std::size_t>(r * kColumns + 5)], start.codes[static_cast<std::size_t>(r * kColumns + 5)]);
}

TEST(Refine, much_damping_keeps_codes_near_plain_rounding) {
  const std::vector<double> gram = gram_of(kColumns, 9);
  const std::vector<float> weights = random_values(static_cast<std::size_t>(kRows * kColumns), 10);
  SolverOptions options = options_of(4, Zero::centred, 0);
  options.format.scale_type = DType::f32;
  const auto distance = [&](double damping) {
    QuantizedLinear linear = compensate(weights, kRows, kColumns, factorise(gram, kColumns, options), options);
    refine_rows(weights, refine_basis(gram, kColumns, damping), options, 50, 0, kRows, linear);
    const std::vector<float> decoded = linear.decoded();
    double sum = 0;
    for (std::size_t i = 0; i < decoded.size(); ++i) sum += std::pow(static_cast<double>(decoded[i] - weights[i]), 2);
    return sum;
  };
  EXPECT_LT(distance(1000), distance(0.01));
}

}  // namespace
}  // namespace weft::quantize
