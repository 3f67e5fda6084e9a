#include "weft/version.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(Version, is_three_numbers_and_the_rest_is_not_empty) {
  int dots = 0;
  for (const char c : version()) {
    EXPECT_TRUE((c >= '0' && c <= '9') || c == '.') << version();
    dots += c == '.' ? 1 : 0;
  }
  EXPECT_EQ(dots, 2) << version();
  EXPECT_FALSE(commit().empty());
  EXPECT_FALSE(compiler().empty());
  EXPECT_FALSE(simd_target().empty());
}

}  // namespace
}  // namespace weft
