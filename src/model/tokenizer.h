#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

/// Which tokens of a text that is too long are kept.
struct Truncation {
  enum class Direction { right, left };  ///< where tokens are cut off
  enum class Strategy { longest_first, only_first, only_second };
  std::size_t max_length = 512;  ///< special tokens included
  std::size_t stride = 0;        ///< tokens that neighbouring windows share
  Direction direction = Direction::right;
  Strategy strategy = Strategy::longest_first;
};

/// Tokens that fill a text up.
struct Padding {
  enum class Direction { right, left };
  std::optional<std::size_t> length;  ///< without one: the longest of the texts encoded together
  Direction direction = Direction::right;
  std::size_t multiple_of = 0;  ///< 0: of anything
  std::uint32_t id = 0;
  std::uint32_t type_id = 0;
  std::string token = "[PAD]";
};

struct EncodeOptions {
  bool add_special_tokens = true;             ///< what the tokenizer puts around a text: <s>, [CLS], ...
  bool recognise_special_tokens = true;       ///< special tokens written in the text become their ids; otherwise they are ordinary text
  bool tokens = false;                        ///< also the tokens' texts
  bool offsets = false;                       ///< also where in the text each token stands; costs time
  std::optional<Truncation> truncation = {};  ///< nothing is cut off or filled up unless asked, whatever the tokenizer's file says
  std::optional<Padding> padding = {};
};

/// Text as tokens. Every list that is filled has one entry for each token.
struct Encoding {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint32_t> type_ids;                           ///< 0 for the first text, usually 1 for the second of a pair
  std::vector<std::uint8_t> special;                             ///< 1 for tokens that the tokenizer added
  std::vector<std::uint8_t> attention;                           ///< 0 for padding
  std::vector<std::string> tokens;                               ///< only when asked for
  std::vector<std::pair<std::uint32_t, std::uint32_t>> offsets;  ///< only when asked for; in code points of the text
  std::vector<Encoding> overflowing;                             ///< the other windows of a text that was cut
};

/// The special tokens that a model names; the id and the text go together.
struct NamedToken {
  std::string name;  ///< "bos_token", "eos_token", "unk_token", "pad_token", "cls_token", ...
  std::string token;
  std::optional<std::uint32_t> id;  ///< none when the text is no token
};

/// Text to tokens and back, as the libraries that published the model do it: tokenizer.json (the tokenizers library), tokenizer.model
/// (SentencePiece), vocab.json with merges.txt, vocab.txt, and the vocabulary inside a GGUF file. Thread-safe. Time is linear in the text (n log n in
/// the length of one word), memory bounded by it.
class Tokenizer {
 public:
  /// A model folder (tokenizer.json, else tokenizer.model, else vocab.json + merges.txt, else vocab.txt), or one of these files itself.
  /// Errors: not_found, corrupt, unsupported.
  [[nodiscard]] static Tokenizer open(const std::filesystem::path& path);
  /// A parsed tokenizer.json. config: tokenizer_config.json, or null. file: for messages.
  [[nodiscard]] static Tokenizer from_json(const Json& json, const Json* config, const std::filesystem::path& file);
  /// The bytes of a tokenizer.model.
  [[nodiscard]] static Tokenizer from_sentencepiece(std::string_view bytes, const Json* config, const std::filesystem::path& file);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// text: any bytes; every maximal ill-formed part of UTF-8 counts as U+FFFD. Errors: invalid_argument for a text of 4 GiB or more, for a
  /// truncation that leaves no room; corrupt when the tokenizer lacks what the text needs.
  [[nodiscard]] Encoding encode(std::string_view text, const EncodeOptions& options = {}) const;
  [[nodiscard]] Encoding encode_pair(std::string_view text, std::string_view pair, const EncodeOptions& options = {}) const;
  /// Only ids, the fastest way.
  [[nodiscard]] std::vector<std::uint32_t> ids(std::string_view text, bool add_special_tokens) const;
  /// Fills all up to one length.
  static void pad(std::span<Encoding> encodings, const Padding& padding);

  /// Ids that are no token are passed over, as the reference does. Always valid UTF-8.
  [[nodiscard]] std::string decode(std::span<const std::uint32_t> ids, bool skip_special_tokens = false) const;

  /// Tokens, added ones included; the highest id + 1.
  [[nodiscard]] std::size_t vocab_size() const noexcept;
  [[nodiscard]] std::uint64_t num_ids() const noexcept;
  [[nodiscard]] std::optional<std::uint32_t> find(std::string_view token) const;
  /// Null for an id without a token.
  [[nodiscard]] const std::string* token(std::uint32_t id) const;
  [[nodiscard]] bool is_special(std::uint32_t id) const;

  /// What tokenizer_config.json and special_tokens_map.json name, "bos_token" first if there.
  [[nodiscard]] std::span<const NamedToken> named_tokens() const noexcept;
  /// Id of "bos_token", "eos_token", ...; none when the model has no such token.
  [[nodiscard]] std::optional<std::uint32_t> named_id(std::string_view name) const noexcept;
  /// What the tokenizer's file would cut and fill, if asked.
  [[nodiscard]] const std::optional<Truncation>& file_truncation() const noexcept;
  [[nodiscard]] const std::optional<Padding>& file_padding() const noexcept;
  /// The chat template that came with the vocabulary (GGUF); null for none. Those of folders are read by read_chat_template.
  [[nodiscard]] const std::string* chat_template() const noexcept;
  /// "BPE", "WordPiece", "WordLevel", "Unigram", "SentencePiece BPE", "SentencePiece Unigram".
  [[nodiscard]] const std::string& kind() const noexcept;

  class Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

/// Text of tokens that come one at a time: what is complete so far, without the first half of a character.
class TokenStream {
 public:
  explicit TokenStream(const Tokenizer& tokenizer, bool skip_special_tokens = true) : tokenizer_(tokenizer), skip_special_(skip_special_tokens) {}
  /// The text that this token completes; often empty in the middle of a character.
  [[nodiscard]] std::string push(std::uint32_t id);
  /// What is left at the end.
  [[nodiscard]] std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::vector<std::uint32_t> ids_;
  std::string shown_;
};

}  // namespace weft::model
