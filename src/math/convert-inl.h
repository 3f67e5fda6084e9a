#if defined(WEFT_MATH_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_CONVERT_INL_H_
#undef WEFT_MATH_CONVERT_INL_H_
#else
#define WEFT_MATH_CONVERT_INL_H_
#endif

#include <bit>
#include <cstddef>
#include <cstdint>

#include "math/simd-inl.h"
#include "math/small_float.h"

// Whether the CPU's own float16 conversion is used. It rounds to nearest even, makes NaN quiet and keeps its payload, as small_float.h does.
#undef WEFT_MATH_NATIVE_F16
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define WEFT_MATH_NATIVE_F16 1
#else
#define WEFT_MATH_NATIVE_F16 0
#endif

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// ---- Codes in 32-bit lanes. The same steps as in small_float.h, with selections for branches.

/// kFormat cannot be a template parameter by value in clang 14 (a structural type), so it is one by reference.
template <const SmallFloat& kFormat, class DU, class V = hn::Vec<DU>>
HWY_INLINE V DecodeSmall(DU du, V code) {
  const hn::RebindToFloat<DU> df;
  const hn::RebindToSigned<DU> di;
  constexpr int kShift = kFormat.shift();
  const V magnitude = hn::And(code, hn::Set(du, kFormat.magnitude_mask()));
  const V sign = hn::ShiftLeft<31>(hn::ShiftRight<kFormat.magnitude_bits()>(code));
  const V shifted = hn::ShiftLeft<kShift>(magnitude);
  const V min_normal = hn::Set(du, kFormat.min_normal());
  const V subnormal = hn::BitCast(du, hn::Sub(hn::BitCast(df, hn::Add(shifted, min_normal)), hn::BitCast(df, min_normal)));
  const auto is_subnormal = hn::Lt(hn::BitCast(di, shifted), hn::Set(di, 1 << 23));
  V value = hn::IfThenElse(hn::RebindMask(du, is_subnormal), subnormal, hn::Add(shifted, hn::Set(du, kFormat.rebias())));
  if constexpr (kFormat.has_infinity) {
    const auto special = hn::Gt(hn::BitCast(di, magnitude), hn::Set(di, static_cast<std::int32_t>(kFormat.cap - 1)));
    const auto nan = hn::Gt(hn::BitCast(di, magnitude), hn::Set(di, static_cast<std::int32_t>(kFormat.cap)));
    const V quiet = hn::IfThenElseZero(hn::RebindMask(du, nan), hn::Set(du, kQuietBit32));
    value = hn::IfThenElse(hn::RebindMask(du, special), hn::Or(hn::Or(shifted, hn::Set(du, kInfinity32)), quiet), value);
  } else if constexpr (!kFormat.unsigned_zero && kFormat.nan != 0) {
    value = hn::IfThenElse(hn::Eq(magnitude, hn::Set(du, kFormat.nan)), hn::Set(du, kQuietNaN32), value);
  }
  value = hn::Or(value, sign);
  if constexpr (kFormat.unsigned_zero) value = hn::IfThenElse(hn::Eq(code, hn::Set(du, kFormat.nan)), hn::Set(du, kQuietNaN32), value);
  return value;
}

template <const SmallFloat& kFormat, class DU, class V = hn::Vec<DU>>
HWY_INLINE V EncodeSmall(DU du, V bits) {
  const hn::RebindToFloat<DU> df;
  const hn::RebindToSigned<DU> di;
  constexpr int kShift = kFormat.shift();
  const V magnitude = hn::And(bits, hn::Set(du, kMagnitudeMask32));
  const V sign = hn::ShiftLeft<kFormat.magnitude_bits()>(hn::ShiftRight<31>(bits));
  const V odd = hn::And(hn::ShiftRight<kShift>(magnitude), hn::Set(du, 1U));
  const V rounding = hn::Set(du, (1U << (kShift - 1)) - 1 - kFormat.rebias());
  const V normal = hn::ShiftRight<kShift>(hn::Add(hn::Add(magnitude, rounding), odd));
  const V subnormal_shift = hn::Set(du, kFormat.subnormal_shift());
  const V subnormal = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), hn::BitCast(df, subnormal_shift))), subnormal_shift);
  const auto is_subnormal = hn::Lt(hn::BitCast(di, magnitude), hn::Set(di, static_cast<std::int32_t>(kFormat.min_normal())));
  V code = hn::IfThenElse(hn::RebindMask(du, is_subnormal), subnormal, normal);
  code = hn::BitCast(du, hn::Min(hn::BitCast(di, code), hn::Set(di, static_cast<std::int32_t>(kFormat.cap))));
  if constexpr (kFormat.unsigned_zero) {
    code = hn::IfThenZeroElse(hn::Eq(code, hn::Zero(du)), hn::Or(code, sign));
  }
  if constexpr (kFormat.nan != 0) {
    V nan = hn::Set(du, kFormat.nan);
    if constexpr (kFormat.keeps_payload)
      nan = hn::Or(nan, hn::And(hn::ShiftRight<kShift>(magnitude), hn::Set(du, (1U << kFormat.mantissa_bits) - 1)));
    const auto is_nan = hn::Gt(hn::BitCast(di, magnitude), hn::Set(di, static_cast<std::int32_t>(kInfinity32)));
    code = hn::IfThenElse(hn::RebindMask(du, is_nan), nan, code);
  }
  if constexpr (!kFormat.unsigned_zero) code = hn::Or(code, sign);
  return code;
}

/// The upper half of each lane of the result is the bfloat16; the lower half is to be dropped.
template <class DU, class V = hn::Vec<DU>>
HWY_INLINE V RoundBf16(DU du, V bits) {
  const hn::RebindToSigned<DU> di;
  const V magnitude = hn::And(bits, hn::Set(du, kMagnitudeMask32));
  const V odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1U));
  const V rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFU)), odd);
  const auto is_nan = hn::Gt(hn::BitCast(di, magnitude), hn::Set(di, static_cast<std::int32_t>(kInfinity32)));
  return hn::IfThenElse(hn::RebindMask(du, is_nan), hn::Or(bits, hn::Set(du, kQuietBit32)), rounded);
}

// ---- Codecs: how one vector of float32 is read from and written to stored bytes

struct Bf16Codec {
  static constexpr std::size_t kBytes = 2;
  template <class DF>
  static HWY_INLINE hn::Vec<DF> Read(DF df, const std::uint8_t* p) {
    const hn::RebindToUnsigned<DF> du;
    const hn::Rebind<std::uint16_t, DF> d16;
    return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, LoadBytes(d16, p))));
  }
  template <class DF>
  static HWY_INLINE void Write(DF df, hn::Vec<DF> v, std::uint8_t* p) {
    const hn::RebindToUnsigned<DF> du;
    (void)df;
    const hn::Rebind<std::uint16_t, DF> d16;
    StoreBytes(hn::TruncateTo(d16, hn::ShiftRight<16>(RoundBf16(du, hn::BitCast(du, v)))), d16, p);
  }
  template <class DF>
  static HWY_INLINE hn::Vec<DF> Through(DF df, hn::Vec<DF> v) {
    const hn::RebindToUnsigned<DF> du;
    return hn::BitCast(df, hn::And(RoundBf16(du, hn::BitCast(du, v)), hn::Set(du, 0xFFFF0000U)));
  }
};

struct F16Codec {
  static constexpr std::size_t kBytes = 2;
#if WEFT_MATH_NATIVE_F16
  template <class DF>
  static HWY_INLINE hn::Vec<DF> Read(DF df, const std::uint8_t* p) {
    const hn::Rebind<std::uint16_t, DF> d16;
    const hn::Rebind<hwy::float16_t, DF> dh;
    return hn::PromoteTo(df, hn::BitCast(dh, LoadBytes(d16, p)));
  }
  template <class DF>
  static HWY_INLINE void Write(DF df, hn::Vec<DF> v, std::uint8_t* p) {
    (void)df;
    const hn::Rebind<std::uint16_t, DF> d16;
    const hn::Rebind<hwy::float16_t, DF> dh;
    StoreBytes(hn::BitCast(d16, hn::DemoteTo(dh, v)), d16, p);
  }
  template <class DF>
  static HWY_INLINE hn::Vec<DF> Through(DF df, hn::Vec<DF> v) {
    const hn::Rebind<hwy::float16_t, DF> dh;
    return hn::PromoteTo(df, hn::DemoteTo(dh, v));
  }
#else
  template <class DF>
  static HWY_INLINE hn::Vec<DF> Read(DF df, const std::uint8_t* p) {
    const hn::RebindToUnsigned<DF> du;
    const hn::Rebind<std::uint16_t, DF> d16;
    return hn::BitCast(df, DecodeSmall<kF16>(du, hn::PromoteTo(du, LoadBytes(d16, p))));
  }
  template <class DF>
  static HWY_INLINE void Write(DF df, hn::Vec<DF> v, std::uint8_t* p) {
    (void)df;
    const hn::RebindToUnsigned<DF> du;
    const hn::Rebind<std::uint16_t, DF> d16;
    StoreBytes(hn::TruncateTo(d16, EncodeSmall<kF16>(du, hn::BitCast(du, v))), d16, p);
  }
  template <class DF>
  static HWY_INLINE hn::Vec<DF> Through(DF df, hn::Vec<DF> v) {
    const hn::RebindToUnsigned<DF> du;
    return hn::BitCast(df, DecodeSmall<kF16>(du, EncodeSmall<kF16>(du, hn::BitCast(du, v))));
  }
#endif
};

/// Formats of one byte.
template <const SmallFloat& kFormat>
struct ByteCodec {
  static constexpr std::size_t kBytes = 1;
  template <class DF>
  static HWY_INLINE hn::Vec<DF> Read(DF df, const std::uint8_t* p) {
    const hn::RebindToUnsigned<DF> du;
    const hn::Rebind<std::uint8_t, DF> d8;
    return hn::BitCast(df, DecodeSmall<kFormat>(du, hn::PromoteTo(du, LoadBytes(d8, p))));
  }
  template <class DF>
  static HWY_INLINE void Write(DF df, hn::Vec<DF> v, std::uint8_t* p) {
    (void)df;
    const hn::RebindToUnsigned<DF> du;
    const hn::Rebind<std::uint8_t, DF> d8;
    StoreBytes(hn::TruncateTo(d8, EncodeSmall<kFormat>(du, hn::BitCast(du, v))), d8, p);
  }
  template <class DF>
  static HWY_INLINE hn::Vec<DF> Through(DF df, hn::Vec<DF> v) {
    const hn::RebindToUnsigned<DF> du;
    return hn::BitCast(df, DecodeSmall<kFormat>(du, EncodeSmall<kFormat>(du, hn::BitCast(du, v))));
  }
};

// ---- Loops

template <class Codec>
HWY_INLINE void DecodeLoop(const std::uint8_t* in, std::size_t n, float* out) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(Codec::Read(d, in + i * Codec::kBytes), d, out + i);
  for (; i < n; ++i) hn::StoreU(Codec::Read(d1, in + i * Codec::kBytes), d1, out + i);
}

template <class Codec>
HWY_INLINE void EncodeLoop(const float* in, std::size_t n, std::uint8_t* out) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Codec::Write(d, hn::LoadU(d, in + i), out + i * Codec::kBytes);
  for (; i < n; ++i) Codec::Write(d1, hn::LoadU(d1, in + i), out + i * Codec::kBytes);
}

template <class Codec>
HWY_INLINE void ThroughLoop(float* values, std::size_t n) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(Codec::Through(d, hn::LoadU(d, values + i)), d, values + i);
  for (; i < n; ++i) hn::StoreU(Codec::Through(d1, hn::LoadU(d1, values + i)), d1, values + i);
}

void DecodeBf16(const std::uint8_t* in, std::size_t n, float* out) { DecodeLoop<Bf16Codec>(in, n, out); }
void DecodeF16(const std::uint8_t* in, std::size_t n, float* out) { DecodeLoop<F16Codec>(in, n, out); }
void DecodeE4M3(const std::uint8_t* in, std::size_t n, float* out) { DecodeLoop<ByteCodec<kF8E4M3>>(in, n, out); }
void DecodeE5M2(const std::uint8_t* in, std::size_t n, float* out) { DecodeLoop<ByteCodec<kF8E5M2>>(in, n, out); }
void DecodeE4M3Fnuz(const std::uint8_t* in, std::size_t n, float* out) { DecodeLoop<ByteCodec<kF8E4M3Fnuz>>(in, n, out); }
void DecodeE5M2Fnuz(const std::uint8_t* in, std::size_t n, float* out) { DecodeLoop<ByteCodec<kF8E5M2Fnuz>>(in, n, out); }

void EncodeBf16(const float* in, std::size_t n, std::uint8_t* out) {
  std::size_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  // Two vectors at a time, whose upper halves fill one; NaN is so rare that it is only looked for.
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::Repartition<std::uint16_t, decltype(d)> d16;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto one = hn::Set(du, 1U);
  const auto rounding = hn::Set(du, 0x7FFFU);
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const auto v0 = hn::LoadU(d, in + i);
    const auto v1 = hn::LoadU(d, in + i + kLanes);
    const auto bits0 = hn::BitCast(du, v0);
    const auto bits1 = hn::BitCast(du, v1);
    auto rounded0 = hn::Add(hn::Add(bits0, rounding), hn::And(hn::ShiftRight<16>(bits0), one));
    auto rounded1 = hn::Add(hn::Add(bits1, rounding), hn::And(hn::ShiftRight<16>(bits1), one));
    if (HWY_UNLIKELY(!hn::AllFalse(d, hn::Or(hn::IsNaN(v0), hn::IsNaN(v1))))) {
      rounded0 = RoundBf16(du, bits0);
      rounded1 = RoundBf16(du, bits1);
    }
    StoreBytes(hn::ConcatOdd(d16, hn::BitCast(d16, rounded1), hn::BitCast(d16, rounded0)), d16, out + 2 * i);
  }
#endif
  EncodeLoop<Bf16Codec>(in + i, n - i, out + 2 * i);
}
void EncodeF16(const float* in, std::size_t n, std::uint8_t* out) { EncodeLoop<F16Codec>(in, n, out); }
void EncodeE4M3(const float* in, std::size_t n, std::uint8_t* out) { EncodeLoop<ByteCodec<kF8E4M3>>(in, n, out); }
void EncodeE5M2(const float* in, std::size_t n, std::uint8_t* out) { EncodeLoop<ByteCodec<kF8E5M2>>(in, n, out); }
void EncodeE4M3Fnuz(const float* in, std::size_t n, std::uint8_t* out) { EncodeLoop<ByteCodec<kF8E4M3Fnuz>>(in, n, out); }
void EncodeE5M2Fnuz(const float* in, std::size_t n, std::uint8_t* out) { EncodeLoop<ByteCodec<kF8E5M2Fnuz>>(in, n, out); }
/// One code a byte, to be packed.
void EncodeF4Codes(const float* in, std::size_t n, std::uint8_t* out) { EncodeLoop<ByteCodec<kF4>>(in, n, out); }

void ThroughBf16(float* values, std::size_t n) { ThroughLoop<Bf16Codec>(values, n); }
void ThroughF16(float* values, std::size_t n) { ThroughLoop<F16Codec>(values, n); }
void ThroughE4M3(float* values, std::size_t n) { ThroughLoop<ByteCodec<kF8E4M3>>(values, n); }
void ThroughE5M2(float* values, std::size_t n) { ThroughLoop<ByteCodec<kF8E5M2>>(values, n); }
void ThroughE4M3Fnuz(float* values, std::size_t n) { ThroughLoop<ByteCodec<kF8E4M3Fnuz>>(values, n); }
void ThroughE5M2Fnuz(float* values, std::size_t n) { ThroughLoop<ByteCodec<kF8E5M2Fnuz>>(values, n); }
void ThroughF4(float* values, std::size_t n) { ThroughLoop<ByteCodec<kF4>>(values, n); }

template <class D>
HWY_INLINE void DecodeF64Vector(D d, const std::uint8_t* in, float* out) {
  const hn::Rebind<double, D> dd;
  hn::StoreU(RoundToFloat(d, LoadBytes(dd, in)), d, out);
}

void DecodeF64(const std::uint8_t* in, std::size_t n, float* out) {
  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> d;
  const hn::CappedTag<float, 1> d1;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) DecodeF64Vector(d, in + i * 8, out + i);
  for (; i < n; ++i) DecodeF64Vector(d1, in + i * 8, out + i);
}

void EncodeF64(const float* in, std::size_t n, std::uint8_t* out) {
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) StoreBytes(LoadAsDouble(d, in + i), d, out + i * 8);
  for (; i < n; ++i) StoreBytes(LoadAsDouble(d1, in + i), d1, out + i * 8);
}

// ---- Bad values

/// At most 2^31 elements.
std::uint64_t CountNonFinite(const float* in, std::size_t n) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::Rebind<float, decltype(d)> df;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto exponent = hn::Set(d, static_cast<std::int32_t>(kInfinity32));
  auto count = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto bad = hn::Eq(hn::And(hn::BitCast(d, hn::LoadU(df, in + i)), exponent), exponent);
    count = hn::Sub(count, hn::VecFromMask(d, bad));
  }
  std::int32_t lanes[kLanes];
  hn::StoreU(count, d, lanes);
  std::uint64_t total = 0;
  for (std::size_t v = 0; v < kLanes; ++v) total += static_cast<std::uint64_t>(lanes[v]);
  for (; i < n; ++i) total += (std::bit_cast<std::uint32_t>(in[i]) & kInfinity32) == kInfinity32 ? 1U : 0U;
  return total;
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
