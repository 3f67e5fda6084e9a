// Replays what the fuzzer of adapters starts from and has found, through its own target, which aborts on a wrong result.
#include "support/corpus.h"

#define LLVMFuzzerTestOneInput fuzz_adapter
#include "../../fuzz/adapter.cc"
#undef LLVMFuzzerTestOneInput

namespace weft {
namespace {

TEST(AdapterCorpus, adapters_are_refused_or_make_sense_and_read_back_the_same) { testing::replay_corpus("adapter", fuzz_adapter, 1); }

}  // namespace
}  // namespace weft
