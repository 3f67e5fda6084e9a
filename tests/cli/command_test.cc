#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "checkpoint/json.h"
#include "math/targets.h"
#include "support/command.h"

// What holds for every command: usage, help, the man page, completions, how errors look.
namespace weft::testing {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

std::string generated(const std::string& kind) {
  const CommandResult result = run_weft({"__generate", kind});
  EXPECT_EQ(result.status, 0) << result.err;
  return result.out;
}

// Command -> every spelling of every option, from the bash completion.
std::map<std::string, std::vector<std::string>> declared_options() {
  std::map<std::string, std::vector<std::string>> options;
  std::istringstream in(generated("bash"));
  std::string command;
  for (std::string line; std::getline(in, line);) {
    if (line.ends_with(")") && line.starts_with("    ") && line.find(' ', 4) == std::string::npos) command = line.substr(4, line.size() - 5);
    const std::size_t at = line.find("options='");
    if (at != std::string::npos && !command.empty()) options[command] = words_of(line.substr(at + 9, line.size() - at - 10));
  }
  return options;
}

TEST(Command, the_overview_names_every_command) {
  const CommandResult result = run_weft({"help"});
  EXPECT_EQ(result.status, 0);
  for (const char* name : {"info", "verify", "diff", "measure", "convert", "merge", "jobs", "methods", "help"})
    EXPECT_NE(result.out.find(std::string("\n  ") + name + " "), std::string::npos) << name;
  EXPECT_EQ(run_weft({"--help"}).out, result.out);
}

TEST(Command, without_arguments_it_explains_itself_and_fails) {
  const CommandResult result = run_weft({});
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_NE(result.err.find("usage: weft COMMAND"), std::string::npos);
}

TEST(Command, help_man_page_and_completions_list_every_option) {
  const auto options = declared_options();
  ASSERT_GE(options.size(), 8U);
  const std::string man = generated("man");
  const std::string zsh = generated("zsh");
  const std::string fish = generated("fish");
  for (const auto& [command, names] : options) {
    const CommandResult help = run_weft({"help", command});
    EXPECT_EQ(help.status, 0);
    EXPECT_EQ(run_weft({command, "--help"}).out, help.out) << command;
    for (const std::string& name : names) {
      std::string in_help = name;
      const bool negated = name.starts_with("--no-") && std::find(names.begin(), names.end(), "--" + name.substr(5)) != names.end();
      if (negated) in_help = "--[no-]" + name.substr(5);
      const bool negatable = std::find(names.begin(), names.end(), "--no-" + name.substr(std::min<std::size_t>(2, name.size()))) != names.end();
      if (negatable) in_help = "--[no-]" + name.substr(2);
      EXPECT_NE(help.out.find(in_help), std::string::npos) << command << " --help does not list " << name;
      std::string in_man;
      for (const char c : name) in_man += c == '-' ? std::string("\\-") : std::string(1, c);
      EXPECT_NE(man.find("\\fB" + in_man + "\\fR"), std::string::npos) << "the man page does not list " << name;
      EXPECT_NE(zsh.find(name), std::string::npos) << name;
      EXPECT_NE(fish.find((name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1)) + " "), std::string::npos) << name;
    }
  }
}

TEST(Command, bash_accepts_its_completion_and_completes_with_it) {
  const TemporaryFolder scratch;
  write_file(scratch / "weft.bash", generated("bash"));
  const auto complete = [&](const std::string& words, const std::string& at) {
    return run_program(
        "bash", {"-c", "source weft.bash; COMP_WORDS=(" + words + "); COMP_CWORD=" + at + "; compopt() { :; }; _weft; echo \"${COMPREPLY[*]}\""},
        {.folder = scratch.path()});
  };
  const CommandResult commands = complete("weft me", "1");
  EXPECT_EQ(commands.err, "");
  EXPECT_EQ(commands.out, "measure merge methods\n");
  EXPECT_EQ(complete("weft diff --exit", "2").out, "--exit-code\n");
  EXPECT_EQ(complete("weft convert --to f", "3").out, "folder\n");
  EXPECT_EQ(complete("weft methods sler", "2").out, "slerp\n");
}

TEST(Command, the_example_of_every_command_works_on_the_bundled_models) {
  const ExampleFolder folder;
  for (const auto& [command, names] : declared_options()) {
    const std::string help = run_weft({"help", command}).out;
    const std::size_t at = help.find("\nExample\n  weft ");
    ASSERT_NE(at, std::string::npos) << command;
    const std::string line = help.substr(at + 16, help.find('\n', at + 16) - at - 16);
    const CommandResult result = folder.weft(words_of(line));
    EXPECT_EQ(result.status, 0) << "weft " << line << "\n" << result.err;
    EXPECT_NE(result.out, "") << line;
  }
}

TEST(Command, the_environment_chooses_the_simd_target) {
  for (const math::SimdTarget& target : math::compiled_targets()) {
    if (!target.supported) continue;
    const CommandResult result = run_weft({"--version", "--json"}, {.environment = {{"WEFT_SIMD", target.name}}});
    EXPECT_EQ(*parse_json(result.out, "stdout").find("simd_target")->string(), target.name);
  }
  const CommandResult refused = run_weft({"--version"}, {.environment = {{"WEFT_SIMD", "AVX9000"}}});
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.err.find("WEFT_SIMD names 'AVX9000'"), std::string::npos) << refused.err;
}

TEST(Command, the_version_tells_commit_compiler_and_simd_target) {
  const CommandResult result = run_weft({"--version"});
  EXPECT_EQ(result.status, 0);
  for (const char* word : {"weft 0.1.0", "commit", "compiler", "SIMD", "optional"}) EXPECT_NE(result.out.find(word), std::string::npos) << word;
  const Json json = parse_json(run_weft({"--version", "--json"}).out, "stdout");
  for (const char* key : {"version", "commit", "compiler", "simd_target", "optional_parts"}) EXPECT_NE(json.find(key), nullptr) << key;
}

struct Misuse {
  const char* what;
  std::vector<std::string> arguments;
  std::string message;
  std::string key;
  std::string advice;
};

TEST(Command, misuse_is_answered_with_the_nearest_right_thing) {
  const std::vector<Misuse> misuses = {
      {"command", {"mrege", "a", "b"}, "unknown command 'mrege'", "mrege", "did you mean merge?"},
      {"option",
       {"merge", "a", "b", "--out-shrad-size", "5"},
       "unknown option '--out-shrad-size'",
       "--out-shrad-size",
       "did you mean --out-shard-size?"},
      {"option=value", {"diff", "a", "b", "--exitcode=1"}, "unknown option '--exitcode'", "--exitcode", "did you mean --exit-code?"},
      {"missing argument", {"diff", "a"}, "B is missing", "B", "usage: weft diff A B"},
      {"too many", {"info", "a", "b"}, "one argument too many: 'b'", "", "usage: weft info MODEL"},
      {"missing value", {"verify", "a", "--memory"}, "--memory needs a value", "--memory", "weft verify --help"},
      {"value of a switch", {"diff", "a", "b", "--exit-code=1"}, "--exit-code takes no value, got '1'", "--exit-code", "write --exit-code"},
      {"number", {"verify", "a", "-j", "two"}, "expected a whole number, got 'two'", "--threads", ""},
      {"size", {"verify", "a", "--memory", "2 apples"}, "2 apples", "--memory", ""},
      {"choice", {"convert", "a", "b", "--to", "foldr"}, "'foldr' is none of: folder, safetensors", "--to", "did you mean folder?"},
      {"dtype", {"convert", "a", "b", "--dtype", "float33"}, "unknown type 'float33'", "--dtype", "did you mean float32?"},
      {"method", {"methods", "slrep"}, "no method or family of methods is called 'slrep'", "", "did you mean slerp?"},
      {"option first", {"--json", "info", "a"}, "the command comes first", "--json", "usage: weft COMMAND"},
      {"pickles", {"merge", "a", "b", "--no-safe-serialization"}, "does not write pickles", "--no-safe-serialization", "leave the option out"},
      {"remote code", {"merge", "a", "b", "--trust-remote-code"}, "never runs code", "--trust-remote-code", "leave the option out"},
  };
  for (const Misuse& misuse : misuses) {
    const CommandResult result = run_weft(misuse.arguments);
    EXPECT_EQ(result.status, 2) << misuse.what;
    EXPECT_EQ(result.out, misuse.arguments.front() == "--json" ? result.out : "") << misuse.what;
    EXPECT_TRUE(result.err.starts_with("error: ")) << result.err;
    EXPECT_NE(result.err.find(misuse.message), std::string::npos) << misuse.what << "\n" << result.err;
    EXPECT_NE(result.err.find(misuse.advice), std::string::npos) << misuse.what << "\n" << result.err;

    std::vector<std::string> with_json = misuse.arguments;
    with_json.insert(with_json.begin() + 1, "--json");
    const CommandResult as_json = run_weft(with_json);
    EXPECT_EQ(as_json.status, 2) << misuse.what;
    const Json document = parse_json(as_json.out, misuse.what);
    const Json* error = document.find("error");
    ASSERT_NE(error, nullptr) << misuse.what;
    EXPECT_NE(error->find("message")->string()->find(misuse.message), std::string::npos) << misuse.what << as_json.out;
    for (const char* key : {"file", "tensor", "key", "byte"}) EXPECT_NE(error->find("where")->find(key), nullptr) << key;
    if (!misuse.key.empty()) {
      ASSERT_TRUE(error->find("where")->find("key")->is_string()) << misuse.what << as_json.out;
      EXPECT_EQ(*error->find("where")->find("key")->string(), misuse.key) << misuse.what;
    }
  }
}

TEST(Command, nothing_is_coloured_when_stdout_is_no_terminal) {
  const fs::path models = fs::path(WEFT_SOURCE_DIR) / "models";
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"help"}, {"info", models / "tiny-base"}, {"methods"}, {"info", "absent"}}) {
    const CommandResult result = run_weft(arguments, {.environment = {{"TERM", "xterm-256color"}}});
    EXPECT_EQ(result.out.find('\033'), std::string::npos) << arguments.front();
    EXPECT_EQ(result.err.find('\033'), std::string::npos) << arguments.front();
  }
}

TEST(Command, a_full_output_device_is_an_error) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const CommandResult result = run_program("sh", {"-c", std::string(WEFT_COMMAND) + " methods > /dev/full"});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("standard output"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace weft::testing
