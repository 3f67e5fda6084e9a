#pragma once
#include <cstdint>
#include <span>

// Float32 to whole numbers in a range, as rounding to a grid of few bits needs it.
namespace weft::math {

struct Extent {
  float low = 0, high = 0;
};
/// The least and the largest of finite values; 0 and 0 for none. Class A.
[[nodiscard]] Extent extent(std::span<const float> values);

/// codes[i]: values[i] / scale rounded to nearest even, plus zero, held within [lowest, most], which lies within [0, 255]. zero: a whole number.
/// NaN becomes lowest. Class A.
void round_to_codes(std::span<const float> values, float scale, float zero, float lowest, float most, std::uint8_t* codes);

}  // namespace weft::math
