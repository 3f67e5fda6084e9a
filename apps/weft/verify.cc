#include <fmt/format.h>

#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "weft/inspect.h"

namespace weft::app {
namespace {

constexpr int kProblemsFound = 3;
constexpr std::size_t kProblemsShown = 20;

struct Arguments {
  CommonOptions common;
  std::string model;
};

Json report_json(const VerifyReport& report) {
  Json::Array problems;
  for (const VerifyProblem& problem : report.problems)
    problems.emplace_back(Json::Object{{"code", Json(problem.code)},
                                       {"file", text_or_null(problem.file)},
                                       {"tensor", text_or_null(problem.tensor)},
                                       {"message", Json(problem.message)}});
  return Json(Json::Object{{"ok", Json(report.ok)}, {"checked_bytes", Json(report.checked_bytes)}, {"problems", Json(std::move(problems))}});
}

void print_report(const VerifyReport& report, const Arguments& arguments) {
  const std::string model = paint(stdout, Style::bold, arguments.model);
  if (report.ok) {
    std::printf("%s  %s, %s checked\n", model.c_str(), paint(stdout, Style::green, "sound").c_str(), format_size(report.checked_bytes).c_str());
    return;
  }
  const std::size_t count = report.problems.size();
  std::printf("%s  %s, %s checked\n", model.c_str(), paint(stdout, Style::red, fmt::format("{} problem{}", count, count == 1 ? "" : "s")).c_str(),
              format_size(report.checked_bytes).c_str());
  for (std::size_t i = 0; i < count; ++i) {
    if (i == kProblemsShown && !arguments.common.verbose) {
      std::printf("  and %zu more (--verbose shows them all)\n", count - i);
      break;
    }
    const VerifyProblem& problem = report.problems[i];
    std::printf("  %s: %s\n", paint(stdout, Style::red, problem.code).c_str(), problem.message.c_str());
    if (!problem.tensor.empty()) std::printf("    tensor %s\n", printable(problem.tensor).c_str());
    if (!problem.file.empty()) std::printf("    in %s\n", printable(problem.file).c_str());
  }
}

int run_verify(const Arguments& arguments) {
  Console console(arguments.common);
  JobOptions job;
  console.fill(job);
  const VerifyReport report = verify(arguments.model, job);
  console.finish();
  for (const std::string& note : report.notes) console.say(note, "note:");
  if (arguments.common.json) {
    print_json(report_json(report));
  } else if (!arguments.common.quiet || !report.ok) {
    print_report(report, arguments);
  }
  return report.ok ? 0 : kProblemsFound;
}

}  // namespace

Command verify_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "verify";
  command.family = "Look";
  command.summary = "read every byte of a model and say what is wrong with it";
  command.synopsis = "MODEL [OPTION]...";
  command.description =
      "Checks headers, the shard index, that all bytes can be read, that the values are finite, and that the config and the tensors agree. "
      "The exit status is 0 when the model is sound and 3 when problems were found.";
  command.example = "weft verify models/tiny-base";
  command.positional("MODEL", arguments->model, kModelHelp);
  add_print_options(command, arguments->common);
  add_job_options(command, arguments->common);
  command.run = [arguments] { return run_verify(*arguments); };
  return command;
}

}  // namespace weft::app
