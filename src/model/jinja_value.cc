#include "model/jinja_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/unicode_text.h"
#include "weft/error.h"

namespace weft::model::jinja {
namespace {

constexpr int kMaxDepth = 100;
constexpr std::size_t kMaxTextBytes = std::size_t{16} << 20;

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  // Python: the shortest digits; an exponent below 1e-4 and from 1e16.
  std::array<char, 64> buffer{};
  const double size = std::fabs(value);
  const bool exponent = size != 0 && (size < 1e-4 || size >= 1e16);
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, exponent ? std::chars_format::scientific : std::chars_format::fixed).ptr;
  std::string text(buffer.data(), end);
  if (!exponent && text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string repr_text(const std::string& text) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text.data() + at);
    constexpr const char* kHex = "0123456789abcdef";
    if (c.value == static_cast<char32_t>(quote) || c.value == '\\') {
      out += '\\';
      out += static_cast<char>(c.value);
    } else if (c.value == '\n') {
      out += "\\n";
    } else if (c.value == '\r') {
      out += "\\r";
    } else if (c.value == '\t') {
      out += "\\t";
    } else if (c.value < 0x20 || (c.value >= 0x7F && c.value < 0xA1) || c.value == 0xAD) {
      out += "\\x";
      out += kHex[c.value >> 4 & 15];
      out += kHex[c.value & 15];
    } else {
      out.append(text, at, c.size_bytes);
    }
    at += c.size_bytes;
  }
  return out + quote;
}

void put(const Value& value, bool repr, std::string& out, Meter& meter, int depth) {
  if (depth > kMaxDepth) fail("a value is nested more than " + std::to_string(kMaxDepth) + " deep");
  const std::size_t before = out.size();
  if (value.is_undefined()) {
    if (repr) out += "Undefined";
  } else if (value.is_none()) {
    out += "None";
  } else if (const bool* flag = value.as_bool()) {
    out += *flag ? "True" : "False";
  } else if (const std::int64_t* integer = value.as_int()) {
    out += std::to_string(*integer);
  } else if (const double* number = value.as_float()) {
    out += float_text(*number);
  } else if (const std::string* text = value.as_text()) {
    out += repr ? repr_text(*text) : *text;
  } else if (const List* list = value.as_list()) {
    out += value.is_tuple() ? '(' : '[';
    for (std::size_t i = 0; i < list->size(); ++i) {
      if (i > 0) out += ", ";
      put((*list)[i], true, out, meter, depth + 1);
    }
    if (value.is_tuple() && list->size() == 1) out += ',';
    out += value.is_tuple() ? ')' : ']';
  } else if (const Dict* dict = value.as_dict()) {
    out += '{';
    for (std::size_t i = 0; i < dict->size(); ++i) {
      if (i > 0) out += ", ";
      put((*dict)[i].first, true, out, meter, depth + 1);
      out += ": ";
      put((*dict)[i].second, true, out, meter, depth + 1);
    }
    out += '}';
  } else if (value.as_namespace() != nullptr) {
    out += "<Namespace>";
  } else {
    out += "<function " + value.as_function()->name + ">";
  }
  meter.charge_bytes(out.size() - before);
}

void put_json(const Value& value, int indent, int level, bool ascii, bool sort_keys, const std::string& item_separator,
              const std::string& key_separator, std::string& out, Meter& meter) {
  if (level > kMaxDepth) fail("a value is nested more than " + std::to_string(kMaxDepth) + " deep");
  const std::size_t before = out.size();
  const auto line = [&](int deep) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<std::size_t>(indent) * static_cast<std::size_t>(deep), ' ');
  };
  const auto text_json = [&](const std::string& text) {
    out += '"';
    for (std::size_t at = 0; at < text.size();) {
      const CodePoint c = decode_utf8(text.data() + at);
      constexpr const char* kHex = "0123456789abcdef";
      const auto escape = [&](char32_t unit) {
        out += "\\u";
        for (int shift = 12; shift >= 0; shift -= 4) out += kHex[unit >> shift & 15];
      };
      if (c.value == '"' || c.value == '\\') {
        out += '\\';
        out += static_cast<char>(c.value);
      } else if (c.value == '\n') {
        out += "\\n";
      } else if (c.value == '\r') {
        out += "\\r";
      } else if (c.value == '\t') {
        out += "\\t";
      } else if (c.value == '\b') {
        out += "\\b";
      } else if (c.value == '\f') {
        out += "\\f";
      } else if (c.value < 0x20 || (ascii && c.value >= 0x7F && c.value != 0x7F && c.value < 0x10000)) {
        escape(c.value);
      } else if (ascii && c.value >= 0x10000) {
        escape(0xD800 + ((c.value - 0x10000) >> 10));
        escape(0xDC00 + ((c.value - 0x10000) & 0x3FF));
      } else {
        out.append(text, at, c.size_bytes);
      }
      at += c.size_bytes;
    }
    out += '"';
  };
  if (value.is_none()) {
    out += "null";
  } else if (const bool* flag = value.as_bool()) {
    out += *flag ? "true" : "false";
  } else if (const std::int64_t* integer = value.as_int()) {
    out += std::to_string(*integer);
  } else if (const double* number = value.as_float()) {
    out += std::isnan(*number) ? "NaN" : std::isinf(*number) ? (*number > 0 ? "Infinity" : "-Infinity") : float_text(*number);
  } else if (const std::string* text = value.as_text()) {
    text_json(*text);
  } else if (const List* list = value.as_list()) {
    out += '[';
    for (std::size_t i = 0; i < list->size(); ++i) {
      if (i > 0) out += item_separator;
      line(level + 1);
      put_json((*list)[i], indent, level + 1, ascii, sort_keys, item_separator, key_separator, out, meter);
    }
    if (!list->empty()) line(level);
    out += ']';
  } else if (const Dict* dict = value.as_dict()) {
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : *dict) entries.push_back(&entry);
    if (sort_keys)
      std::stable_sort(entries.begin(), entries.end(), [&](const auto* a, const auto* b) { return compare(a->first, b->first, meter) < 0; });
    out += '{';
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out += item_separator;
      line(level + 1);
      const Value& key = entries[i]->first;
      if (key.as_text() != nullptr)
        text_json(*key.as_text());
      else if (key.as_list() != nullptr || key.as_dict() != nullptr)
        fail("keys of JSON must be texts or numbers");
      else {
        out += '"';
        put_json(key, -1, level + 1, ascii, false, item_separator, key_separator, out, meter);
        out += '"';
      }
      out += key_separator;
      put_json(entries[i]->second, indent, level + 1, ascii, sort_keys, item_separator, key_separator, out, meter);
    }
    if (!entries.empty()) line(level);
    out += '}';
  } else {
    fail("an object of type " + value.type_name() + " cannot be written as JSON");
  }
  meter.charge_bytes(out.size() - before);
}

/// bool, int and float as numbers.
bool is_number(const Value& value) { return value.as_bool() != nullptr || value.as_int() != nullptr || value.as_float() != nullptr; }
double as_double(const Value& value) {
  if (const double* number = value.as_float()) return *number;
  if (const bool* flag = value.as_bool()) return *flag ? 1 : 0;
  return static_cast<double>(*value.as_int());
}
bool is_integral(const Value& value) { return value.as_bool() != nullptr || value.as_int() != nullptr; }
std::int64_t as_integer(const Value& value) { return value.as_bool() != nullptr ? (*value.as_bool() ? 1 : 0) : *value.as_int(); }

void refuse_undefined(const Value& value) {
  if (value.is_undefined()) fail("'" + std::get<Undefined>(value.storage()).name + "' is undefined");
}

[[noreturn]] void wrong_types(std::string_view op, const Value& a, const Value& b) {
  refuse_undefined(a);
  refuse_undefined(b);
  fail("unsupported operand types for " + std::string(op) + ": '" + a.type_name() + "' and '" + b.type_name() + "'");
}

bool equal_at(const Value& a, const Value& b, Meter& meter, int depth) {
  meter.charge(1);
  if (depth > kMaxDepth) fail("a value is nested more than " + std::to_string(kMaxDepth) + " deep");
  if (is_number(a) && is_number(b)) return is_integral(a) && is_integral(b) ? as_integer(a) == as_integer(b) : as_double(a) == as_double(b);
  if (a.storage().index() != b.storage().index()) return false;
  if (a.is_undefined() || a.is_none()) return true;
  if (const std::string* text = a.as_text()) {
    meter.charge_bytes(text->size());
    return *text == *b.as_text();
  }
  if (const List* list = a.as_list()) {
    if (a.is_tuple() != b.is_tuple() || list->size() != b.as_list()->size()) return false;
    for (std::size_t i = 0; i < list->size(); ++i)
      if (!equal_at((*list)[i], (*b.as_list())[i], meter, depth + 1)) return false;
    return true;
  }
  if (const Dict* dict = a.as_dict()) {
    if (dict->size() != b.as_dict()->size()) return false;
    for (const auto& [key, value] : *dict) {
      const Value* other = find(*b.as_dict(), key, meter);
      if (other == nullptr || !equal_at(value, *other, meter, depth + 1)) return false;
    }
    return true;
  }
  if (a.as_namespace() != nullptr) return a.as_namespace()->items == b.as_namespace()->items;
  return a.as_function()->call == b.as_function()->call;
}

Value repeated(const Value& sequence, std::int64_t count, Meter& meter) {
  const auto times = static_cast<std::uint64_t>(std::max<std::int64_t>(0, count));
  if (const std::string* text = sequence.as_text()) {
    if (!text->empty() && times > kMaxTextBytes / text->size()) fail("a text would become too long");
    meter.charge_bytes(text->size() * times);
    std::string out;
    for (std::uint64_t i = 0; i < times && !text->empty(); ++i) out += *text;
    return Value::text(std::move(out));
  }
  const List& list = *sequence.as_list();
  if (!list.empty() && times > kMaxTextBytes / list.size()) fail("a list would become too long");
  meter.charge(1 + list.size() * times);
  List out;
  for (std::uint64_t i = 0; i < times && !list.empty(); ++i) out.insert(out.end(), list.begin(), list.end());
  return Value::list(std::move(out), sequence.is_tuple());
}

/// "%s and %d" % (a, b)
Value format_percent(const std::string& format, const Value& arguments, Meter& meter) {
  const List* tuple = arguments.is_tuple() ? arguments.as_list() : nullptr;
  std::size_t used = 0;
  const auto next = [&]() -> const Value& {
    if (tuple == nullptr) {
      if (used++ > 0) fail("not enough arguments for format string");
      return arguments;
    }
    if (used >= tuple->size()) fail("not enough arguments for format string");
    return (*tuple)[used++];
  };
  std::string out;
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    if (++i == format.size()) fail("incomplete format");
    switch (format[i]) {
      case '%':
        out += '%';
        break;
      case 's':
        out += to_text(next(), meter);
        break;
      case 'r':
        out += to_repr(next(), meter);
        break;
      case 'd':
      case 'i': {
        const Value& value = next();
        if (!is_number(value)) fail("%d format: a number is required, not " + value.type_name());
        out += std::to_string(is_integral(value) ? as_integer(value) : static_cast<std::int64_t>(as_double(value)));
        break;
      }
      default:
        refuse(std::string("the format %") + format[i]);
    }
    meter.charge_bytes(0);
  }
  if (tuple != nullptr && used < tuple->size()) fail("not all arguments converted during string formatting");
  meter.charge_bytes(out.size());
  return Value::text(std::move(out));
}

}  // namespace

void Meter::charge(std::uint64_t steps) {
  if (steps > left_) fail("it runs too long, or makes too much text");
  left_ -= steps;
}

void fail(const std::string& what) { throw Error(ErrorCode::invalid_argument, "the chat template failed: " + what); }

void refuse(const std::string& construct) {
  throw Error(ErrorCode::unsupported, "the chat template uses " + construct + ", which weft does not have", {},
              "the part of Jinja that published chat templates use is there");
}

Value Value::from_json(const Json& json) {
  if (json.is_null()) return {};
  if (const auto flag = json.boolean()) return boolean(*flag);
  if (const std::string* value = json.string()) return text(*value);
  if (const auto whole = json.integer()) return integer(*whole);
  if (json.is_number()) return number(json.number().value_or(0));
  if (const Json::Array* array = json.array()) {
    List items;
    items.reserve(array->size());
    for (const Json& item : *array) items.push_back(from_json(item));
    return list(std::move(items));
  }
  Dict items;
  for (const auto& [key, value] : *json.object()) items.emplace_back(text(key), from_json(value));
  return dict(std::move(items));
}

bool Value::truthy() const noexcept {
  if (is_undefined() || is_none()) return false;
  if (const bool* flag = as_bool()) return *flag;
  if (const std::int64_t* integer = as_int()) return *integer != 0;
  if (const double* number = as_float()) return *number != 0;
  if (const std::string* text = as_text()) return !text->empty();
  if (const List* list = as_list()) return !list->empty();
  if (const Dict* dict = as_dict()) return !dict->empty();
  return true;
}

std::string Value::type_name() const {
  constexpr std::array<const char*, 10> kNames = {"undefined", "NoneType", "bool", "int", "float", "str", "list", "dict", "namespace", "function"};
  return is_tuple() ? "tuple" : kNames[storage_.index()];
}

std::string to_text(const Value& value, Meter& meter) {
  std::string out;
  put(value, false, out, meter, 0);
  return out;
}

std::string to_repr(const Value& value, Meter& meter) {
  std::string out;
  put(value, true, out, meter, 0);
  return out;
}

std::string to_json(const Value& value, int indent, bool ascii, bool sort_keys, const std::string& item_separator, const std::string& key_separator,
                    Meter& meter) {
  std::string out;
  put_json(value, indent, 0, ascii, sort_keys, item_separator, key_separator, out, meter);
  return out;
}

bool equal(const Value& a, const Value& b, Meter& meter) { return equal_at(a, b, meter, 0); }

int compare(const Value& a, const Value& b, Meter& meter) {
  meter.charge(1);
  if (is_number(a) && is_number(b)) {
    if (is_integral(a) && is_integral(b)) return as_integer(a) < as_integer(b) ? -1 : as_integer(a) > as_integer(b) ? 1 : 0;
    return as_double(a) < as_double(b) ? -1 : as_double(a) > as_double(b) ? 1 : 0;
  }
  if (a.as_text() != nullptr && b.as_text() != nullptr) {
    meter.charge_bytes(std::min(a.as_text()->size(), b.as_text()->size()));
    const int order = a.as_text()->compare(*b.as_text());  // bytes of UTF-8 have the order of code points
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  if (a.as_list() != nullptr && b.as_list() != nullptr && a.is_tuple() == b.is_tuple()) {
    const List& x = *a.as_list();
    const List& y = *b.as_list();
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(x[i], y[i], meter)) return compare(x[i], y[i], meter);
    return x.size() < y.size() ? -1 : x.size() > y.size() ? 1 : 0;
  }
  wrong_types("<", a, b);
}

const Value* find(const Dict& dict, const Value& key, Meter& meter) {
  for (const auto& [known, value] : dict)
    if (equal(known, key, meter)) return &value;
  return nullptr;
}

const Value* find(const Dict& dict, std::string_view key) {
  for (const auto& [known, value] : dict)
    if (known.as_text() != nullptr && *known.as_text() == key) return &value;
  return nullptr;
}

bool contains(const Value& haystack, const Value& needle, Meter& meter) {
  if (haystack.is_undefined()) return false;
  if (const std::string* text = haystack.as_text()) {
    if (needle.as_text() == nullptr) {
      refuse_undefined(needle);
      fail("'in <string>' requires string as left operand, not " + needle.type_name());
    }
    meter.charge_bytes(text->size());
    return text->find(*needle.as_text()) != std::string::npos;
  }
  if (const List* list = haystack.as_list())
    return std::any_of(list->begin(), list->end(), [&](const Value& item) { return equal(item, needle, meter); });
  if (const Dict* dict = haystack.as_dict()) return find(*dict, needle, meter) != nullptr;
  fail("argument of type '" + haystack.type_name() + "' is not iterable");
}

List items_of(const Value& value, Meter& meter) {
  List items;
  if (value.is_undefined()) return items;
  if (const List* list = value.as_list()) {
    items = *list;
  } else if (const Dict* dict = value.as_dict()) {
    for (const auto& [key, ignored] : *dict) items.push_back(key);
  } else if (const std::string* text = value.as_text()) {
    for (std::size_t at = 0; at < text->size();) {
      const std::uint32_t size = decode_utf8(text->data() + at).size_bytes;
      items.push_back(Value::text(text->substr(at, size)));
      at += size;
    }
  } else {
    fail("'" + value.type_name() + "' object is not iterable");
  }
  meter.charge(1 + items.size());
  return items;
}

std::int64_t length_of(const Value& value) {
  if (value.is_undefined()) return 0;
  if (const std::string* text = value.as_text()) return static_cast<std::int64_t>(count_code_points(*text));
  if (const List* list = value.as_list()) return static_cast<std::int64_t>(list->size());
  if (const Dict* dict = value.as_dict()) return static_cast<std::int64_t>(dict->size());
  fail("object of type '" + value.type_name() + "' has no len()");
}

Value arithmetic(std::string_view op, const Value& a, const Value& b, Meter& meter) {
  meter.charge(1);
  if (op == "+") {
    if (a.as_text() != nullptr && b.as_text() != nullptr) {
      meter.charge_bytes(a.as_text()->size() + b.as_text()->size());
      if (a.as_text()->size() + b.as_text()->size() > kMaxTextBytes) fail("a text would become too long");
      return Value::text(*a.as_text() + *b.as_text());
    }
    if (a.as_list() != nullptr && b.as_list() != nullptr && a.is_tuple() == b.is_tuple()) {
      meter.charge(1 + a.as_list()->size() + b.as_list()->size());
      List out = *a.as_list();
      out.insert(out.end(), b.as_list()->begin(), b.as_list()->end());
      return Value::list(std::move(out), a.is_tuple());
    }
  }
  if (op == "*") {
    const auto sequence = [](const Value& value) { return value.as_text() != nullptr || value.as_list() != nullptr; };
    if (sequence(a) && is_integral(b)) return repeated(a, as_integer(b), meter);
    if (sequence(b) && is_integral(a)) return repeated(b, as_integer(a), meter);
  }
  if (op == "%" && a.as_text() != nullptr) return format_percent(*a.as_text(), b, meter);
  if (!is_number(a) || !is_number(b)) wrong_types(op, a, b);
  if (is_integral(a) && is_integral(b) && op != "/") {
    const std::int64_t x = as_integer(a);
    const std::int64_t y = as_integer(b);
    std::int64_t result = 0;
    const auto beyond = [&](bool overflow) {
      if (overflow) fail("a number beyond 64 bits");
    };
    if (op == "+") {
      beyond(__builtin_add_overflow(x, y, &result));
    } else if (op == "-") {
      beyond(__builtin_sub_overflow(x, y, &result));
    } else if (op == "*") {
      beyond(__builtin_mul_overflow(x, y, &result));
    } else if (op == "**") {
      if (y < 0) return Value::number(std::pow(static_cast<double>(x), static_cast<double>(y)));
      result = 1;
      for (std::int64_t i = 0; i < y && !(result == 0 || (x == 1)); ++i) {
        meter.charge(1);
        if (x == -1) {
          result = y % 2 == 0 ? 1 : -1;
          break;
        }
        beyond(__builtin_mul_overflow(result, x, &result));
      }
    } else {
      if (y == 0) fail("division by zero");
      beyond(x == std::numeric_limits<std::int64_t>::min() && y == -1);
      std::int64_t quotient = x / y;
      if (x % y != 0 && (x < 0) != (y < 0)) --quotient;
      result = op == "//" ? quotient : x - quotient * y;
    }
    return Value::integer(result);
  }
  const double x = as_double(a);
  const double y = as_double(b);
  if (op == "+") return Value::number(x + y);
  if (op == "-") return Value::number(x - y);
  if (op == "*") return Value::number(x * y);
  if (op == "**") return Value::number(std::pow(x, y));
  if (y == 0) fail("division by zero");
  if (op == "/") return Value::number(x / y);
  if (op == "//") return Value::number(std::floor(x / y));
  double rest = std::fmod(x, y);
  if (rest != 0 && (rest < 0) != (y < 0)) rest += y;
  return Value::number(rest);
}

Value negate(const Value& value) {
  if (const double* number = value.as_float()) return Value::number(-*number);
  if (!is_integral(value)) {
    refuse_undefined(value);
    fail("bad operand type for unary -: '" + value.type_name() + "'");
  }
  if (as_integer(value) == std::numeric_limits<std::int64_t>::min()) fail("a number beyond 64 bits");
  return Value::integer(-as_integer(value));
}

namespace {

/// Texts by code points, lists by items.
std::size_t sequence_size(const Value& object) {
  return object.as_text() != nullptr ? count_code_points(*object.as_text()) : object.as_list()->size();
}

}  // namespace

Value subscript(const Value& object, const Value& key, Meter& meter) {
  meter.charge(1);
  refuse_undefined(object);
  if (const Dict* dict = object.as_dict()) {
    if (const Value* value = find(*dict, key, meter)) return *value;
  } else if ((object.as_list() != nullptr || object.as_text() != nullptr) && is_integral(key)) {
    const auto size = static_cast<std::int64_t>(sequence_size(object));
    std::int64_t at = as_integer(key);
    if (at < 0) at += size;
    if (at >= 0 && at < size) {
      if (object.as_list() != nullptr) return (*object.as_list())[static_cast<std::size_t>(at)];
      return slice(object, Value::integer(at), Value::integer(at + 1), Value(), meter);
    }
  } else if (const NamespaceBox* space = object.as_namespace()) {
    if (const Value* value = find(*space->items, key, meter)) return *value;
  }
  if (const std::string* name = key.as_text()) {
    const Value found = method(object, *name);
    if (!found.is_undefined()) return found;
    return Value::undefined(object.type_name() + " object has no element '" + *name);
  }
  return Value::undefined(object.type_name() + " object has no element " + to_repr(key, meter));
}

Value slice(const Value& object, const Value& begin, const Value& end, const Value& step, Meter& meter) {
  refuse_undefined(object);
  if (object.as_text() == nullptr && object.as_list() == nullptr) return Value::undefined(object.type_name() + " object has no slice");
  const auto bound = [&](const Value& value) -> std::int64_t {
    if (!is_integral(value)) {
      refuse_undefined(value);
      fail("slice indices must be integers or None");
    }
    return as_integer(value);
  };
  const auto size = static_cast<std::int64_t>(sequence_size(object));
  const std::int64_t by = step.is_none() ? 1 : bound(step);
  if (by == 0) fail("slice step cannot be zero");
  const auto clamp = [&](std::int64_t at) {
    if (at < 0)
      at = at < -size ? -1 : at + size;
    else if (at > size)
      at = size;
    if (by > 0) return std::clamp<std::int64_t>(at, 0, size);
    return std::clamp<std::int64_t>(at, -1, size - 1);
  };
  const std::int64_t from = begin.is_none() ? (by > 0 ? 0 : size - 1) : clamp(bound(begin));
  const std::int64_t to = end.is_none() ? (by > 0 ? size : -1) : clamp(bound(end));
  std::vector<std::int64_t> places;
  for (std::int64_t at = from; by > 0 ? at < to : at > to;) {
    places.push_back(at);
    if (by > 0 ? by >= to - at : by <= to - at) break;
    at += by;
  }
  meter.charge(1 + places.size());
  if (const List* list = object.as_list()) {
    List out;
    for (const std::int64_t at : places) out.push_back((*list)[static_cast<std::size_t>(at)]);
    return Value::list(std::move(out), object.is_tuple());
  }
  const std::string& text = *object.as_text();
  meter.charge_bytes(text.size());
  std::string out;
  if (static_cast<std::size_t>(size) == text.size()) {
    for (const std::int64_t at : places) out += text[static_cast<std::size_t>(at)];
  } else {
    std::vector<std::size_t> starts;
    for (std::size_t at = 0; at < text.size(); at += decode_utf8(text.data() + at).size_bytes) starts.push_back(at);
    starts.push_back(text.size());
    for (const std::int64_t at : places)
      out.append(text, starts[static_cast<std::size_t>(at)], starts[static_cast<std::size_t>(at) + 1] - starts[static_cast<std::size_t>(at)]);
  }
  return Value::text(std::move(out));
}

}  // namespace weft::model::jinja
