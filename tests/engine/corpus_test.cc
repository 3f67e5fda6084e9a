// Replays what the fuzzers of configs start from and what they have found, through the fuzzers' own targets; those abort on a wrong result.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "support/temporary_folder.h"

#define LLVMFuzzerTestOneInput fuzz_merge_config
#include "../../fuzz/merge_config.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_model_config
#include "../../fuzz/model_config.cc"
#undef LLVMFuzzerTestOneInput

namespace weft {
namespace {

void replay(const std::string& name, int (*target)(const std::uint8_t*, std::size_t)) {
  int num_inputs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(WEFT_SOURCE_DIR) / "fuzz" / "corpus" / name)) {
    SCOPED_TRACE(entry.path());
    const std::string bytes = testing::read_file(entry.path());
    target(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    ++num_inputs;
  }
  EXPECT_GT(num_inputs, 0) << name;
}

TEST(ConfigCorpus, merge_configs_are_refused_or_mean_the_same_when_read_again) { replay("merge_config", fuzz_merge_config); }
TEST(ConfigCorpus, what_is_read_of_a_config_is_refused_or_the_same_after_it_was_written) { replay("model_config", fuzz_model_config); }

}  // namespace
}  // namespace weft
