#if defined(WEFT_MATH_NEURAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_NEURAL_INL_H_
#undef WEFT_MATH_NEURAL_INL_H_
#else
#define WEFT_MATH_NEURAL_INL_H_
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/contrib/math/math-inl.h"
#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
inline constexpr std::size_t kFloats = hn::MaxLanes(DF());

// ---- Loads of the stored types as float32

struct StoredF32 {
  static constexpr std::size_t kBytes = 4;
  static HWY_INLINE VF Load(DF d, const std::uint8_t* p) { return LoadBytes(d, p); }
};
struct StoredBf16 {
  static constexpr std::size_t kBytes = 2;
  static HWY_INLINE VF Load(DF d, const std::uint8_t* p) {
    const hn::Rebind<std::uint16_t, DF> d16;
    const hn::RebindToUnsigned<DF> d32;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, LoadHalf(d16, p))));
  }
  template <class D16>
  static HWY_INLINE hn::Vec<D16> LoadHalf(D16 d16, const std::uint8_t* p) {
    // Two bytes a lane, of no particular alignment.
    return hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(p));
  }
};
struct StoredF16 {
  static constexpr std::size_t kBytes = 2;
  static HWY_INLINE VF Load(DF d, const std::uint8_t* p) {
    const hn::Rebind<hwy::float16_t, DF> d16;
    return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
  }
};

struct StoredI8 {
  static constexpr std::size_t kBytes = 1;
  static HWY_INLINE VF Load(DF d, const std::uint8_t* p) {
    const hn::Rebind<std::int8_t, DF> d8;
    const hn::RebindToSigned<DF> d32;
    return hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, reinterpret_cast<const std::int8_t*>(p))));
  }
};

/// The last n < kFloats elements, zero-padded: the same body then runs on them.
template <class Stored>
HWY_INLINE VF LoadTail(DF d, const std::uint8_t* p, std::size_t n) {
  HWY_ALIGN std::uint8_t padded[kFloats * Stored::kBytes] = {};
  std::memcpy(padded, p, n * Stored::kBytes);
  return Stored::Load(d, padded);
}
HWY_INLINE VF LoadTail(DF d, const float* p, std::size_t n) { return LoadTail<StoredF32>(d, reinterpret_cast<const std::uint8_t*>(p), n); }
HWY_INLINE void StoreTail(DF d, VF v, float* p, std::size_t n) {
  HWY_ALIGN float whole[kFloats];
  hn::Store(v, d, whole);
  std::memcpy(p, whole, n * sizeof(float));
}

HWY_INLINE float Sum(DF d, VF v) { return hn::GetLane(hn::SumOfLanes(d, v)); }

// ---- Rows of weights times few rows of x

/// kRows rows of weights with kTokens rows of x.
template <class Stored, std::size_t kRows, std::size_t kTokens>
HWY_INLINE void RowBlock(const std::uint8_t* weights, std::size_t columns, const float* x, std::size_t x_stride, float* out, std::size_t out_stride) {
  const DF d;
  const std::size_t row_bytes = columns * Stored::kBytes;
  VF sums[kRows][kTokens];
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t t = 0; t < kTokens; ++t) sums[r][t] = hn::Zero(d);
  std::size_t k = 0;
  for (; k + kFloats <= columns; k += kFloats) {
    // One row of x uses weights up faster than the CPU's own prefetcher brings them, which starts anew on each page.
    if (kTokens == 1 && k * Stored::kBytes % 64 == 0)
      for (std::size_t r = 0; r < kRows; ++r) __builtin_prefetch(weights + r * row_bytes + k * Stored::kBytes + 1024);
    VF inputs[kTokens];
    for (std::size_t t = 0; t < kTokens; ++t) inputs[t] = hn::LoadU(d, x + t * x_stride + k);
    for (std::size_t r = 0; r < kRows; ++r) {
      const VF w = Stored::Load(d, weights + r * row_bytes + k * Stored::kBytes);
      for (std::size_t t = 0; t < kTokens; ++t) sums[r][t] = hn::MulAdd(w, inputs[t], sums[r][t]);
    }
  }
  if (k < columns)
    for (std::size_t r = 0; r < kRows; ++r) {
      const VF w = LoadTail<Stored>(d, weights + r * row_bytes + k * Stored::kBytes, columns - k);
      for (std::size_t t = 0; t < kTokens; ++t) sums[r][t] = hn::MulAdd(w, LoadTail(d, x + t * x_stride + k, columns - k), sums[r][t]);
    }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t t = 0; t < kTokens; ++t) out[t * out_stride + r] = Sum(d, sums[r][t]);
}

template <class Stored, std::size_t kTokens>
HWY_INLINE void RowProducts(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const float* x, std::size_t x_stride, float* out,
                            std::size_t out_stride) {
  constexpr std::size_t kRows = 4;
  const std::size_t row_bytes = columns * Stored::kBytes;
  std::size_t r = 0;
  for (; r + kRows <= rows; r += kRows) RowBlock<Stored, kRows, kTokens>(weights + r * row_bytes, columns, x, x_stride, out + r, out_stride);
  for (; r < rows; ++r) RowBlock<Stored, 1, kTokens>(weights + r * row_bytes, columns, x, x_stride, out + r, out_stride);
}

template <class Stored>
HWY_INLINE void RowProductsOf(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const float* x, std::size_t x_stride,
                              std::size_t tokens, float* out, std::size_t out_stride) {
  std::size_t t = 0;
  for (; t + 4 <= tokens; t += 4) RowProducts<Stored, 4>(weights, rows, columns, x + t * x_stride, x_stride, out + t * out_stride, out_stride);
  const float* rest = x + t * x_stride;
  float* rest_out = out + t * out_stride;
  if (tokens - t == 3) RowProducts<Stored, 3>(weights, rows, columns, rest, x_stride, rest_out, out_stride);
  if (tokens - t == 2) RowProducts<Stored, 2>(weights, rows, columns, rest, x_stride, rest_out, out_stride);
  if (tokens - t == 1) RowProducts<Stored, 1>(weights, rows, columns, rest, x_stride, rest_out, out_stride);
}

void RowProductsF32(const std::uint8_t* w, std::size_t rows, std::size_t columns, const float* x, std::size_t x_stride, std::size_t tokens,
                    float* out, std::size_t out_stride) {
  RowProductsOf<StoredF32>(w, rows, columns, x, x_stride, tokens, out, out_stride);
}
void RowProductsBf16(const std::uint8_t* w, std::size_t rows, std::size_t columns, const float* x, std::size_t x_stride, std::size_t tokens,
                     float* out, std::size_t out_stride) {
  RowProductsOf<StoredBf16>(w, rows, columns, x, x_stride, tokens, out, out_stride);
}
void RowProductsF16(const std::uint8_t* w, std::size_t rows, std::size_t columns, const float* x, std::size_t x_stride, std::size_t tokens,
                    float* out, std::size_t out_stride) {
  RowProductsOf<StoredF16>(w, rows, columns, x, x_stride, tokens, out, out_stride);
}

void RowProductsI8(const std::uint8_t* w, std::size_t rows, std::size_t columns, const float* x, std::size_t x_stride, std::size_t tokens, float* out,
                   std::size_t out_stride) {
  RowProductsOf<StoredI8>(w, rows, columns, x, x_stride, tokens, out, out_stride);
}

// ---- Rows

/// out[i] = f(x[i]) over a row.
template <class F>
HWY_INLINE void Map(const float* x, float* out, std::size_t n, const F& f) {
  const DF d;
  std::size_t i = 0;
  for (; i + kFloats <= n; i += kFloats) hn::StoreU(f(hn::LoadU(d, x + i), i, kFloats), d, out + i);
  if (i < n) StoreTail(d, f(LoadTail(d, x + i, n - i), i, n - i), out + i, n - i);
}
/// Sum of f(x[i]); f(0) is 0 or the padding is masked by the caller. Sixteen sums or more side by side: on narrow targets too a sum of many squares
/// keeps the last bits of its addends.
template <class F>
HWY_INLINE float SumOf(const float* x, std::size_t n, const F& f) {
  constexpr std::size_t kSums = kFloats >= 8 ? 2 : 16 / kFloats;
  const DF d;
  VF sums[kSums];
  for (VF& sum : sums) sum = hn::Zero(d);
  std::size_t i = 0;
  for (; i + kSums * kFloats <= n; i += kSums * kFloats)
    for (std::size_t j = 0; j < kSums; ++j) sums[j] = hn::Add(sums[j], f(hn::LoadU(d, x + i + j * kFloats)));
  for (; i + kFloats <= n; i += kFloats) sums[0] = hn::Add(sums[0], f(hn::LoadU(d, x + i)));
  for (std::size_t width = kSums / 2; width > 0; width /= 2)
    for (std::size_t j = 0; j < width; ++j) sums[j] = hn::Add(sums[j], sums[j + width]);
  float sum = Sum(d, sums[0]);
  if (i < n) {
    HWY_ALIGN float lanes[kFloats];
    hn::Store(f(LoadTail(d, x + i, n - i)), d, lanes);
    for (std::size_t j = 0; j < n - i; ++j) sum += lanes[j];
  }
  return sum;
}

/// Elements i .. i + count of another row beside the one that is mapped.
HWY_INLINE VF Beside(DF d, const float* row, std::size_t i, std::size_t count) {
  return count == kFloats ? hn::LoadU(d, row + i) : LoadTail(d, row + i, count);
}

float DotF32(const float* x, const float* y, std::size_t n) {
  float out;
  RowBlock<StoredF32, 1, 1>(reinterpret_cast<const std::uint8_t*>(x), n, y, 0, &out, 0);
  return out;
}

void AddScaled(float factor, const float* x, float* out, std::size_t n) {
  const DF d;
  const VF scale = hn::Set(d, factor);
  Map(out, out, n, [&](VF v, std::size_t i, std::size_t count) { return hn::MulAdd(scale, Beside(d, x, i, count), v); });
}

/// x / step, rounded, plus shift, as bytes: the values fit into 8 bits of either kind.
float Quantize(const float* x, std::uint8_t* out, int shift, std::size_t n) {
  const DF d;
  const hn::RebindToSigned<DF> d32;
  const hn::Rebind<std::uint8_t, DF> d8;
  VF most = hn::Zero(d), poison = hn::Zero(d);
  std::size_t i = 0;
  const auto look = [&](VF v) {
    most = hn::Max(most, hn::Abs(v));
    poison = hn::MulAdd(v, hn::Zero(d), poison);  // NaN once something was not finite
  };
  for (; i + kFloats <= n; i += kFloats) look(hn::LoadU(d, x + i));
  if (i < n) look(LoadTail(d, x + i, n - i));
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most));
  const float bad = Sum(d, poison);
  const bool is_finite = bad == 0;
  const float step = largest / 127.0F;
  const VF inverse = hn::Set(d, is_finite && step > 0 ? 127.0F / largest : 0.0F);
  const auto offset = hn::Set(d32, shift), low_byte = hn::Set(d32, 255);
  const auto convert = [&](VF v) {
    if (!is_finite) v = hn::Zero(d);
    const VF scaled = hn::Min(hn::Max(hn::Mul(v, inverse), hn::Set(d, -127.0F)), hn::Set(d, 127.0F));
    return hn::DemoteTo(d8, hn::And(hn::Add(hn::NearestInt(scaled), offset), low_byte));
  };
  for (i = 0; i + kFloats <= n; i += kFloats) hn::StoreU(convert(hn::LoadU(d, x + i)), d8, out + i);
  if (i < n) {
    HWY_ALIGN std::uint8_t whole[kFloats];
    hn::StoreU(convert(LoadTail(d, x + i, n - i)), d8, whole);
    std::memcpy(out + i, whole, n - i);
  }
  return is_finite ? step : bad;
}

void Rescale(const std::int32_t* sums, const std::int32_t* offsets, float factor, const float* steps, float* out, std::size_t n) {
  const DF d;
  const hn::RebindToSigned<DF> d32;
  const VF by = hn::Set(d, factor);
  std::size_t i = 0;
  for (; i + kFloats <= n; i += kFloats) {
    const VF sum = hn::ConvertTo(d, hn::Sub(hn::LoadU(d32, sums + i), hn::LoadU(d32, offsets + i)));
    hn::StoreU(hn::Mul(sum, hn::Mul(by, hn::LoadU(d, steps + i))), d, out + i);
  }
  for (; i < n; ++i) out[i] = static_cast<float>(sums[i] - offsets[i]) * (factor * steps[i]);
}

void MultiplyBy(const float* factors, float* x, std::size_t n) {
  const DF d;
  Map(x, x, n, [&](VF v, std::size_t i, std::size_t count) { return hn::Mul(v, Beside(d, factors, i, count)); });
}

void RmsNorm(const float* x, const float* weight, float offset, float eps, float* out, std::size_t n) {
  const DF d;
  const float mean = SumOf(x, n, [](VF v) { return hn::Mul(v, v); }) / static_cast<float>(n);
  const VF scale = hn::Set(d, 1.0F / std::sqrt(mean + eps));
  const VF shift = hn::Set(d, offset);
  Map(x, out, n, [&](VF v, std::size_t i, std::size_t count) { return hn::Mul(hn::Mul(v, scale), hn::Add(shift, Beside(d, weight, i, count))); });
}

void LayerNorm(const float* x, const float* weight, const float* bias, float eps, float* out, std::size_t n) {
  const DF d;
  const VF mean = hn::Set(d, SumOf(x, n, [](VF v) { return v; }) / static_cast<float>(n));
  const float variance = SumOf(x, n,
                               [&](VF v) {
                                 const VF centered = hn::Sub(v, mean);
                                 return hn::Mul(centered, centered);
                               }) /
                         static_cast<float>(n);
  const VF scale = hn::Set(d, 1.0F / std::sqrt(variance + eps));
  Map(x, out, n, [&](VF v, std::size_t i, std::size_t count) {
    const VF normal = hn::Mul(hn::Mul(hn::Sub(v, mean), scale), Beside(d, weight, i, count));
    return bias == nullptr ? normal : hn::Add(normal, Beside(d, bias, i, count));
  });
}

HWY_INLINE VF Sigmoid(DF d, VF x) {
  const VF one = hn::Set(d, 1.0F);
  // Bounded where exp would overflow: the quotient is 0 there anyway.
  return hn::Div(one, hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0F)))));
}

struct SiluOf {
  static HWY_INLINE VF Of(DF d, VF x) { return hn::Mul(x, Sigmoid(d, x)); }
};
struct QuickGeluOf {
  static HWY_INLINE VF Of(DF d, VF x) { return hn::Mul(x, Sigmoid(d, hn::Mul(x, hn::Set(d, 1.702F)))); }
};
struct GeluTanhOf {
  static HWY_INLINE VF Of(DF d, VF x) {
    const VF cube = hn::Mul(hn::Mul(x, x), x);
    const VF inner = hn::Mul(hn::Set(d, 0.7978845608028654F), hn::MulAdd(hn::Set(d, 0.044715F), cube, x));
    // tanh(u) = 2 sigmoid(2u) - 1, so the whole is x sigmoid(2u).
    return hn::Mul(x, Sigmoid(d, hn::Add(inner, inner)));
  }
};
struct GeluOf {
  static HWY_INLINE VF Of(DF d, VF x) {
    HWY_ALIGN float lanes[kFloats];
    hn::Store(x, d, lanes);
    for (float& v : lanes) v = static_cast<float>(0.5 * static_cast<double>(v) * (1.0 + std::erf(static_cast<double>(v) * 0.70710678118654752440)));
    return hn::Load(d, lanes);
  }
};
struct ReluOf {
  static HWY_INLINE VF Of(DF d, VF x) { return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x); }  // NaN stays
};
struct TanhOf {
  static HWY_INLINE VF Of(DF d, VF x) {
    HWY_ALIGN float lanes[kFloats];
    hn::Store(x, d, lanes);
    for (float& v : lanes) v = std::tanh(v);
    return hn::Load(d, lanes);
  }
};
struct SigmoidOf {
  static HWY_INLINE VF Of(DF d, VF x) { return Sigmoid(d, x); }
};

template <class F>
HWY_INLINE void Apply(float* x, const float* up, std::size_t n) {
  const DF d;
  if (up == nullptr)
    Map(x, x, n, [&](VF v, std::size_t, std::size_t) { return F::Of(d, v); });
  else
    Map(x, x, n, [&](VF v, std::size_t i, std::size_t count) { return hn::Mul(F::Of(d, v), Beside(d, up, i, count)); });
}

/// up null: x = f(x), else x = f(x) * up.
void Activate(int activation, float* x, const float* up, std::size_t n) {
  switch (static_cast<Activation>(activation)) {
    case Activation::silu:
      return Apply<SiluOf>(x, up, n);
    case Activation::gelu:
      return Apply<GeluOf>(x, up, n);
    case Activation::gelu_tanh:
      return Apply<GeluTanhOf>(x, up, n);
    case Activation::quick_gelu:
      return Apply<QuickGeluOf>(x, up, n);
    case Activation::relu:
      return Apply<ReluOf>(x, up, n);
    case Activation::tanh:
      return Apply<TanhOf>(x, up, n);
    case Activation::sigmoid:
      return Apply<SigmoidOf>(x, up, n);
  }
}

void Softmax(float* x, std::size_t n) {
  const DF d;
  // A NaN may be passed over here: the sum below is NaN for it, and all that is divided by it.
  VF tops = hn::Set(d, x[0]);
  std::size_t k = 0;
  for (; k + kFloats <= n; k += kFloats) tops = hn::Max(tops, hn::LoadU(d, x + k));
  float largest = hn::GetLane(hn::MaxOfLanes(d, tops));
  for (; k < n; ++k) largest = x[k] > largest ? x[k] : largest;
  const VF top = hn::Set(d, largest);
  Map(x, x, n, [&](VF v, std::size_t, std::size_t) {
    const VF below = hn::Sub(v, top);
    // exp of what is far below would leave its range; it is 0.
    const VF bounded = hn::Max(below, hn::Set(d, -87.0F));
    const VF e = hn::Exp(d, bounded);
    return hn::IfThenElse(hn::Lt(below, hn::Set(d, -87.0F)), hn::Zero(d), hn::IfThenElse(hn::IsNaN(below), below, e));
  });
  const VF scale = hn::Set(d, 1.0F / SumOf(x, n, [](VF v) { return v; }));
  Map(x, x, n, [&](VF v, std::size_t, std::size_t) { return hn::Mul(v, scale); });
}

void RotatePairs(float* x, const float* cosine, const float* sine, std::size_t half) {
  const DF d;
  std::size_t j = 0;
  const auto turn = [&](VF a, VF b, VF c, VF s, VF& first, VF& second) {
    first = hn::Sub(hn::Mul(a, c), hn::Mul(b, s));
    second = hn::Add(hn::Mul(b, c), hn::Mul(a, s));
  };
  for (; j + kFloats <= half; j += kFloats) {
    VF first, second;
    turn(hn::LoadU(d, x + j), hn::LoadU(d, x + half + j), hn::LoadU(d, cosine + j), hn::LoadU(d, sine + j), first, second);
    hn::StoreU(first, d, x + j);
    hn::StoreU(second, d, x + half + j);
  }
  for (; j < half; ++j) {
    const float a = x[j], b = x[half + j];
    x[j] = a * cosine[j] - b * sine[j];
    x[half + j] = b * cosine[j] + a * sine[j];
  }
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
