#pragma once
#include <array>
#include <cstddef>

namespace weft::math {

/// Element i of a sum goes to partial sum i % 16, whatever the vector length.
inline constexpr std::size_t kPartialSums = 16;

/// One of each, at a boundary that no vector straddles.
struct alignas(64) Partials {
  std::array<double, kPartialSums> sums{};
};

// Gram matrices widen this many elements of every input at a time: with 8 inputs the doubles take 33 KiB. Rows lie a little further apart, since a
// stride of 4 KiB would put all of them into the same sets of the cache.
inline constexpr std::size_t kGramChunk = 512;
inline constexpr std::size_t kGramStride = kGramChunk + kPartialSums;

/// The fixed tree that ends every sum.
[[nodiscard]] inline double add_partials(const Partials& partials) noexcept {
  std::array<double, kPartialSums> p = partials.sums;
  for (std::size_t width = kPartialSums / 2; width != 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) p[i] += p[i + width];
  return p[0];
}

}  // namespace weft::math
