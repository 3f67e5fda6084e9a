#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "support/command.h"
#include "support/golden.h"

// Runs the command on stored cases and compares with what mergekit made of them: those in tests/data always, the full set when it lies beside the
// repository.
namespace weft::testing {
namespace {

namespace fs = std::filesystem;

const fs::path kFullSet = fs::path(WEFT_SOURCE_DIR) / ".." / "shared" / "golden" / "merge";

struct Case {
  const GoldenIndex* index = nullptr;
  const Json* golden = nullptr;
  [[nodiscard]] std::string name() const { return golden_text(*golden, "name"); }
  [[nodiscard]] std::string kind() const { return golden_text(*golden, "kind"); }
};

std::vector<Case> cases_of(const GoldenIndex& index) {
  std::vector<Case> cases;
  for (const Json& golden : index.cases) cases.push_back({.index = &index, .golden = &golden});
  return cases;
}

const GoldenIndex& bundled() {
  static const GoldenIndex index = read_golden_index(fs::path(WEFT_SOURCE_DIR) / "tests" / "data" / "merge" / "index.json");
  return index;
}

const GoldenIndex& full() {
  static const GoldenIndex index = read_golden_index(kFullSet / "index.json");
  return index;
}

CommandResult run_case(const Case& golden, const fs::path& output, const TemporaryFolder& scratch, int seed) {
  std::vector<std::string> words = {"merge", golden_text(*golden.golden, "config"), output, "--random-seed", std::to_string(seed)};
  for (const std::string& word : golden_texts(*golden.golden, "args")) words.push_back(word == "{cache}" ? (scratch / "cache").string() : word);
  return run_weft(words, {.folder = golden.index->root});
}

void expect_merge(const Case& golden) {
  const TemporaryFolder scratch;
  const CommandResult result = run_case(golden, scratch / "out", scratch, 0);
  const Json* fails = golden.golden->find("expect")->find("fails");
  if (fails != nullptr && fails->boolean().value()) {
    EXPECT_NE(result.status, 0) << "succeeded";
    return;
  }
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(check_merge(*golden.index, *golden.golden, scratch / "out"), "");
}

void expect_statistics(const Case& golden) {
  const TemporaryFolder scratch;
  std::vector<fs::path> outputs;
  const Json::Array& seeds = *golden.golden->find("compare")->find("seeds")->array();
  for (const Json& seed : seeds) {
    outputs.push_back(scratch / ("out" + std::to_string(*seed.integer())));
    const CommandResult result = run_case(golden, outputs.back(), scratch, static_cast<int>(*seed.integer()));
    ASSERT_EQ(result.status, 0) << result.err;
  }
  EXPECT_EQ(check_statistics(*golden.index, *golden.golden, outputs), "");
  const CommandResult again = run_case(golden, scratch / "again", scratch, static_cast<int>(*seeds.front().integer()));
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(read_file(scratch / "again/model.safetensors"), read_file(outputs.front() / "model.safetensors")) << "the same seed gave another result";
}

void expect_error(const Case& golden) {
  const TemporaryFolder scratch;
  const CommandResult result = run_case(golden, scratch / "out", scratch, 0);
  const Json* expect = golden.golden->find("expect");
  if (expect != nullptr && expect->find("accepts") != nullptr) {
    EXPECT_EQ(result.status, 0) << result.err;
    return;
  }
  EXPECT_EQ(result.status, 2) << "must be refused as bad input: " << golden_text(*golden.golden, "contract") << "\n" << result.err;
  EXPECT_TRUE(result.err.starts_with("error: ") || result.err.find("\nerror: ") != std::string::npos) << result.err;
  const auto lower = [](std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
  };
  for (const std::string& words : golden_texts(*golden.golden, "mention")) {
    bool found = false;
    for (std::size_t at = 0; at <= words.size();) {
      const std::size_t end = words.find("<|") != std::string::npos ? words.size() : std::min(words.find('|', at), words.size());
      found = found || lower(result.err).find(lower(words.substr(at, end - at))) != std::string::npos;
      at = end + 1;
    }
    EXPECT_TRUE(found) << "the message does not mention '" << words << "':\n" << result.err;
  }
  EXPECT_EQ(tree(scratch.path()), std::vector<std::string>{}) << "something was left behind";
}

void expect_case(const Case& golden) {
  if (golden.kind() == "merge") {
    expect_merge(golden);
  } else if (golden.kind() == "statistics") {
    expect_statistics(golden);
  } else {
    ASSERT_EQ(golden.kind(), "error");
    expect_error(golden);
  }
}

std::string test_name(const ::testing::TestParamInfo<Case>& row) {
  std::string name = golden_text(*row.param.golden, "kind") + "_" + row.param.name();
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

class BundledMerge : public ::testing::TestWithParam<Case> {};
TEST_P(BundledMerge, agrees_with_mergekit) { expect_case(GetParam()); }
INSTANTIATE_TEST_SUITE_P(Golden, BundledMerge, ::testing::ValuesIn(cases_of(bundled())), test_name);

class FullMerge : public ::testing::TestWithParam<Case> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FullMerge);
TEST_P(FullMerge, agrees_with_mergekit) { expect_case(GetParam()); }
INSTANTIATE_TEST_SUITE_P(Golden, FullMerge, ::testing::ValuesIn(cases_of(full())), test_name);

TEST(GoldenMerge, the_bundled_cases_are_there) { EXPECT_GE(bundled().cases.size(), 50U); }

// The set's own script must come to the same verdict as this file.
TEST(GoldenMerge, the_set_s_own_script_passes) {
  if (!fs::exists(kFullSet / "compare.py")) GTEST_SKIP() << "the full set is not beside this repository";
  std::string python;
  for (const char* candidate : {"python3", "/usr/bin/python3"})
    if (python.empty() && run_program(candidate, {"-c", "import numpy"}).status == 0) python = candidate;
  if (python.empty()) GTEST_SKIP() << "numpy is not installed";
  const std::string command = std::string(WEFT_COMMAND) + " merge {config} {out} --random-seed {seed} {args}";
  const CommandResult result = run_program(python, {"compare.py", command}, {.folder = kFullSet, .environment = {{"PYTHONDONTWRITEBYTECODE", "1"}}});
  for (std::size_t at = 0; at < result.out.size();) {
    const std::size_t end = std::min(result.out.find('\n', at), result.out.size());
    const std::string line = result.out.substr(at, end - at);
    at = end + 1;
    EXPECT_FALSE(line.starts_with("FAIL")) << line;
  }
  EXPECT_NE(result.out.find(" passed, "), std::string::npos) << result.err;
}

}  // namespace
}  // namespace weft::testing
