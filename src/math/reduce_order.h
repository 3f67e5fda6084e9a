#pragma once
#include <array>
#include <cstddef>

namespace weft::math {

/// Element i of a sum goes to partial sum i % 16, whatever the vector length.
inline constexpr std::size_t kPartialSums = 16;

/// The fixed tree that ends every sum.
[[nodiscard]] inline double add_partials(std::array<double, kPartialSums> p) noexcept {
  for (std::size_t width = kPartialSums / 2; width != 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) p[i] += p[i + width];
  return p[0];
}

}  // namespace weft::math
