#include "base/check.h"

#include <gtest/gtest.h>

#include "support/errors.h"

namespace weft {
namespace {

TEST(Checked, arithmetic_gives_the_result_where_it_fits) {
  EXPECT_EQ(checked_mul(UINT64_MAX, 1, "x"), UINT64_MAX);
  EXPECT_EQ(checked_mul(0, UINT64_MAX, "x"), 0u);
  EXPECT_EQ(checked_mul(std::uint64_t{1} << 32, (std::uint64_t{1} << 32) - 1, "x"), 0xFFFFFFFF00000000u);
  EXPECT_EQ(checked_add(UINT64_MAX, 0, "x"), UINT64_MAX);
  EXPECT_EQ(checked_size(INT64_MAX, "x"), static_cast<std::size_t>(INT64_MAX));
  EXPECT_EQ(checked_dim(INT64_MAX, "x"), INT64_MAX);
}

TEST(Checked, arithmetic_names_the_quantity_and_both_operands_where_it_does_not) {
  EXPECT_WEFT_ERROR(checked_mul(std::uint64_t{1} << 32, std::uint64_t{1} << 32, "tensor 'w'"), corrupt,
                    "tensor 'w' overflows: 4294967296 x 4294967296");
  EXPECT_WEFT_ERROR(checked_add(UINT64_MAX, 1, "the end of 'w'"), corrupt, "the end of 'w' overflows: 18446744073709551615 + 1");
  EXPECT_WEFT_ERROR(checked_size(std::uint64_t{1} << 63, "the header"), corrupt, "the header is 9223372036854775808");
  EXPECT_WEFT_ERROR(checked_dim(std::uint64_t{1} << 63, "dimension 0"), corrupt, "dimension 0 is 9223372036854775808");
}

TEST(Assertion, failing_says_where_in_our_source_but_not_where_it_was_built) {
  const auto error = testing::error_of([] { assertion_failed("a == b", "/home/someone/weft/src/base/check.cc", 7); });
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code(), ErrorCode::internal);
  EXPECT_STREQ(error->what(),
               "an assumption of weft's own does not hold: a == b\n  in src/base/check.cc:7\n"
               "  this is a bug in weft; please report it with the command and its inputs");
}

TEST(Assertion, is_active_where_asked_for_and_evaluates_nothing_elsewhere) {
  int evaluated = 0;
  const auto condition = [&] {
    ++evaluated;
    return false;
  };
#if defined(WEFT_ASSERTIONS)
  EXPECT_WEFT_ERROR(WEFT_ASSERT(condition()), internal, "condition()");
  EXPECT_EQ(evaluated, 1);
#else
  WEFT_ASSERT(condition());
  EXPECT_EQ(evaluated, 0);
#endif
}

}  // namespace
}  // namespace weft
