#if defined(WEFT_MATH_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_BLOCKS_INL_H_
#undef WEFT_MATH_BLOCKS_INL_H_
#else
#define WEFT_MATH_BLOCKS_INL_H_
#endif

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "math/simd-inl.h"
#include "math/small_float.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// Each type is unpacked to one signed byte a value, those of 256 by plain loops of fixed length, which compilers turn into byte vectors; the bytes
// are then widened and scaled by explicit vectors.

HWY_INLINE float HalfAt(const std::uint8_t* p) {
  std::uint16_t code = 0;
  std::memcpy(&code, p, sizeof(code));
  return std::bit_cast<float>(decode_small(kF16, code));
}

template <class D>
HWY_INLINE hn::Vec<D> LoadQuants(D d, const std::int8_t* q) {
  const hn::RebindToSigned<D> di;
  const hn::Rebind<std::int8_t, D> d8;
  return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, q)));
}

/// out = q * scale.
template <std::size_t kCount>
HWY_INLINE void Scale(const std::int8_t* q, float scale, float* out) {
  const hn::CappedTag<float, 16> d;
  const auto s = hn::Set(d, scale);
  for (std::size_t i = 0; i < kCount; i += hn::MaxLanes(d)) hn::StoreU(hn::Mul(LoadQuants(d, q + i), s), d, out + i);
}
/// out = q * scale + offset.
template <std::size_t kCount>
HWY_INLINE void ScaleAdd(const std::int8_t* q, float scale, float offset, float* out) {
  const hn::CappedTag<float, 16> d;
  const auto s = hn::Set(d, scale);
  const auto o = hn::Set(d, offset);
  for (std::size_t i = 0; i < kCount; i += hn::MaxLanes(d)) hn::StoreU(hn::Add(hn::Mul(LoadQuants(d, q + i), s), o), d, out + i);
}
/// out = q * scale - offset. Not ScaleAdd of -offset: the sign of a zero would be another's.
template <std::size_t kCount>
HWY_INLINE void ScaleSub(const std::int8_t* q, float scale, float offset, float* out) {
  const hn::CappedTag<float, 16> d;
  const auto s = hn::Set(d, scale);
  const auto o = hn::Set(d, offset);
  for (std::size_t i = 0; i < kCount; i += hn::MaxLanes(d)) hn::StoreU(hn::Sub(hn::Mul(LoadQuants(d, q + i), s), o), d, out + i);
}

// ---- Blocks of 32

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void Nibbles(const std::uint8_t* qs, int minus, std::int8_t* q) {
  for (int i = 0; i < 16; ++i) q[i] = static_cast<std::int8_t>((qs[i] & 15) - minus);
  for (int i = 0; i < 16; ++i) q[16 + i] = static_cast<std::int8_t>((qs[i] >> 4) - minus);
}

/// Nibbles with a fifth bit each out of a word.
HWY_INLINE void FiveBits(const std::uint8_t* high, const std::uint8_t* qs, int minus, std::int8_t* q) {
  for (int i = 0; i < 32; ++i) {
    const int nibble = i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
    q[i] = static_cast<std::int8_t>((nibble | ((high[i / 8] >> (i % 8)) & 1) << 4) - minus);
  }
}
#else
using Bytes16 = hn::FixedTag<std::uint8_t, 16>;

HWY_INLINE hn::Vec<Bytes16> HighNibbles(hn::Vec<Bytes16> v) {
  // There is no shift of bytes: what comes in from the neighbour is masked off.
  const Bytes16 d;
  const hn::Repartition<std::uint16_t, Bytes16> d16;
  return hn::And(hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, v))), hn::Set(d, std::uint8_t{15}));
}

HWY_INLINE void Nibbles(const std::uint8_t* qs, int minus, std::int8_t* q) {
  const Bytes16 d;
  const hn::RebindToSigned<Bytes16> di;
  const auto v = hn::LoadU(d, qs);
  const auto m = hn::Set(d, static_cast<std::uint8_t>(minus));
  hn::StoreU(hn::BitCast(di, hn::Sub(hn::And(v, hn::Set(d, std::uint8_t{15})), m)), di, q);
  hn::StoreU(hn::BitCast(di, hn::Sub(HighNibbles(v), m)), di, q + 16);
}

/// Nibbles with a fifth bit each out of a word.
HWY_INLINE void FiveBits(const std::uint8_t* high, const std::uint8_t* qs, int minus, std::int8_t* q) {
  const Bytes16 d;
  const hn::RebindToSigned<Bytes16> di;
  // The eight bits of a byte, each alone in a byte of its own: bit i of the byte stays at bit i of byte i.
  static_assert(std::endian::native == std::endian::little);
  alignas(16) std::uint64_t spread[4];
  for (int b = 0; b < 4; ++b) spread[b] = high[b] * std::uint64_t{0x0101010101010101} & std::uint64_t{0x8040201008040201};
  const auto* bits = reinterpret_cast<const std::uint8_t*>(spread);
  const auto fifth = [&](int at) {
    return hn::AndNot(hn::VecFromMask(d, hn::Eq(hn::LoadU(d, bits + at), hn::Zero(d))), hn::Set(d, std::uint8_t{16}));
  };
  const auto v = hn::LoadU(d, qs);
  const auto m = hn::Set(d, static_cast<std::uint8_t>(minus));
  hn::StoreU(hn::BitCast(di, hn::Sub(hn::Or(hn::And(v, hn::Set(d, std::uint8_t{15})), fifth(0)), m)), di, q);
  hn::StoreU(hn::BitCast(di, hn::Sub(hn::Or(HighNibbles(v), fifth(16)), m)), di, q + 16);
}
#endif

void DecodeQ4_0(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[32];
  for (; n != 0; --n, in += 18, out += 32) {
    Nibbles(in + 2, 8, q);
    Scale<32>(q, HalfAt(in), out);
  }
}
void DecodeQ4_1(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[32];
  for (; n != 0; --n, in += 20, out += 32) {
    Nibbles(in + 4, 0, q);
    ScaleAdd<32>(q, HalfAt(in), HalfAt(in + 2), out);
  }
}
void DecodeQ5_0(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[32];
  for (; n != 0; --n, in += 22, out += 32) {
    FiveBits(in + 2, in + 6, 16, q);
    Scale<32>(q, HalfAt(in), out);
  }
}
void DecodeQ5_1(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[32];
  for (; n != 0; --n, in += 24, out += 32) {
    FiveBits(in + 4, in + 8, 0, q);
    ScaleAdd<32>(q, HalfAt(in), HalfAt(in + 2), out);
  }
}
void DecodeQ8_0(const std::uint8_t* in, std::size_t n, float* out) {
  for (; n != 0; --n, in += 34, out += 32) Scale<32>(reinterpret_cast<const std::int8_t*>(in + 2), HalfAt(in), out);
}

constexpr std::int8_t kNonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

HWY_INLINE void LookUp(const std::uint8_t* qs, std::int8_t* q) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 16; ++i) {
    q[i] = kNonlinear[qs[i] & 15];
    q[16 + i] = kNonlinear[qs[i] >> 4];
  }
#else
  const Bytes16 d;
  const hn::RebindToSigned<Bytes16> di;
  const auto table = hn::BitCast(d, hn::LoadU(di, kNonlinear));
  const auto v = hn::LoadU(d, qs);
  const auto mask = hn::Set(d, std::uint8_t{15});
  const auto high = HighNibbles(v);
  hn::StoreU(hn::BitCast(di, hn::TableLookupBytes(table, hn::And(v, mask))), di, q);
  hn::StoreU(hn::BitCast(di, hn::TableLookupBytes(table, high)), di, q + 16);
#endif
}

void DecodeIq4Nl(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[32];
  for (; n != 0; --n, in += 18, out += 32) {
    LookUp(in + 2, q);
    Scale<32>(q, HalfAt(in), out);
  }
}
void DecodeIq4Xs(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[32];
  for (; n != 0; --n, in += 136, out += 256) {
    const float d = HalfAt(in);
    std::uint16_t high = 0;
    std::memcpy(&high, in + 2, 2);
    for (int b = 0; b < 8; ++b) {
      const int scale = ((in[4 + b / 2] >> (4 * (b % 2))) & 15) | (((high >> (2 * b)) & 3) << 4);
      LookUp(in + 8 + 16 * b, q);
      Scale<32>(q, d * static_cast<float>(scale - 32), out + 32 * b);
    }
  }
}

// ---- Blocks of 256

void DecodeQ2K(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[256];
  for (; n != 0; --n, in += 84, out += 256) {
    const std::uint8_t* qs = in + 16;
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j)
        for (int l = 0; l < 32; ++l) q[128 * half + 32 * j + l] = static_cast<std::int8_t>((qs[32 * half + l] >> (2 * j)) & 3);
    }
    const float d = HalfAt(in + 80);
    const float dmin = HalfAt(in + 82);
    for (int s = 0; s < 16; ++s) ScaleSub<16>(q + 16 * s, d * static_cast<float>(in[s] & 15), dmin * static_cast<float>(in[s] >> 4), out + 16 * s);
  }
}

void DecodeQ3K(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[256];
  for (; n != 0; --n, in += 110, out += 256) {
    const std::uint8_t* qs = in + 32;
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j)
        for (int l = 0; l < 32; ++l) {
          // The high bit, where it is missing, takes 4 away.
          const int high = ((in[l] >> (4 * half + j)) & 1) << 2;
          q[128 * half + 32 * j + l] = static_cast<std::int8_t>((((qs[32 * half + l] >> (2 * j)) & 3) | high) - 4);
        }
    }
    const std::uint8_t* packed = in + 96;
    const float d = HalfAt(in + 108);
    for (int s = 0; s < 16; ++s) {
      const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
      const int scale = low | (((packed[8 + s % 4] >> (2 * (s / 4))) & 3) << 4);
      Scale<16>(q + 16 * s, d * static_cast<float>(scale - 32), out + 16 * s);
    }
  }
}

/// The eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K.
HWY_INLINE void ScalesAndMinima(const std::uint8_t* packed, std::uint8_t* scales, std::uint8_t* minima) {
  for (int j = 0; j < 4; ++j) {
    scales[j] = packed[j] & 63;
    minima[j] = packed[j + 4] & 63;
    scales[j + 4] = static_cast<std::uint8_t>((packed[j + 8] & 15) | ((packed[j] >> 6) << 4));
    minima[j + 4] = static_cast<std::uint8_t>((packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4));
  }
}

void DecodeQ4K(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[64];
  std::uint8_t scales[8], minima[8];
  for (; n != 0; --n, in += 144, out += 256) {
    const float d = HalfAt(in);
    const float dmin = HalfAt(in + 2);
    ScalesAndMinima(in + 4, scales, minima);
    for (int c = 0; c < 4; ++c) {
      const std::uint8_t* qs = in + 16 + 32 * c;
      for (int l = 0; l < 32; ++l) q[l] = static_cast<std::int8_t>(qs[l] & 15);
      for (int l = 0; l < 32; ++l) q[32 + l] = static_cast<std::int8_t>(qs[l] >> 4);
      for (int s = 0; s < 2; ++s) {
        const int j = 2 * c + s;
        ScaleSub<32>(q + 32 * s, d * static_cast<float>(scales[j]), dmin * static_cast<float>(minima[j]), out + 32 * j);
      }
    }
  }
}

void DecodeQ5K(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[64];
  std::uint8_t scales[8], minima[8];
  for (; n != 0; --n, in += 176, out += 256) {
    const float d = HalfAt(in);
    const float dmin = HalfAt(in + 2);
    ScalesAndMinima(in + 4, scales, minima);
    const std::uint8_t* high = in + 16;
    for (int c = 0; c < 4; ++c) {
      const std::uint8_t* qs = in + 48 + 32 * c;
      for (int l = 0; l < 32; ++l) q[l] = static_cast<std::int8_t>((qs[l] & 15) | (((high[l] >> (2 * c)) & 1) << 4));
      for (int l = 0; l < 32; ++l) q[32 + l] = static_cast<std::int8_t>((qs[l] >> 4) | (((high[l] >> (2 * c + 1)) & 1) << 4));
      for (int s = 0; s < 2; ++s) {
        const int j = 2 * c + s;
        ScaleSub<32>(q + 32 * s, d * static_cast<float>(scales[j]), dmin * static_cast<float>(minima[j]), out + 32 * j);
      }
    }
  }
}

void DecodeQ6K(const std::uint8_t* in, std::size_t n, float* out) {
  alignas(64) std::int8_t q[128];
  for (; n != 0; --n, in += 210) {
    const float d = HalfAt(in + 208);
    const auto* scales = reinterpret_cast<const std::int8_t*>(in + 192);
    for (int half = 0; half < 2; ++half, out += 128, scales += 8) {
      const std::uint8_t* low = in + 64 * half;
      const std::uint8_t* high = in + 128 + 32 * half;
      for (int l = 0; l < 32; ++l) q[l] = static_cast<std::int8_t>(((low[l] & 15) | ((high[l] & 3) << 4)) - 32);
      for (int l = 0; l < 32; ++l) q[32 + l] = static_cast<std::int8_t>(((low[32 + l] & 15) | (((high[l] >> 2) & 3) << 4)) - 32);
      for (int l = 0; l < 32; ++l) q[64 + l] = static_cast<std::int8_t>(((low[l] >> 4) | (((high[l] >> 4) & 3) << 4)) - 32);
      for (int l = 0; l < 32; ++l) q[96 + l] = static_cast<std::int8_t>(((low[32 + l] >> 4) | ((high[l] >> 6) << 4)) - 32);
      for (int s = 0; s < 8; ++s) Scale<16>(q + 16 * s, d * static_cast<float>(scales[s]), out + 16 * s);
    }
  }
}

// ---- Encoding

/// The bits of the largest magnitude of 32 values: as whole numbers they are in order, with NaN beyond infinity.
HWY_INLINE std::uint32_t LargestBits(const float* in) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto magnitude = hn::Set(di, static_cast<std::int32_t>(kMagnitudeMask32));
  auto largest = hn::Zero(di);
  for (std::size_t i = 0; i < 32; i += hn::MaxLanes(d)) largest = hn::Max(largest, hn::And(hn::BitCast(di, hn::LoadU(d, in + i)), magnitude));
  return static_cast<std::uint32_t>(hn::GetLane(hn::MaxOfLanes(di, largest)));
}

/// One block of Q8_0, whatever is in it.
HWY_NOINLINE void EncodeOneQ8_0(const float* in, std::uint8_t* out) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::int8_t, decltype(d)> d8;
  const std::uint32_t largest = LargestBits(in);
  const float scale = std::bit_cast<float>(largest) / 127.0F;
  float inverse = scale != 0.0F ? 1.0F / scale : 0.0F;
  if (!(std::bit_cast<std::uint32_t>(inverse) < kInfinity32) || largest >= kInfinity32) inverse = 0.0F;
  const std::uint16_t half = static_cast<std::uint16_t>(encode_small(kF16, std::bit_cast<std::uint32_t>(scale)));
  std::memcpy(out, &half, 2);
  if (inverse == 0.0F) {
    std::memset(out + 2, 0, 32);
    return;
  }
  const auto factor = hn::Set(d, inverse);
  for (std::size_t i = 0; i < 32; i += hn::MaxLanes(d)) {
    const auto v = hn::Mul(hn::LoadU(d, in + i), factor);
    const auto whole = hn::ConvertTo(di, v);
    const auto rest = hn::Sub(v, hn::ConvertTo(d, whole));
    // A mask is -1 as a whole number.
    const auto up = hn::BitCast(di, hn::VecFromMask(d, hn::Ge(rest, hn::Set(d, 0.5F))));
    const auto down = hn::BitCast(di, hn::VecFromMask(d, hn::Le(rest, hn::Set(d, -0.5F))));
    hn::StoreU(hn::DemoteTo(d8, hn::Add(hn::Sub(whole, up), down)), d8, reinterpret_cast<std::int8_t*>(out + 2 + i));
  }
}

/// One block of Q4_0, whatever is in it.
HWY_NOINLINE void EncodeOneQ4_0(const float* in, std::uint8_t* out) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::uint8_t, decltype(d)> d8;
  const auto most = hn::Set(di, 15);
  const std::uint32_t bits = LargestBits(in);
  const float magnitude = std::bit_cast<float>(bits);
  // The first value of that magnitude becomes -8.
  std::size_t first = 0;
  for (std::size_t i = 0; i < 32; i += hn::MaxLanes(d)) {
    const auto own = hn::And(hn::BitCast(di, hn::LoadU(d, in + i)), hn::Set(di, static_cast<std::int32_t>(kMagnitudeMask32)));
    const auto place = hn::FindFirstTrue(di, hn::Eq(own, hn::Set(di, static_cast<std::int32_t>(bits))));
    if (place >= 0) {
      first = i + static_cast<std::size_t>(place);
      break;
    }
  }
  const float largest = bits == 0 ? 0.0F : std::bit_cast<std::uint32_t>(in[first]) >> 31 != 0 ? -magnitude : magnitude;
  const float scale = largest / -8.0F;
  const float inverse = scale != 0.0F ? 1.0F / scale : 0.0F;
  const std::uint16_t half = static_cast<std::uint16_t>(encode_small(kF16, std::bit_cast<std::uint32_t>(scale)));
  std::memcpy(out, &half, 2);
  if (bits >= kInfinity32 || (std::bit_cast<std::uint32_t>(inverse) & kMagnitudeMask32) >= kInfinity32) {
    std::memset(out + 2, 0, 16);
    return;
  }
  const auto factor = hn::Set(d, inverse);
  const auto offset = hn::Set(d, 8.5F);
  for (std::size_t i = 0; i < 16; i += hn::MaxLanes(d)) {
    const auto low = hn::Min(most, hn::ConvertTo(di, hn::Add(hn::Mul(hn::LoadU(d, in + i), factor), offset)));
    const auto high = hn::Min(most, hn::ConvertTo(di, hn::Add(hn::Mul(hn::LoadU(d, in + 16 + i), factor), offset)));
    hn::StoreU(hn::DemoteTo(d8, hn::Or(low, hn::ShiftLeft<4>(high))), d8, out + 2 + i);
  }
}

#if HWY_TARGET != HWY_SCALAR
// As many blocks at a time as a vector has lanes, so that what there is one of in a block (its scale) is computed for all of them at once.
using GroupTag = hn::CappedTag<float, 16>;
using GroupBits = hn::RebindToUnsigned<GroupTag>;
using GroupInts = hn::RebindToSigned<GroupTag>;
constexpr std::size_t kGroup = hn::MaxLanes(GroupTag());

/// The largest lane of each of kCount vectors: load(first), load(first + 1), ...; for kCount == kGroup in their order.
template <std::size_t kCount, class Load>
HWY_INLINE hn::Vec<GroupBits> LargestLanes(const Load& load, std::size_t first) {
  if constexpr (kCount == 1) {
    return load(first);
  } else {
    const GroupBits du;
    const auto low = LargestLanes<kCount / 2>(load, first);
    const auto high = LargestLanes<kCount / 2>(load, first + kCount / 2);
    return hn::Max(hn::ConcatEven(du, high, low), hn::ConcatOdd(du, high, low));
  }
}

/// 32 values after make(), of which the largest of each lane stays.
template <class Make>
HWY_INLINE hn::Vec<GroupBits> LargestOfBlock(const float* in, const Make& make) {
  const GroupTag d;
  const GroupBits du;
  auto largest = make(hn::BitCast(du, hn::LoadU(d, in)));
  for (std::size_t i = kGroup; i < 32; i += kGroup) largest = hn::Max(largest, make(hn::BitCast(du, hn::LoadU(d, in + i))));
  return largest;
}

HWY_INLINE void StoreHalves(hn::Vec<GroupTag> v, std::uint16_t* out) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const hn::Rebind<hwy::float16_t, GroupTag> dh;
  const hn::Rebind<std::uint16_t, GroupTag> d16;
  hn::Store(hn::BitCast(d16, hn::DemoteTo(dh, v)), d16, out);
#else
  alignas(64) float values[kGroup];
  hn::Store(v, GroupTag(), values);
  for (std::size_t b = 0; b < kGroup; ++b) out[b] = static_cast<std::uint16_t>(encode_small(kF16, std::bit_cast<std::uint32_t>(values[b])));
#endif
}

/// Blocks of which `odd` is true once more, one by one.
template <std::size_t kBytes, class Encode>
HWY_INLINE void EncodeOdd(hn::Mask<GroupInts> odd, const float* in, std::uint8_t* out, const Encode& encode) {
  const GroupInts di;
  if (HWY_LIKELY(hn::AllFalse(di, odd))) return;
  alignas(64) std::int32_t is_odd[kGroup];
  hn::Store(hn::VecFromMask(di, odd), di, is_odd);
  for (std::size_t b = 0; b < kGroup; ++b)
    if (is_odd[b] != 0) encode(in + 32 * b, out + kBytes * b);
}
#endif

void EncodeQ8_0(const float* in, std::size_t n, std::uint8_t* out) {
#if HWY_TARGET != HWY_SCALAR
  const GroupTag d;
  const GroupBits du;
  const GroupInts di;
  const hn::Rebind<std::int8_t, GroupTag> d8;
  const auto finite = hn::Set(di, static_cast<std::int32_t>(kInfinity32 - 1));
  const auto magnitude = hn::Set(du, kMagnitudeMask32);
  // The largest number below a half, with the sign of what it is added to: what is cut off then was rounded, halves away from zero.
  const auto almost_half = hn::Set(d, 0.49999997F);
  alignas(64) float inverses[kGroup];
  alignas(64) std::uint16_t halves[kGroup];
  for (; n >= kGroup; n -= kGroup, in += 32 * kGroup, out += 34 * kGroup) {
    const auto largest =
        LargestLanes<kGroup>([&](std::size_t b) { return LargestOfBlock(in + 32 * b, [&](auto bits) { return hn::And(bits, magnitude); }); }, 0);
    const auto scale = hn::Div(hn::BitCast(d, largest), hn::Set(d, 127.0F));
    const auto inverse = hn::Div(hn::Set(d, 1.0F), scale);
    StoreHalves(scale, halves);
    hn::Store(inverse, d, inverses);
    for (std::size_t b = 0; b < kGroup; ++b) {
      std::uint8_t* to = out + 34 * b;
      std::memcpy(to, halves + b, 2);
      const auto factor = hn::Set(d, inverses[b]);
      for (std::size_t i = 0; i < 32; i += kGroup) {
        const auto v = hn::Mul(hn::LoadU(d, in + 32 * b + i), factor);
        hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(di, hn::Add(v, hn::CopySign(almost_half, v)))), d8, reinterpret_cast<std::int8_t*>(to + 2 + i));
      }
    }
    EncodeOdd<34>(hn::Or(hn::Gt(hn::BitCast(di, largest), finite), hn::Gt(hn::BitCast(di, inverse), finite)), in, out, EncodeOneQ8_0);
  }
#endif
  for (; n != 0; --n, in += 32, out += 34) EncodeOneQ8_0(in, out);
}

void EncodeQ4_0(const float* in, std::size_t n, std::uint8_t* out) {
#if HWY_TARGET != HWY_SCALAR
  const GroupTag d;
  const GroupBits du;
  const GroupInts di;
  const hn::Rebind<std::uint8_t, GroupTag> d8;
  const auto finite = hn::Set(di, static_cast<std::int32_t>(kInfinity32 - 1));
  const auto one = hn::Set(du, 1U);
  const auto most = hn::Set(di, 15);
  const auto offset = hn::Set(d, 8.5F);
  alignas(64) float inverses[kGroup];
  alignas(64) std::uint16_t halves[kGroup];
  for (; n >= kGroup; n -= kGroup, in += 32 * kGroup, out += 18 * kGroup) {
    // The sign behind the magnitude: of two values of the largest magnitude the negative one is found, and with the sign turned round the positive
    // one. Where there are both the first decides, which is looked for apart.
    const auto signed_last = [](auto bits) { return hn::RotateRight<31>(bits); };
    const auto negative = LargestLanes<kGroup>([&](std::size_t b) { return LargestOfBlock(in + 32 * b, signed_last); }, 0);
    const auto positive = LargestLanes<kGroup>(
        [&](std::size_t b) { return LargestOfBlock(in + 32 * b, [&](auto bits) { return hn::Xor(signed_last(bits), one); }); }, 0);
    const auto bits = hn::ShiftRight<1>(negative);
    const auto largest = hn::BitCast(d, hn::RotateRight<1>(negative));
    const auto scale = hn::Mul(largest, hn::Set(d, -0.125F));
    const auto inverse = hn::Div(hn::Set(d, 1.0F), scale);
    StoreHalves(scale, halves);
    hn::Store(inverse, d, inverses);
    for (std::size_t b = 0; b < kGroup; ++b) {
      const float* from = in + 32 * b;
      std::uint8_t* to = out + 18 * b;
      std::memcpy(to, halves + b, 2);
      const auto factor = hn::Set(d, inverses[b]);
      for (std::size_t i = 0; i < 16; i += kGroup) {
        const auto low = hn::Min(most, hn::ConvertTo(di, hn::Add(hn::Mul(hn::LoadU(d, from + i), factor), offset)));
        const auto high = hn::Min(most, hn::ConvertTo(di, hn::Add(hn::Mul(hn::LoadU(d, from + 16 + i), factor), offset)));
        hn::StoreU(hn::DemoteTo(d8, hn::Or(low, hn::ShiftLeft<4>(high))), d8, to + 2 + i);
      }
    }
    const auto both = hn::RebindMask(di, hn::Eq(hn::And(hn::And(negative, positive), one), one));
    const auto inverse_bits = hn::And(hn::BitCast(di, inverse), hn::Set(di, static_cast<std::int32_t>(kMagnitudeMask32)));
    const auto unusual = hn::Or(hn::Gt(hn::BitCast(di, bits), finite), hn::Gt(inverse_bits, finite));
    EncodeOdd<18>(hn::Or(both, unusual), in, out, EncodeOneQ4_0);
  }
#endif
  for (; n != 0; --n, in += 32, out += 18) EncodeOneQ4_0(in, out);
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
