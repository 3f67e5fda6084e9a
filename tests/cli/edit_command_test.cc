#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
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

TEST(EditCommand, maps_of_spaces_leave_the_logits_alone) {
  const ExampleFolder folder;
  const CommandResult result =
      folder.weft({"edit", "models/tiny-base", "out", "--cast", ".=float32", "--fold-norms", "--rotate", "residual", "--rotate",
                   "kv.* x value.*=random:3", "--permute", "mlp.*", "--permute", "kv.1=4", "--expand", "mlp.*=600", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(folder.weft({"verify", "out"}).status, 0);
  EXPECT_THAT(read_file(folder / "out/config.json"), HasSubstr("\"intermediate_size\": 600"));
  const CommandResult compared = folder.weft({"eval", "out", "--text", "models/README.md", "--against", "models/tiny-base", "--json"});
  ASSERT_EQ(compared.status, 0) << compared.err;
  const Json document = parse_json(compared.out, "stdout");
  const Json& text = (*document.find("texts")->array())[0];
  EXPECT_LT(*text.find("kl_mean")->number(), 1e-7);
  EXPECT_LT(std::abs(*text.find("delta_nll")->number()), 1e-5);
}

TEST(EditCommand, spaces_are_listed_with_what_they_allow) {
  const ExampleFolder folder;
  const CommandResult result = folder.weft({"edit", "spaces", "models/tiny-base", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const Json document = parse_json(result.out, "stdout");
  const Json& residual = document.array()->front();
  EXPECT_EQ(*residual.find("name")->string(), "residual");
  EXPECT_EQ(residual.find("size")->integer(), 256);
  EXPECT_EQ(residual.find("num_tensors")->integer(), 21);
  EXPECT_EQ(*residual.find("allows_folded")->array()->back().string(), "resize");
  const CommandResult text = folder.weft({"edit", "spaces", "models/tiny-base"});
  EXPECT_THAT(text.out, HasSubstr("permute, sign, resize; with folded norms rotate"));
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
  fails_with({"--rotate", "residual"}, "--fold-norms");
  fails_with({"--rotate", "mlp.0"}, "an activation acts on each unit by itself");
  fails_with({"--rotate", "vale.0"}, "did you mean 'value.0'");
  fails_with({"--rotate", "vale.*"}, "no space of the model is called 'vale.*'");
  fails_with({"--rotate", "value.0=maybe"}, "neither a seed nor a .npy file");
  fails_with({"--scale", "mlp.0=2"}, "no .npy file");
  fails_with({"--expand", "mlp.*=3"}, "512 elements already");
  fails_with({"--expand", "mlp.0=700"}, "one number for all");
  fails_with({"--select", "mlp.*"}, "nothing says how");
  fails_with({"--centre"}, "do not subtract a mean");
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
