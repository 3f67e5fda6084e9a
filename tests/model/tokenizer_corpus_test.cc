// Replays what the fuzzers of tokenizers and chat templates start from and have found, through their own targets; those abort on a wrong result.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "support/temporary_folder.h"

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

namespace fs = std::filesystem;

/// Each input, and each cut short and with single bytes changed.
void replay(const std::string& name, int (*target)(const std::uint8_t*, std::size_t), std::size_t step) {
  int num_inputs = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(WEFT_SOURCE_DIR) / "fuzz" / "corpus" / name)) {
    SCOPED_TRACE(entry.path());
    const std::string bytes = testing::read_file(entry.path());
    target(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    for (std::size_t i = 0; i < bytes.size() && step > 0; i += step) {
      target(reinterpret_cast<const std::uint8_t*>(bytes.data()), i);
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ 0x15);
      target(reinterpret_cast<const std::uint8_t*>(changed.data()), changed.size());
    }
    ++num_inputs;
  }
  EXPECT_GT(num_inputs, 0) << name;
}

TEST(TokenizerCorpus, tokenizers_are_refused_or_give_known_ids_and_sound_text) { replay("tokenizer_json", fuzz_tokenizer_json, 3); }
TEST(TokenizerCorpus, sentencepiece_models_are_refused_or_give_known_ids_and_sound_text) {
  replay("sentencepiece_model", fuzz_sentencepiece_model, 1);
}
TEST(TokenizerCorpus, chat_templates_are_refused_or_end) { replay("chat_template", fuzz_chat_template, 0); }

}  // namespace
}  // namespace weft
