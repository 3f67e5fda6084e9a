#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

// JSON read by a SAX handler with limits, because the DOM keeps the last of duplicate keys, turns 2^64 into a double and overflows the stack on
// depth.
namespace weft {

class File;
class JsonEventAdapter;

/// A JSON value that keeps the order of keys and the exact text of numbers, so that editing a config changes nothing else.
class Json {
 public:
  struct Number {
    std::string text;
  };  ///< as written
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  Json() = default;  ///< null
  Json(bool value) : value_(value) {}
  Json(Number number) : value_(std::move(number)) {}
  Json(std::int64_t value);
  Json(std::uint64_t value);
  Json(int value) : Json(static_cast<std::int64_t>(value)) {}
  Json(double value);  ///< shortest text that reads back the same; non-finite ones become the strings of the command-line contract
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  [[nodiscard]] bool is_null() const noexcept { return std::holds_alternative<std::monostate>(value_); }
  [[nodiscard]] bool is_object() const noexcept { return std::holds_alternative<Object>(value_); }
  [[nodiscard]] bool is_array() const noexcept { return std::holds_alternative<Array>(value_); }
  [[nodiscard]] bool is_string() const noexcept { return std::holds_alternative<std::string>(value_); }
  [[nodiscard]] bool is_number() const noexcept { return std::holds_alternative<Number>(value_); }
  [[nodiscard]] bool is_bool() const noexcept { return std::holds_alternative<bool>(value_); }

  [[nodiscard]] const Object* object() const noexcept { return std::get_if<Object>(&value_); }
  [[nodiscard]] Object* object() noexcept { return std::get_if<Object>(&value_); }
  [[nodiscard]] const Array* array() const noexcept { return std::get_if<Array>(&value_); }
  [[nodiscard]] Array* array() noexcept { return std::get_if<Array>(&value_); }
  [[nodiscard]] const std::string* string() const noexcept { return std::get_if<std::string>(&value_); }
  [[nodiscard]] const std::string* number_text() const noexcept { return is_number() ? &std::get_if<Number>(&value_)->text : nullptr; }
  [[nodiscard]] std::optional<bool> boolean() const noexcept;
  [[nodiscard]] std::optional<double> number() const noexcept;
  [[nodiscard]] std::optional<std::int64_t> integer() const noexcept;  ///< a plain integer that fits
  [[nodiscard]] std::optional<std::uint64_t> unsigned_integer() const noexcept;

  /// Member of an object; null when absent or not an object.
  [[nodiscard]] const Json* find(std::string_view key) const noexcept;
  [[nodiscard]] Json* find(std::string_view key) noexcept;
  /// Replaces or appends; the value must be an object (null becomes one).
  Json& set(std::string_view key, Json value);
  void erase(std::string_view key);

 private:
  std::variant<std::monostate, bool, Number, std::string, Array, Object> value_;
};

/// Python writes NaN, Infinity and -Infinity, which are no JSON; configs hold them where a float is meant (time_step_limit of Mamba).
enum class JsonNumbers { strict, as_python };

struct JsonLimits {
  std::uint64_t max_bytes = 100'000'000;
  int max_depth = 128;
  std::uint64_t max_values = 20'000'000;         ///< keys and values together
  JsonNumbers numbers = JsonNumbers::as_python;  ///< of parse_json and read_json_file; events are always strict
};

/// Strict JSON (but for JsonNumbers), one document; UTF-8 checked, duplicate keys refused, lone surrogates refused. Errors: corrupt with byte offset;
/// `file` is for the message.
[[nodiscard]] Json parse_json(std::string_view text, const std::filesystem::path& file, const JsonLimits& limits = {});
/// Reads and parses a file.
[[nodiscard]] Json read_json_file(const std::filesystem::path& path, const JsonLimits& limits = {});
/// indent 0: compact without spaces; otherwise pretty, as Python's json.dump(indent=N). ascii: escape everything beyond ASCII.
[[nodiscard]] std::string write_json(const Json& value, int indent = 0, bool ascii = false);
/// With the quotes; escapes as the safetensors reference writer does.
[[nodiscard]] std::string json_quote(std::string_view text);

/// Events of a parser that builds no tree, for headers that may hold a million tensors. Handlers throw to stop.
/// Duplicate keys are for the handler to refuse: only it knows which objects are too large to remember.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  /// Byte offset in the input of the last byte of the current event's token (for numbers: of the byte behind them).
  [[nodiscard]] std::uint64_t position() const noexcept { return position_; }

  virtual void null() = 0;
  virtual void boolean(bool value) = 0;
  virtual void number(std::string_view text) = 0;  ///< as written
  virtual void string(std::string& value) = 0;     ///< may be moved from
  virtual void begin_object() = 0;
  virtual void key(std::string& value) = 0;
  virtual void end_object() = 0;
  virtual void begin_array() = 0;
  virtual void end_array() = 0;

 private:
  friend class JsonEventAdapter;
  std::uint64_t position_ = 0;
};
/// first_byte: where in the file the text begins; byte offsets count from there.
void parse_json_events(std::string_view text, const std::filesystem::path& file, const JsonLimits& limits, JsonEvents& events,
                       std::uint64_t first_byte = 0);
/// From part of a file, read in small pieces. Byte offsets, also of position(), count from the start of the file.
void parse_json_events(const File& file, std::uint64_t offset, std::uint64_t size_bytes, const JsonLimits& limits, JsonEvents& events);

}  // namespace weft
