#include <CLI/CLI.hpp>
#include <algorithm>

#include "base/text.h"
#include "command.h"
#include "weft/error.h"

namespace weft::app {
namespace {

[[noreturn]] void refuse_unknown_option(const Command& command, const std::string& written) {
  const std::string name = written.substr(0, written.find('='));
  std::vector<std::string> known = {"--help"};
  for (const Option& option : command.options) {
    const std::vector<std::string> names = option.all_names();
    known.insert(known.end(), names.begin(), names.end());
  }
  const auto nearest = nearest_name(name, known);
  throw Error(ErrorCode::invalid_argument, "unknown option '" + printable(name) + "'", {.key = printable(name)},
              nearest ? "did you mean " + *nearest + "?" : "'" + command.program + " --help' lists the options");
}

void set_value(const Option& option, const std::string& text) {
  const bool checked = option.kind == ValueKind::choice && !option.names.empty();  // commands check their positionals themselves
  if (checked && std::find(option.choices.begin(), option.choices.end(), text) == option.choices.end()) {
    const auto nearest = nearest_name(text, option.choices);
    throw Error(ErrorCode::invalid_argument, "'" + printable(text) + "' is none of: " + join(option.choices, ", "), {.key = option.long_name()},
                nearest ? "did you mean " + *nearest + "?" : "");
  }
  if (option.value.empty() && text != "true" && text != "false")
    throw Error(ErrorCode::invalid_argument, option.long_name() + " takes no value, got '" + printable(text) + "'", {.key = option.long_name()},
                "write " + join(option.all_names(), " or "));
  option.set(text);
}

}  // namespace

bool parse_arguments(const Command& command, const std::vector<std::string>& arguments) {
  CLI::App app;
  app.set_help_flag();  // ours, so that it works whatever else is wrong
  app.allow_extras();   // reported by us, with the nearest name
  const CLI::Option* help = app.add_flag("-h,--help")->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  std::vector<CLI::Option*> parsed;
  for (const Option& option : command.options) {
    CLI::Option* made = nullptr;
    if (option.names.empty()) {
      made = app.add_option(option.value);
      if (option.repeated) made->expected(-1);
    } else if (option.value.empty()) {
      made = app.add_flag(join(option.names, ",") + (option.negation.empty() ? "" : ",!" + option.negation));
    } else {
      made = app.add_option(join(option.names, ","));
    }
    made->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    parsed.push_back(made);
  }

  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) return false;
    const std::string text = error.what();
    if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {  // "--memory: 1 required SIZE missing"
      const std::string option = text.substr(0, text.find(':'));
      throw Error(ErrorCode::invalid_argument, option + " needs a value", {.key = option}, "'" + command.program + " --help' shows how it is used");
    }
    throw Error(ErrorCode::invalid_argument, text, {}, "'" + command.program + " --help' shows how it is used");
  }
  if (help->count() > 0) return false;

  for (const std::string& extra : app.remaining())
    if (extra.size() > 1 && extra.front() == '-') refuse_unknown_option(command, extra);
  if (!app.remaining().empty())
    throw Error(ErrorCode::invalid_argument, "one argument too many: '" + printable(app.remaining().front()) + "'", {},
                "usage: " + command.program + " " + command.synopsis);

  for (std::size_t i = 0; i < parsed.size(); ++i) {
    const Option& option = command.options[i];
    if (parsed[i]->count() == 0 && option.required)
      throw Error(ErrorCode::invalid_argument, option.long_name() + " is missing (" + option.help + ")", {.key = option.long_name()},
                  "usage: " + command.program + " " + command.synopsis);
  }
  // In the order of the command line, because for some commands that is part of what is said.
  std::vector<std::size_t> next(parsed.size(), 0);
  for (const CLI::Option* given : app.parse_order()) {
    const auto i = static_cast<std::size_t>(std::find(parsed.begin(), parsed.end(), given) - parsed.begin());
    if (i == parsed.size()) continue;
    const Option& option = command.options[i];
    const std::vector<std::string>& results = parsed[i]->results();
    // All values of a positional come together.
    const std::size_t end = option.names.empty() ? results.size() : std::min(next[i] + 1, results.size());
    for (; next[i] < end; ++next[i]) set_value(option, results[next[i]]);
  }
  return true;
}

}  // namespace weft::app
