#include <fmt/format.h>

#include <memory>

#include "base/text.h"
#include "commands.h"
#include "common.h"
#include "weft/job.h"

namespace weft::app {
namespace {

struct Arguments {
  CommonOptions common;
  std::string folder;
  bool discard = false;
};

const char* state_of(const UnfinishedJob& job) { return job.running ? "running" : job.resumable ? "resumable" : "leftover"; }

Json job_json(const UnfinishedJob& job) {
  return Json(Json::Object{{"output", text_or_null(job.output.string())},
                           {"folder", Json(job.folder.string())},
                           {"what", text_or_null(job.what)},
                           {"state", Json(state_of(job))},
                           {"num_tensors", Json(job.num_tensors)},
                           {"num_finished", Json(job.num_finished)},
                           {"size_bytes", Json(job.size_bytes)},
                           {"finished_bytes", Json(job.finished_bytes)}});
}

std::string named(const UnfinishedJob& job) { return printable((job.output.empty() ? job.folder : job.output).string(), 4096); }

void print_job(const UnfinishedJob& job) {
  std::printf("%s  %s\n", paint(stdout, Style::bold, named(job)).c_str(), state_of(job));
  const std::string kept = job.folder.filename().string();
  if (kept.ends_with(".weft-search"))
    std::printf("  %s\n", fmt::format("searching: {} candidates evaluated", job.num_finished).c_str());
  else if (kept.ends_with(".weft-blocks"))
    std::printf("  %s\n", fmt::format("{}: {} of {} blocks finished, {} kept", job.what.empty() ? "passing over blocks" : job.what, job.num_finished,
                                      job.num_tensors, format_size(job.finished_bytes))
                              .c_str());
  else if (!job.what.empty())
    std::printf("  %s\n", fmt::format("{}: {} of {} tensors finished, {} of {}", job.what, job.num_finished, job.num_tensors,
                                      format_size(job.finished_bytes), format_size(job.size_bytes))
                              .c_str());
  std::printf("  in %s\n", printable(job.folder.string(), 4096).c_str());
}

/// The one that is meant: there is only one, or its output or its own folder was named.
const UnfinishedJob& only_one(const std::vector<UnfinishedJob>& jobs, const std::string& folder) {
  if (jobs.empty())
    throw Error(ErrorCode::not_found, fmt::format("there is no unfinished job in or for '{}'", printable(folder, 4096)), {.file = folder});
  if (jobs.size() == 1) return jobs.front();
  std::error_code ignored;
  const std::filesystem::path named = std::filesystem::weakly_canonical(folder, ignored);
  for (const UnfinishedJob& job : jobs)
    if (job.output == named || job.folder == named) return job;
  throw Error(ErrorCode::invalid_argument, fmt::format("'{}' has {} unfinished jobs", printable(folder, 4096), jobs.size()), {.file = folder},
              "name the output of the one to remove");
}

int run_jobs(const Arguments& arguments) {
  std::vector<UnfinishedJob> jobs = unfinished_jobs(arguments.folder);
  if (arguments.discard) {
    jobs = {only_one(jobs, arguments.folder)};
    discard_job(jobs.front());
  }
  if (arguments.common.json) {
    Json::Array list;
    for (const UnfinishedJob& job : jobs) list.push_back(job_json(job));
    print_json(Json(std::move(list)));
  } else if (!arguments.common.quiet) {
    if (arguments.discard) {
      std::printf("removed what the job for %s had left (%s)\n", named(jobs.front()).c_str(), format_size(jobs.front().finished_bytes).c_str());
    } else if (jobs.empty()) {
      std::printf("no unfinished jobs in %s\n", printable(arguments.folder, 4096).c_str());
    } else {
      for (const UnfinishedJob& job : jobs) print_job(job);
    }
  }
  return 0;
}

}  // namespace

Command jobs_command() {
  auto arguments = std::make_shared<Arguments>();
  Command command;
  command.name = "jobs";
  command.family = "Look";
  command.summary = "list jobs that were stopped before their end, or remove one";
  command.synopsis = "FOLDER [OPTION]...";
  command.description =
      "A job that was killed, interrupted or ran out of space keeps what it had finished in a hidden folder beside its output. The command that "
      "started it goes on from there. FOLDER is the folder in which outputs were to be, or one such output.";
  command.example = "weft jobs out";
  command.positional("FOLDER", arguments->folder, "where outputs were to be, or an output");
  command.group("Jobs");
  command.flag({"--discard"}, arguments->discard, "remove the job (where there are several, name its output)");
  add_print_options(command, arguments->common);
  command.run = [arguments] { return run_jobs(*arguments); };
  return command;
}

}  // namespace weft::app
