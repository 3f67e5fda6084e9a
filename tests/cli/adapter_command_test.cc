#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/json.h"
#include "support/command.h"
#include "support/read_all.h"

namespace weft::testing {
namespace {

TEST(AdapterCommand, a_difference_extracted_whole_and_folded_gives_the_tuned_model) {
  const ExampleFolder folder;
  const CommandResult extract =
      folder.weft({"adapter", "extract", "models/tiny-base", "models/tiny-german", "lora", "--energy", "1", "--dtype", "float32", "--json"});
  ASSERT_EQ(extract.status, 0) << extract.err;
  const Json report = parse_json(extract.out, "stdout");
  for (const Json& module : *report.find("details")->find("modules")->array())
    EXPECT_LE(module.find("error")->number().value(), 1e-5 * module.find("norm")->number().value() + 1e-12) << *module.find("name")->string();
  ASSERT_EQ(folder.weft({"adapter", "fold", "models/tiny-base", "lora", "out"}).status, 0);
  const CommandResult diff = folder.weft({"diff", "models/tiny-german", "out", "--json"});
  // Factors in float32 leave a difference far below what bfloat16 can hold; an element at a tie may still round the other way.
  EXPECT_LT(parse_json(diff.out, "stdout").find("total")->find("l2_diff")->number().value(), 1e-4);
}

TEST(AdapterCommand, folding_on_the_fly_and_writing_are_the_same) {
  const ExampleFolder folder;
  ASSERT_EQ(folder.weft({"adapter", "fold", "models/tiny-base", "models/tiny-german-lora", "out"}).status, 0);
  EXPECT_EQ(folder.weft({"diff", "models/tiny-base+models/tiny-german-lora", "out", "--exit-code"}).status, 0);
  EXPECT_EQ(folder.weft({"diff", "models/tiny-base", "out", "--exit-code"}).status, 3);
  ASSERT_EQ(folder.weft({"convert", "models/tiny-base+models/tiny-german-lora", "one", "-j", "1", "--memory", "64MiB"}).status, 0);
  EXPECT_EQ(read_all(folder / "one"), read_all(folder / "out"));
  // Half of the way by the adapter's alpha and by the fold's scale.
  ASSERT_EQ(folder.weft({"adapter", "scale", "models/tiny-german-lora", "half", "0.5"}).status, 0);
  ASSERT_EQ(folder.weft({"adapter", "fold", "models/tiny-base", "half", "by-alpha"}).status, 0);
  ASSERT_EQ(folder.weft({"adapter", "fold", "models/tiny-base", "models/tiny-german-lora", "by-scale", "--scale", "0.5"}).status, 0);
  EXPECT_EQ(read_all(folder / "by-alpha"), read_all(folder / "by-scale"));
}

TEST(AdapterCommand, bad_requests_are_answered_and_leave_nothing) {
  const ExampleFolder folder;
  const auto refused = [&](std::vector<std::string> words, const std::string& phrase) {
    const CommandResult result = folder.weft(words);
    EXPECT_EQ(result.status, 2) << phrase;
    EXPECT_NE(result.err.find(phrase), std::string::npos) << result.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  };
  refused({"adapter", "fold", "models/tiny-base", "models/tiny-german", "out"}, "it is a model");
  refused({"adapter", "fold", "models/tiny-base", "nothing", "out"}, "nothing");
  refused({"adapter", "extract", "models/tiny-base", "models/tiny-german", "out"}, "--rank N or --energy");
  refused({"adapter", "extract", "models/tiny-base", "models/tiny-german", "out", "--energy", "2"}, "no share");
  refused({"adapter", "extract", "models/tiny-base", "models/tiny-base", "out", "--rank", "2"}, "equal");
  refused({"adapter", "extract", "models/tiny-base", "models/tiny-german", "out", "--rank", "2", "--modules", "("}, "no regular expression");
  refused({"adapter", "combine", "models/tiny-german-lora", "models/tiny-german-lora", "out", "--weights", "1"},
          "1 weights were given for 2 adapters");
  refused({"adapter", "scale", "models/tiny-german-lora", "out", "x"}, "no number");
  refused({"adapter", "scale", "models/tiny-german-lora", "models/tiny-german-lora", "2"}, "also an input");
  refused({"adapter", "info", "models/tiny-base"}, "it is a model");
  refused({"info", "models/tiny-german-lora"}, "adapter info");
  refused({"adapter"}, "needs to be told what to do");
}

}  // namespace
}  // namespace weft::testing
