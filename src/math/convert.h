#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "weft/dtype.h"

namespace weft::math {

/// Decodes stored elements to float32. data: count elements of dtype, any alignment, packed (F4: two an byte, even index in the low nibble;
/// count is even). out: [count]. F64 and the integers are rounded to nearest even; NaN stays NaN. dtype is decodable (see is_decodable_float) or an
/// integer or boolean type. Class A.
void decode(DType dtype, std::span<const std::byte> data, std::span<float> out);

/// Encodes float32 as dtype, rounding to nearest even; NaN stays NaN. Out of range: F16, BF16, F8_E5M2 give infinity; types without infinity
/// (E4M3, FNUZ, F4, E8M0) saturate to their largest value (infinity too: torch's plain cast would give NaN for E4M3). F4 has no NaN: its largest value
/// stands in. E8M0 has neither zero nor sign: zero becomes the smallest value, a negative number NaN, and of two equally near the larger is taken. A NaN
/// is made quiet; BF16, F16 and F64 keep (the top of) its payload. Only floating types. Class A.
void encode(DType dtype, std::span<const float> values, std::span<std::byte> out);

/// values[i] becomes decode(encode(values[i])): what is left of a number that passes through dtype. Class A.
void round_through(DType dtype, std::span<float> values);

/// How many of the values are NaN or infinite.
[[nodiscard]] std::uint64_t count_non_finite(std::span<const float> values);

/// One element, in plain code: the reference that the vector code must equal.
[[nodiscard]] float decode_one(DType dtype, std::uint64_t bits) noexcept;
[[nodiscard]] std::uint64_t encode_one(DType dtype, float value) noexcept;

}  // namespace weft::math
