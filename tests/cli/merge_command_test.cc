#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/json.h"
#include "math/targets.h"
#include "support/command.h"

// The merge command from end to end: mergekit's names and options, determinism, interruption.
namespace weft::testing {
namespace {

namespace fs = std::filesystem;

class MergeCommand : public ::testing::Test {
 protected:
  CommandResult weft(const std::vector<std::string>& arguments, const std::map<std::string, std::string>& environment = {}) const {
    return folder_.weft(arguments, environment);
  }
  /// The command called under another name, as a link would.
  CommandResult as(const std::string& name, const std::vector<std::string>& arguments) const {
    return run_weft(arguments, {.folder = folder_.path(), .called = "/usr/local/bin/" + name});
  }
  [[nodiscard]] std::string weights(const std::string& output) const { return read_file(folder_ / output / "model.safetensors"); }
  ExampleFolder folder_;
};

TEST_F(MergeCommand, the_summary_names_method_models_size_and_time) {
  const CommandResult result = weft({"merge", "examples/ties.yml", "out"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  for (const char* words : {"merged 3 models with ties into out", "21 tensors", "1.71 M parameters", "3.41 MB", "read ", "wrote ", "peak memory "})
    EXPECT_NE(result.out.find(words), std::string::npos) << words << "\n" << result.out;
  EXPECT_EQ(weft({"merge", "examples/ties.yml", "out2", "--quiet"}).out, "");
}

TEST_F(MergeCommand, a_dry_run_folds_layers_and_shows_gradients) {
  const CommandResult result = weft({"merge", "examples/slerp.yml", "out", "--dry-run"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("model.layers.0-1.self_attn.q_proj.weight"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("t=0..1"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("nothing was written"), std::string::npos);
  EXPECT_EQ(weft({"merge", "examples/slerp.yml", "out", "--dry-run", "-v"}).out.find("layers.0-1"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(MergeCommand, every_example_merges_and_its_result_is_sound) {
  for (const auto& entry : fs::directory_iterator(fs::path(WEFT_SOURCE_DIR) / "examples")) {
    if (entry.path().extension() != ".yml") continue;
    const std::string name = entry.path().stem();
    const CommandResult result = weft({"merge", "examples/" + name + ".yml", name, "-I", "stages"});
    EXPECT_EQ(result.status, 0) << name << "\n" << result.err;
    EXPECT_EQ(result.err, "") << name;
    const CommandResult verified = weft({"verify", name});
    EXPECT_EQ(verified.status, 0) << name << "\n" << verified.out << verified.err;
  }
}

TEST_F(MergeCommand, the_same_bytes_for_any_number_of_threads_on_every_target_and_without_fma_and_avx2) {
  for (const std::string name : {"slerp", "ties", "dare-ties", "linear"}) {
    ASSERT_EQ(weft({"merge", "examples/" + name + ".yml", name, "-j", "1"}).status, 0);
    const std::string expected = weights(name);
    for (const char* threads : {"2", "3", "8"}) {
      ASSERT_EQ(weft({"merge", "examples/" + name + ".yml", name, "-j", threads, "--force"}).status, 0);
      EXPECT_EQ(weights(name), expected) << name << " with " << threads << " threads";
    }
    for (const math::SimdTarget& target : math::compiled_targets()) {
      if (!target.supported) continue;
      ASSERT_EQ(weft({"merge", "examples/" + name + ".yml", name, "--force"}, {{"WEFT_SIMD", target.name}}).status, 0) << target.name;
      EXPECT_EQ(weights(name), expected) << name << " on " << target.name;
    }
    // The C library then chooses other versions of its mathematical functions.
    ASSERT_EQ(weft({"merge", "examples/" + name + ".yml", name, "--force"}, {{"GLIBC_TUNABLES", "glibc.cpu.hwcaps=-FMA,-AVX2"}}).status, 0);
    EXPECT_EQ(weights(name), expected) << name << " with another C library";
  }
}

TEST_F(MergeCommand, the_seed_chooses_what_is_dropped) {
  ASSERT_EQ(weft({"merge", "examples/dare-ties.yml", "a", "--seed", "1"}).status, 0);
  ASSERT_EQ(weft({"merge", "examples/dare-ties.yml", "b", "--random-seed", "1"}).status, 0);
  ASSERT_EQ(weft({"merge", "examples/dare-ties.yml", "c", "--seed", "2"}).status, 0);
  EXPECT_EQ(weights("a"), weights("b"));
  EXPECT_NE(weights("a"), weights("c"));
}

TEST_F(MergeCommand, shards_are_cut_where_asked_and_hold_the_same_tensors) {
  ASSERT_EQ(weft({"merge", "examples/linear.yml", "whole"}).status, 0);
  ASSERT_EQ(weft({"merge", "examples/linear.yml", "cut", "--out-shard-size", "1m"}).status, 0);
  EXPECT_TRUE(fs::exists(folder_ / "cut/model.safetensors.index.json"));
  EXPECT_EQ(weft({"diff", "whole", "cut", "--exit-code"}).status, 0);
}

TEST_F(MergeCommand, as_mergekit_yaml_it_writes_into_an_existing_folder) {
  write_file(folder_ / "out/kept.txt", "kept");
  const CommandResult result = as("mergekit-yaml", {"examples/ties.yml",
                                                    "out",
                                                    "--copy-tokenizer",
                                                    "--allow-crimes",
                                                    "--out-shard-size",
                                                    "5B",
                                                    "--lazy-unpickle",
                                                    "--no-cuda",
                                                    "--low-cpu-memory",
                                                    "--lora-merge-cache",
                                                    "cache",
                                                    "--clone-tensors",
                                                    "--random-seed",
                                                    "3",
                                                    "-j",
                                                    "2",
                                                    "--async-write",
                                                    "--write-threads",
                                                    "2",
                                                    "--read-to-gpu",
                                                    "--multi-gpu",
                                                    "--gpu-rich",
                                                    "--safe-serialization",
                                                    "--no-trust-remote-code",
                                                    "--device",
                                                    "cpu",
                                                    "-v",
                                                    "-v"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(read_file(folder_ / "out/kept.txt"), "kept");
  EXPECT_TRUE(fs::exists(folder_ / "out/model.safetensors"));
  EXPECT_TRUE(fs::exists(folder_ / "out/README.md"));
  EXPECT_TRUE(fs::exists(folder_ / "out/mergekit_config.yml"));
  EXPECT_TRUE(fs::exists(folder_ / "out/tokenizer.json"));
  EXPECT_EQ(as("mergekit-yaml", {"examples/ties.yml", "out"}).status, 0) << "again into the same folder";
  EXPECT_NE(as("mergekit-yaml", {"--help"}).out.find("usage: mergekit-yaml CONFIG OUT"), std::string::npos);
}

TEST_F(MergeCommand, what_mergekit_would_copy_can_be_left_out) {
  ASSERT_EQ(weft({"merge", "examples/ties.yml", "out", "--no-copy-tokenizer", "--no-write-model-card"}).status, 0);
  EXPECT_FALSE(fs::exists(folder_ / "out/tokenizer.json"));
  EXPECT_FALSE(fs::exists(folder_ / "out/README.md"));
  EXPECT_TRUE(fs::exists(folder_ / "out/config.json"));
}

TEST_F(MergeCommand, a_graphics_card_is_not_used_and_that_is_said) {
  const CommandResult result = as("mergekit-yaml", {"examples/linear.yml", "out", "--cuda"});
  EXPECT_EQ(result.status, 0);
  EXPECT_NE(result.err.find("computes on the CPU"), std::string::npos) << result.err;
}

TEST_F(MergeCommand, as_mergekit_multi_it_keeps_named_results_and_is_lazy) {
  const std::vector<std::string> arguments = {"examples/staged.yml", "-I", "stages", "--out-path", "out"};
  ASSERT_EQ(as("mergekit-multi", arguments).status, 0);
  EXPECT_TRUE(fs::exists(folder_ / "out/model.safetensors"));
  const auto first = fs::last_write_time(folder_ / "stages/halfway/model.safetensors");
  ASSERT_EQ(as("mergekit-multi", arguments).status, 0);
  EXPECT_EQ(fs::last_write_time(folder_ / "stages/halfway/model.safetensors"), first);
  EXPECT_EQ(as("mergekit-multi", {"examples/staged.yml", "--out-path", "out"}).status, 2) << "-I is required";
}

TEST_F(MergeCommand, a_staged_merge_equals_the_two_merges_one_after_the_other) {
  ASSERT_EQ(weft({"merge", "examples/staged.yml", "out", "-I", "stages"}).status, 0);
  const std::string text = read_file(fs::path(WEFT_SOURCE_DIR) / "examples/staged.yml");
  const std::size_t cut = text.find("\n---\n");
  std::string second = text.substr(cut + 5);
  second.replace(second.find("model: halfway"), 14, "model: ./halfway");
  write_file(folder_ / "first.yml", text.substr(0, cut + 1));
  write_file(folder_ / "second.yml", second);
  ASSERT_EQ(weft({"merge", "first.yml", "halfway"}).status, 0);
  ASSERT_EQ(weft({"merge", "second.yml", "by-hand"}).status, 0);
  EXPECT_EQ(weights("out"), weights("by-hand"));
}

/// A Llama of one layer, large enough to be interrupted; its file is a hole, so it costs no disk.
void write_large_model(const fs::path& folder, std::uint64_t vocabulary, std::uint64_t hidden) {
  fs::create_directories(folder);
  std::string config = read_file(fs::path(WEFT_SOURCE_DIR) / "tests/data/merge/models/base/config.json");
  Json json = parse_json(config, "config.json");
  json.set("num_hidden_layers", Json(1));
  json.set("hidden_size", Json(hidden));
  json.set("vocab_size", Json(vocabulary));
  json.set("intermediate_size", Json(8));
  json.set("num_attention_heads", Json(1));
  json.set("num_key_value_heads", Json(1));
  json.set("head_dim", Json(8));
  write_file(folder / "config.json", write_json(json));
  const std::vector<std::pair<std::string, std::vector<std::uint64_t>>> tensors = {
      {"lm_head.weight", {vocabulary, hidden}},
      {"model.embed_tokens.weight", {vocabulary, hidden}},
      {"model.layers.0.input_layernorm.weight", {hidden}},
      {"model.layers.0.mlp.down_proj.weight", {hidden, 8}},
      {"model.layers.0.mlp.gate_proj.weight", {8, hidden}},
      {"model.layers.0.mlp.up_proj.weight", {8, hidden}},
      {"model.layers.0.post_attention_layernorm.weight", {hidden}},
      {"model.layers.0.self_attn.k_proj.weight", {8, hidden}},
      {"model.layers.0.self_attn.o_proj.weight", {hidden, 8}},
      {"model.layers.0.self_attn.q_proj.weight", {8, hidden}},
      {"model.layers.0.self_attn.v_proj.weight", {8, hidden}},
      {"model.norm.weight", {hidden}},
  };
  Json header;
  std::uint64_t offset = 0;
  for (const auto& [name, shape] : tensors) {
    std::uint64_t size_bytes = 4;
    Json::Array dimensions;
    for (const std::uint64_t dimension : shape) {
      size_bytes *= dimension;
      dimensions.emplace_back(dimension);
    }
    header.set(name, Json(Json::Object{{"dtype", Json("F32")},
                                       {"shape", Json(std::move(dimensions))},
                                       {"data_offsets", Json(Json::Array{Json(offset), Json(offset + size_bytes)})}}));
    offset += size_bytes;
  }
  std::string text = write_json(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(text.size() >> (8 * i));
  write_file(folder / "model.safetensors", bytes + text);
  fs::resize_file(folder / "model.safetensors", 8 + text.size() + offset);
}

TEST_F(MergeCommand, an_interrupted_merge_leaves_nothing_and_says_so) {
  write_large_model(folder_ / "large-a", 100'000, 512);
  write_large_model(folder_ / "large-b", 100'000, 512);
  write_file(folder_ / "config.yml",
             "merge_method: karcher\nmodels: [{model: ./large-a}, {model: ./large-b}]\nparameters: {max_iter: 1000}\ndtype: float32\n");
  fs::create_directory(folder_ / "results");
  const auto started = [&] { return !fs::is_empty(folder_ / "results"); };
  const CommandResult result =
      run_weft({"merge", "config.yml", "results/out", "-j", "1", "--json"}, {.folder = folder_.path(), .interrupt_when = started});
  EXPECT_EQ(result.status, 1) << result.err;
  EXPECT_EQ(*parse_json(result.out, "stdout").find("error")->find("code")->string(), "interrupted") << result.out;
  EXPECT_EQ(tree(folder_ / "results"), std::vector<std::string>{});
}

}  // namespace
}  // namespace weft::testing
