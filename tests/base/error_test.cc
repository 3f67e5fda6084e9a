#include "weft/error.h"

#include <gtest/gtest.h>

#include <set>

namespace weft {
namespace {

TEST(Error, text_is_the_message_then_the_place_then_the_advice) {
  const Error error(ErrorCode::corrupt, "tensor 'w' needs 8 bytes but its offsets span 6", {.file = "m.safetensors", .tensor = "w", .byte = 18221},
                    "fetch it again", 5);
  EXPECT_STREQ(error.what(), "tensor 'w' needs 8 bytes but its offsets span 6\n  in m.safetensors, byte 18221\n  fetch it again");
  EXPECT_EQ(error.code(), ErrorCode::corrupt);
  EXPECT_EQ(error.message(), "tensor 'w' needs 8 bytes but its offsets span 6");
  EXPECT_EQ(error.place().tensor, "w");
  EXPECT_EQ(error.advice(), "fetch it again");
  EXPECT_EQ(error.system_error(), 5);
}

TEST(Error, without_place_and_advice_is_one_line) { EXPECT_STREQ(Error(ErrorCode::io, "it broke").what(), "it broke"); }

TEST(Error, names_the_whole_place) {
  const Error error(ErrorCode::corrupt, "it is odd", {.file = "f", .tensor = "t", .key = "k", .byte = 0});
  EXPECT_STREQ(error.what(), "it is odd\n  in tensor t, f, key k, byte 0");
}

TEST(Error, says_a_short_name_again_when_the_message_merely_has_its_letters) {
  EXPECT_STREQ(Error(ErrorCode::corrupt, "values are not finite", {.tensor = "a"}).what(), "values are not finite\n  in tensor a");
  EXPECT_STREQ(Error(ErrorCode::corrupt, "tensor 'a' is not finite", {.tensor = "a"}).what(), "tensor 'a' is not finite");
  EXPECT_STREQ(Error(ErrorCode::corrupt, "tensor 'model.a' is not finite", {.tensor = "model"}).what(),
               "tensor 'model.a' is not finite\n  in tensor model");
}

TEST(Error, indents_every_line_of_advice) { EXPECT_STREQ(Error(ErrorCode::io, "no", {}, "first\nsecond").what(), "no\n  first\n  second"); }

TEST(Error, text_cannot_be_used_to_write_on_the_terminal) {
  const Error error(ErrorCode::corrupt, "bad \x1b[2J name\nok: done", {.tensor = "t\x1b]0;x\x07"}, "not \x1b this");
  EXPECT_STREQ(error.what(), "bad \\x1b[2J name\\nok: done\n  in tensor t\\x1b]0;x\\x07\n  not \\x1b this");
  EXPECT_EQ(error.place().tensor, "t\x1b]0;x\x07") << "programs get the name itself";
}

TEST(Error, bad_requests_and_bad_data_exit_with_2_and_failures_with_1) {
  for (const ErrorCode code : {ErrorCode::invalid_argument, ErrorCode::not_found, ErrorCode::corrupt, ErrorCode::unsupported})
    EXPECT_EQ(Error(code, "x").exit_status(), 2) << to_string(code);
  for (const ErrorCode code : {ErrorCode::io, ErrorCode::no_space, ErrorCode::out_of_memory, ErrorCode::interrupted, ErrorCode::internal})
    EXPECT_EQ(Error(code, "x").exit_status(), 1) << to_string(code);
}

TEST(ErrorCode, every_one_has_a_name_of_its_own) {
  std::set<std::string_view> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::internal); ++code) names.insert(to_string(static_cast<ErrorCode>(code)));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(ErrorCode::internal) + 1);
}

}  // namespace
}  // namespace weft
