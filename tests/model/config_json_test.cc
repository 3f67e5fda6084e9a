#include "model/config_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace weft::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Json json(std::string_view text) { return parse_json(text, "config.json"); }
const Architecture& named(std::string_view name) {
  for (const Architecture& a : architectures())
    if (a.name == name) return a;
  return architectures().front();
}

std::string after_layers(std::string_view architecture, std::string_view text, std::vector<int> layers,
                         std::vector<std::string>* warnings = nullptr) {
  Json config = json(text);
  std::vector<std::string> ignored;
  set_layers(config, named(architecture), layers, warnings != nullptr ? *warnings : ignored);
  return write_json(config);
}

TEST(ConfigJson, the_type_goes_under_the_key_that_the_donor_has) {
  const auto after = [](std::string_view text, DType dtype) {
    Json config = json(text);
    set_dtype(config, dtype);
    return write_json(config);
  };
  EXPECT_EQ(after(R"({"a":1,"dtype":"float32","b":2})", DType::bf16), R"({"a":1,"dtype":"bfloat16","b":2})");
  EXPECT_EQ(after(R"({"torch_dtype":"torch.float32"})", DType::f16), R"({"torch_dtype":"float16"})");
  EXPECT_EQ(after(R"({"a":1})", DType::f32), R"({"a":1,"torch_dtype":"float32"})");
  EXPECT_EQ(after(R"({"dtype":"float32","text_config":{"dtype":"float32"}})", DType::bf16),
            R"({"dtype":"bfloat16","text_config":{"dtype":"bfloat16"}})");
}

TEST(ConfigJson, the_type_is_read_from_either_key) {
  EXPECT_EQ(config_dtype(json(R"({"torch_dtype": "bfloat16"})")), DType::bf16);
  EXPECT_EQ(config_dtype(json(R"({"dtype": "torch.float16"})")), DType::f16);
  EXPECT_EQ(config_dtype(json(R"({"text_config": {"dtype": "float32"}})")), DType::f32);
  EXPECT_EQ(config_dtype(json(R"({"dtype": 5})")), std::nullopt);
  EXPECT_EQ(config_dtype(json("{}")), std::nullopt);
}

TEST(ConfigJson, nothing_but_what_is_set_changes) {
  Json config = json(R"({"rope_theta":1e+06,"vocab_size":80,"eps":1.0000000000000001e-05,"big":18446744073709551616})");
  set_vocab_size(config, 96);
  set_tie_word_embeddings(config, true);
  EXPECT_EQ(write_json(config),
            R"({"rope_theta":1e+06,"vocab_size":96,"eps":1.0000000000000001e-05,"big":18446744073709551616,"tie_word_embeddings":true})");
}

TEST(ConfigJson, nested_configs_are_edited_where_the_key_is) {
  Json config = json(R"({"text_config":{"vocab_size":80,"tie_word_embeddings":true}})");
  set_vocab_size(config, 96);
  set_tie_word_embeddings(config, false);
  EXPECT_EQ(write_json(config), R"({"text_config":{"vocab_size":96,"tie_word_embeddings":false}})");
  EXPECT_EQ(after_layers("gemma3", R"({"text_config":{"num_hidden_layers":2,"layer_types":["s","f"]}})", {1, 0, 1}),
            R"({"text_config":{"num_hidden_layers":3,"layer_types":["f","s","f"]}})");
}

TEST(ConfigJson, lists_by_layer_follow_the_layers_used) {
  std::vector<std::string> warnings;
  EXPECT_EQ(after_layers("qwen2", R"({"num_hidden_layers":3,"layer_types":["a","b","c"],"eos_token_id":[1,2,3]})", {0, 1, 1, 2, 2}, &warnings),
            R"({"num_hidden_layers":5,"layer_types":["a","b","b","c","c"],"eos_token_id":[1,2,3]})");
  EXPECT_THAT(warnings, IsEmpty());
  // A layer beyond the donor's takes the kind of its last one.
  EXPECT_EQ(after_layers("qwen2", R"({"num_hidden_layers":2,"layer_types":["a","b"]})", {0, 5}),
            R"({"num_hidden_layers":2,"layer_types":["a","b"]})");
  EXPECT_EQ(after_layers("gpt2", R"({"n_layer":2})", {0}), R"({"n_layer":1})");
  (void)after_layers("qwen2", R"({"num_hidden_layers":3,"layer_types":["a"]})", {0, 1}, &warnings);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("layer_types has 1 entries for 3 layers")));
}

TEST(ConfigJson, dense_layers_of_a_mixture_move_with_their_layers) {
  EXPECT_EQ(after_layers("qwen2_moe", R"({"num_hidden_layers":3,"decoder_sparse_step":1,"mlp_only_layers":[0]})", {0, 1, 0, 2}),
            R"({"num_hidden_layers":4,"decoder_sparse_step":1,"mlp_only_layers":[0,2]})");
  // Experts in every second layer (1, 3): once layers move, only a list can say which.
  EXPECT_EQ(after_layers("qwen2_moe", R"({"num_hidden_layers":4,"decoder_sparse_step":2,"mlp_only_layers":[]})", {1, 3, 0}),
            R"({"num_hidden_layers":3,"decoder_sparse_step":1,"mlp_only_layers":[2]})");
  // The slots of the edited config are those of the layers used.
  Json config = json(R"({"vocab_size":96,"hidden_size":32,"num_attention_heads":4,"intermediate_size":56,"num_experts":2,"num_hidden_layers":4,
    "decoder_sparse_step":2,"mlp_only_layers":[3]})");
  const Json before = config;
  const std::vector<int> layers = {3, 1, 0, 1, 2};
  std::vector<std::string> warnings;
  set_layers(config, named("qwen2_moe"), layers, warnings);
  for (std::size_t i = 0; i < layers.size(); ++i)
    EXPECT_EQ(tensor_slots(named("qwen2_moe"), config, Placement::layer, static_cast<int>(i)).size(),
              tensor_slots(named("qwen2_moe"), before, Placement::layer, layers[i]).size())
        << i;
}

TEST(ConfigJson, patterns_that_the_config_only_implies_are_warned_about) {
  std::vector<std::string> warnings;
  (void)after_layers("gemma2", R"({"model_type":"gemma2","num_hidden_layers":4})", {0, 1, 2, 3, 2, 3}, &warnings);
  EXPECT_THAT(warnings, IsEmpty()) << "the parity is kept";
  (void)after_layers("gemma2", R"({"model_type":"gemma2","num_hidden_layers":4})", {0, 1, 3}, &warnings);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("output layer 2")));
  warnings.clear();
  (void)after_layers("qwen2", R"({"model_type":"qwen2","num_hidden_layers":4,"use_sliding_window":true})", {0, 1}, &warnings);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("max_window_layers")));
}

TEST(ConfigJson, sizes_of_a_small_network_follow_its_layers) {
  std::vector<std::string> warnings;
  EXPECT_EQ(after_layers("mlp", R"({"layer_sizes":[784,512,512,10]})", {0, 1, 1, 2}, &warnings), R"({"layer_sizes":[784,512,512,512,10]})");
  EXPECT_THAT(warnings, IsEmpty());
  (void)after_layers("mlp", R"({"layer_sizes":[784,512,512,10]})", {0, 0}, &warnings);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("takes 784 numbers")));
}

}  // namespace
}  // namespace weft::model
