#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

/// A token of a piece: its id, and the bytes of the piece that it covers.
struct PieceToken {
  std::uint32_t id = 0;
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  bool own_text = false;  ///< the token stands for the text it covers, not for the entry of its id (unknown text under Unigram)
};

/// Memory that a model reuses between pieces; one for each thread. Bounded, whatever the text.
class ModelScratch {
 public:
  virtual ~ModelScratch() = default;
};

/// Turns pieces into tokens. Thread-safe as long as each thread has its scratch.
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  [[nodiscard]] virtual std::unique_ptr<ModelScratch> scratch() const { return std::make_unique<ModelScratch>(); }
  /// Appends the tokens of a piece of valid UTF-8. Errors: corrupt when the model lacks the token for unknown text.
  virtual void tokenize(std::string_view piece, std::vector<PieceToken>& tokens, ModelScratch& scratch) const = 0;
  [[nodiscard]] virtual std::optional<std::uint32_t> find(std::string_view token) const = 0;
  /// Null for an id without a token.
  [[nodiscard]] virtual const std::string* token(std::uint32_t id) const = 0;
  /// Number of entries and the highest id + 1.
  [[nodiscard]] virtual std::size_t size() const = 0;
  [[nodiscard]] virtual std::uint64_t num_ids() const = 0;
};

}  // namespace weft::model
