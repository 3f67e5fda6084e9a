#include "weft/search.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <string>

#include "base/file.h"
#include "support/errors.h"
#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"
#include "weft/evaluate.h"
#include "weft/job.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;
using testing::write_file;

const std::string kModels = WEFT_SOURCE_DIR "/models/";

class Search : public ::testing::Test {
 protected:
  Search() {
    std::string german, held;
    for (int i = 0; i < 60; ++i) {
      german += "Der Mann ging in das Haus, und es war gut. ";
      held += "Das Kind kam aus dem Garten, und es war kalt. ";
    }
    write_file(folder_ / "german.txt", german);
    write_file(folder_ / "held.txt", held);
  }
  std::string recipe(const std::string& rule, int evaluations, const std::string& more = "") const {
    const bool combines = rule == "lcsc";
    return std::string("merge_method: ") + (combines ? "lcsc" : "task_arithmetic\nbase_model: " + kModels + "tiny-base") + "\nmodels:\n" +
           (combines ? "- {model: " + kModels + "tiny-base}\n" : "") + "- {model: " + kModels + "tiny-python}\n- {model: " + kModels +
           "tiny-german}\n" + "search: {rule: " + rule + ", text: " + (folder_ / "german.txt").string() +
           ", window: 48, windows: 3, evaluations: " + std::to_string(evaluations) +
           (combines ? ""
                     : ", parameters: [{name: weight, range: [-0.5, 1.5], "
                       "start: 0.2}]") +
           more + "}\n";
  }
  SearchReport run(const std::string& text, const std::string& name, SearchOptions options = {}) const {
    return search(text, "search.yml", folder_ / name, options);
  }
  TemporaryFolder folder_;
};

TEST_F(Search, finds_weights_that_are_better_than_the_start_and_writes_a_config_that_merges) {
  const SearchReport report = run(recipe("cma_es", 40), "found.yml");
  EXPECT_LT(report.score, report.baselines.front().second);
  ASSERT_EQ(report.coefficients.size(), 2U);
  EXPECT_GT(report.coefficients[1], report.coefficients[0]) << "the German model matters for a German text";
  (void)merge_models(read_text_file(folder_ / "found.yml", 100000), "found.yml", folder_ / "merged");
  PerplexityOptions eval;
  eval.window = 48;
  eval.num_windows = 3;
  const fs::path texts[] = {folder_ / "german.txt"};
  // The candidate was never written; what is written is that candidate.
  EXPECT_NEAR(evaluate_texts((folder_ / "merged").string(), texts, {}, eval).texts[0].nll_per_token, report.score, 1e-6);
}

TEST_F(Search, a_combination_sums_to_one_and_is_no_worse_than_its_baselines) {
  const SearchReport report = run(recipe("lcsc", 30, ", held_out: " + (folder_ / "held.txt").string()), "found.yml");
  EXPECT_NEAR(std::accumulate(report.coefficients.begin(), report.coefficients.end(), 0.0), 1.0, 1e-9);
  ASSERT_EQ(report.baselines.size(), 4U);
  EXPECT_TRUE(report.held_out.has_value());
  EXPECT_EQ(report.baselines[0].first, "last");
}

TEST_F(Search, goes_on_with_what_was_evaluated_and_comes_to_the_same_end) {
  const SearchReport whole = run(recipe("lcsc", 24), "whole.yml");
  std::atomic<bool> cancel = false;
  SearchOptions options;
  options.cancel = &cancel;
  options.on_progress = [&](const Progress& progress) {
    if (progress.done_bytes >= 12) cancel = true;
  };
  EXPECT_WEFT_ERROR(run(recipe("lcsc", 24), "found.yml", options), interrupted, "goes on");
  EXPECT_FALSE(fs::exists(folder_ / "found.yml"));
  const std::vector<UnfinishedJob> jobs = unfinished_jobs(folder_ / "found.yml");
  ASSERT_EQ(jobs.size(), 1U);
  EXPECT_EQ(jobs[0].output.filename(), "found.yml");
  EXPECT_EQ(jobs[0].what, "searching");
  EXPECT_GE(jobs[0].num_finished, 11U);
  EXPECT_TRUE(jobs[0].resumable);
  EXPECT_WEFT_ERROR(run(recipe("lcsc", 25), "found.yml"), invalid_argument, "not the same");
  EXPECT_EQ(whole.num_resumed, 0U);
  const SearchReport resumed = run(recipe("lcsc", 24), "found.yml");
  EXPECT_GE(resumed.num_resumed, 12U);
  EXPECT_EQ(resumed.coefficients, whole.coefficients);
  EXPECT_EQ(resumed.score, whole.score);
  for (const std::string& name : testing::tree(folder_.path())) EXPECT_EQ(name.find("weft-search"), std::string::npos) << name;
}

TEST_F(Search, recipes_that_make_no_sense_are_refused_with_their_place) {
  EXPECT_WEFT_ERROR(run("merge_method: linear\n", "f"), invalid_argument, "no section 'search'");
  EXPECT_WEFT_ERROR(run("merge_method: linear\nsearch: {rule: luck}\n", "f"), invalid_argument, "no rule 'luck'");
  EXPECT_WEFT_ERROR(run("merge_method: linear\nsearch: {rule: cma_es, text: a}\n", "f"), invalid_argument, "'parameters' is missing");
  EXPECT_WEFT_ERROR(run(recipe("cma_es", 0), "f"), invalid_argument, "whole number from 1");
  EXPECT_WEFT_ERROR(run(recipe("cma_es", 5, ", windoes: 3"), "f"), invalid_argument, "windoes");
  EXPECT_WEFT_ERROR(run(recipe("cma_es", 5, ", held_out: nothing.txt"), "f"), not_found, "nothing.txt");
}

}  // namespace
}  // namespace weft
