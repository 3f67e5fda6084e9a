#include <fmt/format.h>
#include <features.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <exception>
#include <filesystem>
#include <new>

#include "base/text.h"
#include "command.h"
#include "commands.h"
#include "common.h"
#include "math/targets.h"
#include "weft/version.h"

namespace weft::app {
namespace {

Command help_command() {
  auto topic = std::make_shared<std::string>();
  Command command;
  command.name = "help";
  command.family = "Learn";
  command.summary = "explain a command";
  command.example = "weft help merge";
  auto second = std::make_shared<std::string>();
  command.synopsis = "[COMMAND]";
  Option& option = command.positional("COMMAND", *topic, "the command to explain");
  option.required = false;
  option.kind = ValueKind::text;
  Option& rest = command.positional("SECOND", *second, "the second word of commands that have two");
  rest.required = false;
  rest.kind = ValueKind::text;
  command.run = [topic, second] {
    const std::vector<Command> commands = all_commands();
    const std::string name = second->empty() ? *topic : *topic + " " + *second;
    const std::string family = family_text(commands, name);
    const std::string text = topic->empty() ? overview_text(commands) : !family.empty() ? family : help_text(find_command(commands, name));
    std::fputs(text.c_str(), stdout);
    return 0;
  };
  return command;
}

Command generate_command() {
  auto kind = std::make_shared<std::string>();
  Command command;
  command.name = "__generate";
  command.hidden = true;
  command.synopsis = "man|bash|zsh|fish";
  command.positional("KIND", *kind, "what to generate").kind = ValueKind::text;
  command.run = [kind] {
    std::fputs(generated_text(*kind, all_commands()).c_str(), stdout);
    return 0;
  };
  return command;
}

void print_version() {
  std::printf("weft %s (commit %s)\ncompiler    %s\nSIMD        %s\noptional    none built in\n", std::string(version()).c_str(),
              std::string(commit()).c_str(), std::string(compiler()).c_str(), simd_target().c_str());
}

void print_version_json() {
  print_json(Json(Json::Object{{"version", Json(version())},
                               {"commit", Json(commit())},
                               {"compiler", Json(compiler())},
                               {"simd_target", Json(simd_target())},
                               {"optional_parts", Json(Json::Array{})}}));
}

int run_command(const Command& command, const std::vector<std::string>& arguments) {
  if (!parse_arguments(command, arguments)) {
    std::fputs(help_text(command).c_str(), stdout);
    return 0;
  }
  const int status = command.run();
  claim_the_end();
  if (std::fflush(stdout) != 0) throw Error(ErrorCode::io, "the result could not be printed completely", {.file = "standard output"});
  return status;
}

int run(const std::string& program, std::vector<std::string> arguments) {
  if (program == "mergekit-yaml") return run_command(mergekit_yaml_command(), arguments);
  if (program == "mergekit-multi") return run_command(mergekit_multi_command(), arguments);
  if (arguments.empty()) {
    std::fputs(overview_text(all_commands()).c_str(), stderr);
    return 2;
  }
  const std::string name = arguments.front();
  arguments.erase(arguments.begin());
  const bool json = std::find(arguments.begin(), arguments.end(), "--json") != arguments.end();
  if (name == "--version" || name == "-V") {
    json ? print_version_json() : print_version();
    return 0;
  }
  const std::vector<Command> commands = all_commands();
  if (name == "--help" || name == "-h") {
    std::fputs(overview_text(commands).c_str(), stdout);
    return 0;
  }
  // A command of two words ("edit dump") goes before the one of its first word.
  if (!arguments.empty()) {
    const std::string two_words = name + " " + arguments.front();
    for (const Command& command : commands) {
      if (command.name != two_words) continue;
      arguments.erase(arguments.begin());
      return run_command(command, arguments);
    }
  }
  const bool wants_help = !arguments.empty() && (arguments.front() == "--help" || arguments.front() == "-h");
  if (const std::string text = wants_help ? family_text(commands, name) : ""; !text.empty()) {
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  return run_command(find_command(commands, name), arguments);
}

}  // namespace

std::string family_text(const std::vector<Command>& commands, const std::string& word) {
  std::string text;
  for (const Command& command : commands) {
    if (command.name == word) return "";
    if (!command.hidden && command.name.starts_with(word + " "))
      text += "weft " + command.name + " " + command.synopsis + "\n    " + command.summary + "\n";
  }
  return text;
}

const Command& find_command(const std::vector<Command>& commands, const std::string& name) {
  std::vector<std::string> names;
  for (const Command& command : commands) {
    if (command.name == name) return command;
    if (!command.hidden) names.push_back(command.name);
  }
  if (name.starts_with('-'))
    throw Error(ErrorCode::invalid_argument, "the command comes first, got '" + printable(name) + "'", {.key = printable(name)},
                "usage: weft COMMAND [ARGUMENT]...");
  if (!family_text(commands, name).empty())
    throw Error(ErrorCode::invalid_argument, "'" + printable(name) + "' needs to be told what to do", {.key = printable(name)},
                "these are there:\n" + family_text(commands, name));
  const auto nearest = nearest_name(name, names);
  throw Error(ErrorCode::invalid_argument, "unknown command '" + printable(name) + "'", {.key = printable(name)},
              nearest ? "did you mean " + *nearest + "?" : "'weft help' lists the commands");
}

std::vector<Command> all_commands() {
  // One a line, so that commands arrive without touching their neighbours.
  // clang-format off
  std::vector<Command> commands = {
      info_command(),
      verify_command(),
      jobs_command(),
      diff_command(),
      measure_command(),
      convert_command(),
      quantize_command(),
      merge_command(),
      search_command(),
      run_command(),
      layershuffle_command(),
      edit_command(),
      edit_dump_command(),
      edit_tokens_command(),
      edit_spaces_command(),
      adapter_info_command(),
      adapter_fold_command(),
      adapter_extract_command(),
      adapter_combine_command(),
      adapter_scale_command(),
      adapter_convert_command(),
      edit_metadata_command(),
      tokenize_command(),
      forward_command(),
      calibrate_command(),
      eval_command(),
      generate_text_command(),
      chat_command(),
      methods_command(),
      help_command(),
      generate_command(),
  };
  // clang-format on
  for (Command& command : commands) command.program = "weft " + command.name;
  return commands;
}

}  // namespace weft::app

int main(int argc, char** argv) {
  using namespace weft;
#ifdef __GLIBC__
  // Large blocks go back to the system when they are freed. By default the allocator keeps ever larger ones, which no --memory knows of.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
#endif
  const std::string program = argc > 0 ? std::filesystem::path(argv[0]).filename().string() : "weft";
  const std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
  const auto end_of_options = std::find(arguments.begin(), arguments.end(), "--");
  const bool json = std::find(arguments.begin(), end_of_options, "--json") != end_of_options;
  app::cancel_on_signals(json);
  try {
    math::apply_target_from_environment();
    return app::run(program, arguments);
  } catch (const Error& error) {
    app::claim_the_end();
    return app::report_error(error, json);
  } catch (const std::bad_alloc&) {
    return app::report_error(
        Error(ErrorCode::out_of_memory, "the system gave no more memory", {}, "give a smaller --memory, or close other programs"), json);
  } catch (const std::exception& error) {
    return app::report_error(Error(ErrorCode::internal, error.what(), {}, "this is a bug of weft; please report it"), json);
  }
}
