#include "codec/scalar_grid.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "math/convert.h"
#include "math/integer_grid.h"
#include "math/round_codes.h"
#include "math/small_float.h"

namespace weft::codec {
namespace {

constexpr math::SmallFloat kE4M3 = math::kF8E4M3;
// To encode with: it saturates, since infinity has no place among weights.
constexpr math::SmallFloat kE5M2 = {5, 2, 15, 0x7B, true, false, false, 0x7F};
constexpr math::SmallFloat kE2M3 = {2, 3, 1, 0x1F, false, false, false, 0};
constexpr math::SmallFloat kE3M2 = {3, 2, 3, 0x1F, false, false, false, 0};
constexpr math::SmallFloat kE2M1 = math::kF4;
constexpr math::SmallFloat kE3M0 = {3, 0, 3, 0x7, false, false, false, 0};

const math::SmallFloat& format_of(Levels levels) {
  switch (levels) {
    case Levels::e4m3:
      return kE4M3;
    case Levels::e5m2:
      return kE5M2;
    case Levels::e2m3:
      return kE2M3;
    case Levels::e3m2:
      return kE3M2;
    case Levels::e3m0:
      return kE3M0;
    default:
      return kE2M1;
  }
}

constexpr std::array<float, 16> kNf4 = {-1.0F,
                                        -0.6961928009986877F,
                                        -0.5250730514526367F,
                                        -0.39491748809814453F,
                                        -0.28444138169288635F,
                                        -0.18477343022823334F,
                                        -0.09105003625154495F,
                                        0.0F,
                                        0.07958029955625534F,
                                        0.16093020141124725F,
                                        0.24611230194568634F,
                                        0.33791524171829224F,
                                        0.44070982933044434F,
                                        0.5626170039176941F,
                                        0.7229568362236023F,
                                        1.0F};
/// Strictly above: the next code.
constexpr std::array<float, 15> kNf4Thresholds = {-0.8480964004993439F,  -0.6106329262256622F,  -0.4599952697753906F,   -0.33967943489551544F,
                                                  -0.23460740596055984F, -0.13791173323988914F, -0.045525018125772476F, 0.03979014977812767F,
                                                  0.1202552504837513F,   0.2035212516784668F,   0.2920137718319893F,    0.3893125355243683F,
                                                  0.5016634166240692F,   0.6427869200706482F,   0.8614784181118011F};
/// Magnitudes of codes 0 to 7 of bitsandbytes' FP4, over 12.
constexpr std::array<float, 8> kBnbFp4 = {0.0F, 0.0625F, 8.0F, 12.0F, 4.0F, 6.0F, 2.0F, 3.0F};

/// As the library has it: by the middles between neighbouring values, where what lies on one goes down. Of its two zeros the code 0 lies below 0.
std::uint8_t nearest_bnb_fp4(float value) {
  constexpr std::array<std::uint8_t, 16> kCodes = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
  constexpr std::array<float, 7> kMiddles = {0.0026041667442768812F, 0.0859375F,          0.2083333432674408F, 0.2916666865348816F,
                                             0.4166666865348816F,    0.5833333730697632F, 0.8333333730697632F};
  std::size_t below = value > 0 ? 1 : 0;
  for (const float middle : kMiddles) below += (value > middle ? 1 : 0) + (value > -middle ? 1 : 0);
  return kCodes[below];
}

float largest_of(DType type) {
  return type == DType::f16 ? 65504.0F : type == DType::f8_e4m3 ? 448.0F : type == DType::bf16 ? 3.3895314e38F : std::numeric_limits<float>::max();
}

/// A number as the type has it; the largest where it has none so large.
float stored(DType type, float value) {
  const float rounded = type == DType::f32 ? value : math::decode_one(type, math::encode_one(type, value));
  return std::isinf(rounded) ? std::copysign(largest_of(type), value) : rounded;
}

/// Whether a zero point may lie between two codes, so that it is added before rounding.
bool any_zero(const SliceFormat& format) { return format.zero == Zero::offset || format.zero == Zero::halfway; }

float lowest_code(const SliceFormat& format) { return format.zero == Zero::restricted && format.search == Search::none ? 1.0F : 0.0F; }

struct Range {
  float low = 0, high = 0, largest = 0;  ///< of magnitudes
  float signed_largest = 0;
};
Range range_of(std::span<const float> values) {
  if (values.empty()) return {};
  const math::Extent extent = math::extent(values);
  Range range{extent.low, extent.high, std::max(std::fabs(extent.low), std::fabs(extent.high)), 0};
  range.signed_largest = -extent.low > extent.high ? extent.low : extent.high;
  if (-extent.low == extent.high)  // of both signs the first counts
    for (std::size_t i = values.size(); i-- > 0;)
      if (std::fabs(values[i]) == range.largest) range.signed_largest = values[i];
  return range;
}

/// The scale when the range is made `share` as wide.
SliceScale scale_for(const Range& range, float share, const SliceFormat& format) {
  if (format.levels != Levels::integer) {
    if (range.largest == 0) return {1, 0};
    return {storable_scale(share * range.largest / info(format.levels).largest, format), 0};
  }
  const auto most = static_cast<float>((1 << format.bits) - 1);
  const float middle = format.middle();
  switch (format.zero) {
    case Zero::centred:
      return {storable_scale(share * range.largest / (most / 2), format), middle};
    case Zero::halfway:  // has no code for 0: the least there is for a slice of nothing else
      return {storable_scale(std::max(share * range.largest / (most / 2), std::numeric_limits<float>::denorm_min()), format), most / 2};
    case Zero::restricted:
      return {storable_scale(share * range.largest / (middle - 1), format), middle};
    case Zero::signed_largest:
      return {storable_scale(share * range.signed_largest / -middle, format), middle};
    case Zero::affine: {
      const float low = share * std::min(range.low, 0.0F), high = share * std::max(range.high, 0.0F);
      const float scale = storable_scale(high / most - low / most, format);
      return {scale, high == low ? middle : std::clamp(std::nearbyint(-low / scale), 0.0F, most)};
    }
    case Zero::offset:
      break;
  }
  // Both ends move toward the middle.
  const float centre = 0.5F * range.low + 0.5F * range.high, half = share * (0.5F * range.high - 0.5F * range.low);
  if (half == 0) return {1, stored(format.scale_type, -range.low)};
  const float scale = storable_scale(half / (most / 2), format);
  return {scale, stored(format.scale_type, -(centre - half) / scale)};
}

SliceScale power_of_two(const Range& range, std::span<const float> values, std::span<const float> weights, const SliceFormat& format) {
  if (range.largest == 0) return {1, 0};
  const auto exponent = [](float value) { return static_cast<int>(std::floor(std::log2(value))); };
  const int centre = exponent(range.largest) - exponent(info(format.levels).largest);
  SliceScale best;
  double least = std::numeric_limits<double>::infinity();
  for (const int step : {0, -1, 1}) {
    if (step != 0 && format.search == Search::none) break;
    const SliceScale candidate{std::ldexp(1.0F, std::clamp(centre + step, -127, 127)), 0};
    const double error = slice_error(values, weights, candidate, format, 2);
    if (error < least) {
      least = error;
      best = candidate;
    }
  }
  return best;
}

/// What a search compares: slice_error, or at least `enough` where it is no less than that.
double search_error(std::span<const float> values, std::span<const float> weights, const SliceScale& scale, const SliceFormat& format, float norm,
                    double enough) {
  if (format.levels != Levels::integer || norm != 2 || format.rounds_products) return slice_error(values, weights, scale, format, norm);
  const math::IntegerGrid grid{scale.scale, scale.zero, lowest_code(format), static_cast<float>((1 << format.bits) - 1), any_zero(format)};
  return math::integer_grid_error(values.data(), weights.empty() ? nullptr : weights.data(), values.size(), grid, enough);
}

SliceScale shrunk(const Range& range, std::span<const float> values, std::span<const float> weights, const SliceFormat& format) {
  SliceScale best;
  double least = std::numeric_limits<double>::infinity();
  for (int step = 0; step < format.shrink_steps; ++step) {
    const SliceScale candidate = scale_for(range, 1 - static_cast<float>(step) / 100, format);
    const double error = search_error(values, weights, candidate, format, format.norm, least);
    if (error < least) {
      least = error;
      best = candidate;
    }
  }
  return best;
}

/// Fixed codes, scale (and offset) in closed form; then codes anew.
SliceScale refined(SliceScale scale, std::span<const float> values, std::span<const float> weights, const SliceFormat& format) {
  double least = search_error(values, weights, scale, format, 2, std::numeric_limits<double>::infinity());
  for (int round = 0; round < 3; ++round) {
    double a = 0, c = 0, e = 0, u = 0, v = 0;
    const bool offset = format.levels == Levels::integer && format.zero == Zero::offset;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint8_t code = encode(values[i], scale, format);
      const double q = format.levels != Levels::integer ? level(format.levels, code) : offset ? code : code - static_cast<double>(scale.zero);
      const double h = weights.empty() ? 1 : weights[i];
      a += h;
      c += h * q;
      e += h * q * q;
      u += h * values[i];
      v += h * q * values[i];
    }
    SliceScale next = scale;
    if (offset) {
      const double determinant = a * e - c * c;
      if (!(determinant > 1e-12 * a * e)) break;
      const double s = (a * v - c * u) / determinant;
      if (!(std::fabs(s) > 0)) break;
      next.scale = storable_scale(static_cast<float>(s), format);
      next.zero = stored(format.scale_type, static_cast<float>(-(u - next.scale * c) / (a * next.scale)));
    } else {
      if (!(e > 0) || v == 0) break;
      next.scale = storable_scale(static_cast<float>(v / e), format);
    }
    const double error = search_error(values, weights, next, format, 2, least);
    if (!(error < least)) break;
    least = error;
    scale = next;
  }
  return scale;
}

SliceScale half_quadratic(SliceScale scale, std::span<const float> values, const SliceFormat& format) {
  constexpr float kFirstBeta = 10, kGrowth = 1.01F;
  constexpr int kRounds = 20;
  const auto most = static_cast<float>((1 << format.bits) - 1);
  SliceScale best = scale;
  double least = std::numeric_limits<double>::infinity();
  float beta = kFirstBeta;
  for (int round = 0; round <= kRounds; ++round) {
    double error = 0, sum = 0;
    for (const float value : values) {
      const float q = std::clamp(std::nearbyint(value / scale.scale + scale.zero), 0.0F, most);
      const float left = value - scale.scale * (q - scale.zero);
      error += std::fabs(left);
      sum += q - static_cast<double>(value - hqq_shrink(left, beta)) / scale.scale;
    }
    if (!(error < least)) break;
    least = error;
    best = scale;
    scale.zero = static_cast<float>(sum / static_cast<double>(values.size()));
    beta *= kGrowth;
  }
  best.zero = stored(format.scale_type, best.zero);
  return best;
}

}  // namespace

const LevelsInfo& info(Levels levels) noexcept {
  static constexpr std::array<LevelsInfo, 9> kAll = {{{Levels::integer, "integer", 0, 0},
                                                      {Levels::e4m3, "E4M3", 8, 448},
                                                      {Levels::e5m2, "E5M2", 8, 57344},
                                                      {Levels::e2m3, "E2M3", 6, 7.5F},
                                                      {Levels::e3m2, "E3M2", 6, 28},
                                                      {Levels::e2m1, "E2M1", 4, 6},
                                                      {Levels::e3m0, "E3M0", 4, 16},
                                                      {Levels::nf4, "NF4", 4, 1},
                                                      {Levels::bnb_fp4, "FP4", 4, 1}}};
  return kAll[static_cast<std::size_t>(levels)];
}

float level(Levels levels, std::uint8_t code) noexcept {
  switch (levels) {
    case Levels::nf4:
      return kNf4[code & 15U];
    case Levels::bnb_fp4: {
      const float magnitude = kBnbFp4[code & 7U] / 12.0F;
      return (code & 8U) != 0 && magnitude != 0 ? -magnitude : magnitude;
    }
    default:
      return std::bit_cast<float>(math::decode_small(levels == Levels::e5m2 ? math::kF8E5M2 : format_of(levels), code));
  }
}

std::uint8_t nearest_level(Levels levels, float value) noexcept {
  switch (levels) {
    case Levels::nf4: {
      std::uint8_t code = 0;
      for (const float threshold : kNf4Thresholds) code = static_cast<std::uint8_t>(code + (value > threshold ? 1 : 0));
      return code;
    }
    case Levels::bnb_fp4:
      return nearest_bnb_fp4(value);
    default:
      return static_cast<std::uint8_t>(math::encode_small(format_of(levels), std::bit_cast<std::uint32_t>(value)));
  }
}

std::uint8_t encode(float value, const SliceScale& scale, const SliceFormat& format) noexcept {
  const float x = value / scale.scale;
  if (format.levels != Levels::integer) return nearest_level(format.levels, x);
  const auto most = static_cast<float>((1 << format.bits) - 1);
  // An integer zero point is added after rounding, as every format with one has it; only ties see the difference.
  const float q = any_zero(format) ? std::nearbyint(x + scale.zero) : std::nearbyint(x) + scale.zero;
  const float lowest = lowest_code(format);
  return static_cast<std::uint8_t>(q > most ? most : q >= lowest ? q : lowest);
}

void encode_slice(std::span<const float> values, const SliceScale& scale, const SliceFormat& format, std::uint8_t* codes) {
  if (format.levels == Levels::integer && !any_zero(format))
    return math::round_to_codes(values, scale.scale, scale.zero, lowest_code(format), static_cast<float>((1 << format.bits) - 1), codes);
  for (std::size_t i = 0; i < values.size(); ++i) codes[i] = encode(values[i], scale, format);
}

float decode(std::uint8_t code, const SliceScale& scale, const SliceFormat& format) noexcept {
  if (format.levels != Levels::integer) return scale.scale * level(format.levels, code);
  if (format.rounds_products) return rounded_product(static_cast<float>(code) - scale.zero, scale.scale, format.scale_unit);
  return scale.scale * (static_cast<float>(code) - scale.zero);
}

float rounded_product(float code, float scale, float unit) noexcept {
  constexpr float kLargest = 448;
  const auto rounded = [](float value) { return math::decode_one(DType::f8_e4m3, math::encode_one(DType::f8_e4m3, value)); };
  // The stored scale exactly, so that products halfway between two numbers go where they do in a table.
  return unit * rounded(std::clamp(code * rounded(scale / unit), -kLargest, kLargest));
}

float storable_scale(float scale, const SliceFormat& format) {
  const DType type = format.scale_type;
  if (!(std::fabs(scale) > 0)) return format.scale_unit;
  float rounded = stored(type, scale / format.scale_unit);
  if (rounded == 0) {  // below the smallest number
    for (std::uint32_t code = 1; rounded == 0 && code < 4; ++code) rounded = math::decode_one(type, code);
    rounded = std::copysign(rounded, scale);
  }
  return rounded * format.scale_unit;
}

double slice_error(std::span<const float> values, std::span<const float> weights, const SliceScale& scale, const SliceFormat& format, float norm) {
  double sum = 0;
  std::array<float, 256> products;
  if (format.rounds_products)
    for (std::size_t code = 0; code < (std::size_t{1} << format.bits); ++code)
      products[code] = decode(static_cast<std::uint8_t>(code), scale, format);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float left = format.rounds_products ? products[encode(values[i], scale, format)] : round_trip(values[i], scale, format);
    const float difference = std::fabs(values[i] - left);
    const double power = norm == 2 ? static_cast<double>(difference) * difference : static_cast<double>(std::pow(difference, norm));
    sum += weights.empty() ? power : power * weights[i];
  }
  return sum;
}

SliceScale fit_slice(std::span<const float> values, std::span<const float> weights, const SliceFormat& format) {
  const Range range = range_of(values);
  if (format.scale_type == DType::f8_e8m0) return power_of_two(range, values, weights, format);
  const bool empty = range.largest == 0;
  if (format.search == Search::none || empty) return scale_for(range, 1, format);
  if (format.search == Search::hqq) return half_quadratic(scale_for(range, 1, format), values, format);
  const SliceScale best = shrunk(range, values, weights, format);
  return format.search == Search::least_squares ? refined(best, values, weights, format) : best;
}

float hqq_shrink(float value, float beta) noexcept {
  constexpr float kNorm = 0.7F;
  const float magnitude = std::fabs(value);
  if (magnitude == 0) return 0;
  return std::copysign(std::max(magnitude - std::pow(magnitude, kNorm - 1) / beta, 0.0F), value);
}

}  // namespace weft::codec
