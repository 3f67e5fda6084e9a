// Products with packed matrices in x86's own instructions: the 8-bit dot products (VNNI) that Highway 1.0.3 does not have, and what stands in for
// them without.
#include "math/packed_kernels.h"

#ifdef WEFT_PACKED_X86
// GCC 12 takes its own intrinsics' "undefined" operands for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstring>
#include <utility>

#define WEFT_PACKED_INLINE inline __attribute__((always_inline))
#define WEFT_PACKED_LAMBDA __attribute__((always_inline))

namespace weft::math::packed {
namespace {

inline int word_at(const std::int8_t* p) {
  int word;
  std::memcpy(&word, p, 4);
  return word;
}

}  // namespace

// ---- 256 bits

#define WEFT_PACKED_VECTORS_256                                                                                                                 \
  static constexpr std::size_t kLanes = 8;                                                                                                      \
  using I = __m256i;                                                                                                                            \
  using F = __m256;                                                                                                                             \
  struct Table {                                                                                                                                \
    F low, high;                                                                                                                                \
  };                                                                                                                                            \
  static WEFT_PACKED_INLINE I Load(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }                   \
  static WEFT_PACKED_INLINE I And(I a, I b) { return _mm256_and_si256(a, b); }                                                                  \
  static WEFT_PACKED_INLINE I Or(I a, I b) { return _mm256_or_si256(a, b); }                                                                    \
  static WEFT_PACKED_INLINE I Xor(I a, I b) { return _mm256_xor_si256(a, b); }                                                                  \
  static WEFT_PACKED_INLINE I Bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }                                           \
  static WEFT_PACKED_INLINE I Zero() { return _mm256_setzero_si256(); }                                                                         \
  static WEFT_PACKED_INLINE I AddWords(I a, I b) { return _mm256_add_epi32(a, b); }                                                             \
  static WEFT_PACKED_INLINE I ToWords(F v) { return _mm256_cvtps_epi32(v); }                                                                    \
  static WEFT_PACKED_INLINE void StoreWords(I v, std::int32_t* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }                    \
  static WEFT_PACKED_INLINE I SubBytes(I a, I b) { return _mm256_sub_epi8(a, b); }                                                              \
  template <int kBits>                                                                                                                          \
  static WEFT_PACKED_INLINE I Shr(I v) {                                                                                                        \
    return _mm256_srli_epi32(v, kBits);                                                                                                         \
  }                                                                                                                                             \
  template <int kBits>                                                                                                                          \
  static WEFT_PACKED_INLINE I Shl(I v) {                                                                                                        \
    return _mm256_slli_epi32(v, kBits);                                                                                                         \
  }                                                                                                                                             \
  template <int kByte>                                                                                                                          \
  static WEFT_PACKED_INLINE F SignedByte(I v) {                                                                                                 \
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * kByte), 24));                                                     \
  }                                                                                                                                             \
  static WEFT_PACKED_INLINE F ToFloat(I v) { return _mm256_cvtepi32_ps(v); }                                                                    \
  static WEFT_PACKED_INLINE F Set(float value) { return _mm256_set1_ps(value); }                                                                \
  static WEFT_PACKED_INLINE F Each(const float* p) { return _mm256_broadcast_ss(p); }                                                           \
  static WEFT_PACKED_INLINE F Add(F a, F b) { return _mm256_add_ps(a, b); }                                                                     \
  static WEFT_PACKED_INLINE F Sub(F a, F b) { return _mm256_sub_ps(a, b); }                                                                     \
  static WEFT_PACKED_INLINE F Mul(F a, F b) { return _mm256_mul_ps(a, b); }                                                                     \
  static WEFT_PACKED_INLINE F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }                                                           \
  static WEFT_PACKED_INLINE F Fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }                                                         \
  static WEFT_PACKED_INLINE F Max(F a, F b) { return _mm256_max_ps(a, b); }                                                                     \
  static WEFT_PACKED_INLINE F Abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }                                                   \
  static WEFT_PACKED_INLINE float MaxOfLanes(F v) {                                                                                             \
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));                                                              \
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));                                                                                                     \
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));                                                                               \
  }                                                                                                                                             \
  static WEFT_PACKED_INLINE float SumOfLanes(F v) {                                                                                             \
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));                                                              \
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));                                                                                                     \
    return _mm_cvtss_f32(_mm_add_ss(m, _mm_shuffle_ps(m, m, 1)));                                                                               \
  }                                                                                                                                             \
  static WEFT_PACKED_INLINE F RoundToBytes(F v, std::int8_t* out) {                                                                             \
    const __m256i whole = _mm256_cvtps_epi32(v);                                                                                                \
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));                                   \
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi16(words, words));                                                           \
    return _mm256_cvtepi32_ps(whole);                                                                                                           \
  }                                                                                                                                             \
  static WEFT_PACKED_INLINE F LoadFloat(const float* p) { return _mm256_loadu_ps(p); }                                                          \
  static WEFT_PACKED_INLINE F LoadFloat(const std::uint8_t* p) { return _mm256_castsi256_ps(Load(p)); }                                         \
  static WEFT_PACKED_INLINE F LoadHalf(const std::uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); } \
  static WEFT_PACKED_INLINE F LoadBrain(const std::uint8_t* p) {                                                                                \
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));             \
  }                                                                                                                                             \
  static WEFT_PACKED_INLINE F LoadBytes(const std::uint8_t* p) {                                                                                \
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));                                      \
  }                                                                                                                                             \
  static WEFT_PACKED_INLINE F LoadSignedBytes(const std::uint8_t* p) {                                                                          \
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));                                      \
  }                                                                                                                                             \
  /* Of four columns. As the bits of float16: sign, then exponent and mantissa at the top of theirs, which makes them smaller by 2^8. */        \
  static WEFT_PACKED_INLINE void LoadE4m3(const std::uint8_t* p, F(&out)[4]) {                                                                  \
    const __m128i bits = _mm_set1_epi16(static_cast<short>(0xBF80));                                                                            \
    for (int i = 0; i < 2; ++i) {                                                                                                               \
      const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 32 * i));                                                       \
      out[2 * i] = _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(_mm_slli_epi16(both, 8), 1), bits));                                            \
      out[2 * i + 1] = _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(both, 1), bits));                                                           \
    }                                                                                                                                           \
  }                                                                                                                                             \
  static WEFT_PACKED_INLINE void Store(F v, float* p) { _mm256_storeu_ps(p, v); }                                                               \
  static WEFT_PACKED_INLINE Table LoadTable(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }                            \
  static WEFT_PACKED_INLINE F LookUp(const Table& table, I v) {                                                                                 \
    const F low = _mm256_permutevar8x32_ps(table.low, v), high = _mm256_permutevar8x32_ps(table.high, v);                                       \
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(v, 28)));                                                          \
  }

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {

#include "math/packed_products-inl.h"

struct Vectors {
  static constexpr bool kSignedBytes = true;
  WEFT_PACKED_VECTORS_256

  template <int kBits>
  static WEFT_PACKED_INLINE I Dot(I sum, I codes, const std::int8_t* x) {
    I inputs = _mm256_set1_epi32(word_at(x));
    if constexpr (kBits == 8) {
      // Pairs are added in 16 bits: 2 * 128 * 127 fits.
      inputs = _mm256_sign_epi8(inputs, codes);
      codes = _mm256_abs_epi8(codes);
    }
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, inputs), _mm256_set1_epi16(1)));
  }
};

}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
namespace avx2_vnni {

#include "math/packed_products-inl.h"

struct Vectors {
  static constexpr bool kSignedBytes = false;
  WEFT_PACKED_VECTORS_256

  template <int kBits>
  static WEFT_PACKED_INLINE I Dot(I sum, I codes, const std::int8_t* x) {
    return _mm256_dpbusd_avx_epi32(sum, codes, _mm256_set1_epi32(word_at(x)));
  }
};

}  // namespace avx2_vnni
#pragma GCC pop_options

// ---- 512 bits

#define WEFT_PACKED_VECTORS_512                                                                                                                    \
  static constexpr std::size_t kLanes = 16;                                                                                                        \
  using I = __m512i;                                                                                                                               \
  using F = __m512;                                                                                                                                \
  using Table = __m512;                                                                                                                            \
  static WEFT_PACKED_INLINE I Load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }                                                        \
  static WEFT_PACKED_INLINE I And(I a, I b) { return _mm512_and_si512(a, b); }                                                                     \
  static WEFT_PACKED_INLINE I Or(I a, I b) { return _mm512_or_si512(a, b); }                                                                       \
  static WEFT_PACKED_INLINE I Xor(I a, I b) { return _mm512_xor_si512(a, b); }                                                                     \
  static WEFT_PACKED_INLINE I Bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }                                              \
  static WEFT_PACKED_INLINE I Zero() { return _mm512_setzero_si512(); }                                                                            \
  static WEFT_PACKED_INLINE I AddWords(I a, I b) { return _mm512_add_epi32(a, b); }                                                                \
  static WEFT_PACKED_INLINE I ToWords(F v) { return _mm512_cvtps_epi32(v); }                                                                       \
  static WEFT_PACKED_INLINE void StoreWords(I v, std::int32_t* p) { _mm512_storeu_si512(p, v); }                                                   \
  static WEFT_PACKED_INLINE I SubBytes(I a, I b) { return _mm512_sub_epi8(a, b); }                                                                 \
  template <int kBits>                                                                                                                             \
  static WEFT_PACKED_INLINE I Shr(I v) {                                                                                                           \
    return _mm512_srli_epi32(v, kBits);                                                                                                            \
  }                                                                                                                                                \
  template <int kBits>                                                                                                                             \
  static WEFT_PACKED_INLINE I Shl(I v) {                                                                                                           \
    return _mm512_slli_epi32(v, kBits);                                                                                                            \
  }                                                                                                                                                \
  template <int kByte>                                                                                                                             \
  static WEFT_PACKED_INLINE F SignedByte(I v) {                                                                                                    \
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * kByte), 24));                                                        \
  }                                                                                                                                                \
  static WEFT_PACKED_INLINE F ToFloat(I v) { return _mm512_cvtepi32_ps(v); }                                                                       \
  static WEFT_PACKED_INLINE F Set(float value) { return _mm512_set1_ps(value); }                                                                   \
  static WEFT_PACKED_INLINE F Each(const float* p) { return _mm512_set1_ps(*p); }                                                                  \
  static WEFT_PACKED_INLINE F Add(F a, F b) { return _mm512_add_ps(a, b); }                                                                        \
  static WEFT_PACKED_INLINE F Sub(F a, F b) { return _mm512_sub_ps(a, b); }                                                                        \
  static WEFT_PACKED_INLINE F Mul(F a, F b) { return _mm512_mul_ps(a, b); }                                                                        \
  static WEFT_PACKED_INLINE F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }                                                              \
  static WEFT_PACKED_INLINE F Fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }                                                            \
  static WEFT_PACKED_INLINE F Max(F a, F b) { return _mm512_max_ps(a, b); }                                                                        \
  static WEFT_PACKED_INLINE F Abs(F a) { return _mm512_abs_ps(a); }                                                                                \
  static WEFT_PACKED_INLINE float MaxOfLanes(F v) { return _mm512_reduce_max_ps(v); }                                                              \
  static WEFT_PACKED_INLINE float SumOfLanes(F v) { return _mm512_reduce_add_ps(v); }                                                              \
  static WEFT_PACKED_INLINE F RoundToBytes(F v, std::int8_t* out) {                                                                                \
    const __m512i whole = _mm512_cvtps_epi32(v);                                                                                                   \
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtsepi32_epi8(whole));                                                               \
    return _mm512_cvtepi32_ps(whole);                                                                                                              \
  }                                                                                                                                                \
  static WEFT_PACKED_INLINE F LoadFloat(const float* p) { return _mm512_loadu_ps(p); }                                                             \
  static WEFT_PACKED_INLINE F LoadFloat(const std::uint8_t* p) { return _mm512_loadu_ps(p); }                                                      \
  static WEFT_PACKED_INLINE F LoadHalf(const std::uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); } \
  static WEFT_PACKED_INLINE F LoadBrain(const std::uint8_t* p) {                                                                                   \
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));             \
  }                                                                                                                                                \
  static WEFT_PACKED_INLINE F LoadBytes(const std::uint8_t* p) {                                                                                   \
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));                                         \
  }                                                                                                                                                \
  static WEFT_PACKED_INLINE F LoadSignedBytes(const std::uint8_t* p) {                                                                             \
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));                                         \
  }                                                                                                                                                \
  /* As in 256 bits. */                                                                                                                            \
  static WEFT_PACKED_INLINE void LoadE4m3(const std::uint8_t* p, F(&out)[4]) {                                                                     \
    const __m512i bits = _mm512_set1_epi16(static_cast<short>(0xBF80)), all = _mm512_loadu_si512(p);                                               \
    const __m512i even = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(all, 8), 1), bits);                                                  \
    const __m512i odd = _mm512_and_si512(_mm512_srai_epi16(all, 1), bits);                                                                         \
    out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(even));                                                                                        \
    out[1] = _mm512_cvtph_ps(_mm512_castsi512_si256(odd));                                                                                         \
    out[2] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(even, 1));                                                                                  \
    out[3] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(odd, 1));                                                                                   \
  }                                                                                                                                                \
  static WEFT_PACKED_INLINE void Store(F v, float* p) { _mm512_storeu_ps(p, v); }                                                                  \
  static WEFT_PACKED_INLINE Table LoadTable(const float* p) { return _mm512_loadu_ps(p); }                                                         \
  static WEFT_PACKED_INLINE F LookUp(const Table& table, I v) { return _mm512_permutexvar_ps(v, table); }

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
namespace avx512 {

#include "math/packed_products-inl.h"

struct Vectors {
  static constexpr bool kSignedBytes = true;
  WEFT_PACKED_VECTORS_512

  template <int kBits>
  static WEFT_PACKED_INLINE I Dot(I sum, I codes, const std::int8_t* x) {
    I inputs = _mm512_set1_epi32(word_at(x));
    if constexpr (kBits == 8) {
      // Pairs are added in 16 bits: 2 * 128 * 127 fits.
      inputs = _mm512_mask_sub_epi8(inputs, _mm512_movepi8_mask(codes), Zero(), inputs);
      codes = _mm512_abs_epi8(codes);
    }
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, inputs), _mm512_set1_epi16(1)));
  }
};

}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
namespace avx512_vnni {

#include "math/packed_products-inl.h"

struct Vectors {
  static constexpr bool kSignedBytes = false;
  WEFT_PACKED_VECTORS_512

  template <int kBits>
  static WEFT_PACKED_INLINE I Dot(I sum, I codes, const std::int8_t* x) {
    return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(word_at(x)));
  }
};

}  // namespace avx512_vnni
#pragma GCC pop_options

constexpr Kernels kOf256 = avx2::make_kernels<avx2::Vectors>("avx2");
constexpr Kernels kOf512 = avx512::make_kernels<avx512::Vectors>("avx512");
constinit const Kernels kAvx2 = kOf256;
constinit const Kernels kAvx2Vnni = avx2_vnni::make_kernels<avx2_vnni::Vectors, false>("avx2_vnni", true, &kOf256);
constinit const Kernels kAvx512 = kOf512;
constinit const Kernels kAvx512Vnni = avx512_vnni::make_kernels<avx512_vnni::Vectors, false>("avx512_vnni", true, &kOf512);

}  // namespace weft::math::packed
#endif
