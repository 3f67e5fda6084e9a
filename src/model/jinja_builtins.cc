#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <ctime>
#include <map>
#include <optional>

#include "base/text.h"
#include "model/jinja_value.h"
#include "model/unicode_text.h"

// Filters, tests, methods and functions of chat templates.
namespace weft::model::jinja {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{16} << 20;

// ---- Texts ---------------------------------------------------------------------------------------------------------------------------------

/// What str.strip() takes: White_Space and the information separators.
bool is_python_space(char32_t c) { return is_whitespace(c) || (c >= 0x1C && c <= 0x1F); }

std::vector<char32_t> code_points(std::string_view text) {
  std::vector<char32_t> out;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text.data() + at);
    out.push_back(c.value);
    at += c.size_bytes;
  }
  return out;
}
std::string from_code_points(const std::vector<char32_t>& list) {
  std::string out;
  for (const char32_t c : list) append_utf8(out, c);
  return out;
}

bool is_cased(char32_t c) {
  const int kind = category(c);
  return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL || kind == UTF8PROC_CATEGORY_LT;
}

std::string lower_text(std::string_view text) {
  const std::vector<char32_t> list = code_points(text);
  std::string out;
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (list[i] == 0x3A3) {  // a sigma at the end of a word
      std::size_t before = i;
      while (before > 0 && (is_mark(list[before - 1]) || list[before - 1] == '\'')) --before;
      std::size_t behind = i + 1;
      while (behind < list.size() && (is_mark(list[behind]) || list[behind] == '\'')) ++behind;
      const bool last = before > 0 && is_cased(list[before - 1]) && !(behind < list.size() && is_cased(list[behind]));
      append_utf8(out, last ? 0x3C2 : 0x3C3);
      continue;
    }
    const LowerCase small = lower_case(list[i]);
    append_utf8(out, small.first);
    if (small.second != 0) append_utf8(out, small.second);
  }
  return out;
}

/// Characters whose upper case is several.
std::string_view long_upper(char32_t c) {
  switch (c) {
    case 0xDF:
      return "SS";
    case 0x149:
      return "\u02BCN";
    case 0x1F0:
      return "J\u030C";
    case 0x390:
      return "\u0399\u0308\u0301";
    case 0x3B0:
      return "\u03A5\u0308\u0301";
    case 0x587:
      return "\u0535\u0552";
    case 0xFB00:
      return "FF";
    case 0xFB01:
      return "FI";
    case 0xFB02:
      return "FL";
    case 0xFB03:
      return "FFI";
    case 0xFB04:
      return "FFL";
    case 0xFB05:
    case 0xFB06:
      return "ST";
    default:
      return {};
  }
}

void append_upper(std::string& out, char32_t c) {
  if (const std::string_view several = long_upper(c); !several.empty())
    out += several;
  else
    append_utf8(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
}

void append_title(std::string& out, char32_t c) {
  if (const std::string_view several = long_upper(c); !several.empty()) {
    const auto list = code_points(several);
    append_utf8(out, list[0]);
    for (std::size_t i = 1; i < list.size(); ++i) append_utf8(out, lower_case(list[i]).first);
    return;
  }
  append_utf8(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
}

std::string upper_text(std::string_view text) {
  std::string out;
  for (const char32_t c : code_points(text)) append_upper(out, c);
  return out;
}

std::string capitalize(std::string_view text) {
  const auto list = code_points(text);
  if (list.empty()) return {};
  std::string out;
  append_title(out, list[0]);
  return out + lower_text(from_code_points({list.begin() + 1, list.end()}));
}

/// Words begin with what `begins` says; the rest of each is small. is_inside(c): whether a character is of a word.
template <typename Inside>
std::string title_words(std::string_view text, Inside&& is_inside, void (*put_first)(std::string&, char32_t)) {
  std::string out;
  std::vector<char32_t> rest;
  bool inside = false;
  const auto flush = [&] {
    // Small letters depend on their neighbours, so the whole rest of a word is changed at once, behind a letter.
    if (!rest.empty()) out += lower_text("a" + from_code_points(rest)).substr(1);
    rest.clear();
  };
  for (const char32_t c : code_points(text)) {
    if (!is_inside(c)) {
      flush();
      append_utf8(out, c);
      inside = false;
    } else if (inside) {
      rest.push_back(c);
    } else {
      put_first(out, c);
      inside = true;
    }
  }
  flush();
  return out;
}

/// str.title(): a letter behind what is no letter is large.
std::string title_method(std::string_view text) { return title_words(text, is_cased, append_title); }

/// The filter: words are what spaces, dashes and opening brackets separate.
std::string title_filter(std::string_view text) {
  return title_words(
      text, [](char32_t c) { return !(is_python_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<'); }, append_upper);
}

enum class Side { both, left, right };

std::string strip(std::string_view text, const std::optional<std::string>& characters, Side side) {
  std::vector<char32_t> set;
  if (characters) set = code_points(*characters);
  const auto goes = [&](char32_t c) { return characters ? std::find(set.begin(), set.end(), c) != set.end() : is_python_space(c); };
  while (side != Side::right && !text.empty()) {
    const CodePoint c = decode_utf8(text.data());
    if (!goes(c.value)) break;
    text.remove_prefix(c.size_bytes);
  }
  while (side != Side::left && !text.empty()) {
    const CodePoint c = decode_utf8_before(text.data() + text.size());
    if (!goes(c.value)) break;
    text.remove_suffix(c.size_bytes);
  }
  return std::string(text);
}

std::string replace(std::string_view text, const std::string& from, const std::string& to, std::int64_t count, Meter& meter) {
  std::string out;
  std::size_t last = 0;
  const auto grow = [&] {
    if (out.size() > kMaxTextBytes) fail("a text would become too long");
    meter.charge_bytes(to.size());
  };
  if (from.empty()) {  // between all characters
    for (std::size_t at = 0; count != 0; --count) {
      out += to;
      grow();
      if (at == text.size()) return out;
      const std::uint32_t size = decode_utf8(text.data() + at).size_bytes;
      out += text.substr(at, size);
      at += size;
      last = at;
    }
  } else {
    for (std::size_t at = text.find(from); at != std::string_view::npos && count != 0; at = text.find(from, last), --count) {
      out += text.substr(last, at - last);
      out += to;
      grow();
      last = at + from.size();
    }
  }
  out += text.substr(last);
  meter.charge_bytes(out.size());
  return out;
}

List split(std::string_view text, const std::optional<std::string>& separator, std::int64_t limit, bool from_right, Meter& meter) {
  List out;
  meter.charge_bytes(text.size());
  if (separator) {
    if (separator->empty()) fail("empty separator");
    if (!from_right) {
      std::size_t last = 0;
      for (std::size_t at = text.find(*separator); at != std::string_view::npos && limit != 0; at = text.find(*separator, last), --limit) {
        out.push_back(Value::text(std::string(text.substr(last, at - last))));
        last = at + separator->size();
      }
      out.push_back(Value::text(std::string(text.substr(last))));
    } else {
      std::size_t end = text.size();
      while (limit != 0 && end >= separator->size()) {
        const std::size_t at = text.rfind(*separator, end - separator->size());
        if (at == std::string_view::npos) break;
        out.push_back(Value::text(std::string(text.substr(at + separator->size(), end - at - separator->size()))));
        end = at;
        --limit;
      }
      out.push_back(Value::text(std::string(text.substr(0, end))));
      std::reverse(out.begin(), out.end());
    }
    meter.charge(out.size());
    return out;
  }
  if (from_right && limit >= 0) refuse("rsplit with a limit and without a separator");
  std::string rest = strip(text, std::nullopt, Side::left);
  while (!rest.empty()) {
    if (limit == 0) {
      out.push_back(Value::text(strip(rest, std::nullopt, Side::right)));
      break;
    }
    std::size_t end = 0;
    while (end < rest.size()) {
      const CodePoint c = decode_utf8(rest.data() + end);
      if (is_python_space(c.value)) break;
      end += c.size_bytes;
    }
    out.push_back(Value::text(rest.substr(0, end)));
    meter.charge_bytes(rest.size());
    rest = strip(std::string_view(rest).substr(end), std::nullopt, Side::left);
    --limit;
  }
  return out;
}

List split_lines(std::string_view text, bool keep, Meter& meter) {
  List out;
  std::size_t begin = 0;
  meter.charge_bytes(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text.data() + at);
    std::size_t end = at + c.size_bytes;
    const bool line_end =
        (c.value >= 0xA && c.value <= 0xD) || (c.value >= 0x1C && c.value <= 0x1E) || c.value == 0x85 || c.value == 0x2028 || c.value == 0x2029;
    if (line_end) {
      if (c.value == '\r' && end < text.size() && text[end] == '\n') ++end;
      out.push_back(Value::text(std::string(text.substr(begin, (keep ? end : at) - begin))));
      begin = end;
    }
    at = end;
  }
  if (begin < text.size()) out.push_back(Value::text(std::string(text.substr(begin))));
  meter.charge(out.size());
  return out;
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&#34;";
    else if (c == '\'')
      out += "&#39;";
    else
      out += c;
  }
  return out;
}

// ---- Arguments -----------------------------------------------------------------------------------------------------------------------------

/// Arguments by position or name.
class Call {
 public:
  Call(const Arguments& arguments, std::vector<std::string> names, std::string function)
      : arguments_(arguments), names_(std::move(names)), function_(std::move(function)) {
    if (arguments.positional.size() > names_.size()) fail(function_ + " takes at most " + std::to_string(names_.size()) + " arguments");
    for (const auto& [name, value] : arguments.named)
      if (std::find(names_.begin(), names_.end(), name) == names_.end()) fail(function_ + " takes no argument '" + name + "'");
  }
  [[nodiscard]] const Value* find(std::size_t i) const {
    if (i < arguments_.positional.size()) return &arguments_.positional[i];
    for (const auto& [name, value] : arguments_.named)
      if (name == names_[i]) return &value;
    return nullptr;
  }
  [[nodiscard]] const Value& at(std::size_t i) const {
    const Value* value = find(i);
    if (value == nullptr) fail(function_ + " needs the argument '" + names_[i] + "'");
    return *value;
  }
  [[nodiscard]] std::string text(std::size_t i) const {
    const Value& value = at(i);
    if (value.as_text() == nullptr) fail(function_ + " needs a text, not " + value.type_name());
    return *value.as_text();
  }
  [[nodiscard]] std::string text(std::size_t i, std::string_view missing) const { return find(i) == nullptr ? std::string(missing) : text(i); }
  [[nodiscard]] std::optional<std::string> optional_text(std::size_t i) const {
    const Value* value = find(i);
    if (value == nullptr || value->is_none()) return std::nullopt;
    return text(i);
  }
  [[nodiscard]] std::int64_t integer(std::size_t i, std::int64_t missing) const {
    const Value* value = find(i);
    if (value == nullptr || value->is_none()) return missing;
    if (value->as_bool() != nullptr) return *value->as_bool() ? 1 : 0;
    if (value->as_int() == nullptr) fail(function_ + " needs a whole number, not " + value->type_name());
    return *value->as_int();
  }
  [[nodiscard]] bool flag(std::size_t i, bool missing) const {
    const Value* value = find(i);
    return value == nullptr ? missing : value->truthy();
  }

 private:
  const Arguments& arguments_;
  std::vector<std::string> names_;
  std::string function_;
};

/// a.b.0 of an item, for map(attribute=...) and its like.
Value attribute_path(const Value& item, const Value& path, const Value* missing, Meter& meter) {
  Value value = item;
  const auto step = [&](const Value& key) {
    value = value.is_undefined() ? value : subscript(value, key, meter);
    if (value.is_undefined() && missing != nullptr) value = *missing;
  };
  if (path.as_text() == nullptr) {
    step(path);
    return value;
  }
  const std::string& text = *path.as_text();
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find('.', at), text.size());
    const std::string part = text.substr(at, end - at);
    std::int64_t number = 0;
    const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    step(!part.empty() && error == std::errc() && stop == part.data() + part.size() ? Value::integer(number) : Value::text(part));
    at = end + 1;
  }
  return value;
}

Value as_text(const Value& value, Meter& meter) { return value.as_text() != nullptr ? value : Value::text(to_text(value, meter)); }
std::string text_of(const Value& value, Meter& meter) { return to_text(value, meter); }

// ---- Filters -------------------------------------------------------------------------------------------------------------------------------

using Filter = Value (*)(const Value&, const Arguments&, Meter&);

int compare_for_sorting(const Value& a, const Value& b, bool case_sensitive, Meter& meter) {
  if (!case_sensitive && a.as_text() != nullptr && b.as_text() != nullptr)
    return compare(Value::text(lower_text(*a.as_text())), Value::text(lower_text(*b.as_text())), meter);
  return compare(a, b, meter);
}

Value select_items(const Value& value, const Arguments& arguments, Meter& meter, bool by_attribute, bool keep) {
  List out;
  const std::size_t skipped = by_attribute ? 1 : 0;
  if (by_attribute && arguments.positional.empty()) fail("missing parameter for attribute name");
  std::string test;
  Arguments rest;
  rest.named = arguments.named;
  if (arguments.positional.size() > skipped) {
    const Value& name = arguments.positional[skipped];
    if (name.as_text() == nullptr || !has_test(*name.as_text())) refuse("the test '" + to_text(name, meter) + "'");
    test = *name.as_text();
    rest.positional.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(skipped) + 1, arguments.positional.end());
  }
  for (const Value& item : items_of(value, meter)) {
    const Value subject = by_attribute ? attribute_path(item, arguments.positional[0], nullptr, meter) : item;
    const bool passes = test.empty() ? subject.truthy() : apply_test(test, subject, rest, meter);
    if (passes == keep) out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value map_items(const Value& value, const Arguments& arguments, Meter& meter) {
  List out;
  const List items = items_of(value, meter);
  if (arguments.positional.empty()) {
    const Value* path = nullptr;
    const Value* missing = nullptr;
    for (const auto& [name, given] : arguments.named) {
      if (name == "attribute")
        path = &given;
      else if (name == "default")
        missing = &given;
      else
        fail("unexpected keyword argument '" + name + "'");
    }
    if (path == nullptr) fail("map requires a filter argument");
    for (const Value& item : items) out.push_back(attribute_path(item, *path, missing, meter));
    return Value::list(std::move(out));
  }
  const Value& name = arguments.positional[0];
  if (name.as_text() == nullptr || !has_filter(*name.as_text())) refuse("the filter '" + to_text(name, meter) + "'");
  Arguments rest;
  rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
  rest.named = arguments.named;
  for (const Value& item : items) out.push_back(apply_filter(*name.as_text(), item, rest, meter));
  return Value::list(std::move(out));
}

Value sort_items(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {"reverse", "case_sensitive", "attribute"}, "sort");
  List items = items_of(value, meter);
  const bool case_sensitive = call.flag(1, false);
  const Value* attribute = call.find(2);
  const auto key = [&](const Value& item) {
    return attribute == nullptr || attribute->is_none() ? item : attribute_path(item, *attribute, nullptr, meter);
  };
  const bool reverse = call.flag(0, false);
  std::stable_sort(items.begin(), items.end(), [&](const Value& a, const Value& b) {
    const int order = compare_for_sorting(key(a), key(b), case_sensitive, meter);
    return reverse ? order > 0 : order < 0;
  });
  return Value::list(std::move(items));
}

Value extreme(const Value& value, const Arguments& arguments, Meter& meter, int wanted) {
  const Call call(arguments, {"case_sensitive", "attribute"}, wanted < 0 ? "min" : "max");
  const Value* best = nullptr;
  const List items = items_of(value, meter);
  if (items.empty()) return Value::undefined("no aggregated item, sequence was empty");
  const auto key = [&](const Value& item) {
    const Value* attribute = call.find(1);
    return attribute == nullptr ? item : attribute_path(item, *attribute, nullptr, meter);
  };
  for (const Value& item : items)
    if (best == nullptr || compare_for_sorting(key(item), key(*best), call.flag(0, false), meter) == wanted) best = &item;
  return *best;
}

Value indent(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {"width", "first", "blank"}, "indent");
  const std::string text = text_of(value, meter);
  std::string margin;
  if (const Value* width = call.find(0); width != nullptr && width->as_text() != nullptr) {
    margin = *width->as_text();
  } else {
    const std::int64_t count = call.integer(0, 4);
    if (count > 10'000) fail("an indentation of " + std::to_string(count));
    margin.assign(static_cast<std::size_t>(std::max<std::int64_t>(0, count)), ' ');
  }
  // A line end is added and taken off again, as in the library, so that an empty last line counts.
  List lines = split_lines(text + "\n", false, meter);
  std::string out;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string& line = *lines[i].as_text();
    if (i > 0) {
      out += '\n';
      if (call.flag(2, false) || !line.empty()) out += margin;
    }
    out += line;
    meter.charge_bytes(margin.size());
    if (out.size() > kMaxTextBytes) fail("a text would become too long");
  }
  if (call.flag(1, false)) out.insert(0, margin);
  meter.charge_bytes(out.size());
  return Value::text(std::move(out));
}

Value round_number(const Value& value, const Arguments& arguments, Meter& /*meter*/) {
  const Call call(arguments, {"precision", "method"}, "round");
  const std::int64_t precision = call.integer(0, 0);
  const std::string method = call.text(1, "common");
  double number = 0;
  if (value.as_float() != nullptr)
    number = *value.as_float();
  else if (value.as_int() != nullptr)
    number = static_cast<double>(*value.as_int());
  else if (value.as_bool() != nullptr)
    number = *value.as_bool() ? 1 : 0;
  else
    fail("round needs a number, not " + value.type_name());
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value::number(std::ceil(number * scale) / scale);
  if (method == "floor") return Value::number(std::floor(number * scale) / scale);
  if (method != "common") fail("method must be common, ceil or floor");
  // Python rounds the exact decimal value, halves to even.
  if (precision >= 0 && precision < 300 && std::isfinite(number)) {
    std::array<char, 700> buffer{};
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number, std::chars_format::fixed, static_cast<int>(precision)).ptr;
    double rounded = 0;
    std::from_chars(buffer.data(), end, rounded);
    number = rounded;
  } else {
    number = std::nearbyint(number * scale) / scale;
  }
  // An int stays one: round(3) is 3.
  if (value.as_int() != nullptr && precision >= 0) return value;
  return Value::number(number);
}

Value to_integer(const Value& value, const Arguments& arguments, Meter& /*meter*/) {
  const Call call(arguments, {"default", "base"}, "int");
  const Value* missing = call.find(0);
  const auto otherwise = [&] { return missing == nullptr ? Value::integer(0) : *missing; };
  if (value.as_int() != nullptr) return value;
  if (value.as_bool() != nullptr) return Value::integer(*value.as_bool() ? 1 : 0);
  if (const double* number = value.as_float())
    return std::isfinite(*number) && std::fabs(*number) < 9e18 ? Value::integer(static_cast<std::int64_t>(*number)) : otherwise();
  if (const std::string* text = value.as_text()) {
    std::string plain = strip(*text, std::nullopt, Side::both);
    std::erase(plain, '_');
    const int base = static_cast<int>(std::clamp<std::int64_t>(call.integer(1, 10), 2, 36));
    if (base == 16 && (plain.starts_with("0x") || plain.starts_with("0X"))) plain.erase(0, 2);
    if (plain.starts_with('+')) plain.erase(0, 1);
    std::int64_t whole = 0;
    auto [end, error] = std::from_chars(plain.data(), plain.data() + plain.size(), whole, base);
    if (!plain.empty() && error == std::errc() && end == plain.data() + plain.size()) return Value::integer(whole);
    double number = 0;
    const auto parsed = std::from_chars(plain.data(), plain.data() + plain.size(), number);
    if (!plain.empty() && parsed.ec == std::errc() && parsed.ptr == plain.data() + plain.size() && std::fabs(number) < 9e18)
      return Value::integer(static_cast<std::int64_t>(number));
  }
  return otherwise();
}

Value to_float(const Value& value, const Arguments& arguments, Meter& /*meter*/) {
  const Call call(arguments, {"default"}, "float");
  if (value.as_float() != nullptr) return value;
  if (value.as_int() != nullptr) return Value::number(static_cast<double>(*value.as_int()));
  if (value.as_bool() != nullptr) return Value::number(*value.as_bool() ? 1 : 0);
  if (const std::string* text = value.as_text()) {
    const std::string plain = strip(*text, std::nullopt, Side::both);
    double number = 0;
    const char* begin = plain.data() + (plain.starts_with('+') ? 1 : 0);
    const auto parsed = std::from_chars(begin, plain.data() + plain.size(), number);
    if (!plain.empty() && parsed.ec == std::errc() && parsed.ptr == plain.data() + plain.size()) return Value::number(number);
  }
  return call.find(0) == nullptr ? Value::number(0) : call.at(0);
}

Value items_filter(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {}, "items");
  if (value.is_undefined()) return Value::list({});
  if (value.as_dict() == nullptr) fail("can only get item pairs from a mapping");
  List out;
  for (const auto& [key, item] : *value.as_dict()) out.push_back(Value::list({key, item}, true));
  meter.charge(1 + out.size());
  return Value::list(std::move(out));
}

Value dictsort(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {"case_sensitive", "by", "reverse"}, "dictsort");
  const std::string by = call.text(1, "key");
  if (by != "key" && by != "value") fail("you can only sort by either 'key' or 'value'");
  List pairs = *items_filter(value, {}, meter).as_list();
  const std::size_t place = by == "key" ? 0 : 1;
  const bool reverse = call.flag(2, false);
  std::stable_sort(pairs.begin(), pairs.end(), [&](const Value& a, const Value& b) {
    const int order = compare_for_sorting((*a.as_list())[place], (*b.as_list())[place], call.flag(0, false), meter);
    return reverse ? order > 0 : order < 0;
  });
  return Value::list(std::move(pairs));
}

Value json_filter(const Value& value, const Arguments& arguments, Meter& meter) {
  // json.dumps of transformers: nothing is escaped for HTML, keys keep their order.
  const Call call(arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}, "tojson");
  const Value* indent_value = call.find(1);
  int indent_width = -1;
  if (indent_value != nullptr && !indent_value->is_none()) indent_width = static_cast<int>(std::clamp<std::int64_t>(call.integer(1, 0), 0, 100));
  std::string items = indent_width >= 0 ? "," : ", ";
  std::string keys = ": ";
  if (const Value* separators = call.find(2); separators != nullptr && !separators->is_none()) {
    const List* pair = separators->as_list();
    if (pair == nullptr || pair->size() != 2 || (*pair)[0].as_text() == nullptr || (*pair)[1].as_text() == nullptr)
      fail("separators must be two texts");
    items = *(*pair)[0].as_text();
    keys = *(*pair)[1].as_text();
  }
  return Value::text(to_json(value, indent_width, call.flag(0, false), call.flag(3, false), items, keys, meter));
}

Value join_items(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {"d", "attribute"}, "join");
  const std::string separator = call.find(0) == nullptr ? std::string() : text_of(call.at(0), meter);
  std::string out;
  bool first = true;
  for (const Value& item : items_of(value, meter)) {
    if (!first) out += separator;
    first = false;
    out += text_of(call.find(1) == nullptr || call.at(1).is_none() ? item : attribute_path(item, call.at(1), nullptr, meter), meter);
    meter.charge_bytes(separator.size());
    if (out.size() > kMaxTextBytes) fail("a text would become too long");
  }
  meter.charge_bytes(out.size());
  return Value::text(std::move(out));
}

Value unique_items(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {"case_sensitive", "attribute"}, "unique");
  List out;
  List seen;
  for (const Value& item : items_of(value, meter)) {
    Value key = call.find(1) == nullptr ? item : attribute_path(item, call.at(1), nullptr, meter);
    if (!call.flag(0, false) && key.as_text() != nullptr) key = Value::text(lower_text(*key.as_text()));
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& old) { return equal(old, key, meter); })) continue;
    seen.push_back(key);
    out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value group_items(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {"attribute", "default", "case_sensitive"}, "groupby");
  const auto key = [&](const Value& item) { return attribute_path(item, call.at(0), call.find(1), meter); };
  List items = items_of(value, meter);
  std::stable_sort(items.begin(), items.end(),
                   [&](const Value& a, const Value& b) { return compare_for_sorting(key(a), key(b), call.flag(2, false), meter) < 0; });
  List groups;
  for (std::size_t i = 0; i < items.size();) {
    const Value first = key(items[i]);
    List members;
    while (i < items.size() && compare_for_sorting(key(items[i]), first, call.flag(2, false), meter) == 0) members.push_back(items[i++]);
    groups.push_back(Value::list({first, Value::list(std::move(members))}, true));
  }
  return Value::list(std::move(groups));
}

Value batch_items(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {"linecount", "fill_with"}, "batch");
  const std::int64_t count = call.integer(0, 0);
  if (count < 1 || count > 100'000) fail("a batch of " + std::to_string(count));
  List out;
  List row;
  for (const Value& item : items_of(value, meter)) {
    if (row.size() == static_cast<std::size_t>(count)) out.push_back(Value::list(std::exchange(row, {})));
    row.push_back(item);
  }
  if (!row.empty()) {
    if (call.find(1) != nullptr && !call.at(1).is_none()) {
      meter.charge(static_cast<std::uint64_t>(count));
      row.resize(static_cast<std::size_t>(count), call.at(1));
    }
    out.push_back(Value::list(std::move(row)));
  }
  return Value::list(std::move(out));
}

Value sum_items(const Value& value, const Arguments& arguments, Meter& meter) {
  const Call call(arguments, {"attribute", "start"}, "sum");
  Value total = call.find(1) == nullptr ? Value::integer(0) : call.at(1);
  for (const Value& item : items_of(value, meter))
    total = arithmetic("+", total, call.find(0) == nullptr || call.at(0).is_none() ? item : attribute_path(item, call.at(0), nullptr, meter), meter);
  return total;
}

Value text_filter(const Value& value, Meter& meter, std::string (*work)(std::string_view)) {
  const std::string text = text_of(value, meter);
  meter.charge_bytes(text.size());
  return Value::text(work(text));
}

const std::map<std::string, Filter, std::less<>>& filters() {
  static const std::map<std::string, Filter, std::less<>> table = {
      {"abs", [](const Value& v, const Arguments&, Meter& m) { return compare(v, Value::integer(0), m) < 0 ? negate(v) : v; }},
      {"attr", [](const Value& v, const Arguments& a, Meter& m) { return attribute_path(v, Call(a, {"name"}, "attr").at(0), nullptr, m); }},
      {"batch", batch_items},
      {"capitalize", [](const Value& v, const Arguments&, Meter& m) { return text_filter(v, m, capitalize); }},
      {"count", [](const Value& v, const Arguments&, Meter&) { return Value::integer(length_of(v)); }},
      {"d", [](const Value& v, const Arguments& a, Meter& m) { return apply_filter("default", v, a, m); }},
      {"default",
       [](const Value& v, const Arguments& a, Meter&) {
         const Call call(a, {"default_value", "boolean"}, "default");
         if (!v.is_undefined() && !(call.flag(1, false) && !v.truthy())) return v;
         return call.find(0) == nullptr ? Value::text("") : call.at(0);
       }},
      {"dictsort", dictsort},
      {"e", [](const Value& v, const Arguments&, Meter& m) { return text_filter(v, m, escape_html); }},
      {"escape", [](const Value& v, const Arguments&, Meter& m) { return text_filter(v, m, escape_html); }},
      {"first",
       [](const Value& v, const Arguments&, Meter& m) {
         const List items = items_of(v, m);
         return items.empty() ? Value::undefined("no first item, sequence was empty") : items.front();
       }},
      {"float", to_float},
      {"groupby", group_items},
      {"indent", indent},
      {"int", to_integer},
      {"items", items_filter},
      {"join", join_items},
      {"last",
       [](const Value& v, const Arguments&, Meter& m) {
         const List items = items_of(v, m);
         return items.empty() ? Value::undefined("no last item, sequence was empty") : items.back();
       }},
      {"length", [](const Value& v, const Arguments&, Meter&) { return Value::integer(length_of(v)); }},
      {"list", [](const Value& v, const Arguments&, Meter& m) { return Value::list(items_of(v, m)); }},
      {"lower", [](const Value& v, const Arguments&, Meter& m) { return text_filter(v, m, lower_text); }},
      {"map", map_items},
      {"max", [](const Value& v, const Arguments& a, Meter& m) { return extreme(v, a, m, 1); }},
      {"min", [](const Value& v, const Arguments& a, Meter& m) { return extreme(v, a, m, -1); }},
      {"reject", [](const Value& v, const Arguments& a, Meter& m) { return select_items(v, a, m, false, false); }},
      {"rejectattr", [](const Value& v, const Arguments& a, Meter& m) { return select_items(v, a, m, true, false); }},
      {"replace",
       [](const Value& v, const Arguments& a, Meter& m) {
         const Call call(a, {"old", "new", "count"}, "replace");
         return Value::text(replace(text_of(v, m), text_of(call.at(0), m), text_of(call.at(1), m), call.integer(2, -1), m));
       }},
      {"reverse",
       [](const Value& v, const Arguments&, Meter& m) {
         if (v.as_text() != nullptr) return slice(v, Value(), Value(), Value::integer(-1), m);
         List items = items_of(v, m);
         std::reverse(items.begin(), items.end());
         return Value::list(std::move(items));
       }},
      {"round", round_number},
      {"safe", [](const Value& v, const Arguments&, Meter& m) { return as_text(v, m); }},
      {"select", [](const Value& v, const Arguments& a, Meter& m) { return select_items(v, a, m, false, true); }},
      {"selectattr", [](const Value& v, const Arguments& a, Meter& m) { return select_items(v, a, m, true, true); }},
      {"sort", sort_items},
      {"string", [](const Value& v, const Arguments&, Meter& m) { return as_text(v, m); }},
      {"sum", sum_items},
      {"title", [](const Value& v, const Arguments&, Meter& m) { return text_filter(v, m, title_filter); }},
      {"tojson", json_filter},
      {"trim",
       [](const Value& v, const Arguments& a, Meter& m) {
         const std::string text = text_of(v, m);
         return Value::text(strip(text, Call(a, {"chars"}, "trim").optional_text(0), Side::both));
       }},
      {"unique", unique_items},
      {"upper", [](const Value& v, const Arguments&, Meter& m) { return text_filter(v, m, upper_text); }},
      {"wordcount",
       [](const Value& v, const Arguments&, Meter& m) {
         std::int64_t count = 0;
         bool inside = false;
         for (const char32_t c : code_points(text_of(v, m))) {
           if (is_word(c) && !inside) ++count;
           inside = is_word(c);
         }
         return Value::integer(count);
       }},
  };
  return table;
}

// ---- Tests ---------------------------------------------------------------------------------------------------------------------------------

using Test = bool (*)(const Value&, const Arguments&, Meter&);

const Value& other(const Arguments& arguments) {
  if (arguments.positional.empty()) fail("the test needs an argument");
  return arguments.positional[0];
}

bool is_numeric_value(const Value& v) { return v.as_int() != nullptr || v.as_float() != nullptr || v.as_bool() != nullptr; }

const std::map<std::string, Test, std::less<>>& tests() {
  static const std::map<std::string, Test, std::less<>> table = [] {
    std::map<std::string, Test, std::less<>> t;
    t["defined"] = [](const Value& v, const Arguments&, Meter&) { return !v.is_undefined(); };
    t["undefined"] = [](const Value& v, const Arguments&, Meter&) { return v.is_undefined(); };
    t["none"] = [](const Value& v, const Arguments&, Meter&) { return v.is_none(); };
    t["boolean"] = [](const Value& v, const Arguments&, Meter&) { return v.as_bool() != nullptr; };
    t["true"] = [](const Value& v, const Arguments&, Meter&) { return v.as_bool() != nullptr && *v.as_bool(); };
    t["false"] = [](const Value& v, const Arguments&, Meter&) { return v.as_bool() != nullptr && !*v.as_bool(); };
    t["integer"] = [](const Value& v, const Arguments&, Meter&) { return v.as_int() != nullptr; };
    t["float"] = [](const Value& v, const Arguments&, Meter&) { return v.as_float() != nullptr; };
    t["number"] = [](const Value& v, const Arguments&, Meter&) { return is_numeric_value(v); };
    t["string"] = [](const Value& v, const Arguments&, Meter&) { return v.as_text() != nullptr; };
    t["mapping"] = [](const Value& v, const Arguments&, Meter&) { return v.as_dict() != nullptr; };
    t["iterable"] = [](const Value& v, const Arguments&, Meter&) {
      return v.as_text() != nullptr || v.as_list() != nullptr || v.as_dict() != nullptr || v.is_undefined();
    };
    t["sequence"] = t["iterable"];
    t["callable"] = [](const Value& v, const Arguments&, Meter&) { return v.as_function() != nullptr; };
    t["even"] = [](const Value& v, const Arguments&, Meter& m) { return !arithmetic("%", v, Value::integer(2), m).truthy(); };
    t["odd"] = [](const Value& v, const Arguments&, Meter& m) { return arithmetic("%", v, Value::integer(2), m).truthy(); };
    t["divisibleby"] = [](const Value& v, const Arguments& a, Meter& m) { return !arithmetic("%", v, other(a), m).truthy(); };
    t["eq"] = t["equalto"] = [](const Value& v, const Arguments& a, Meter& m) { return equal(v, other(a), m); };
    t["sameas"] = [](const Value& v, const Arguments& a, Meter& m) {
      // The same object: lists and dicts by place, all else by value.
      if (v.as_list() != nullptr) return v.as_list() == other(a).as_list();
      if (v.as_dict() != nullptr) return v.as_dict() == other(a).as_dict();
      return v.storage().index() == other(a).storage().index() && equal(v, other(a), m);
    };
    t["ne"] = [](const Value& v, const Arguments& a, Meter& m) { return !equal(v, other(a), m); };
    t["lt"] = t["lessthan"] = [](const Value& v, const Arguments& a, Meter& m) { return compare(v, other(a), m) < 0; };
    t["le"] = [](const Value& v, const Arguments& a, Meter& m) { return compare(v, other(a), m) <= 0; };
    t["gt"] = t["greaterthan"] = [](const Value& v, const Arguments& a, Meter& m) { return compare(v, other(a), m) > 0; };
    t["ge"] = [](const Value& v, const Arguments& a, Meter& m) { return compare(v, other(a), m) >= 0; };
    for (const auto& [sign, name] : {std::pair{"==", "eq"}, {"!=", "ne"}, {"<", "lt"}, {"<=", "le"}, {">", "gt"}, {">=", "ge"}}) t[sign] = t[name];
    t["in"] = [](const Value& v, const Arguments& a, Meter& m) { return contains(other(a), v, m); };
    t["lower"] = [](const Value& v, const Arguments&, Meter& m) {
      const std::string text = to_text(v, m);
      return !text.empty() && text == lower_text(text) && text != upper_text(text);
    };
    t["upper"] = [](const Value& v, const Arguments&, Meter& m) {
      const std::string text = to_text(v, m);
      return !text.empty() && text == upper_text(text) && text != lower_text(text);
    };
    return t;
  }();
  return table;
}

// ---- Methods -------------------------------------------------------------------------------------------------------------------------------

using TextMethod = Value (*)(const std::string&, const Arguments&, Meter&);

bool affix(const std::string& text, const Arguments& a, bool front, const char* name) {
  const Call call(a, {"prefix", "start", "end"}, name);
  if (call.find(1) != nullptr) refuse(std::string(name) + " with a start");
  const auto one = [&](const Value& value) {
    if (value.as_text() == nullptr) fail(std::string(name) + " first arg must be str or a tuple of str, not " + value.type_name());
    return front ? text.starts_with(*value.as_text()) : text.ends_with(*value.as_text());
  };
  const Value& wanted = call.at(0);
  if (wanted.is_tuple()) return std::any_of(wanted.as_list()->begin(), wanted.as_list()->end(), one);
  return one(wanted);
}

template <typename CharacterTest>
bool all_characters(const std::string& text, CharacterTest&& test) {
  const auto list = code_points(text);
  return !list.empty() && std::all_of(list.begin(), list.end(), test);
}

Value find_text(const std::string& text, const Arguments& a, bool from_right, bool must, const char* name) {
  const Call call(a, {"sub", "start", "end"}, name);
  if (call.find(1) != nullptr) refuse(std::string(name) + " with a start");
  const std::string sub = call.text(0);
  const std::size_t at = from_right ? text.rfind(sub) : text.find(sub);
  if (at == std::string::npos) {
    if (must) fail("substring not found");
    return Value::integer(-1);
  }
  return Value::integer(static_cast<std::int64_t>(count_code_points(std::string_view(text).substr(0, at))));
}

Value pad(const std::string& text, const Arguments& a, const char* name, int where, Meter& meter) {
  const Call call(a, {"width", "fillchar"}, name);
  const std::int64_t width = call.integer(0, 0);
  const auto size = static_cast<std::int64_t>(count_code_points(text));
  if (width <= size) return Value::text(text);
  if (width > 1'000'000) fail("a text would become too long");
  const std::string fill = call.text(1, where == 3 ? "0" : " ");
  if (count_code_points(fill) != 1) fail("the fill character must be exactly one character long");
  const auto more = static_cast<std::size_t>(width - size);
  std::size_t left = 0;
  if (where == 1) left = more;
  if (where == 2) left = more / 2 + (more & static_cast<std::size_t>(width) & 1);
  if (where == 3) left = more;
  std::string out;
  std::string_view rest = text;
  if (where == 3 && (rest.starts_with('-') || rest.starts_with('+'))) {
    out += rest[0];
    rest.remove_prefix(1);
  }
  for (std::size_t i = 0; i < left; ++i) out += fill;
  out += rest;
  for (std::size_t i = left; i < more; ++i) out += fill;
  meter.charge_bytes(out.size());
  return Value::text(std::move(out));
}

Value partition(const std::string& text, const Arguments& a, bool from_right, const char* name) {
  const std::string separator = Call(a, {"sep"}, name).text(0);
  if (separator.empty()) fail("empty separator");
  const std::size_t at = from_right ? text.rfind(separator) : text.find(separator);
  const Value none = Value::text("");
  if (at == std::string::npos)
    return from_right ? Value::list({none, none, Value::text(text)}, true) : Value::list({Value::text(text), none, none}, true);
  return Value::list({Value::text(text.substr(0, at)), Value::text(separator), Value::text(text.substr(at + separator.size()))}, true);
}

/// "{} and {name}".format(...): fields without conversions.
Value format(const std::string& text, const Arguments& a, Meter& meter) {
  std::string out;
  std::size_t next = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if ((text[i] == '{' || text[i] == '}') && i + 1 < text.size() && text[i + 1] == text[i]) {
      out += text[i++];
      continue;
    }
    if (text[i] == '}') fail("single '}' encountered in format string");
    if (text[i] != '{') {
      out += text[i];
      continue;
    }
    const std::size_t end = text.find('}', i);
    if (end == std::string::npos) fail("expected '}' before end of string");
    const std::string field = text.substr(i + 1, end - i - 1);
    i = end;
    const Value* value = nullptr;
    std::int64_t number = 0;
    const auto [stop, error] = std::from_chars(field.data(), field.data() + field.size(), number);
    if (field.empty()) {
      if (next < a.positional.size()) value = &a.positional[next++];
    } else if (error == std::errc() && stop == field.data() + field.size()) {
      if (number >= 0 && static_cast<std::size_t>(number) < a.positional.size()) value = &a.positional[static_cast<std::size_t>(number)];
    } else if (std::all_of(field.begin(), field.end(), [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; })) {
      for (const auto& [name, given] : a.named)
        if (name == field) value = &given;
    } else {
      refuse("the format field '{" + field + "}'");
    }
    if (value == nullptr) fail("the format field '{" + field + "}' has no value");
    out += to_text(*value, meter);
    meter.charge_bytes(out.size());
  }
  return Value::text(std::move(out));
}

const std::map<std::string, TextMethod, std::less<>>& text_methods() {
  static const std::map<std::string, TextMethod, std::less<>> table = [] {
    std::map<std::string, TextMethod, std::less<>> t;
    t["strip"] = [](const std::string& s, const Arguments& a, Meter&) {
      return Value::text(strip(s, Call(a, {"chars"}, "strip").optional_text(0), Side::both));
    };
    t["lstrip"] = [](const std::string& s, const Arguments& a, Meter&) {
      return Value::text(strip(s, Call(a, {"chars"}, "lstrip").optional_text(0), Side::left));
    };
    t["rstrip"] = [](const std::string& s, const Arguments& a, Meter&) {
      return Value::text(strip(s, Call(a, {"chars"}, "rstrip").optional_text(0), Side::right));
    };
    t["upper"] = [](const std::string& s, const Arguments&, Meter&) { return Value::text(upper_text(s)); };
    t["lower"] = [](const std::string& s, const Arguments&, Meter&) { return Value::text(lower_text(s)); };
    t["casefold"] = t["lower"];
    t["title"] = [](const std::string& s, const Arguments&, Meter&) { return Value::text(title_method(s)); };
    t["capitalize"] = [](const std::string& s, const Arguments&, Meter&) { return Value::text(capitalize(s)); };
    t["startswith"] = [](const std::string& s, const Arguments& a, Meter&) { return Value::boolean(affix(s, a, true, "startswith")); };
    t["endswith"] = [](const std::string& s, const Arguments& a, Meter&) { return Value::boolean(affix(s, a, false, "endswith")); };
    t["replace"] = [](const std::string& s, const Arguments& a, Meter& m) {
      const Call call(a, {"old", "new", "count"}, "replace");
      return Value::text(replace(s, call.text(0), call.text(1), call.integer(2, -1), m));
    };
    t["split"] = [](const std::string& s, const Arguments& a, Meter& m) {
      const Call call(a, {"sep", "maxsplit"}, "split");
      return Value::list(split(s, call.optional_text(0), call.integer(1, -1), false, m));
    };
    t["rsplit"] = [](const std::string& s, const Arguments& a, Meter& m) {
      const Call call(a, {"sep", "maxsplit"}, "rsplit");
      return Value::list(split(s, call.optional_text(0), call.integer(1, -1), true, m));
    };
    t["splitlines"] = [](const std::string& s, const Arguments& a, Meter& m) {
      return Value::list(split_lines(s, Call(a, {"keepends"}, "splitlines").flag(0, false), m));
    };
    t["join"] = [](const std::string& s, const Arguments& a, Meter& m) {
      std::string out;
      bool first = true;
      for (const Value& item : items_of(Call(a, {"iterable"}, "join").at(0), m)) {
        if (item.as_text() == nullptr) fail("sequence item: expected str instance, " + item.type_name() + " found");
        if (!first) out += s;
        first = false;
        out += *item.as_text();
        m.charge_bytes(s.size() + item.as_text()->size());
        if (out.size() > kMaxTextBytes) fail("a text would become too long");
      }
      return Value::text(std::move(out));
    };
    t["find"] = [](const std::string& s, const Arguments& a, Meter&) { return find_text(s, a, false, false, "find"); };
    t["rfind"] = [](const std::string& s, const Arguments& a, Meter&) { return find_text(s, a, true, false, "rfind"); };
    t["index"] = [](const std::string& s, const Arguments& a, Meter&) { return find_text(s, a, false, true, "index"); };
    t["rindex"] = [](const std::string& s, const Arguments& a, Meter&) { return find_text(s, a, true, true, "rindex"); };
    t["count"] = [](const std::string& s, const Arguments& a, Meter& m) {
      const std::string sub = Call(a, {"sub"}, "count").text(0);
      m.charge_bytes(s.size());
      if (sub.empty()) return Value::integer(static_cast<std::int64_t>(count_code_points(s)) + 1);
      std::int64_t count = 0;
      for (std::size_t at = s.find(sub); at != std::string::npos; at = s.find(sub, at + sub.size())) ++count;
      return Value::integer(count);
    };
    t["removeprefix"] = [](const std::string& s, const Arguments& a, Meter&) {
      const std::string part = Call(a, {"prefix"}, "removeprefix").text(0);
      return Value::text(s.starts_with(part) ? s.substr(part.size()) : s);
    };
    t["removesuffix"] = [](const std::string& s, const Arguments& a, Meter&) {
      const std::string part = Call(a, {"suffix"}, "removesuffix").text(0);
      return Value::text(s.ends_with(part) ? s.substr(0, s.size() - part.size()) : s);
    };
    t["partition"] = [](const std::string& s, const Arguments& a, Meter&) { return partition(s, a, false, "partition"); };
    t["rpartition"] = [](const std::string& s, const Arguments& a, Meter&) { return partition(s, a, true, "rpartition"); };
    t["ljust"] = [](const std::string& s, const Arguments& a, Meter& m) { return pad(s, a, "ljust", 0, m); };
    t["rjust"] = [](const std::string& s, const Arguments& a, Meter& m) { return pad(s, a, "rjust", 1, m); };
    t["center"] = [](const std::string& s, const Arguments& a, Meter& m) { return pad(s, a, "center", 2, m); };
    t["zfill"] = [](const std::string& s, const Arguments& a, Meter& m) { return pad(s, a, "zfill", 3, m); };
    t["format"] = [](const std::string& s, const Arguments& a, Meter& m) { return format(s, a, m); };
    t["isspace"] = [](const std::string& s, const Arguments&, Meter&) { return Value::boolean(all_characters(s, is_python_space)); };
    t["isalpha"] = [](const std::string& s, const Arguments&, Meter&) { return Value::boolean(all_characters(s, is_letter)); };
    t["isdigit"] = [](const std::string& s, const Arguments&, Meter&) {
      return Value::boolean(all_characters(
          s, [](char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND || c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0x2070 && c <= 0x2089); }));
    };
    t["isdecimal"] = [](const std::string& s, const Arguments&, Meter&) {
      return Value::boolean(all_characters(s, [](char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }));
    };
    t["isnumeric"] = [](const std::string& s, const Arguments&, Meter&) { return Value::boolean(all_characters(s, is_number)); };
    t["isalnum"] = [](const std::string& s, const Arguments&, Meter&) {
      return Value::boolean(all_characters(s, [](char32_t c) { return is_letter(c) || is_number(c); }));
    };
    t["isupper"] = [](const std::string& s, const Arguments&, Meter&) {
      return Value::boolean(!s.empty() && s == upper_text(s) && s != lower_text(s));
    };
    t["islower"] = [](const std::string& s, const Arguments&, Meter&) {
      return Value::boolean(!s.empty() && s == lower_text(s) && s != upper_text(s));
    };
    return t;
  }();
  return table;
}

Value dict_method(const Value& object, const std::string& name) {
  const auto make = [&](auto work) {
    return Value::function(name, [object, work](const Arguments& a, Meter& m) { return work(*object.as_dict(), a, m); });
  };
  if (name == "get")
    return make([](const Dict& dict, const Arguments& a, Meter& m) {
      const Call call(a, {"key", "default"}, "get");
      const Value* value = find(dict, call.at(0), m);
      return value != nullptr ? *value : call.find(1) == nullptr ? Value() : call.at(1);
    });
  if (name == "items")
    return make([](const Dict& dict, const Arguments&, Meter& m) {
      List out;
      for (const auto& [key, value] : dict) out.push_back(Value::list({key, value}, true));
      m.charge(1 + out.size());
      return Value::list(std::move(out));
    });
  if (name == "keys" || name == "values")
    return make([keys = name == "keys"](const Dict& dict, const Arguments&, Meter& m) {
      List out;
      for (const auto& [key, value] : dict) out.push_back(keys ? key : value);
      m.charge(1 + out.size());
      return Value::list(std::move(out));
    });
  if (name == "copy")
    return make([](const Dict& dict, const Arguments&, Meter& m) {
      m.charge(1 + dict.size());
      return Value::dict(dict);
    });
  for (const char* changing : {"clear", "pop", "popitem", "setdefault", "update"})
    if (name == changing)
      return Value::function(name, [name](const Arguments&, Meter&) -> Value { fail("'" + name + "' may not change a dict here"); });
  return Value::undefined(name);
}

Value list_method(const Value& object, const std::string& name) {
  if (name == "index" || name == "count")
    return Value::function(name, [object, counts = name == "count"](const Arguments& a, Meter& m) {
      const Call call(a, {"value"}, counts ? "count" : "index");
      std::int64_t count = 0;
      const List& list = *object.as_list();
      for (std::size_t i = 0; i < list.size(); ++i) {
        if (!equal(list[i], call.at(0), m)) continue;
        if (!counts) return Value::integer(static_cast<std::int64_t>(i));
        ++count;
      }
      if (!counts) fail("the value is not in the list");
      return Value::integer(count);
    });
  if (name == "copy") return Value::function(name, [object](const Arguments&, Meter&) { return object; });
  for (const char* changing : {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"})
    if (name == changing)
      return Value::function(name, [name](const Arguments&, Meter&) -> Value { fail("'" + name + "' may not change a list here"); });
  return Value::undefined(name);
}

Value range(const Arguments& a, Meter& meter) {
  const Call call(a, {"start", "stop", "step"}, "range");
  std::int64_t start = 0;
  std::int64_t stop = call.integer(0, 0);
  if (call.find(1) != nullptr) {
    start = stop;
    stop = call.integer(1, 0);
  }
  const std::int64_t step = call.integer(2, 1);
  if (a.positional.empty()) fail("range needs an argument");
  if (step == 0) fail("range() arg 3 must not be zero");
  constexpr std::size_t kMaxRange = 100'000;
  List out;
  for (std::int64_t at = start; step > 0 ? at < stop : at > stop;) {
    if (out.size() >= kMaxRange) fail("range too big: the sandbox blocks ranges larger than " + std::to_string(kMaxRange));
    out.push_back(Value::integer(at));
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  meter.charge(1 + out.size());
  return Value::list(std::move(out));
}

Dict dict_of(const Arguments& a, Meter& meter) {
  Dict out;
  if (!a.positional.empty()) {
    if (const Dict* dict = a.positional[0].as_dict()) {
      out = *dict;
    } else {
      for (const Value& pair : items_of(a.positional[0], meter)) {
        const List* parts = pair.as_list();
        if (parts == nullptr || parts->size() != 2) fail("dict needs pairs");
        out.emplace_back((*parts)[0], (*parts)[1]);
      }
    }
  }
  for (const auto& [name, value] : a.named) {
    const auto known = std::find_if(out.begin(), out.end(), [&key = name](const auto& entry) {
      return entry.first.as_text() != nullptr && *entry.first.as_text() == key;  // (clang 14 captures no bindings)
    });
    if (known != out.end())
      known->second = value;
    else
      out.emplace_back(Value::text(name), value);
  }
  meter.charge(1 + out.size());
  return out;
}

}  // namespace

bool has_filter(const std::string& name) { return filters().contains(name); }
bool has_test(const std::string& name) { return tests().contains(name); }

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments, Meter& meter) {
  meter.charge(1);
  return filters().find(name)->second(value, arguments, meter);
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, Meter& meter) {
  meter.charge(1);
  return tests().find(name)->second(value, arguments, meter);
}

Value method(const Value& object, const std::string& name) {
  if (object.as_text() != nullptr) {
    const auto found = text_methods().find(name);
    if (found == text_methods().end()) return Value::undefined(name);
    return Value::function(name, [object, work = found->second](const Arguments& a, Meter& m) {
      m.charge_bytes(object.as_text()->size());
      return work(*object.as_text(), a, m);
    });
  }
  if (object.as_dict() != nullptr) return dict_method(object, name);
  if (object.as_list() != nullptr) return list_method(object, name);
  return Value::undefined(name);
}

Value builtin(const std::string& name) {
  if (name == "range") return Value::function(name, range);
  if (name == "namespace") return Value::function(name, [](const Arguments& a, Meter& m) { return Value::name_space(dict_of(a, m)); });
  if (name == "dict") return Value::function(name, [](const Arguments& a, Meter& m) { return Value::dict(dict_of(a, m)); });
  if (name == "raise_exception")
    return Value::function(name, [](const Arguments& a, Meter& m) -> Value {
      const std::string text = to_text(Call(a, {"message"}, "raise_exception").at(0), m);
      fail(printable(text, 500));
    });
  if (name == "strftime_now")
    return Value::function(name, [](const Arguments& a, Meter&) {
      const std::string pattern = Call(a, {"format"}, "strftime_now").text(0);
      if (pattern.size() > 200) fail("a date format of more than 200 bytes");
      const std::time_t now = std::time(nullptr);
      std::tm local{};
      localtime_r(&now, &local);
      std::array<char, 4096> buffer{};
      const std::size_t size = std::strftime(buffer.data(), buffer.size(), pattern.c_str(), &local);
      return Value::text(with_replacement_characters(std::string_view(buffer.data(), size)));
    });
  if (name == "lipsum" || name == "cycler" || name == "joiner") refuse("the function '" + name + "'");
  return Value::undefined(name);
}

}  // namespace weft::model::jinja
