#include "support/sha256.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace weft::testing {
namespace {

/// The first 32 bits of the fractions of roots of the first primes, which is what the constants are.
template <std::size_t kCount>
std::array<std::uint32_t, kCount> root_fractions(double power) {
  std::array<std::uint32_t, kCount> words{};
  std::size_t count = 0;
  for (int candidate = 2; count < kCount; ++candidate) {
    bool prime = true;
    for (int d = 2; d * d <= candidate; ++d) prime = prime && candidate % d != 0;
    if (!prime) continue;
    const long double root = std::pow(static_cast<long double>(candidate), static_cast<long double>(1) / static_cast<long double>(power));
    words[count++] = static_cast<std::uint32_t>((root - std::floor(root)) * 4294967296.0L);
  }
  return words;
}

}  // namespace

std::string sha256(std::span<const std::byte> data) {
  static const std::array<std::uint32_t, 64> kRounds = root_fractions<64>(3);
  std::array<std::uint32_t, 8> hash = root_fractions<8>(2);
  std::vector<std::uint8_t> message(data.size());
  for (std::size_t i = 0; i < data.size(); ++i) message[i] = std::to_integer<std::uint8_t>(data[i]);
  message.push_back(0x80);
  while (message.size() % 64 != 56) message.push_back(0);
  for (int i = 7; i >= 0; --i) message.push_back(static_cast<std::uint8_t>(data.size() * 8 >> (8 * i)));
  for (std::size_t block = 0; block < message.size(); block += 64) {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i)
      for (std::size_t b = 0; b < 4; ++b) w[i] = w[i] << 8 | message[block + 4 * i + b];
    for (std::size_t i = 16; i < 64; ++i) {
      const std::uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) + w[i - 7] + (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
    }
    std::array<std::uint32_t, 8> v = hash;
    for (std::size_t i = 0; i < 64; ++i) {
      const std::uint32_t s1 = std::rotr(v[4], 6) ^ std::rotr(v[4], 11) ^ std::rotr(v[4], 25);
      const std::uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + kRounds[i] + w[i];
      const std::uint32_t s0 = std::rotr(v[0], 2) ^ std::rotr(v[0], 13) ^ std::rotr(v[0], 22);
      const std::uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
      v = {t1 + t2, v[0], v[1], v[2], v[3] + t1, v[4], v[5], v[6]};
    }
    for (std::size_t i = 0; i < 8; ++i) hash[i] += v[i];
  }
  std::string text;
  for (const std::uint32_t word : hash)
    for (int i = 28; i >= 0; i -= 4) text += "0123456789abcdef"[word >> i & 15];
  return text;
}

}  // namespace weft::testing
