#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "checkpoint/json.h"

// A tokenizer without the tokens that nobody uses.
namespace weft::edit {

struct TrimmedTokenizer {
  Json tokenizer;                      ///< tokenizer.json
  std::vector<std::uint32_t> old_ids;  ///< of each new id; ascending
  /// New id of an old one; nothing when the token is gone.
  [[nodiscard]] std::optional<std::uint32_t> new_id(std::uint64_t old_id) const;
};

/// Keeps the tokens in `used`, the added and special ones, those of a single character or byte (so that any text can still be encoded), and
/// everything that the kept ones are merged from, so that a text whose tokens are all kept is cut as before. Ids are given anew, in their old order.
/// Errors: unsupported for tokenizers that are none of BPE, WordPiece, WordLevel and Unigram; corrupt.
[[nodiscard]] TrimmedTokenizer trim_tokenizer(const Json& tokenizer, const std::vector<std::uint32_t>& used, const std::filesystem::path& file);

/// Gives token ids in a config their new numbers: every integer, or list of them, under a key that ends in token_id, token_ids or token_index.
void renumber_token_ids(Json& config, const TrimmedTokenizer& trimmed);

}  // namespace weft::edit
