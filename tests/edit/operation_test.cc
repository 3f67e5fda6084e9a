#include "edit/operation.h"

#include <gtest/gtest.h>

#include "checkpoint/npy.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/temporary_folder.h"

namespace weft::edit {
namespace {

using weft::testing::MemoryCheckpoint;

Model model_of(std::vector<MemoryCheckpoint::Tensor> tensors, const char* config = nullptr) {
  auto memory = std::make_shared<MemoryCheckpoint>(std::move(tensors));
  Model model;
  for (const TensorInfo& tensor : memory->tensors()) model.tensors.push_back({tensor.name, {memory, &tensor}, {memory, &tensor}, {"m:" + tensor.name}, {}});
  if (config != nullptr) model.config = parse_json(config, "config.json");
  return model;
}

MemoryCheckpoint::Tensor f32(std::string name, Shape shape) {
  std::size_t count = 1;
  for (const std::int64_t dim : shape) count *= static_cast<std::size_t>(dim);
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return {std::move(name), DType::f32, std::move(shape), weft::testing::stored_as(DType::f32, values)};
}

/// Two layers, embedding and head.
Model two_layers(
    const char* config = R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","num_hidden_layers":2,"tie_word_embeddings":false})") {
  return model_of(
      {f32("model.embed_tokens.weight", {4, 2}), f32("model.layers.0.mlp.up_proj.weight", {3, 2}), f32("model.layers.0.rotary.inv_freq", {2}),
       f32("model.layers.1.mlp.up_proj.weight", {3, 2}), f32("model.norm.weight", {2}), f32("lm_head.weight", {4, 2})},
      config);
}

std::vector<std::string> names(const Model& model) {
  std::vector<std::string> out;
  for (const Tensor& tensor : model.tensors) out.push_back(tensor.name);
  return out;
}

Effect apply(Model& model, const std::string& operation, const std::string& argument = "") {
  std::vector<std::string> warnings;
  return parse_operation({operation, argument})->apply(model, warnings);
}

using Names = std::vector<std::string>;

TEST(Operations, rename_replaces_the_first_match_and_knows_groups) {
  Model model = two_layers();
  EXPECT_EQ(apply(model, "rename", "^model\\.layers\\.(\\d)\\.=h.\\1.").num_tensors, 3u);
  EXPECT_EQ(names(model), (Names{"model.embed_tokens.weight", "h.0.mlp.up_proj.weight", "h.0.rotary.inv_freq", "h.1.mlp.up_proj.weight",
                                 "model.norm.weight", "lm_head.weight"}));
}

TEST(Operations, a_rename_that_lets_names_collide_names_both) {
  Model model = two_layers(), other = two_layers();
  EXPECT_WEFT_ERROR(apply(model, "rename", "layers\\.\\d=layers.7"), invalid_argument,
                    "'model.layers.0.mlp.up_proj.weight' and 'model.layers.1.mlp.up_proj.weight' would both be called");
  EXPECT_WEFT_ERROR(apply(other, "rename", "lm_head=model.norm"), invalid_argument, "would both be called 'model.norm.weight'");
}

TEST(Operations, names_can_be_swapped_in_one_rename_but_not_made_empty_or_reserved) {
  Model model = two_layers();
  EXPECT_WEFT_ERROR(apply(model, "rename", "lm_head.weight="), invalid_argument, "empty name");
  EXPECT_WEFT_ERROR(apply(model, "rename", "lm_head.weight=__metadata__"), invalid_argument, "use that name themselves");
  EXPECT_WEFT_ERROR(apply(model, "rename", "lm_head=a\x1b"), invalid_argument, "no text");
}

TEST(Operations, patterns_that_are_none_or_match_nothing_are_refused) {
  Model model = two_layers();
  EXPECT_WEFT_ERROR(apply(model, "drop", "(unclosed"), invalid_argument, "is no pattern: missing )");
  EXPECT_WEFT_ERROR(apply(model, "drop", ""), invalid_argument, "empty pattern");
  EXPECT_WEFT_ERROR(apply(model, "drop", "lm_hesd"), invalid_argument, "matches none of the 6 tensors");
  EXPECT_WEFT_ERROR(apply(model, "rename", "(lm)_head=\\2"), invalid_argument, "groups");
  EXPECT_WEFT_ERROR(apply(model, "rename", "no_equals"), invalid_argument, "FROM=TO");
  EXPECT_WEFT_ERROR(apply(model, "renaem", "a=b"), invalid_argument, "did you mean rename?");
  EXPECT_EQ(model.tensors.size(), 6u);
}

TEST(Operations, drop_and_keep_are_each_others_complement) {
  Model dropped = two_layers(), kept = two_layers();
  EXPECT_EQ(apply(dropped, "drop", "layers\\.1|norm").num_tensors, 2u);
  EXPECT_EQ(apply(kept, "keep", "layers\\.1|norm").num_tensors, 4u);
  EXPECT_EQ(names(kept), (Names{"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}));
  EXPECT_EQ(names(dropped).size(), 4u);
  EXPECT_WEFT_ERROR(apply(kept, "drop", "model"), invalid_argument, "leaves no tensor");
}

TEST(Operations, cast_changes_floating_tensors_and_the_config_once_all_have_the_type) {
  Model model = two_layers();
  apply(model, "cast", "layers=bfloat16");
  EXPECT_EQ(model.config->find("torch_dtype"), nullptr);
  EXPECT_EQ(model.tensors[1].values.tensor->dtype, DType::bf16);
  EXPECT_EQ(apply(model, "cast", ".=bf16").num_tensors, 3u);
  EXPECT_EQ(*model.config->find("torch_dtype")->string(), "bfloat16");
  EXPECT_WEFT_ERROR(apply(model, "cast", ".=int32"), invalid_argument, "no type that weights can be cast to");
}

TEST(Operations, layers_are_stacked_with_everything_in_them_and_the_config_follows) {
  Model model = two_layers();
  apply(model, "layers", "1,0:2");
  EXPECT_EQ(names(model), (Names{"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight",
                                 "model.layers.1.rotary.inv_freq", "model.layers.2.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"}));
  EXPECT_EQ(model.tensors[1].inputs, (Names{"m:model.layers.1.mlp.up_proj.weight"}));
  EXPECT_EQ(model.config->find("num_hidden_layers")->integer(), 3);
}

TEST(Operations, layers_of_an_unknown_architecture_go_by_the_numbers_in_names) {
  Model model = two_layers(R"({"model_type":"unheard_of","n_layers":2})");
  apply(model, "layers", "0:1");
  EXPECT_EQ(model.tensors.size(), 5u);
  EXPECT_EQ(model.config->find("n_layers")->integer(), 1);
}

TEST(Operations, layers_that_are_not_there_are_refused) {
  Model model = two_layers();
  EXPECT_WEFT_ERROR(apply(model, "layers", "0:3"), invalid_argument, "layer 2 is asked for, but the model has 2 layers");
  for (const char* wrong : {"", "0-3", "3:1", "1:1", "a", "0:1,", "-1:2", "0:99999999999"})
    EXPECT_WEFT_ERROR(apply(model, "layers", wrong), invalid_argument, "layer");
}

TEST(Operations, tie_drops_the_head_and_untie_brings_it_back) {
  Model model = two_layers();
  apply(model, "tie");
  EXPECT_EQ(model.tensors.back().name, "model.norm.weight");
  EXPECT_EQ(model.config->find("tie_word_embeddings")->boolean(), true);
  EXPECT_WEFT_ERROR(apply(model, "tie"), invalid_argument, "nothing to tie");
  apply(model, "untie");
  EXPECT_EQ(model.tensors.back().name, "lm_head.weight");
  EXPECT_EQ(model.config->find("tie_word_embeddings")->boolean(), false);
  EXPECT_WEFT_ERROR(apply(model, "untie"), invalid_argument, "a head of its own");
}

TEST(Operations, tying_matrices_that_differ_is_warned_about) {
  Model model = two_layers();
  auto other =
      std::make_shared<MemoryCheckpoint>(std::vector<MemoryCheckpoint::Tensor>{{"lm_head.weight", DType::f32, {4, 2}, std::vector<std::byte>(32)}});
  model.tensors.back().values = {other, &other->tensors().front()};
  std::vector<std::string> warnings;
  parse_operation({"tie", ""})->apply(model, warnings);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings.front().find("computes something else"), std::string::npos);
}

TEST(Operations, an_array_takes_the_type_of_the_tensor_that_it_replaces) {
  weft::testing::TemporaryFolder folder;
  const MemoryCheckpoint array({f32("x", {2})});
  write_npy(array, array.tensors().front(), folder / "x.npy", false);
  Model model = two_layers();
  apply(model, "cast", "norm=bf16");
  apply(model, "set", "model.norm.weight=" + (folder / "x.npy").string());
  EXPECT_EQ(model.tensors[4].values.tensor->dtype, DType::bf16);
  apply(model, "set", "new.tensor=" + (folder / "x.npy").string());
  EXPECT_EQ(model.tensors.back().name, "new.tensor");
  EXPECT_WEFT_ERROR(apply(model, "set", "a=" + (folder / "absent.npy").string()), not_found, "absent.npy");
}

TEST(Operations, ranges_are_those_of_pythons_slices) {
  const auto ranges = [](const char* text, Shape shape) {
    std::vector<std::vector<std::int64_t>> out;
    for (const AxisRange& range : parse_axis_ranges(text, shape)) {
      out.emplace_back();
      for (std::int64_t i = 0; i < range.size(); ++i) out.back().push_back(range.begin + i * range.step);
    }
    return out;
  };
  using Lists = std::vector<std::vector<std::int64_t>>;
  EXPECT_EQ(ranges("1:3", {4, 2}), (Lists{{1, 2}, {0, 1}}));
  EXPECT_EQ(ranges(":, -1", {1, 3}), (Lists{{0}, {2}}));
  EXPECT_EQ(ranges("::-2", {5}), (Lists{{4, 2, 0}}));
  EXPECT_EQ(ranges("-2:", {5}), (Lists{{3, 4}}));
  EXPECT_EQ(ranges("3:0:-1", {5}), (Lists{{3, 2, 1}}));
  EXPECT_EQ(ranges("2:100", {5}), (Lists{{2, 3, 4}}));
  for (const char* wrong : {"5", "2:2", "a:b", "1:2:3:4", ":,:", "::0", "", "-6", "1:99999999999999999999"})
    EXPECT_WEFT_ERROR(parse_axis_ranges(wrong, {5}), invalid_argument, "'");
}

TEST(Operations, slicing_names_one_tensor_exactly) {
  Model model = two_layers();
  apply(model, "slice", "model.embed_tokens.weight=:3");
  EXPECT_EQ(model.tensors.front().values.tensor->shape, (Shape{3, 2}));
  EXPECT_WEFT_ERROR(apply(model, "slice", "model.embed_token.weight=:3"), not_found, "did you mean 'model.embed_tokens.weight'?");
}

}  // namespace
}  // namespace weft::edit
