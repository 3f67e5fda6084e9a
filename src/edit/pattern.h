#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace weft::edit {

/// A pattern that a user wrote, on RE2, so that no pattern takes more than linear time.
class Pattern {
 public:
  /// where: the option or key, for messages. Errors: invalid_argument with what is wrong and where in the pattern.
  Pattern(std::string text, std::string where);
  ~Pattern();
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;

  /// Whether it is found anywhere in the name.
  [[nodiscard]] bool matches(std::string_view name) const;
  /// The name with the first match replaced; \1 to \9 stand for groups, \0 for the match. Nothing when it does not match.
  [[nodiscard]] std::optional<std::string> replaced(std::string_view name, const std::string& by) const;
  /// Throws invalid_argument unless the replacement is well-formed and uses only groups that there are.
  void check_replacement(const std::string& by) const;
  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  struct Compiled;
  std::string text_;
  std::string where_;
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace weft::edit
