#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace weft {

/// 64-bit FNV-1a of the bytes.
[[nodiscard]] std::uint64_t fnv1a64(std::string_view bytes) noexcept;

/// Philox4x32-10: four random words from a counter and a key. Source: Salmon et al. 2011.
[[nodiscard]] std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) noexcept;

/// A stream of random numbers addressed by element, so that threads, chunks and order do not matter.
/// Element e takes lane e % 4 of the block with counter (e/4 low, e/4 high, model, stream) and key seed XOR fnv1a64(tensor name).
struct RandomStream {
  std::uint64_t key = 0;
  std::uint32_t model = 0;
  std::uint32_t stream = 0;

  static RandomStream of(std::uint64_t seed, std::string_view tensor, std::uint32_t model_index, std::uint32_t stream_id) noexcept;
  /// Uniform in [0, 1), a multiple of 2^-24.
  [[nodiscard]] float uniform(std::uint64_t element) const noexcept;
};

}  // namespace weft
