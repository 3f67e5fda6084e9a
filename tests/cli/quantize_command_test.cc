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
