#include "base/crc32.h"

#include <array>

namespace weft {
namespace {

/// Eight tables: table[k][b] is the CRC of byte b followed by k zero bytes, so that eight bytes are taken in one step.
constexpr std::array<std::array<std::uint32_t, 256>, 8> make_tables() {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320U : 0U);
    tables[0][byte] = value;
  }
  for (std::size_t byte = 0; byte < 256; ++byte)
    for (std::size_t k = 1; k < 8; ++k) tables[k][byte] = tables[k - 1][byte] >> 8 ^ tables[0][tables[k - 1][byte] & 0xFF];
  return tables;
}
constexpr auto kTables = make_tables();

}  // namespace

std::uint32_t crc32(std::span<const std::byte> data, std::uint32_t previous) noexcept {
  std::uint32_t value = ~previous;
  const auto at = [&data](std::size_t i) { return std::to_integer<std::uint32_t>(data[i]); };
  while (data.size() >= 8) {
    value ^= at(0) | at(1) << 8 | at(2) << 16 | at(3) << 24;
    value = kTables[7][value & 0xFF] ^ kTables[6][value >> 8 & 0xFF] ^ kTables[5][value >> 16 & 0xFF] ^ kTables[4][value >> 24] ^ kTables[3][at(4)] ^
            kTables[2][at(5)] ^ kTables[1][at(6)] ^ kTables[0][at(7)];
    data = data.subspan(8);
  }
  for (const std::byte byte : data) value = value >> 8 ^ kTables[0][(value ^ std::to_integer<std::uint32_t>(byte)) & 0xFF];
  return ~value;
}

}  // namespace weft
