#pragma once
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/byte_trie.h"
#include "model/normalizer.h"
#include "model/post_processor.h"
#include "model/pre_tokenizer.h"
#include "model/token_decoder.h"
#include "model/token_model.h"
#include "model/tokenizer.h"
#include "model/vocabulary.h"

// The parts of a tokenizer, for the files that put one together (tokenizer_json.cc, sentencepiece.cc, gguf_tokenizer.cc).
namespace weft::model {

/// Finds added tokens in a text: leftmost-longest, with their rules about words and spaces.
class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  /// patterns: what is searched for each token (its content, perhaps normalized); empty ones are left out.
  AddedTokenFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& patterns);
  struct Part {
    std::size_t begin = 0;
    std::size_t end = 0;
    const AddedToken* token = nullptr;  ///< null: text between tokens
  };
  [[nodiscard]] bool empty() const noexcept { return tokens_.empty(); }
  /// Cuts a text; an empty one has one empty part.
  void cut(std::string_view text, bool recognise_special, std::vector<Part>& parts) const;

 private:
  std::vector<AddedToken> tokens_;
  ByteTrie trie_;
};

/// Ids to text where more than the tokens' texts decides (SentencePiece).
class IdDecoder {
 public:
  virtual ~IdDecoder() = default;
  [[nodiscard]] virtual std::string decode(std::span<const std::uint32_t> ids) const = 0;
};

class Tokenizer::Impl {
 public:
  std::string kind;
  Vocabulary vocabulary;
  AddedTokenFinder raw_tokens;         ///< searched in the text as it is
  AddedTokenFinder normalized_tokens;  ///< searched behind the normalizer
  std::unique_ptr<Normalizer> normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  std::unique_ptr<PostProcessor> post_processor;
  std::unique_ptr<TokenDecoder> decoder;
  std::unique_ptr<IdDecoder> id_decoder;  ///< instead of the decoder
  std::vector<NamedToken> named;
  std::optional<std::string> chat_template;
  std::optional<Truncation> truncation;
  std::optional<Padding> padding;

  /// Sorts the added tokens into the two searches; call when vocabulary and normalizer are there.
  void find_added_tokens();
  /// bos_token, eos_token, ... of tokenizer_config.json and special_tokens_map.json (either may be null).
  void name_tokens(const Json* config, const Json* map);

  [[nodiscard]] Encoding encode(std::string_view text, const std::string_view* pair, const EncodeOptions& options) const;

 private:
  [[nodiscard]] Encoding encode_one(std::string_view text, std::uint32_t type_id, const EncodeOptions& options) const;
  [[nodiscard]] std::unique_ptr<ModelScratch> take_scratch() const;
  void give_scratch(std::unique_ptr<ModelScratch> scratch) const;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<ModelScratch>> pool_;
};

struct SentencePieceFile;
/// A tokenizer of SentencePiece's pieces, wherever they come from. config: tokenizer_config.json, or null.
[[nodiscard]] std::unique_ptr<Tokenizer::Impl> impl_from_pieces(SentencePieceFile file, const Json* config, const std::filesystem::path& path);

/// Cuts an encoding to max_length tokens; the rest goes into windows.
void cut_windows(Encoding& encoding, std::size_t max_length, std::size_t stride, Truncation::Direction direction);

}  // namespace weft::model
