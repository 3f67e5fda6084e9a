// Products with packed matrices on four lanes, in what every compiler of the GNU family makes of vectors.
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "math/packed_kernels.h"
#include "math/small_float.h"

#define WEFT_PACKED_INLINE inline __attribute__((always_inline))
#define WEFT_PACKED_LAMBDA __attribute__((always_inline))

namespace weft::math::packed {
namespace portable {

#include "math/packed_products-inl.h"

struct Vectors {
  static constexpr std::size_t kLanes = 4;
  static constexpr bool kSignedBytes = false;
  typedef std::uint32_t I __attribute__((vector_size(16)));
  typedef std::int32_t Signed __attribute__((vector_size(16)));
  typedef float F __attribute__((vector_size(16)));
  struct Table {
    float values[16];
  };

  static I Load(const std::uint8_t* p) { return read<I>(p); }
  static I And(I a, I b) { return a & b; }
  static I Or(I a, I b) { return a | b; }
  static I Xor(I a, I b) { return a ^ b; }
  static I Bytes(int value) { return I{} + static_cast<std::uint32_t>(value) * 0x01010101U; }
  static I Zero() { return I{}; }
  static I AddWords(I a, I b) { return a + b; }
  static I ToWords(F v) {
    I words{};
    for (int i = 0; i < 4; ++i) words[i] = static_cast<std::uint32_t>(static_cast<std::int32_t>(std::lrint(v[i])));
    return words;
  }
  static void StoreWords(I v, std::int32_t* p) { std::memcpy(p, &v, sizeof v); }
  static I SubBytes(I a, I b) {
    typedef std::uint8_t Small __attribute__((vector_size(16)));
    return reinterpret_cast<I>(reinterpret_cast<Small>(a) - reinterpret_cast<Small>(b));
  }
  template <int kBits>
  static I Shr(I v) {
    return v >> kBits;
  }
  template <int kBits>
  static I Shl(I v) {
    return v << kBits;
  }
  template <int kBits>
  static I Dot(I sum, I codes, const std::int8_t* x) {
    for (unsigned b = 0; b < 4; ++b) sum += (codes >> 8 * b & 0xFFU) * static_cast<std::uint32_t>(static_cast<std::int32_t>(x[b]));
    return sum;
  }
  template <int kByte>
  static F SignedByte(I v) {
    return __builtin_convertvector(reinterpret_cast<Signed>(v << (24 - 8 * kByte)) >> 24, F);
  }
  static F ToFloat(I v) { return __builtin_convertvector(reinterpret_cast<Signed>(v), F); }

  static F Set(float value) { return F{} + value; }
  static F Each(const float* p) { return Set(*p); }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  static F Fma(F a, F b, F c) { return a * b + c; }
  static F Fnma(F a, F b, F c) { return c - a * b; }
  static F Max(F a, F b) { return a > b ? a : b; }
  static F Abs(F a) { return reinterpret_cast<F>(reinterpret_cast<I>(a) & 0x7FFFFFFFU); }
  static float MaxOfLanes(F v) { return std::max(std::max(v[0], v[1]), std::max(v[2], v[3])); }
  static float SumOfLanes(F v) { return (v[0] + v[1]) + (v[2] + v[3]); }
  /// Stores the nearest integers as bytes and returns them.
  static F RoundToBytes(F v, std::int8_t* out) {
    const F whole = (v + 12582912.0F) - 12582912.0F;
    for (int i = 0; i < 4; ++i) out[i] = static_cast<std::int8_t>(whole[i] == whole[i] ? whole[i] : 0.0F);
    return whole;
  }

  static F LoadFloat(const float* p) { return read<F>(p); }
  static F LoadFloat(const std::uint8_t* p) { return read<F>(p); }
  static F LoadHalf(const std::uint8_t* p) {
    return gather(p, [](std::uint16_t code) { return std::bit_cast<float>(decode_small(kF16, code)); });
  }
  static F LoadBrain(const std::uint8_t* p) {
    return gather(p, [](std::uint16_t code) { return std::bit_cast<float>(std::uint32_t{code} << 16); });
  }
  static F LoadBytes(const std::uint8_t* p) {
    return F{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
  }
  static F LoadSignedBytes(const std::uint8_t* p) {
    F v{};
    for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(static_cast<std::int8_t>(p[i]));
    return v;
  }
  /// Of four columns: the numbers divided by 256.
  static void LoadE4m3(const std::uint8_t* p, F (&out)[4]) {
    for (int column = 0; column < 4; ++column)
      for (int i = 0; i < 4; ++i) {
        const unsigned code = p[32 * (column / 2) + 2 * i + column % 2];
        out[column][i] = std::bit_cast<float>(decode_small(kF16, (code & 0x80U) << 8 | (code & 0x7FU) << 7));
      }
  }
  static void Store(F v, float* p) { std::memcpy(p, &v, sizeof v); }
  static Table LoadTable(const float* p) {
    Table table;
    std::memcpy(table.values, p, sizeof table.values);
    return table;
  }
  static F LookUp(const Table& table, I v) {
    return F{table.values[v[0] & 15U], table.values[v[1] & 15U], table.values[v[2] & 15U], table.values[v[3] & 15U]};
  }

 private:
  template <class Vector, class Element>
  static Vector read(const Element* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  template <class Of>
  static F gather(const std::uint8_t* p, const Of& of) {
    F v{};
    for (int i = 0; i < 4; ++i) {
      std::uint16_t code;
      std::memcpy(&code, p + 2 * i, 2);
      v[i] = of(code);
    }
    return v;
  }
};

}  // namespace portable

constinit const Kernels kPortable = portable::make_kernels<portable::Vectors>("portable");

}  // namespace weft::math::packed
