#pragma once
#include <deque>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/aligned_text.h"
#include "model/text_pattern.h"

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

/// The pieces of a text on its way to the model. Rewritten ones live in the storage.
struct TextPieces {
  std::vector<TextPiece> pieces;
  std::deque<AlignedText> storage;
  std::vector<TextPattern::Part> parts;  ///< scratch
};

/// Cuts pieces into smaller ones, and may rewrite them. Thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(TextPieces& text) const = 0;
};

/// What becomes of a ByteLevel at the end of the pipeline: a model that works on bytes spares mapping them to characters and back.
enum class ByteMapping { characters, left_to_model };
struct MadePreTokenizer {
  std::unique_ptr<PreTokenizer> stage;  ///< null for null
  bool bytes_left_to_model = false;
};
/// The "pre_tokenizer" of a tokenizer.json.
[[nodiscard]] MadePreTokenizer make_pre_tokenizer(const Json& json, ByteMapping mapping, const std::filesystem::path& file, const std::string& key);

}  // namespace weft::model
