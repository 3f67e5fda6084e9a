#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

// Which elements of a piece were kept, one bit each: element i is bit i % 8 of byte i / 8. Class A.
namespace weft::math {

[[nodiscard]] constexpr std::size_t packed_bytes(std::size_t num_elements) noexcept { return (num_elements + 7) / 8; }

/// bits: [packed_bytes(values.size())]: whether each value is not zero. The bits after the last are 0.
void pack_nonzero(std::span<const float> values, std::span<std::uint8_t> bits);
/// bits as above: whether the pair (values[i], first_index + i) ranks at or above (threshold, last_tie_index), of equal values the lower index first.
void pack_at_or_above(std::span<const float> values, std::uint64_t first_index, float threshold, std::uint64_t last_tie_index,
                      std::span<std::uint8_t> bits);
/// Zeroes the values whose bit is 0. bits as above.
void keep_packed(std::span<float> values, std::span<const std::uint8_t> bits);
/// Puts those of `otherwise` in the place of values whose bit is 0.
void replace_unpacked(std::span<float> values, std::span<const float> otherwise, std::span<const std::uint8_t> bits);

}  // namespace weft::math
