#include "base/checksum.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <array>
#include <charconv>
#include <new>

namespace weft {
namespace {

Checksum from(const XXH128_hash_t& hash) noexcept { return {hash.high64, hash.low64}; }

}  // namespace

Checksum checksum_of(std::span<const std::byte> data) noexcept { return from(XXH3_128bits(data.data(), data.size())); }
Checksum checksum_of(std::string_view text) noexcept { return from(XXH3_128bits(text.data(), text.size())); }

std::string to_string(const Checksum& checksum) { return fmt::format("{:016x}{:016x}", checksum.high, checksum.low); }

std::optional<Checksum> parse_checksum(std::string_view text) noexcept {
  if (text.size() != 32) return std::nullopt;
  for (const char c : text)
    if ((c < '0' || c > '9') && (c < 'a' || c > 'f')) return std::nullopt;
  Checksum checksum;
  std::from_chars(text.data(), text.data() + 16, checksum.high, 16);
  std::from_chars(text.data() + 16, text.data() + 32, checksum.low, 16);
  return checksum;
}

// ---- Hasher ----

struct Hasher::State {
  State() : state(XXH3_createState()) {
    if (state == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(state);
  }
  ~State() { XXH3_freeState(state); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  XXH3_state_t* state;  // from the library: it must be aligned
};

Hasher::Hasher() : state_(std::make_unique<State>()) {}
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;

void Hasher::add(std::span<const std::byte> data) noexcept { XXH3_128bits_update(state_->state, data.data(), data.size()); }
Checksum Hasher::checksum() const noexcept { return from(XXH3_128bits_digest(state_->state)); }

// ---- CRC ----

namespace {

constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82F63B78u : 0u);
    table[i] = value;
  }
  return table;
}();

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t before) noexcept {
  std::uint32_t crc = ~before;
  for (const std::byte byte : data) crc = (crc >> 8) ^ kCrcTable[(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xFF];
  return ~crc;
}

}  // namespace weft
