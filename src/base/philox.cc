#include "base/philox.h"

namespace weft {

std::uint64_t fnv1a64(std::string_view bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9u;  // the golden ratio and the square root of three, as in the paper
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

RandomStream RandomStream::of(std::uint64_t seed, std::string_view tensor, std::uint32_t model_index, std::uint32_t stream_id) noexcept {
  return {seed ^ fnv1a64(tensor), model_index, stream_id};
}

float RandomStream::uniform(std::uint64_t element) const noexcept {
  const std::uint64_t block = element / 4;
  const auto words = philox4x32({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), model, stream},
                                {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)});
  return static_cast<float>(words[element % 4] >> 8) * 0x1p-24f;
}

}  // namespace weft
