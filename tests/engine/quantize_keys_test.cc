#include "engine/quantize_keys.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/errors.h"

namespace weft::engine {
namespace {

using Rules = std::vector<std::pair<std::string, std::string>>;

TEST(QuantizeRules, several_to_a_line_or_one_a_line_and_comments) {
  EXPECT_EQ(read_quantize_rules("a=4 b=8/64\n# none\n  c\\.d$=keep  # last\r\n"), (Rules{{"a", "4"}, {"b", "8/64"}, {"c\\.d$", "keep"}}));
  EXPECT_EQ(read_quantize_rules(""), Rules{});
  EXPECT_EQ(read_quantize_rules("x=y=4"), (Rules{{"x=y", "4"}}));
  EXPECT_WEFT_ERROR(static_cast<void>(read_quantize_rules("a=4\nb\n")), invalid_argument, "line 2");
}

TEST(QuantizeRules, those_of_gptqmodel_keep_their_order_and_match_names_from_the_beginning) {
  EXPECT_EQ(read_quantize_rules(R"({"-:model\\.layers\\.0\\.": {}, "+:.*down_proj$": {"bits": 8, "group_size": -1}, ".*up": {"group_size": 32}})"),
            (Rules{{"^(?:model\\.layers\\.0\\.)", "keep"}, {"^(?:.*down_proj\\.weight$)", "8/0"}, {"^(?:.*up)", "/32"}}));
  EXPECT_WEFT_ERROR(static_cast<void>(read_quantize_rules(R"({"+:a": {"sym": true}})")), invalid_argument, "'sym'");
  EXPECT_WEFT_ERROR(static_cast<void>(read_quantize_rules(R"({"+:a": {}})")), invalid_argument, "changes nothing");
  EXPECT_WEFT_ERROR(static_cast<void>(read_quantize_rules(R"({"+:a": 4})")), invalid_argument, "no object");
}

TEST(QuantizeRules, those_of_gptqmodel_end_where_the_name_of_a_layer_does_wherever_they_say_so) {
  const auto pattern_of = [](const std::string& text) { return read_quantize_rules("{\"-:" + text + "\": {}}").front().first; };
  EXPECT_EQ(pattern_of(R"((?:.*\\.q_proj|.*up_proj$))"), R"(^(?:(?:.*\.q_proj|.*up_proj\.weight$)))");
  EXPECT_EQ(pattern_of(R"(a\\$[$^]b[^]$]c\\Z)"), R"(^(?:a\$[$^]b[^]$]c\.weight$))") << "escaped, and in classes, it is a character";
  for (const char* number : {"1e300", "-1e300", "4.5"})
    EXPECT_WEFT_ERROR(static_cast<void>(read_quantize_rules(fmt::format(R"({{"+:a": {{"bits": {}}}}})", number))), invalid_argument, "bits");
}

TEST(QuantizeKeys, a_budget_is_bits_a_weight_or_bytes) {
  LinearQuantization linear;
  set_quantize_budget(linear, "3.2bpw");
  EXPECT_EQ(linear.budget_bits, 3.2);
  EXPECT_FALSE(linear.budget_bytes);
  set_quantize_budget(linear, "1595263B");
  EXPECT_EQ(linear.budget_bytes, 1595263u);
  EXPECT_FALSE(linear.budget_bits);
  set_quantize_budget(linear, "2.5GiB");
  EXPECT_EQ(linear.budget_bytes, 2684354560u);
  set_quantize_budget(linear, "3MB");
  EXPECT_EQ(linear.budget_bytes, 3000000u);
  EXPECT_WEFT_ERROR(set_quantize_budget(linear, "xbpw"), invalid_argument, "'x'");
  EXPECT_WEFT_ERROR(set_quantize_budget(linear, "3.2"), invalid_argument, "write 3.2bpw");
  EXPECT_WEFT_ERROR(set_quantize_budget(linear, "4"), invalid_argument, "no unit");
  set_quantize_budget(linear, "1595263");
  EXPECT_EQ(linear.budget_bytes, 1595263U);
}

TEST(QuantizeKeys, values_are_checked_and_lists_grow) {
  QuantizeOptions options;
  for (const char* value : {"3", "4"}) set_quantize_key(options, "widths", value);
  EXPECT_EQ(options.linear.widths, (std::vector<int>{3, 4}));
  set_quantize_key(options, "override-kv", "general.name=str:a=b");
  EXPECT_EQ(options.override_kv.front().second, "str:a=b");
  EXPECT_WEFT_ERROR(set_quantize_key(options, "pure", "maybe"), invalid_argument, "true or false");
  EXPECT_WEFT_ERROR(set_quantize_key(options, "damping", "1x"), invalid_argument, "a number");
  EXPECT_WEFT_ERROR(set_quantize_key(options, "grop", "1"), invalid_argument, "did you mean group?");
}

}  // namespace
}  // namespace weft::engine
