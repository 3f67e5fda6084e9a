#include "engine/quantize_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>

#include "base/text.h"
#include "checkpoint/json.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

[[noreturn]] void refuse(const std::string& what, const std::string& key, const std::string& advice = {}) {
  throw Error(ErrorCode::invalid_argument, what, {.key = key}, advice);
}

template <typename Number>
Number number_of(const std::string& text, const std::string& key) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    refuse(fmt::format("{} takes {}, got '{}'", key, std::is_integral_v<Number> ? "a whole number" : "a number", printable(text)), key);
  return value;
}

bool flag_of(const std::string& text, const std::string& key) {
  for (const char* yes : {"true", "yes", "on"})
    if (text == yes) return true;
  for (const char* no : {"false", "no", "off"})
    if (text == no) return false;
  refuse(fmt::format("{} is true or false, got '{}'", key, printable(text)), key);
}

std::pair<std::string, std::string> pair_of(const std::string& text, std::size_t equals, const std::string& key, const char* form) {
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) refuse(fmt::format("'{}' is not {}", printable(text), form), key);
  return {text.substr(0, equals), text.substr(equals + 1)};
}

struct Key {
  std::string name;
  std::function<void(QuantizeOptions&, const std::string& value, const std::string& key)> set;
};

Key text_key(const char* name, std::string QuantizeOptions::*member) {
  return {name, [member](QuantizeOptions& options, const std::string& value, const std::string&) { options.*member = value; }};
}
Key flag_key(const char* name, bool QuantizeOptions::*member) {
  return {name, [member](QuantizeOptions& options, const std::string& value, const std::string& key) { options.*member = flag_of(value, key); }};
}
Key list_key(const char* name, std::vector<std::string> QuantizeOptions::*member) {
  return {name, [member](QuantizeOptions& options, const std::string& value, const std::string&) { (options.*member).push_back(value); }};
}
Key linear_text(const char* name, std::string LinearQuantization::*member) {
  return {name, [member](QuantizeOptions& options, const std::string& value, const std::string&) { options.linear.*member = value; }};
}
template <typename Number>
Key linear_number(const char* name, Number LinearQuantization::*member) {
  return {name, [member](QuantizeOptions& options, const std::string& value, const std::string& key) {
            options.linear.*member = number_of<Number>(value, key);
          }};
}
template <typename Number>
Key calibration_number(const char* name, Number CalibrationText::*member) {
  return {name, [member](QuantizeOptions& options, const std::string& value, const std::string& key) {
            options.linear.calibration.*member = number_of<Number>(value, key);
          }};
}

const std::vector<Key>& keys() {
  using Options = QuantizeOptions;
  using Linear = LinearQuantization;
  static const std::vector<Key> kKeys = {
      text_key("format", &Options::format),
      text_key("method", &Options::method),
      {"rule", [](Options& options, const std::string& value,
                  const std::string& key) { options.rules.push_back(pair_of(value, value.rfind('='), key, "PATTERN=TYPE")); }},
      linear_number("bits", &Linear::bits),
      linear_number("group", &Linear::group),
      {"budget", [](Options& options, const std::string& value, const std::string&) { set_quantize_budget(options.linear, value); }},
      linear_text("budget-by", &Linear::budget_by),
      {"widths",
       [](Options& options, const std::string& value, const std::string& key) {
         for (std::size_t begin = 0; begin <= value.size();) {
           const std::size_t end = std::min(value.find(',', begin), value.size());
           options.linear.widths.push_back(number_of<int>(value.substr(begin, end - begin), key));
           begin = end + 1;
         }
       }},
      linear_text("numbers", &Linear::numbers),
      {"symmetric", [](Options& options, const std::string& value, const std::string& key) { options.linear.symmetric = flag_of(value, key); }},
      linear_text("search", &Linear::search),
      {"nested", [](Options& options, const std::string& value, const std::string& key) { options.linear.nested = flag_of(value, key); }},
      {"calibration", [](Options& options, const std::string& value, const std::string&) { options.linear.calibration.files.emplace_back(value); }},
      calibration_number("sequences", &CalibrationText::num_sequences),
      calibration_number("length", &CalibrationText::length),
      linear_number("damping", &Linear::damping),
      linear_text("order", &Linear::order),
      linear_number("drift", &Linear::drift),
      linear_number("smoothing", &Linear::smoothing),
      linear_number("rank", &Linear::rank),
      linear_number("exact", &Linear::exact),
      {"set",
       [](Options& options, const std::string& value, const std::string& key) {
         const auto [name, number] = pair_of(value, value.find('='), key, "STEP.NAME=X");
         options.linear.parameters[name] = number_of<double>(number, key);
       }},
      flag_key("pure", &Options::pure),
      flag_key("better", &Options::better),
      {"imatrix", [](Options& options, const std::string& value, const std::string&) { options.imatrix = value; }},
      text_key("output-tensor-type", &Options::output_type),
      text_key("token-embedding-type", &Options::token_embedding_type),
      flag_key("leave-output-tensor", &Options::leave_output),
      list_key("include-weights", &Options::include_weights),
      list_key("exclude-weights", &Options::exclude_weights),
      {"prune-layers", [](Options& options, const std::string& value,
                          const std::string& key) { options.prune_layers.push_back(number_of<std::uint64_t>(value, key)); }},
      {"override-kv", [](Options& options, const std::string& value,
                         const std::string& key) { options.override_kv.push_back(pair_of(value, value.find('='), key, "KEY=TYPE:VALUE")); }},
      flag_key("allow-requantize", &Options::allow_requantize)};
  return kKeys;
}

/// A pattern for the names of layers as one for the names of their weights: wherever it asks for the end of a name, ".weight" follows.
std::string pattern_of_weights(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      out += !in_class && (next == 'Z' || next == 'z') ? std::string("\\.weight$") : std::string{c, next};
      continue;
    }
    if (c == '$' && !in_class) {
      out += "\\.weight$";
      continue;
    }
    out += c;
    if (!in_class && c == '[') {
      in_class = true;
      // A ] that stands first is one of the characters.
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
    } else if (in_class && c == ']') {
      in_class = false;
    }
  }
  return out;
}

/// A rule of GPTQModel's "dynamic": +:PATTERN or PATTERN says what differs, -:PATTERN keeps. Its patterns are matched from the beginning of the name
/// of a layer, ours looked for in the name of its weight.
std::pair<std::string, std::string> dynamic_rule(const std::string& key, const Json& value) {
  const bool keeps = key.starts_with("-:");
  std::string pattern = keeps || key.starts_with("+:") ? key.substr(2) : key;
  if (pattern.empty()) refuse(fmt::format("the rule '{}' has no pattern", printable(key)), "rules");
  pattern = fmt::format("^(?:{})", pattern_of_weights(pattern));
  if (keeps) return {pattern, "keep"};
  if (value.object() == nullptr)
    refuse(fmt::format("the rule '{}' is no object", printable(key)), "rules", R"(such as {"bits": 4, "group_size": 64})");
  std::string bits, group;
  for (const auto& [name, own] : *value.object()) {
    const std::optional<double> number = own.number();
    if ((name != "bits" && name != "group_size") || !number || !(std::fabs(*number) <= 1e9) || *number != std::floor(*number))
      refuse(fmt::format("the rule '{}' has '{}', which is nothing that a layer may have of its own", printable(key), printable(name)), "rules",
             "bits and group_size, both whole numbers");
    const auto whole = static_cast<std::int64_t>(*number);
    if (name == "bits")
      bits = std::to_string(whole);
    else
      group = std::to_string(whole < 0 ? 0 : whole);
  }
  if (bits.empty() && group.empty()) refuse(fmt::format("the rule '{}' changes nothing", printable(key)), "rules", "give bits or group_size");
  return {pattern, group.empty() ? bits : fmt::format("{}/{}", bits, group)};
}

}  // namespace

void set_quantize_key(QuantizeOptions& options, const std::string& key, const std::string& value) {
  std::vector<std::string> names;
  for (const Key& known : keys()) {
    if (known.name == key) return known.set(options, value, key);
    names.push_back(known.name);
  }
  const auto nearest = nearest_name(key, names);
  refuse(fmt::format("there is no option '{}' of quantizing", printable(key)), key,
         nearest ? fmt::format("did you mean {}?", *nearest) : std::string("'weft help quantize' lists them"));
}

void set_quantize_budget(LinearQuantization& linear, const std::string& text) {
  constexpr std::string_view kUnit = "bpw", kDigits = "0123456789. ";
  linear.budget_bits.reset();
  linear.budget_bytes.reset();
  if (text.size() > kUnit.size() && text.ends_with(kUnit)) {
    linear.budget_bits = number_of<double>(text.substr(0, text.size() - kUnit.size()), "--budget");
    return;
  }
  constexpr std::uint64_t kMostBits = 64;
  if (text.find_first_not_of(kDigits) == std::string::npos && !text.empty() && (text.find('.') != std::string::npos || parse_size(text) <= kMostBits))
    refuse(fmt::format("'{}' has no unit", printable(text)), "--budget", fmt::format("write {0}bpw for bits a weight, {0}GiB for a size", text));
  // A B alone is bytes here; of shards' sizes it means billions.
  const bool in_bytes =
      text.size() > 1 && (text.back() == 'B' || text.back() == 'b') && kDigits.find(text[text.size() - 2]) != std::string_view::npos;
  linear.budget_bytes = parse_size(in_bytes ? std::string_view(text).substr(0, text.size() - 1) : std::string_view(text));
}

std::vector<std::pair<std::string, std::string>> read_quantize_rules(std::string_view text) {
  std::vector<std::pair<std::string, std::string>> rules;
  if (const std::size_t first = text.find_first_not_of(" \t\r\n"); first != std::string_view::npos && text[first] == '{') {
    const Json root = parse_json(text, "rules");
    for (const auto& [key, value] : *root.object()) rules.push_back(dynamic_rule(key, value));
    return rules;
  }
  for (std::size_t line = 1; !text.empty(); ++line) {
    const std::size_t end = text.find('\n');
    std::string_view own = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    own = own.substr(0, own.find('#'));
    // Several to a line are separated by spaces, as in the files that llama-quantize takes.
    for (std::size_t at = own.find_first_not_of(" \t\r"); at != std::string_view::npos; at = own.find_first_not_of(" \t\r")) {
      own = own.substr(at);
      const std::size_t stop = std::min(own.find_first_of(" \t\r"), own.size());
      const std::string_view word = own.substr(0, stop);
      own = own.substr(stop);
      const std::size_t equals = word.rfind('=');
      if (equals == std::string_view::npos || equals == 0 || equals + 1 == word.size())
        refuse(fmt::format("line {} of the rules has '{}', not PATTERN=TYPE", line, printable(word)), "rules");
      rules.emplace_back(word.substr(0, equals), word.substr(equals + 1));
    }
  }
  return rules;
}

}  // namespace weft::engine
