#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <optional>
#include <stdexcept>
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

std::string some_text() {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "The " + std::to_string(i) + " men went over the hill and saw " + std::to_string(i * 7 % 13) + " ships. ";
  return text;
}

TEST(MeasureCommand, the_loss_around_a_model_curves_as_torch_says) {
  const std::string text = std::string(WEFT_SOURCE_DIR) + "/claims/text/english.txt";
  const CommandResult result = run_weft({"measure", kModels + "/tiny-base", "--what", "hessian,landscape", "--text", text, "--window", "64",
                                         "--tokens", "128", "--curvature", "tokens=128,steps=14,samples=1,points=21,plane=no", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const Json document = parse_json(result.out, "stdout");
  const Json& model = *(*document.find("models")->array())[0].find("model");
  const auto number = [&model](const std::string& name) { return model.find(name) == nullptr ? std::nan("") : *model.find(name)->number(); };
  EXPECT_EQ(number("hessian.tokens"), 128);
  // Forty steps of Lanczos over double backward passes in float64 of the same two windows; differences of float32 gradients come within one percent.
  EXPECT_NEAR(number("hessian.loss"), 3.6234273, 1e-5);
  EXPECT_NEAR(number("hessian.top.0"), 50.348, 0.01 * 50.348);
  EXPECT_NEAR(number("hessian.top.1"), 44.304, 0.01 * 44.304);
  EXPECT_LT(number("hessian.top_error.0"), 0.1);
  EXPECT_LT(number("hessian.asymmetry"), 0.005);
  // Along the Hessian's directions the loss begins as a parabola of curvature 2: second differences over one step and over two, without the next term
  // of the series.
  EXPECT_NEAR(number("landscape.line.hessian_0.length"), std::sqrt(2 / number("hessian.top.0")), 1e-6);
  for (const char* axis : {"hessian_0", "hessian_1"}) {
    const auto loss = [&](int i) { return number(std::string("landscape.line.") + axis + ".loss." + std::to_string(i)); };
    const auto difference = [&](int steps) { return (loss(10 - steps) - 2 * loss(10) + loss(10 + steps)) / (0.01 * steps * steps); };
    EXPECT_NEAR((4 * difference(1) - difference(2)) / 3, 2, 0.05) << axis;
    EXPECT_NEAR(number(std::string("landscape.line.") + axis + ".curvature"), difference(1), 1e-9) << axis;
  }
  for (const char* axis : {"random_0", "random_1", "hessian_0", "hessian_1"})
    EXPECT_NEAR(number(std::string("landscape.line.") + axis + ".loss.10"), number("hessian.loss"), 1e-5) << axis;
  EXPECT_GT(number("landscape.line.random_0.rise"), 0.1);
  EXPECT_TRUE(std::isnan(number("landscape.plane.0.0")));
}

TEST(MeasureCommand, threads_change_nothing_in_the_loss_s_surroundings) {
  const std::string text = std::string(WEFT_SOURCE_DIR) + "/claims/text/english.txt";
  std::string first;
  for (const char* threads : {"1", "3"}) {
    const CommandResult result = run_weft({"measure", kModels + "/tiny-base", "--what", "hessian,landscape,clamp", "--text", text, "--window", "32",
                                           "--tokens", "32", "--curvature", "tokens=32,steps=3,samples=0,points=3", "--json", "--threads", threads});
    ASSERT_EQ(result.status, 0) << result.err;
    if (first.empty()) first = result.out;
    EXPECT_EQ(result.out, first);
  }
}

TEST(MeasureCommand, the_loss_over_a_plane_has_the_model_in_its_middle) {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "a.txt", some_text());
  const CommandResult result = run_weft({"measure", kModels + "/tiny-base", "--what", "landscape", "--text", folder / "a.txt", "--window", "32",
                                         "--tokens", "32", "--curvature", "tokens=32,points=3,normalise=layer", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const Json document = parse_json(result.out, "stdout");
  const Json& entry = (*document.find("models")->array())[0];
  const Json& model = *entry.find("model");
  EXPECT_NEAR(*model.find("landscape.plane.1.1")->number(), *model.find("landscape.loss")->number(), 1e-5);
  for (const char* corner : {"0.0", "0.2", "2.0", "2.2"}) EXPECT_NE(model.find(std::string("landscape.plane.") + corner), nullptr) << corner;
  EXPECT_EQ(*model.find("landscape.plane.2.1")->number(), *model.find("landscape.line.random_0.loss.2")->number());
  EXPECT_NE(entry.find("skipped")->find("landscape.line.hessian_0"), nullptr);
  EXPECT_EQ(*entry.find("labels")->find("landscape.normalise")->string(), "layer");
}

TEST(MeasureCommand, requests_about_the_loss_s_surroundings_that_make_no_sense_are_refused) {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "a.txt", some_text());
  for (const char* bad :
       {"points=4", "points=1", "steps=1", "runs=0", "normalise=rows", "plane=maybe", "tokens=x", "depth=2", "tokens=1", "samples=99999"})
    EXPECT_EQ(run_weft({"measure", kModels + "/tiny-base", "--what", "landscape", "--text", folder / "a.txt", "--curvature", bad}).status, 2) << bad;
  for (const char* bad : {"1", "1:2", "1=2", "1:x=2", "1:2=inf", "1:2=3x", "9:1=1", "0:99999=1", "-1:2=1"})
    EXPECT_EQ(run_weft({"measure", kModels + "/tiny-base", "--what", "clamp", "--text", folder / "a.txt", "--clamp", bad}).status, 2) << bad;
  const CommandResult no_text = run_weft({"measure", kModels + "/tiny-base", "--what", "hessian"});
  EXPECT_EQ(no_text.status, 2);
  EXPECT_NE(no_text.err.find("--text"), std::string::npos) << no_text.err;
  // Too little memory for vectors of all parameters is told, with both numbers.
  const CommandResult small =
      run_weft({"measure", kModels + "/tiny-base", "--what", "hessian", "--text", folder / "a.txt", "--window", "32", "--memory", "60MB", "--json"});
  ASSERT_EQ(small.status, 0) << small.err;
  EXPECT_NE(small.out.find("budget"), std::string::npos) << small.out;
}

TEST(MeasureCommand, a_mixture_of_equal_experts_is_measured_as_the_dense_model) {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "a.txt", some_text());
  testing::write_file(folder / "moe.yml",
                      "base_model: " + kModels +
                          "/tiny-base\ngate_mode: random\ndtype: float32\nexperts_per_token: 2\nexperts:\n  - source_model: " + kModels +
                          "/tiny-base\n    positive_prompts: [a]\n  - source_model: " + kModels + "/tiny-base\n    positive_prompts: [b]\n");
  const CommandResult made = run_weft({"merge", "--moe", "--i-understand-this-is-not-useful-without-training", folder / "moe.yml", folder / "moe"});
  ASSERT_EQ(made.status, 0) << made.err;
  std::vector<Json> documents;
  for (const std::string& model : {kModels + "/tiny-base", std::string(folder / "moe")}) {
    const CommandResult result = run_weft({"measure", model, "--what", "channels,utilized_rank,spectral_alignment,importance,super_weights,clamp",
                                           "--text", folder / "a.txt", "--window", "64", "--tokens", "512", "--json"});
    ASSERT_EQ(result.status, 0) << result.err;
    documents.push_back(parse_json(result.out, "stdout"));
  }
  const auto entry = [](const Json& document, const std::string& name) -> const Json& {
    for (const Json& tensor : *(*document.find("models")->array())[0].find("tensors")->array())
      if (*tensor.find("name")->string() == name) return *tensor.find("values");
    throw std::runtime_error("no tensor " + name);
  };
  const std::string at = "model.layers.1.";
  for (const auto& [dense, expert] : {std::pair("gate_proj", "w1"), std::pair("up_proj", "w3"), std::pair("down_proj", "w2")}) {
    const Json& want = entry(documents[0], at + "mlp." + dense + ".weight");
    for (const char* number : {"0", "1"}) {
      const Json& got = entry(documents[1], at + "block_sparse_moe.experts." + number + "." + expert + ".weight");
      for (const char* key : {"utilized_rank.0.99.utilisation", "spectral_alignment.mean_abs", "spectral_alignment.diversity"}) {
        ASSERT_NE(got.find(key), nullptr) << expert << key;
        EXPECT_NEAR(*got.find(key)->number(), *want.find(key)->number(), 0.01) << expert << key;
      }
    }
  }
  const Json& dense = *(*(*documents[0].find("models")->array())[0].find("blocks")->array())[1].find("values");
  const Json& block = *(*(*documents[1].find("models")->array())[0].find("blocks")->array())[1].find("values");
  for (const char* number : {"0", "1"}) {
    const std::string own = std::string("channels.experts.") + number + ".";
    EXPECT_EQ(*block.find(own + "tokens")->number(), 512);
    for (const char* place : {"mlp", "down"}) {
      const double want = *dense.find(std::string("channels.") + place + ".sum_squares")->number();
      EXPECT_NEAR(*block.find(own + place + ".sum_squares")->number(), want, 1e-4 * want) << place;
    }
  }
  EXPECT_EQ(*block.find("channels.experts.unused")->number(), 0);
  EXPECT_EQ(*block.find("channels.experts.largest_share")->number(), 0.5);
  // What needs a projection that all tokens pass through says so.
  EXPECT_NE(run_weft({"measure", folder / "moe", "--what", "clamp,super_weights", "--text", folder / "a.txt", "--window", "64", "--json"})
                .out.find("all tokens pass through"),
            std::string::npos);
}

TEST(MeasureCommand, checkpoints_of_one_run_have_phases_and_a_model_has_no_barrier_to_itself) {
  const testing::TemporaryFolder folder;
  testing::write_file(folder / "a.txt", some_text());
  const CommandResult result =
      run_weft({"measure", kModels + "/tiny-base", kModels + "/tiny-base", kModels + "/tiny-german", kModels + "/tiny-python", "--what", "phases",
                "--text", folder / "a.txt", "--window", "32", "--tokens", "128", "--json"});
  ASSERT_EQ(result.status, 0) << result.err;
  const Json document = parse_json(result.out, "stdout");
  const Json::Array& comparisons = *document.find("comparisons")->array();
  ASSERT_EQ(comparisons.size(), 3u);
  EXPECT_NEAR(*comparisons[0].find("total")->find("barrier.mc")->number(), 0, 1e-5);
  EXPECT_NEAR(*comparisons[0].find("total")->find("phases.similarity")->number(), 1, 1e-6);
  for (const Json& comparison : comparisons) ASSERT_NE(comparison.find("labels"), nullptr);
  EXPECT_EQ(*comparisons[0].find("labels")->find("phases.phase")->string(), "IV-B");
}

TEST(MeasureCommand, outputs_that_cannot_be_written_are_refused_before_the_work) {
  const testing::TemporaryFolder folder;
  const CommandResult none = run_weft({"measure", kModels + "/tiny-base", "--csv", folder / "no/such/t.csv"});
  EXPECT_EQ(none.status, 1);
  EXPECT_NE(none.err.find("there is no folder"), std::string::npos) << none.err;
  const CommandResult is_folder = run_weft({"measure", kModels + "/tiny-base", "--csv", folder.path()});
  EXPECT_EQ(is_folder.status, 1);
  EXPECT_NE(is_folder.err.find("is a folder"), std::string::npos) << is_folder.err;
  if (!can_write_reports()) return;
  const CommandResult merged =
      run_weft({"merge", std::string(WEFT_SOURCE_DIR) + "/examples/ties.yml", folder / "out", "--report", folder / "none/r.html"});
  EXPECT_EQ(merged.status, 1);
  EXPECT_NE(merged.err.find("there is no folder"), std::string::npos) << merged.err;
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
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
  const CommandResult quantized =
      run_weft({"quantize", kModels + "/tiny-base", folder / "q", "--format", "bnb-nf4", "--report", folder / "q.html", "--quiet"});
  ASSERT_EQ(quantized.status, 0) << quantized.err;
  const std::string page = testing::read_file(folder / "q.html");
  for (const char* text : {"What the weights lost", "loses most", "size before", "bits a weight"}) EXPECT_NE(page.find(text), std::string::npos) << text;
  EXPECT_EQ(run_weft({"quantize", kModels + "/tiny-base", folder / "r.gguf", "--format", "gguf:Q4_0", "--report", folder / "none/q.html"}).status, 1);
  EXPECT_FALSE(std::filesystem::exists(folder / "r.gguf"));
  const CommandResult unwritable = run_weft({"diff", kModels + "/tiny-german", kModels + "/tiny-base", "--report", folder / "none/d.html"});
  EXPECT_EQ(unwritable.status, 1);
  EXPECT_NE(unwritable.err.find("there is no folder"), std::string::npos) << unwritable.err;
}

}  // namespace
}  // namespace weft
