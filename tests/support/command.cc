#include "support/command.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <system_error>
#include <thread>

namespace weft::testing {

CommandResult run_program(const std::string& program, const std::vector<std::string>& arguments, const CommandOptions& options) {
  const TemporaryFolder scratch;
  const std::string out = scratch / "out";
  const std::string err = scratch / "err";
  std::vector<std::string> words = {options.called.empty() ? program : options.called};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  const pid_t child = ::fork();
  if (child < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (child == 0) {
    const auto redirect = [](const char* path, int flags, int to) {
      const int fd = ::open(path, flags, 0600);
      if (fd < 0 || ::dup2(fd, to) < 0) ::_exit(126);
    };
    redirect("/dev/null", O_RDONLY, STDIN_FILENO);
    redirect(out.c_str(), O_WRONLY | O_CREAT, STDOUT_FILENO);
    redirect(err.c_str(), O_WRONLY | O_CREAT, STDERR_FILENO);
    if (!options.folder.empty() && ::chdir(options.folder.c_str()) != 0) ::_exit(126);
    for (const auto& [name, value] : options.environment) ::setenv(name.c_str(), value.c_str(), 1);
    ::execvp(program.c_str(), argv.data());
    ::_exit(127);
  }
  int status = 0;
  bool interrupted = !options.interrupt_when;
  for (;;) {
    const pid_t ended = ::waitpid(child, &status, interrupted ? 0 : WNOHANG);
    if (ended == child) break;
    if (ended < 0 && errno != EINTR) throw std::system_error(errno, std::generic_category(), "waitpid");
    if (interrupted) continue;
    interrupted = options.interrupt_when();
    if (interrupted) ::kill(child, SIGINT);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  constexpr int kSignalled = 128;  // as shells count
  return {.status = WIFEXITED(status) ? WEXITSTATUS(status) : kSignalled + WTERMSIG(status), .out = read_file(out), .err = read_file(err)};
}

CommandResult run_weft(const std::vector<std::string>& arguments, const CommandOptions& options) {
  return run_program(WEFT_COMMAND, arguments, options);
}

ExampleFolder::ExampleFolder() {
  for (const char* name : {"models", "examples"})
    std::filesystem::create_directory_symlink(std::filesystem::path(WEFT_SOURCE_DIR) / name, folder_ / name);
}

CommandResult ExampleFolder::weft(const std::vector<std::string>& arguments, const std::map<std::string, std::string>& environment) const {
  return run_weft(arguments, {.folder = folder_.path(), .environment = environment});
}

}  // namespace weft::testing
