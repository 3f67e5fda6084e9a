#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

namespace weft {

/// What a tokenizer is, without loading it.
struct TokenizerSummary {
  std::string kind;              ///< "BPE", "Unigram", "WordPiece", "WordLevel", "sentencepiece"; empty for none
  std::uint64_t vocab_size = 0;  ///< tokens, added ones included
};

/// Counts the tokens of a model folder in one pass through the beginning of its file, in 64 KiB. Errors: corrupt, io.
[[nodiscard]] TokenizerSummary summarize_tokenizer(const std::filesystem::path& folder);

}  // namespace weft
