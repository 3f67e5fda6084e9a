#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// Commands as data: what a command is called, what it takes, how it runs. Parsing, --help, the man page and the completions are all made from this.
namespace weft::app {

/// What a value names, so that completions can offer it.
enum class ValueKind { text, path, choice };

/// One option or positional argument.
struct Option {
  std::vector<std::string> names;  ///< {"-j", "--threads"}; empty: positional
  std::string negation;            ///< "--no-lazy"; for switches that are on by default
  std::string value;               ///< what the value is called ("N"); empty: a switch
  std::string help;
  std::string group;         ///< heading under which --help shows it
  std::string default_text;  ///< shown in --help; empty: nothing to show
  ValueKind kind = ValueKind::text;
  std::vector<std::string> choices;  ///< for ValueKind::choice
  bool required = false;
  bool repeated = false;                        ///< may be given several times, each time calls `set`
  std::function<void(const std::string&)> set;  ///< switches get "true" or "false"; throws Error invalid_argument

  /// "--threads", or "MODEL" when positional.
  [[nodiscard]] const std::string& long_name() const;
  /// Its names, the negation last.
  [[nodiscard]] std::vector<std::string> all_names() const;
  /// Help, choices and default.
  [[nodiscard]] std::string explanation() const;
};

/// Words with a separator between them.
[[nodiscard]] std::string join(const std::vector<std::string>& words, std::string_view separator);

/// The parts of a text that empty lines separate.
[[nodiscard]] std::vector<std::string> paragraphs(const std::string& text);

/// A command. Its run function owns the variables that its options write into.
struct Command {
  std::string name;           ///< one word, or two ("edit dump")
  std::string program;        ///< what it is called under: "weft merge", "mergekit-yaml"
  std::string summary;        ///< one line for lists
  std::string synopsis;       ///< what follows the name: "CONFIG OUT [OPTION]..."
  std::string description;    ///< paragraphs, separated by empty lines
  std::string terms_heading;  ///< of a list that explains words, behind the options
  std::vector<std::pair<std::string, std::string>> terms;
  std::string example;  ///< a command line that works in a checkout of weft
  std::string family;   ///< heading in the overview
  bool hidden = false;
  std::vector<Option> options;  ///< in the order of --help
  std::function<int()> run;

  // Each binds a variable; the returned reference is for filling in what is special about it, and is valid until the next is added.
  Option& positional(std::string name, std::string& target, std::string help);
  Option& positional(std::string name, std::vector<std::string>& target, std::string help);
  Option& flag(std::vector<std::string> names, bool& target, std::string help);
  Option& value(std::vector<std::string> names, std::string value, std::string& target, std::string help);
  Option& path(std::vector<std::string> names, std::string value, std::string& target, std::string help);
  Option& size(std::vector<std::string> names, std::uint64_t& target, std::string help);
  Option& number(std::vector<std::string> names, std::uint64_t& target, std::string help);
  Option& custom(std::vector<std::string> names, std::string value, std::string help, std::function<void(const std::string&)> set);

  /// The group that the options added from now on belong to.
  void group(std::string heading) { group_ = std::move(heading); }

 private:
  Option& positional(std::string name, std::string help, std::function<void(const std::string&)> set);
  Option& add(Option option);
  std::string group_ = "Options";
};

/// Fills the variables of the command from its arguments (without the command's name), in the order in which they were written. Throws Error
/// invalid_argument, naming the nearest option for a misspelt one. Returns false when help was asked for (nothing else was checked then).
[[nodiscard]] bool parse_arguments(const Command& command, const std::vector<std::string>& arguments);

/// The text of `weft COMMAND --help`.
[[nodiscard]] std::string help_text(const Command& command);
/// The text of `weft help`.
[[nodiscard]] std::string overview_text(const std::vector<Command>& commands);
/// "man", "bash", "zsh" or "fish": the file of that kind for all commands. Throws invalid_argument for another kind.
[[nodiscard]] std::string generated_text(std::string_view kind, const std::vector<Command>& commands);

/// Every command, in the order of the overview; made afresh, since each owns its variables.
[[nodiscard]] std::vector<Command> all_commands();
/// What there is under a word that begins commands of two words ("edit dump") and is none itself; empty otherwise.
[[nodiscard]] std::string family_text(const std::vector<Command>& commands, const std::string& word);
/// The command of that name. Throws invalid_argument, naming the nearest one.
[[nodiscard]] const Command& find_command(const std::vector<Command>& commands, const std::string& name);

}  // namespace weft::app
