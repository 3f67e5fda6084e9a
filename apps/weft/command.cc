#include "command.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/text.h"
#include "weft/error.h"

namespace weft::app {

const std::string& Option::long_name() const { return names.empty() ? value : names.back(); }

std::vector<std::string> Option::all_names() const {
  std::vector<std::string> all = names;
  if (!negation.empty()) all.push_back(negation);
  return all;
}

std::string Option::explanation() const {
  std::string text = help;
  if (kind == ValueKind::choice) text += " (" + join(choices, ", ") + ")";
  if (!default_text.empty()) text += " [" + default_text + "]";
  return text;
}

std::string join(const std::vector<std::string>& words, std::string_view separator) {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += separator;
    text += word;
  }
  return text;
}

std::vector<std::string> paragraphs(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find("\n\n", at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 2;
  }
  return parts;
}

Option& Command::add(Option option) {
  if (option.group.empty()) option.group = group_;
  options.push_back(std::move(option));
  return options.back();
}

Option& Command::positional(std::string name_of, std::string& target, std::string help) {
  return positional(std::move(name_of), std::move(help), [&target](const std::string& text) { target = text; });
}

Option& Command::positional(std::string name_of, std::vector<std::string>& target, std::string help) {
  Option& option = positional(std::move(name_of), std::move(help), [&target](const std::string& text) { target.push_back(text); });
  option.repeated = true;
  return option;
}

Option& Command::positional(std::string name_of, std::string help, std::function<void(const std::string&)> set) {
  Option option;
  option.value = std::move(name_of);
  option.help = std::move(help);
  option.group = "Arguments";
  option.kind = ValueKind::path;
  option.required = true;
  option.set = std::move(set);
  return add(std::move(option));
}

Option& Command::custom(std::vector<std::string> names, std::string value_name, std::string help, std::function<void(const std::string&)> set) {
  Option option;
  option.names = std::move(names);
  option.value = std::move(value_name);
  option.help = std::move(help);
  option.set = std::move(set);
  return add(std::move(option));
}

Option& Command::flag(std::vector<std::string> names, bool& target, std::string help) {
  return custom(std::move(names), "", std::move(help), [&target](const std::string& text) { target = text == "true"; });
}

Option& Command::value(std::vector<std::string> names, std::string value_name, std::string& target, std::string help) {
  return custom(std::move(names), std::move(value_name), std::move(help), [&target](const std::string& text) { target = text; });
}

Option& Command::path(std::vector<std::string> names, std::string value_name, std::string& target, std::string help) {
  Option& option = value(std::move(names), std::move(value_name), target, std::move(help));
  option.kind = ValueKind::path;
  return option;
}

Option& Command::size(std::vector<std::string> names, std::uint64_t& target, std::string help) {
  const std::string key = names.back();
  return custom(std::move(names), "SIZE", std::move(help), [&target, key](const std::string& text) {
    try {
      target = parse_size(text);
    } catch (const Error& error) {
      throw Error(error.code(), error.message(), {.key = key}, error.advice());
    }
  });
}

Option& Command::number(std::vector<std::string> names, std::uint64_t& target, std::string help) {
  const std::string key = names.back();
  return custom(std::move(names), "N", std::move(help), [&target, key](const std::string& text) {
    const char* end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, target);
    if (problem != std::errc{} || stop != end)
      throw Error(ErrorCode::invalid_argument, "expected a whole number, got '" + printable(text) + "'", {.key = key});
  });
}

}  // namespace weft::app
