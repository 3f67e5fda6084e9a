#pragma once
#include <bit>
#include <cstdint>

// Floating-point formats of at most 16 bits as data: sign, exponent, mantissa. The vector and the plain conversions are written once on these.
namespace weft::math {

struct SmallFloat {
  int exponent_bits;
  int mantissa_bits;
  int bias;
  /// Largest magnitude code that encoding gives: infinity where there is one, else the largest finite number.
  std::uint32_t cap;
  bool has_infinity;   ///< then the top exponent is infinity and NaN, as in IEEE 754
  bool keeps_payload;  ///< the top bits of a NaN's mantissa stay
  bool unsigned_zero;  ///< FNUZ: no -0; its code is the only NaN
  std::uint32_t nan;   ///< magnitude code of NaN (the whole code for FNUZ); 0 where there is none (F4)

  [[nodiscard]] constexpr int magnitude_bits() const { return exponent_bits + mantissa_bits; }
  [[nodiscard]] constexpr int shift() const { return 23 - mantissa_bits; }
  [[nodiscard]] constexpr std::uint32_t magnitude_mask() const { return (1U << magnitude_bits()) - 1; }
  /// What the exponent of a normal number gains on the way to float32, at float32's place.
  [[nodiscard]] constexpr std::uint32_t rebias() const { return static_cast<std::uint32_t>(127 - bias) << 23; }
  /// Float32 bits of the smallest normal number.
  [[nodiscard]] constexpr std::uint32_t min_normal() const { return static_cast<std::uint32_t>(128 - bias) << 23; }
  /// Float32 bits of 2^23 times the smallest subnormal number: adding it to a smaller number rounds that to a multiple of the subnormal.
  [[nodiscard]] constexpr std::uint32_t subnormal_shift() const { return static_cast<std::uint32_t>(1 - bias - mantissa_bits + 23 + 127) << 23; }
};

inline constexpr SmallFloat kF16 = {5, 10, 15, 0x7C00, true, true, false, 0x7E00};
inline constexpr SmallFloat kF8E5M2 = {5, 2, 15, 0x7C, true, false, false, 0x7F};
inline constexpr SmallFloat kF8E4M3 = {4, 3, 7, 0x7E, false, false, false, 0x7F};
inline constexpr SmallFloat kF8E4M3Fnuz = {4, 3, 8, 0x7F, false, false, true, 0x80};
inline constexpr SmallFloat kF8E5M2Fnuz = {5, 2, 16, 0x7F, false, false, true, 0x80};
inline constexpr SmallFloat kF4 = {2, 1, 1, 0x7, false, false, false, 0};

inline constexpr std::uint32_t kMagnitudeMask32 = 0x7FFFFFFF;
inline constexpr std::uint32_t kInfinity32 = 0x7F800000;
inline constexpr std::uint32_t kQuietNaN32 = 0x7FC00000;
inline constexpr std::uint32_t kQuietBit32 = 0x00400000;

/// The float32 bits of a code.
[[nodiscard]] constexpr std::uint32_t decode_small(const SmallFloat& format, std::uint32_t code) {
  const std::uint32_t magnitude = code & format.magnitude_mask();
  const std::uint32_t sign = (code >> format.magnitude_bits()) << 31;
  if (format.unsigned_zero && code == format.nan) return kQuietNaN32;
  const std::uint32_t shifted = magnitude << format.shift();
  if (format.has_infinity && magnitude >= format.cap) return sign | shifted | kInfinity32 | (magnitude > format.cap ? kQuietBit32 : 0);
  if (!format.has_infinity && format.nan != 0 && magnitude == format.nan) return sign | kQuietNaN32;
  if (magnitude >> format.mantissa_bits != 0) return sign | (shifted + format.rebias());
  // Mantissa times the smallest subnormal: 1.mantissa less 1, at the exponent of the smallest normal number.
  const float value = std::bit_cast<float>(shifted + format.min_normal()) - std::bit_cast<float>(format.min_normal());
  return sign | std::bit_cast<std::uint32_t>(value);
}

/// The code of a float32 given by its bits, to nearest even.
[[nodiscard]] constexpr std::uint32_t encode_small(const SmallFloat& format, std::uint32_t bits) {
  const std::uint32_t magnitude = bits & kMagnitudeMask32;
  const std::uint32_t sign = (bits >> 31) << format.magnitude_bits();
  if (magnitude > kInfinity32 && format.nan != 0) {
    if (format.unsigned_zero) return format.nan;
    return sign | format.nan | (format.keeps_payload ? (magnitude >> format.shift()) & ((1U << format.mantissa_bits) - 1) : 0);
  }
  std::uint32_t code = 0;
  if (magnitude < format.min_normal()) {
    const float rounded = std::bit_cast<float>(magnitude) + std::bit_cast<float>(format.subnormal_shift());
    code = std::bit_cast<std::uint32_t>(rounded) - format.subnormal_shift();
  } else {
    const std::uint32_t odd = (magnitude >> format.shift()) & 1;
    code = (magnitude + ((1U << (format.shift() - 1)) - 1) + odd - format.rebias()) >> format.shift();
  }
  // Codes of magnitudes are in order, so what rounds beyond the last number, infinity included, is beyond the cap.
  if (code > format.cap) code = format.cap;
  return format.unsigned_zero && code == 0 ? 0 : sign | code;
}

/// bfloat16 of float32 bits, to nearest even; NaN is made quiet and keeps the top of its payload.
[[nodiscard]] constexpr std::uint32_t encode_bf16(std::uint32_t bits) {
  if ((bits & kMagnitudeMask32) > kInfinity32) return (bits | kQuietBit32) >> 16;
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

/// E8M0, a power of two without sign and zero. Halfway goes up (of two powers of two neither is even; IEEE 754 then takes the larger). Zero and what
/// is below the smallest become it; a negative number has no place here and becomes NaN.
[[nodiscard]] constexpr std::uint32_t encode_e8m0(std::uint32_t bits) {
  constexpr std::uint32_t kNaN = 0xFF;
  const std::uint32_t magnitude = bits & kMagnitudeMask32;
  if (magnitude > kInfinity32 || (bits >> 31 != 0 && magnitude != 0)) return kNaN;
  // Below 2^-126 float32 has no implicit bit: 1.5 times 2^-127 is 0x00600000.
  if (magnitude < 0x00800000) return magnitude >= 0x00600000 ? 1 : 0;
  const std::uint32_t code = (magnitude + 0x00400000) >> 23;
  return code > 0xFE ? 0xFE : code;
}

[[nodiscard]] constexpr std::uint32_t decode_e8m0(std::uint32_t code) { return code == 0xFF ? kQuietNaN32 : code == 0 ? 0x00400000 : code << 23; }

}  // namespace weft::math
