// Jobs that are stopped and go on. The bytes of the result must be those of a run that was not disturbed, whatever happened in between.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <thread>

#include "checkpoint/output.h"
#include "engine/interrupt.h"
#include "engine/output_job.h"
#include "support/errors.h"
#include "support/fault_calls.h"
#include "support/memory_checkpoint.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/calibrate.h"
#include "weft/inspect.h"
#include "weft/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::read_file;
using testing::tree;
using testing::write_file;

/// Twelve tensors, of which the first has more than one block of checksums.
void write_model(const fs::path& folder, float scale) {
  std::vector<testing::StoredTensor> tensors;
  for (int i = 0; i < 12; ++i) {
    const std::vector<std::int64_t> shape = i == 0 ? std::vector<std::int64_t>{1100, 1024} : std::vector<std::int64_t>{32, 64};
    const auto count = static_cast<std::size_t>(shape[0] * shape[1]);
    tensors.push_back({"layers." + std::to_string(i) + ".weight", "F32", shape, testing::bytes_of(testing::random_values(count, 7, scale))});
  }
  fs::create_directories(folder);
  write_file(folder / "model.safetensors", testing::safetensors_of_types(tensors));
  write_file(folder / "config.json", "{\"architectures\":[\"Unknown\"]}");
}

std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> all;
  for (const std::string& name : tree(folder))
    if (name.back() != '/') all[name] = read_file(folder / name);
  return all;
}

class Resume : public ::testing::Test {
 protected:
  Resume() {
    write_model(work_ / "a", 1);
    write_model(work_ / "b", 2);
  }

  [[nodiscard]] std::string config(const std::string& method) const {
    return "merge_method: " + method + "\nbase_model: " + (work_ / "a").string() + "\nmodels: [{model: " + (work_ / "a").string() +
           "}, {model: " + (work_ / "b").string() + "}]\nparameters: {weight: 0.5, density: 0.5, t: 0.3}\n";
  }
  /// A job on options; `out` is a folder.
  using Run = std::function<JobReport(const fs::path& out, const JobOptions& options)>;
  [[nodiscard]] Run merge(const std::string& method) const {
    return [text = config(method)](const fs::path& out, const JobOptions& options) {
      MergeOptions all;
      static_cast<JobOptions&>(all) = options;
      return merge_models(text, "config.yml", out, all);
    };
  }
  [[nodiscard]] Run converted(DType dtype) const {
    return [this, dtype](const fs::path& out, const JobOptions& options) {
      ConvertOptions all;
      static_cast<JobOptions&>(all) = options;
      all.dtype = dtype;
      return convert((work_ / "a").string(), out, all);
    };
  }

  /// Stops the run once so many of its bytes are done; nothing when it was done before that.
  static std::optional<Error> stopped_after(const Run& run, const fs::path& out, std::uint64_t bytes, JobOptions options = {}) {
    std::atomic<bool> cancel{false};
    StopCalls calls(cancel, bytes);
    const ScopedSystemCalls scoped(calls);
    options.cancel = &cancel;
    options.threads = 1;
    return error_of([&] { (void)run(out, options); });
  }

  testing::TemporaryFolder work_{testing::memory_folder()};

 private:
  class StopCalls : public SystemCalls {
   public:
    StopCalls(std::atomic<bool>& cancel, std::uint64_t bytes) : cancel_(cancel), left_(static_cast<std::int64_t>(bytes)) {}
    ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
      if ((left_ -= static_cast<std::int64_t>(size)) < 0) cancel_ = true;
      return SystemCalls::pwrite(fd, data, size, offset);
    }

   private:
    std::atomic<bool>& cancel_;
    std::atomic<std::int64_t> left_;
  };
};

constexpr std::uint64_t kFirst = 1100 * 1024 * 4;

TEST_F(Resume, a_stopped_job_goes_on_and_gives_the_same_bytes) {
  for (const auto& [name, run] : std::map<std::string, Run>{
           {"linear", merge("linear")}, {"slerp", merge("slerp")}, {"ties", merge("ties")}, {"convert", converted(DType::bf16)}}) {
    const std::uint64_t big = name == "convert" ? kFirst / 2 : kFirst;
    for (const std::uint64_t shard : {std::uint64_t{0}, std::uint64_t{20000}}) {
      JobOptions options;
      options.max_shard_bytes = shard;
      const fs::path out = work_ / "out";
      (void)run(out, options);
      const std::map<std::string, std::string> whole = contents(out);
      fs::remove_all(out);
      // In the big tensor, in one of the others, and in a later one.
      for (const std::uint64_t bytes : {big / 4, big + 20000, std::uint64_t{15000}}) {
        const std::optional<Error> error = stopped_after(run, out, bytes, options);
        ASSERT_TRUE(error) << name << " " << shard << " " << bytes;
        EXPECT_EQ(error->code(), ErrorCode::interrupted) << error->what();
        EXPECT_FALSE(fs::exists(out));
      }
      EXPECT_GT(run(out, options).bytes_resumed, big) << name << " " << shard;
      EXPECT_TRUE(contents(out) == whole) << name << " " << shard;
      fs::remove_all(out);
      EXPECT_THAT(unfinished_jobs(work_.path()), IsEmpty());
    }
  }
}

TEST_F(Resume, every_command_that_makes_a_model_goes_on_and_refuses_what_is_not_the_same) {
  const std::string models = WEFT_SOURCE_DIR "/models/", data = WEFT_SOURCE_DIR "/tests/data/";
  const auto with = [](auto options, const JobOptions& common) {
    static_cast<JobOptions&>(options) = common;
    return options;
  };
  const auto mixture = [&](const std::string& more) -> Run {
    const std::string config = "base_model: " + models + "tiny-base\ngate_mode: uniform_random\nexperts:\n- {source_model: " + models +
                               "tiny-german, noise_scale: 0.01}\n- {source_model: " + models + "tiny-python}\n" + more;
    return [=](const fs::path& out, const JobOptions& options) { return merge_moe(config, "moe.yml", out, with(MoeOptions{}, options)); };
  };
  const auto plain = [&](PlainFiles files) -> Run {
    const std::string text = config("linear");
    return [=](const fs::path& out, const JobOptions& options) {
      MergeOptions all = with(MergeOptions{}, options);
      all.plain_files = files;
      return merge_models(text, "config.yml", out, all);
    };
  };
  const auto shuffle = [&](std::uint64_t seed) -> Run {
    LayerShuffleOptions layers;
    layers.models = {models + "tiny-german", models + "tiny-python"};
    layers.seed = seed;
    return [=](const fs::path& out, const JobOptions& options) {
      return merge_models(layershuffle_config(layers), "layershuffle", out, with(MergeOptions{}, options));
    };
  };
  const auto metadata = [&](const std::string& title) -> Run {
    return [=](const fs::path& out, const JobOptions& options) {
      return edit_metadata(models + "tiny-base/model.safetensors", out.string() + ".safetensors", {{{"title", title}}, {}}, options);
    };
  };
  const auto tokens = [&](const std::string& method) -> Run {
    return [=](const fs::path& out, const JobOptions& options) -> JobReport {
      TokensOptions all = with(TokensOptions{}, options);
      all.tokenizer = data + "merge/models/wide";
      all.method = method;
      return edit_tokens(data + "merge/models/a", out, all);
    };
  };
  const auto resized = [&](std::uint64_t rows) -> Run {
    return [=](const fs::path& out, const JobOptions& options) -> JobReport {
      TokensOptions all = with(TokensOptions{}, options);
      all.resize = rows;
      return edit_tokens(models + "tiny-base", out, all);
    };
  };
  const auto folded = [&](double scale) -> Run {
    return [=](const fs::path& out, const JobOptions& options) -> JobReport {
      FoldAdapterOptions all = with(FoldAdapterOptions{}, options);
      all.scale = scale;
      return fold_adapter(models + "tiny-base", models + "tiny-german-lora", out, all);
    };
  };
  struct Case {
    const char* name;
    Run run, other;
    const char* differs;
  };
  // The seed draws the layers, so that another one makes another config.
  std::uint64_t other_seed = 2;
  for (LayerShuffleOptions layers{.models = {models + "tiny-german", models + "tiny-python"}, .weights = {}, .seed = 1};;) {
    const std::string first = layershuffle_config(layers);
    layers.seed = other_seed;
    if (layershuffle_config(layers) != first) break;
    ++other_seed;
  }
  const std::vector<Case> cases = {
      {"mixture", mixture(""), mixture("dtype: float16\n"), "the config"},
      {"plain", plain(PlainFiles::same_tensors), merge("slerp"), "the config"},
      {"layershuffle", shuffle(1), shuffle(other_seed), "the config"},
      {"metadata", metadata("one"), metadata("another"), "the changes"},
      {"tokens", tokens("subword"), tokens("mean"), "how rows are made"},
      {"resize", resized(5000), resized(5008), "--resize"},
      {"fold", folded(1), folded(0.5), "--scale"},
  };
  for (const Case& one : cases) {
    const fs::path out = work_ / "out";
    const std::string file = out.string() + ".safetensors";
    const auto made = [&] { return fs::exists(file) ? std::map<std::string, std::string>{{"", read_file(file)}} : contents(out); };
    const auto remove = [&] {
      fs::remove_all(out);
      fs::remove(file);
      fs::remove(file + ".checksums");
    };
    const JobReport undisturbed = one.run(out, {});
    const std::map<std::string, std::string> whole = made();
    remove();
    const std::optional<Error> stopped = stopped_after(one.run, out, undisturbed.size_bytes * 99 / 100);
    ASSERT_TRUE(stopped) << one.name;
    ASSERT_EQ(unfinished_jobs(work_.path()).size(), 1u) << one.name << ": " << stopped->what();
    EXPECT_TRUE(unfinished_jobs(work_.path())[0].resumable) << one.name;
    const std::optional<Error> refused = error_of([&] { (void)one.other(out, {}); });
    ASSERT_TRUE(refused) << one.name;
    EXPECT_THAT(refused->what(), HasSubstr(one.differs)) << one.name;
    const JobReport report = one.run(out, {});
    EXPECT_GT(report.bytes_resumed, 0u) << one.name;
    EXPECT_EQ(report.bytes_resumed + report.bytes_written, undisturbed.size_bytes) << one.name;
    EXPECT_TRUE(made() == whole) << one.name;
    remove();
    EXPECT_THAT(unfinished_jobs(work_.path()), IsEmpty());
  }
}

/// Counts what is written.
class CountCalls : public SystemCalls {
 public:
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    bytes += size;
    return SystemCalls::pwrite(fd, data, size, offset);
  }
  std::atomic<std::uint64_t> bytes = 0;
};

/// Cancels once a file whose path holds this is opened.
class StopAtFile : public SystemCalls {
 public:
  StopAtFile(std::atomic<bool>& cancel, std::string name) : cancel_(cancel), name_(std::move(name)) {}
  int open(const char* path, int flags, unsigned mode) override {
    if (std::string_view(path).find(name_) != std::string_view::npos) cancel_ = true;
    return SystemCalls::open(path, flags, mode);
  }

 private:
  std::atomic<bool>& cancel_;
  std::string name_;
};

TEST_F(Resume, passes_over_blocks_go_on_behind_the_last_finished_one) {
  const std::string models = WEFT_SOURCE_DIR "/models/";
  std::string text, other;
  for (int i = 0; i < 600; ++i) {
    text += i % 5 == 0 ? "in the beginning. " : "and god said let there be light ";
    other += i % 3 == 0 ? "def f(x):\n    return x\n" : "import self\n";
  }
  write_file(work_ / "a.txt", text);
  write_file(work_ / "b.txt", other);
  const auto calibrated = [&](bool imatrix, std::uint64_t samples) -> Run {
    return [=, this](const fs::path& out, const JobOptions& options) -> JobReport {
      CalibrateOptions all;
      static_cast<JobOptions&>(all) = options;
      all.text.files = {work_ / "a.txt"};
      all.text.num_sequences = samples;
      all.text.length = 64;
      all.gram = !imatrix;
      return calibrate(models + "tiny-base", out.string() + (imatrix ? ".gguf" : ".safetensors"), all);
    };
  };
  const auto regressed = [&](const std::string& method, int samples) -> Run {
    const std::string config = "merge_method: " + method + "\nmodels:\n- {model: " + models + "tiny-german, text: " + (work_ / "a.txt").string() +
                               "}\n- {model: " + models + "tiny-python, text: " + (work_ / "b.txt").string() +
                               "}\nparameters: {samples: " + std::to_string(samples) + ", length: 64}\n";
    return [=](const fs::path& out, const JobOptions& options) {
      MergeOptions all;
      static_cast<JobOptions&>(all) = options;
      return merge_models(config, "regmean.yml", out, all);
    };
  };
  struct Case {
    const char* name;
    Run run, differs;
    std::string made;
  };
  for (const Case& one : std::vector<Case>{{"statistics", calibrated(false, 6), calibrated(false, 7), "out.safetensors"},
                                           {"importance matrix", calibrated(true, 6), calibrated(true, 7), "out.gguf"},
                                           {"RegMean", regressed("regmean", 6), regressed("regmean", 7), "out"},
                                           {"RegMean++", regressed("regmean_plusplus", 6), regressed("regmean_plusplus", 7), "out"}}) {
    SCOPED_TRACE(one.name);
    const fs::path made = work_ / one.made, kept = work_ / ("." + one.made + ".weft-blocks");
    const auto bytes_of = [&] { return fs::is_directory(made) ? contents(made) : std::map<std::string, std::string>{{"", read_file(made)}}; };
    JobOptions options;
    options.journal_seconds = 0;
    std::uint64_t whole_bytes = 0;
    std::vector<std::string> warnings;
    {
      CountCalls calls;
      const ScopedSystemCalls scoped(calls);
      warnings = one.run(work_ / "out", options).warnings;
      whole_bytes = calls.bytes;
    }
    const std::map<std::string, std::string> whole = bytes_of();
    fs::remove_all(made);
    const std::vector<std::string> before = tree(work_.path());
    // In the first block, behind it, and while a merge's output itself is written.
    const bool merges = one.made == "out";
    const auto stopped_at = [&](const std::string& name) {
      std::atomic<bool> cancel{false};
      StopAtFile calls(cancel, name);
      const ScopedSystemCalls scoped(calls);
      JobOptions stopping = options;
      stopping.cancel = &cancel;
      return error_of([&] { (void)one.run(work_ / "out", stopping); });
    };
    for (const std::string place : {"weft-blocks/journal", "block-00000", "output"}) {
      const std::optional<Error> error =
          place == "output" ? stopped_after(one.run, work_ / "out", whole_bytes * 95 / 100, options) : stopped_at(place);
      if (!merges && place == "output") {
        EXPECT_FALSE(error) << "a small file is written to its end";
        fs::remove_all(made);
        continue;
      }
      ASSERT_TRUE(error) << place;
      EXPECT_EQ(error->code(), ErrorCode::interrupted) << error->what();
      EXPECT_FALSE(fs::exists(made));
      ASSERT_TRUE(fs::exists(kept / "journal"));
      // Listed in the folder of its output, for the output, and by its own name.
      std::vector<UnfinishedJob> jobs = unfinished_jobs(work_.path());
      std::erase_if(jobs, [&](const UnfinishedJob& job) { return job.folder != fs::canonical(kept); });
      ASSERT_EQ(jobs.size(), 1u);
      EXPECT_EQ(jobs[0].output, fs::canonical(work_.path()) / one.made);
      EXPECT_EQ(jobs[0].num_tensors, 2u) << "the model has two blocks";
      EXPECT_EQ(jobs[0].resumable, jobs[0].num_finished > 0);
      EXPECT_FALSE(jobs[0].running);
      ASSERT_FALSE(unfinished_jobs(made).empty());
      ASSERT_EQ(unfinished_jobs(kept).size(), 1u);
      const std::optional<Error> refused = error_of([&] { (void)one.differs(work_ / "out", options); });
      ASSERT_TRUE(refused);
      EXPECT_EQ(refused->code(), ErrorCode::invalid_argument);
      CountCalls calls;
      JobReport report;
      {
        const ScopedSystemCalls scoped(calls);
        report = one.run(work_ / "out", options);
      }
      EXPECT_TRUE(bytes_of() == whole) << place;
      EXPECT_EQ(report.warnings, warnings);
      if (place != "weft-blocks/journal") {
        EXPECT_LT(calls.bytes, whole_bytes) << place << ": nothing was resumed";
      }
      fs::remove_all(made);
      EXPECT_EQ(tree(work_.path()), before) << "something was left behind";
    }
    ASSERT_TRUE(stopped_at("block-00000"));
    for (const UnfinishedJob& job : unfinished_jobs(made)) discard_job(job);
    EXPECT_EQ(tree(work_.path()), before);
  }
}

TEST_F(Resume, files_that_only_look_like_what_a_pass_keeps_are_passed_over) {
  write_file(work_ / ".out.weft-blocks", "a file");
  fs::create_directories(work_ / ".other.weft-blocks");
  fs::create_directories(work_ / ".out.weft-search");
  write_file(work_ / ".weft-search", "no output");
  EXPECT_THAT(unfinished_jobs(work_.path()), IsEmpty());
  EXPECT_WEFT_ERROR(unfinished_jobs(work_ / "out"), not_found, "no folder");
  write_file(work_ / ".third.weft-search", "written by someone else\n");
  ASSERT_EQ(unfinished_jobs(work_.path()).size(), 1u);
  EXPECT_FALSE(unfinished_jobs(work_.path())[0].resumable);
}

TEST_F(Resume, the_error_names_what_is_kept_and_jobs_lists_it) {
  const std::optional<Error> error = stopped_after(converted(DType::bf16), work_ / "out", kFirst / 2 + 10000);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->exit_status(), 1);
  const std::vector<UnfinishedJob> jobs = unfinished_jobs(work_.path());
  ASSERT_EQ(jobs.size(), 1u);
  EXPECT_THAT(error->what(), HasSubstr(jobs[0].folder.string()));
  EXPECT_EQ(jobs[0].output, fs::canonical(work_.path()) / "out");
  EXPECT_EQ(jobs[0].what, "converting");
  EXPECT_TRUE(jobs[0].resumable);
  EXPECT_FALSE(jobs[0].running);
  EXPECT_EQ(jobs[0].num_tensors, 12u);
  EXPECT_GT(jobs[0].num_finished, 0u);
  EXPECT_LT(jobs[0].num_finished, 12u);
  EXPECT_EQ(unfinished_jobs(work_ / "out").size(), 1u) << "found by its output as well";
  discard_job(jobs[0]);
  EXPECT_THAT(unfinished_jobs(work_.path()), IsEmpty());
  EXPECT_WEFT_ERROR(unfinished_jobs(work_ / "out"), not_found, "no folder");
}

TEST_F(Resume, nothing_is_kept_when_nothing_was_finished) {
  const std::optional<Error> error = stopped_after(converted(DType::bf16), work_ / "out", 100);
  ASSERT_TRUE(error);
  EXPECT_THAT(error->what(), HasSubstr("nothing is kept"));
  EXPECT_THAT(unfinished_jobs(work_.path()), IsEmpty());
}

TEST_F(Resume, a_job_that_is_not_the_same_is_refused_with_what_changed_and_nothing_is_lost) {
  const auto stop = [&](const Run& run) { ASSERT_TRUE(stopped_after(run, work_ / "out", kFirst + 30000)); };
  const auto refusal = [&](const Run& run, const JobOptions& options = {}) {
    const std::vector<std::string> before = tree(work_.path());
    const std::optional<Error> error = error_of([&] { (void)run(work_ / "out", options); });
    EXPECT_EQ(tree(work_.path()), before);
    if (!error) return std::string();
    EXPECT_EQ(error->code(), ErrorCode::invalid_argument);
    return std::string(error->what());
  };
  stop(merge("linear"));
  EXPECT_THAT(refusal(merge("ties")), HasSubstr("the config"));
  EXPECT_THAT(refusal(converted(DType::f32)), HasSubstr("--dtype"));
  JobOptions other;
  other.seed = 3;
  EXPECT_THAT(refusal(merge("linear"), other), HasSubstr("the seed (was 0, is 3)"));
  other = {};
  other.max_shard_bytes = 100'000;
  EXPECT_THAT(refusal(merge("linear"), other), HasSubstr("--max-shard-size"));
  fs::last_write_time(work_ / "b/model.safetensors", fs::file_time_type::clock::now());
  EXPECT_THAT(refusal(merge("linear")), HasSubstr("b/model.safetensors"));
  EXPECT_THAT(refusal(merge("linear")), Not(HasSubstr("a/model.safetensors")));
  EXPECT_THAT(refusal(merge("linear")), HasSubstr("weft jobs --discard"));
  EXPECT_TRUE(unfinished_jobs(work_.path())[0].resumable);
}

TEST_F(Resume, a_torn_journal_and_damaged_data_cost_only_what_they_hit) {
  JobOptions options;
  options.max_shard_bytes = 0;
  const Run run = converted(DType::f32);
  (void)run(work_ / "whole", options);
  ASSERT_TRUE(stopped_after(run, work_ / "out", kFirst + 60000, options));
  const UnfinishedJob job = unfinished_jobs(work_.path()).at(0);
  ASSERT_GT(job.num_finished, 4u);
  const fs::path journal = job.folder / "journal";
  const std::string bytes = read_file(journal);
  for (const std::size_t cut : {std::size_t{1}, std::size_t{9}, std::size_t{60}}) {
    write_file(journal, bytes.substr(0, bytes.size() - cut) + std::string(30, '\xA5'));
    EXPECT_EQ(unfinished_jobs(work_.path()).at(0).num_finished, job.num_finished - (cut > 50 ? 2 : 1)) << cut;
  }
  // A bit in the first tensor, which was recorded.
  {
    std::fstream file(job.folder / "new/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(5000);
    file.put('\x5A');
  }
  const JobReport report = run(work_ / "out", options);
  EXPECT_GT(report.bytes_resumed, 0u);
  EXPECT_LT(report.bytes_resumed, kFirst) << "the damaged one is written again";
  EXPECT_TRUE(contents(work_ / "out") == contents(work_ / "whole"));
}

TEST_F(Resume, a_journal_whose_head_is_damaged_starts_anew) {
  ASSERT_TRUE(stopped_after(converted(DType::f32), work_ / "out", kFirst + 60000));
  const fs::path journal = unfinished_jobs(work_.path()).at(0).folder / "journal";
  std::string bytes = read_file(journal);
  bytes[20] ^= 1;
  write_file(journal, bytes);
  EXPECT_FALSE(unfinished_jobs(work_.path()).at(0).resumable);
  EXPECT_EQ(converted(DType::f32)(work_ / "out", {}).bytes_resumed, 0u);
  EXPECT_THAT(unfinished_jobs(work_.path()), IsEmpty());
}

TEST_F(Resume, a_single_file_goes_on_as_a_folder_does) {
  const Run run = converted(DType::f32);
  (void)run(work_ / "whole.safetensors", {});
  ASSERT_TRUE(stopped_after(run, work_ / "out.safetensors", kFirst + 30000));
  EXPECT_GT(run(work_ / "out.safetensors", {}).bytes_resumed, 0u);
  EXPECT_TRUE(read_file(work_ / "out.safetensors") == read_file(work_ / "whole.safetensors"));
}

TEST_F(Resume, warnings_of_finished_tensors_are_said_again) {
  // Values beyond the range of float16.
  write_model(work_ / "a", 1e5F);
  const Run run = converted(DType::f16);
  const std::vector<std::string> expected = run(work_ / "whole", {}).warnings;
  ASSERT_THAT(expected, Not(IsEmpty()));
  JobOptions allow;
  ASSERT_TRUE(stopped_after(run, work_ / "out", kFirst / 2 + 20000));
  const JobReport report = run(work_ / "out", {});
  EXPECT_GT(report.bytes_resumed, 0u);
  EXPECT_EQ(report.warnings, expected);
}

TEST_F(Resume, bad_input_leaves_nothing_even_of_a_run_that_went_on) {
  ASSERT_TRUE(stopped_after(converted(DType::bf16), work_ / "out", kFirst / 2 + 10000));
  // The file is read while something writes to it: its content changes, not what tells it from others.
  const fs::path input = work_ / "a/model.safetensors";
  const auto time = fs::last_write_time(input);
  {
    std::fstream file(input, std::ios::in | std::ios::out | std::ios::binary | std::ios::ate);
    file.seekp(-4, std::ios::end);
    file.write("\xff\xff\xff\x7f", 4);
  }
  fs::last_write_time(input, time);
  EXPECT_WEFT_ERROR(converted(DType::bf16)(work_ / "out", {}), corrupt, "NaN");
  EXPECT_THAT(unfinished_jobs(work_.path()), IsEmpty());
}

TEST_F(Resume, the_journal_is_brought_to_the_disk_behind_its_data) {
  class OrderCalls : public SystemCalls {
   public:
    int open(const char* path, int flags, unsigned mode) override {
      const int fd = SystemCalls::open(path, flags, mode);
      const std::lock_guard lock(mutex);
      names[fd] = fs::path(path).filename();
      return fd;
    }
    int fsync(int fd) override {
      const std::lock_guard lock(mutex);
      log.push_back("sync " + names[fd]);
      return SystemCalls::fsync(fd);
    }
    ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
      {
        const std::lock_guard lock(mutex);
        if (log.empty() || log.back() != "write " + names[fd]) log.push_back("write " + names[fd]);
      }
      return SystemCalls::pwrite(fd, data, size, offset);
    }
    std::mutex mutex;
    std::map<int, std::string> names;
    std::vector<std::string> log;
  } calls;
  JobOptions options;
  options.journal_bytes = 1;
  options.threads = 1;
  {
    const ScopedSystemCalls scoped(calls);
    (void)converted(DType::f32)(work_ / "out", options);
  }
  // Between any two writes to the journal the data was synced, and then the journal.
  int batches = 0;
  bool data_synced = false;
  for (std::size_t i = 0; i < calls.log.size(); ++i) {
    if (calls.log[i] == "sync model.safetensors") data_synced = true;
    if (calls.log[i] != "write journal") continue;
    const bool is_last = std::find(calls.log.begin() + static_cast<std::ptrdiff_t>(i) + 1, calls.log.end(), "write journal") == calls.log.end();
    if (batches++ > 0) {
      EXPECT_TRUE(data_synced || is_last) << i;
    }
    data_synced = false;
  }
  EXPECT_GE(batches, 2) << "the head, and at least one batch";
}

// ---- signals ----

/// Takes a minute for one tile, as a factorisation may.
class SleepingMerge final : public merge::TensorMerge {
 public:
  explicit SleepingMerge(bool sleeps) : sleeps_(sleeps) {}
  void map(const merge::Tile& tile, std::span<float> out) const override {
    if (sleeps_) ::sleep(60);
    std::copy_n(tile.inputs[0], tile.count, out.begin());
  }

 private:
  bool sleeps_;
};

/// A job whose last tensor takes a minute; in a process of its own. Gives its exit status and how long it took to end after the signals.
struct Ended {
  int status = 0;
  double seconds = 0;
  std::string said;
};

Ended signal_sleeping_job(const fs::path& folder, const std::vector<int>& signals) {
  const pid_t child = ::fork();
  if (child == 0) {
    static std::atomic<bool> cancelled{false};
    engine::end_on_signals(cancelled, [&](const Error& error) {
      write_file(folder / "said", error.what());
      return error.exit_status();
    });
    JobOptions options;
    options.cancel = &cancelled;
    options.threads = 2;
    const std::vector<float> values(64 * 1024, 1.0F);
    std::vector<testing::MemoryCheckpoint::Tensor> tensors;
    for (const char* name : {"a", "b", "c"}) tensors.push_back({name, DType::f32, {64, 1024}, testing::stored_as(DType::f32, values)});
    const auto input = std::make_shared<testing::MemoryCheckpoint>(std::move(tensors));
    engine::OutputJob job;
    job.inputs = {input};
    job.ingredients = {{"the test", "sleeping"}};
    for (const TensorInfo& info : input->tensors()) {
      engine::StreamTensor tensor;
      tensor.name = info.name;
      tensor.shape = info.shape;
      tensor.inputs = {{input, &info}};
      tensor.merge = std::make_unique<SleepingMerge>(info.name == "c");
      job.tensors.push_back(std::move(tensor));
      PlannedTensor described;
      described.name = info.name;
      described.shape = info.shape;
      job.described.push_back(std::move(described));
    }
    engine::JobBatch batch(options, "sleeping");
    batch.add(std::move(job), folder / "out");
    write_file(folder / "begun", "");
    (void)batch.run();
    ::_exit(0);
  }
  while (!fs::exists(folder / "begun")) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const auto start = std::chrono::steady_clock::now();
  for (const int number : signals) {
    ::kill(child, number);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  Ended ended;
  ended.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ended.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (fs::exists(folder / "said")) ended.said = read_file(folder / "said");
  return ended;
}

TEST_F(Resume, a_signal_ends_the_process_within_two_seconds_whatever_a_kernel_is_doing_and_keeps_what_is_finished) {
  for (const int number : {SIGINT, SIGTERM}) {
    const testing::TemporaryFolder folder;
    const Ended ended = signal_sleeping_job(folder.path(), {number});
    EXPECT_EQ(ended.status, 1);
    EXPECT_LT(ended.seconds, 2.0);
    const std::vector<UnfinishedJob> jobs = unfinished_jobs(folder.path());
    ASSERT_EQ(jobs.size(), 1u);
    EXPECT_TRUE(jobs[0].resumable);
    EXPECT_EQ(jobs[0].num_finished, 2u);
    EXPECT_THAT(ended.said, HasSubstr(jobs[0].folder.string()));
  }
}

TEST_F(Resume, a_second_signal_ends_the_process_at_once) {
  const testing::TemporaryFolder folder;
  const Ended ended = signal_sleeping_job(folder.path(), {SIGINT, SIGTERM});
  EXPECT_EQ(ended.status, 128 + SIGTERM);
  EXPECT_LT(ended.seconds, 0.9) << "before the process would have ended by itself";
}

}  // namespace
}  // namespace weft
