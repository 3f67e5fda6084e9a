#include "base/torch_random.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

namespace weft {

void TorchRandom::uniform(float low, float high, std::span<float> out) {
  const auto width = static_cast<double>(high - low);
  for (float& value : out) value = static_cast<float>(static_cast<double>(engine_() & 0xFFFFFF) * 0x1p-24 * width + static_cast<double>(low));
}

std::vector<std::uint64_t> TorchRandom::permutation(std::uint64_t size, std::uint64_t count) {
  count = std::min(count, size);
  std::vector<std::uint64_t> out(static_cast<std::size_t>(count));
  if (size < std::numeric_limits<std::uint32_t>::max() / 20) {
    // Each place is exchanged with a later one; only what was moved is remembered.
    std::unordered_map<std::uint64_t, std::uint64_t> moved;
    const auto at = [&moved](std::uint64_t place) {
      const auto found = moved.find(place);
      return found == moved.end() ? place : found->second;
    };
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t other = i + 1 < size ? i + engine_() % (size - i) : i;
      out[static_cast<std::size_t>(i)] = at(other);
      moved[other] = at(i);
    }
    return out;
  }
  // Each number goes to a place among those before it, and what stood there to the end: of the places that count the later numbers decide.
  for (std::uint64_t i = 0; i < size; ++i) {
    const std::uint64_t high = engine_(), low = engine_();
    const std::uint64_t place = (high << 32 | low) % (i + 1);
    if (i < count) out[static_cast<std::size_t>(i)] = place < count ? out[static_cast<std::size_t>(place)] : i;
    if (place < count) out[static_cast<std::size_t>(place)] = i;
  }
  return out;
}

}  // namespace weft
