#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "math/small_float.h"

// Numbers out of blocks and into them, which are aligned to nothing.
namespace weft::codec::detail {

inline std::uint16_t u16_at(const std::uint8_t* p) {
  std::uint16_t value = 0;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
inline std::uint32_t u32_at(const std::uint8_t* p) {
  std::uint32_t value = 0;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
inline float f32_at(const std::uint8_t* p) { return std::bit_cast<float>(u32_at(p)); }
inline float half_to_float(std::uint16_t code) { return std::bit_cast<float>(math::decode_small(math::kF16, code)); }
inline float f16_at(const std::uint8_t* p) { return half_to_float(u16_at(p)); }

inline void put_u16(std::uint16_t value, std::uint8_t* p) { std::memcpy(p, &value, sizeof(value)); }
inline void put_u32(std::uint32_t value, std::uint8_t* p) { std::memcpy(p, &value, sizeof(value)); }
inline void put_half(float value, std::uint8_t* p) {
  put_u16(static_cast<std::uint16_t>(math::encode_small(math::kF16, std::bit_cast<std::uint32_t>(value))), p);
}

}  // namespace weft::codec::detail
