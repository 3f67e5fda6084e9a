#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "support/command.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/report.h"

namespace weft {
namespace {

using testing::CommandResult;
using testing::run_weft;

const std::string kModels = std::string(WEFT_SOURCE_DIR) + "/models";

std::vector<std::string> keys_of(const Json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : *object.object()) keys.push_back(key);
  return keys;
}

TEST(MeasureCommand, its_document_is_as_the_contract_says) {
  const CommandResult result = run_weft({"measure", kModels + "/tiny-german", "--base", kModels + "/tiny-base", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const Json document = parse_json(result.out, "stdout");
  EXPECT_EQ(keys_of(document), (std::vector<std::string>{"models", "comparisons", "findings", "warnings"}));
  const Json& model = (*document.find("models")->array())[0];
  EXPECT_EQ(keys_of(model), (std::vector<std::string>{"path", "tensors", "blocks", "model"}));
  for (const Json& tensor : *model.find("tensors")->array()) {
    const std::vector<std::string> keys = keys_of(tensor);
    ASSERT_GE(keys.size(), 6u);
    EXPECT_EQ(std::vector<std::string>(keys.begin(), keys.begin() + 6),
              (std::vector<std::string>{"name", "role", "block", "shape", "values", "skipped"}));
    for (const auto& [measure, value] : *tensor.find("values")->object()) EXPECT_TRUE(value.is_number()) << measure;
    for (const auto& [measure, reason] : *tensor.find("skipped")->object()) {
      EXPECT_TRUE(reason.is_string()) << measure;
      EXPECT_EQ(tensor.find("values")->find(measure), nullptr) << measure << " has a value and a reason why it has none";
    }
    if (tensor.find("shape")->array()->size() == 2) {
      for (const char* measure : {"moments.gini", "weibull.k", "ranks.stable_rank", "powerlaw.alpha"})
        EXPECT_NE(tensor.find("values")->find(measure), nullptr) << measure;
    } else {
      EXPECT_EQ(*tensor.find("skipped")->find("powerlaw.alpha")->string(), "vector");
    }
  }
  EXPECT_EQ(model.find("blocks")->array()->size(), 2u);
  const Json& pair = (*document.find("comparisons")->array())[0];
  EXPECT_EQ(*pair.find("kind")->string(), "pair");
  EXPECT_NE(pair.find("total")->find("intruders.count_left.0.5"), nullptr);
  for (const Json& finding : *document.find("findings")->array())
    EXPECT_EQ(keys_of(finding), (std::vector<std::string>{"severity", "what", "where", "evidence", "rule", "null_rate"}));
}

TEST(MeasureCommand, its_table_has_a_line_for_each_tensor_and_quotes_what_needs_it) {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "m.safetensors", testing::safetensors_of({{"a,\\\"b", {1, 2, 3}}, {"plain", {4, 5}}}));
  const CommandResult result = run_weft({"measure", folder / "m.safetensors", "--what", "moments", "--csv", "-"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(result.out.starts_with("model,name,role,block,shape,moments.n,")) << result.out;
  EXPECT_NE(result.out.find(",\"a,\"\"b\",,,3,3,"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find(",plain,,,2,2,"), std::string::npos) << result.out;
}

TEST(MeasureCommand, a_hostile_name_does_not_reach_the_terminal) {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "m.safetensors", testing::safetensors_of({{"\\u001b[2Jx", {1, 2, 3}}}));
  const CommandResult result = run_weft({"measure", folder / "m.safetensors"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.out.find('\x1b'), std::string::npos);
}

TEST(MeasureCommand, wrong_requests_are_refused) {
  const CommandResult unknown = run_weft({"measure", kModels + "/tiny-base", "--what", "rank"});
  EXPECT_EQ(unknown.status, 2);
  EXPECT_NE(unknown.err.find("did you mean ranks?"), std::string::npos) << unknown.err;
  EXPECT_EQ(run_weft({"measure"}).status, 2);
  EXPECT_EQ(run_weft({"measure", "no/such/model"}).status, 2);
  EXPECT_EQ(run_weft({"measure", kModels + "/tiny-base", "--base", "no/such/model"}).status, 2);
  EXPECT_EQ(run_weft({"measure", kModels + "/tiny-base", "--memory", "1MB"}).status, 1);
  EXPECT_EQ(run_weft({"measure", kModels + "/tiny-base", "--what", "moments", "--csv", "/no/such/folder/t.csv"}).status, 1);
}

TEST(MeasureCommand, a_text_shows_what_layers_do) {
  const testing::TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 400; ++i) text += "The " + std::to_string(i) + " men went over the hill and saw " + std::to_string(i * 7 % 13) + " ships. ";
  testing::write_file(folder / "a.txt", text);
  testing::write_file(folder / "b.txt", "Die M\u00e4nner gingen " + text.substr(text.size() / 3));
  const CommandResult result = run_weft({"measure", kModels + "/tiny-german", "--base", kModels + "/tiny-base", "--text", folder / "a.txt", "--text",
                                         folder / "b.txt", "--tokens", "512", "--window", "64", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const Json document = parse_json(result.out, "stdout");
  const Json& model = (*document.find("models")->array())[0];
  for (const char* measure :
       {"text.loss", "utilized_rank.mean_utilisation.0.99", "cka.layers.0.1", "super_weights.count", "language_geometry.0.5.hamming.0.1"})
    EXPECT_NE(model.find("model")->find(measure), nullptr) << measure;
  for (const char* measure : {"heads.all.head_cosine", "importance.lim", "channels.down.max_abs", "w_pca.components.0.99"})
    EXPECT_NE((*model.find("blocks")->array())[1].find("values")->find(measure), nullptr) << measure;
  const Json& total = *(*document.find("comparisons")->array())[0].find("total");
  for (const char* measure : {"cka.debiased.0", "barrier.height"}) EXPECT_NE(total.find(measure), nullptr) << measure;
  EXPECT_EQ(*total.find("barrier.loss.8")->number(), *model.find("model")->find("text.loss")->number());
}

TEST(MeasureCommand, a_group_of_texts_without_a_text_is_refused) {
  const CommandResult result = run_weft({"measure", kModels + "/tiny-base", "--what", "heads"});
  EXPECT_EQ(result.status, 2);
  EXPECT_NE(result.err.find("--text"), std::string::npos) << result.err;
}

TEST(MeasureCommand, a_text_too_short_is_refused_and_one_shorter_than_a_window_is_told) {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "short.txt", "a b");
  EXPECT_EQ(run_weft({"measure", kModels + "/tiny-base", "--what", "heads", "--text", folder / "short.txt"}).status, 2);
  testing::write_file(folder / "line.txt", "The men went over the hill and saw the ships of the sea, and the king was there.");
  const CommandResult result = run_weft({"measure", kModels + "/tiny-base", "--what", "heads", "--text", folder / "line.txt", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("less than one window"), std::string::npos);
}

TEST(MeasureCommand, settings_of_weightwatcher_are_taken_and_others_refused) {
  const CommandResult result =
      run_weft({"measure", kModels + "/tiny-base", "--what", "weightwatcher", "--weightwatcher", "min_evals=200,fix_fingers=clip_xmax", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("fewer than 200 eigenvalues"), std::string::npos);
  EXPECT_NE(result.out.find("weightwatcher.num_fingers"), std::string::npos);
  for (const char* bad : {"xmax=2", "min_evals=x", "plot=1"})
    EXPECT_EQ(run_weft({"measure", kModels + "/tiny-base", "--weightwatcher", bad}).status, 2) << bad;
}

TEST(MeasureCommand, its_report_is_one_file_that_names_the_tensors) {
  if (!can_write_reports()) GTEST_SKIP() << "built without libjs-vega";
  const testing::TemporaryFolder folder;
  const CommandResult result = run_weft(
      {"measure", kModels + "/tiny-german", "--base", kModels + "/tiny-base", "--what", "moments,ranks,difference", "--report", folder / "r.html"});
  ASSERT_EQ(result.status, 0) << result.err;
  const std::string html = testing::read_file(folder / "r.html");
  for (const char* text : {"<!doctype html>", "model.layers.1.mlp.up_proj.weight", "ranks.stable_rank", "difference.relative", "spectrum"})
    EXPECT_NE(html.find(text), std::string::npos) << text;
  const CommandResult diff = run_weft({"diff", kModels + "/tiny-german", kModels + "/tiny-base", "--report", folder / "d.html", "--quiet"});
  ASSERT_EQ(diff.status, 0) << diff.err;
  EXPECT_NE(testing::read_file(folder / "d.html").find("What changed"), std::string::npos);
  const CommandResult unwritable = run_weft({"diff", kModels + "/tiny-german", kModels + "/tiny-base", "--report", folder / "none/d.html"});
  EXPECT_EQ(unwritable.status, 1);
  EXPECT_NE(unwritable.err.find("there is no folder"), std::string::npos) << unwritable.err;
}

}  // namespace
}  // namespace weft
