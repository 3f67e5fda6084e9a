#include "checkpoint/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/file.h"
#include "base/text.h"
#include "weft/error.h"

namespace weft {

// ---- Values -------------------------------------------------------------------------------------------------------------------------------

namespace {

constexpr std::string_view kNaN = "NaN";
constexpr std::string_view kInfinity = "Infinity";
constexpr std::string_view kMinusInfinity = "-Infinity";

template <typename Int>
std::optional<Int> whole_number(std::string_view text) {
  Int value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// As Python's repr, so that an edited config reads like the rest of it: 1.0, 1e-05, 100000.0.
std::string float_text(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

}  // namespace

Json::Json(std::int64_t value) : value_(Number{std::to_string(value)}) {}
Json::Json(std::uint64_t value) : value_(Number{std::to_string(value)}) {}
Json::Json(double value) {
  if (std::isnan(value)) {
    value_ = std::string(kNaN);
  } else if (std::isinf(value)) {
    value_ = std::string(value > 0 ? kInfinity : kMinusInfinity);
  } else {
    value_ = Number{float_text(value)};
  }
}

std::optional<bool> Json::boolean() const noexcept {
  const bool* value = std::get_if<bool>(&value_);
  return value ? std::optional<bool>(*value) : std::nullopt;
}

std::optional<double> Json::number() const noexcept {
  const Number* number = std::get_if<Number>(&value_);
  if (!number) return std::nullopt;
  if (number->text == kNaN) return std::numeric_limits<double>::quiet_NaN();
  if (number->text == kInfinity) return std::numeric_limits<double>::infinity();
  if (number->text == kMinusInfinity) return -std::numeric_limits<double>::infinity();
  double value = 0;
  const char* end = number->text.data() + number->text.size();
  const auto [stop, error] = std::from_chars(number->text.data(), end, value);
  if (stop != end) return std::nullopt;
  // Numbers that overflow are refused by the parser, so out of range means too small to represent.
  if (error == std::errc::result_out_of_range) return number->text.front() == '-' ? -0.0 : 0.0;
  return error == std::errc() ? std::optional<double>(value) : std::nullopt;
}

std::optional<std::int64_t> Json::integer() const noexcept {
  const Number* number = std::get_if<Number>(&value_);
  return number ? whole_number<std::int64_t>(number->text) : std::nullopt;
}

std::optional<std::uint64_t> Json::unsigned_integer() const noexcept {
  const Number* number = std::get_if<Number>(&value_);
  return number ? whole_number<std::uint64_t>(number->text) : std::nullopt;
}

const Json* Json::find(std::string_view key) const noexcept {
  const Object* members = object();
  if (!members) return nullptr;
  const auto found = std::find_if(members->begin(), members->end(), [key](const Member& member) { return member.first == key; });
  return found == members->end() ? nullptr : &found->second;
}

Json* Json::find(std::string_view key) noexcept { return const_cast<Json*>(std::as_const(*this).find(key)); }

Json& Json::set(std::string_view key, Json value) {
  if (is_null()) value_ = Object();
  if (!is_object()) throw Error(ErrorCode::internal, fmt::format("cannot set the member '{}' of a JSON value that is no object", printable(key)));
  if (Json* found = find(key)) return *found = std::move(value);
  return object()->emplace_back(std::string(key), std::move(value)).second;
}

void Json::erase(std::string_view key) {
  if (Object* members = object()) std::erase_if(*members, [key](const Member& member) { return member.first == key; });
}

// ---- Reading ------------------------------------------------------------------------------------------------------------------------------

namespace {

/// Where the parser's characters come from: all in memory, or read from a file piece by piece.
class Source {
 public:
  Source(std::string_view text, std::uint64_t first_byte)
      : next_(text.data()), end_(next_ + text.size()), block_end_position_(first_byte + text.size()) {}
  Source(const File& file, std::uint64_t offset, std::uint64_t size_bytes)
      : file_(&file), block_end_position_(offset), stop_position_(offset + size_bytes), buffer_(std::min<std::uint64_t>(size_bytes, kBlockBytes)) {}

  [[nodiscard]] char current() const noexcept { return *next_; }
  void advance() noexcept { last_ = *next_++; }
  [[nodiscard]] bool at_end() { return next_ == end_ && !refill(); }
  /// Of the next character to be read.
  [[nodiscard]] std::uint64_t position() const noexcept { return block_end_position_ - static_cast<std::uint64_t>(end_ - next_); }
  /// The character read last; NUL is how the library's lexer spells "end", so it has to be told from the real end.
  [[nodiscard]] char last() const noexcept { return last_; }

 private:
  static constexpr std::uint64_t kBlockBytes = 1 << 16;

  bool refill() {
    if (!file_ || block_end_position_ == stop_position_) return false;
    const std::size_t wanted = static_cast<std::size_t>(std::min<std::uint64_t>(buffer_.size(), stop_position_ - block_end_position_));
    file_->read(block_end_position_, std::as_writable_bytes(std::span(buffer_.data(), wanted)));
    next_ = buffer_.data();
    end_ = next_ + wanted;
    block_end_position_ += wanted;
    return true;
  }

  const File* file_ = nullptr;
  const char* next_ = nullptr;
  const char* end_ = nullptr;
  std::uint64_t block_end_position_ = 0;
  std::uint64_t stop_position_ = 0;
  std::vector<char> buffer_;
  char last_ = ' ';
};

/// What the library reads through: a single-pass iterator, so that we know at every event how far it has come.
struct SourceIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = char;

  Source* source = nullptr;  ///< null: the end

  char operator*() const noexcept { return source->current(); }
  SourceIterator& operator++() noexcept {
    source->advance();
    return *this;
  }
  void operator++(int) noexcept { source->advance(); }
  bool operator!=(const SourceIterator& end) const { return source != end.source && !source->at_end(); }
  bool operator==(const SourceIterator& end) const { return !(*this != end); }
};

[[noreturn]] void throw_bad_json(const std::filesystem::path& file, std::uint64_t byte, const std::string& what) {
  throw Error(ErrorCode::corrupt, "no valid JSON: " + what, {.file = file.string(), .byte = byte},
              "the file is damaged or was edited by hand; fetch it again");
}

}  // namespace

/// Between the library's events and ours: counts, limits, and gives back the text of numbers.
class JsonEventAdapter {
 public:
  using Library = nlohmann::json;

  JsonEventAdapter(Source& source, const std::filesystem::path& file, const JsonLimits& limits, JsonEvents& events)
      : source_(source), file_(file), limits_(limits), events_(events) {}

  bool null() { return value(), events_.null(), true; }
  bool boolean(bool b) { return value(), events_.boolean(b), true; }
  // The library gives integers as numbers, not as text; JSON has one spelling for each, except that minus zero comes as a signed zero.
  bool number_integer(std::int64_t number) { return give_number(number == 0 ? "-0" : std::to_string(number)); }
  bool number_unsigned(std::uint64_t number) { return give_number(std::to_string(number)); }
  bool number_float(double, const std::string& as_scanned) {
    // The lexer has put the C library's decimal point of the moment in place of the dot.
    std::string text = as_scanned;
    for (char& c : text)
      if ((c < '0' || c > '9') && c != '-' && c != '+' && c != 'e' && c != 'E') c = '.';
    return give_number(text);
  }
  bool string(std::string& text) { return value(), events_.string(text), true; }
  bool binary(Library::binary_t&) { return false; }  // JSON has none
  bool start_object(std::size_t) { return value(), deeper(), events_.begin_object(), true; }
  bool key(std::string& name) { return value(), events_.key(name), true; }
  bool end_object() { return --depth_, mark(), events_.end_object(), true; }
  bool start_array(std::size_t) { return value(), deeper(), events_.begin_array(), true; }
  bool end_array() { return --depth_, mark(), events_.end_array(), true; }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while parsing value - unexpected '}'; ..."
    std::string_view what = error.what();
    for (const std::string_view prefix : {std::string_view("] "), std::string_view("parse error"), std::string_view(": ")})
      if (const std::size_t at = what.find(prefix); at != std::string_view::npos)
        what.remove_prefix(at + (prefix == "parse error" ? 0 : prefix.size()));
    throw_bad_json(file_, last_position(), printable(what));
  }

  [[nodiscard]] std::uint64_t last_position() const noexcept { return source_.position() == 0 ? 0 : source_.position() - 1; }

 private:
  void mark() noexcept { events_.position_ = last_position(); }
  void value() {
    mark();
    if (++num_values_ > limits_.max_values)
      throw Error(ErrorCode::unsupported, fmt::format("the JSON holds more than {} keys and values", limits_.max_values),
                  {.file = file_.string(), .byte = last_position()}, "this is beyond any real model; the file is damaged or hostile");
  }
  void deeper() {
    if (++depth_ > limits_.max_depth)
      throw Error(ErrorCode::corrupt, fmt::format("the JSON is nested deeper than {} levels", limits_.max_depth),
                  {.file = file_.string(), .byte = last_position()}, "this is beyond any real model; the file is damaged or hostile");
  }
  bool give_number(std::string_view text) { return value(), events_.number(text), true; }

  Source& source_;
  const std::filesystem::path& file_;
  const JsonLimits& limits_;
  JsonEvents& events_;
  std::uint64_t num_values_ = 0;
  int depth_ = 0;
};

namespace {

void check_size(std::uint64_t size_bytes, const std::filesystem::path& file, const JsonLimits& limits) {
  if (size_bytes > limits.max_bytes)
    throw Error(ErrorCode::unsupported, fmt::format("the JSON is {} bytes long, the limit is {}", size_bytes, limits.max_bytes),
                {.file = file.string()}, "this is beyond any real model; the file is damaged or hostile");
}

void run_parser(Source& source, std::uint64_t begin, const std::filesystem::path& file, const JsonLimits& limits, JsonEvents& events) {
  // The library would skip a byte-order mark silently.
  if (!source.at_end() && source.current() == '\xEF') throw_bad_json(file, begin, "it begins with a byte-order mark or with no text at all");
  JsonEventAdapter adapter(source, file, limits, events);
  nlohmann::json::sax_parse(SourceIterator{&source}, SourceIterator{}, &adapter);
  // The library takes a NUL for the end of the input.
  if (source.last() == '\0' || !source.at_end()) throw_bad_json(file, adapter.last_position(), "there is something behind its end (a NUL byte)");
}

/// A spelling that Python writes and JSON does not know, and where it stood.
struct PythonNumber {
  std::uint64_t begin;
  std::string_view text;
};

/// Puts a number of the same length in place of every NaN and Infinity outside of strings, where a value may stand.
std::vector<PythonNumber> replace_python_numbers(std::string& text) {
  std::vector<PythonNumber> found;
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  bool in_string = false;
  char before = ':';  // the last character that is no space; a document may be a number alone
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == 'N' || c == 'I' || c == '-') {
      for (const std::string_view name : {kNaN, kInfinity, kMinusInfinity}) {
        if (text.compare(i, name.size(), name) != 0 || (before != ':' && before != '[' && before != ',')) continue;
        const char after = i + name.size() < text.size() ? text[i + name.size()] : ' ';
        if (!is_space(after) && after != ',' && after != ']' && after != '}') continue;
        found.push_back({i, name});
        const std::size_t sign = name.front() == '-' ? 1 : 0;
        for (std::size_t k = sign; k < name.size(); ++k) text[i + k] = k == sign + 1 ? '.' : '0';
        i += name.size() - 1;
        break;
      }
    }
    in_string = text[i] == '"';
    if (!is_space(text[i])) before = text[i];
  }
  return found;
}

/// Builds a tree from events.
class TreeBuilder final : public JsonEvents {
 public:
  TreeBuilder(const std::filesystem::path& file, std::vector<PythonNumber> python_numbers)
      : file_(file), python_numbers_(std::move(python_numbers)) {}

  void null() override { add(Json()); }
  void boolean(bool value) override { add(Json(value)); }
  void number(std::string_view text) override {
    if (next_python_number_ < python_numbers_.size() && python_numbers_[next_python_number_].begin < position())
      text = python_numbers_[next_python_number_++].text;
    add(Json(Json::Number{std::string(text)}));
  }
  void string(std::string& value) override { add(Json(std::move(value))); }
  void begin_object() override { open_.push_back({Json(Json::Object()), std::move(key_), {}}); }
  void key(std::string& value) override {
    open_.back().key_positions.push_back(position());
    key_ = std::move(value);
  }
  void end_object() override {
    refuse_duplicates(open_.back());
    close();
  }
  void begin_array() override { open_.push_back({Json(Json::Array()), std::move(key_), {}}); }
  void end_array() override { close(); }

  [[nodiscard]] Json take() { return std::move(root_); }

 private:
  struct Open {
    Json value;
    std::string key;  ///< under which the value goes into the one around it
    std::vector<std::uint64_t> key_positions;
  };

  void add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (Json::Array* array = open_.back().value.array()) {
      array->push_back(std::move(value));
    } else {
      open_.back().value.object()->emplace_back(std::move(key_), std::move(value));
    }
  }
  void close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    key_ = std::move(done.key);
    add(std::move(done.value));
  }
  void refuse_duplicates(const Open& open) const {
    const Json::Object& members = *open.value.object();
    std::unordered_set<std::string_view> seen(members.size());
    for (std::size_t i = 0; i < members.size(); ++i)
      if (!seen.insert(members[i].first).second)
        throw Error(ErrorCode::corrupt, fmt::format("the key '{}' stands twice in one JSON object", printable(members[i].first)),
                    {.file = file_.string(), .key = printable(members[i].first), .byte = open.key_positions[i]},
                    "readers disagree on which of the two counts; remove one");
  }

  const std::filesystem::path& file_;
  std::vector<PythonNumber> python_numbers_;
  std::size_t next_python_number_ = 0;
  std::vector<Open> open_;
  std::string key_;
  Json root_;
};

}  // namespace

void parse_json_events(std::string_view text, const std::filesystem::path& file, const JsonLimits& limits, JsonEvents& events,
                       std::uint64_t first_byte) {
  check_size(text.size(), file, limits);
  Source source(text, first_byte);
  run_parser(source, first_byte, file, limits, events);
}

void parse_json_events(const File& file, std::uint64_t offset, std::uint64_t size_bytes, const JsonLimits& limits, JsonEvents& events) {
  check_size(size_bytes, file.path(), limits);
  Source source(file, offset, size_bytes);
  run_parser(source, offset, file.path(), limits, events);
}

Json parse_json(std::string_view text, const std::filesystem::path& file, const JsonLimits& limits) {
  check_size(text.size(), file, limits);
  std::string copy;
  std::vector<PythonNumber> python_numbers;
  if (limits.numbers == JsonNumbers::as_python && (text.find(kNaN) != std::string_view::npos || text.find(kInfinity) != std::string_view::npos)) {
    copy = text;
    python_numbers = replace_python_numbers(copy);
    text = copy;
  }
  TreeBuilder builder(file, std::move(python_numbers));
  parse_json_events(text, file, limits, builder);
  return builder.take();
}

Json read_json_file(const std::filesystem::path& path, const JsonLimits& limits) {
  return parse_json(read_text_file(path, limits.max_bytes), path, limits);
}

// ---- Writing ------------------------------------------------------------------------------------------------------------------------------

namespace {

/// Takes one code point off the front; U+FFFD for a byte that is part of none, so that what we write is always UTF-8.
char32_t take_code_point(std::string_view& text) {
  const auto byte = [&text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  const std::size_t length = lead < 0x80                   ? 1
                             : lead >= 0xC2 && lead < 0xE0 ? 2
                             : lead >= 0xE0 && lead < 0xF0 ? 3
                             : lead >= 0xF0 && lead < 0xF5 ? 4
                                                           : 0;
  if (length == 0 || length > text.size() || !is_valid_utf8(text.substr(0, length))) {
    text.remove_prefix(1);
    return 0xFFFD;
  }
  char32_t code_point = length == 1 ? lead : lead & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) code_point = code_point << 6 | (byte(i) & 0x3Fu);
  text.remove_prefix(length);
  return code_point;
}

void append_quoted(std::string& out, std::string_view text, bool ascii) {
  out += '"';
  while (!text.empty()) {
    const std::string_view rest = text;
    const char32_t c = take_code_point(text);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (c < 0x20 || (ascii && c >= 0x7F && c < 0x10000)) {
          out += fmt::format("\\u{:04x}", static_cast<std::uint32_t>(c));
        } else if (ascii && c >= 0x10000) {
          const std::uint32_t offset = static_cast<std::uint32_t>(c) - 0x10000;
          out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (offset >> 10), 0xDC00 + (offset & 0x3FF));
        } else if (c == 0xFFFD) {
          out += "\xEF\xBF\xBD";
        } else {
          out += rest.substr(0, rest.size() - text.size());
        }
    }
  }
  out += '"';
}

void append_json(std::string& out, const Json& value, int indent, bool ascii, int depth) {
  const auto new_line = [&](int levels) {
    if (indent == 0) return;
    out += '\n';
    out.append(static_cast<std::size_t>(levels) * static_cast<std::size_t>(indent), ' ');
  };
  if (const auto* array = value.array()) {
    out += '[';
    for (const Json& item : *array) {
      if (&item != array->data()) out += ',';
      new_line(depth + 1);
      append_json(out, item, indent, ascii, depth + 1);
    }
    if (!array->empty()) new_line(depth);
    out += ']';
  } else if (const auto* object = value.object()) {
    out += '{';
    for (const Json::Member& member : *object) {
      if (&member != object->data()) out += ',';
      new_line(depth + 1);
      append_quoted(out, member.first, ascii);
      out += indent == 0 ? ":" : ": ";
      append_json(out, member.second, indent, ascii, depth + 1);
    }
    if (!object->empty()) new_line(depth);
    out += '}';
  } else if (const auto* text = value.string()) {
    append_quoted(out, *text, ascii);
  } else if (const auto* number = value.number_text()) {
    out += *number;
  } else if (const auto boolean = value.boolean()) {
    out += *boolean ? "true" : "false";
  } else {
    out += "null";
  }
}

}  // namespace

std::string write_json(const Json& value, int indent, bool ascii) {
  std::string out;
  append_json(out, value, indent, ascii, 0);
  return out;
}

std::string json_quote(std::string_view text) {
  std::string out;
  append_quoted(out, text, false);
  return out;
}

}  // namespace weft
