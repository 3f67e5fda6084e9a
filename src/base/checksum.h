#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace weft {

/// XXH3-128 of some bytes, with seed 0.
struct Checksum {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  bool operator==(const Checksum&) const = default;
};

[[nodiscard]] Checksum checksum_of(std::span<const std::byte> data) noexcept;
[[nodiscard]] Checksum checksum_of(std::string_view text) noexcept;
/// 32 hexadecimal digits, the high half first, as xxh128sum prints it.
[[nodiscard]] std::string to_string(const Checksum& checksum);
/// Empty when the text is not what to_string writes.
[[nodiscard]] std::optional<Checksum> parse_checksum(std::string_view text) noexcept;

/// The checksum of bytes that come one after another.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  void add(std::span<const std::byte> data) noexcept;
  [[nodiscard]] Checksum checksum() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// CRC-32C (Castagnoli) of the bytes, continuing from the CRC of those before them.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t before = 0) noexcept;

}  // namespace weft
