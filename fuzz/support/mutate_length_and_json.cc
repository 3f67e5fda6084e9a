// For safetensors: eight bytes of length, JSON, payload. Mutants keep a length that is right, mostly, whatever became of the header.
#include <algorithm>
#include <cstring>

#include "json_mutator.h"

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size, unsigned seed) {
  weft::fuzz::Random random(seed);
  std::uint64_t length = 0;
  if (size >= 8) std::memcpy(&length, data, 8);
  if (size < 10 || length > size - 8 || max_size < 24 || weft::fuzz::below(random, 4) == 0) return LLVMFuzzerMutate(data, size, max_size);
  const std::string_view text(reinterpret_cast<const char*>(data) + 8, length);
  std::string payload(reinterpret_cast<const char*>(data) + 8 + length, size - 8 - length);
  std::string header = weft::fuzz::mutated_json(random, text, max_size - 8);
  if (header.empty()) return LLVMFuzzerMutate(data, size, max_size);
  header.append(weft::fuzz::below(random, 3), ' ');
  if (weft::fuzz::below(random, 3) == 0) payload.resize(weft::fuzz::below(random, 65), 'p');
  std::uint64_t told = header.size();
  if (weft::fuzz::below(random, 8) == 0) told += weft::fuzz::below(random, 3) - 1;
  const std::string made = header + payload;
  std::memcpy(data, &told, 8);
  const std::size_t kept = std::min(made.size(), max_size - 8);
  std::memcpy(data + 8, made.data(), kept);
  return 8 + kept;
}
