#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/text_pattern.h"

namespace weft {
class Json;
}  // namespace weft

namespace weft::model {

/// Typed access to an object of a tokenizer.json. A missing field takes the default where one is given; a field of a wrong type is corrupt.
class JsonFields {
 public:
  /// Errors: corrupt when `object` is no object.
  JsonFields(const Json& object, const std::filesystem::path& file, std::string key);

  [[nodiscard]] const Json* find(std::string_view name) const;  ///< null when absent or null
  [[nodiscard]] std::string text(std::string_view name) const;
  [[nodiscard]] std::string text(std::string_view name, std::string_view missing) const;
  [[nodiscard]] std::optional<std::string> optional_text(std::string_view name) const;
  [[nodiscard]] bool flag(std::string_view name, bool missing) const;
  [[nodiscard]] std::uint64_t count(std::string_view name, std::uint64_t missing) const;
  [[nodiscard]] const std::vector<Json>& list(std::string_view name) const;
  /// {"String": s} or {"Regex": s}.
  [[nodiscard]] TextPattern pattern(std::string_view name) const;

  /// "pre_tokenizer.pattern"
  [[nodiscard]] std::string inside(std::string_view name) const;
  [[noreturn]] void refuse(std::string_view name, const std::string& what) const;                 ///< corrupt
  [[noreturn]] void refuse_type(const std::string& type, const std::string& kind_of_part) const;  ///< unsupported

 private:
  const Json& object_;
  const std::filesystem::path& file_;
  std::string key_;
};

}  // namespace weft::model
