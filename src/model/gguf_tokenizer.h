#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace weft {
class GgufMetadata;
}  // namespace weft

namespace weft::model {

class Tokenizer;

/// The vocabulary inside a GGUF file ("tokenizer.ggml.*").
struct GgufTokens {
  std::string kind;  ///< "gpt2" (byte-level BPE), "llama" (SentencePiece BPE), "bert" (WordPiece), "t5" (Unigram)
  std::string pre;   ///< which split a byte-level BPE uses
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<std::int64_t> types;  ///< 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<std::string> merges;
  std::optional<std::uint64_t> bos;
  std::optional<std::uint64_t> eos;
  std::optional<std::uint64_t> unknown;
  std::optional<std::uint64_t> separator;
  std::optional<std::uint64_t> padding;
  std::optional<std::uint64_t> mask;
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
  std::optional<bool> remove_extra_whitespaces;
  std::string charsmap;
  std::optional<std::string> chat_template;
};

/// Errors: not_found when the file has none, corrupt when its lists have different lengths. metadata: with its lists read.
[[nodiscard]] GgufTokens read_gguf_tokens(const GgufMetadata& metadata, const std::filesystem::path& file);

/// The tokenizer of a vocabulary. Errors: unsupported for another kind or an unknown split, corrupt.
[[nodiscard]] Tokenizer make_gguf_tokenizer(GgufTokens vocabulary, const std::filesystem::path& file);

}  // namespace weft::model
