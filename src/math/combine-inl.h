#if defined(WEFT_MATH_COMBINE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_COMBINE_INL_H_
#undef WEFT_MATH_COMBINE_INL_H_
#else
#define WEFT_MATH_COMBINE_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// Every kernel is a body on a tag, run with full vectors and then, for the last elements, with a tag of one lane.

// ---- Weighted sums

enum class WeightedForm { sum_f32, sum_f64, deltas_f64 };

template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const float* p) {
  if constexpr (std::is_same_v<hn::TFromD<D>, double>) {
    return LoadAsDouble(d, p);
  } else {
    return hn::LoadU(d, p);
  }
}

/// One vector of output. kInputs: their number, or 0 for num_inputs.
template <WeightedForm kForm, std::size_t kInputs, class D, class V = hn::Vec<D>>
HWY_INLINE void WeightedVector(D d, const float* base, const float* const* x, const hn::TFromD<D>* w, std::size_t num_inputs, V scale, std::size_t i,
                               float* out) {
  const std::size_t count = kInputs == 0 ? num_inputs : kInputs;
  V origin = hn::Zero(d);
  if constexpr (kForm == WeightedForm::deltas_f64) origin = LoadAs(d, base + i);
  V sum = hn::Zero(d);
  for (std::size_t k = 0; k < count; ++k) {
    V value = LoadAs(d, x[k] + i);
    if constexpr (kForm == WeightedForm::deltas_f64) value = hn::Sub(value, origin);
    const V term = hn::Mul(value, hn::Set(d, w[k]));
    // The first term is taken as it is: adding it to zero would turn -0 into +0.
    sum = k == 0 ? term : hn::Add(sum, term);
  }
  if constexpr (kForm == WeightedForm::sum_f32) {
    hn::StoreU(sum, d, out + i);
  } else {
    const hn::Rebind<float, D> df;
    sum = hn::Mul(sum, scale);
    if constexpr (kForm == WeightedForm::deltas_f64) sum = hn::Add(origin, sum);
    hn::StoreU(RoundToFloat(df, sum), df, out + i);
  }
}

template <WeightedForm kForm, std::size_t kInputs, typename T>
HWY_INLINE void WeightedLoop(const float* base, const float* const* inputs, const T* weights, std::size_t num_inputs, T scale, std::size_t n,
                             float* out) {
  const hn::ScalableTag<T> d;
  const hn::CappedTag<T, 1> d1;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  // Local copies: the compiler then knows that writing `out` does not change them.
  const float* x[kInputs == 0 ? 1 : kInputs];
  T w[kInputs == 0 ? 1 : kInputs];
  for (std::size_t k = 0; k < kInputs; ++k) {
    x[k] = inputs[k];
    w[k] = weights[k];
  }
  const float* const* xs = kInputs == 0 ? inputs : x;
  const T* ws = kInputs == 0 ? weights : w;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) WeightedVector<kForm, kInputs>(d, base, xs, ws, num_inputs, hn::Set(d, scale), i, out);
  for (; i < n; ++i) WeightedVector<kForm, kInputs>(d1, base, xs, ws, num_inputs, hn::Set(d1, scale), i, out);
}

template <WeightedForm kForm, typename T>
HWY_INLINE void WeightedAny(const float* base, const float* const* inputs, const T* weights, std::size_t num_inputs, T scale, std::size_t n,
                            float* out) {
  switch (num_inputs) {
    case 1:
      return WeightedLoop<kForm, 1, T>(base, inputs, weights, 1, scale, n, out);
    case 2:
      return WeightedLoop<kForm, 2, T>(base, inputs, weights, 2, scale, n, out);
    case 3:
      return WeightedLoop<kForm, 3, T>(base, inputs, weights, 3, scale, n, out);
    case 4:
      return WeightedLoop<kForm, 4, T>(base, inputs, weights, 4, scale, n, out);
    default:
      return WeightedLoop<kForm, 0, T>(base, inputs, weights, num_inputs, scale, n, out);
  }
}

void WeightedSum(const float* const* inputs, const float* weights, std::size_t num_inputs, std::size_t n, float* out) {
  WeightedAny<WeightedForm::sum_f32, float>(nullptr, inputs, weights, num_inputs, 1.0F, n, out);
}

void WeightedSumF64(const float* const* inputs, const double* weights, std::size_t num_inputs, double scale, std::size_t n, float* out) {
  WeightedAny<WeightedForm::sum_f64, double>(nullptr, inputs, weights, num_inputs, scale, n, out);
}

void AddWeightedDeltasF64(const float* base, const float* const* inputs, const double* weights, std::size_t num_inputs, double scale, std::size_t n,
                          float* out) {
  WeightedAny<WeightedForm::deltas_f64, double>(base, inputs, weights, num_inputs, scale, n, out);
}

// ---- Two operands

struct SubtractOp {
  template <class V>
  static HWY_INLINE V Apply(V a, V b) {
    return hn::Sub(a, b);
  }
};
struct AddOp {
  template <class V>
  static HWY_INLINE V Apply(V a, V b) {
    return hn::Add(a, b);
  }
};

template <class Op>
HWY_INLINE void BinaryLoop(const float* a, const float* b, std::size_t n, float* out) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) hn::StoreU(Op::Apply(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, out + i);
  for (; i < n; ++i) hn::StoreU(Op::Apply(hn::LoadU(d1, a + i), hn::LoadU(d1, b + i)), d1, out + i);
}

void Subtract(const float* a, const float* b, std::size_t n, float* out) { BinaryLoop<SubtractOp>(a, b, n, out); }
void AddTwo(const float* a, const float* b, std::size_t n, float* out) { BinaryLoop<AddOp>(a, b, n, out); }

void Scale(const float* a, float factor, std::size_t n, float* out) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) hn::StoreU(hn::Mul(hn::LoadU(d, a + i), hn::Set(d, factor)), d, out + i);
  for (; i < n; ++i) hn::StoreU(hn::Mul(hn::LoadU(d1, a + i), hn::Set(d1, factor)), d1, out + i);
}

// ---- Sign consensus

template <std::size_t kInputs, class D>
HWY_INLINE void ConsensusVector(D d, const float* const* values, const float* weights, std::size_t num_inputs, std::size_t i, float* mixed,
                                float* divisor) {
  using V = hn::Vec<D>;
  const std::size_t count = kInputs == 0 ? num_inputs : kInputs;
  const V zero = hn::Zero(d);
  V sum = zero;
  for (std::size_t k = 0; k < count; ++k) sum = hn::Add(sum, hn::LoadU(d, values[k] + i));
  const auto positive = hn::Ge(sum, zero);
  V agreed = zero;
  V weight = zero;
  for (std::size_t k = 0; k < count; ++k) {
    const V v = hn::LoadU(d, values[k] + i);
    // An exact zero is neither above nor below, so it never agrees.
    const auto agrees = hn::Or(hn::And(positive, hn::Gt(v, zero)), hn::AndNot(positive, hn::Lt(v, zero)));
    agreed = hn::Add(agreed, hn::IfThenElseZero(agrees, v));
    weight = hn::Add(weight, hn::IfThenElseZero(agrees, hn::Set(d, weights[k])));
  }
  hn::StoreU(agreed, d, mixed + i);
  hn::StoreU(weight, d, divisor + i);
}

template <std::size_t kInputs>
HWY_INLINE void ConsensusLoop(const float* const* values, const float* weights, std::size_t num_inputs, std::size_t n, float* mixed, float* divisor) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const float* x[kInputs == 0 ? 1 : kInputs];
  float w[kInputs == 0 ? 1 : kInputs];
  for (std::size_t k = 0; k < kInputs; ++k) {
    x[k] = values[k];
    w[k] = weights[k];
  }
  const float* const* xs = kInputs == 0 ? values : x;
  const float* ws = kInputs == 0 ? weights : w;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) ConsensusVector<kInputs>(d, xs, ws, num_inputs, i, mixed, divisor);
  for (; i < n; ++i) ConsensusVector<kInputs>(d1, xs, ws, num_inputs, i, mixed, divisor);
}

void SignConsensus(const float* const* values, const float* weights, std::size_t num_inputs, std::size_t n, float* mixed, float* divisor) {
  switch (num_inputs) {
    case 2:
      return ConsensusLoop<2>(values, weights, 2, n, mixed, divisor);
    case 3:
      return ConsensusLoop<3>(values, weights, 3, n, mixed, divisor);
    case 4:
      return ConsensusLoop<4>(values, weights, 4, n, mixed, divisor);
    default:
      return ConsensusLoop<0>(values, weights, num_inputs, n, mixed, divisor);
  }
}

// ---- Thresholds

template <bool kKeepEqual, class D>
HWY_INLINE void KeepVector(D d, float* values, float threshold) {
  const auto v = hn::LoadU(d, values);
  const auto magnitude = hn::Abs(v);
  const auto bound = hn::Set(d, threshold);
  hn::StoreU(hn::IfThenElseZero(kKeepEqual ? hn::Ge(magnitude, bound) : hn::Gt(magnitude, bound), v), d, values);
}

/// Keeps |v| > threshold, or >=.
template <bool kKeepEqual>
HWY_INLINE void KeepLoop(float* values, std::size_t n, float threshold) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) KeepVector<kKeepEqual>(d, values + i, threshold);
  for (; i < n; ++i) KeepVector<kKeepEqual>(d1, values + i, threshold);
}

/// Of the first num_ties elements those at the threshold stay, of the rest they go.
void KeepAtLeast(float* values, std::size_t n, float threshold, std::size_t num_ties) {
  KeepLoop<true>(values, num_ties, threshold);
  KeepLoop<false>(values + num_ties, n - num_ties, threshold);
}

template <class D>
HWY_INLINE void KeepWhereBelowVector(D d, float* values, const float* uniform, float probability) {
  const auto gone = hn::Ge(hn::LoadU(d, uniform), hn::Set(d, probability));
  hn::StoreU(hn::IfThenZeroElse(gone, hn::LoadU(d, values)), d, values);
}

void KeepWhereBelow(float* values, const float* uniform, std::size_t n, float probability) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) KeepWhereBelowVector(d, values + i, uniform + i, probability);
  for (; i < n; ++i) KeepWhereBelowVector(d1, values + i, uniform + i, probability);
}

// ---- Steps of a limited size

template <class D>
HWY_INLINE void StepVector(D d, const float* base, const float* other, double step, float* out) {
  const hn::Rebind<float, D> df;
  const auto origin = LoadAsDouble(d, base);
  const auto difference = hn::Sub(LoadAsDouble(d, other), origin);
  const auto near = hn::Le(hn::Abs(difference), hn::Set(d, step));
  auto stepped = hn::Add(origin, hn::CopySign(hn::Set(d, step), difference));
  stepped = hn::IfThenElse(hn::IsNaN(difference), difference, stepped);
  // Where it is near, the other as it is: promoted and back changes nothing.
  hn::StoreU(RoundToFloat(df, hn::IfThenElse(near, LoadAsDouble(d, other), stepped)), df, out);
}

void StepToward(const float* base, const float* other, double step, std::size_t n, float* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) StepVector(d, base + i, other + i, step, out + i);
  for (; i < n; ++i) StepVector(d1, base + i, other + i, step, out + i);
}

template <class D>
HWY_INLINE void StepPartVector(D d, const float* base, const float* other, double step, double smallest, float* out) {
  const hn::Rebind<float, D> df;
  const auto origin = LoadAsDouble(d, base);
  const auto difference = hn::Sub(LoadAsDouble(d, other), origin);
  const auto part = hn::Min(hn::Div(hn::Set(d, step), hn::Max(hn::Abs(difference), hn::Set(d, smallest))), hn::Set(d, 1.0));
  hn::StoreU(RoundToFloat(df, hn::Add(origin, hn::Mul(part, difference))), df, out);
}

void StepPartWay(const float* base, const float* other, double step, double smallest, std::size_t n, float* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  std::size_t i = 0;
  for (; i + hn::MaxLanes(d) <= n; i += hn::MaxLanes(d)) StepPartVector(d, base + i, other + i, step, smallest, out + i);
  for (; i < n; ++i) StepPartVector(d1, base + i, other + i, step, smallest, out + i);
}

// ---- Philox4x32-10

inline constexpr std::uint32_t kPhiloxM0 = 0xD2511F53U;
inline constexpr std::uint32_t kPhiloxM1 = 0xCD9E8D57U;
inline constexpr std::uint32_t kPhiloxW0 = 0x9E3779B9U;
inline constexpr std::uint32_t kPhiloxW1 = 0xBB67AE85U;
inline constexpr float kTwoToMinus24 = 0x1p-24F;

/// One block of four elements.
HWY_INLINE void PhiloxOneBlock(std::uint64_t key, std::uint32_t model, std::uint32_t stream, std::uint64_t block, float* out) {
  std::uint32_t c0 = static_cast<std::uint32_t>(block);
  std::uint32_t c1 = static_cast<std::uint32_t>(block >> 32);
  std::uint32_t c2 = model;
  std::uint32_t c3 = stream;
  std::uint32_t k0 = static_cast<std::uint32_t>(key);
  std::uint32_t k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{c0} * kPhiloxM0;
    const std::uint64_t p1 = std::uint64_t{c2} * kPhiloxM1;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(p1);
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  out[0] = static_cast<float>(c0 >> 8) * kTwoToMinus24;
  out[1] = static_cast<float>(c1 >> 8) * kTwoToMinus24;
  out[2] = static_cast<float>(c2 >> 8) * kTwoToMinus24;
  out[3] = static_cast<float>(c3 >> 8) * kTwoToMinus24;
}

#if HWY_TARGET != HWY_SCALAR
/// Exchanges the 32-bit halves of each lane.
template <class D64, class V = hn::Vec<D64>>
HWY_INLINE V SwapHalves(D64 d64, V v) {
  const hn::Repartition<std::uint32_t, D64> d32;
  return hn::BitCast(d64, hn::Shuffle2301(hn::BitCast(d32, v)));
}
#endif

/// out: [4 * num_blocks].
void PhiloxBlocks(std::uint64_t key, std::uint32_t model, std::uint32_t stream, std::uint64_t first_block, std::size_t num_blocks, float* out) {
  std::size_t b = 0;
#if HWY_TARGET != HWY_SCALAR
  // Each word of a counter has a 64-bit lane of its own, of which only the low half means anything: MulEven reads the low halves and returns whole
  // products, so words need no regrouping. The high halves are garbage until the words are paired at the end; a high word is moved down by a swap,
  // which x86 does on another port than the products.
  const hn::ScalableTag<std::uint64_t> d64;
  const hn::Repartition<std::uint32_t, decltype(d64)> d32;
  const hn::Repartition<std::int32_t, decltype(d64)> di32;
  const hn::Repartition<float, decltype(d64)> df;
  using V = hn::Vec<decltype(d64)>;
  const auto m0 = hn::Set(d32, kPhiloxM0);
  const auto m1 = hn::Set(d32, kPhiloxM1);
  const V low_half = hn::Set(d64, 0xFFFFFFFFULL);
  for (; b + hn::MaxLanes(d64) <= num_blocks; b += hn::MaxLanes(d64)) {
    const V counter = hn::Add(hn::Iota(d64, 0), hn::Set(d64, first_block + b));
    V c0 = counter;
    V c1 = hn::ShiftRight<32>(counter);
    V c2 = hn::Set(d64, std::uint64_t{model});
    V c3 = hn::Set(d64, std::uint64_t{stream});
    std::uint32_t k0 = static_cast<std::uint32_t>(key);
    std::uint32_t k1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const V p0 = hn::MulEven(hn::BitCast(d32, c0), m0);
      const V p1 = hn::MulEven(hn::BitCast(d32, c2), m1);
      c0 = hn::Xor3(SwapHalves(d64, p1), c1, hn::Set(d64, std::uint64_t{k0}));
      c1 = p1;
      c2 = hn::Xor3(SwapHalves(d64, p0), c3, hn::Set(d64, std::uint64_t{k1}));
      c3 = p0;
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
    const V words01 = hn::Or(hn::And(c0, low_half), hn::ShiftLeft<32>(c1));
    const V words23 = hn::Or(hn::And(c2, low_half), hn::ShiftLeft<32>(c3));
    const auto scale = hn::Set(df, kTwoToMinus24);
    const auto u01 = hn::Mul(hn::ConvertTo(df, hn::BitCast(di32, hn::ShiftRight<8>(hn::BitCast(d32, words01)))), scale);
    const auto u23 = hn::Mul(hn::ConvertTo(df, hn::BitCast(di32, hn::ShiftRight<8>(hn::BitCast(d32, words23)))), scale);
    HWY_ALIGN std::uint64_t pairs[2 * hn::MaxLanes(d64)];
    hn::StoreInterleaved2(hn::BitCast(d64, u01), hn::BitCast(d64, u23), d64, pairs);
    std::memcpy(out + 4 * b, pairs, sizeof(pairs));
  }
#endif
  for (; b < num_blocks; ++b) PhiloxOneBlock(key, model, stream, first_block + b, out + 4 * b);
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
