#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

#include "base/file.h"
#include "weft/error.h"

namespace weft {

/// Bytes that a parser reads by position: a file, or memory in tests and fuzzing.
struct ByteSource {
  std::function<void(std::uint64_t offset, std::span<std::byte> out)> read;  ///< exactly; throws corrupt beyond the end
  std::uint64_t size_bytes = 0;
  std::filesystem::path path;  ///< for messages
};

/// file must outlive the source.
[[nodiscard]] inline ByteSource file_source(const File& file) {
  return {[&file](std::uint64_t offset, std::span<std::byte> out) { file.read(offset, out); }, file.size_bytes(), file.path()};
}

/// bytes must outlive the source.
[[nodiscard]] inline ByteSource memory_source(std::string_view bytes, std::filesystem::path path) {
  return {[bytes, path](std::uint64_t offset, std::span<std::byte> out) {
            if (offset > bytes.size() || out.size() > bytes.size() - offset)
              throw Error(ErrorCode::corrupt, "the bytes end too early", {.file = path.string(), .byte = offset});
            if (!out.empty()) std::memcpy(out.data(), bytes.data() + offset, out.size());
          },
          bytes.size(), path};
}

}  // namespace weft
