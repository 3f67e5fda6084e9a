#include <gtest/gtest.h>

#include <set>

#include "checkpoint/json.h"
#include "support/command.h"

// The shapes of --json that scripts rely on.
namespace weft::testing {
namespace {

namespace fs = std::filesystem;

const fs::path kModels = fs::path(WEFT_SOURCE_DIR) / "models";

Json document_of(const CommandResult& result) {
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(result.out.ends_with('\n'));
  EXPECT_EQ(result.out.find('\n'), result.out.size() - 1) << "more than one line";
  return parse_json(result.out, "stdout");
}

std::vector<std::string> keys_of(const Json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : *object.object()) keys.push_back(key);
  return keys;
}

using Keys = std::vector<std::string>;

const Keys kReportKeys = {"output",     "files",         "num_tensors",       "size_bytes", "bits_per_weight", "elapsed_seconds",
                          "bytes_read", "bytes_written", "peak_memory_bytes", "warnings",   "details"};

TEST(JsonShape, info_is_as_the_contract_says) {
  const Json info = document_of(run_weft({"info", kModels / "tiny-base", "--json"}));
  EXPECT_EQ(keys_of(info), (Keys{"container", "files", "architecture", "model_type", "num_parameters", "size_bytes", "bits_per_weight",
                                 "quantization", "tokenizer", "metadata", "tensors"}));
  EXPECT_EQ(*info.find("container")->string(), "safetensors");
  EXPECT_EQ(*info.find("architecture")->string(), "LlamaForCausalLM");
  EXPECT_EQ(*info.find("model_type")->string(), "llama");
  EXPECT_EQ(info.find("num_parameters")->unsigned_integer(), 1705216U);
  EXPECT_EQ(info.find("size_bytes")->unsigned_integer(), 2 * 1705216U);
  EXPECT_EQ(info.find("bits_per_weight")->number(), 16.0);
  EXPECT_TRUE(info.find("quantization")->is_null());
  EXPECT_EQ(keys_of(*info.find("tokenizer")), (Keys{"kind", "vocab_size"}));
  EXPECT_EQ(info.find("tokenizer")->find("vocab_size")->unsigned_integer(), 1024U);
  EXPECT_EQ(keys_of((*info.find("files")->array())[0]), (Keys{"path", "size_bytes"}));
  const Json::Array& tensors = *info.find("tensors")->array();
  EXPECT_EQ(tensors.size(), 21U);
  for (const Json& tensor : tensors) EXPECT_EQ(keys_of(tensor), (Keys{"name", "dtype", "shape", "size_bytes", "file", "role"}));
}

TEST(JsonShape, verify_is_as_the_contract_says) {
  const Json report = document_of(run_weft({"verify", kModels / "tiny-base", "--json"}));
  EXPECT_EQ(keys_of(report), (Keys{"ok", "checked_bytes", "problems"}));
  EXPECT_EQ(report.find("ok")->boolean(), true);
  EXPECT_GE(report.find("checked_bytes")->unsigned_integer(), 2 * 1705216U);
  EXPECT_TRUE(report.find("problems")->array()->empty());
}

TEST(JsonShape, diff_is_as_the_contract_says) {
  const CommandResult result = run_weft({"diff", kModels / "tiny-base", kModels / "tiny-german", "--json"});
  const Json report = document_of(result);
  EXPECT_EQ(keys_of(report), (Keys{"equal", "only_in_a", "only_in_b", "total", "tensors"}));
  EXPECT_EQ(report.find("equal")->boolean(), false);
  EXPECT_EQ(keys_of(*report.find("total")), (Keys{"num_elements", "num_changed", "max_abs", "l2_a", "l2_diff", "cosine"}));
  EXPECT_EQ(report.find("total")->find("num_elements")->unsigned_integer(), 1705216U);
  EXPECT_EQ(keys_of((*report.find("tensors")->array())[0]), (Keys{"name", "num_elements", "num_changed", "max_abs", "l2_a", "l2_diff", "cosine"}));
}

TEST(JsonShape, diff_exits_with_3_only_when_asked_and_only_for_differences) {
  EXPECT_EQ(run_weft({"diff", kModels / "tiny-base", kModels / "tiny-german"}).status, 0);
  EXPECT_EQ(run_weft({"diff", kModels / "tiny-base", kModels / "tiny-german", "--exit-code"}).status, 3);
  EXPECT_EQ(run_weft({"diff", kModels / "tiny-base", kModels / "tiny-base", "--exit-code"}).status, 0);
}

TEST(JsonShape, a_merge_reports_what_it_wrote) {
  const ExampleFolder folder;
  const CommandResult result = folder.weft({"merge", "examples/ties.yml", "out", "--json"});
  const Json report = document_of(result);
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(keys_of(report), kReportKeys);
  EXPECT_EQ(*report.find("output")->string(), "out");
  EXPECT_EQ(report.find("num_tensors")->unsigned_integer(), 21U);
  EXPECT_EQ(report.find("size_bytes")->unsigned_integer(), 2 * 1705216U);
  EXPECT_EQ(report.find("bits_per_weight")->number(), 16.0);
  EXPECT_GE(report.find("bytes_read")->unsigned_integer(), 3 * 2 * 1705216U);
  EXPECT_GE(report.find("bytes_written")->unsigned_integer(), 2 * 1705216U);
  EXPECT_GT(report.find("peak_memory_bytes")->unsigned_integer(), 0U);
  EXPECT_EQ(*report.find("details")->find("method")->string(), "ties");
  std::set<std::string> files;
  for (const Json& file : *report.find("files")->array()) files.insert(*file.string());
  const std::vector<std::string> written = tree(folder / "out");
  EXPECT_EQ(files, std::set<std::string>(written.begin(), written.end()));
}

TEST(JsonShape, a_dry_run_gives_the_plan_that_the_merge_then_follows_and_writes_nothing) {
  const ExampleFolder folder;
  const Json plan = document_of(folder.weft({"merge", "examples/slerp.yml", "out", "--dry-run", "--json"}));
  EXPECT_EQ(keys_of(plan), (Keys{"tensors", "size_bytes", "peak_memory_bytes"}));
  EXPECT_FALSE(fs::exists(folder / "out"));
  ASSERT_EQ(folder.weft({"merge", "examples/slerp.yml", "out"}).status, 0);
  const Json info = document_of(folder.weft({"info", "out", "--json"}));
  const std::string bytes = read_file(folder / "out/model.safetensors");
  std::size_t header_size = 0;
  for (std::size_t i = 8; i-- > 0;) header_size = header_size * 256 + static_cast<unsigned char>(bytes[i]);
  const Json header = parse_json(std::string_view(bytes).substr(8, header_size), "header");
  EXPECT_EQ(plan.find("tensors")->array()->size(), info.find("tensors")->array()->size());
  for (const Json& tensor : *plan.find("tensors")->array()) {
    EXPECT_EQ(keys_of(tensor), (Keys{"name", "dtype", "shape", "inputs", "method", "parameters", "file", "offset"}));
    const std::string& name = *tensor.find("name")->string();
    EXPECT_EQ(*tensor.find("method")->string(), "slerp");
    EXPECT_EQ(tensor.find("inputs")->array()->size(), 2U);
    const Json* written = header.find(name);
    ASSERT_NE(written, nullptr) << name;
    EXPECT_EQ(*tensor.find("dtype")->string(), *written->find("dtype")->string());
    EXPECT_EQ(tensor.find("offset")->unsigned_integer().value(),
              8 + header_size + (*written->find("data_offsets")->array())[0].unsigned_integer().value())
        << name;
  }
}

TEST(JsonShape, several_configs_in_one_file_report_each_stage) {
  const ExampleFolder folder;
  const Json report = document_of(folder.weft({"merge", "examples/staged.yml", "out", "-I", "stages", "--json"}));
  EXPECT_EQ(keys_of(report), kReportKeys);
  EXPECT_EQ(*report.find("output")->string(), "out");
  const Json::Array& stages = *report.find("details")->find("stages")->array();
  ASSERT_EQ(stages.size(), 2U);
  EXPECT_EQ(keys_of(stages[0]), kReportKeys);
  EXPECT_EQ(fs::path(*stages[0].find("output")->string()), fs::path("stages/halfway"));
  EXPECT_TRUE(fs::exists(folder / "stages/halfway/model.safetensors"));
}

TEST(JsonShape, convert_reports_what_it_wrote) {
  const ExampleFolder folder;
  const Json report = document_of(folder.weft({"convert", "models/tiny-base", "out", "--dtype", "float32", "--max-shard-size", "2MB", "--json"}));
  EXPECT_EQ(keys_of(report), kReportKeys);
  EXPECT_EQ(report.find("bits_per_weight")->number(), 32.0);
  EXPECT_EQ(report.find("size_bytes")->unsigned_integer(), 4 * 1705216U);
  EXPECT_TRUE(fs::exists(folder / "out/model.safetensors.index.json"));
  EXPECT_TRUE(fs::exists(folder / "out/config.json"));
}

TEST(JsonShape, methods_are_as_the_contract_says) {
  const Json all = document_of(run_weft({"methods", "--json"}));
  EXPECT_GE(all.array()->size(), 20U);
  for (const Json& method : *all.array()) {
    EXPECT_EQ(keys_of(method), (Keys{"name", "family", "summary", "paper", "parameters", "needs", "determinism", "formats"}));
    EXPECT_EQ(keys_of(*method.find("needs")), (Keys{"models", "base", "calibration", "passes"}));
    for (const Json& parameter : *method.find("parameters")->array())
      for (const char* key : {"name", "type", "default", "range", "help"}) EXPECT_NE(parameter.find(key), nullptr) << key;
  }
  const Json one = document_of(run_weft({"methods", "ties", "--json"}));
  ASSERT_EQ(one.array()->size(), 1U);
  EXPECT_EQ(*(*one.array())[0].find("name")->string(), "ties");
}

}  // namespace
}  // namespace weft::testing
