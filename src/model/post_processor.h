#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

struct Encoding;

/// Joins the tokens of one or two texts and adds special tokens. Thread-safe.
class PostProcessor {
 public:
  virtual ~PostProcessor() = default;
  /// Special tokens that it adds.
  [[nodiscard]] virtual std::size_t num_added(bool pair) const = 0;
  /// One or two encodings, in place; they are joined behind the last stage.
  virtual void apply(std::vector<Encoding>& parts, bool add_special_tokens) const = 0;
};

/// Id of a token, for files that give only its text.
using FindToken = std::function<std::optional<std::uint32_t>(const std::string&)>;
/// The "post_processor" of a tokenizer.json; null for null.
[[nodiscard]] std::unique_ptr<PostProcessor> make_post_processor(const Json& json, const std::filesystem::path& file, const std::string& key);
/// Tokens before and behind each text, with type 0 for the first and 1 for the second.
[[nodiscard]] std::unique_ptr<PostProcessor> make_affixes(std::vector<std::pair<std::uint32_t, std::string>> before,
                                                          std::vector<std::pair<std::uint32_t, std::string>> behind);

/// Appends `next` to `first`: every window of one with every window of the other.
/// Errors: unsupported when there would be too many.
void join(Encoding& first, Encoding next);

}  // namespace weft::model
