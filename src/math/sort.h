#pragma once
#include <cstdint>
#include <span>

namespace weft::math {

/// Ascending, in place, vectorised. The bits of numbers that are not negative sort as the numbers do. Class A.
void sort_ascending(std::span<std::uint32_t> keys);
void sort_ascending(std::span<std::uint64_t> keys);

}  // namespace weft::math
