#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "support/command.h"
#include "support/temporary_folder.h"

// Progress that counts something other than bytes says what.
namespace weft {
namespace {

using ::testing::ContainsRegex;
using ::testing::Not;

TEST(Progress, of_a_calibration_counts_tokens) {
  const testing::TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 300; ++i) text += "and god said let there be light ";
  testing::write_file(folder / "text.txt", text);
  const auto result = testing::run_weft({"calibrate", WEFT_SOURCE_DIR "/models/tiny-base", "--text", (folder / "text.txt").string(), "--samples", "4",
                                         "--length", "64", "--progress", "-o", (folder / "s.safetensors").string()});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.err, ContainsRegex("running blocks .*[0-9]+ of 512 tokens"));
  EXPECT_THAT(result.err, Not(ContainsRegex("running blocks .*[0-9] (B|KB|KiB)")));
}

TEST(Progress, of_a_merge_counts_bytes) {
  const testing::TemporaryFolder folder;
  const std::string models = WEFT_SOURCE_DIR "/models/";
  testing::write_file(folder / "linear.yml", "merge_method: linear\nmodels:\n- {model: " + models +
                                                 "tiny-german, parameters: {weight: 1}}\n- {model: " + models +
                                                 "tiny-python, parameters: {weight: 1}}\n");
  const auto result = testing::run_weft({"merge", (folder / "linear.yml").string(), (folder / "out").string(), "--progress"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.err, ContainsRegex("merging .* of .*B"));
}

}  // namespace
}  // namespace weft
