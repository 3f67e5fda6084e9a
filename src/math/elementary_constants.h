#pragma once
#include <array>
#include <cstdint>

// Numbers shared by the plain and the vector form of exp and log, which must take the same steps.
namespace weft::math::elementary {

/// Adding and subtracting it rounds a double below 2^51 to the nearest integer, which the low bits of the sum then hold.
inline constexpr double kRoundingShift = 0x1.8p52;

// ln 2 in two parts: the first has 32 bits, so its product with an exponent of 11 bits is exact.
inline constexpr double kLn2High = 0x1.62e42feep-1;
inline constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
inline constexpr double kLog2E = 0x1.71547652b82fep+0;

// Beyond these bounds exp is infinite, or less than half of the smallest number.
inline constexpr double kExpMax = 710;
inline constexpr double kExpMin = -746;
/// Added to the exponent n in [-1077, 1025] so that it can be halved as an unsigned number: 2^n is applied in two factors, since alone it may
/// overflow.
inline constexpr std::uint64_t kExponentOffset = 2048;

/// (e^r - 1 - r) / r^2 = 1/2! + r/3! + ... + r^11/13!, highest first. The remainder r^14/14! is below 5e-18 where |r| <= ln(2)/2.
inline constexpr std::array<double, 12> kExpSeries = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                                      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2};

/// log(1 + f) = 2 artanh(s), s = f / (2 + f): 2/3, 2/5, 2/7, ... for s^3, s^5, ..., highest first. |s| <= 0.1716, so the first term left out
/// (2 s^25 / 25) is below 1e-20.
inline constexpr std::array<double, 11> kLogSeries = {2.0 / 23, 2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13,
                                                      2.0 / 11, 2.0 / 9,  2.0 / 7,  2.0 / 5,  2.0 / 3};
/// Bits of sqrt(1/2): mantissas are taken from [sqrt(1/2), sqrt(2)).
inline constexpr std::uint64_t kSqrtHalfBits = 0x3FE6A09E667F3BCDULL;
inline constexpr std::uint64_t kOneBits = 0x3FF0000000000000ULL;

}  // namespace weft::math::elementary
