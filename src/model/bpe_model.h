#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/token_model.h"
#include "model/vocabulary.h"

namespace weft::model {

/// Byte-pair encoding as the tokenizers library has it: pairs are merged by rank, leftmost first.
struct BpeOptions {
  using Entry = Vocabulary::Entry;
  struct Merge {
    std::string left;
    std::string right;
  };
  std::vector<Entry> vocabulary;
  std::vector<Merge> merges;  ///< rank is the position; a repeated pair has the last one
  std::optional<std::string> unknown;
  std::string prefix;  ///< of every symbol but the first of a word ("continuing_subword_prefix")
  std::string suffix;  ///< of the last symbol
  bool fuse_unknown = false;
  bool byte_fallback = false;
  bool ignore_merges = false;  ///< a piece that is a token is that token, reachable by merges or not
  bool raw_bytes = false;      ///< pieces are bytes of which the vocabulary has the characters (ByteLevel)
};

/// Whether a ByteLevel before the model may leave the bytes as they are.
[[nodiscard]] bool can_take_raw_bytes(const BpeOptions& options) noexcept;
/// Errors: corrupt for a merge of or into what is no token.
[[nodiscard]] std::unique_ptr<TokenModel> make_bpe(BpeOptions options, const std::filesystem::path& file);

}  // namespace weft::model
