#if defined(WEFT_MATH_REDUCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_REDUCE_INL_H_
#undef WEFT_MATH_REDUCE_INL_H_
#else
#define WEFT_MATH_REDUCE_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "math/reduce_order.h"
#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

using DSum = hn::ScalableTag<double>;
inline constexpr std::size_t kSumLanes = hn::MaxLanes(DSum());
/// Vectors that together hold the 16 partial sums.
inline constexpr std::size_t kSumVectors = kPartialSums / kSumLanes;

// ---- Sums of one term an element

struct ValueTerm {
  static constexpr bool kTwo = false;
  template <class D>
  static HWY_INLINE hn::Vec<D> Of(D d, const float* x, const float*) {
    return LoadAsDouble(d, x);
  }
};
struct MagnitudeTerm {
  static constexpr bool kTwo = false;
  template <class D>
  static HWY_INLINE hn::Vec<D> Of(D d, const float* x, const float*) {
    return hn::Abs(LoadAsDouble(d, x));
  }
};
struct SquareTerm {
  static constexpr bool kTwo = false;
  template <class D>
  static HWY_INLINE hn::Vec<D> Of(D d, const float* x, const float*) {
    const auto v = LoadAsDouble(d, x);
    return hn::Mul(v, v);
  }
};
struct ProductTerm {
  static constexpr bool kTwo = true;
  template <class D>
  static HWY_INLINE hn::Vec<D> Of(D d, const float* x, const float* y) {
    return hn::Mul(LoadAsDouble(d, x), LoadAsDouble(d, y));
  }
};

template <class Term>
HWY_INLINE void SumTerms(const float* x, const float* y, std::size_t n, double* partials) {
  const DSum d;
  hn::Vec<DSum> sums[kSumVectors];
  for (std::size_t v = 0; v < kSumVectors; ++v) sums[v] = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kPartialSums <= n; i += kPartialSums) {
    for (std::size_t v = 0; v < kSumVectors; ++v) {
      const std::size_t at = i + v * kSumLanes;
      sums[v] = hn::Add(sums[v], Term::Of(d, x + at, Term::kTwo ? y + at : nullptr));
    }
  }
  if (i < n) {
    float last_x[kPartialSums] = {};
    float last_y[kPartialSums] = {};
    std::memcpy(last_x, x + i, (n - i) * sizeof(float));
    if constexpr (Term::kTwo) std::memcpy(last_y, y + i, (n - i) * sizeof(float));
    for (std::size_t v = 0; v < kSumVectors; ++v) sums[v] = hn::Add(sums[v], Term::Of(d, last_x + v * kSumLanes, last_y + v * kSumLanes));
  }
  for (std::size_t v = 0; v < kSumVectors; ++v) hn::StoreU(sums[v], d, partials + v * kSumLanes);
}

// partials: [16], written.
void PartialSums(const float* x, std::size_t n, double* partials) { SumTerms<ValueTerm>(x, nullptr, n, partials); }
void PartialSumsOfMagnitudes(const float* x, std::size_t n, double* partials) { SumTerms<MagnitudeTerm>(x, nullptr, n, partials); }
void PartialSumsOfSquares(const float* x, std::size_t n, double* partials) { SumTerms<SquareTerm>(x, nullptr, n, partials); }
void PartialSumsOfProducts(const float* x, const float* y, std::size_t n, double* partials) { SumTerms<ProductTerm>(x, y, n, partials); }

/// The bits of the largest magnitude: those of a non-negative float are ordered as it is.
std::int32_t LargestMagnitudeBits(const float* x, std::size_t n) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::Rebind<float, decltype(d)> df;
  const auto magnitude = hn::Set(d, 0x7FFFFFFF);
  auto largest0 = hn::Zero(d);
  auto largest1 = hn::Zero(d);
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  std::size_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    largest0 = hn::Max(largest0, hn::And(hn::BitCast(d, hn::LoadU(df, x + i)), magnitude));
    largest1 = hn::Max(largest1, hn::And(hn::BitCast(d, hn::LoadU(df, x + i + kLanes)), magnitude));
  }
  std::int32_t lanes[kLanes];
  hn::StoreU(hn::Max(largest0, largest1), d, lanes);
  std::int32_t largest = 0;
  for (std::size_t v = 0; v < kLanes; ++v) largest = HWY_MAX(largest, lanes[v]);
  for (; i < n; ++i) {
    std::int32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7FFFFFFF;
    largest = HWY_MAX(largest, bits);
  }
  return largest;
}

// ---- Gram matrices

template <bool kDeltas, class D>
HWY_INLINE void Widen(D d, const float* base, const float* x, double* out) {
  auto v = LoadAsDouble(d, x);
  if constexpr (kDeltas) v = hn::Sub(v, LoadAsDouble(d, base));
  hn::StoreU(v, d, out);
}

/// partials[p] += the products of row a and row b + p * stride, for p < kPairs. count: multiple of 16.
template <std::size_t kPairs>
HWY_INLINE void AccumulatePairs(const double* a, const double* b, std::size_t stride, std::size_t count, double* partials) {
  const DSum d;
  hn::Vec<DSum> sums[kPairs][kSumVectors];
  for (std::size_t p = 0; p < kPairs; ++p)
    for (std::size_t v = 0; v < kSumVectors; ++v) sums[p][v] = hn::LoadU(d, partials + p * kPartialSums + v * kSumLanes);
  for (std::size_t i = 0; i < count; i += kPartialSums) {
    for (std::size_t v = 0; v < kSumVectors; ++v) {
      const auto left = hn::LoadU(d, a + i + v * kSumLanes);
      for (std::size_t p = 0; p < kPairs; ++p) sums[p][v] = hn::Add(sums[p][v], hn::Mul(left, hn::LoadU(d, b + p * stride + i + v * kSumLanes)));
    }
  }
  for (std::size_t p = 0; p < kPairs; ++p)
    for (std::size_t v = 0; v < kSumVectors; ++v) hn::StoreU(sums[p][v], d, partials + p * kPartialSums + v * kSumLanes);
}

template <bool kDeltas>
HWY_INLINE void GramOf(const float* base, const float* const* inputs, std::size_t num_inputs, std::size_t n, double* scratch, double* partials) {
  const DSum d;
  const hn::CappedTag<double, 1> d1;
  // As many pairs at a time as leave their sums in registers.
  constexpr std::size_t kPairs = kSumVectors <= 2 ? 4 : kSumVectors <= 4 ? 2 : 1;
  for (std::size_t first = 0; first < n; first += kGramChunk) {
    const std::size_t count = HWY_MIN(kGramChunk, n - first);
    const std::size_t padded = (count + kPartialSums - 1) / kPartialSums * kPartialSums;
    for (std::size_t k = 0; k < num_inputs; ++k) {
      double* row = scratch + k * kGramStride;
      const float* x = inputs[k] + first;
      const float* origin = kDeltas ? base + first : nullptr;
      std::size_t i = 0;
      for (; i + kSumLanes <= count; i += kSumLanes) Widen<kDeltas>(d, kDeltas ? origin + i : nullptr, x + i, row + i);
      for (; i < count; ++i) Widen<kDeltas>(d1, kDeltas ? origin + i : nullptr, x + i, row + i);
      for (; i < padded; ++i) row[i] = 0;
    }
    double* pair = partials;
    for (std::size_t i = 0; i < num_inputs; ++i) {
      const double* a = scratch + i * kGramStride;
      std::size_t j = i;
      for (; j + kPairs <= num_inputs; j += kPairs, pair += kPairs * kPartialSums)
        AccumulatePairs<kPairs>(a, scratch + j * kGramStride, kGramStride, padded, pair);
      // Fewer at a time would wait for their own sums.
      const std::size_t rest = num_inputs - j;
      if constexpr (kPairs == 4) {
        if (rest == 3) AccumulatePairs<3>(a, scratch + j * kGramStride, kGramStride, padded, pair);
        if (rest == 2) AccumulatePairs<2>(a, scratch + j * kGramStride, kGramStride, padded, pair);
      }
      if (rest == 1) AccumulatePairs<1>(a, scratch + j * kGramStride, kGramStride, padded, pair);
      pair += rest * kPartialSums;
    }
  }
}

/// scratch: [num_inputs, kGramStride]. partials: [num_inputs (num_inputs + 1) / 2, 16], zero on entry. base: null, or what is taken off the inputs.
void Gram(const float* base, const float* const* inputs, std::size_t num_inputs, std::size_t n, double* scratch, double* partials) {
  if (base != nullptr) {
    GramOf<true>(base, inputs, num_inputs, n, scratch, partials);
  } else {
    GramOf<false>(base, inputs, num_inputs, n, scratch, partials);
  }
}

// ---- By column

void ColumnDots(const float* x, const float* y, std::size_t rows, std::size_t columns, double* sums) {
  const DSum d;
  const hn::CappedTag<double, 1> d1;
  // The sums of a strip stay in the first-level cache while its rows go by.
  constexpr std::size_t kStrip = 1024;
  for (std::size_t first = 0; first < columns; first += kStrip) {
    const std::size_t end = HWY_MIN(columns, first + kStrip);
    for (std::size_t r = 0; r < rows; ++r) {
      const float* a = x + r * columns;
      const float* b = y + r * columns;
      std::size_t c = first;
      for (; c + kSumLanes <= end; c += kSumLanes)
        hn::StoreU(hn::Add(hn::LoadU(d, sums + c), hn::Mul(LoadAsDouble(d, a + c), LoadAsDouble(d, b + c))), d, sums + c);
      for (; c < end; ++c) hn::StoreU(hn::Add(hn::LoadU(d1, sums + c), hn::Mul(LoadAsDouble(d1, a + c), LoadAsDouble(d1, b + c))), d1, sums + c);
    }
  }
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
