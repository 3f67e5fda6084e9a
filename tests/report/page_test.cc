#include "report/page.h"

#include <gtest/gtest.h>

#include <limits>

#include "checkpoint/json.h"
#include "report/assets.h"
#include "support/errors.h"
#include "weft/report.h"

namespace weft::report {
namespace {

constexpr const char* kHostile = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \"'&";

/// What lies between the tags of the data.
std::string data_of(const std::string& html) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const std::size_t begin = html.find(open) + open.size();
  return html.substr(begin, html.find("</script>", begin) - begin);
}

class PageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!can_write_reports()) GTEST_SKIP() << "built without libjs-vega";
  }
};

TEST_F(PageTest, a_hostile_text_is_neither_a_tag_nor_the_end_of_the_data) {
  Page page;
  page.title = kHostile;
  page.command = "measure";
  page.facts = {{kHostile, kHostile}};
  page.findings = {{"note", kHostile, kHostile, kHostile}};
  page.warnings = {kHostile};
  Table table(2);
  table.words("name", kHostile, {kHostile, kHostile});
  page.add_table("tensors", std::move(table));
  page.add_section("table", kHostile, kHostile, {{"table", Json("tensors")}});
  const std::string html = render(std::move(page));
  // Outside of the program's own scripts there is no tag that we did not write.
  const std::string shown = html.substr(0, html.find("<script type=\"application/json\""));
  EXPECT_EQ(shown.find("<script"), std::string::npos);
  EXPECT_EQ(shown.find("<img"), std::string::npos);
  EXPECT_EQ(shown.find("<!--"), std::string::npos);
  const std::string data = data_of(html);
  EXPECT_EQ(data.find('<'), std::string::npos);
  // And the text is still the text.
  const Json parsed = parse_json(data, "data");
  const Json& columns = *parsed.find("tables")->find("tensors")->find("columns");
  EXPECT_EQ(*(*columns.array())[0].find("values")->array()->at(0).string(), kHostile);
}

TEST_F(PageTest, it_loads_nothing_and_forbids_it) {
  const std::string html = render({});
  EXPECT_NE(html.find("default-src 'none'"), std::string::npos);
  for (const char* loading : {"<script src", "<link", "<img", "@import"}) EXPECT_EQ(html.find(loading), std::string::npos) << loading;
}

TEST_F(PageTest, control_characters_and_broken_utf8_are_written_out) {
  Table table(1);
  table.words("name", "name", {std::string("a\nb\x1b[31m\xff")});
  const Json json = std::move(table).json();
  const std::string& text = *(*json.find("columns")->array())[0].find("values")->array()->at(0).string();
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(text.find('\xff'), std::string::npos);
}

TEST(Page, numbers_keep_five_digits_and_what_is_no_number_is_null) {
  EXPECT_EQ(write_json(rounded(0.123456789)), "0.12346");
  EXPECT_EQ(write_json(rounded(12345678)), "12345678");
  EXPECT_EQ(write_json(rounded(-1.5e-12)), "-1.5e-12");
  EXPECT_EQ(write_json(rounded(std::numeric_limits<double>::quiet_NaN())), "null");
  EXPECT_EQ(write_json(rounded(std::numeric_limits<double>::infinity())), "null");
}

TEST(Page, names_give_layer_and_kind) {
  EXPECT_EQ(parts_of("model.layers.12.self_attn.q_proj.weight").block, 12);
  EXPECT_EQ(parts_of("model.layers.12.self_attn.q_proj.weight").kind, "q_proj");
  EXPECT_EQ(parts_of("h.3.attn.c_attn.bias").kind, "bias");
  EXPECT_EQ(parts_of("lm_head.weight").block, -1);
  EXPECT_EQ(parts_of(".weight").kind, ".weight");
  EXPECT_EQ(parts_of("99999999999999999999.x").block, -1);
}

TEST_F(PageTest, the_licence_of_vega_goes_with_every_copy) {
  const std::string_view script = vega_script();
  EXPECT_NE(script.find("Interactive Data Lab"), std::string_view::npos);
  EXPECT_NE(script.find("BSD-3-Clause"), std::string_view::npos);
}

}  // namespace
}  // namespace weft::report
