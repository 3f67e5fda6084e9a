#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <limits>

#include "base/file.h"
#include "engine/tiny_llama.h"
#include "support/errors.h"
#include "weft/inspect.h"

namespace weft {

void PrintTo(const VerifyProblem& problem, std::ostream* out) {
  *out << "[" << problem.code << "] " << problem.file << " '" << problem.tensor << "': " << problem.message;
}

namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::bytes_of;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Matcher;
using testing::StoredTensor;
using testing::TemporaryFolder;
using testing::TinyLlama;
using testing::write_file;

Matcher<const VerifyProblem&> is_problem(const std::string& code, const std::string& file, const std::string& tensor, const std::string& phrase) {
  return AllOf(Field("code", &VerifyProblem::code, code), Field("file", &VerifyProblem::file, file), Field("tensor", &VerifyProblem::tensor, tensor),
               Field("message", &VerifyProblem::message, HasSubstr(phrase)));
}

class Verify : public ::testing::Test {
 protected:
  VerifyReport check(const JobOptions& options = {}) { return verify(folder_.path().string(), options); }
  std::uint64_t bytes_in_folder() const {
    std::uint64_t sum = 0;
    for (const auto& entry : fs::directory_iterator(folder_.path())) sum += entry.file_size();
    return sum;
  }
  TemporaryFolder folder_;
  TinyLlama llama_;
};

constexpr const char* kShard1 = "model-00001-of-00002.safetensors";
constexpr const char* kShard2 = "model-00002-of-00002.safetensors";

TEST_F(Verify, a_sound_model_has_no_problems_and_every_byte_was_checked) {
  llama_.write(folder_.path());
  VerifyReport report = check();
  EXPECT_TRUE(report.ok);
  EXPECT_THAT(report.problems, IsEmpty());
  EXPECT_THAT(report.notes, IsEmpty());
  EXPECT_EQ(report.checked_bytes, bytes_in_folder());

  fs::remove(folder_ / "model.safetensors");
  llama_.write_shards(folder_.path());
  report = check();
  EXPECT_TRUE(report.ok);
  EXPECT_THAT(report.notes, IsEmpty());
  EXPECT_EQ(report.checked_bytes, bytes_in_folder());
  EXPECT_TRUE(verify((folder_ / "model.safetensors.index.json").string()).ok);
  EXPECT_TRUE(verify((folder_ / kShard1).string()).problems.empty() == false) << "a shard alone is not the model of its folder's config";
}

// ---- Damage -------------------------------------------------------------------------------------------------------------------------------

TEST_F(Verify, a_truncated_shard_is_a_result_and_the_others_are_checked) {
  llama_.write_shards(folder_.path());
  float nan = std::numeric_limits<float>::quiet_NaN();
  llama_.tensor("model.embed_tokens.weight").bytes.replace(4, 4, bytes_of<float>({nan}));
  llama_.write_shards(folder_.path());
  fs::resize_file(folder_ / kShard2, fs::file_size(folder_ / kShard2) - 1);
  const VerifyReport report = check();
  EXPECT_FALSE(report.ok);
  EXPECT_THAT(report.problems, ElementsAre(is_problem("corrupt", kShard2, "lm_head.weight", "the file ends at byte"),
                                           is_problem("non_finite", kShard1, "model.embed_tokens.weight",
                                                      "holds 1 NaN and 0 infinities among 32 elements, the first at element 1")));
}

TEST_F(Verify, every_way_to_lose_a_shard_is_named) {
  llama_.write_shards(folder_.path());
  fs::remove(folder_ / kShard1);
  EXPECT_THAT(check().problems, ElementsAre(is_problem("not_found", kShard1, "", "is missing")));
  write_file(folder_ / kShard1, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
  EXPECT_THAT(check().problems, ElementsAre(is_problem("corrupt", kShard1, "", "git-lfs pointer")));
  write_file(folder_ / kShard1, "PK\3\4 and more");
  EXPECT_THAT(check().problems, ElementsAre(is_problem("corrupt", kShard1, "", "zip archive")));
  write_file(folder_ / kShard1, "");
  EXPECT_THAT(check().problems, ElementsAre(is_problem("corrupt", kShard1, "", "the file is empty")));
  fs::remove(folder_ / kShard1);
  fs::create_symlink("/dev/null", folder_ / kShard1);
  EXPECT_THAT(check().problems, ElementsAre(is_problem("corrupt", kShard1, "", "leaves the model's folder")));
  fs::remove(folder_ / kShard2);
  EXPECT_EQ(check().problems.size(), 2u);
}

TEST_F(Verify, an_index_that_contradicts_the_shards_is_told_tensor_by_tensor) {
  llama_.write_shards(folder_.path());
  std::string index = testing::read_file(folder_ / "model.safetensors.index.json");
  index.replace(index.find("{\"model.embed"), 1, "{\"ghost\":\"model-00001-of-00002.safetensors\",");
  const std::string norm = "\"model.norm.weight\":\"model-0000";
  index[index.find(norm) + norm.size()] = '1';
  write_file(folder_ / "model.safetensors.index.json", index);
  EXPECT_THAT(check().problems, ElementsAre(is_problem("missing_tensor", kShard1, "ghost", "which lacks it"),
                                            is_problem("missing_tensor", kShard1, "model.norm.weight", std::string("but it is in '") + kShard2)));
}

TEST_F(Verify, a_broken_index_leaves_the_shards_to_be_checked) {
  llama_.tensor("lm_head.weight").bytes.replace(0, 4, bytes_of<float>({std::numeric_limits<float>::infinity()}));
  llama_.write_shards(folder_.path());
  write_file(folder_ / "model.safetensors.index.json", "{\"weight_map\":{\"a\":");
  EXPECT_THAT(check().problems, ElementsAre(is_problem("corrupt", "model.safetensors.index.json", "", "no valid JSON"),
                                            is_problem("non_finite", kShard2, "lm_head.weight", "holds 0 NaN and 1 infinities")));
  fs::remove(folder_ / "model.safetensors.index.json");
  EXPECT_THAT(check().problems, ElementsAre(is_problem("not_found", folder_.path().filename().string(), "", "no model.safetensors.index.json"),
                                            is_problem("non_finite", kShard2, "lm_head.weight", "holds 0 NaN and 1 infinities")));
}

TEST_F(Verify, one_tensor_in_two_shards_is_a_problem) {
  llama_.tensors.push_back(llama_.tensors[0]);
  llama_.write_shards(folder_.path());
  const VerifyReport report = check();
  // The index that was written lists it twice, which is found first.
  EXPECT_THAT(report.problems, Contains(is_problem("corrupt", kShard2, "model.embed_tokens.weight", std::string("is in '") + kShard1 + "' too")));
}

TEST_F(Verify, a_wrong_total_size_and_tensors_beside_the_index_are_only_noted) {
  llama_.write_shards(folder_.path());
  std::string index = testing::read_file(folder_ / "model.safetensors.index.json");
  index.replace(index.find("\"total_size\":"), 14, "\"total_size\":9");
  const std::string last = ",\"lm_head.weight\":\"model-00002-of-00002.safetensors\"";
  index.erase(index.find(last), last.size());
  write_file(folder_ / "model.safetensors.index.json", index);
  const VerifyReport report = check();
  EXPECT_TRUE(report.ok);
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("1 tensors of the shards are not in the index, the first is 'lm_head.weight'"),
                                        HasSubstr("the index gives total_size 9")));
}

/// Reading fails where a test says.
class FailingReads final : public SystemCalls {
 public:
  off_t bad_begin = 0, bad_end = 0;
  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
    if (offset < bad_end && offset + static_cast<off_t>(size) > bad_begin) return errno = EIO, -1;
    return SystemCalls::pread(fd, data, size, offset);
  }
};

TEST_F(Verify, a_block_that_the_disk_cannot_read_is_a_problem_of_its_tensor) {
  llama_.write(folder_.path());
  FailingReads calls;
  calls.bad_end = static_cast<off_t>(fs::file_size(folder_ / "model.safetensors"));
  calls.bad_begin = calls.bad_end - 4;  // the end of lm_head.weight
  const ScopedSystemCalls scope(calls);
  const VerifyReport report = check();
  EXPECT_THAT(report.problems, ElementsAre(is_problem("io", "model.safetensors", "lm_head.weight", "input/output error")));
  EXPECT_EQ(report.checked_bytes, bytes_in_folder() - 128) << "all but that tensor";
}

TEST_F(Verify, companion_files_must_be_json) {
  llama_.write(folder_.path());
  write_file(folder_ / "generation_config.json", "{\"temperature\": 0.6,}");
  write_file(folder_ / "special_tokens_map.json", "{\"a\":1,\"a\":2}");
  write_file(folder_ / "preprocessor_config.json", "{\"time_step_limit\":[0.0,Infinity]}");
  EXPECT_THAT(check().problems, ElementsAre(is_problem("corrupt", "generation_config.json", "", "no valid JSON"),
                                            is_problem("corrupt", "special_tokens_map.json", "", "twice")));
  write_file(folder_ / "config.json", "[]");
  EXPECT_THAT(check().problems, Contains(is_problem("corrupt", "config.json", "", "no JSON object")));
}

// ---- Values -------------------------------------------------------------------------------------------------------------------------------

TEST_F(Verify, what_is_not_finite_is_counted_in_every_type_for_any_threads_and_chunks) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  std::vector<float> f32(70'001, 1.5F);
  f32[69'999] = nan;
  f32[40] = -inf;
  f32[70'000] = inf;
  std::vector<double> f64(300, 1e300);  // finite here, infinite as float32
  f64[123] = std::numeric_limits<double>::quiet_NaN();
  std::vector<std::uint16_t> bf16(1000, 0x3f80), f16(1000, 0x3c00);
  bf16[7] = 0x7f80;    // infinity
  bf16[999] = 0xffc1;  // NaN
  bf16[998] = 0x7f7f;  // the largest
  f16[8] = 0x7c01;
  f16[9] = 0x7bff;
  std::vector<std::uint8_t> e4m3(1000, 0x38), e5m2(1000, 0x3c), e8m0(1000, 0x7f), fnuz(1000, 0x40), f4(64, 0x7f), booleans(10, 1);
  e4m3[3] = 0xff;
  e4m3[4] = 0x7e;
  e5m2[5] = 0x7c;
  e5m2[6] = 0xfd;
  e8m0[0] = 0xff;
  fnuz[70] = 0x80;
  booleans[2] = 7;
  std::vector<float> c64(20, 0.0F);
  c64[11] = nan;                         // the imaginary part of element 5
  std::vector<std::int64_t> i64(9, -1);  // as a double: NaN
  write_file(folder_ / "any.safetensors",
             testing::safetensors_of_types({{"f32", "F32", {70'001}, bytes_of(f32)},
                                            {"f64", "F64", {300}, bytes_of(f64)},
                                            {"bool", "BOOL", {10}, bytes_of(booleans)},  // and what follows is not aligned
                                            {"bf16", "BF16", {10, 100}, bytes_of(bf16)},
                                            {"f16", "F16", {1000}, bytes_of(f16)},
                                            {"e4m3", "F8_E4M3", {1000}, bytes_of(e4m3)},
                                            {"e5m2", "F8_E5M2", {1000}, bytes_of(e5m2)},
                                            {"e8m0", "F8_E8M0", {1000}, bytes_of(e8m0)},
                                            {"fnuz", "F8_E4M3FNUZ", {1000}, bytes_of(fnuz)},
                                            {"f4", "F4", {128}, bytes_of(f4)},
                                            {"c64", "C64", {10}, bytes_of(c64)},
                                            {"i64", "I64", {9}, bytes_of(i64)},
                                            {"none", "F32", {0, 5}, ""}}));
  for (const int threads : {1, 3}) {
    for (const std::uint64_t chunk_bytes : {0, 64, 100, 4096}) {
      JobOptions options;
      options.threads = threads;
      options.chunk_bytes = chunk_bytes;
      const VerifyReport report = check(options);
      const auto of = [](const char* tensor, const char* phrase) { return is_problem("non_finite", "any.safetensors", tensor, phrase); };
      EXPECT_THAT(report.problems, ElementsAre(of("f32", "(F32 [70001]) holds 1 NaN and 2 infinities among 70001 elements, the first at element 40"),
                                               of("f64", "holds 1 NaN and 0 infinities among 300 elements, the first at element 123"),
                                               of("bf16", "holds 1 NaN and 1 infinities among 1000 elements, the first at element 7"),
                                               of("f16", "holds 1 NaN and 0 infinities among 1000 elements, the first at element 8"),
                                               of("e4m3", "holds 1 NaN and 0 infinities among 1000 elements, the first at element 3"),
                                               of("e5m2", "holds 1 NaN and 1 infinities among 1000 elements, the first at element 5"),
                                               of("e8m0", "holds 1 NaN and 0 infinities among 1000 elements, the first at element 0"),
                                               of("fnuz", "holds 1 NaN and 0 infinities among 1000 elements, the first at element 70"),
                                               of("c64", "holds 1 NaN and 0 infinities among 10 elements, the first at element 5")));
      EXPECT_THAT(report.notes, ElementsAre(HasSubstr("tensor 'bool' in 'any.safetensors' holds 1 bytes that are neither true (1) nor false (0)"),
                                            HasSubstr("no config.json")));
      EXPECT_EQ(report.checked_bytes, bytes_in_folder());
    }
  }
  JobOptions lenient;
  lenient.allow_non_finite = true;
  EXPECT_TRUE(check(lenient).ok);
  EXPECT_EQ(check(lenient).notes.size(), 11u);
}

TEST_F(Verify, a_small_budget_is_kept_and_a_tiny_one_refused) {
  write_file(folder_ / "any.safetensors", testing::safetensors_of({{"w", std::vector<float>(1'000'000, 1.0F)}}));
  JobOptions options;
  options.memory_bytes = 1 << 20;
  options.threads = 4;
  EXPECT_TRUE(check(options).ok);
  options.memory_bytes = 1000;
  EXPECT_WEFT_ERROR(check(options), out_of_memory, "reading tensors");
}

TEST_F(Verify, progress_ends_with_everything_and_a_cancelled_run_is_interrupted) {
  llama_.write(folder_.path());
  Progress last;
  JobOptions options;
  options.on_progress = [&last](const Progress& progress) { last = progress; };
  EXPECT_TRUE(check(options).ok);
  EXPECT_EQ(last.done_bytes, last.total_bytes);
  EXPECT_EQ(last.what, "verifying");
  const std::atomic<bool> cancel = true;
  options.cancel = &cancel;
  EXPECT_WEFT_ERROR(check(options), interrupted, "cancelled");
}

// ---- Config and tensors -------------------------------------------------------------------------------------------------------------------

TEST_F(Verify, tensors_that_the_config_asks_for_and_tensors_that_it_does_not_know) {
  llama_.remove("model.layers.0.mlp.up_proj.weight");
  llama_.add("model.layers.0.mlp.upproj.weight", {6, 4});
  llama_.add("model.layers.0.self_attn.rotary_emb.inv_freq", {1});
  llama_.write(folder_.path());
  const VerifyReport report = check();
  EXPECT_THAT(report.problems,
              ElementsAre(is_problem("missing_tensor", "", "model.layers.0.mlp.up_proj.weight", "is missing; llama models with this config have it"),
                          is_problem("unexpected_tensor", "model.safetensors", "model.layers.0.mlp.upproj.weight", "is not part of llama models")));
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("1 tensors are buffers of old versions")));
}

TEST_F(Verify, shapes_follow_from_the_config) {
  llama_.tensor("model.layers.0.self_attn.k_proj.weight").shape = {4, 2};
  llama_.replace_in_config("\"vocab_size\":8", "\"vocab_size\":9");
  llama_.write(folder_.path());
  EXPECT_THAT(
      check().problems,
      ElementsAre(
          is_problem("shape", "model.safetensors", "model.embed_tokens.weight", "has the shape [8, 4] but the config asks for [9, 4]"),
          is_problem("shape", "model.safetensors", "model.layers.0.self_attn.k_proj.weight", "has the shape [4, 2] but the config asks for [2, 4]"),
          is_problem("shape", "model.safetensors", "lm_head.weight", "has the shape [8, 4] but the config asks for [9, 4]")));
}

TEST_F(Verify, a_head_may_be_absent_only_when_the_config_ties_it) {
  llama_.remove("lm_head.weight");
  llama_.write(folder_.path());
  EXPECT_THAT(check().problems, ElementsAre(is_problem("missing_tensor", "", "lm_head.weight", "is missing")));
  llama_.replace_in_config("\"tie_word_embeddings\":false", "\"tie_word_embeddings\":true");
  llama_.write(folder_.path());
  EXPECT_TRUE(check().ok);
}

TEST_F(Verify, a_tied_head_that_differs_from_the_embedding_is_noted) {
  llama_.replace_in_config("\"tie_word_embeddings\":false", "\"tie_word_embeddings\":true");
  llama_.write(folder_.path());
  VerifyReport report = check();
  EXPECT_TRUE(report.ok);
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("the config ties 'lm_head.weight' to 'model.embed_tokens.weight' but both are stored and differ")));
  llama_.tensor("lm_head.weight").bytes = llama_.tensor("model.embed_tokens.weight").bytes;
  llama_.write(folder_.path());
  EXPECT_THAT(check().notes, IsEmpty());
}

TEST_F(Verify, a_tokenizer_of_another_size_than_the_embedding_is_noted) {
  llama_.tokenizer.replace(llama_.tokenizer.find("\"a\":0,\"b\""), 5, "\"a\":0,\"z\":9");
  llama_.write(folder_.path());
  EXPECT_TRUE(check().ok);
  llama_.tokenizer = R"({"added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1}}})";
  llama_.write(folder_.path());
  EXPECT_THAT(check().notes, ElementsAre(HasSubstr("has 8 rows for the 2 tokens")));
  llama_.tokenizer = R"({"added_tokens":[{"id":8,"content":"x"}],"model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2,"d":3,"e":4,"f":5,"g":6,"h":7}}})";
  llama_.write(folder_.path());
  EXPECT_THAT(check().notes, ElementsAre(HasSubstr("the tokenizer has 9 tokens but 'model.embed_tokens.weight' only 8 rows")));
}

TEST_F(Verify, a_config_that_makes_no_sense_is_a_problem_and_one_that_is_unknown_a_note) {
  const std::string sound = llama_.config;
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{{"\"num_hidden_layers\":1", "\"num_hidden_layers\":-1"},
                                                                                 {"\"hidden_size\":4", "\"hidden_size\":\"four\""},
                                                                                 {"\"num_hidden_layers\":1", "\"num_hidden_layers\":1000000000"}}) {
    llama_.config = sound;
    llama_.replace_in_config(from, to);
    llama_.write(folder_.path());
    EXPECT_THAT(check().problems, Contains(Field("code", &VerifyProblem::code, "metadata"))) << to;
  }
  llama_.config = sound;
  llama_.replace_in_config("LlamaForCausalLM", "NobodyKnowsForCausalLM");
  llama_.write(folder_.path());
  const VerifyReport report = check();
  EXPECT_TRUE(report.ok);
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("the architecture 'NobodyKnowsForCausalLM' is not in weft's table")));
}

TEST_F(Verify, what_is_no_model_of_ours_is_an_error_not_a_result) {
  EXPECT_WEFT_ERROR(check(), not_found, "empty");
  EXPECT_WEFT_ERROR(verify((folder_ / "nothing").string()), not_found, "no file or folder");
  write_file(folder_ / "model.gguf", "GGUF\3" + std::string(100, 'x'));
  EXPECT_WEFT_ERROR(check(), unsupported, "GGUF header: version");
  EXPECT_WEFT_ERROR(verify((folder_ / "model.gguf").string()), unsupported, "GGUF");
  write_file(folder_ / "adapter_config.json", "{}");
  EXPECT_WEFT_ERROR(check(), unsupported, "adapter");
}

}  // namespace
}  // namespace weft
