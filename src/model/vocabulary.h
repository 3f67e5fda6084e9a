#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

enum class TokenizerKind {
  none,  ///< no tokenizer files
  bpe,
  wordpiece,
  wordlevel,
  unigram,
  sentencepiece,  ///< only tokenizer.model or the like
  tiktoken,       ///< only a table of byte strings, which weft cannot read either
};
/// "BPE", "WordPiece", "WordLevel", "Unigram", "sentencepiece", "tiktoken"; empty for none.
[[nodiscard]] std::string_view to_string(TokenizerKind kind) noexcept;

/// A token that is searched in the text before the model sees it.
struct AddedToken {
  std::uint32_t id = 0;
  std::string content;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
  bool special = false;

  /// Same flags (the id may differ: it is each model's own).
  [[nodiscard]] bool same_definition(const AddedToken& other) const noexcept;
};

/// The tokens of a model and their ids. Ids are row numbers of the embedding; they may have gaps.
class Vocabulary {
 public:
  struct Entry {
    std::string token;
    std::uint32_t id = 0;
  };

  Vocabulary() = default;
  /// entries: the tokens of the tokenizer's model. added: may repeat some of them (then with the same id).
  /// Errors: corrupt when two tokens have one id, one token has two, or an id is 2^24 or more. `file` is for the message.
  Vocabulary(TokenizerKind kind, std::vector<Entry> entries, std::vector<AddedToken> added, const std::filesystem::path& file);

  [[nodiscard]] TokenizerKind kind() const noexcept { return kind_; }
  /// All tokens, added ones included, ids ascending.
  [[nodiscard]] std::span<const Entry> entries() const noexcept { return entries_; }
  /// Ids ascending.
  [[nodiscard]] std::span<const AddedToken> added() const noexcept { return added_; }
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  /// Highest id + 1; 0 when empty.
  [[nodiscard]] std::uint64_t num_ids() const noexcept { return entries_.empty() ? 0 : std::uint64_t{entries_.back().id} + 1; }

  [[nodiscard]] std::optional<std::uint32_t> find(std::string_view token) const noexcept;
  /// Null for an id without a token.
  [[nodiscard]] const std::string* token(std::uint64_t id) const noexcept;
  [[nodiscard]] const AddedToken* find_added(std::string_view token) const noexcept;

 private:
  TokenizerKind kind_ = TokenizerKind::none;
  std::vector<Entry> entries_;
  std::vector<AddedToken> added_;
  struct Hash {
    using is_transparent = void;
    [[nodiscard]] std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>()(text); }
  };
  // Own strings as keys: views into the vectors above would dangle in a copy.
  std::unordered_map<std::string, std::uint32_t, Hash, std::equal_to<>> by_token_;        ///< ids
  std::unordered_map<std::string, std::uint32_t, Hash, std::equal_to<>> added_by_token_;  ///< positions in added_
};

/// The chat template of a model folder.
struct ChatTemplate {
  std::string text;
  bool own_file = false;  ///< from chat_template.jinja; otherwise from tokenizer_config.json
};

/// The tokenizer files of a model folder.
struct TokenizerFolder {
  std::filesystem::path folder;
  Vocabulary vocabulary;                         ///< empty for kinds that cannot be read
  std::shared_ptr<const Json> tokenizer_json;    ///< null where there is none
  std::shared_ptr<const Json> tokenizer_config;  ///< null where there is none
  std::optional<ChatTemplate> chat_template;
  std::vector<std::string> files;  ///< names of the tokenizer files that are there

  [[nodiscard]] TokenizerKind kind() const noexcept { return vocabulary.kind(); }
  /// Throws unsupported for sentencepiece.bpe.model or a .tiktoken file alone, not_found for no tokenizer, saying that `why` needs it.
  void require_readable(std::string_view why) const;
};

/// The tokens of a tokenizer.json: those of its model, and the added ones (which may repeat them), also those that only tokenizer_config.json knows.
struct TokenizerEntries {
  TokenizerKind kind = TokenizerKind::none;
  std::vector<Vocabulary::Entry> model;
  std::vector<AddedToken> added;
};
/// config: tokenizer_config.json, or null. Errors: corrupt, unsupported.
[[nodiscard]] TokenizerEntries read_tokenizer_entries(const Json& json, const Json* config, const std::filesystem::path& file);

/// Names of the files of a folder that belong to its tokenizer, chat template included; sorted.
[[nodiscard]] std::vector<std::string> tokenizer_files(const std::filesystem::path& folder);

/// Reads tokenizer.json; without it vocab.json (with merges.txt) or vocab.txt, and added_tokens.json. A folder without any is no error.
/// Errors: corrupt, io.
[[nodiscard]] TokenizerFolder read_tokenizer(const std::filesystem::path& folder);

/// chat_template.jinja, else tokenizer_config.json's chat_template (of a list the entry named "default").
[[nodiscard]] std::optional<ChatTemplate> read_chat_template(const std::filesystem::path& folder);

}  // namespace weft::model
