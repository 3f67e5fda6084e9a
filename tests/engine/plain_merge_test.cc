#include <gtest/gtest.h>

#include "checkpoint/json.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/read_all.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/layershuffle.h"
#include "weft/merge.h"

namespace weft {
namespace {

using testing::read_all;
using testing::TemporaryFolder;
using testing::Tensors;

/// Two files, each with a tensor of its own, beside a config.json that is nothing to them.
class PlainMerge : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::write_file(folder_ / "a.safetensors", testing::safetensors_of({{"layers.0.w", {1, 2}}, {"layers.7.w", {1, 1}}, {"only_a", {5}}}));
    testing::write_file(folder_ / "b.safetensors", testing::safetensors_of({{"layers.0.w", {3, 6}}, {"layers.7.w", {3, 3}}, {"only_b", {7}}}));
    testing::write_file(folder_ / "config.json", R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","num_hidden_layers":2})");
  }
  Tensors merge(PlainFiles plain, const std::string& more = "") const {
    MergeOptions options;
    options.plain_files = plain;
    options.force = true;
    const std::string config = "merge_method: linear\nmodels:\n- {model: " + (folder_ / "a.safetensors").string() +
                               ", parameters: {weight: [0.5, 1]}}\n- {model: " + (folder_ / "b.safetensors").string() +
                               ", parameters: {weight: [0.5, 0]}}\n" + more;
    static_cast<void>(merge_models(config, "c.yml", folder_ / "out", options));
    return read_all(folder_ / "out");
  }
  static std::vector<float> values(const Tensors& tensors, const std::string& name) { return testing::values_of(DType::f32, tensors.at(name)); }
  TemporaryFolder folder_;
};

TEST_F(PlainMerge, a_tensor_that_is_missing_somewhere_is_an_error_unless_asked_for) {
  EXPECT_WEFT_ERROR(merge(PlainFiles::same_tensors), not_found, "--tensor-union");
  const Tensors shared = merge(PlainFiles::intersection);
  EXPECT_EQ(shared.size(), 2u);
  EXPECT_EQ(values(shared, "layers.0.w"), (std::vector<float>{2, 4}));
  EXPECT_EQ(values(shared, "layers.7.w"), (std::vector<float>{2, 2}));  // numbers in names are no layers: a gradient counts at its beginning
  const Tensors all = merge(PlainFiles::all_tensors);
  EXPECT_EQ(all.size(), 4u);
  EXPECT_EQ(values(all, "only_b"), (std::vector<float>{7}));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out/config.json"));
}

TEST_F(PlainMerge, tensors_that_only_an_unlisted_base_has_are_not_written) {
  testing::write_file(folder_ / "base.safetensors", testing::safetensors_of({{"layers.0.w", {0, 0}}, {"layers.7.w", {0, 0}}, {"only_base", {1}}}));
  MergeOptions options;
  options.plain_files = PlainFiles::intersection;
  const std::string config = "merge_method: task_arithmetic\nbase_model: " + (folder_ / "base.safetensors").string() +
                             "\nmodels:\n- {model: " + (folder_ / "a.safetensors").string() + ", parameters: {weight: 2}}\n";
  static_cast<void>(merge_models(config, "c.yml", folder_ / "out", options));
  const Tensors out = read_all(folder_ / "out");
  EXPECT_EQ(out.size(), 2u);
  EXPECT_EQ(values(out, "layers.0.w"), (std::vector<float>{2, 4}));
}

TEST_F(PlainMerge, files_have_no_tokenizer_and_no_layers) {
  EXPECT_WEFT_ERROR(merge(PlainFiles::intersection, "tokenizer_source: base\n"), invalid_argument, "no tokenizer");
}

TEST(LayerShuffle, every_layer_is_taken_from_one_of_the_models_in_its_place) {
  LayerShuffleOptions options;
  options.models = {WEFT_SOURCE_DIR "/models/tiny-german", WEFT_SOURCE_DIR "/models/tiny-python"};
  bool differ = false;
  for (options.seed = 0; options.seed < 8; ++options.seed) {
    const std::string config = layershuffle_config(options);
    EXPECT_EQ(config, layershuffle_config(options));
    TemporaryFolder folder;
    static_cast<void>(merge_models(config, "c.yml", folder / "out"));
    const Tensors out = read_all(folder / "out"), german = read_all(options.models[0]), python = read_all(options.models[1]);
    for (const char* name : {"model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"})
      EXPECT_TRUE(out.at(name) == german.at(name) || out.at(name) == python.at(name)) << name;
    differ = differ || (config.find("german") != std::string::npos && config.find("python") != std::string::npos);
  }
  EXPECT_TRUE(differ);
}

TEST(LayerShuffle, bad_requests_are_refused) {
  LayerShuffleOptions options;
  EXPECT_WEFT_ERROR(layershuffle_config(options), invalid_argument, "no models");
  options.models = {WEFT_SOURCE_DIR "/models/tiny-german"};
  options.weights = {1, 2};
  EXPECT_WEFT_ERROR(layershuffle_config(options), invalid_argument, "1 models have 2 weights");
  options.weights = {-1};
  EXPECT_WEFT_ERROR(layershuffle_config(options), invalid_argument, "negative");
  options.weights = {1e9};
  options.full_random = true;
  EXPECT_WEFT_ERROR(layershuffle_config(options), invalid_argument, "more layers than any model");
}

}  // namespace
}  // namespace weft
