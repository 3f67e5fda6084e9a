// Replays what the fuzzers of tokenizers and chat templates start from and have found, through their own targets; those abort on a wrong result.
#include <gtest/gtest.h>

#include "support/corpus.h"

#define LLVMFuzzerTestOneInput fuzz_tokenizer_json
#include "../../fuzz/tokenizer_json.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_sentencepiece_model
#include "../../fuzz/sentencepiece_model.cc"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_chat_template
#include "../../fuzz/chat_template.cc"
#undef LLVMFuzzerTestOneInput

namespace weft {
namespace {

TEST(TokenizerCorpus, tokenizers_are_refused_or_give_known_ids_and_sound_text) { testing::replay_corpus("tokenizer_json", fuzz_tokenizer_json, 3); }
TEST(TokenizerCorpus, sentencepiece_models_are_refused_or_give_known_ids_and_sound_text) {
  testing::replay_corpus("sentencepiece_model", fuzz_sentencepiece_model, 1);
}
TEST(TokenizerCorpus, chat_templates_are_refused_or_end) { testing::replay_corpus("chat_template", fuzz_chat_template, 0); }

}  // namespace
}  // namespace weft
