#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/bpe_model.h"
#include "model/token_model.h"

namespace weft::model {

/// Greedy longest prefix; a word of which some part is unknown is unknown as a whole.
struct WordPieceOptions {
  std::vector<BpeOptions::Entry> vocabulary;
  std::string unknown = "[UNK]";
  std::string prefix = "##";
  std::uint64_t max_characters = 100;  ///< of a word; longer ones are unknown
};
[[nodiscard]] std::unique_ptr<TokenModel> make_wordpiece(WordPieceOptions options, const std::filesystem::path& file);

/// The whole piece, or unknown.
[[nodiscard]] std::unique_ptr<TokenModel> make_wordlevel(std::vector<BpeOptions::Entry> vocabulary, std::string unknown,
                                                         const std::filesystem::path& file);

/// The cut of highest probability.
struct UnigramOptions {
  struct Piece {
    std::string text;
    double score = 0;
  };
  std::vector<Piece> vocabulary;  ///< ids are positions
  std::optional<std::uint32_t> unknown;
  bool byte_fallback = false;
};
[[nodiscard]] std::unique_ptr<TokenModel> make_unigram(UnigramOptions options, const std::filesystem::path& file);

}  // namespace weft::model
