#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/gguf.h"
#include "checkpoint/json.h"
#include "model/vocabulary.h"

// The vocabulary inside a GGUF file, from Hugging Face's tokenizer files and back to them.
namespace weft::model {

/// Everything under `tokenizer.`, as the file says it.
struct GgufVocabulary {
  enum Type : std::int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

  std::string model;                ///< "gpt2" (BPE of bytes), "llama" (SentencePiece's BPE), "bert" (WordPiece), "t5" (Unigram)
  std::string pre;                  ///< how text is split first: "gpt-2", "llama-bpe", "qwen2", ...; may be empty
  std::vector<std::string> tokens;  ///< by id
  std::vector<float> scores;        ///< empty or one a token
  std::vector<std::int32_t> types;  ///< empty or one a token
  std::vector<std::string> merges;  ///< "a b", best first
  /// "bos", "eos", "unknown", "seperator" (sic), "padding", "cls", "mask", "eot", "eom", ... and its id, in the order of the file.
  std::vector<std::pair<std::string, std::uint32_t>> special_ids;
  std::optional<bool> add_bos, add_eos, add_sep, add_space_prefix, remove_extra_whitespaces;
  std::string precompiled_charsmap;
  std::optional<std::string> chat_template;
  std::optional<std::uint32_t> token_type_count;

  [[nodiscard]] std::optional<std::uint32_t> special(std::string_view name) const;
  [[nodiscard]] std::int32_t type_of(std::size_t id) const { return id < types.size() ? types[id] : static_cast<std::int32_t>(normal); }
};

/// Errors: corrupt when lists contradict each other, an id is no token, a merge no pair. Nothing when the file has no vocabulary.
[[nodiscard]] std::optional<GgufVocabulary> read_gguf_vocabulary(const GgufCheckpoint& checkpoint);
/// metadata: with its lists read. file: for messages.
[[nodiscard]] std::optional<GgufVocabulary> read_gguf_vocabulary(const GgufMetadata& metadata, const std::string& file);

/// How byte BPE splits text before it looks for tokens: a regular expression, by the name that llama.cpp has for it.
struct GgufSplit {
  std::string_view name;
  std::string_view pattern;  ///< of a Split before the bytes; empty: GPT-2's, inside of ByteLevel
  bool digits = false;       ///< each digit alone first
  bool nfc = false;
  bool ignores_merges = false;
};
/// Null when unknown.
[[nodiscard]] const GgufSplit* find_gguf_split(std::string_view name) noexcept;

/// Appends the keys.
void add_gguf_vocabulary(GgufMetadata& metadata, const GgufVocabulary& vocabulary);

/// From the tokenizer files of a folder. num_rows: of the embedding; ids without a token are filled up. config: config.json.
/// Errors: unsupported for tokenizers that llama.cpp does not know; corrupt.
[[nodiscard]] GgufVocabulary vocabulary_for_gguf(const TokenizerFolder& tokenizer, std::uint64_t num_rows, const Json& config,
                                                 std::vector<std::string>& warnings);

/// The files of a Hugging Face folder that say the same: tokenizer.json, tokenizer_config.json, special_tokens_map.json, for SentencePiece also
/// tokenizer.model, chat_template.jinja. Names and contents.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> tokenizer_files_of(const GgufVocabulary& vocabulary, std::uint64_t max_length,
                                                                                  std::vector<std::string>& warnings);
/// tokenizer.json alone.
[[nodiscard]] Json tokenizer_json_of(const GgufVocabulary& vocabulary, std::vector<std::string>& warnings);

}  // namespace weft::model
