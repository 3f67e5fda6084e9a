#include "math/round_codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "math/kernel_checks.h"

namespace weft::math {
namespace {

std::uint8_t reference(float value, float scale, float zero, float lowest, float most) {
  const float q = std::nearbyint(value / scale) + zero;
  return static_cast<std::uint8_t>(q > most ? most : q >= lowest ? q : lowest);
}

TEST(RoundCodes, codes_are_those_of_the_division_beside_every_middle_and_for_every_scale) {
  test::Random random(3);
  std::vector<float> scales = {1.0F, -0.11F, 0x1p-126F, 0x1.8p-140F, 0x1.3p127F, 0x1p126F, 1e-30F, 0.0F, std::numeric_limits<float>::infinity()};
  for (int i = 0; i < 400; ++i) scales.push_back(static_cast<float>(random.uniform() + 0.5) * std::ldexp(1.0F, i % 40 - 20));
  for (const float scale : scales) {
    // Within two steps of a float32 of each middle between codes, and of each code.
    std::vector<float> values = {0.0F, -0.0F, 1e30F, -1e30F, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()};
    for (int half = -34; half <= 34; ++half) {
      float value = static_cast<float>(half) / 2 * scale;
      for (int step = 0; step < 2; ++step) value = std::nextafter(value, -std::numeric_limits<float>::infinity());
      for (int step = 0; step < 5; ++step, value = std::nextafter(value, std::numeric_limits<float>::infinity())) values.push_back(value);
    }
    std::vector<std::uint8_t> want(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) want[i] = reference(values[i], scale, 8, 0, 15);
    test::on_every_target([&] {
      std::vector<std::uint8_t> codes(values.size() + 16, 0xA5);
      round_to_codes(values, scale, 8, 0, 15, codes.data());
      for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(codes[i], want[i]) << values[i] << " / " << scale;
      for (std::size_t i = values.size(); i < codes.size(); ++i) ASSERT_EQ(codes[i], 0xA5);
    });
  }
}

TEST(RoundCodes, the_extent_is_the_least_and_the_largest_for_every_length) {
  test::Random random(4);
  for (std::size_t size = 0; size <= 140; ++size) {
    std::vector<float> values(size);
    for (float& value : values) value = static_cast<float>(random.uniform() * 4 - 2);
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    test::on_every_target([&] {
      const Extent got = extent(values);
      EXPECT_EQ(got.low, size == 0 ? 0.0F : *low) << size;
      EXPECT_EQ(got.high, size == 0 ? 0.0F : *high) << size;
    });
  }
}

}  // namespace
}  // namespace weft::math
