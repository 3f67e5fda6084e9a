#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/row_view.h"
#include "engine/merge_config.h"
#include "weft/dtype.h"

// The tokenizer of a merge: which tokens the output has, and from which rows of which model each embedding row comes.
namespace weft::engine {

/// A small file of the output: a text, or a copy of an existing file.
struct CompanionFile {
  std::string name;
  std::string content = {};
  std::optional<std::filesystem::path> copy_of = {};  ///< set: byte for byte
};

/// A model of the merge, as far as its tokenizer is concerned.
struct TokenizerModel {
  std::string name;  ///< as the user wrote it, for messages
  std::filesystem::path folder;
  std::optional<std::uint64_t> vocab_size;  ///< of its config.json
};

/// What the config says about one token (its `tokens:` entry).
struct TokenRule {
  enum class Source {
    none,         ///< the default row
    same_token,   ///< MODELREF: that model's row of this token
    other_token,  ///< model_token: another token's row
    zero,
  };
  std::string token;
  Source source = Source::none;
  std::size_t model = 0;                   ///< into the models
  std::optional<std::string> other_token;  ///< exactly one of the two for Source::other_token
  std::optional<std::uint64_t> other_id;
  bool force = false;  ///< also for models that have the token
};

/// What the config says about the tokenizer; models are positions in the list of models.
struct TokenizerSpec {
  enum class Source { union_of_all, base, model };
  Source source = Source::union_of_all;
  std::size_t model = 0;         ///< for Source::model
  std::vector<TokenRule> rules;  ///< in config order
  std::optional<std::uint64_t> pad_to_multiple_of;
};

/// The spec of a config. models: all that the config names (MergeConfig::referenced_models), in the order that plan_tokenizer will get them.
[[nodiscard]] TokenizerSpec resolve_tokenizer(const ConfigTokenizer& config, std::span<const ModelRef> models);

/// The output's vocabulary. Immutable once made.
class TokenizerPlan {
 public:
  struct State;
  explicit TokenizerPlan(std::shared_ptr<const State> state) : state_(std::move(state)) {}

  /// Rows of the output's embedding and head: highest id + 1, rounded up to pad_to_multiple_of. Becomes config.json's vocab_size.
  [[nodiscard]] std::uint64_t num_rows() const noexcept;
  [[nodiscard]] std::uint64_t num_tokens() const noexcept;
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept;
  /// The output tokenizer's files (chat template included).
  [[nodiscard]] const std::vector<CompanionFile>& files() const noexcept;
  /// Own id of output id in a model; absent when it has no such token.
  [[nodiscard]] std::optional<std::uint32_t> own_id(std::size_t model, std::uint64_t output_id) const noexcept;
  /// Token of an output id; null in gaps and padding.
  [[nodiscard]] const std::string* token(std::uint64_t output_id) const noexcept;
  [[nodiscard]] const State& state() const noexcept { return *state_; }

 private:
  std::shared_ptr<const State> state_;
};

/// Reads the tokenizers of all models and works out the output's.
/// models: all that the config names, in file order. base: position of base_model; absent: the first model counts as base.
/// chat_template: resolved text (see choose_chat_template), or absent to keep that of the tokenizer's source.
/// Errors (before anything is written): invalid_argument (a rule's token is unknown to its model, force without source, ...), unsupported, corrupt.
[[nodiscard]] TokenizerPlan plan_tokenizer(const std::vector<TokenizerModel>& models, std::optional<std::size_t> base, const TokenizerSpec& spec,
                                           const std::optional<std::string>& chat_template);

/// An embedding or head of one model, before the merge.
struct EmbeddingInput {
  std::size_t model = 0;  ///< into the models of the plan
  TensorRef tensor;       ///< [rows, hidden]
  bool merged = true;     ///< false: not an input of this tensor, but rules may take rows from it
};

/// Rebuilds the matrices of the merged inputs to [plan.num_rows(), hidden]: one view for each, in their order, called `name`.
/// dtype: the type the merge loads in; absent: the common promoted type of the inputs (their values are then exact).
/// Errors: invalid_argument for different widths, or a rule whose row does not exist.
[[nodiscard]] std::vector<TensorRef> rebuild_embeddings(const TokenizerPlan& plan, std::span<const EmbeddingInput> inputs, const std::string& name,
                                                        std::optional<DType> dtype, std::vector<std::string>& warnings);

/// The names of built-in chat templates.
[[nodiscard]] std::span<const std::string_view> builtin_chat_templates() noexcept;

/// What a config's chat_template means: `auto` is the most frequent template among the models (file order breaks ties; absent if none has one), a
/// built-in name, or a Jinja text of at least 20 characters with a "{". Errors: invalid_argument for anything else.
[[nodiscard]] std::optional<std::string> choose_chat_template(std::string_view setting, std::span<const std::filesystem::path> model_folders);

/// Without a tokenizer spec: the donor's tokenizer files as they are, with another chat template if one is given (a warning if there is no
/// tokenizer).
[[nodiscard]] std::vector<CompanionFile> donor_tokenizer_files(const std::filesystem::path& donor, const std::optional<std::string>& chat_template,
                                                               std::vector<std::string>& warnings);

}  // namespace weft::engine
