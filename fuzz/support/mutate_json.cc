// For texts that are JSON: changes the tree, so that most mutants get beyond the parser. Now and then bytes, so that the parser gets its share.
#include <cstring>

#include "json_mutator.h"

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size, unsigned seed) {
  weft::fuzz::Random random(seed);
  if (weft::fuzz::below(random, 4) != 0) {
    const std::string made = weft::fuzz::mutated_json(random, {reinterpret_cast<const char*>(data), size}, max_size);
    if (!made.empty()) {
      std::memcpy(data, made.data(), made.size());
      return made.size();
    }
  }
  return LLVMFuzzerMutate(data, size, max_size);
}
