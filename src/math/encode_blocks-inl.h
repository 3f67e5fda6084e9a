#if defined(WEFT_MATH_ENCODE_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_ENCODE_BLOCKS_INL_H_
#undef WEFT_MATH_ENCODE_BLOCKS_INL_H_
#else
#define WEFT_MATH_ENCODE_BLOCKS_INL_H_
#endif

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "math/quant_search.h"
#include "math/simd-inl.h"
#include "math/small_float.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

// Sixteen sub-blocks are searched side by side, value i of all of them beside each other: [count][kSubBlocks].
constexpr std::size_t kSubBlocks = 16;
using SearchTag = hn::CappedTag<float, kSubBlocks>;
using SearchInts = hn::RebindToSigned<SearchTag>;
using Floats = hn::Vec<SearchTag>;
using Ints = hn::Vec<SearchInts>;

/// math::nearest_int of each lane.
HWY_INLINE Ints NearestInts(Floats v) {
  const SearchInts di;
  const auto bits = hn::BitCast(di, hn::Add(v, hn::Set(SearchTag(), 12582912.0F)));
  return hn::Sub(hn::And(bits, hn::Set(di, 0x007FFFFF)), hn::Set(di, 0x00400000));
}
HWY_INLINE Floats NearestWithin(Floats v, Ints low, Ints high) { return hn::ConvertTo(SearchTag(), hn::Max(low, hn::Min(high, NearestInts(v)))); }

/// The same for magnitudes below 2^22, whose sums with 1.5 * 2^23 are in order as bits: fewer steps. Bounds are given as such bits.
constexpr float kWholeNumbers = 12582912.0F;
HWY_INLINE Ints BoundBits(int bound) { return hn::Set(SearchInts(), std::bit_cast<std::int32_t>(kWholeNumbers) + bound); }
HWY_INLINE Floats NearestBetween(Floats v, Ints low_bits, Ints high_bits) {
  const SearchTag d;
  const auto bits = hn::BitCast(SearchInts(), hn::Add(v, hn::Set(d, kWholeNumbers)));
  return hn::Sub(hn::BitCast(d, hn::Max(low_bits, hn::Min(high_bits, bits))), hn::Set(d, kWholeNumbers));
}

/// Lanes of whole numbers below 256 as bytes.
HWY_INLINE void StoreCodes(Floats v, std::uint8_t* out) {
  const hn::Rebind<std::uint8_t, SearchTag> d8;
  hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(SearchInts(), v)), d8, out);
}

struct AffineSearch {
  int nmax;
  float first, step;
  int num_steps;
  bool absolute;  ///< errors count by their magnitude, not squared
};

/// scale * code + minimum for codes from 0 to nmax and a minimum that is not positive. minima: negated.
template <std::size_t kCount>
HWY_NOINLINE void SearchAffine(const float* x, const float* w, const AffineSearch& search, std::uint8_t* codes, float* scales, float* minima) {
  const SearchTag d;
  const SearchInts di;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto zero = hn::Zero(d);
  const auto zeros = hn::Zero(di);
  const auto high = hn::Set(di, search.nmax);
  const auto low_bits = BoundBits(0);
  const auto high_bits = BoundBits(search.nmax);
  const auto top = static_cast<float>(search.nmax);
  alignas(64) float trial[kCount * kLanes];
  for (std::size_t lane = 0; lane < kSubBlocks; lane += kLanes) {
    const auto value = [&](std::size_t i) { return hn::Load(d, x + kSubBlocks * i + lane); };
    const auto weight = [&](std::size_t i) { return hn::Load(d, w + kSubBlocks * i + lane); };
    auto least = value(0);
    auto most = least;
    auto sum_w = weight(0);
    auto sum_x = hn::Mul(sum_w, least);
    for (std::size_t i = 1; i < kCount; ++i) {
      const auto v = value(i);
      least = hn::IfThenElse(hn::Lt(v, least), v, least);
      most = hn::IfThenElse(hn::Gt(v, most), v, most);
      const auto wi = weight(i);
      sum_w = hn::Add(sum_w, wi);
      sum_x = hn::Add(sum_x, hn::Mul(wi, v));
    }
    const auto smallest = least;
    least = hn::IfThenElse(hn::Gt(least, zero), zero, least);
    const auto flat = hn::Le(most, least);
    const auto flat_minimum = least;

    const auto error_of = [&](Floats scale, Floats minimum) {
      auto error = zero;
      const auto difference = [&](std::size_t i) { return hn::Sub(hn::Add(hn::Mul(scale, hn::Load(d, trial + kLanes * i)), minimum), value(i)); };
      if (search.absolute) {
        for (std::size_t i = 0; i < kCount; ++i) error = hn::Add(error, hn::Mul(weight(i), hn::Abs(difference(i))));
        return error;
      }
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto diff = difference(i);
        error = hn::Add(error, hn::Mul(weight(i), hn::Mul(diff, diff)));
      }
      return error;
    };
    auto used_inverse = hn::Div(hn::Set(d, top), hn::Sub(most, least));
    auto used_minimum = least;  // of which the codes are, which the best fit may have moved since
    auto scale = hn::Div(hn::Set(d, 1.0F), used_inverse);
    for (std::size_t i = 0; i < kCount; ++i)
      hn::Store(NearestWithin(hn::Mul(used_inverse, hn::Sub(value(i), least)), zeros, high), d, trial + kLanes * i);
    auto best = error_of(scale, least);
    for (int step = 0; step <= search.num_steps; ++step) {
      const float numerator = search.first + search.step * static_cast<float>(step) + top;
      const auto inverse = hn::Div(hn::Set(d, numerator), hn::Sub(most, least));
      auto sum_l = zero;
      auto sum_l2 = zero;
      auto sum_xl = zero;
      const auto add = [&](std::size_t i, Floats v, Floats l) {
        hn::Store(l, d, trial + kLanes * i);
        const auto wl = hn::Mul(weight(i), l);
        sum_l = hn::Add(sum_l, wl);
        sum_l2 = hn::Add(sum_l2, hn::Mul(wl, l));
        sum_xl = hn::Add(sum_xl, hn::Mul(wl, v));
      };
      // What is rounded lies between what the smallest and the largest value give.
      const auto reach = hn::Max(hn::Abs(hn::Mul(inverse, hn::Sub(most, least))), hn::Abs(hn::Mul(inverse, hn::Sub(smallest, least))));
      if (HWY_LIKELY(hn::AllTrue(d, hn::Or(flat, hn::Lt(reach, hn::Set(d, 4194304.0F)))))) {
        for (std::size_t i = 0; i < kCount; ++i) add(i, value(i), NearestBetween(hn::Mul(inverse, hn::Sub(value(i), least)), low_bits, high_bits));
      } else {
        for (std::size_t i = 0; i < kCount; ++i) add(i, value(i), NearestWithin(hn::Mul(inverse, hn::Sub(value(i), least)), zeros, high));
      }
      const auto determinant = hn::Sub(hn::Mul(sum_w, sum_l2), hn::Mul(sum_l, sum_l));
      const auto solvable = hn::Gt(determinant, zero);
      auto this_scale = hn::Div(hn::Sub(hn::Mul(sum_w, sum_xl), hn::Mul(sum_x, sum_l)), determinant);
      auto this_minimum = hn::Div(hn::Sub(hn::Mul(sum_l2, sum_x), hn::Mul(sum_l, sum_xl)), determinant);
      const auto positive = hn::Gt(this_minimum, zero);
      this_scale = hn::IfThenElse(positive, hn::Div(sum_xl, sum_l2), this_scale);
      this_minimum = hn::IfThenElse(positive, zero, this_minimum);
      const auto error = error_of(this_scale, this_minimum);
      const auto better = hn::And(solvable, hn::Lt(error, best));
      best = hn::IfThenElse(better, error, best);
      used_inverse = hn::IfThenElse(better, inverse, used_inverse);
      used_minimum = hn::IfThenElse(better, least, used_minimum);
      scale = hn::IfThenElse(better, this_scale, scale);
      least = hn::IfThenElse(better, this_minimum, least);
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto l = NearestWithin(hn::Mul(used_inverse, hn::Sub(value(i), used_minimum)), zeros, high);
      StoreCodes(hn::IfThenElse(flat, zero, l), codes + kSubBlocks * i + lane);
    }
    hn::Store(hn::IfThenElse(flat, zero, scale), d, scales + lane);
    hn::Store(hn::Neg(hn::IfThenElse(flat, flat_minimum, least)), d, minima + lane);
  }
}

/// The first value of the largest magnitude, and that.
template <std::size_t kCount>
HWY_INLINE void Largest(const float* x, Floats& largest, Floats& magnitude) {
  const SearchTag d;
  largest = magnitude = hn::Zero(d);
  for (std::size_t i = 0; i < kCount; ++i) {
    const auto v = hn::Load(d, x + kSubBlocks * i);
    const auto a = hn::Abs(v);
    const auto more = hn::Gt(a, magnitude);
    magnitude = hn::IfThenElse(more, a, magnitude);
    largest = hn::IfThenElse(more, v, largest);
  }
}

/// math::search_symmetric of each lane.
template <std::size_t kCount>
HWY_NOINLINE void SearchSymmetric(const float* x, const float* w, int nmax, std::uint8_t* codes, float* scales) {
  const SearchTag d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto zero = hn::Zero(d);
  const auto low = BoundBits(-nmax);  // nothing that counts is rounded beyond 2 nmax
  const auto high = BoundBits(nmax - 1);
  const auto top = static_cast<float>(nmax);
  alignas(64) float wx[kCount * kLanes];
  for (std::size_t lane = 0; lane < kSubBlocks; lane += kLanes) {
    const auto value = [&](std::size_t i) { return hn::Load(d, x + kSubBlocks * i + lane); };
    const auto weight = [&](std::size_t i) { return hn::Load(d, w + kSubBlocks * i + lane); };
    Floats largest, magnitude;
    Largest<kCount>(x + lane, largest, magnitude);
    const auto empty = hn::Lt(magnitude, hn::Set(d, kNoMagnitude));
    for (std::size_t i = 0; i < kCount; ++i) hn::Store(hn::Mul(weight(i), value(i)), d, wx + kLanes * i);
    const auto sums = [&](Floats inverse, Floats& sum_xl, Floats& sum_l2) {
      sum_xl = sum_l2 = zero;
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto l = NearestBetween(hn::Mul(inverse, value(i)), low, high);
        sum_xl = hn::Add(sum_xl, hn::Mul(hn::Load(d, wx + kLanes * i), l));
        sum_l2 = hn::Add(sum_l2, hn::Mul(hn::Mul(weight(i), l), l));
      }
    };
    Floats sum_xl, sum_l2;
    auto used = hn::Div(hn::Set(d, -top), largest);
    sums(used, sum_xl, sum_l2);
    auto scale = hn::IfThenElseZero(hn::Gt(sum_l2, zero), hn::Div(sum_xl, sum_l2));
    auto best = hn::Mul(scale, sum_xl);
    for (int step = -9; step <= 9; ++step) {
      if (step == 0) continue;
      const auto inverse = hn::Div(hn::Set(d, -(top + 0.1F * static_cast<float>(step))), largest);
      sums(inverse, sum_xl, sum_l2);
      const auto better = hn::And(hn::Gt(sum_l2, zero), hn::Gt(hn::Mul(sum_xl, sum_xl), hn::Mul(best, sum_l2)));
      scale = hn::IfThenElse(better, hn::Div(sum_xl, sum_l2), scale);
      best = hn::IfThenElse(better, hn::Mul(scale, sum_xl), best);
      used = hn::IfThenElse(better, inverse, used);
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto l = hn::Add(NearestBetween(hn::Mul(used, value(i)), low, high), hn::Set(d, top));
      StoreCodes(hn::IfThenElse(empty, zero, l), codes + kSubBlocks * i + lane);
    }
    hn::Store(hn::IfThenElse(empty, zero, scale), d, scales + lane);
  }
}

/// The same grid from its plain scale on, improved one value at a time; errors count as the values' squares.
template <std::size_t kCount>
HWY_NOINLINE void SearchByTurns(const float* x, int nmax, std::uint8_t* codes, float* scales) {
  const SearchTag d;
  const SearchInts di;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  const auto zero = hn::Zero(d);
  const auto low = hn::Set(di, -nmax);
  const auto high = hn::Set(di, nmax - 1);
  const auto top = static_cast<float>(nmax);
  alignas(64) float chosen[kCount * kLanes];
  for (std::size_t lane = 0; lane < kSubBlocks; lane += kLanes) {
    const auto value = [&](std::size_t i) { return hn::Load(d, x + kSubBlocks * i + lane); };
    Floats largest, magnitude;
    Largest<kCount>(x + lane, largest, magnitude);
    const auto empty = hn::Lt(magnitude, hn::Set(d, kNoMagnitude));
    const auto inverse = hn::Div(hn::Set(d, -top), largest);
    auto sum_xl = zero;
    auto sum_l2 = zero;
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto v = value(i);
      const auto l = NearestWithin(hn::Mul(inverse, v), low, high);
      hn::Store(l, d, chosen + kLanes * i);
      const auto w = hn::Mul(v, v);
      sum_xl = hn::Add(sum_xl, hn::Mul(hn::Mul(w, v), l));
      sum_l2 = hn::Add(sum_l2, hn::Mul(hn::Mul(w, l), l));
    }
    for (int pass = 0; pass < 5; ++pass) {
      bool changed = false;  // a lane in which nothing did stays as it is in further passes
      for (std::size_t i = 0; i < kCount; ++i) {
        const auto v = value(i);
        const auto w = hn::Mul(v, v);
        const auto wx = hn::Mul(w, v);
        const auto own = hn::Load(d, chosen + kLanes * i);
        const auto without_xl = hn::Sub(sum_xl, hn::Mul(wx, own));
        const auto without_l2 = hn::Sub(sum_l2, hn::Mul(hn::Mul(w, own), own));
        // Most values stay. Where none is near the middle between its code and another there is nothing to divide.
        const auto wanted = hn::Mul(v, without_l2);
        const auto held = hn::Max(hn::Mul(without_xl, hn::Set(d, -top)), hn::Min(hn::Mul(without_xl, hn::Set(d, top - 1)), wanted));
        const auto apart = hn::Abs(hn::Sub(held, hn::Mul(own, without_xl)));
        const auto near =
            hn::And(hn::Lt(apart, hn::Mul(without_xl, hn::Set(d, 0.4999F))), hn::Lt(hn::Abs(wanted), hn::Mul(without_xl, hn::Set(d, 4194304.0F))));
        if (hn::AllTrue(d, hn::Or(hn::Le(without_xl, zero), near))) continue;
        const auto l = NearestWithin(hn::Div(wanted, without_xl), low, high);
        const auto with_xl = hn::Add(without_xl, hn::Mul(wx, l));
        const auto with_l2 = hn::Add(without_l2, hn::Mul(hn::Mul(w, l), l));
        const auto gain = hn::Gt(hn::Mul(hn::Mul(with_xl, with_xl), sum_l2), hn::Mul(hn::Mul(sum_xl, sum_xl), with_l2));
        const auto other = hn::Or(hn::Lt(l, own), hn::Gt(l, own));
        const auto take = hn::And(hn::And(hn::Gt(without_xl, zero), other), hn::And(hn::Gt(with_l2, zero), gain));
        if (hn::AllFalse(d, take)) continue;
        changed = true;
        hn::Store(hn::IfThenElse(take, l, own), d, chosen + kLanes * i);
        sum_xl = hn::IfThenElse(take, with_xl, sum_xl);
        sum_l2 = hn::IfThenElse(take, with_l2, sum_l2);
      }
      if (!changed) break;
    }
    for (std::size_t i = 0; i < kCount; ++i)
      StoreCodes(hn::IfThenElse(empty, zero, hn::Add(hn::Load(d, chosen + kLanes * i), hn::Set(d, top))), codes + kSubBlocks * i + lane);
    const auto scale = hn::IfThenElseZero(hn::Gt(sum_l2, zero), hn::Div(sum_xl, sum_l2));
    hn::Store(hn::IfThenElse(empty, zero, scale), d, scales + lane);
  }
}

// ---- What the types share

HWY_INLINE std::uint16_t StoreHalf(float value, std::uint8_t* out) {
  const auto half = static_cast<std::uint16_t>(encode_small(kF16, std::bit_cast<std::uint32_t>(value)));
  std::memcpy(out, &half, 2);
  return half;
}
/// Stores a scale and returns what readers will make of it.
HWY_INLINE float RoundedHalf(float value, std::uint8_t* out) { return std::bit_cast<float>(decode_small(kF16, StoreHalf(value, out))); }

/// values of up to kSubBlocks sub-blocks beside each other; what is missing is zero.
template <std::size_t kCount>
HWY_INLINE void Transpose(const float* values, std::size_t num_sub_blocks, float* out) {
  const SearchTag d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  // Taking vectors apart into even and odd lanes moves the lowest bit of a value's place in its vector to the top of the vector's number, and the
  // lowest bit of that to the top of the place; after as many times as they have bits they are exchanged.
  for (std::size_t s = 0; s < kSubBlocks; s += kLanes)
    for (std::size_t i = 0; i < kCount; i += kLanes) {
      Floats tile[kLanes];
      for (std::size_t k = 0; k < kLanes; ++k) tile[k] = s + k < num_sub_blocks ? hn::LoadU(d, values + kCount * (s + k) + i) : hn::Zero(d);
#if HWY_TARGET != HWY_SCALAR
      for (std::size_t stage = 1; stage < kLanes; stage *= 2) {
        Floats next[kLanes];
        for (std::size_t k = 0; k < kLanes / 2; ++k) {
          next[k] = hn::ConcatEven(d, tile[2 * k + 1], tile[2 * k]);
          next[k + kLanes / 2] = hn::ConcatOdd(d, tile[2 * k + 1], tile[2 * k]);
        }
        for (std::size_t k = 0; k < kLanes; ++k) tile[k] = next[k];
      }
#endif
      for (std::size_t k = 0; k < kLanes; ++k) hn::Store(tile[k], d, out + kSubBlocks * (i + k) + s);
    }
}

/// Sums of squares of 256 values each, every one in order, eight chains at a time.
HWY_INLINE void SquareSums(const float* values, std::size_t num_blocks, float* out) {
  float sums[8] = {};
  if (num_blocks == 8) {
    for (std::size_t i = 0; i < 256; ++i)
      for (std::size_t b = 0; b < 8; ++b) sums[b] += values[256 * b + i] * values[256 * b + i];
  } else {
    for (std::size_t b = 0; b < num_blocks; ++b)
      for (std::size_t i = 0; i < 256; ++i) sums[b] += values[256 * b + i] * values[256 * b + i];
  }
  for (std::size_t b = 0; b < num_blocks; ++b) out[b] = sums[b];
}

/// out = weights * sqrt(spread + values^2), and its sums over sub-blocks.
template <std::size_t kCount>
HWY_INLINE void SpreadWeights(const float* x, const float* w, const float* spread, float* out, float* sums) {
  const SearchTag d;
  constexpr std::size_t kLanes = hn::MaxLanes(d);
  for (std::size_t lane = 0; lane < kSubBlocks; lane += kLanes) {
    const auto sigma2 = hn::Load(d, spread + lane);
    auto sum = hn::Zero(d);
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto v = hn::Load(d, x + kSubBlocks * i + lane);
      const auto weight = hn::Mul(hn::Load(d, w + kSubBlocks * i + lane), hn::Sqrt(hn::Add(sigma2, hn::Mul(v, v))));
      hn::Store(weight, d, out + kSubBlocks * i + lane);
      sum = hn::Add(sum, weight);
    }
    hn::Store(sum, d, sums + lane);
  }
}

/// codes = nearest((values + minimum) / scale) within [low, high], plus offset.
template <std::size_t kCount>
HWY_INLINE void Requantize(const float* values, float scale, float minimum, int low, int high, int offset, std::uint8_t* codes) {
  const SearchTag d;
  const SearchInts di;
  const auto s = hn::Set(d, scale);
  const auto m = hn::Set(d, minimum);
  for (std::size_t i = 0; i < kCount; i += hn::MaxLanes(d)) {
    const auto l = NearestWithin(hn::Div(hn::Add(hn::LoadU(d, values + i), m), s), hn::Set(di, low), hn::Set(di, high));
    StoreCodes(hn::Add(l, hn::Set(d, static_cast<float>(offset))), codes + i);
  }
}

/// One sub-block's codes out of those that stand side by side.
template <std::size_t kCount>
HWY_INLINE void Column(const std::uint8_t* codes, std::size_t sub_block, std::uint8_t* out) {
  for (std::size_t i = 0; i < kCount; ++i) out[i] = codes[kSubBlocks * i + sub_block];
}

// Codes below 256 as bytes, 32 at a time.
using CodeTag = hn::CappedTag<std::uint8_t, 32>;
using Codes = hn::Vec<CodeTag>;
/// Of bytes of which no bit leaves its byte.
template <int kBits>
HWY_INLINE Codes ShiftedUp(Codes v) {
#if HWY_TARGET == HWY_SCALAR
  return hn::ShiftLeft<kBits>(v);
#else
  const hn::Repartition<std::uint16_t, CodeTag> d16;
  return hn::BitCast(CodeTag(), hn::ShiftLeft<kBits>(hn::BitCast(d16, v)));
#endif
}
/// out[l] = make(l) for 32 bytes.
template <class Make>
HWY_INLINE void PackBytes(std::uint8_t* out, const Make& make) {
  const CodeTag d;
  for (std::size_t l = 0; l < 32; l += hn::MaxLanes(d)) hn::StoreU(make(l), d, out + l);
}

/// Two bits a value, four values a byte that are 32 apart.
HWY_INLINE void PackTwoBits(const std::uint8_t* codes, std::uint8_t* out) {
  const CodeTag d;
  for (std::size_t half = 0; half < 2; ++half)
    PackBytes(out + 32 * half, [&](std::size_t l) {
      const auto at = [&](std::size_t part) { return hn::And(hn::LoadU(d, codes + 128 * half + 32 * part + l), hn::Set(d, std::uint8_t{3})); };
      return hn::Or(hn::Or(at(0), ShiftedUp<2>(at(1))), hn::Or(ShiftedUp<4>(at(2)), ShiftedUp<6>(at(3))));
    });
}
/// One bit a value, that above the lowest kBits: bit p of byte l for value 32 p + l.
template <int kBits>
HWY_INLINE void PackHighBits(const std::uint8_t* codes, std::uint8_t* out) {
  const CodeTag d;
  PackBytes(out, [&](std::size_t l) {
    auto bits = hn::Zero(d);
    for (std::size_t part = 0; part < 8; ++part) {
      const auto low = hn::Eq(hn::And(hn::LoadU(d, codes + 32 * part + l), hn::Set(d, std::uint8_t{1U << kBits})), hn::Zero(d));
      bits = hn::Or(bits, hn::IfThenZeroElse(low, hn::Set(d, static_cast<std::uint8_t>(1U << part))));
    }
    return bits;
  });
}
/// Four bits a value, two values a byte that are `apart` apart.
HWY_INLINE void PackFourBits(const std::uint8_t* codes, std::size_t apart, std::uint8_t* out) {
  const CodeTag d;
  PackBytes(out, [&](std::size_t l) {
    const auto at = [&](std::size_t i) { return hn::And(hn::LoadU(d, codes + i), hn::Set(d, std::uint8_t{15})); };
    return hn::Or(at(l), ShiftedUp<4>(at(apart + l)));
  });
}

// ---- Q2_K

void EncodeQ2K(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  alignas(64) float x[16 * kSubBlocks], w[16 * kSubBlocks], scales[kSubBlocks], minima[kSubBlocks], sums[kSubBlocks], spread[kSubBlocks];
  alignas(64) std::uint8_t searched[16 * kSubBlocks], codes[256];
  float squares[8];
  for (std::size_t b = 0; b < num_blocks; ++b, values += 256, out += 84) {
    Transpose<16>(values, kSubBlocks, x);
    if (weights != nullptr) {
      if (b % 8 == 0) SquareSums(values, num_blocks - b < 8 ? num_blocks - b : 8, squares);
      for (float& s : spread) s = squares[b % 8] / 256;
      Transpose<16>(weights + 256 * b, kSubBlocks, w);
      SpreadWeights<16>(x, w, spread, w, sums);
      SearchAffine<16>(x, w, {3, -0.9F, 0.05F, 36, false}, searched, scales, minima);
    } else {
      for (std::size_t i = 0; i < 16 * kSubBlocks; ++i) w[i] = std::fabs(x[i]);
      SearchAffine<16>(x, w, {3, -0.5F, 0.1F, 15, true}, searched, scales, minima);
    }
    std::uint8_t scale_codes[16] = {}, minimum_codes[16] = {};
    float d = 0;
    float dmin = 0;
    if (weights != nullptr) {
      d = RoundedHalf(search_positive(16, 15, scales, sums, scale_codes), out + 80);
      dmin = RoundedHalf(search_positive(16, 15, minima, sums, minimum_codes), out + 82);
    } else {
      const auto simple = [](const float* all, std::uint8_t* parts) {
        float most = 0;
        for (std::size_t s = 0; s < 16; ++s) most = all[s] > most ? all[s] : most;
        if (!(most > 0)) return 0.0F;
        const float inverse = 15.0F / most;
        for (std::size_t s = 0; s < 16; ++s) parts[s] = static_cast<std::uint8_t>(nearest_int(inverse * all[s]));
        return most / 15.0F;
      };
      d = RoundedHalf(simple(scales, scale_codes), out + 80);
      dmin = RoundedHalf(simple(minima, minimum_codes), out + 82);
    }
    for (std::size_t s = 0; s < 16; ++s) {
      out[s] = static_cast<std::uint8_t>(scale_codes[s] | minimum_codes[s] << 4);
      const float scale = d * static_cast<float>(out[s] & 15);
      const float minimum = dmin * static_cast<float>(out[s] >> 4);
      if (scale == 0)
        Column<16>(searched, s, codes + 16 * s);
      else
        Requantize<16>(values + 16 * s, scale, minimum, 0, 3, 0, codes + 16 * s);
    }
    PackTwoBits(codes, out + 16);
  }
}

// ---- Q3_K

/// Scales as 6-bit parts of d, and codes: searched ones where a part stands for no scale.
HWY_INLINE void FinishQ3K(const float* values, const std::uint8_t* parts, float d, const std::uint8_t* searched, std::uint8_t* out) {
  alignas(64) std::uint8_t codes[256];
  d = RoundedHalf(d, out + 108);
  std::uint8_t* packed = out + 96;
  std::memset(packed, 0, 12);
  for (std::size_t s = 0; s < 16; ++s) {
    packed[s % 8] = static_cast<std::uint8_t>(packed[s % 8] | (parts[s] & 15) << (4 * (s / 8)));
    packed[8 + s % 4] = static_cast<std::uint8_t>(packed[8 + s % 4] | (parts[s] >> 4) << (2 * (s / 4)));
    const float scale = d * static_cast<float>(static_cast<int>(parts[s]) - 32);
    if (scale == 0)
      Column<16>(searched, s, codes + 16 * s);
    else
      Requantize<16>(values + 16 * s, scale, 0, -4, 3, 4, codes + 16 * s);
  }
  PackHighBits<2>(codes, out);
  PackTwoBits(codes, out + 32);
}

/// The scales of up to sixteen blocks are searched for side by side, too.
void EncodeQ3KWeighted(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  constexpr std::size_t kBlocks = kSubBlocks;
  alignas(64) float x[16 * kSubBlocks], w[16 * kSubBlocks], spread[kSubBlocks];
  alignas(64) float scales[kBlocks * kSubBlocks] = {}, sums[kBlocks * kSubBlocks] = {}, of_blocks[kBlocks];
  alignas(64) std::uint8_t searched[kBlocks * 256], parts[kBlocks * kSubBlocks], own_parts[kSubBlocks];
  float squares[8];
  for (std::size_t first = 0; first < num_blocks; first += kBlocks) {
    const std::size_t here = num_blocks - first < kBlocks ? num_blocks - first : kBlocks;
    for (std::size_t k = 0; k < here; ++k) {
      const std::size_t b = first + k;
      if (b % 8 == 0) SquareSums(values + 256 * b, num_blocks - b < 8 ? num_blocks - b : 8, squares);
      for (float& s : spread) s = 2 * squares[b % 8] / 256;
      Transpose<16>(values + 256 * b, kSubBlocks, x);
      Transpose<16>(weights + 256 * b, kSubBlocks, w);
      SpreadWeights<16>(x, w, spread, w, sums + kSubBlocks * k);
      SearchSymmetric<16>(x, w, 4, searched + 256 * k, scales + kSubBlocks * k);
    }
    Transpose<16>(scales, here, x);
    Transpose<16>(sums, here, w);
    SearchSymmetric<16>(x, w, 32, parts, of_blocks);
    for (std::size_t k = 0; k < here; ++k) {
      Column<16>(parts, k, own_parts);
      FinishQ3K(values + 256 * (first + k), own_parts, of_blocks[k], searched + 256 * k, out + 110 * (first + k));
    }
  }
}

void EncodeQ3K(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  if (weights != nullptr) return EncodeQ3KWeighted(values, weights, num_blocks, out);
  alignas(64) float x[16 * kSubBlocks], scales[kSubBlocks];
  alignas(64) std::uint8_t searched[16 * kSubBlocks];
  for (std::size_t b = 0; b < num_blocks; ++b, values += 256, out += 110) {
    Transpose<16>(values, kSubBlocks, x);
    SearchByTurns<16>(x, 4, searched, scales);
    std::uint8_t parts[16] = {};
    const float most = furthest_from_zero(scales, 16);
    float d = 0;
    if (most != 0) {
      const float inverse = -32.0F / most;
      for (std::size_t s = 0; s < 16; ++s) parts[s] = static_cast<std::uint8_t>(nearest_int(inverse * scales[s], -32, 31) + 32);
      d = 1 / inverse;
    }
    FinishQ3K(values, parts, d, searched, out);
  }
}

// ---- Q4_K and Q5_K: two blocks beside each other

/// 6-bit scales and minima, the top bits of the later ones above the earlier ones.
HWY_INLINE void PackScales(const std::uint8_t* scales, const std::uint8_t* minima, std::uint8_t* out) {
  for (std::size_t j = 0; j < 4; ++j) {
    out[j] = static_cast<std::uint8_t>(scales[j] | (scales[j + 4] >> 4) << 6);
    out[j + 4] = static_cast<std::uint8_t>(minima[j] | (minima[j + 4] >> 4) << 6);
    out[j + 8] = static_cast<std::uint8_t>((scales[j + 4] & 15) | (minima[j + 4] & 15) << 4);
  }
}

/// The scales of one block of eight sub-blocks, and its codes.
HWY_INLINE void FinishFourOrFive(const float* values, const float* scales, const float* minima, const float* sums, int nmax,
                                 const std::uint8_t* searched, std::size_t column, std::uint8_t* out, std::uint8_t* codes) {
  std::uint8_t scale_codes[8] = {}, minimum_codes[8] = {};
  float d = 0;
  float dmin = 0;
  if (sums != nullptr) {
    d = search_positive(8, 63, scales, sums, scale_codes);
    dmin = search_positive(8, 63, minima, sums, minimum_codes);
  } else {
    const auto simple = [](const float* all, std::uint8_t* parts) {
      float most = 0;
      for (std::size_t s = 0; s < 8; ++s) most = all[s] > most ? all[s] : most;
      const float inverse = most > 0 ? 63.0F / most : 0.0F;
      for (std::size_t s = 0; s < 8; ++s) {
        const auto part = static_cast<std::uint8_t>(nearest_int(inverse * all[s]));
        parts[s] = part < 63 ? part : std::uint8_t{63};
      }
      return most / 63.0F;
    };
    d = simple(scales, scale_codes);
    dmin = simple(minima, minimum_codes);
  }
  d = RoundedHalf(d, out);
  dmin = RoundedHalf(dmin, out + 2);
  PackScales(scale_codes, minimum_codes, out + 4);
  for (std::size_t s = 0; s < 8; ++s) {
    const float scale = d * static_cast<float>(scale_codes[s]);
    const float minimum = dmin * static_cast<float>(minimum_codes[s]);
    if (scale == 0)
      Column<32>(searched, column + s, codes + 32 * s);
    else
      Requantize<32>(values + 32 * s, scale, minimum, 0, nmax, 0, codes + 32 * s);
  }
}

template <int kMax, std::size_t kBytes, class Pack>
HWY_INLINE void EncodeFourOrFive(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out, const AffineSearch& plain,
                                 const Pack& pack) {
  alignas(64) float x[32 * kSubBlocks], w[32 * kSubBlocks], scales[kSubBlocks], minima[kSubBlocks], sums[kSubBlocks], spread[kSubBlocks];
  alignas(64) std::uint8_t searched[32 * kSubBlocks], codes[256];
  float squares[8];
  const SearchTag d;
  for (std::size_t b = 0; b < num_blocks; b += 2, values += 512, out += 2 * kBytes) {
    const std::size_t here = num_blocks - b < 2 ? 1 : 2;
    Transpose<32>(values, 8 * here, x);
    if (weights != nullptr) {
      if (b % 8 == 0) SquareSums(values, num_blocks - b < 8 ? num_blocks - b : 8, squares);
      for (std::size_t s = 0; s < kSubBlocks; ++s) spread[s] = 2 * squares[(b + (here == 2 ? s / 8 : 0)) % 8] / 256;
      Transpose<32>(weights + 256 * b, 8 * here, w);
      SpreadWeights<32>(x, w, spread, w, sums);
      SearchAffine<32>(x, w, {kMax, -0.9F, 0.05F, 36, false}, searched, scales, minima);
    } else {
      for (std::size_t lane = 0; lane < kSubBlocks; lane += hn::MaxLanes(d)) {
        auto sum = hn::Zero(d);
        for (std::size_t i = 0; i < 32; ++i) {
          const auto v = hn::Load(d, x + kSubBlocks * i + lane);
          sum = hn::Add(sum, hn::Mul(v, v));
        }
        const auto mean = hn::Sqrt(hn::Div(sum, hn::Set(d, 32.0F)));
        for (std::size_t i = 0; i < 32; ++i) hn::Store(hn::Add(mean, hn::Abs(hn::Load(d, x + kSubBlocks * i + lane))), d, w + kSubBlocks * i + lane);
      }
      SearchAffine<32>(x, w, plain, searched, scales, minima);
    }
    for (std::size_t block = 0; block < here; ++block) {
      std::uint8_t* to = out + kBytes * block;
      FinishFourOrFive(values + 256 * block, scales + 8 * block, minima + 8 * block, weights != nullptr ? sums + 8 * block : nullptr, kMax, searched,
                       8 * block, to, codes);
      pack(codes, to);
    }
  }
}

void EncodeQ4K(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  EncodeFourOrFive<15, 144>(values, weights, num_blocks, out, {15, -1.0F, 0.1F, 20, false}, [](const std::uint8_t* codes, std::uint8_t* to) {
    for (std::size_t c = 0; c < 4; ++c) PackFourBits(codes + 64 * c, 32, to + 16 + 32 * c);
  });
}

void EncodeQ5K(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  EncodeFourOrFive<31, 176>(values, weights, num_blocks, out, {31, -0.5F, 0.1F, 15, false}, [](const std::uint8_t* codes, std::uint8_t* to) {
    for (std::size_t c = 0; c < 4; ++c) PackFourBits(codes + 64 * c, 32, to + 48 + 32 * c);
    PackHighBits<4>(codes, to + 16);
  });
}

// ---- Q6_K

void EncodeQ6K(const float* values, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  alignas(64) float x[16 * kSubBlocks], w[16 * kSubBlocks], scales[kSubBlocks];
  alignas(64) std::uint8_t searched[16 * kSubBlocks], codes[256];
  for (std::size_t b = 0; b < num_blocks; ++b, values += 256, out += 210) {
    Transpose<16>(values, kSubBlocks, x);
    if (weights != nullptr) {
      Transpose<16>(weights + 256 * b, kSubBlocks, w);
    } else {
      for (std::size_t i = 0; i < 16 * kSubBlocks; ++i) w[i] = x[i] * x[i];
    }
    SearchSymmetric<16>(x, w, 32, searched, scales);
    float most = 0;
    float magnitude = 0;
    for (const float scale : scales)
      if (std::fabs(scale) > magnitude) {
        magnitude = std::fabs(scale);
        most = scale;
      }
    if (magnitude < kNoMagnitude) {
      std::memset(out, 0, 210);
      continue;
    }
    const float inverse = -128.0F / most;
    const float d = RoundedHalf(1 / inverse, out + 208);
    for (std::size_t s = 0; s < 16; ++s) {
      const std::int32_t nearest = nearest_int(inverse * scales[s]);
      const auto part = static_cast<std::int8_t>(nearest < 127 ? nearest : 127);
      out[192 + s] = static_cast<std::uint8_t>(part);
      const float scale = d * static_cast<float>(part);
      if (scale == 0)
        Column<16>(searched, s, codes + 16 * s);
      else
        Requantize<16>(values + 16 * s, scale, 0, -32, 31, 32, codes + 16 * s);
    }
    for (std::size_t half = 0; half < 2; ++half) {
      const std::uint8_t* own = codes + 128 * half;
      PackFourBits(own, 64, out + 64 * half);
      PackFourBits(own + 32, 64, out + 64 * half + 32);
    }
    for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(code >> 4);
    PackTwoBits(codes, out + 128);
  }
}

// ---- Rows of blocks of 32, with weights

/// Calls finish(block, scale, minimum, codes of the block) for all blocks of a row.
template <bool kAffine, class Finish>
HWY_INLINE void SearchRow(const float* row, const float* weights, std::size_t num_blocks, int nmax, const Finish& finish) {
  alignas(64) float x[32 * kSubBlocks], w[32 * kSubBlocks], scales[kSubBlocks], minima[kSubBlocks], sums[kSubBlocks], spread[kSubBlocks];
  alignas(64) std::uint8_t searched[32 * kSubBlocks], codes[32];
  float squares = 0;
  for (std::size_t i = 0; i < 32 * num_blocks; ++i) squares += row[i] * row[i];
  for (float& s : spread) s = squares / static_cast<float>(32 * num_blocks);
  for (std::size_t b = 0; b < num_blocks; b += kSubBlocks) {
    const std::size_t here = num_blocks - b < kSubBlocks ? num_blocks - b : kSubBlocks;
    Transpose<32>(row + 32 * b, here, x);
    Transpose<32>(weights + 32 * b, here, w);
    SpreadWeights<32>(x, w, spread, w, sums);
    if constexpr (kAffine)
      SearchAffine<32>(x, w, {nmax, -0.9F, 0.05F, 36, false}, searched, scales, minima);
    else
      SearchSymmetric<32>(x, w, nmax, searched, scales);
    for (std::size_t s = 0; s < here; ++s) {
      Column<32>(searched, s, codes);
      finish(b + s, scales[s], kAffine ? minima[s] : 0.0F, codes);
    }
  }
}

HWY_INLINE void PackNibbles(const std::uint8_t* codes, std::uint8_t* out) {
  for (std::size_t i = 0; i < 16; ++i) out[i] = static_cast<std::uint8_t>((codes[i] & 15) | (codes[16 + i] & 15) << 4);
}
HWY_INLINE void PackFifthBits(const std::uint8_t* codes, std::uint8_t* out) {
  std::uint32_t high = 0;
  for (std::size_t i = 0; i < 32; ++i) high |= static_cast<std::uint32_t>(codes[i] >> 4 & 1) << i;
  std::memcpy(out, &high, 4);
}

void EncodeQ4_0Weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  SearchRow<false>(row, weights, num_blocks, 8, [out](std::size_t block, float scale, float, const std::uint8_t* codes) {
    std::uint8_t* to = out + 18 * block;
    StoreHalf(scale, to);
    PackNibbles(codes, to + 2);
  });
}
void EncodeQ4_1Weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  SearchRow<true>(row, weights, num_blocks, 15, [out](std::size_t block, float scale, float minimum, const std::uint8_t* codes) {
    std::uint8_t* to = out + 20 * block;
    StoreHalf(scale, to);
    StoreHalf(-minimum, to + 2);
    PackNibbles(codes, to + 4);
  });
}
void EncodeQ5_0Weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  SearchRow<false>(row, weights, num_blocks, 16, [out](std::size_t block, float scale, float, const std::uint8_t* codes) {
    std::uint8_t* to = out + 22 * block;
    StoreHalf(scale, to);
    PackFifthBits(codes, to + 2);
    PackNibbles(codes, to + 6);
  });
}
void EncodeQ5_1Weighted(const float* row, const float* weights, std::size_t num_blocks, std::uint8_t* out) {
  SearchRow<true>(row, weights, num_blocks, 31, [out](std::size_t block, float scale, float minimum, const std::uint8_t* codes) {
    std::uint8_t* to = out + 24 * block;
    StoreHalf(scale, to);
    StoreHalf(-minimum, to + 2);
    PackFifthBits(codes, to + 4);
    PackNibbles(codes, to + 8);
  });
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
