#include "math/reduce.h"

#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "base/check.h"
#include "math/reduce_order.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/reduce-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/reduce-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(PartialSums);
HWY_EXPORT(PartialSumsOfMagnitudes);
HWY_EXPORT(PartialSumsOfSquares);
HWY_EXPORT(PartialSumsOfProducts);
HWY_EXPORT(LargestMagnitudeBits);
HWY_EXPORT(Gram);
HWY_EXPORT(ColumnDots);

namespace {

void gram_with_base(const float* base, std::span<const float* const> inputs, std::size_t count, std::span<double> gram) {
  const std::size_t num_pairs = inputs.size() * (inputs.size() + 1) / 2;
  WEFT_ASSERT(gram.size() == num_pairs);
  if (inputs.empty()) return;
  std::vector<Partials> scratch(inputs.size() * (kGramStride / kPartialSums));
  std::vector<Partials> partials(num_pairs);
  HWY_DYNAMIC_DISPATCH(Gram)(base, inputs.data(), inputs.size(), count, scratch.front().sums.data(), partials.front().sums.data());
  for (std::size_t k = 0; k < num_pairs; ++k) gram[k] = add_partials(partials[k]);
}

}  // namespace

double sum(std::span<const float> x) {
  Partials partials;
  HWY_DYNAMIC_DISPATCH(PartialSums)(x.data(), x.size(), partials.sums.data());
  return add_partials(partials);
}

double sum_abs(std::span<const float> x) {
  Partials partials;
  HWY_DYNAMIC_DISPATCH(PartialSumsOfMagnitudes)(x.data(), x.size(), partials.sums.data());
  return add_partials(partials);
}

double sum_squares(std::span<const float> x) {
  Partials partials;
  HWY_DYNAMIC_DISPATCH(PartialSumsOfSquares)(x.data(), x.size(), partials.sums.data());
  return add_partials(partials);
}

double dot(std::span<const float> x, std::span<const float> y) {
  WEFT_ASSERT(x.size() == y.size());
  Partials partials;
  HWY_DYNAMIC_DISPATCH(PartialSumsOfProducts)(x.data(), y.data(), x.size(), partials.sums.data());
  return add_partials(partials);
}

float max_abs(std::span<const float> x) { return std::bit_cast<float>(HWY_DYNAMIC_DISPATCH(LargestMagnitudeBits)(x.data(), x.size())); }

void gram(std::span<const float* const> inputs, std::size_t count, std::span<double> gram) { gram_with_base(nullptr, inputs, count, gram); }

void gram_of_deltas(const float* base, std::span<const float* const> inputs, std::size_t count, std::span<double> gram) {
  WEFT_ASSERT(base != nullptr || count == 0);
  gram_with_base(base, inputs, count, gram);
}

void column_dots(const float* x, const float* y, std::size_t rows, std::size_t columns, std::span<double> sums) {
  WEFT_ASSERT(sums.size() == columns);
  HWY_DYNAMIC_DISPATCH(ColumnDots)(x, y, rows, columns, sums.data());
}

}  // namespace weft::math
#endif
