#include "math/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "kernel_checks.h"
#include "weft/error.h"

namespace weft::math {
namespace {

using test::Guarded;
using test::kLengths;
using test::on_every_target;
using test::Random;

float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }
std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }
bool is_nan_bits(std::uint32_t bits) { return (bits & 0x7FFFFFFF) > 0x7F800000; }

// ---- The formats, from their definitions, in double

/// A format with a sign bit: the values of its magnitude codes 0, 1, 2, ..., finite ones only, and what lies beyond.
struct Format {
  DType dtype;
  int exponent_bits;
  int mantissa_bits;
  int bias;
  std::uint32_t num_finite;  ///< magnitude codes below are finite
  bool overflows;            ///< code num_finite is infinity; else encoding saturates
  bool fnuz;                 ///< the code of -0 is NaN
};

const std::vector<Format>& formats() {
  static const std::vector<Format> list = {
      {DType::bf16, 8, 7, 127, 0x7F80, true, false},    {DType::f16, 5, 10, 15, 0x7C00, true, false},
      {DType::f8_e5m2, 5, 2, 15, 0x7C, true, false},    {DType::f8_e4m3, 4, 3, 7, 0x7F, false, false},
      {DType::f8_e4m3fnuz, 4, 3, 8, 0x80, false, true}, {DType::f8_e5m2fnuz, 5, 2, 16, 0x80, false, true},
      {DType::f4, 2, 1, 1, 0x8, false, false},
  };
  return list;
}

double value_of(const Format& f, std::uint32_t magnitude_code) {
  const auto exponent = static_cast<int>(magnitude_code >> f.mantissa_bits);
  const double mantissa = magnitude_code & ((1U << f.mantissa_bits) - 1);
  if (exponent == 0) return std::ldexp(mantissa, 1 - f.bias - f.mantissa_bits);
  return std::ldexp(mantissa + (1 << f.mantissa_bits), exponent - f.bias - f.mantissa_bits);
}

/// The values of all finite magnitude codes, in order, and one more: where the next would be.
std::vector<double> values_of(const Format& f) {
  std::vector<double> values;
  for (std::uint32_t code = 0; code < f.num_finite; ++code) values.push_back(value_of(f, code));
  values.push_back(2 * values.back() - values[values.size() - 2]);
  return values;
}

/// What encoding must give for a number (not NaN), found by going through the neighbours. Codes alternate between even and odd mantissas.
std::uint32_t nearest_code(const Format& f, const std::vector<double>& values, float x) {
  const double magnitude = std::abs(static_cast<double>(x));
  const auto above = static_cast<std::uint32_t>(std::lower_bound(values.begin(), values.end(), magnitude) - values.begin());
  std::uint32_t code = std::min(above, f.num_finite);
  if (above > 0 && above <= f.num_finite) {
    const double to_above = values[above] - magnitude;
    const double to_below = magnitude - values[above - 1];
    if (to_below < to_above || (to_below == to_above && above % 2 == 1)) code = above - 1;
  }
  if (!f.overflows && code == f.num_finite) code = f.num_finite - 1;
  if (f.fnuz && code == 0) return 0;
  const std::uint32_t sign = std::signbit(x) ? 1U << (f.exponent_bits + f.mantissa_bits) : 0;
  return sign | code;
}

/// What encoding must give for a NaN.
std::uint32_t nan_code(const Format& f, std::uint32_t bits) {
  const std::uint32_t sign = bits >> 31;
  switch (f.dtype) {
    case DType::bf16:
      return (bits >> 16) | 0x40;
    case DType::f16:
      return sign << 15 | 0x7E00 | (bits >> 13 & 0x3FF);
    case DType::f4:
      return sign << 3 | 7;  // has no NaN: the largest
    default:
      return f.fnuz ? 0x80 : sign << 7 | 0x7F;
  }
}

std::size_t bytes_of(DType dtype, std::size_t n) { return n * static_cast<std::size_t>(info(dtype).bits) / 8; }

/// The codes that encode() gives.
std::vector<std::uint32_t> encoded(DType dtype, std::span<const float> values) {
  std::vector<std::byte> bytes(bytes_of(dtype, values.size()));
  encode(dtype, values, bytes);
  std::vector<std::uint32_t> codes(values.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (info(dtype).bits == 16) {
      codes[i] = std::to_integer<std::uint32_t>(bytes[2 * i]) | std::to_integer<std::uint32_t>(bytes[2 * i + 1]) << 8;
    } else if (info(dtype).bits == 4) {
      codes[i] = std::to_integer<std::uint32_t>(bytes[i / 2]) >> (i % 2 * 4) & 15;
    } else {
      codes[i] = std::to_integer<std::uint32_t>(bytes[i]);
    }
  }
  return codes;
}

/// The values that decode() gives for codes 0 .. count - 1.
std::vector<float> decoded_range(DType dtype, std::uint32_t count) {
  std::vector<std::byte> bytes;
  for (std::uint32_t code = 0; code < count; ++code) {
    if (info(dtype).bits == 4) {
      if (code % 2 == 0) bytes.push_back(static_cast<std::byte>(code | (code + 1) << 4));
      continue;
    }
    bytes.push_back(static_cast<std::byte>(code & 0xFF));
    if (info(dtype).bits == 16) bytes.push_back(static_cast<std::byte>(code >> 8));
  }
  std::vector<float> values(count);
  decode(dtype, bytes, values);
  return values;
}

// ---- Decoding

TEST(Convert, every_code_decodes_to_its_defined_value) {
  on_every_target([] {
    for (const Format& f : formats()) {
      const int magnitude_bits = f.exponent_bits + f.mantissa_bits;
      const std::vector<float> got = decoded_range(f.dtype, 2U << magnitude_bits);
      for (std::uint32_t code = 0; code < got.size(); ++code) {
        const std::uint32_t magnitude = code & ((1U << magnitude_bits) - 1);
        const std::uint32_t sign = code >> magnitude_bits << 31;
        std::uint32_t want = 0;
        if (f.fnuz && code == 1U << magnitude_bits) {
          want = 0x7FC00000;
        } else if (magnitude < f.num_finite) {
          want = bits_of(static_cast<float>(value_of(f, magnitude))) | sign;
        } else if (f.overflows && magnitude == f.num_finite) {
          want = 0x7F800000 | sign;
        } else if (f.dtype == DType::bf16) {
          want = code << 16;  // exactly the upper half, also of a NaN
        } else {
          // Quiet, with the payload where there is one.
          const std::uint32_t payload = f.overflows ? (magnitude & ((1U << f.mantissa_bits) - 1)) << (23 - f.mantissa_bits) : 0;
          want = 0x7FC00000 | sign | payload;
        }
        ASSERT_EQ(bits_of(got[code]), want) << to_string(f.dtype) << " code " << code;
        ASSERT_EQ(bits_of(decode_one(f.dtype, code)), want) << to_string(f.dtype) << " code " << code;
      }
    }
  });
}

TEST(Convert, published_codes_have_their_published_values) {
  const auto is = [](DType dtype, std::uint64_t code, double value) { EXPECT_EQ(decode_one(dtype, code), value) << to_string(dtype) << ' ' << code; };
  is(DType::f8_e4m3, 0x38, 1);
  is(DType::f8_e4m3, 0x7E, 448);
  is(DType::f8_e4m3, 0x01, std::ldexp(1.0, -9));
  is(DType::f8_e4m3, 0xB8, -1);
  is(DType::f8_e5m2, 0x3C, 1);
  is(DType::f8_e5m2, 0x7B, 57344);
  is(DType::f8_e8m0, 0x7F, 1);
  is(DType::f8_e8m0, 0x80, 2);
  is(DType::f8_e4m3fnuz, 0x40, 1);
  is(DType::f8_e4m3fnuz, 0x7F, 240);
  is(DType::f8_e5m2fnuz, 0x40, 1);
  const std::array<double, 8> e2m1 = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (std::size_t code = 0; code < 8; ++code) {
    is(DType::f4, code, e2m1[code]);
    is(DType::f4, code + 8, -e2m1[code]);
  }
}

TEST(Convert, e8m0_is_a_power_of_two) {
  const std::vector<float> got = decoded_range(DType::f8_e8m0, 256);
  for (int code = 0; code < 255; ++code) {
    ASSERT_EQ(got[static_cast<std::size_t>(code)], std::ldexp(1.0, code - 127));
    ASSERT_EQ(encode_one(DType::f8_e8m0, got[static_cast<std::size_t>(code)]), static_cast<std::uint64_t>(code));
  }
  EXPECT_TRUE(std::isnan(got[255]));
  const auto code = [](double x) { return encode_one(DType::f8_e8m0, static_cast<float>(x)); };
  EXPECT_EQ(code(1.499), 0x7FU);
  EXPECT_EQ(code(1.5), 0x80U) << "of two powers of two neither is even: IEEE 754 takes the larger";
  EXPECT_EQ(code(0), 0x00U);
  EXPECT_EQ(code(std::ldexp(1.49, -127)), 0x00U);
  EXPECT_EQ(code(std::ldexp(1.5, -127)), 0x01U);
  EXPECT_EQ(code(std::numeric_limits<float>::max()), 0xFEU);
  EXPECT_EQ(code(std::numeric_limits<float>::infinity()), 0xFEU);
  EXPECT_EQ(code(-1), 0xFFU) << "there is no sign";
  EXPECT_EQ(code(std::numeric_limits<float>::quiet_NaN()), 0xFFU);
  std::vector<float> values = {1.4F, 3.0F, -2.0F, 0.0F};
  const std::vector<std::uint32_t> codes = encoded(DType::f8_e8m0, values);
  EXPECT_EQ(codes, (std::vector<std::uint32_t>{0x7F, 0x81, 0xFF, 0x00}));
}

// ---- Encoding

/// Numbers spread over all bit patterns, and everything near a value or a midpoint of the format.
std::vector<float> telling_numbers(const Format& f) {
  std::vector<float> numbers;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4099) numbers.push_back(from_bits(static_cast<std::uint32_t>(bits)));
  const std::vector<double> values = values_of(f);
  for (std::size_t code = 0; code + 1 < values.size(); ++code) {
    for (const double place : {values[code], (values[code] + values[code + 1]) / 2}) {
      const std::uint32_t bits = bits_of(static_cast<float>(place));
      for (const std::uint32_t near : {bits - 1, bits, bits + 1}) {
        if (near > 0x7F800000) continue;  // below zero, or NaN
        numbers.push_back(from_bits(near));
        numbers.push_back(from_bits(near | 0x80000000));
      }
    }
  }
  for (const std::uint32_t bits :
       {0x7F800000U, 0x7F800001U, 0x7FBFFFFFU, 0x7FC00000U, 0x7FFFFFFFU, 0x7F7FFFFFU, 0x00000001U, 0x007FFFFFU, 0x00800000U}) {
    numbers.push_back(from_bits(bits));
    numbers.push_back(from_bits(bits | 0x80000000));
  }
  if (numbers.size() % 2 != 0) numbers.push_back(1);  // F4 comes in pairs
  return numbers;
}

TEST(Convert, numbers_encode_to_the_nearest_code_ties_to_even) {
  for (const Format& f : formats()) {
    const std::vector<float> numbers = telling_numbers(f);
    const std::vector<double> values = values_of(f);
    std::vector<std::uint32_t> want;
    for (const float x : numbers) {
      want.push_back(is_nan_bits(bits_of(x)) ? nan_code(f, bits_of(x)) : nearest_code(f, values, x));
      ASSERT_EQ(encode_one(f.dtype, x), want.back()) << to_string(f.dtype) << " of " << x << " (" << std::hex << bits_of(x) << ")";
    }
    on_every_target([&] {
      const std::vector<std::uint32_t> got = encoded(f.dtype, numbers);
      for (std::size_t i = 0; i < numbers.size(); ++i)
        ASSERT_EQ(got[i], want[i]) << to_string(f.dtype) << " of " << numbers[i] << " (" << std::hex << bits_of(numbers[i]) << ")";
    });
  }
}

TEST(Convert, encoding_ends_where_the_contract_says) {
  const auto code = [](DType dtype, double x) { return encode_one(dtype, static_cast<float>(x)); };
  EXPECT_EQ(code(DType::f8_e4m3, 464), 0x7EU);
  EXPECT_EQ(code(DType::f8_e4m3, 1e9), 0x7EU) << "saturates";
  EXPECT_EQ(code(DType::f8_e4m3, -INFINITY), 0xFEU);
  EXPECT_EQ(code(DType::f8_e5m2, 61439), 0x7BU);
  EXPECT_EQ(code(DType::f8_e5m2, 61440), 0x7CU) << "infinity";
  EXPECT_EQ(code(DType::f16, 65519), 0x7BFFU);
  EXPECT_EQ(code(DType::f16, 65520), 0x7C00U);
  EXPECT_EQ(code(DType::f8_e4m3fnuz, 1e9), 0x7FU);
  EXPECT_EQ(code(DType::f8_e5m2fnuz, -INFINITY), 0xFFU);
  EXPECT_EQ(code(DType::f8_e4m3fnuz, -1e-9), 0x00U) << "there is no -0";
  EXPECT_EQ(code(DType::f4, 5), 6U) << "halfway between 4 and 6";
  EXPECT_EQ(code(DType::f4, -0.25), 8U);
}

TEST(Convert, every_code_survives_the_way_through_float32) {
  on_every_target([] {
    for (const Format& f : formats()) {
      const std::vector<float> values = decoded_range(f.dtype, 2U << (f.exponent_bits + f.mantissa_bits));
      const std::vector<std::uint32_t> codes = encoded(f.dtype, values);
      for (std::uint32_t code = 0; code < codes.size(); ++code) {
        // A signalling NaN becomes the quiet one, and E5M2 has only one.
        if (std::isnan(values[code])) {
          ASSERT_TRUE(std::isnan(decode_one(f.dtype, codes[code]))) << to_string(f.dtype) << ' ' << code;
        } else {
          ASSERT_EQ(codes[code], code) << to_string(f.dtype);
        }
      }
    }
  });
}

TEST(Convert, rounding_through_a_type_is_encoding_and_decoding) {
  std::vector<DType> dtypes = {DType::f32, DType::f64, DType::f8_e8m0};
  for (const Format& f : formats()) dtypes.push_back(f.dtype);
  std::vector<float> numbers = telling_numbers(formats()[2]);
  Random random(3);
  for (int i = 0; i < 2000; ++i) numbers.push_back(random.any_finite());
  on_every_target([&] {
    for (const DType dtype : dtypes) {
      std::vector<std::byte> bytes(bytes_of(dtype, numbers.size()));
      encode(dtype, numbers, bytes);
      std::vector<float> want(numbers.size());
      decode(dtype, bytes, want);
      std::vector<float> got = numbers;
      round_through(dtype, got);
      for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(bits_of(got[i]), bits_of(want[i])) << to_string(dtype) << " of " << numbers[i];
    }
  });
}

// ---- Wide types

/// Whether f is the float nearest to x, ties to even.
bool is_nearest(float f, long double x) {
  if (std::isinf(f)) return std::abs(x) >= std::ldexp(2.0L - std::ldexp(1.0L, -24), 127) && std::signbit(f) == std::signbit(x);
  const long double error = std::abs(static_cast<long double>(f) - x);
  for (const float other : {std::nextafter(f, -INFINITY), std::nextafter(f, INFINITY)}) {
    // Beyond the largest float the next would be 2^128.
    const long double value =
        std::isinf(other) ? std::copysign(std::ldexp(1.0L, 128), static_cast<long double>(other)) : static_cast<long double>(other);
    const long double its_error = std::abs(value - x);
    if (its_error < error || (its_error == error && (bits_of(f) & 1) != 0)) return false;
  }
  return true;
}

TEST(Convert, doubles_are_rounded_to_the_nearest_float) {
  std::vector<double> numbers = {0.0,    -0.0,     1e300,    -1e300,     INFINITY,        -INFINITY,
                                 1e-300, 0x1p-149, 0x1p-150, 0x1.8p-150, 0x1.fffffefp127, 0x1.ffffffp127};
  Random random(4);
  for (int i = 0; i < 20000; ++i) {
    const double x = random.any_finite();
    numbers.push_back(x * (1 + random.uniform() * 0x1p-20));
    // Exactly halfway, and next to it.
    const double half = std::bit_cast<double>((std::bit_cast<std::uint64_t>(x) & ~std::uint64_t{0x1FFFFFFF}) | 0x10000000);
    for (const double y : {half, std::nextafter(half, 0), std::nextafter(half, INFINITY)}) numbers.push_back(y);
  }
  on_every_target([&] {
    std::vector<float> got(numbers.size());
    decode(DType::f64, std::as_bytes(std::span(numbers)), got);
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_TRUE(is_nearest(got[i], numbers[i])) << numbers[i] << " became " << got[i];
      ASSERT_EQ(bits_of(got[i]), bits_of(decode_one(DType::f64, std::bit_cast<std::uint64_t>(numbers[i]))));
    }
    std::vector<float> nan(9);
    const std::vector<double> nans(9, std::bit_cast<double>(0xFFF0000000000001ULL));
    decode(DType::f64, std::as_bytes(std::span(nans)), nan);
    for (const float f : nan) ASSERT_EQ(bits_of(f), 0xFFC00000U);
  });
}

TEST(Convert, floats_widen_to_doubles_exactly) {
  on_every_target([] {
    std::vector<float> numbers = {0.0F, -0.0F, 0x1p-149F, INFINITY, -INFINITY};
    Random random(5);
    for (int i = 0; i < 1000; ++i) numbers.push_back(random.any_finite());
    std::vector<double> got(numbers.size());
    encode(DType::f64, numbers, std::as_writable_bytes(std::span(got)));
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint64_t>(got[i]), std::bit_cast<std::uint64_t>(static_cast<double>(numbers[i])));
      ASSERT_EQ(std::bit_cast<std::uint64_t>(got[i]), encode_one(DType::f64, numbers[i]));
    }
  });
}

template <typename T>
void expect_integers_decode(DType dtype) {
  std::vector<T> numbers = {0, 1, std::numeric_limits<T>::min(), std::numeric_limits<T>::max(), static_cast<T>(std::numeric_limits<T>::max() - 1)};
  if constexpr (sizeof(T) >= 4)
    for (const std::uint64_t x : {0x1000001ULL, 0x1000002ULL, 0x1000003ULL, 0x2000001ULL, 0x7FFFFFBFULL, 0x7FFFFFC0ULL})
      numbers.push_back(static_cast<T>(x));
  Random random(sizeof(T));
  for (int i = 0; i < 5000; ++i) numbers.push_back(static_cast<T>(random.bits() >> random.below(64)));
  std::vector<float> got(numbers.size());
  decode(dtype, std::as_bytes(std::span(numbers)), got);
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(is_nearest(got[i], static_cast<long double>(numbers[i]))) << to_string(dtype) << ' ' << +numbers[i] << " became " << got[i];
    ASSERT_EQ(got[i], decode_one(dtype, static_cast<std::uint64_t>(static_cast<std::make_unsigned_t<T>>(numbers[i]))));
  }
}

TEST(Convert, integers_are_rounded_to_the_nearest_float) {
  expect_integers_decode<std::uint8_t>(DType::u8);
  expect_integers_decode<std::int8_t>(DType::i8);
  expect_integers_decode<std::uint16_t>(DType::u16);
  expect_integers_decode<std::int16_t>(DType::i16);
  expect_integers_decode<std::uint32_t>(DType::u32);
  expect_integers_decode<std::int32_t>(DType::i32);
  expect_integers_decode<std::uint64_t>(DType::u64);
  expect_integers_decode<std::int64_t>(DType::i64);
}

TEST(Convert, any_byte_but_zero_is_true) {
  std::array<std::byte, 256> bytes;
  for (std::size_t i = 0; i < 256; ++i) bytes[i] = static_cast<std::byte>(i);
  std::vector<float> got(256);
  decode(DType::boolean, bytes, got);
  for (std::size_t i = 0; i < 256; ++i) {
    ASSERT_EQ(got[i], i == 0 ? 0.0F : 1.0F);
    ASSERT_EQ(decode_one(DType::boolean, i), got[i]);
  }
}

TEST(Convert, float32_passes_untouched) {
  std::vector<float> numbers = telling_numbers(formats().back());
  std::vector<float> got(numbers.size());
  decode(DType::f32, std::as_bytes(std::span(numbers)), got);
  ASSERT_EQ(std::memcmp(got.data(), numbers.data(), 4 * got.size()), 0);
  encode(DType::f32, numbers, std::as_writable_bytes(std::span(got)));
  ASSERT_EQ(std::memcmp(got.data(), numbers.data(), 4 * got.size()), 0);
}

TEST(Convert, a_type_without_values_is_refused) {
  std::array<float, 2> values{};
  std::array<std::byte, 16> bytes{};
  for (const DType dtype : {DType::c64, DType::f6_e2m3}) {
    const std::size_t size = bytes_of(dtype, 2);
    try {
      // Two elements of F6 are a byte and a half; nobody gets so far as to count.
      decode(dtype, std::span(bytes).first(size), values);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::internal);
      EXPECT_NE(error.message().find(to_string(dtype)), std::string::npos);
    }
  }
  EXPECT_THROW(encode(DType::i8, std::span<const float>(values), std::span(bytes).first(2)), Error);
  EXPECT_THROW(round_through(DType::c64, values), Error);
}

// ---- Places and lengths

TEST(Convert, any_length_and_address_will_do) {
  std::vector<DType> dtypes = {DType::f64, DType::f32, DType::f8_e8m0};
  for (const Format& f : formats()) dtypes.push_back(f.dtype);
  on_every_target([&] {
    for (const DType dtype : dtypes) {
      for (std::size_t n : kLengths) {
        if (dtype == DType::f4) n -= n % 2;
        for (const std::size_t offset : {0U, 1U, 2U, 3U, 31U}) {
          Guarded<float> values(test::normals(n, n, 3), offset);
          for (std::size_t i = 0; i < n; ++i) values.span()[i] = std::abs(values.span()[i]);  // E8M0 has no sign
          Guarded<std::uint8_t> bytes(bytes_of(dtype, n), offset);
          encode(dtype, values.span(), std::as_writable_bytes(bytes.span()));
          ASSERT_TRUE(bytes.intact()) << to_string(dtype) << ' ' << n;
          Guarded<float> back(n, offset + 1);
          decode(dtype, std::as_bytes(bytes.span()), back.span());
          ASSERT_TRUE(back.intact()) << to_string(dtype) << ' ' << n;
          for (std::size_t i = 0; i < n; ++i)
            ASSERT_EQ(bits_of(back.span()[i]), bits_of(decode_one(dtype, encode_one(dtype, values.span()[i]))))
                << to_string(dtype) << ' ' << i << " of " << n;
          round_through(dtype, values.span());
          ASSERT_TRUE(values.intact());
          for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(values.span()[i], back.span()[i]);
        }
      }
    }
  });
}

TEST(Convert, bad_values_are_counted_wherever_they_are) {
  on_every_target([] {
    for (const std::size_t n : kLengths) {
      Guarded<float> values(test::normals(n, n), 1);
      ASSERT_EQ(count_non_finite(values.span()), 0U);
      std::uint64_t bad = 0;
      for (std::size_t i = 0; i < n; i += 1 + i % 5) {
        values.span()[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
        ASSERT_EQ(count_non_finite(values.span()), ++bad);
      }
    }
  });
}

// ---- All 2^32 floats

/// The reference goes up with the magnitude: the code rises where the midpoint to the next value is passed.
void expect_all_floats_encode(const Format& f) {
  const std::vector<double> values = values_of(f);
  constexpr std::size_t kBlock = std::size_t{1} << 16;
  std::vector<float> numbers(kBlock);
  std::uint32_t code = 0;
  double next = values[1] / 2;
  for (std::uint64_t first = 0; first < 0x80000000ULL; first += kBlock) {
    std::array<std::vector<std::uint32_t>, 2> got;
    for (const std::uint32_t sign : {0U, 1U}) {
      for (std::size_t i = 0; i < kBlock; ++i) numbers[i] = from_bits(static_cast<std::uint32_t>(first + i) | sign << 31);
      got[sign] = encoded(f.dtype, numbers);
    }
    for (std::size_t i = 0; i < kBlock; ++i) {
      const auto bits = static_cast<std::uint32_t>(first + i);
      std::array<std::uint32_t, 2> want;
      if (is_nan_bits(bits)) {
        want = {nan_code(f, bits), nan_code(f, bits | 0x80000000)};
      } else {
        const double x = from_bits(bits);
        // At a midpoint the even code is taken.
        while (code < f.num_finite && (x > next || (x == next && code % 2 == 1))) {
          ++code;
          if (code < f.num_finite) next = (values[code] + values[code + 1]) / 2;
        }
        const std::uint32_t capped = !f.overflows && code == f.num_finite ? code - 1 : code;
        want = {capped, f.fnuz && capped == 0 ? 0 : capped | 1U << (f.exponent_bits + f.mantissa_bits)};
      }
      if (got[0][i] == want[0] && got[1][i] == want[1]) continue;  // an assertion takes longer than all the rest
      ASSERT_EQ(got[0][i], want[0]) << to_string(f.dtype) << " of " << std::hex << bits;
      ASSERT_EQ(got[1][i], want[1]) << to_string(f.dtype) << " of -" << std::hex << bits;
    }
  }
}

class SlowConvert : public ::testing::TestWithParam<int> {};

TEST_P(SlowConvert, every_float_encodes_to_the_nearest_code) { expect_all_floats_encode(formats()[static_cast<std::size_t>(GetParam())]); }

INSTANTIATE_TEST_SUITE_P(SlowFormats, SlowConvert, ::testing::Range(0, 7),
                         [](const auto& suite) { return std::string(to_string(formats()[static_cast<std::size_t>(suite.param)].dtype)); });

}  // namespace
}  // namespace weft::math
