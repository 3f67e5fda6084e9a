// Replays what the fuzzers of configs start from and what they have found, through the fuzzers' own targets; those abort on a wrong result.
#include <gtest/gtest.h>

#include "support/corpus.h"

#define LLVMFuzzerTestOneInput fuzz_merge_config
#include "../../fuzz/merge_config.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_model_config
#include "../../fuzz/model_config.cc"
#undef LLVMFuzzerTestOneInput

namespace weft {
namespace {

TEST(ConfigCorpus, merge_configs_are_refused_or_mean_the_same_when_read_again) { testing::replay_corpus("merge_config", fuzz_merge_config); }
TEST(ConfigCorpus, what_is_read_of_a_config_is_refused_or_the_same_after_it_was_written) {
  testing::replay_corpus("model_config", fuzz_model_config);
}

}  // namespace
}  // namespace weft
