#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

// Which elements of a piece were kept, one bit each: element i is bit i % 8 of byte i / 8. Class A.
namespace weft::math {

[[nodiscard]] constexpr std::size_t packed_bytes(std::size_t num_elements) noexcept { return (num_elements + 7) / 8; }

/// bits: [packed_bytes(values.size())]: whether each value is not zero. The bits after the last are 0.
void pack_nonzero(std::span<const float> values, std::span<std::uint8_t> bits);
/// Zeroes the values whose bit is 0. bits as above.
void keep_packed(std::span<float> values, std::span<const std::uint8_t> bits);

}  // namespace weft::math
