#include "engine/recipe.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>

#include "base/file.h"
#include "engine/tiny_llama.h"
#include "support/errors.h"
#include "support/read_all.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"
#include "weft/edit.h"
#include "weft/inspect.h"
#include "weft/merge.h"
#include "weft/recipe.h"

#define LLVMFuzzerTestOneInput fuzz_recipe
#include "../../fuzz/recipe.cc"
#undef LLVMFuzzerTestOneInput

namespace weft {
namespace {

using engine::parse_recipe;
using engine::Recipe;
using testing::read_all;
using testing::TemporaryFolder;
using testing::TinyLlama;
using testing::write_file;

Recipe parse(const std::string& text) {
  std::vector<std::string> warnings;
  return parse_recipe(text, "r.yml", {}, warnings);
}

TEST(RecipeText, a_step_without_a_model_takes_the_result_of_the_step_before) {
  const Recipe recipe = parse(
      "steps:\n- name: a\n  edit: {model: ./m, operations: [tie, {drop: [x, y]}]}\n- edit: [{layers: 0:16}]\n- convert: bf16\noutput: o\nseed: 9\n");
  ASSERT_EQ(recipe.steps.size(), 3u);
  const auto& first = std::get<engine::EditStep>(recipe.steps[0].what);
  EXPECT_EQ(first.model, "./m");
  ASSERT_EQ(first.requests.size(), 3u);
  EXPECT_EQ(first.requests[2].argument, "y");
  const auto& second = std::get<engine::EditStep>(recipe.steps[1].what);
  EXPECT_EQ(second.model, "a");
  EXPECT_EQ(second.requests.front().argument, "0:16");  // not the number 16 of YAML 1.1's base 60
  EXPECT_EQ(std::get<engine::ConvertStep>(recipe.steps[2].what).model, "step 2");
  EXPECT_EQ(recipe.output, "o");
  EXPECT_EQ(recipe.seed, 9u);
}

TEST(RecipeText, quantizing_takes_the_options_of_its_command) {
  const Recipe recipe = parse(
      "steps:\n- convert: {model: ./m}\n- quantize: {format: gptq, bits: 3, group: 64, symmetric: yes, calibration: [a.txt, b.txt], budget: 900B,\n"
      "    rules: {down_proj: 8/32, lm_head: keep}}\n");
  const auto& step = std::get<engine::QuantizingStep>(recipe.steps[1].what);
  EXPECT_EQ(recipe.steps[1].verb(), "quantize");
  EXPECT_EQ(step.model, "step 1");
  EXPECT_EQ(step.options.format, "gptq");
  EXPECT_EQ(step.options.linear.bits, 3);
  EXPECT_EQ(step.options.linear.group, 64);
  EXPECT_EQ(step.options.linear.symmetric, true);
  EXPECT_EQ(step.options.linear.budget_bytes, 900u);
  ASSERT_EQ(step.options.linear.calibration.files.size(), 2u);
  ASSERT_EQ(step.options.rules.size(), 2u);
  EXPECT_EQ(step.options.rules[0], (std::pair<std::string, std::string>("down_proj", "8/32")));
  EXPECT_EQ(std::get<engine::QuantizingStep>(parse("steps: [{convert: {model: m}}, {quantize: gguf:Q4_0}]\n").steps[1].what).options.format,
            "gguf:Q4_0");
  EXPECT_WEFT_ERROR(parse("steps: [{quantize: {model: m, bits: 3}}]\n"), invalid_argument, "needs a format");
  EXPECT_WEFT_ERROR(parse("steps: [{quantize: {model: m, format: gptq, bitz: 3}}]\n"), invalid_argument, "did you mean bits?");
  EXPECT_WEFT_ERROR(parse("steps: [{quantize: {model: m, format: gptq, bits: three}}]\n"), invalid_argument, "a whole number");
  EXPECT_WEFT_ERROR(parse("steps: [{quantize: {model: m, format: gptq}}, {convert: f16}]\n"), invalid_argument, "for the last step");
}

TEST(RecipeText, mergekits_configs_are_recipes) {
  EXPECT_EQ(parse("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n").steps.size(), 1u);
  const Recipe recipe = parse(
      "merge_method: linear\nmodels: [{model: b, parameters: {weight: 1}}]\n---\nname: b\nmerge_method: linear\nmodels: [{model: a, parameters: "
      "{weight: 1}}]\n");
  ASSERT_EQ(recipe.steps.size(), 2u);
  EXPECT_EQ(recipe.steps[0].name, "b");
}

TEST(RecipeText, what_is_wrong_is_named_with_its_line) {
  EXPECT_WEFT_ERROR(parse(""), invalid_argument, "empty");
  EXPECT_WEFT_ERROR(parse("stepz: []\n"), invalid_argument, "merge_method");
  EXPECT_WEFT_ERROR(parse("steps: []\n"), invalid_argument, "steps is empty");
  EXPECT_WEFT_ERROR(parse("steps: 3\n"), invalid_argument, "where a list of steps belongs");
  EXPECT_WEFT_ERROR(parse("steps: [{edti: []}]\n"), invalid_argument, "did you mean edit?");
  EXPECT_WEFT_ERROR(parse("steps:\n- {edit: {model: a, operations: [tie]}, convert: f16}\n"), invalid_argument,
                    "a step does one thing, and this one says 2 (line 2");
  EXPECT_WEFT_ERROR(parse("steps: [{convert: f16}]\n"), invalid_argument, "the first step has no model");
  EXPECT_WEFT_ERROR(parse("steps: [{convert: {model: a, dtype: i8}}]\n"), invalid_argument, "no type that weights can be cast to");
  EXPECT_WEFT_ERROR(parse("steps: [{edit: {model: a, operations: []}}]\n"), invalid_argument, "needs a list of operations");
  EXPECT_WEFT_ERROR(parse("steps: [{edit: {model: a, operations: [{drop: '('}]}}]\n"), invalid_argument, "steps[0].edit.drop");
  EXPECT_WEFT_ERROR(parse("steps: [{edit: {model: a, operations: [{dorp: x}]}}]\n"), invalid_argument, "did you mean drop?");
  EXPECT_WEFT_ERROR(parse("steps:\n- {name: x, convert: {model: a}}\n- {name: x, convert: f16}\n"), invalid_argument,
                    "two steps are called 'x' (line 3");
  EXPECT_WEFT_ERROR(parse("steps: [{name: a+b, convert: {model: a}}]\n"), invalid_argument, "holds + or @");
  EXPECT_WEFT_ERROR(parse("steps: [{fold: {model: a}}]\n"), invalid_argument, "needs an adapter");
  EXPECT_WEFT_ERROR(parse("steps: [{fold: {model: a, adapter: l, scale: much}}]\n"), invalid_argument, "scale is no number");
  EXPECT_WEFT_ERROR(parse("steps: [{merge: {merge_method: linaer, models: []}}]\n"), invalid_argument, "linaer");
  EXPECT_WEFT_ERROR(parse("steps: [{merge: [1]}]\n"), invalid_argument, "where a mergekit config");
  EXPECT_WEFT_ERROR(parse("steps: [{convert: {model: a}}]\nseed: -1\n"), invalid_argument, "whole number");
  EXPECT_WEFT_ERROR(parse("steps: [{convert: {model: a}}]\n---\nsteps: [{convert: {model: a}}]\n"), invalid_argument, "one document");
}

TEST(RecipeText, every_text_of_the_fuzzers_corpus_is_refused_or_understood) {
  int num_texts = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(WEFT_SOURCE_DIR) / "fuzz/corpus/recipe")) {
    const std::string text = testing::read_file(entry.path());
    fuzz_recipe(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());  // aborts on a wrong result
    ++num_texts;
  }
  EXPECT_GT(num_texts, 3);
}

/// Three Llamas with values of their own.
class RecipeRun : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int m = 0; m < 3; ++m) {
      TinyLlama model;
      // Large enough that a matrix is read in several pieces.
      model.add("model.layers.0.extra.weight", {300, 1024});
      for (std::size_t t = 0; t < model.tensors.size(); ++t) {
        std::vector<float> values(model.tensors[t].bytes.size() / 4);
        for (std::size_t i = 0; i < values.size(); ++i)
          values[i] = static_cast<float>((i * 7 + t * 31 + static_cast<std::size_t>(m) * 101) % 257) / 64 - 2;
        model.tensors[t].bytes = testing::bytes_of(values);
      }
      // An architecture that is not known, so that every tensor is part of it.
      model.replace_in_config("LlamaForCausalLM", "UnheardOf");
      model.replace_in_config("\"llama\"", "\"unheard_of\"");
      model.write(path("m" + std::to_string(m)));
    }
  }
  std::filesystem::path path(const std::string& name) const { return folder_ / name; }
  std::string linear(const std::string& a, const std::string& b) const {
    return "{merge_method: linear, dtype: float32, models: [{model: " + a + ", parameters: {weight: 0.25}}, {model: " + b +
           ", parameters: {weight: 0.75}}]}";
  }
  std::string ties(const std::string& a, const std::string& b) const {
    return "{merge_method: ties, base_model: " + path("m0").string() + ", models: [{model: " + a +
           ", parameters: {weight: 1, density: 0.5}}, {model: " + b + ", parameters: {weight: 0.5, density: 0.7}}]}";
  }
  RecipeReport run(const std::string& text, const std::string& output, int threads = 2) const {
    RecipeOptions options;
    options.threads = threads;
    return run_recipe(text, "r.yml", path(output), options);
  }
  TemporaryFolder folder_;
};

TEST_F(RecipeRun, a_chain_gives_what_its_steps_give_one_after_another) {
  const std::string merge = ties(path("m1").string(), path("m2").string());
  run("steps:\n- merge: " + merge + "\n- edit: [{rename: 'model\\.=m.'}, {transpose: gate}, {layers: '0,0'}]\n- convert: bfloat16\n", "chain");
  static_cast<void>(merge_models(merge, "c.yml", path("1")));
  static_cast<void>(edit_model(path("1").string(), path("2"), {{"rename", "model\\.=m."}, {"transpose", "gate"}, {"layers", "0,0"}}));
  ConvertOptions bf16;
  bf16.dtype = DType::bf16;
  static_cast<void>(convert(path("2").string(), path("3"), bf16));
  EXPECT_EQ(testing::read_file(path("chain") / "model.safetensors"), testing::read_file(path("3") / "model.safetensors"));
  EXPECT_EQ(testing::read_file(path("chain") / "config.json"), testing::read_file(path("3") / "config.json"));
}

TEST_F(RecipeRun, merges_of_merges_equal_those_that_were_written_in_between) {
  const std::string first = linear(path("m1").string(), path("m2").string());
  for (const int threads : {1, 3}) {
    const std::string out = "chain" + std::to_string(threads);
    run("steps:\n- {name: soup, merge: " + first + "}\n- merge: " + ties("soup", path("m2").string()) + "\n", out, threads);
    const std::string kept = "soup" + std::to_string(threads);
    static_cast<void>(merge_models(first, "c.yml", path(kept)));
    static_cast<void>(merge_models(ties(path(kept).string(), path("m2").string()), "c.yml", path("2" + kept)));
    EXPECT_EQ(read_all(path(out)), read_all(path("2" + kept)));
  }
}

/// Counts the bytes that are read and written, file by file.
class CountingCalls : public SystemCalls {
 public:
  int open(const char* file, int flags, unsigned mode) override {
    const int fd = SystemCalls::open(file, flags, mode);
    const std::lock_guard lock(mutex_);
    paths_[fd] = file;
    return fd;
  }
  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override {
    const ssize_t done = SystemCalls::pread(fd, data, size, offset);
    const std::lock_guard lock(mutex_);
    std::vector<int>& counts = reads[paths_[fd]];
    for (ssize_t i = 0; i < done; ++i) {
      const auto at = static_cast<std::size_t>(offset + i);
      if (counts.size() <= at) counts.resize(at + 1, 0);
      ++counts[at];
    }
    return done;
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    const ssize_t done = SystemCalls::pwrite(fd, data, size, offset);
    const std::lock_guard lock(mutex_);
    written[paths_[fd]] += static_cast<std::uint64_t>(std::max<ssize_t>(0, done));
    return done;
  }
  std::map<std::string, std::vector<int>> reads;
  std::map<std::string, std::uint64_t> written;

 private:
  std::mutex mutex_;
  std::map<int, std::string> paths_;
};

TEST_F(RecipeRun, a_chain_reads_every_byte_of_its_inputs_once_and_writes_the_result_alone) {
  const std::string merge = linear(path("m1").string(), path("m2").string());
  for (const char* edits : {"[{rename: 'model\\.=m.'}, {drop: 'norm'}]", "[{transpose: extra}, {rename: 'a=b'}]"}) {
    CountingCalls calls;
    RecipeReport report;
    {
      const ScopedSystemCalls scope(calls);
      report = run("steps:\n- merge: " + merge + "\n- edit: " + edits + "\n- convert: bfloat16\n", "out");
    }
    const bool drops = std::string(edits).find("drop") != std::string::npos;
    for (const char* model : {"m1", "m2"}) {
      const std::string file = (path(model) / "model.safetensors").string();
      const auto checkpoint = open_checkpoint(file);
      for (const TensorInfo& tensor : checkpoint->tensors()) {
        const int want = drops && tensor.name.find("norm") != std::string::npos ? 0 : 1;
        const std::vector<int>& counts = calls.reads.at(file);
        for (std::uint64_t i = tensor.offset_bytes; i < tensor.offset_bytes + tensor.size_bytes; ++i)
          ASSERT_EQ(i < counts.size() ? counts[i] : 0, want)
              << model << " " << tensor.name << " byte " << i - tensor.offset_bytes << " after " << edits;
      }
    }
    std::uint64_t weights = 0, others = 0;
    for (const auto& [file, bytes] : calls.written) (file.ends_with(".safetensors") ? weights : others) += bytes;
    const auto size = std::filesystem::file_size(path("out") / "model.safetensors");
    EXPECT_LE(weights, size);
    EXPECT_GE(weights + 8, report.size_bytes);
    EXPECT_LT(others, 20'000u);
    std::filesystem::remove_all(path("out"));
  }
}

TEST(RecipeFold, a_chain_of_merge_fold_and_cast_reads_every_byte_once_and_equals_its_steps) {
  const std::string models = WEFT_SOURCE_DIR "/tests/data/merge/models/";
  TemporaryFolder folder;
  const std::string merge =
      "{merge_method: linear, models: [{model: " + models + "a, parameters: {weight: 0.25}}, {model: " + models + "b, parameters: {weight: 0.75}}]}";
  CountingCalls calls;
  RecipeOptions options;
  options.threads = 2;
  {
    const ScopedSystemCalls scope(calls);
    static_cast<void>(run_recipe("steps:\n- merge: " + merge + "\n- fold: {adapter: " + models + "lora-qv, scale: 1}\n- convert: float16\n", "r.yml",
                                 folder / "out", options));
  }
  static_cast<void>(merge_models(merge, "c.yml", folder / "1"));
  ConvertOptions f16;
  f16.dtype = DType::f16;
  static_cast<void>(convert((folder / "1").string() + "+" + models + "lora-qv", folder / "2", f16));
  EXPECT_EQ(read_all(folder / "out"), read_all(folder / "2"));
  for (const char* model : {"a", "b"}) {
    const std::string file = models + model + "/model.safetensors";
    const auto checkpoint = open_checkpoint(file);
    const std::vector<int>& counts = calls.reads.at(file);
    for (const TensorInfo& tensor : checkpoint->tensors())
      for (std::uint64_t i = tensor.offset_bytes; i < tensor.offset_bytes + tensor.size_bytes; ++i)
        ASSERT_EQ(i < counts.size() ? counts[i] : 0, 1) << model << " " << tensor.name << " byte " << i - tensor.offset_bytes;
  }
}

TEST(RecipeFold, a_chain_of_merge_fold_and_cast_that_ends_in_a_gguf_file_reads_every_byte_once_and_writes_that_file_alone) {
  const std::string models = WEFT_SOURCE_DIR "/models/";
  TemporaryFolder folder;
  const std::string merge = "{merge_method: linear, models: [{model: " + models + "tiny-german, parameters: {weight: 0.25}}, {model: " + models +
                            "tiny-python, parameters: {weight: 0.75}}]}";
  CountingCalls calls;
  RecipeOptions options;
  options.threads = 2;
  RecipeReport report;
  {
    const ScopedSystemCalls scope(calls);
    report = run_recipe("steps:\n- merge: " + merge + "\n- fold: {adapter: " + models + "tiny-german-lora, scale: 1}\n- convert: float16\n", "r.yml",
                        folder / "out.gguf", options);
  }
  static_cast<void>(merge_models(merge, "c.yml", folder / "1"));
  ConvertOptions f16;
  f16.dtype = DType::f16;
  static_cast<void>(convert((folder / "1").string() + "+" + models + "tiny-german-lora", folder / "2", f16));
  static_cast<void>(convert((folder / "out.gguf").string(), folder / "back", f16));
  EXPECT_EQ(read_all(folder / "back"), read_all(folder / "2"));
  for (const char* model : {"tiny-german/model.safetensors", "tiny-python/model.safetensors", "tiny-german-lora/adapter_model.safetensors"}) {
    const std::string file = models + model;
    const auto checkpoint = open_checkpoint(file);
    const std::vector<int>& counts = calls.reads.at(file);
    for (const TensorInfo& tensor : checkpoint->tensors())
      for (std::uint64_t i = tensor.offset_bytes; i < tensor.offset_bytes + tensor.size_bytes; ++i)
        ASSERT_EQ(i < counts.size() ? counts[i] : 0, 1) << model << " " << tensor.name << " byte " << i - tensor.offset_bytes;
  }
  std::uint64_t written = 0;
  for (const auto& [file, bytes] : calls.written) written += bytes;
  const auto size = std::filesystem::file_size(folder / "out.gguf");
  EXPECT_GE(written, report.size_bytes);
  EXPECT_LT(written, size + 100'000);  // and the small files that the steps hand on
}

TEST(RecipeFold, the_last_step_may_turn_the_weights_of_a_gguf_file_into_blocks) {
  const std::string models = WEFT_SOURCE_DIR "/models/";
  TemporaryFolder folder;
  static_cast<void>(run_recipe("steps:\n- convert: {model: " + models + "tiny-base, dtype: q8_0}\n", "r.yml", folder / "out.gguf"));
  ConvertOptions q8;
  q8.block_type = "Q8_0";
  static_cast<void>(convert(models + "tiny-base", folder / "2.gguf", q8));
  EXPECT_TRUE(diff((folder / "out.gguf").string(), (folder / "2.gguf").string()).equal);
  EXPECT_EQ(open_checkpoint((folder / "out.gguf").string())->tensor("output.weight").stored_as, "Q8_0");
  EXPECT_WEFT_ERROR(run_recipe("steps:\n- convert: {model: " + models + "tiny-base, dtype: Q8_0}\n", "r.yml", folder / "out"), invalid_argument,
                    "only GGUF files hold weights as Q8_0");
  EXPECT_WEFT_ERROR(parse("steps:\n- convert: {model: a, dtype: Q8_0}\n- convert: float16\n"), invalid_argument, "this is for the last step");
}

TEST_F(RecipeRun, a_mistake_in_the_last_step_is_found_before_anything_is_read_or_written) {
  const std::string merge = linear(path("m1").string(), path("m2").string());
  CountingCalls calls;
  {
    const ScopedSystemCalls scope(calls);
    EXPECT_WEFT_ERROR(run("steps:\n- merge: " + merge + "\n- edit: [{drop: no_such_tensor}]\n", "out"), invalid_argument, "matches none");
  }
  EXPECT_FALSE(std::filesystem::exists(path("out")));
  EXPECT_TRUE(calls.written.empty());
  const std::vector<int>& counts = calls.reads.at((path("m1") / "model.safetensors").string());
  EXPECT_LT(counts.size(), 5000u);
}

TEST_F(RecipeRun, a_result_that_nothing_uses_is_warned_about) {
  const std::string merge = linear(path("m1").string(), path("m2").string());
  const RecipeReport report =
      run("steps:\n- {name: lost, merge: " + merge + "}\n- convert: {model: " + path("m0").string() + ", dtype: f16}\n", "out");
  EXPECT_TRUE(std::any_of(report.warnings.begin(), report.warnings.end(),
                          [](const std::string& w) { return w.find("'lost' is used by no later step") != std::string::npos; }));
}

TEST_F(RecipeRun, the_output_may_not_be_an_input_and_must_be_given) {
  EXPECT_WEFT_ERROR(run("steps: [{convert: {model: " + path("m0").string() + ", dtype: f16}}]\n", "m0"), invalid_argument, "also an input");
  EXPECT_WEFT_ERROR(run_recipe("steps: [{convert: {model: " + path("m0").string() + "}}]\n", "r.yml", std::nullopt), invalid_argument,
                    "does not say where its result goes");
}

TEST_F(RecipeRun, values_that_are_not_finite_are_refused_through_a_chain) {
  TinyLlama model;
  model.tensors[0].bytes = testing::bytes_of(std::vector<float>(32, std::numeric_limits<float>::quiet_NaN()));
  model.write(path("nan"));
  EXPECT_WEFT_ERROR(run("steps:\n- merge: {merge_method: linear, models: [{model: " + path("nan").string() +
                            ", parameters: {weight: 1}}]}\n- edit: [{transpose: embed}]\n",
                        "out"),
                    corrupt, "NaN");
}

}  // namespace
}  // namespace weft
