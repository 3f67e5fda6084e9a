#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace weft {

/// CRC-32 of zip, gzip and PNG (polynomial 0xEDB88320, reflected). previous: the CRC of the bytes before, to go on from there. Class A.
[[nodiscard]] std::uint32_t crc32(std::span<const std::byte> data, std::uint32_t previous = 0) noexcept;

}  // namespace weft
