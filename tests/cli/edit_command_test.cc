#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "checkpoint/json.h"
#include "support/command.h"
#include "support/read_all.h"

namespace weft::testing {
namespace {

using ::testing::HasSubstr;

TEST(EditCommand, operations_are_carried_out_in_the_order_in_which_they_are_written) {
  const ExampleFolder folder;
  // Cast before the rename sees the old name, the drop after it the new one.
  const CommandResult result = folder.weft({"edit", "models/tiny-base", "out", "--cast", "^model\\.norm=float32", "--rename", "model\\.norm=final",
                                            "--drop", "^final", "--rename", "^lm_head=head", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const Json document = parse_json(result.out, "stdout");
  const Json::Array& effects = *document.find("details")->find("effects")->array();
  ASSERT_EQ(effects.size(), 4u);
  EXPECT_EQ(*effects[2].find("operation")->string(), "drop ^final");
  EXPECT_EQ(effects[2].find("num_tensors")->integer(), 1);
  const Tensors before = read_all(folder / "models/tiny-base"), after = read_all(folder / "out");
  EXPECT_EQ(after.size(), before.size() - 1);
  EXPECT_EQ(after.at("head.weight"), before.at("lm_head.weight"));
  EXPECT_TRUE(std::filesystem::exists(folder / "out/tokenizer.json"));
}

TEST(EditCommand, a_stack_of_layers_is_a_sound_model_in_shards) {
  const ExampleFolder folder;
  ASSERT_EQ(folder.weft({"edit", "models/tiny-base", "out", "--layers", "0:2,0:2", "--max-shard-size", "1MB"}).status, 0);
  EXPECT_EQ(folder.weft({"verify", "out"}).status, 0);
  EXPECT_TRUE(std::filesystem::exists(folder / "out/model.safetensors.index.json"));
  EXPECT_THAT(read_file(folder / "out/config.json"), HasSubstr("\"num_hidden_layers\": 4"));
}

TEST(EditCommand, a_dumped_tensor_comes_back_through_set) {
  const ExampleFolder folder;
  ASSERT_EQ(folder.weft({"edit", "dump", "models/tiny-base", "model.embed_tokens.weight", "e.npy"}).status, 0);
  EXPECT_EQ(folder.weft({"edit", "dump", "models/tiny-base", "model.norm.weight", "e.npy"}).status, 2);
  ASSERT_EQ(folder.weft({"edit", "models/tiny-base", "out.safetensors", "--set", "model.embed_tokens.weight=e.npy"}).status, 0);
  EXPECT_EQ(read_all(folder / "out.safetensors"), read_all(folder / "models/tiny-base"));
}

TEST(EditCommand, a_dry_run_lists_the_effect_and_writes_nothing) {
  const ExampleFolder folder;
  const CommandResult result = folder.weft({"edit", "models/tiny-base", "out", "--drop", "norm", "--dry-run"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("drop norm: 5 tensors"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

TEST(EditCommand, bad_requests_exit_with_2_and_leave_nothing) {
  const ExampleFolder folder;
  const auto fails_with = [&](std::vector<std::string> operations, const char* message) {
    std::vector<std::string> arguments = {"edit", "models/tiny-base", "out"};
    arguments.insert(arguments.end(), operations.begin(), operations.end());
    const CommandResult result = folder.weft(arguments);
    EXPECT_EQ(result.status, 2);
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  };
  fails_with({}, "nothing is to be done");
  fails_with({"--drop", "no_such"}, "matches none");
  fails_with({"--rename", "layers\\.\\d=layers.0"}, "would both be called");
  fails_with({"--cast", "norm=i8"}, "no type that weights can be cast to");
  fails_with({"--layers", "0:9"}, "layer 2 is asked for");
  fails_with({"--slice", "model.norm.weight=0:1,0:1"}, "more ranges than");
  fails_with({"--tie", "--tie"}, "nothing to tie");
}

TEST(EditCommand, the_commands_under_edit_are_found) {
  EXPECT_THAT(run_weft({"help", "edit", "dump"}).out, HasSubstr("weft edit dump MODEL NAME FILE.npy"));
  EXPECT_THAT(run_weft({"edit", "--help"}).out, HasSubstr("--layers"));
}

}  // namespace
}  // namespace weft::testing
