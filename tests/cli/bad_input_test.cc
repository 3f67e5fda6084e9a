#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "checkpoint/json.h"
#include "support/command.h"

// What is wrong with the request or the data is said in one message with code, place and advice; the exit status is 2, and nothing is left behind.
namespace weft::testing {
namespace {

namespace fs = std::filesystem;

const fs::path kGolden = fs::path(WEFT_SOURCE_DIR) / "tests" / "data" / "merge" / "models";
const char* const kFile = "model.safetensors";
const char* const kTensor = "model.layers.1.mlp.up_proj.weight";

// --- damaging files -------------------------------------------------------------------------------------------------------------------------------

struct Parts {
  std::string header;
  std::string data;
};

Parts split(const std::string& bytes) {
  std::size_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(bytes.at(i));
  return {.header = bytes.substr(8, length), .data = bytes.substr(8 + length)};
}

std::string joined(const Parts& parts) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(parts.header.size() >> (8 * i));
  return bytes + parts.header + parts.data;
}

void edit_header(const fs::path& folder, const std::function<void(Json&)>& edit) {
  Parts parts = split(read_file(folder / kFile));
  Json header = parse_json(parts.header, kFile);
  edit(header);
  parts.header = write_json(header);
  write_file(folder / kFile, joined(parts));
}

void replace_in_header(const fs::path& folder, const std::string& from, const std::string& to) {
  Parts parts = split(read_file(folder / kFile));
  const std::size_t at = parts.header.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  parts.header.replace(at, from.size(), to);
  write_file(folder / kFile, joined(parts));
}

void replace_file(const fs::path& folder, const std::string& bytes) { write_file(folder / kFile, bytes); }

void cut(const fs::path& folder, std::size_t size_bytes) { fs::resize_file(folder / kFile, size_bytes); }

// The value of one element of kTensor.
void put_value(const fs::path& folder, float value) {
  Parts parts = split(read_file(folder / kFile));
  const Json header = parse_json(parts.header, kFile);
  const std::uint64_t begin = (*header.find(kTensor)->find("data_offsets")->array())[0].unsigned_integer().value();
  std::memcpy(parts.data.data() + begin + 4 * std::size_t{7}, &value, sizeof(value));
  write_file(folder / kFile, joined(parts));
}

Json numbers(std::initializer_list<std::uint64_t> values) {
  Json::Array array;
  for (const std::uint64_t value : values) array.emplace_back(value);
  return Json(std::move(array));
}

struct Damage {
  const char* name;
  const char* model;  ///< of the goldens
  std::function<void(const fs::path&)> damage;
  const char* code;
  const char* phrase;
  const char* file;    ///< that the place names
  const char* tensor;  ///< that the place names; "" for any
};

const std::vector<Damage>& damages() {
  static const std::vector<Damage> all = {
      {"an_empty_file", "base", [](const fs::path& f) { replace_file(f, ""); }, "corrupt", "the file is empty", kFile, ""},
      {"a_file_of_five_bytes", "base", [](const fs::path& f) { cut(f, 5); }, "corrupt", "too few for a safetensors header", kFile, ""},
      {"a_truncated_header", "base", [](const fs::path& f) { cut(f, 100); }, "corrupt", "header claims", kFile, ""},
      {"truncated_data", "base", [](const fs::path& f) { cut(f, 60000); }, "corrupt", "the file ends at byte 60000", kFile, ""},
      {"bytes_at_the_end", "base", [](const fs::path& f) { replace_file(f, read_file(f / kFile) + "xyz"); }, "corrupt",
       "3 bytes behind the last tensor", kFile, ""},
      {"an_absurd_header_length", "base",
       [](const fs::path& f) {
         std::string bytes = read_file(f / kFile);
         bytes[6] = '\x7f';
         replace_file(f, bytes);
       },
       "corrupt", "the limit is", kFile, ""},
      {"a_flipped_bit_in_the_syntax_of_the_header", "base", [](const fs::path& f) { replace_in_header(f, "\":[", "\"z["); }, "corrupt",
       "no valid JSON", kFile, ""},
      {"a_flipped_bit_in_an_offset", "base",
       [](const fs::path& f) {
         edit_header(f, [](Json& header) {
           Json::Array& offsets = *header.find(kTensor)->find("data_offsets")->array();
           offsets[1] = Json(offsets[1].unsigned_integer().value() ^ 4U);
         });
       },
       "corrupt", "", kFile, ""},
      {"overlapping_tensors", "base",
       [](const fs::path& f) {
         edit_header(f, [](Json& header) {
           header.find(kTensor)->set("data_offsets", *header.find("model.layers.0.mlp.up_proj.weight")->find("data_offsets"));
         });
       },
       "corrupt", "overlap", kFile, ""},
      {"a_duplicate_tensor", "base",
       [](const fs::path& f) { replace_in_header(f, "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"); }, "corrupt", "twice",
       kFile, kTensor},
      {"a_shape_that_overflows", "base",
       [](const fs::path& f) {
         edit_header(f, [](Json& header) { header.find(kTensor)->set("shape", numbers({4'000'000'000U, 4'000'000'000U, 4'000'000'000U})); });
       },
       "corrupt", "overflows", kFile, kTensor},
      {"a_shape_that_does_not_fit_its_bytes", "base",
       [](const fs::path& f) { edit_header(f, [](Json& header) {
                                 header.find(kTensor)->set("shape", numbers({1, 1}));
                               }); }, "corrupt",
       "but its offsets span", kFile, kTensor},
      {"an_unknown_dtype", "base", [](const fs::path& f) { edit_header(f, [](Json& header) { header.find(kTensor)->set("dtype", Json("F31")); }); },
       "unsupported", "the dtype 'F31' is unknown", kFile, kTensor},
      {"a_negative_offset", "base",
       [](const fs::path& f) {
         edit_header(f, [](Json& header) { header.find(kTensor)->set("data_offsets", Json(Json::Array{Json(-8), Json(8)})); });
       },
       "corrupt", "no plain integer", kFile, kTensor},
      {"a_header_that_is_a_list", "base",
       [](const fs::path& f) {
         Parts parts = split(read_file(f / kFile));
         parts.header = "{\"a\":[[[]]]}";
         replace_file(f, joined(parts));
       },
       "corrupt", "not an object", kFile, ""},
      {"a_gguf_with_the_wrong_name", "base",
       [](const fs::path& f) { replace_file(f, std::string("GGUF\3\0\0\0\1", 9) + std::string(15, '\0')); }, "corrupt", "GGUF", kFile, ""},
      {"a_pickle_with_the_wrong_name", "base", [](const fs::path& f) { replace_file(f, std::string("PK\3\4", 4) + std::string(60, 'x')); },
       "corrupt", "zip archive", kFile, ""},
      {"a_git_lfs_pointer", "base",
       [](const fs::path& f) { replace_file(f, "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 88896\n"); }, "corrupt", "git-lfs",
       kFile, ""},
      {"a_web_page", "base", [](const fs::path& f) { replace_file(f, "<!DOCTYPE html><html><body>Not found</body></html>"); }, "corrupt", "web page",
       kFile, ""},
      {"a_missing_shard", "c", [](const fs::path& f) { fs::remove(f / "model-00002-of-00003.safetensors"); }, "not_found", "",
       "model-00002-of-00003.safetensors", ""},
      {"a_shard_that_escapes", "c",
       [](const fs::path& f) {
         const fs::path index = f / "model.safetensors.index.json";
         std::string text = read_file(index);
         const std::string name = "\"model-00002-of-00003.safetensors\"";
         text.replace(text.find(name), name.size(), "\"../../etc/passwd\"");
         write_file(index, text);
       },
       "corrupt", "no plain file name", "model.safetensors.index.json", ""},
      {"a_tensor_listed_twice", "c",
       [](const fs::path& f) {
         const fs::path index = f / "model.safetensors.index.json";
         std::string text = read_file(index);
         const std::string map = "\"weight_map\": {";
         text.insert(text.find(map) + map.size(), "\"model.norm.weight\": \"model-00001-of-00003.safetensors\",");
         write_file(index, text);
       },
       "corrupt", "twice", "model.safetensors.index.json", ""},
      {"an_index_that_is_no_json", "c", [](const fs::path& f) { write_file(f / "model.safetensors.index.json", "{\"weight_map\": {"); }, "corrupt",
       "no valid JSON", "model.safetensors.index.json", ""},
      {"a_folder_without_weights", "base", [](const fs::path& f) { fs::remove(f / kFile); }, "not_found", "no weights", "", ""},
  };
  return all;
}

fs::path damaged_model(const TemporaryFolder& scratch, const Damage& damage) {
  const fs::path folder = scratch / "damaged";
  fs::copy(kGolden / damage.model, folder, fs::copy_options::recursive);
  for (const auto& entry : fs::recursive_directory_iterator(folder)) fs::permissions(entry.path(), fs::perms::owner_write, fs::perm_options::add);
  damage.damage(folder);
  return folder;
}

Json error_of(const CommandResult& result) {
  const Json document = parse_json(result.out, "stdout");
  const Json* error = document.find("error");
  EXPECT_NE(error, nullptr) << result.out;
  return error == nullptr ? Json() : *error;
}

std::string text_of(const Json& object, const char* key) {
  const Json* found = object.find(key);
  return found == nullptr || !found->is_string() ? "" : *found->string();
}

class DamagedModel : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedModel, is_refused_with_code_place_and_reason) {
  const TemporaryFolder scratch;
  const fs::path folder = damaged_model(scratch, GetParam());
  const CommandResult result = run_weft({"info", folder, "--json"});
  EXPECT_EQ(result.status, 2) << result.err;
  const Json error = error_of(result);
  EXPECT_EQ(text_of(error, "code"), GetParam().code) << result.out;
  EXPECT_NE(text_of(error, "message").find(GetParam().phrase), std::string::npos) << result.out;
  EXPECT_TRUE(text_of(*error.find("where"), "file").ends_with(GetParam().file)) << result.out;
  if (*GetParam().tensor != '\0') {
    EXPECT_EQ(text_of(*error.find("where"), "tensor"), GetParam().tensor) << result.out;
  }
  EXPECT_NE(text_of(error, "advice"), "") << result.out;
}

TEST_P(DamagedModel, stops_a_merge_before_anything_is_left_behind) {
  const TemporaryFolder scratch;
  const fs::path folder = damaged_model(scratch, GetParam());
  write_file(scratch / "config.yml", "merge_method: linear\nmodels:\n  - {model: " + folder.string() +
                                         ", parameters: {weight: 1}}\n  - {model: " + (kGolden / "a").string() + ", parameters: {weight: 1}}\n");
  const std::vector<std::string> before = tree(scratch.path());
  const CommandResult result = run_weft({"merge", scratch / "config.yml", scratch / "out"});
  EXPECT_EQ(result.status, 2) << result.err;
  EXPECT_NE(result.err.find(GetParam().phrase), std::string::npos) << result.err;
  EXPECT_EQ(tree(scratch.path()), before);
}

TEST_P(DamagedModel, is_a_finding_of_verify) {
  const TemporaryFolder scratch;
  const fs::path folder = damaged_model(scratch, GetParam());
  const CommandResult result = run_weft({"verify", folder, "--json"});
  if (GetParam().code == std::string("unsupported") || std::string(GetParam().name) == "a_folder_without_weights") {
    EXPECT_NE(result.status, 0);  // nothing of ours to verify: an error is as right as a finding
    return;
  }
  EXPECT_EQ(result.status, 3) << result.err;
  const Json report = parse_json(result.out, "stdout");
  EXPECT_EQ(report.find("ok")->boolean(), false);
  ASSERT_FALSE(report.find("problems")->array()->empty());
}

INSTANTIATE_TEST_SUITE_P(BadInput, DamagedModel, ::testing::ValuesIn(damages()),
                         [](const ::testing::TestParamInfo<Damage>& row) { return std::string(row.param.name); });

// --- values ---------------------------------------------------------------------------------------------------------------------------------------

TEST(BadValues, nan_and_infinity_stop_a_merge_naming_tensor_and_model_unless_allowed) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    const TemporaryFolder scratch;
    Damage damage;
    damage.model = "base";
    damage.damage = [value](const fs::path& f) { put_value(f, value); };
    const fs::path folder = damaged_model(scratch, damage);
    write_file(scratch / "config.yml", "merge_method: linear\nmodels:\n  - {model: " + folder.string() +
                                           ", parameters: {weight: 1}}\n  - {model: " + (kGolden / "a").string() + ", parameters: {weight: 1}}\n");
    const std::vector<std::string> before = tree(scratch.path());
    const CommandResult result = run_weft({"merge", scratch / "config.yml", scratch / "out", "--json"});
    EXPECT_EQ(result.status, 2);
    const Json error = error_of(result);
    EXPECT_EQ(text_of(error, "code"), "corrupt");
    EXPECT_EQ(text_of(*error.find("where"), "tensor"), kTensor);
    EXPECT_TRUE(text_of(*error.find("where"), "file").ends_with("damaged/model.safetensors")) << result.out;
    EXPECT_NE(text_of(error, "message").find(" 1 value"), std::string::npos) << result.out;
    EXPECT_EQ(tree(scratch.path()), before);

    const CommandResult verified = run_weft({"verify", folder, "--json"});
    EXPECT_EQ(verified.status, 3);
    EXPECT_EQ(text_of((*parse_json(verified.out, "stdout").find("problems")->array()).at(0), "tensor"), kTensor);
    EXPECT_EQ(run_weft({"merge", scratch / "config.yml", scratch / "out", "--allow-non-finite"}).status, 0);
  }
}

// --- configs --------------------------------------------------------------------------------------------------------------------------------------

class ConfigTest : public ::testing::Test {
 protected:
  /// {base}, {a}, {b} stand for models.
  void write(std::string text) {
    for (const char* name : {"base", "a", "b", "c"}) {
      const std::string mark = std::string("{") + name + "}";
      for (std::size_t at = 0; (at = text.find(mark, at)) != std::string::npos;) text.replace(at, mark.size(), (kGolden / name).string());
    }
    write_file(scratch_ / "config.yml", text);
  }
  CommandResult merge(std::vector<std::string> options = {}) {
    std::vector<std::string> words = {"merge", scratch_ / "config.yml", scratch_ / "out"};
    words.insert(words.end(), options.begin(), options.end());
    return run_weft(words);
  }
  void expect_refused(const std::string& code, const std::string& key, const std::string& phrase, const std::string& advice) {
    const CommandResult result = merge({"--json"});
    EXPECT_EQ(result.status, 2) << result.err;
    const Json error = error_of(result);
    EXPECT_EQ(text_of(error, "code"), code) << result.out;
    EXPECT_NE(text_of(error, "message").find(phrase), std::string::npos) << result.out;
    EXPECT_NE(text_of(error, "advice").find(advice), std::string::npos) << result.out;
    if (!key.empty()) {
      EXPECT_EQ(text_of(*error.find("where"), "key"), key) << result.out;
    }
    EXPECT_EQ(tree(scratch_.path()), std::vector<std::string>{"config.yml"});
  }
  TemporaryFolder scratch_;
};

TEST_F(ConfigTest, an_unknown_method_is_answered_with_the_nearest) {
  write("merge_method: slrep\nbase_model: {base}\nmodels: [{model: {base}}, {model: {a}}]\nparameters: {t: 0.5}\n");
  expect_refused("invalid_argument", "merge_method", "slrep", "slerp");
}

TEST_F(ConfigTest, a_misspelt_key_warns_with_the_nearest_and_is_an_error_when_strict) {
  write("merge_method: linear\nmodels:\n  - {model: {a}, parameters: {wieght: 1, weight: 1}}\n  - {model: {b}, parameters: {weight: 1}}\n");
  const CommandResult result = merge();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.err.find("warning: "), std::string::npos);
  EXPECT_NE(result.err.find("wieght"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("weight"), std::string::npos) << result.err;
  const CommandResult strict = merge({"--strict", "--force", "--json"});
  EXPECT_EQ(strict.status, 2);
  EXPECT_EQ(text_of(error_of(strict), "code"), "invalid_argument");
  EXPECT_NE(text_of(error_of(strict), "message").find("wieght"), std::string::npos) << strict.out;
}

TEST_F(ConfigTest, weights_that_sum_to_zero_are_refused) {
  write("merge_method: linear\nmodels:\n  - {model: {a}, parameters: {weight: 1}}\n  - {model: {b}, parameters: {weight: -1}}\n");
  expect_refused("invalid_argument", "", "zero", "");
}

TEST_F(ConfigTest, a_missing_parameter_names_model_and_tensor) {
  write("merge_method: linear\nmodels:\n  - {model: {a}, parameters: {weight: 1}}\n  - {model: {b}}\n");
  expect_refused("invalid_argument", "", "weight for model " + (kGolden / "b").string(), "");
}

TEST_F(ConfigTest, yaml_that_does_not_parse_names_the_line) {
  write("merge_method: linear\nmodels: [\n");
  expect_refused("invalid_argument", "", "line ", "");
}

TEST_F(ConfigTest, a_model_that_is_nowhere_says_how_to_get_it) {
  write("merge_method: linear\nmodels:\n  - {model: some-org/some-model, parameters: {weight: 1}}\n");
  const CommandResult result =
      run_weft({"merge", scratch_ / "config.yml", scratch_ / "out", "--json"}, {.environment = {{"HF_HUB_CACHE", scratch_ / "no-cache"}}});
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(text_of(error_of(result), "code"), "not_found");
  EXPECT_NE(text_of(error_of(result), "advice").find("hf download some-org/some-model"), std::string::npos) << result.out;
}

TEST_F(ConfigTest, a_config_that_is_not_there_is_not_found) {
  const CommandResult result = run_weft({"merge", scratch_ / "absent.yml", scratch_ / "out", "--json"});
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(text_of(error_of(result), "code"), "not_found");
}

// --- outputs --------------------------------------------------------------------------------------------------------------------------------------

class OutputTest : public ConfigTest {
 protected:
  void SetUp() override { write("merge_method: passthrough\nmodels: [{model: {a}}]\n"); }
};

TEST_F(OutputTest, an_existing_output_is_refused_and_untouched_without_force) {
  write_file(scratch_ / "out/precious.txt", "precious");
  const CommandResult result = merge({"--json"});
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(text_of(error_of(result), "code"), "invalid_argument");
  EXPECT_NE(text_of(error_of(result), "advice").find("--force"), std::string::npos) << result.out;
  EXPECT_EQ(tree(scratch_.path()), (std::vector<std::string>{"config.yml", "out/", "out/precious.txt"}));
}

TEST_F(OutputTest, force_replaces_a_model_but_nothing_that_is_none) {
  write_file(scratch_ / "out/precious.txt", "precious");
  const CommandResult refused = merge({"--force", "--json"});
  EXPECT_EQ(refused.status, 2);
  EXPECT_EQ(text_of(error_of(refused), "code"), "invalid_argument");
  EXPECT_TRUE(fs::exists(scratch_ / "out/precious.txt"));
  write_file(scratch_ / "out/config.json", "{}");
  EXPECT_EQ(merge({"--force"}).status, 0);
  EXPECT_FALSE(fs::exists(scratch_ / "out/precious.txt"));
  EXPECT_TRUE(fs::exists(scratch_ / "out/model.safetensors"));
}

TEST_F(OutputTest, an_output_that_is_an_input_is_refused_even_with_force) {
  fs::copy(kGolden / "a", scratch_ / "out");
  write("merge_method: passthrough\nmodels: [{model: " + (scratch_ / "out").string() + "}]\n");
  for (const std::vector<std::string>& options : std::vector<std::vector<std::string>>{{"--json"}, {"--json", "--force"}}) {
    const CommandResult result = merge(options);
    EXPECT_EQ(result.status, 2);
    EXPECT_EQ(text_of(error_of(result), "code"), "invalid_argument");
    EXPECT_NE(text_of(error_of(result), "message").find("input"), std::string::npos) << result.out;
    EXPECT_EQ(read_file(scratch_ / "out/model.safetensors"), read_file(kGolden / "a/model.safetensors"));
  }
}

TEST_F(OutputTest, a_place_where_nothing_can_be_made_is_an_io_error_with_exit_status_1) {
  write_file(scratch_ / "file", "");
  const CommandResult result = run_weft({"merge", scratch_ / "config.yml", scratch_ / "file/out", "--json"});
  EXPECT_NE(result.status, 0);
  EXPECT_NE(text_of(*error_of(result).find("where"), "file").find("file"), std::string::npos) << result.out;
  EXPECT_EQ(tree(scratch_.path()), (std::vector<std::string>{"config.yml", "file"}));
}

TEST_F(OutputTest, a_folder_without_permission_is_an_io_error_with_exit_status_1) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  fs::create_directory(scratch_ / "closed");
  fs::permissions(scratch_ / "closed", fs::perms::owner_read | fs::perms::owner_exec);
  const CommandResult result = run_weft({"merge", scratch_ / "config.yml", scratch_ / "closed/out", "--json"});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(text_of(error_of(result), "code"), "io");
  EXPECT_NE(text_of(error_of(result), "message").find("ermission"), std::string::npos) << result.out;
}

TEST_F(OutputTest, a_model_that_may_not_be_read_is_an_error_that_names_it) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  fs::copy(kGolden / "a", scratch_ / "secret");
  fs::permissions(scratch_ / "secret/model.safetensors", fs::perms::none);
  const CommandResult result = run_weft({"info", scratch_ / "secret", "--json"});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(text_of(*error_of(result).find("where"), "file").ends_with("secret/model.safetensors")) << result.out;
}

}  // namespace
}  // namespace weft::testing
