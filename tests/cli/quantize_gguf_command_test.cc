#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "support/command.h"
#include "support/temporary_folder.h"

namespace weft {
namespace {

using testing::CommandResult;
using testing::run_weft;
using testing::TemporaryFolder;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";

TEST(QuantizeGgufCommand, its_document_lists_the_layers) {
  const TemporaryFolder folder;
  const std::string out = (folder / "q.gguf").string();
  const CommandResult result = run_weft({"quantize", kModel, out, "--format", "gguf:Q4_K_M", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const Json document = parse_json(result.out, "stdout");
  EXPECT_EQ(*document.find("output")->string(), out);
  EXPECT_NEAR(*document.find("bits_per_weight")->number(), 5.036, 0.001);
  const Json::Array& layers = *document.find("details")->find("layers")->array();
  ASSERT_EQ(layers.size(), 16u);
  for (const Json& layer : layers) {
    EXPECT_GT(*layer.find("relative_loss")->number(), 0);
    EXPECT_GT(*layer.find("bits")->number(), 4);
  }
  EXPECT_EQ(*layers[0].find("name")->string(), "output.weight");
  EXPECT_EQ(*layers[0].find("method")->string(), "Q6_K");
}

TEST(QuantizeGgufCommand, better_loses_less_in_every_layer_at_the_same_size) {
  const TemporaryFolder folder;
  const auto losses = [&](const std::string& name, std::vector<std::string> more) {
    std::vector<std::string> arguments = {
        "quantize", kModel, (folder / name).string(), "--format", "gguf:Q4_0", "--rule", "attn_[kv]=Q4_0", "--rule", ".=keep", "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const CommandResult result = run_weft(arguments);
    EXPECT_EQ(result.status, 0) << result.err;
    std::vector<double> all;
    const Json document = parse_json(result.out, "stdout");
    for (const Json& layer : *document.find("details")->find("layers")->array()) all.push_back(*layer.find("relative_loss")->number());
    return all;
  };
  const std::vector<double> plain = losses("plain.gguf", {}), better = losses("better.gguf", {"--better"});
  ASSERT_EQ(plain.size(), 4u);
  ASSERT_EQ(better.size(), 4u);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_LT(better[i], plain[i]);
  EXPECT_EQ(std::filesystem::file_size(folder / "plain.gguf"), std::filesystem::file_size(folder / "better.gguf"));
}

TEST(QuantizeGgufCommand, wrong_requests_end_with_2_and_say_what_to_do) {
  const TemporaryFolder folder;
  const std::string out = (folder / "q.gguf").string();
  const auto fails = [&](const std::vector<std::string>& more, const std::string& with) {
    std::vector<std::string> arguments = {"quantize", kModel, out};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const CommandResult result = run_weft(arguments);
    EXPECT_EQ(result.status, 2);
    EXPECT_NE(result.err.find(with), std::string::npos) << result.err;
    EXPECT_FALSE(std::filesystem::exists(out));
  };
  fails({}, "--format");
  fails({"--format", "gguf:Q4_KM"}, "did you mean gguf:Q4_K_M?");
  fails({"--format", "gguf:Q2_K_S"}, "--imatrix FILE");
  fails({"--format", "gguf:Q4_0", "--tensor-type", "nothing=Q8_0"}, "no weight matches 'nothing'");
  fails({"--format", "gguf:Q4_0", "--tensor-type", "Q8_0"}, "is not PATTERN=TYPE");
  fails({"--format", "gguf:Q4_0", "--prune-layers", "0,x"}, "'x' is no layer");
  fails({"--format", "gguf:Q4_0", "--imatrix", kModel + "/config.json"}, "is no importance matrix");
}

TEST(QuantizeGgufCommand, the_table_is_in_the_order_of_the_file_for_any_number_of_threads) {
  const TemporaryFolder folder;
  std::vector<std::string> names;
  for (const std::string threads : {"1", "2", "5"}) {
    const CommandResult result =
        run_weft({"quantize", kModel, (folder / threads).string() + ".gguf", "--format", "gguf:Q4_K_M", "--threads", threads});
    ASSERT_EQ(result.status, 0) << result.err;
    std::istringstream lines(result.out);
    std::vector<std::string> own;
    for (std::string line, name; std::getline(lines, line);)
      if (std::istringstream(line) >> name && name.find(".weight") != std::string::npos) own.push_back(name);
    if (names.empty()) names = own;
    EXPECT_EQ(own, names);
  }
  ASSERT_EQ(names.size(), 16u);
  EXPECT_EQ(names.front(), "output.weight");
  EXPECT_EQ(names[2], "blk.0.attn_k.weight");
}

TEST(QuantizeGgufCommand, rules_come_from_a_file_too) {
  const TemporaryFolder folder;
  std::ofstream(folder / "rules.txt") << "# by hand\nffn_down=Q8_0  attn_v=keep\n";
  const CommandResult result =
      run_weft({"quantize", kModel, (folder / "q.gguf").string(), "--format", "gguf:Q4_0", "--rules", (folder / "rules.txt").string(), "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  int count = 0;
  const Json document = parse_json(result.out, "stdout");
  for (const Json& layer : *document.find("details")->find("layers")->array()) {
    const std::string& name = *layer.find("name")->string();
    EXPECT_EQ(name.find("attn_v"), std::string::npos);
    if (name.find("ffn_down") == std::string::npos) continue;
    EXPECT_EQ(*layer.find("method")->string(), "Q8_0");
    ++count;
  }
  EXPECT_EQ(count, 2);
}

}  // namespace
}  // namespace weft
