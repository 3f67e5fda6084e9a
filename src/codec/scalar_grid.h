#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "weft/dtype.h"

// Numbers of few bits with a scale: which values the codes stand for, and the scale of a slice (a row, or a group of a row).
namespace weft::codec {

/// What the codes stand for, before the scale. `integer` is 0 .. 2^bits - 1 less a zero point; the others are tables.
enum class Levels : std::uint8_t { integer, e4m3, e5m2, e2m3, e3m2, e2m1, e3m0, nf4, bnb_fp4 };

struct LevelsInfo {
  Levels levels;
  std::string_view name;
  int bits;       ///< of a code; 0 for integer, where it is chosen
  float largest;  ///< magnitude that absmax is mapped to
};
[[nodiscard]] const LevelsInfo& info(Levels levels) noexcept;
/// The value of a code of a table. Undefined for integer.
[[nodiscard]] float level(Levels levels, std::uint8_t code) noexcept;
/// The code of the nearest value of a table: floating-point formats saturate and round ties to the even mantissa; NF4 and bitsandbytes' FP4 follow
/// that library's thresholds. NaN becomes some code.
[[nodiscard]] std::uint8_t nearest_level(Levels levels, float value) noexcept;

/// How the zero point of integer codes is found. value = scale * (code - zero).
enum class Zero : std::uint8_t {
  centred,         ///< 2^(bits-1); scale = 2 absmax / (2^bits - 1), as GPTQ and compressed-tensors have it
  restricted,      ///< 2^(bits-1); scale = absmax / (2^(bits-1) - 1), the lowest code is not used
  signed_largest,  ///< 2^(bits-1); the value of largest magnitude is the lowest code, exactly
  halfway,         ///< (2^bits - 1) / 2, between two codes: as many levels on one side as on the other, none at 0; scale as of `centred`
  affine,          ///< an integer in range; the range of the values, widened to hold 0
  offset,          ///< any number; the range of the values
};
enum class Search : std::uint8_t {
  none,
  shrink,         ///< of the range, by the weighted error to the power of `norm`; for power-of-two scales: one up, one down
  least_squares,  ///< shrink, then scale (and offset) in closed form and codes anew, until neither changes
  hqq,            ///< the zero point by half-quadratic splitting; Zero::offset only
};

/// How slices become codes.
struct SliceFormat {
  Levels levels = Levels::integer;
  int bits = 4;  ///< of integer codes, 2 to 8
  Zero zero = Zero::centred;
  Search search = Search::none;
  DType scale_type = DType::f32;  ///< what the scale (and a zero point that is no integer) is stored as; codes are made for the rounded one
  float norm = 2.4F;              ///< of the error that shrinking compares
  int shrink_steps = 80;          ///< 1, 0.99, 0.98, ...
  float scale_unit = 1;           ///< a scale is this times a number of its type
  bool rounds_products = false;   ///< values are the unit times E4M3 numbers: code times stored scale, rounded, as a table of products holds them
  [[nodiscard]] int code_bits() const noexcept { return levels == Levels::integer ? bits : info(levels).bits; }
  [[nodiscard]] float middle() const noexcept { return static_cast<float>(1 << (bits - 1)); }
};

struct SliceScale {
  float scale = 1;
  float zero = 0;  ///< of integer codes
};

/// The scale of a slice. weights: how much an error of each value counts; empty: all alike. Values are finite. All zero: scale 1.
/// A scale that its type cannot hold (0, infinity) becomes the nearest that it can.
[[nodiscard]] SliceScale fit_slice(std::span<const float> values, std::span<const float> weights, const SliceFormat& format);

[[nodiscard]] std::uint8_t encode(float value, const SliceScale& scale, const SliceFormat& format) noexcept;
/// encode() of each value of a slice.
void encode_slice(std::span<const float> values, const SliceScale& scale, const SliceFormat& format, std::uint8_t* codes);
[[nodiscard]] float decode(std::uint8_t code, const SliceScale& scale, const SliceFormat& format) noexcept;
/// unit * E4M3(code * scale / unit): what a table of the products of codes with FP8 scales holds. code: less its zero point.
[[nodiscard]] float rounded_product(float code, float scale, float unit) noexcept;
/// The scale as its type has it: never 0, infinite or NaN, since readers divide by it.
[[nodiscard]] float storable_scale(float scale, const SliceFormat& format);
/// What is left of a value.
[[nodiscard]] inline float round_trip(float value, const SliceScale& scale, const SliceFormat& format) noexcept {
  return decode(encode(value, scale, format), scale, format);
}
/// sum weights |value - round trip|^norm, in float64.
[[nodiscard]] double slice_error(std::span<const float> values, std::span<const float> weights, const SliceScale& scale, const SliceFormat& format,
                                 float norm);

/// sign(x) max(|x| - |x|^(p-1) / beta, 0), p = 0.7: the soft threshold of HQQ.
[[nodiscard]] float hqq_shrink(float value, float beta) noexcept;

}  // namespace weft::codec
