#include "math/convert.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "math/simd_config.h"
#include "math/small_float.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/convert-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/convert-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(DecodeBf16);
HWY_EXPORT(DecodeF16);
HWY_EXPORT(DecodeE4M3);
HWY_EXPORT(DecodeE5M2);
HWY_EXPORT(DecodeE4M3Fnuz);
HWY_EXPORT(DecodeE5M2Fnuz);
HWY_EXPORT(DecodeF64);
HWY_EXPORT(EncodeBf16);
HWY_EXPORT(EncodeF16);
HWY_EXPORT(EncodeE4M3);
HWY_EXPORT(EncodeE5M2);
HWY_EXPORT(EncodeE4M3Fnuz);
HWY_EXPORT(EncodeE5M2Fnuz);
HWY_EXPORT(EncodeF4Codes);
HWY_EXPORT(EncodeF64);
HWY_EXPORT(ThroughBf16);
HWY_EXPORT(ThroughF16);
HWY_EXPORT(ThroughE4M3);
HWY_EXPORT(ThroughE5M2);
HWY_EXPORT(ThroughE4M3Fnuz);
HWY_EXPORT(ThroughE5M2Fnuz);
HWY_EXPORT(ThroughF4);
HWY_EXPORT(CountNonFinite);

namespace {

[[noreturn]] void refuse(const char* what, DType dtype) {
  throw Error(ErrorCode::internal, std::string("cannot ") + what + " values of type " + std::string(to_string(dtype)));
}

std::size_t num_bytes(DType dtype, std::size_t num_elements) { return num_elements * static_cast<std::size_t>(info(dtype).bits) / 8; }

/// Two values a byte, the even one in the low nibble.
constexpr auto kF4Pairs = [] {
  std::array<std::array<float, 2>, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte)
    table[byte] = {std::bit_cast<float>(decode_small(kF4, byte & 15)), std::bit_cast<float>(decode_small(kF4, byte >> 4))};
  return table;
}();

constexpr auto kE8M0Values = [] {
  std::array<float, 256> table{};
  for (std::uint32_t code = 0; code < 256; ++code) table[code] = std::bit_cast<float>(decode_e8m0(code));
  return table;
}();

/// Conversion of integers by the compiler: to nearest even in every target's default rounding.
template <typename T>
void decode_integers(const std::byte* in, std::span<float> out) {
  for (float& value : out) {
    T element;
    std::memcpy(&element, in, sizeof(T));
    in += sizeof(T);
    value = static_cast<float>(element);
  }
}

template <typename T>
float integer_to_float(std::uint64_t bits) noexcept {
  return static_cast<float>(static_cast<T>(static_cast<std::make_unsigned_t<T>>(bits)));
}

float quieted(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return (bits & kMagnitudeMask32) > kInfinity32 ? std::bit_cast<float>(bits | kQuietBit32) : value;
}

}  // namespace

void decode(DType dtype, std::span<const std::byte> data, std::span<float> out) {
  WEFT_ASSERT(data.size() == num_bytes(dtype, out.size()));
  const auto* in = reinterpret_cast<const std::uint8_t*>(data.data());
  const std::size_t n = out.size();
  switch (dtype) {
    case DType::bf16:
      return HWY_DYNAMIC_DISPATCH(DecodeBf16)(in, n, out.data());
    case DType::f16:
      return HWY_DYNAMIC_DISPATCH(DecodeF16)(in, n, out.data());
    case DType::f8_e4m3:
      return HWY_DYNAMIC_DISPATCH(DecodeE4M3)(in, n, out.data());
    case DType::f8_e5m2:
      return HWY_DYNAMIC_DISPATCH(DecodeE5M2)(in, n, out.data());
    case DType::f8_e4m3fnuz:
      return HWY_DYNAMIC_DISPATCH(DecodeE4M3Fnuz)(in, n, out.data());
    case DType::f8_e5m2fnuz:
      return HWY_DYNAMIC_DISPATCH(DecodeE5M2Fnuz)(in, n, out.data());
    case DType::f64:
      return HWY_DYNAMIC_DISPATCH(DecodeF64)(in, n, out.data());
    case DType::f32:
      if (n != 0) std::memcpy(out.data(), in, n * sizeof(float));
      return;
    case DType::f8_e8m0:
      for (std::size_t i = 0; i < n; ++i) out[i] = kE8M0Values[in[i]];
      return;
    case DType::f4:
      WEFT_ASSERT(n % 2 == 0);
      for (std::size_t i = 0; i < n / 2; ++i) std::memcpy(out.data() + 2 * i, kF4Pairs[in[i]].data(), 2 * sizeof(float));
      return;
    case DType::boolean:
      for (std::size_t i = 0; i < n; ++i) out[i] = in[i] != 0 ? 1.0F : 0.0F;
      return;
    case DType::u8:
      return decode_integers<std::uint8_t>(data.data(), out);
    case DType::i8:
      return decode_integers<std::int8_t>(data.data(), out);
    case DType::u16:
      return decode_integers<std::uint16_t>(data.data(), out);
    case DType::i16:
      return decode_integers<std::int16_t>(data.data(), out);
    case DType::u32:
      return decode_integers<std::uint32_t>(data.data(), out);
    case DType::i32:
      return decode_integers<std::int32_t>(data.data(), out);
    case DType::u64:
      return decode_integers<std::uint64_t>(data.data(), out);
    case DType::i64:
      return decode_integers<std::int64_t>(data.data(), out);
    case DType::f6_e2m3:
    case DType::f6_e3m2:
    case DType::c64:
      break;
  }
  refuse("decode", dtype);
}

void encode(DType dtype, std::span<const float> values, std::span<std::byte> out) {
  WEFT_ASSERT(out.size() == num_bytes(dtype, values.size()));
  auto* to = reinterpret_cast<std::uint8_t*>(out.data());
  const std::size_t n = values.size();
  switch (dtype) {
    case DType::bf16:
      return HWY_DYNAMIC_DISPATCH(EncodeBf16)(values.data(), n, to);
    case DType::f16:
      return HWY_DYNAMIC_DISPATCH(EncodeF16)(values.data(), n, to);
    case DType::f8_e4m3:
      return HWY_DYNAMIC_DISPATCH(EncodeE4M3)(values.data(), n, to);
    case DType::f8_e5m2:
      return HWY_DYNAMIC_DISPATCH(EncodeE5M2)(values.data(), n, to);
    case DType::f8_e4m3fnuz:
      return HWY_DYNAMIC_DISPATCH(EncodeE4M3Fnuz)(values.data(), n, to);
    case DType::f8_e5m2fnuz:
      return HWY_DYNAMIC_DISPATCH(EncodeE5M2Fnuz)(values.data(), n, to);
    case DType::f64:
      return HWY_DYNAMIC_DISPATCH(EncodeF64)(values.data(), n, to);
    case DType::f32:
      if (n != 0) std::memcpy(to, values.data(), n * sizeof(float));
      return;
    case DType::f8_e8m0:
      for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<std::uint8_t>(encode_e8m0(std::bit_cast<std::uint32_t>(values[i])));
      return;
    case DType::f4: {
      WEFT_ASSERT(n % 2 == 0);
      std::array<std::uint8_t, 1024> codes;
      for (std::size_t first = 0; first < n; first += codes.size()) {
        const std::size_t count = std::min(codes.size(), n - first);
        HWY_DYNAMIC_DISPATCH(EncodeF4Codes)(values.data() + first, count, codes.data());
        for (std::size_t i = 0; i < count / 2; ++i) to[first / 2 + i] = static_cast<std::uint8_t>(codes[2 * i] | (codes[2 * i + 1] << 4));
      }
      return;
    }
    default:
      break;
  }
  refuse("encode", dtype);
}

void round_through(DType dtype, std::span<float> values) {
  const std::size_t n = values.size();
  switch (dtype) {
    case DType::bf16:
      return HWY_DYNAMIC_DISPATCH(ThroughBf16)(values.data(), n);
    case DType::f16:
      return HWY_DYNAMIC_DISPATCH(ThroughF16)(values.data(), n);
    case DType::f8_e4m3:
      return HWY_DYNAMIC_DISPATCH(ThroughE4M3)(values.data(), n);
    case DType::f8_e5m2:
      return HWY_DYNAMIC_DISPATCH(ThroughE5M2)(values.data(), n);
    case DType::f8_e4m3fnuz:
      return HWY_DYNAMIC_DISPATCH(ThroughE4M3Fnuz)(values.data(), n);
    case DType::f8_e5m2fnuz:
      return HWY_DYNAMIC_DISPATCH(ThroughE5M2Fnuz)(values.data(), n);
    case DType::f4:
      return HWY_DYNAMIC_DISPATCH(ThroughF4)(values.data(), n);
    case DType::f8_e8m0:
      for (float& value : values) value = kE8M0Values[encode_e8m0(std::bit_cast<std::uint32_t>(value))];
      return;
    case DType::f32:
      return;
    case DType::f64:
      // Only a signalling NaN changes on the way.
      for (float& value : values) value = quieted(value);
      return;
    default:
      break;
  }
  refuse("round through", dtype);
}

std::uint64_t count_non_finite(std::span<const float> values) {
  constexpr std::size_t kAtOnce = std::size_t{1} << 30;
  std::uint64_t total = 0;
  for (std::size_t first = 0; first < values.size(); first += kAtOnce)
    total += HWY_DYNAMIC_DISPATCH(CountNonFinite)(values.data() + first, std::min(kAtOnce, values.size() - first));
  return total;
}

float decode_one(DType dtype, std::uint64_t bits) noexcept {
  const auto code = static_cast<std::uint32_t>(bits);
  switch (dtype) {
    case DType::bf16:
      return std::bit_cast<float>((code & 0xFFFF) << 16);
    case DType::f16:
      return std::bit_cast<float>(decode_small(kF16, code & 0xFFFF));
    case DType::f8_e4m3:
      return std::bit_cast<float>(decode_small(kF8E4M3, code & 0xFF));
    case DType::f8_e5m2:
      return std::bit_cast<float>(decode_small(kF8E5M2, code & 0xFF));
    case DType::f8_e4m3fnuz:
      return std::bit_cast<float>(decode_small(kF8E4M3Fnuz, code & 0xFF));
    case DType::f8_e5m2fnuz:
      return std::bit_cast<float>(decode_small(kF8E5M2Fnuz, code & 0xFF));
    case DType::f8_e8m0:
      return kE8M0Values[code & 0xFF];
    case DType::f4:
      return std::bit_cast<float>(decode_small(kF4, code & 15));
    case DType::f32:
      return std::bit_cast<float>(code);
    case DType::f64:
      return static_cast<float>(std::bit_cast<double>(bits));
    case DType::boolean:
      return (code & 0xFF) != 0 ? 1.0F : 0.0F;
    case DType::u8:
      return integer_to_float<std::uint8_t>(bits);
    case DType::i8:
      return integer_to_float<std::int8_t>(bits);
    case DType::u16:
      return integer_to_float<std::uint16_t>(bits);
    case DType::i16:
      return integer_to_float<std::int16_t>(bits);
    case DType::u32:
      return integer_to_float<std::uint32_t>(bits);
    case DType::i32:
      return integer_to_float<std::int32_t>(bits);
    case DType::u64:
      return integer_to_float<std::uint64_t>(bits);
    case DType::i64:
      return integer_to_float<std::int64_t>(bits);
    case DType::f6_e2m3:
    case DType::f6_e3m2:
    case DType::c64:
      break;
  }
  return std::bit_cast<float>(kQuietNaN32);
}

std::uint64_t encode_one(DType dtype, float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  switch (dtype) {
    case DType::bf16:
      return encode_bf16(bits);
    case DType::f16:
      return encode_small(kF16, bits);
    case DType::f8_e4m3:
      return encode_small(kF8E4M3, bits);
    case DType::f8_e5m2:
      return encode_small(kF8E5M2, bits);
    case DType::f8_e4m3fnuz:
      return encode_small(kF8E4M3Fnuz, bits);
    case DType::f8_e5m2fnuz:
      return encode_small(kF8E5M2Fnuz, bits);
    case DType::f8_e8m0:
      return encode_e8m0(bits);
    case DType::f4:
      return encode_small(kF4, bits);
    case DType::f32:
      return bits;
    case DType::f64:
      return std::bit_cast<std::uint64_t>(static_cast<double>(value));
    default:
      return 0;
  }
}

}  // namespace weft::math
#endif
