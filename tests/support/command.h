#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "support/temporary_folder.h"

namespace weft::testing {

struct CommandOptions {
  std::filesystem::path folder = {};                    ///< where it runs; empty: here
  std::map<std::string, std::string> environment = {};  ///< added to ours
  std::string called = {};                              ///< argv[0]; empty: the program
  std::function<bool()> interrupt_when = {};            ///< asked again and again; once true, sends SIGINT
};

struct CommandResult {
  int status = -1;  ///< exit status; 128 + N when signal N ended it
  std::string out;
  std::string err;
};

/// Runs a program to its end, without a shell, stdin empty.
CommandResult run_program(const std::string& program, const std::vector<std::string>& arguments, const CommandOptions& options = {});
/// The weft command of this build.
CommandResult run_weft(const std::vector<std::string>& arguments, const CommandOptions& options = {});

/// A folder of its own in which the paths of the examples resolve: `models` and `examples` are links into the repository.
class ExampleFolder {
 public:
  ExampleFolder();
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return folder_.path(); }
  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return folder_ / name; }
  /// The weft command, run in it.
  [[nodiscard]] CommandResult weft(const std::vector<std::string>& arguments, const std::map<std::string, std::string>& environment = {}) const;

 private:
  TemporaryFolder folder_;
};

}  // namespace weft::testing
