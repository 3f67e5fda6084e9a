#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "weft/error.h"

namespace weft::testing {

/// The weft::Error that the work throws; nothing when it throws none.
template <typename Work>
std::optional<Error> error_of(Work&& work) {
  try {
    work();
  } catch (const Error& e) {
    return e;
  }
  return std::nullopt;
}

}  // namespace weft::testing

/// The expression throws a weft::Error of this code whose whole text (message, place, advice) contains the phrase.
#define EXPECT_WEFT_ERROR(expression, expected_code, phrase)                                                                     \
  do {                                                                                                                           \
    const std::optional<::weft::Error> weft_error = ::weft::testing::error_of([&] { static_cast<void>(expression); });           \
    ASSERT_TRUE(weft_error.has_value()) << "nothing was thrown by " #expression;                                                 \
    EXPECT_EQ(::weft::to_string(weft_error->code()), ::weft::to_string(::weft::ErrorCode::expected_code)) << weft_error->what(); \
    EXPECT_THAT(weft_error->what(), ::testing::HasSubstr(phrase));                                                               \
  } while (false)
