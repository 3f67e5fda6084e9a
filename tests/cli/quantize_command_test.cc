#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "checkpoint/json.h"
#include "support/command.h"
#include "support/temporary_folder.h"

// `weft quantize` into folders, and what other commands make of them.
namespace weft::testing {
namespace {

namespace fs = std::filesystem;
const std::string kModel = (fs::path(WEFT_SOURCE_DIR) / "models/tiny-base").string();

Json json_of(const CommandResult& result) {
  EXPECT_EQ(result.status, 0) << result.err;
  return parse_json(result.out, "stdout");
}
std::string error_code(const CommandResult& result) {
  EXPECT_EQ(result.status, 2) << result.err;
  const Json document = parse_json(result.out, "stdout");
  return *document.find("error")->find("code")->string();
}

TEST(QuantizeCommand, a_packed_folder_is_a_model_for_every_command) {
  const TemporaryFolder folder;
  const std::string out = folder / "packed", plain = folder / "plain", text = folder / "text.txt";
  std::string words;
  for (int i = 0; i < 400; ++i) words += "and god said let there be light. ";
  write_file(text, words);
  const Json report = json_of(run_weft({"quantize", kModel,    out,  "--format",      "gptq_v2", "--method",       "gptq", "--bits",
                                        "4",        "--group", "64", "--calibration", text,      "--sequences",    "4",    "--length",
                                        "64",       "--eval",  text, "--eval-window", "64",      "--eval-windows", "4",    "--json"}));
  const Json& details = *report.find("details");
  EXPECT_EQ(details.find("layers")->array()->size(), 14u);
  for (const Json& layer : *details.find("layers")->array()) {
    EXPECT_EQ(*layer.find("method")->string(), "gptq");
    EXPECT_GT(*layer.find("relative_loss")->number(), 0);
    EXPECT_LT(*layer.find("relative_loss")->number(), 0.1);
  }
  // A weight is one of the model's, however many of them an integer of the file holds.
  EXPECT_NEAR(*report.find("bits_per_weight")->number(), 7.9, 0.2);
  EXPECT_NEAR(*details.find("linear_bits_per_weight")->number(), 4.4, 0.2);
  EXPECT_GT(*details.find("eval")->array()->front().find("kl_mean")->number(), 0);

  const Json info = json_of(run_weft({"info", out, "--json"}));
  EXPECT_EQ(*info.find("quantization")->string(), "gptq 4-bit gptq_v2");
  EXPECT_EQ(*info.find("num_parameters")->integer(), *json_of(run_weft({"info", kModel, "--json"})).find("num_parameters")->integer());
  EXPECT_EQ(run_weft({"verify", out}).status, 0);
  EXPECT_EQ(run_weft({"generate", out, "--prompt", "the", "--max-tokens", "3", "--greedy"}).status, 0);
  EXPECT_EQ(run_weft({"convert", out, plain}).status, 0);
  EXPECT_EQ(run_weft({"diff", out, plain, "--exit-code"}).status, 0);
  const std::string config = folder / "merge.yml";
  write_file(config, "merge_method: linear\nmodels:\n  - {model: " + out + ", parameters: {weight: 0.5}}\n  - {model: " + kModel +
                         ", parameters: {weight: 0.5}}\ndtype: bfloat16\n");
  EXPECT_EQ(run_weft({"merge", config, folder / "merged"}).status, 0);
  EXPECT_EQ(read_file(folder / "merged/config.json").find("quantization_config"), std::string::npos);
}

TEST(QuantizeCommand, a_budget_is_kept_in_bits_of_the_layers_or_in_bytes_of_the_model) {
  const TemporaryFolder folder;
  const std::string out = folder / "out";
  const Json bits = json_of(run_weft({"quantize", kModel, out, "--format", "gptq", "--group", "64", "--budget", "3.7bpw", "--json"}));
  const Json& details = *bits.find("details");
  EXPECT_LE(*details.find("linear_bits_per_weight")->number(), 3.7);
  EXPECT_GT(*details.find("linear_bits_per_weight")->number(), 3.4);
  EXPECT_GT(*bits.find("bits_per_weight")->number(), *details.find("linear_bits_per_weight")->number());
  const std::int64_t size = *bits.find("size_bytes")->integer();
  const Json bytes =
      json_of(run_weft({"quantize", kModel, out, "--force", "--format", "gptq", "--group", "64", "--budget", std::to_string(size - 1), "--json"}));
  EXPECT_LT(*bytes.find("size_bytes")->integer(), size);
  EXPECT_EQ(run_weft({"verify", out}).status, 0);
}

TEST(QuantizeCommand, a_recipe_quantizes_what_its_steps_make_as_if_it_had_been_written_first) {
  const TemporaryFolder folder;
  const std::string other = (fs::path(WEFT_SOURCE_DIR) / "models/tiny-python").string(), text = folder / "text.txt";
  std::string words;
  for (int i = 0; i < 400; ++i) words += "and god said let there be light. ";
  write_file(text, words);
  const std::string merge = "merge_method: linear, models: [{model: " + kModel + ", parameters: {weight: 0.5}}, {model: " + other +
                            ", parameters: {weight: 0.5}}], dtype: bfloat16";
  write_file(folder / "merge.yml", "{" + merge + "}\n");
  ASSERT_EQ(run_weft({"merge", folder / "merge.yml", folder / "merged"}).status, 0);
  const auto run_recipe = [&](const std::string& step, const std::string& out) {
    write_file(folder / "recipe.yml", "steps:\n- {name: soup, merge: {" + merge + "}}\n- quantize: " + step + "\n");
    const Json report = json_of(run_weft({"run", folder / "recipe.yml", out, "--json"}));
    const Json::Array& steps = *report.find("details")->find("steps")->array();
    EXPECT_EQ(*steps.back().find("verb")->string(), "quantize");
    EXPECT_GT(*report.find("bytes_read")->integer(), 0);
  };
  run_recipe("gguf:Q4_K_M", folder / "soup.gguf");
  ASSERT_EQ(run_weft({"quantize", folder / "merged", folder / "merged.gguf", "--format", "gguf:Q4_K_M"}).status, 0);
  EXPECT_EQ(run_weft({"diff", folder / "soup.gguf", folder / "merged.gguf", "--exit-code"}).status, 0);
  run_recipe("{format: gptq, method: gptq, group: 64, calibration: " + text + ", sequences: 4, length: 64, rules: [down_proj=8/32]}",
             folder / "soup");
  ASSERT_EQ(run_weft({"quantize", folder / "merged", folder / "packed", "--format", "gptq", "--method", "gptq", "--group", "64", "--calibration",
                      text, "--sequences", "4", "--length", "64", "--rule", "down_proj=8/32"})
                .status,
            0);
  EXPECT_EQ(run_weft({"diff", folder / "soup", folder / "packed", "--exit-code"}).status, 0);
  EXPECT_EQ(read_file(folder / "soup/quantize_config.json"), read_file(folder / "packed/quantize_config.json"));
}

TEST(QuantizeCommand, rules_in_a_file_give_layers_bits_groups_and_what_finds_their_codes) {
  const TemporaryFolder folder;
  const std::string text = folder / "text.txt";
  std::string words;
  for (int i = 0; i < 400; ++i) words += "and god said let there be light. ";
  write_file(text, words);
  write_file(folder / "rules.txt", "# of layers\ndown_proj=8/32/rtn  [qk]_proj=rtn\no_proj=keep\n");
  const Json report = json_of(run_weft({"quantize", kModel, folder / "out", "--format", "gptq", "--method", "gptq", "--group", "64", "--calibration",
                                        text, "--sequences", "4", "--length", "64", "--rules", folder / "rules.txt", "--json"}));
  EXPECT_GT(*report.find("bytes_read")->integer(), 1'000'000) << "the model is read";
  for (const Json& layer : *report.find("details")->find("layers")->array()) {
    const std::string& name = *layer.find("name")->string();
    const bool rounds =
        name.find("down_proj") != std::string::npos || name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos;
    EXPECT_EQ(*layer.find("method")->string(), rounds ? "rtn" : "gptq") << name;
    EXPECT_EQ(name.find("o_proj"), std::string::npos);
    if (name.find("down_proj") != std::string::npos) {
      EXPECT_GT(*layer.find("bits")->number(), 8);
    }
  }
  write_file(folder / "dynamic.json", R"({"-:.*layers\\.0\\.": {}, "+:.*down_proj$": {"bits": 8, "group_size": 32}})");
  const Json other =
      json_of(run_weft({"quantize", kModel, folder / "other", "--format", "gptq", "--group", "64", "--rules", folder / "dynamic.json", "--json"}));
  EXPECT_EQ(other.find("details")->find("layers")->array()->size(), 7u);
  EXPECT_EQ(run_weft({"verify", folder / "other"}).status, 0);
  write_file(folder / "rules.txt", "down_proj=awq\n");
  EXPECT_EQ(error_code(run_weft({"quantize", kModel, folder / "third", "--format", "gptq", "--rules", folder / "rules.txt", "--json"})),
            "invalid_argument");
}

TEST(QuantizeCommand, a_report_shows_what_was_lost_and_a_text_too_short_is_refused_before_the_work) {
  const TemporaryFolder folder;
  const std::string text = folder / "text.txt", page = folder / "page.html";
  write_file(text, "too short");
  EXPECT_EQ(error_code(run_weft({"quantize", kModel, folder / "out", "--format", "gptq", "--group", "64", "--eval", text, "--json"})),
            "invalid_argument");
  EXPECT_FALSE(fs::exists(folder / "out"));
  const CommandResult result = run_weft({"quantize", kModel, folder / "out", "--format", "gptq", "--group", "64", "--report", page});
  if (result.status == 2 && result.err.find("libjs-vega") != std::string::npos) GTEST_SKIP() << "this build has no reports";
  ASSERT_EQ(result.status, 0) << result.err;
  const std::string html = read_file(page);
  EXPECT_NE(html.find("What the weights lost"), std::string::npos);
  EXPECT_NE(html.find("model.layers.1.mlp.down_proj.weight"), std::string::npos);
  EXPECT_NE(html.find("size before"), std::string::npos);
}

TEST(QuantizeCommand, what_cannot_be_ends_with_2_and_leaves_nothing) {
  const TemporaryFolder folder;
  const std::string out = folder / "out";
  const auto code = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = {"quantize", kModel, out, "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return error_code(run_weft(arguments));
  };
  EXPECT_EQ(code({"--format", "gptq", "--method", "gptq"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--bits", "7"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--group", "100"}), "unsupported");
  EXPECT_EQ(code({"--format", "gptq", "--rule", "q_proj=many"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--rule", "nothing_like_it=keep"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--symmetric", "--asymmetric"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--pure"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "awq", "--damping", "much"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--budget", "1.5bpw"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--budget", "10KiB"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--budget", "small"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--budget", "xbpw"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gptq", "--budget", "4bpw", "--bits", "4"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gguf:Q4_0", "--budget", "4bpw"}), "unsupported");
  EXPECT_EQ(code({"--format", "gptq", "--eval", folder / "nothing.txt"}), "not_found");
  EXPECT_EQ(code({"--format", "gguf:Q4_0", "--bits", "8"}), "invalid_argument");
  EXPECT_EQ(code({"--format", "gguf:Q4_0", "--calibration", kModel + "/config.json"}), "invalid_argument");
  EXPECT_TRUE(tree(folder.path()).empty());
}

}  // namespace
}  // namespace weft::testing
