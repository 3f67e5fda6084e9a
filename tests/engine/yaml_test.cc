#include "engine/yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "weft/error.h"

namespace weft::yaml {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Node parse_one(std::string_view text) {
  std::vector<Document> documents = parse(text, "test.yml");
  EXPECT_EQ(documents.size(), 1U) << text;
  return documents.empty() ? Node{} : std::move(documents.front().root);
}

/// The message of the error that parsing gives; fails the test when it gives none.
std::string refusal(std::string_view text, ErrorCode code = ErrorCode::invalid_argument, const Limits& limits = {}) {
  try {
    (void)parse(text, "test.yml", limits);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_EQ(e.place().file, "test.yml");
    EXPECT_FALSE(e.advice().empty()) << e.what();
    return e.message();
  }
  ADD_FAILURE() << "accepted: " << text.substr(0, 200);
  return "";
}

// What yaml.safe_load of PyYAML 6 makes of each plain scalar.
TEST(Yaml, plain_scalars_have_the_types_that_pyyaml_gives_them) {
  const std::vector<std::pair<std::string, Kind>> cases = {
      {"~", Kind::null},        {"null", Kind::null},         {"Null", Kind::null},    {"NULL", Kind::null},    {"nUll", Kind::string},
      {"yes", Kind::boolean},   {"Off", Kind::boolean},       {"TRUE", Kind::boolean}, {"tRue", Kind::string},  {"y", Kind::string},
      {"n", Kind::string},      {"12", Kind::integer},        {"-12", Kind::integer},  {"+12", Kind::integer},  {"1_000", Kind::integer},
      {"0", Kind::integer},     {"-0", Kind::integer},        {"017", Kind::integer},  {"018", Kind::string},   {"0x1F", Kind::integer},
      {"0b101", Kind::integer}, {"0o17", Kind::string},       {"1:30", Kind::integer}, {"1:60", Kind::string},  {"1.5", Kind::number},
      {"1.", Kind::number},     {".5", Kind::number},         {"-.5", Kind::string},   {"1e-3", Kind::string},  {"1.0e3", Kind::string},
      {"1.0e-3", Kind::number}, {"1.5E+2", Kind::number},     {".inf", Kind::number},  {"-.INF", Kind::number}, {".nan", Kind::number},
      {"inf", Kind::string},    {"nan", Kind::string},        {"1.2.3", Kind::string}, {".1.", Kind::string},   {"1,5", Kind::string},
      {"1:30.5", Kind::number}, {"0x", Kind::string},         {"0b2", Kind::string},   {"--1", Kind::string},   {"1_", Kind::integer},
      {"._5", Kind::string},    {"2024-01-01", Kind::string}, {"\"5\"", Kind::string}, {"'yes'", Kind::string}, {"\"\"", Kind::string},
  };
  for (const auto& [text, kind] : cases) EXPECT_EQ(describe(parse_one("k: " + text + "\n").find("k")->kind), describe(kind)) << text;
}

TEST(Yaml, numbers_have_the_values_that_pyyaml_gives_them) {
  const std::vector<std::pair<std::string, double>> cases = {
      {"12", 12},
      {"-1_000", -1000},
      {"017", 15},
      {"0x1F", 31},
      {"-0b101", -5},
      {"1:30", 90},
      {"-1:30:15", -5415},
      {"1:30.5", 90.5},
      {"1.5E+2", 150},
      {".5", 0.5},
      {"+1.25", 1.25},
      {"1_0.2_5", 10.25},
      {"9223372036854775807", 9223372036854775807.0},
      {"0.1", 0.1},
      {"1.0e+400", INFINITY},
      {"1.0e-400", 0},
  };
  for (const auto& [text, value] : cases) EXPECT_EQ(parse_one("k: " + text).find("k")->number, value) << text;
  EXPECT_EQ(parse_one("k: 9223372036854775807").find("k")->integer, INT64_MAX);
  EXPECT_EQ(parse_one("k: 9223372036854775808").find("k")->integer, std::nullopt);
  EXPECT_EQ(parse_one("k: 9223372036854775808").find("k")->number, 9223372036854775808.0);
  EXPECT_TRUE(std::isnan(parse_one("k: .nan").find("k")->number));
}

TEST(Yaml, tags_override_the_type_and_unknown_ones_are_refused) {
  EXPECT_EQ(parse_one("k: !!str 5").find("k")->kind, Kind::string);
  EXPECT_EQ(parse_one("k: !!int \"5\"").find("k")->kind, Kind::integer);
  EXPECT_EQ(parse_one("k: !!float 5").find("k")->kind, Kind::number);
  EXPECT_THAT(refusal("k: !!python/object:os.system {}"), HasSubstr("tag"));
  EXPECT_THAT(refusal("k: !local 1"), HasSubstr("!local"));
  EXPECT_THAT(refusal("k: !!int heavy"), HasSubstr("tag"));
}

TEST(Yaml, places_count_lines_and_characters_from_one) {
  const Node root = parse_one("a: 1\n\nlist:\n  - {b: x, größe: y, c: z}\n");
  EXPECT_EQ(to_string(root.find("a")->place), "line 1, column 4");
  const Node& item = root.find("list")->items[0];
  EXPECT_EQ(to_string(item.place), "line 4, column 5");
  EXPECT_EQ(to_string(item.find("c")->place), "line 4, column 25");
  EXPECT_EQ(to_string(item.members[1].key.place), "line 4, column 12");
  // A byte order mark is no character of the first line.
  EXPECT_EQ(to_string(parse_one("\xEF\xBB\xBF"
                                "a: 1")
                          .find("a")
                          ->place),
            "line 1, column 4");
}

TEST(Yaml, errors_of_the_syntax_name_line_and_column) {
  EXPECT_THAT(refusal("a: 1\nb: [1, 2\n"), AllOf(HasSubstr("not valid YAML"), HasSubstr("line ")));
  EXPECT_THAT(refusal("merge_method: linear\nmodels: [{model: ./models/micro\n"), HasSubstr("line 2, column 10"));
  EXPECT_THAT(refusal("a: 1\n b: 2\n"), HasSubstr("line 2"));
  // Where nothing can begin, the parser must not find empty documents without end.
  for (const char* stray : {", {a: b}\nc: d\n", "a: 1\n---\n] b\n", "}", "a: b\n...\n,\n"}) EXPECT_THAT(refusal(stray), HasSubstr("line ")) << stray;
  EXPECT_THAT(refusal("a: *nobody\n"), HasSubstr("line 1, column 4"));
}

TEST(Yaml, a_key_may_occur_only_once_in_a_mapping) {
  EXPECT_THAT(refusal("a: 1\nb: 2\na: 3\n"), AllOf(HasSubstr("'a' occurs twice"), HasSubstr("line 3, column 1")));
  EXPECT_THAT(refusal("{a: {x: 1, \"x\": 2}}"), HasSubstr("'x' occurs twice"));
  EXPECT_EQ(parse_one("{a: {x: 1}, b: {x: 2}}").members.size(), 2U);
  EXPECT_THAT(refusal("{[1, 2]: 3}"), HasSubstr("cannot be a key"));
  EXPECT_THAT(refusal("? {a: 1}\n: 2\n"), HasSubstr("cannot be a key"));
}

TEST(Yaml, null_keys_keep_their_spelling) {
  const Node root = parse_one("null: 1\n~: 2\nNULL: 3\n");
  ASSERT_EQ(root.members.size(), 3U);
  EXPECT_EQ(root.members[0].key.text, "null");
  EXPECT_EQ(root.members[1].key.text, "~");
  EXPECT_EQ(root.members[2].key.text, "NULL");
}

TEST(Yaml, aliases_stand_for_what_their_anchor_marks) {
  const Node root = parse_one("a: &x {v: [1, 2]}\nb: *x\nc: &x 7\nd: *x\n");
  EXPECT_EQ(root.find("b")->find("v")->items[1].number, 2);
  EXPECT_EQ(root.find("d")->number, 7);
  EXPECT_THAT(refusal("a: &x [1, *x]\n"), HasSubstr("refers to the node that it is in"));
  // An anchor of one document is unknown in the next.
  EXPECT_THAT(refusal("a: &x 1\n---\nb: *x\n"), HasSubstr("line 3"));
}

TEST(Yaml, merge_keys_fill_in_what_the_mapping_does_not_say_itself) {
  const Node root = parse_one("base: &b {w: 1, d: 2}\nmore: &m {w: 5, e: 6}\nx: {d: 3, <<: *b}\ny: {<<: [*b, *m], f: 0}\nz: {\"<<\": 1}\n");
  const Node& x = *root.find("x");
  EXPECT_EQ(x.find("w")->number, 1);
  EXPECT_EQ(x.find("d")->number, 3);
  EXPECT_EQ(x.members.size(), 2U);
  const Node& y = *root.find("y");
  EXPECT_EQ(y.find("w")->number, 1) << "the first of the list wins";
  EXPECT_EQ(y.find("e")->number, 6);
  EXPECT_EQ(root.find("z")->find("<<")->number, 1) << "quoted, it is a key like others";
  EXPECT_THAT(refusal("x: {<<: 5}"), HasSubstr("merge key"));
  EXPECT_THAT(refusal("x: {<<: [1]}"), HasSubstr("merge key"));
}

TEST(Yaml, documents_are_separate_and_keep_their_text) {
  const std::vector<Document> documents = parse("# first\nname: a\nx: 1\n---\nname: b\n--- {name: c}\n", "test.yml");
  ASSERT_EQ(documents.size(), 3U);
  EXPECT_EQ(documents[0].text, "# first\nname: a\nx: 1\n");
  EXPECT_EQ(documents[1].text, "name: b\n");
  EXPECT_EQ(documents[2].text, "{name: c}\n");
  EXPECT_EQ(documents[2].root.find("name")->text, "c");
  EXPECT_TRUE(parse("", "test.yml").empty());
  EXPECT_TRUE(parse("# only a comment\n", "test.yml").empty());
  const std::vector<Document> with_empty = parse("---\na: 1\n---\n", "test.yml");
  ASSERT_EQ(with_empty.size(), 2U);
  EXPECT_TRUE(with_empty[1].root.is_null());
}

TEST(Yaml, what_is_no_text_is_refused) {
  EXPECT_THAT(refusal(std::string("a: \x04 b\nc: 1\n")), AllOf(HasSubstr("control character"), HasSubstr("line 1, column 4")));
  EXPECT_THAT(refusal(std::string("a: b\0c", 6)), HasSubstr("control character"));
  EXPECT_THAT(refusal("a: \xFF\xFE"), HasSubstr("UTF-8"));
  EXPECT_THAT(refusal("\xFF\xFE"
                      "a"),
              HasSubstr("UTF-8"));
}

// ---- hostile ----

TEST(YamlHostile, a_billion_laughs_are_stopped_by_the_node_limit) {
  std::string text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    text += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int k = 0; k < 9; ++k) text += (k > 0 ? ", *a" : "*a") + std::to_string(i - 1);
    text += "]\n";
  }
  EXPECT_THAT(refusal(text, ErrorCode::unsupported), HasSubstr("nodes"));
}

TEST(YamlHostile, merge_keys_cannot_multiply_without_bound_either) {
  std::string text = "a0: &a0 {k0: x, k1: x, k2: x, k3: x}\n";
  for (int i = 1; i < 40; ++i) {
    const std::string n = std::to_string(i);
    const std::string p = std::to_string(i - 1);
    text += "a" + n + ": &a" + n + " {l" + n + ": *a" + p + ", m" + n + ": *a" + p + ", <<: *a" + p + "}\n";
  }
  EXPECT_FALSE(refusal(text, ErrorCode::unsupported).empty());
}

TEST(YamlHostile, a_hundred_thousand_levels_are_refused_and_not_recursed_into) {
  for (const char* open : {"[", "{a: ", "- ", "? "}) {
    std::string text;
    for (int i = 0; i < 100'000; ++i) text += open;
    try {
      (void)parse(text, "test.yml");
      ADD_FAILURE() << "accepted " << open;
    } catch (const Error& e) {
      EXPECT_TRUE(e.code() == ErrorCode::unsupported || e.code() == ErrorCode::invalid_argument) << e.what();
    }
  }
  // Depth that only aliases reach counts too.
  std::string text = "a0: &a0 [x]\n";
  for (int i = 1; i < 100; ++i) text += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [*a" + std::to_string(i - 1) + "]\n";
  EXPECT_THAT(refusal(text, ErrorCode::unsupported), HasSubstr("deeper"));
}

TEST(YamlHostile, size_is_limited_before_anything_is_parsed) {
  EXPECT_THAT(refusal("k: " + std::string(10'000'000, 'x'), ErrorCode::unsupported), HasSubstr("10000003 bytes"));
  EXPECT_EQ(parse_one("k: " + std::string(1'000'000, 'x')).find("k")->text.size(), 1'000'000U);
}

TEST(YamlHostile, one_long_line_takes_linear_time) {
  // 200,000 entries on one line; counting columns anew for each of them would take minutes.
  std::string text = "k: [";
  for (int i = 0; i < 200'000; ++i) text += "é, ";
  text += "x]";
  const Node root = parse_one(text);
  EXPECT_EQ(root.find("k")->items.size(), 200'001U);
  EXPECT_EQ(root.find("k")->items.back().place.column, 4 + 3 * 200'000 + 1);
}

}  // namespace
}  // namespace weft::yaml
