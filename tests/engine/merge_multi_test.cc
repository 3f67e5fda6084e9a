#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "weft/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::read_all;
using testing::Tensors;

std::string model(const char* name) { return (fs::path(WEFT_SOURCE_DIR) / "models" / name).string(); }

class MergeMulti : public ::testing::Test {
 protected:
  std::string mean() const { return "merge_method: linear\nmodels: [{model: " + model("tiny-german") + "}, {model: " + model("tiny-python") + "}]\nparameters: {weight: 1}\n"; }
  std::string second(const std::string& of, const std::string& more = "") const {
    return "merge_method: ties\nbase_model: " + model("tiny-base") + "\nmodels: [{model: " + of + "}, {model: " + model("tiny-german") +
           "}]\nparameters: {weight: 0.5, density: 0.3}\n" + more;
  }
  testing::TemporaryFolder temporary_{testing::memory_folder()};
  const fs::path folder_ = temporary_ / "work";
};

TEST_F(MergeMulti, results_of_one_walk_equal_those_of_separate_runs) {
  MultiMergeOptions options;
  options.intermediate_dir = folder_ / "named";
  options.threads = 3;
  for (const std::string more : {"", "tokenizer: {source: base}\n"}) {
    fs::remove_all(folder_);
    const auto reports = merge_multi(second("mean", more) + "---\nname: mean\n" + mean(), "multi.yml", folder_ / "out", options);
    ASSERT_EQ(reports.size(), 2U);
    EXPECT_EQ(reports[0].output, folder_ / "named" / "mean") << "the result that the other needs comes first";

    (void)merge_models(mean(), "mean.yml", folder_ / "mean-alone", options);
    EXPECT_EQ(read_all(folder_ / "named" / "mean"), read_all(folder_ / "mean-alone"));
    (void)merge_models(second((folder_ / "mean-alone").string(), more), "second.yml", folder_ / "out-alone", options);
    EXPECT_EQ(read_all(folder_ / "out"), read_all(folder_ / "out-alone")) << more;
  }
}

TEST_F(MergeMulti, a_result_may_take_layers_of_another_in_another_order) {
  MultiMergeOptions options;
  options.intermediate_dir = folder_ / "named";
  const auto stack = [](const std::string& of) {
    return "merge_method: passthrough\nslices:\n  - sources: [{model: " + of + ", layer_range: [1, 2]}]\n  - sources: [{model: " + of +
           ", layer_range: [0, 1]}]\n  - sources: [{model: " + of + ", layer_range: [0, 2]}]\n";
  };
  (void)merge_multi("name: mean\n" + mean() + "---\n" + stack("mean"), "multi.yml", folder_ / "out", options);
  (void)merge_models(stack((folder_ / "named" / "mean").string()), "stack.yml", folder_ / "out-alone", options);
  EXPECT_EQ(read_all(folder_ / "out"), read_all(folder_ / "out-alone"));
}

TEST_F(MergeMulti, a_dry_run_plans_dependent_results_and_writes_nothing) {
  MultiMergeOptions options;
  options.intermediate_dir = folder_ / "named";
  options.dry_run = true;
  const auto reports = merge_multi("name: mean\n" + mean() + "---\n" + second("mean"), "multi.yml", folder_ / "out", options);
  ASSERT_EQ(reports.size(), 2U);
  EXPECT_EQ(reports[1].num_tensors, reports[0].num_tensors);
  EXPECT_THAT(reports[1].tensors[0].inputs, ::testing::Contains(HasSubstr("mean:")));
  EXPECT_FALSE(fs::exists(folder_));
}

TEST_F(MergeMulti, finished_results_are_kept_and_unfinished_configs_leave_nothing) {
  MultiMergeOptions options;
  options.intermediate_dir = folder_ / "named";
  (void)merge_multi("name: mean\n" + mean() + "---\n" + second("mean"), "multi.yml", folder_ / "out", options);
  const Tensors first = read_all(folder_ / "out");
  fs::remove_all(folder_ / "out");
  const auto again = merge_multi("name: mean\n" + mean() + "---\n" + second("mean"), "multi.yml", folder_ / "out", options);
  EXPECT_THAT(again[0].warnings, ::testing::Contains(HasSubstr("was kept")));
  EXPECT_EQ(read_all(folder_ / "out"), first);

  fs::remove_all(folder_);
  EXPECT_THROW((void)merge_multi("name: mean\n" + mean() + "---\n" + second("mean", "dtype: float33\n"), "multi.yml", folder_ / "out", options), Error);
  EXPECT_THROW((void)merge_multi("name: mean\n" + mean() + "---\n" + second("./no-such-model"), "multi.yml", folder_ / "out", options), Error);
  EXPECT_FALSE(fs::exists(folder_)) << "nothing is left of a job that could not be planned";
}

}  // namespace
}  // namespace weft
