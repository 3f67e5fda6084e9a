#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

/// A chat template, compiled: an interpreter of our own for the part of Jinja that published templates use. It can read nothing but the variables it
/// is given, and it stops: steps, output, nesting and the size of values are bounded. Thread-safe.
class ChatRenderer {
 public:
  /// source: a template as in chat_template.jinja; file: for messages.
  /// Errors: corrupt for what is no Jinja, unsupported for what is not here, with its name and line.
  explicit ChatRenderer(std::string_view source, const std::filesystem::path& file = {});
  ~ChatRenderer();
  ChatRenderer(ChatRenderer&&) noexcept;
  ChatRenderer& operator=(ChatRenderer&&) noexcept;

  /// variables: an object with messages, add_generation_prompt, bos_token, ...
  /// Errors: invalid_argument with what the template raised, or why it failed; unsupported.
  [[nodiscard]] std::string render(const Json& variables) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The part of a rendered chat up to the end of the last message's content, which the model is to continue.
/// Errors: invalid_argument when the content is not in the text.
[[nodiscard]] std::string continue_last_message(const std::string& rendered, const Json& messages);

}  // namespace weft::model
