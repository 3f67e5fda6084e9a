#include "checkpoint/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <clocale>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/file.h"
#include "weft/error.h"

namespace weft {
namespace {

using ::testing::HasSubstr;

Json parse(std::string_view text, const JsonLimits& limits = {}) { return parse_json(text, "x.json", limits); }

/// The error that parsing gives; fails when there is none.
Error parse_failure(std::string_view text, const JsonLimits& limits = {}) {
  try {
    (void)parse(text, limits);
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "parsed: " << text;
  return Error(ErrorCode::internal, "none");
}

/// Writes down every event with its position.
class Recorder final : public JsonEvents {
 public:
  std::string log;
  void null() override { add("null"); }
  void boolean(bool value) override { add(value ? "true" : "false"); }
  void number(std::string_view text) override { add(std::string(text)); }
  void string(std::string& value) override { add("'" + value + "'"); }
  void begin_object() override { add("{"); }
  void key(std::string& value) override { add("k:" + value); }
  void end_object() override { add("}"); }
  void begin_array() override { add("["); }
  void end_array() override { add("]"); }

 private:
  void add(const std::string& what) { log += what + "@" + std::to_string(position()) + " "; }
};

TEST(Json, numbers_keep_their_text) {
  const char* text =
      "[0,-0,1,-1,1.0,1e3,1E+3,-0.0,0.1,1e-05,18446744073709551615,18446744073709551616,-9223372036854775808,-9223372036854775809,"
      "123456789012345678901234567890,3.14159265358979323846,1e-400]";
  EXPECT_EQ(write_json(parse(text)), text);
}

TEST(Json, integers_are_told_from_other_spellings) {
  EXPECT_EQ(parse("7").integer(), 7);
  EXPECT_EQ(parse("7").unsigned_integer(), 7u);
  EXPECT_EQ(parse("18446744073709551615").unsigned_integer(), std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(parse("18446744073709551615").integer(), std::nullopt);
  EXPECT_EQ(parse("18446744073709551616").unsigned_integer(), std::nullopt);
  EXPECT_EQ(parse("-0").unsigned_integer(), std::nullopt);
  EXPECT_EQ(parse("-1").unsigned_integer(), std::nullopt);
  for (const char* text : {"1.0", "1e3", "\"1\"", "true", "null", "[1]"}) {
    EXPECT_EQ(parse(text).integer(), std::nullopt) << text;
    EXPECT_EQ(parse(text).unsigned_integer(), std::nullopt) << text;
  }
  EXPECT_EQ(parse("1.5").number(), 1.5);
  EXPECT_EQ(parse("1e-400").number(), 0.0);
  EXPECT_TRUE(std::signbit(*parse("-0").number()));
}

TEST(Json, a_locale_with_another_decimal_point_changes_no_number) {
  const std::string before = std::setlocale(LC_NUMERIC, nullptr);
  bool found = false;
  for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE"}) found = found || std::setlocale(LC_NUMERIC, name) != nullptr;
  const std::string written = write_json(parse("[1.5,2e-3]"));
  std::setlocale(LC_NUMERIC, before.c_str());
  EXPECT_EQ(written, "[1.5,2e-3]");
  if (!found) GTEST_SKIP() << "no locale with a decimal comma is installed";
}

TEST(Json, the_numbers_that_python_writes_are_read_and_written_back) {
  const char* text = R"({"time_step_limit":[0.0,Infinity],"a":NaN,"b":-Infinity,"c":"NaN, -Infinity \" Infinity","d":1})";
  const Json value = parse(text);
  EXPECT_EQ(write_json(value), text);
  EXPECT_TRUE(std::isinf(*value.find("time_step_limit")->array()->at(1).number()));
  EXPECT_TRUE(std::isnan(*value.find("a")->number()));
  EXPECT_EQ(value.find("b")->number(), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(value.find("d")->integer(), 1);
  EXPECT_EQ(value.find("b")->integer(), std::nullopt);
  for (const char* bad : {"1NaN", "NaN1", "[NaNNaN]", "{NaN:1}", "[--Infinity]", "-NaN", "[1 NaN]", "Infinit", "nan"})
    EXPECT_EQ(parse_failure(bad).code(), ErrorCode::corrupt) << bad;
  EXPECT_EQ(parse_failure("[NaN]", {.numbers = JsonNumbers::strict}).code(), ErrorCode::corrupt);
}

TEST(Json, the_order_of_keys_is_kept_and_editing_one_changes_nothing_else) {
  Json value = parse(R"({"z":1.0,"a":{"y":[],"x":{}},"m":null})");
  value.set("a", 2);
  value.set("new", "x");
  value.erase("m");
  EXPECT_EQ(write_json(value), R"({"z":1.0,"a":2,"new":"x"})");
}

TEST(Json, indented_output_is_what_python_writes) {
  const Json value = parse(R"({"a":[1,2.0,"x"],"b":{},"c":[],"d":{"e":null,"f":true},"g":[[],[{}]]})");
  EXPECT_EQ(write_json(value, 2), R"({
  "a": [
    1,
    2.0,
    "x"
  ],
  "b": {},
  "c": [],
  "d": {
    "e": null,
    "f": true
  },
  "g": [
    [],
    [
      {}
    ]
  ]
})");
}

TEST(Json, doubles_are_written_as_python_does_and_read_back_the_same) {
  EXPECT_EQ(write_json(Json(1.0)), "1.0");
  EXPECT_EQ(write_json(Json(0.1)), "0.1");
  EXPECT_EQ(write_json(Json(1e-5)), "1e-05");
  EXPECT_EQ(write_json(Json(1e20)), "1e+20");
  EXPECT_EQ(write_json(Json(100000.0)), "100000.0");
  EXPECT_EQ(write_json(Json(-0.0)), "-0.0");
  EXPECT_EQ(write_json(Json(std::numeric_limits<double>::infinity())), "\"Infinity\"");
  EXPECT_EQ(write_json(Json(std::numeric_limits<double>::quiet_NaN())), "\"NaN\"");
  for (const double x : {5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1.0 / 3.0, 123456789.123}) EXPECT_EQ(parse(write_json(Json(x))).number(), x);
}

TEST(Json, strings_are_escaped_as_the_reference_writer_does) {
  const std::string_view raw("\"\\/\b\f\n\r\t\x01\x1f\x7f\xC3\xA9\0x", 15);
  EXPECT_EQ(json_quote(raw), "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\xC3\xA9\\u0000x\"");
  EXPECT_EQ(write_json(Json("\xC3\xA9\xF0\x9F\x98\x80\x7f"), 0, true), "\"\\u00e9\\ud83d\\ude00\\u007f\"");
  EXPECT_EQ(*parse(json_quote(raw)).string(), raw);
  EXPECT_EQ(json_quote("a\xFFz\xC3"), "\"a\xEF\xBF\xBDz\xEF\xBF\xBD\"") << "what is no UTF-8 must not get into JSON";
}

TEST(Json, what_is_not_json_is_refused_with_its_place) {
  struct Case {
    std::string text;
    std::uint64_t byte;
    const char* phrase;
  };
  const std::vector<Case> cases = {
      {"", 0, "unexpected end of input"},
      {"   ", 2, "unexpected end of input"},
      {"\xEF\xBB\xBF{}", 0, "byte-order mark"},
      {std::string("{}\0", 3), 2, "NUL"},
      {std::string("{\0}", 3), 1, "unexpected end of input"},
      {std::string("{}\0 {}", 6), 2, "NUL"},
      {"{} x", 3, "expected end of input"},
      {"[1,2", 3, "unexpected end of input"},
      {"[1,]", 3, "unexpected ']'"},
      {"{\"a\" 1}", 6, "object separator"},
      {"[01]", 3, "unexpected number literal"},
      {"[+1]", 1, "invalid literal"},
      {"[.5]", 1, "invalid literal"},
      {"[1e999]", 6, "number overflow"},
      {"['a']", 1, "invalid literal"},
      {"[\"\\x\"]", 3, "forbidden character after backslash"},
      {"[\"\n\"]", 2, "control character"},
      {"[\"\xC0\x80\"]", 2, "ill-formed UTF-8"},
      {"[\"\xED\xA0\x80\"]", 3, "ill-formed UTF-8"},
      {"[\"\\ud800\"]", 8, "surrogate"},
      {"[\"\\udc00\"]", 7, "surrogate"},
      {"[\"\\ud800\\u0041\"]", 13, "surrogate"},
      {"// x\n1", 0, "invalid literal"},
  };
  for (const Case& c : cases) {
    const Error error = parse_failure(c.text);
    EXPECT_EQ(error.code(), ErrorCode::corrupt) << c.text;
    EXPECT_EQ(error.place().file, "x.json");
    EXPECT_EQ(error.place().byte, c.byte) << c.text << ": " << error.what();
    EXPECT_THAT(error.message(), HasSubstr(c.phrase)) << c.text;
    EXPECT_NE(error.advice(), "");
  }
}

TEST(Json, a_key_that_stands_twice_is_refused_at_any_depth) {
  const Error error = parse_failure(R"([{"a":{"b":1,"c":2,"\u0062":3}}])");
  EXPECT_EQ(error.code(), ErrorCode::corrupt);
  EXPECT_EQ(error.place().key, "b");
  EXPECT_EQ(error.place().byte, 26u);
  EXPECT_THAT(error.message(), HasSubstr("twice"));
  EXPECT_NO_THROW((void)parse(R"({"a":1,"b":{"a":1}})"));
}

TEST(Json, nesting_ten_thousand_deep_is_an_error_not_a_crash) {
  for (const char* open : {"[", "{\"a\":"}) {
    std::string text;
    for (int i = 0; i < 10'000; ++i) text += open;
    const Error error = parse_failure(text);
    EXPECT_EQ(error.code(), ErrorCode::corrupt);
    EXPECT_THAT(error.message(), HasSubstr("deeper than 128"));
  }
  EXPECT_NO_THROW((void)parse(std::string(128, '[') + std::string(128, ']')));
}

TEST(Json, sizes_and_counts_are_limited) {
  EXPECT_EQ(parse_failure("[1,2,3]", {.max_values = 3}).code(), ErrorCode::unsupported);
  EXPECT_NO_THROW((void)parse("[1,2,3]", {.max_values = 4}));
  EXPECT_EQ(parse_failure("[1,2,3]", {.max_bytes = 6}).code(), ErrorCode::unsupported);
}

TEST(Json, events_know_where_they_are) {
  Recorder recorder;
  parse_json_events(R"({"a": [1, true], "b":"x"})", "x.json", {}, recorder);
  EXPECT_EQ(recorder.log, "{@0 k:a@3 [@6 1@8 true@13 ]@14 k:b@19 'x'@23 }@24 ");
}

TEST(Json, reading_from_part_of_a_file_gives_the_same_events_across_blocks) {
  const std::filesystem::path path = std::filesystem::path(::testing::TempDir()) / "weft_json_events.bin";
  std::string text = "[";
  for (int i = 0; i < 30'000; ++i) text += "\"item\\u00e9" + std::to_string(i) + "\"," + std::to_string(i) + ",";
  text += "null]";
  std::ofstream(path, std::ios::binary) << "skipped" << text << "behind";
  Recorder from_memory, from_file;
  parse_json_events(text, "x.json", {}, from_memory);
  {
    const File file(path, FileMode::read);
    parse_json_events(file, 7, text.size(), {}, from_file);
  }
  // The positions differ by the seven bytes before.
  std::string shifted;
  const std::string& log = from_memory.log;
  for (std::size_t begin = 0, at = 0; (at = log.find('@', begin)) != std::string::npos;) {
    const std::size_t end = log.find(' ', at);
    shifted += log.substr(begin, at + 1 - begin) + std::to_string(std::stoul(log.substr(at + 1, end - at - 1)) + 7) + " ";
    begin = end + 1;
  }
  EXPECT_TRUE(from_file.log == shifted);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace weft
