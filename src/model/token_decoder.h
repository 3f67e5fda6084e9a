#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

/// Turns the texts of tokens into a text, step by step. Thread-safe.
class TokenDecoder {
 public:
  virtual ~TokenDecoder() = default;
  virtual void apply(std::vector<std::string>& tokens) const = 0;
};

/// The "decoder" of a tokenizer.json; null for null.
[[nodiscard]] std::unique_ptr<TokenDecoder> make_decoder(const Json& json, const std::filesystem::path& file, const std::string& key);

}  // namespace weft::model
