#include <fmt/format.h>

#include <algorithm>

#include "command.h"
#include "terminal.h"
#include "weft/version.h"

namespace weft::app {
namespace {

constexpr int kHelpColumn = 32;

std::string spelled(const Option& option) {
  const bool plain_negation = !option.negation.empty() && option.negation == "--no-" + option.long_name().substr(2);
  std::string text = plain_negation ? "--[no-]" + option.long_name().substr(2) : join(option.all_names(), ", ");
  if (!option.value.empty()) text += (text.empty() ? "" : " ") + option.value;
  return text + (option.repeated ? "..." : "");
}

std::string entry(const std::string& left, const std::string& right) {
  const int width = terminal_width(stdout);
  std::string line = "  " + left;
  if (static_cast<int>(line.size()) > kHelpColumn - 2) {
    line += '\n' + std::string(kHelpColumn, ' ');
  } else {
    line.resize(kHelpColumn, ' ');
  }
  return line + wrap(right, width, kHelpColumn) + '\n';
}

std::string heading(std::string_view text) { return '\n' + paint(stdout, Style::bold, text) + '\n'; }

}  // namespace

std::string help_text(const Command& command) {
  const int width = terminal_width(stdout);
  std::string text =
      paint(stdout, Style::bold, command.program) + " - " + command.summary + "\n\nusage: " + command.program + " " + command.synopsis + "\n";
  for (const std::string& paragraph : paragraphs(command.description)) text += '\n' + wrap(paragraph, width, 0) + '\n';
  std::vector<std::string> groups;
  for (const Option& option : command.options)
    if (std::find(groups.begin(), groups.end(), option.group) == groups.end()) groups.push_back(option.group);
  for (const std::string& group : groups) {
    text += heading(group);
    for (const Option& option : command.options)
      if (option.group == group) text += entry(spelled(option), option.explanation());
  }
  if (!command.terms.empty()) text += heading(command.terms_heading);
  for (const auto& [term, explanation] : command.terms) text += entry(term, explanation);
  text += heading("Help") + entry("-h, --help", "show this text");
  if (!command.example.empty()) text += heading("Example") + "  " + command.example + '\n';
  return text;
}

std::string overview_text(const std::vector<Command>& commands) {
  std::string text = paint(stdout, Style::bold, "weft") + " " + std::string(version()) + " - the native toolkit for neural-network weights\n\n" +
                     "usage: weft COMMAND [ARGUMENT]...\n";
  std::vector<std::string> families;
  for (const Command& command : commands)
    if (!command.hidden && std::find(families.begin(), families.end(), command.family) == families.end()) families.push_back(command.family);
  for (const std::string& family : families) {
    text += heading(family);
    for (const Command& command : commands)
      if (!command.hidden && command.family == family) text += fmt::format("  {:16} {}\n", command.name, command.summary);
  }
  return text + "\n'weft help COMMAND' explains a command, 'weft methods' lists what it can do with weights.\n";
}

}  // namespace weft::app
