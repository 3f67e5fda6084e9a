#include "weft/moe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/file.h"
#include "checkpoint/json.h"
#include "model/tokenizer.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"
#include "weft/forward.h"

namespace weft {
namespace {

using testing::read_all;
using testing::TemporaryFolder;
using testing::Tensors;

const std::string kModels = WEFT_SOURCE_DIR "/models/";

std::string config(const std::string& gate, const std::string& more = "", const std::string& of_first = "") {
  return "base_model: " + kModels + "tiny-base\ngate_mode: " + gate + "\nexperts:\n- source_model: " + kModels +
         "tiny-german\n  positive_prompts: [\"Wie geht es dir?\", \"Guten Tag\"]\n  negative_prompts: [\"import os\"]\n" + of_first +
         "- source_model: " + kModels + "tiny-python\n  positive_prompts: [\"def f(x):\"]\n" + more;
}

JobReport build(const std::string& text, const std::filesystem::path& output, std::uint64_t seed = 0) {
  MoeOptions options;
  options.seed = seed;
  return merge_moe(text, "moe.yml", output, options);
}

std::vector<float> values(const Tensors& tensors, const std::string& name) { return testing::values_of(DType::bf16, tensors.at(name)); }

TEST(Moe, a_mixtral_has_the_bases_attention_and_each_experts_network) {
  TemporaryFolder folder;
  static_cast<void>(build(config("random"), folder / "out"));
  const Tensors out = read_all(folder / "out"), base = read_all(kModels + "tiny-base"), german = read_all(kModels + "tiny-german"),
                python = read_all(kModels + "tiny-python");
  EXPECT_EQ(out.at("model.layers.1.self_attn.q_proj.weight"), base.at("model.layers.1.self_attn.q_proj.weight"));
  EXPECT_EQ(out.at("model.layers.0.block_sparse_moe.experts.0.w1.weight"), german.at("model.layers.0.mlp.gate_proj.weight"));
  EXPECT_EQ(out.at("model.layers.1.block_sparse_moe.experts.1.w2.weight"), python.at("model.layers.1.mlp.down_proj.weight"));
  EXPECT_EQ(out.at("model.layers.1.block_sparse_moe.experts.1.w3.weight"), python.at("model.layers.1.mlp.up_proj.weight"));
  EXPECT_EQ(out.size(), base.size() + 2 * (3 + 1));
  const Json json = read_json_file(folder / "out/config.json");
  EXPECT_EQ(*json.find("model_type")->string(), "mixtral");
  EXPECT_EQ(json.find("num_local_experts")->integer(), 2);
  EXPECT_EQ(json.find("rope_theta")->number(), 10000.0);  // Mixtral's own default is another
}

// Compared bit for bit with mergekit 0.1.5 when this was written, for Mixtral, DeepSeek and Qwen2-MoE.
TEST(Moe, a_cheap_embed_router_is_the_unit_length_sum_of_the_prompts_embeddings) {
  TemporaryFolder folder;
  static_cast<void>(build(config("cheap_embed"), folder / "out"));
  const auto base = open_checkpoint(kModels + "tiny-base");
  const TensorInfo& embed = base->tensor("model.embed_tokens.weight");
  const auto width = static_cast<std::size_t>(embed.shape[1]);
  const model::Tokenizer tokenizer = model::Tokenizer::open(kModels + "tiny-base");
  std::string bos;
  for (const model::NamedToken& token : tokenizer.named_tokens())
    if (token.name == "bos_token") bos = token.token;
  const auto unit = [](std::vector<double> x) {
    double sum = 0;
    for (const double v : x) sum += v * v;
    for (double& v : x) v /= std::sqrt(sum);
    return x;
  };
  const auto sum_of = [&](const std::vector<std::string>& prompts) {
    std::vector<double> sum(width, 0.0);
    for (const std::string& prompt : prompts) {
      for (const std::uint32_t id : tokenizer.ids(bos + prompt, false)) {
        std::vector<std::byte> row(width * 2);
        base->read_bytes(embed, id * row.size(), row);
        const std::vector<float> decoded = testing::values_of(DType::bf16, row);
        for (std::size_t i = 0; i < width; ++i) sum[i] += static_cast<double>(decoded[i]);
      }
    }
    return unit(sum);
  };
  std::vector<double> want = sum_of({"Wie geht es dir?", "Guten Tag"});
  const std::vector<double> minus = sum_of({"import os"});
  for (std::size_t i = 0; i < width; ++i) want[i] -= minus[i];
  want = unit(want);
  const Tensors out = read_all(folder / "out");
  for (const char* name : {"model.layers.0.block_sparse_moe.gate.weight", "model.layers.1.block_sparse_moe.gate.weight"}) {
    const std::vector<float> got = values(out, name);
    ASSERT_EQ(got.size(), 2 * width);
    for (std::size_t i = 0; i < width; ++i)
      ASSERT_NEAR(static_cast<double>(got[i]), want[i], std::abs(want[i]) / 256 + 1e-9) << name << " " << i;  // one rounding to bfloat16
  }
}

TEST(Moe, a_hidden_router_is_the_unit_length_state_that_enters_each_layer) {
  TemporaryFolder folder;
  build(config("hidden"), folder / "last");
  build(config("hidden_avg"), folder / "mean");
  const model::Tokenizer tokenizer = model::Tokenizer::open(kModels + "tiny-base");
  std::string bos;
  for (const model::NamedToken& token : tokenizer.named_tokens())
    if (token.name == "bos_token") bos = token.token;
  const std::vector<ForwardInput> inputs = {{.ids = tokenizer.ids(bos + "def f(x):", false), .types = {}, .text = {}}};
  ForwardOptions options;
  options.what = ForwardOptions::What::blocks;
  static_cast<void>(forward(kModels + "tiny-base", inputs, folder / "states.safetensors", options));
  const std::vector<float> states = testing::values_of(DType::f32, read_all(folder / "states.safetensors").at("0.block0"));
  const std::size_t width = 256, tokens = states.size() / width;
  for (const bool mean : {false, true}) {
    std::vector<double> want(width, 0.0);
    for (std::size_t t = mean ? 0 : tokens - 1; t < tokens; ++t)
      for (std::size_t i = 0; i < width; ++i) want[i] += static_cast<double>(states[t * width + i]);
    double square = 0;
    for (const double x : want) square += x * x;
    // The second expert has no negative prompts. Its row of the second layer is what the first block gives.
    const std::vector<float> got = values(read_all(folder / (mean ? "mean" : "last")), "model.layers.1.block_sparse_moe.gate.weight");
    for (std::size_t i = 0; i < width; ++i)
      ASSERT_NEAR(static_cast<double>(got[width + i]), want[i] / std::sqrt(square), std::abs(want[i]) / std::sqrt(square) / 256 + 1e-6);
  }
}

TEST(Moe, random_routers_have_their_distribution_and_follow_the_seed) {
  TemporaryFolder folder;
  static_cast<void>(build(config("random"), folder / "a", 1));
  static_cast<void>(build(config("random"), folder / "b", 1));
  static_cast<void>(build(config("random"), folder / "c", 2));
  static_cast<void>(build(config("uniform_random"), folder / "u"));
  EXPECT_EQ(read_all(folder / "a"), read_all(folder / "b"));
  EXPECT_NE(read_all(folder / "a"), read_all(folder / "c"));
  const std::vector<float> normal = values(read_all(folder / "a"), "model.layers.0.block_sparse_moe.gate.weight");
  double mean = 0, square = 0;
  for (const float x : normal) mean += static_cast<double>(x), square += static_cast<double>(x) * static_cast<double>(x);
  const auto n = static_cast<double>(normal.size());
  EXPECT_LT(std::abs(mean / n), 4 / std::sqrt(n));
  EXPECT_LT(std::abs(square / n - 1), 4 * std::sqrt(2 / n));
  for (const float x : values(read_all(folder / "u"), "model.layers.0.block_sparse_moe.gate.weight"))
    EXPECT_LE(std::abs(x), 1 / std::sqrt(256.F) * 1.004F);
}

TEST(Moe, noise_and_residual_scale_change_what_they_say) {
  TemporaryFolder folder;
  static_cast<void>(build(config("random", "", "  residual_scale: 0.5\n"), folder / "scaled"));
  static_cast<void>(build(config("random", "", "  noise_scale: 0.25\n"), folder / "noisy"));
  const Tensors german = read_all(kModels + "tiny-german"), scaled = read_all(folder / "scaled"), noisy = read_all(folder / "noisy");
  const std::vector<float> down = values(german, "model.layers.0.mlp.down_proj.weight"),
                           half = values(scaled, "model.layers.0.block_sparse_moe.experts.0.w2.weight");
  for (std::size_t i = 0; i < down.size(); ++i) ASSERT_EQ(half[i], down[i] / 2);
  EXPECT_EQ(scaled.at("model.layers.0.block_sparse_moe.experts.0.w1.weight"), german.at("model.layers.0.mlp.gate_proj.weight"));
  const std::vector<float> with_noise = values(noisy, "model.layers.0.block_sparse_moe.experts.0.w2.weight");
  double square = 0;
  for (std::size_t i = 0; i < down.size(); ++i) square += std::pow(static_cast<double>(with_noise[i]) - static_cast<double>(down[i]), 2);
  EXPECT_NEAR(std::sqrt(square / static_cast<double>(down.size())), 0.25, 0.25 * 5 / std::sqrt(2.0 * static_cast<double>(down.size())) + 0.25 / 128);
}

TEST(Moe, a_shared_expert_makes_a_deepseek_or_with_prompts_a_qwen_mixture) {
  TemporaryFolder folder;
  const std::string shared = "shared_experts:\n- source_model: " + kModels + "tiny-base\n";
  static_cast<void>(build(config("cheap_embed", shared), folder / "d"));
  const Tensors d = read_all(folder / "d"), base = read_all(kModels + "tiny-base");
  EXPECT_EQ(d.at("model.layers.0.mlp.shared_experts.up_proj.weight"), base.at("model.layers.0.mlp.up_proj.weight"));
  EXPECT_EQ(read_json_file(folder / "d/config.json").find("n_shared_experts")->integer(), 1);
  static_cast<void>(build(config("cheap_embed", shared + "  positive_prompts: [hello]\n"), folder / "q"));
  const Tensors q = read_all(folder / "q");
  EXPECT_EQ(q.at("model.layers.0.mlp.shared_expert.up_proj.weight"), base.at("model.layers.0.mlp.up_proj.weight"));
  EXPECT_EQ(q.at("model.layers.0.mlp.shared_expert_gate.weight").size(), 256u * 2);
  EXPECT_EQ(q.at("model.layers.0.self_attn.k_proj.bias"), std::vector<std::byte>(128 * 2));  // Qwen2 has biases, this base has none
  EXPECT_EQ(*read_json_file(folder / "q/config.json").find("model_type")->string(), "qwen2_moe");
}

TEST(Moe, what_is_wrong_with_a_config_is_said_before_anything_is_written) {
  TemporaryFolder folder;
  const auto refuses = [&](const std::string& text, ErrorCode code, const char* phrase) {
    const auto error = testing::error_of([&] { static_cast<void>(build(text, folder / "out")); });
    ASSERT_TRUE(error.has_value()) << text;
    EXPECT_EQ(to_string(error->code()), to_string(code)) << error->what();
    EXPECT_THAT(error->what(), ::testing::HasSubstr(phrase));
    EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  };
  refuses("[]", ErrorCode::invalid_argument, "no mapping");
  refuses("base_model: a\nexperts: []\n", ErrorCode::invalid_argument, "there are no experts");
  refuses(config("chep_embed"), ErrorCode::invalid_argument, "unknown gate_mode");
  refuses(config("random", "experts_per_token: 3\n"), ErrorCode::invalid_argument, "fewer than experts_per_token");
  refuses(config("random", "expert_per_token: 1\n"), ErrorCode::invalid_argument, "did you mean experts_per_token?");
  refuses(config("random", "architecture: gemma\n"), ErrorCode::invalid_argument, "no architecture 'gemma'");
  refuses(config("random", "architecture: qwen\n"), ErrorCode::invalid_argument, "exactly one shared expert");
  refuses("base_model: x\ngate_mode: cheap_embed\nexperts: [{source_model: a}, {source_model: b}]\n", ErrorCode::invalid_argument,
          "no positive prompts");
  refuses("base_model: x\ngate_mode: cheap_embed\nexperts: [{source_model: a, positive_prompts: [p]}, {source_model: b, positive_prompts: [p]}]\n",
          ErrorCode::invalid_argument, "are the same");
  refuses("base_model: " + kModels + "tiny-base\ngate_mode: uniform_random\nexperts: [{source_model: a}, {source_model: a}]\n",
          ErrorCode::invalid_argument, "the same model");
  refuses("base_model: " + kModels + "tiny-base\ngate_mode: random\nexperts: [{source_model: " + kModels + "absent}, {source_model: a}]\n",
          ErrorCode::not_found, "absent");
}

}  // namespace
}  // namespace weft
