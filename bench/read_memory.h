#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// Loops that read floats as fast as memory gives them, for benchmarks to stand beside. What they return keeps the reading from being left out.
namespace weft::bench {

/// The sum of 64-bit words of four quarters, read side by side. count is a multiple of 64.
inline double sum_of_streams(const float* from, std::size_t count) {
  const std::size_t quarter = count / 4;
  std::uint64_t sums[4] = {};
  for (std::size_t i = 0; i < quarter; i += 16)
    for (std::size_t s = 0; s < 4; ++s) {
      std::uint64_t words[8];
      std::memcpy(words, from + s * quarter + i, sizeof words);
      for (const std::uint64_t word : words) sums[s] += word;
    }
  return static_cast<double>(sums[0] + sums[1] + sums[2] + sums[3]);
}

/// The same of one stream, with lines asked for 2 KiB before they are needed. count is a multiple of 16.
inline double sum_fetched_ahead(const float* from, std::size_t count) {
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i < count; i += 16) {
    __builtin_prefetch(from + i + 512);
    std::uint64_t words[8];
    std::memcpy(words, from + i, sizeof words);
    for (std::size_t j = 0; j < 8; ++j) sums[j] += words[j];
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t one : sums) sum += one;
  return static_cast<double>(sum);
}

}  // namespace weft::bench
