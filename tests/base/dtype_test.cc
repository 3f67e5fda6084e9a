#include "weft/dtype.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace weft {
namespace {

TEST(DType, table_rows_stand_at_their_own_place_and_names_read_back) {
  std::set<std::string_view> names;
  for (int i = 0; i < kNumDTypes; ++i) {
    const DType dtype = static_cast<DType>(i);
    EXPECT_EQ(info(dtype).dtype, dtype);
    EXPECT_EQ(dtype_from_name(to_string(dtype)), dtype);
    EXPECT_EQ(dtype_from_any(to_string(dtype)), dtype);
    if (!info(dtype).torch_name.empty()) {
      EXPECT_EQ(dtype_from_any(info(dtype).torch_name), dtype);
      EXPECT_EQ(dtype_from_any("torch." + std::string(info(dtype).torch_name)), dtype);
    }
    names.insert(to_string(dtype));
  }
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kNumDTypes));
}

TEST(DType, name_of_the_container_is_case_sensitive_and_that_of_people_is_not) {
  EXPECT_EQ(dtype_from_name("f32"), std::nullopt);
  EXPECT_EQ(dtype_from_name("F24"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
  EXPECT_EQ(dtype_from_any("bFloat16"), DType::bf16);
  EXPECT_EQ(dtype_from_any("half"), DType::f16);
  EXPECT_EQ(dtype_from_any("fp8"), DType::f8_e4m3);
  EXPECT_EQ(dtype_from_any(""), std::nullopt);
  EXPECT_EQ(dtype_from_any("torch."), std::nullopt);
}

TEST(DType, sizes_are_those_of_the_format) {
  const auto bits = [](DType dtype) { return info(dtype).bits; };
  EXPECT_EQ(bits(DType::boolean), 8);
  EXPECT_EQ(bits(DType::f4), 4);
  EXPECT_EQ(bits(DType::f6_e2m3), 6);
  EXPECT_EQ(bits(DType::f8_e8m0), 8);
  EXPECT_EQ(bits(DType::bf16), 16);
  EXPECT_EQ(bits(DType::c64), 64);
  // So that the order of the format's writer aligns every tensor.
  for (int i = static_cast<int>(DType::u8); i < kNumDTypes; ++i) EXPECT_GE(bits(static_cast<DType>(i)), bits(static_cast<DType>(i - 1)));
}

TEST(DType, promotion_is_symmetric_and_keeps_equal_types) {
  for (int i = 0; i < kNumDTypes; ++i)
    for (int j = 0; j < kNumDTypes; ++j) {
      const DType a = static_cast<DType>(i), b = static_cast<DType>(j);
      if (!is_decodable_float(a) || !is_decodable_float(b)) continue;
      EXPECT_EQ(promote(a, b), promote(b, a)) << to_string(a) << ' ' << to_string(b);
      if (i == j) {
        EXPECT_EQ(promote(a, b), a);
      }
    }
  EXPECT_EQ(promote(DType::bf16, DType::f16), DType::f32);
  EXPECT_EQ(promote(DType::bf16, DType::f64), DType::f64);
}

}  // namespace
}  // namespace weft
