#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "merge/method.h"
#include "weft/methods.h"

// What must hold for every row of the method table, whatever it computes.
namespace weft::merge {
namespace {

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(MethodTable, is_sorted_and_names_no_method_twice) {
  const auto all = methods();
  for (std::size_t i = 1; i < all.size(); ++i) EXPECT_LT(all[i - 1].name, all[i].name);
}

TEST(MethodTable, finds_every_method_by_its_name_and_no_other) {
  for (const Method& m : methods()) EXPECT_EQ(find_method(m.name), &m);
  EXPECT_EQ(find_method("tie"), nullptr);
  EXPECT_EQ(find_method(""), nullptr);
}

TEST(MethodTable, holds_every_method_of_mergekit) {
  for (const char* name :
       {"arcee_fusion", "breadcrumbs",    "breadcrumbs_ties", "dare_linear", "dare_ties",   "della", "della_linear", "karcher", "linear",
        "model_stock",  "multislerp",     "nearswap",         "nuslerp",     "passthrough", "ram",   "ramplus_tl",   "sce",     "slerp",
        "ties",         "task_arithmetic"})
    EXPECT_NE(find_method(name), nullptr) << name;
}

TEST(MethodTable, every_row_says_what_it_does_and_can_be_made) {
  for (const Method& m : methods()) {
    EXPECT_EQ(m.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_"), std::string::npos) << m.name;
    EXPECT_TRUE(!m.name.empty() && m.name[0] >= 'a' && m.name[0] <= 'z') << m.name;
    EXPECT_FALSE(m.summary.empty()) << m.name;
    EXPECT_EQ(m.summary.find('\n'), std::string::npos) << m.name;
    EXPECT_FALSE(m.summary.ends_with('.')) << m.name;
    EXPECT_NE(m.make, nullptr) << m.name;
    EXPECT_GE(m.min_models, 1) << m.name;
    EXPECT_LE(m.min_models, m.max_models) << m.name;
    EXPECT_GE(m.passes, 1) << m.name;
  }
}

TEST(MethodTable, every_parameter_has_help_a_range_and_a_default_within_it) {
  for (const Method& m : methods()) {
    std::set<std::string> names;
    for (const Parameter& p : m.parameters) {
      const std::string what = m.name + "." + p.name;
      EXPECT_TRUE(names.insert(p.name).second) << what << " is declared twice";
      EXPECT_FALSE(p.help.empty()) << what;
      EXPECT_LT(p.min, p.max) << what;
      EXPECT_FALSE(p.optional_value && p.default_value) << what << " has a default and may be absent";
      if (!p.default_value) continue;
      EXPECT_GE(*p.default_value, p.min) << what;
      EXPECT_LE(*p.default_value, p.max) << what;
      if (p.type == ParameterType::boolean) {
        EXPECT_TRUE(*p.default_value == 0 || *p.default_value == 1) << what;
      }
    }
  }
}

TEST(MethodTable, a_negative_density_is_refused_where_it_is_a_probability_and_only_there) {
  for (const Method& m : methods()) {
    if (m.name != "dare_linear" && m.name != "dare_ties" && m.name != "ties" && m.name != "breadcrumbs") continue;
    for (const Parameter& p : m.parameters) {
      if (p.name != "density") continue;
      EXPECT_EQ(p.min == 0, m.name.starts_with("dare_")) << m.name;
      EXPECT_TRUE(p.min == 0 || p.min < -1e200) << m.name;
    }
  }
}

TEST(MethodTable, every_row_has_a_page_with_the_fixed_headings_and_an_example_of_itself) {
  const std::filesystem::path pages = std::filesystem::path(WEFT_SOURCE_DIR) / "docs" / "methods";
  for (const Method& m : methods()) {
    const std::string page = text_of(pages / (m.name + ".md"));
    ASSERT_FALSE(page.empty()) << "docs/methods/" << m.name << ".md is missing";
    std::size_t at = page.find("# " + m.name + "\n");
    EXPECT_EQ(at, 0U) << m.name;
    for (const char* heading : {"\n## What it is for\n", "\n## Formula\n", "\n## Example\n", "\n## Pitfalls\n", "\n## Source\n"}) {
      const std::size_t next = page.find(heading, at);
      ASSERT_NE(next, std::string::npos) << m.name << ".md has no" << heading << "or in another order";
      at = next;
    }
    EXPECT_NE(page.find("merge_method: " + m.name + "\n"), std::string::npos) << m.name << ".md has no example of it";
  }
}

TEST(MethodTable, every_page_belongs_to_a_row_or_a_method_that_runs_the_models) {
  std::set<std::string> by_data;
  for (const MethodDescription& method : list_methods("merge"))
    if (method.calibration) by_data.insert(method.name);
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(WEFT_SOURCE_DIR) / "docs" / "methods"))
    EXPECT_TRUE(find_method(entry.path().stem().string()) != nullptr || by_data.contains(entry.path().stem().string())) << entry.path();
}

TEST(MethodTable, every_row_is_named_in_a_test_of_its_own) {
  std::string tests;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(WEFT_SOURCE_DIR) / "tests" / "merge"))
    if (entry.path().filename() != "table_test.cc") tests += text_of(entry.path());
  for (const Method& m : methods()) {
    bool named = tests.find('"' + m.name + '"') != std::string::npos;
    // Or made by its function, which is not the end of a longer name.
    const std::string call = m.name + "()";
    for (std::size_t at = tests.find(call); at != std::string::npos && !named; at = tests.find(call, at + 1))
      named = at == 0 || (std::isalnum(static_cast<unsigned char>(tests[at - 1])) == 0 && tests[at - 1] != '_');
    EXPECT_TRUE(named) << "no test in tests/merge names " << m.name;
  }
}

}  // namespace
}  // namespace weft::merge
