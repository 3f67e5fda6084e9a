#pragma once
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "support/temporary_folder.h"

namespace weft::testing {

/// Runs a fuzzer's own target on what it starts from and has found; targets abort on a wrong result. With a step each input is also cut short at
/// every step-th byte, and that byte changed.
inline void replay_corpus(const std::string& name, int (*target)(const std::uint8_t*, std::size_t), std::size_t step = 0) {
  const auto run = [target](const std::string& bytes, std::size_t size) { target(reinterpret_cast<const std::uint8_t*>(bytes.data()), size); };
  int num_inputs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(WEFT_SOURCE_DIR) / "fuzz" / "corpus" / name)) {
    SCOPED_TRACE(entry.path());
    const std::string bytes = read_file(entry.path());
    run(bytes, bytes.size());
    for (std::size_t i = 0; i < bytes.size() && step > 0; i += step) {
      run(bytes, i);
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ 0x15);
      run(changed, changed.size());
    }
    ++num_inputs;
  }
  EXPECT_GT(num_inputs, 0) << name;
}

}  // namespace weft::testing
