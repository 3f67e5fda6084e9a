#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/journal.h"
#include "checkpoint/first_file.h"
#include "checkpoint/staging.h"
#include "weft/error.h"
#include "weft/job.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

UnfinishedJob look_at(const fs::path& folder) {
  UnfinishedJob job;
  job.folder = folder;
  job.running = is_locked(folder);
  const std::optional<Journal::Content> journal = Journal::read(folder / "journal");
  if (!journal) return job;
  job.output = journal->head.output;
  job.what = journal->head.what;
  job.num_tensors = journal->head.num_tensors;
  job.size_bytes = journal->head.size_bytes;
  std::set<std::pair<std::uint32_t, std::uint64_t>> places;
  for (const JournalRecord& record : journal->records) {
    // Empty tensors share their place with others.
    if (record.size_bytes != 0 && !places.emplace(record.file_index, record.offset_bytes).second) continue;
    ++job.num_finished;
    job.finished_bytes += record.size_bytes;
  }
  std::error_code ignored;
  struct ::stat facts {};
  job.resumable = !job.running && job.num_finished > 0 && SystemCalls::current().stat((folder / "new").c_str(), &facts) == 0 &&
                  facts.st_ino == journal->head.content_inode && !is_placed(folder / "new", journal->head);
  return job;
}

}  // namespace

std::vector<UnfinishedJob> unfinished_jobs(const fs::path& folder) {
  const fs::path path = fs::absolute(folder).lexically_normal();
  std::set<fs::path> found;
  const auto add_from = [&found](const fs::path& parent, const auto& wanted) {
    for (const std::string& name : list_directory(parent))
      if (is_working_folder_name(name) && path_kind(parent / name) == PathKind::folder && path_kind(parent / name / "lock") == PathKind::file &&
          wanted(parent / name))
        found.insert(parent / name);
  };
  std::error_code ignored;
  fs::path target = fs::weakly_canonical(path, ignored);
  if (!target.has_filename()) target = target.parent_path();
  const fs::path beside = working_folder_of(target, false);
  const PathKind kind = path_kind(path);
  if (path_kind(beside) == PathKind::folder) found.insert(beside);
  if (kind == PathKind::folder) {
    if (is_working_folder_name(target.filename().native()) && path_kind(target / "lock") == PathKind::file) found.insert(target);
    add_from(target, [](const fs::path&) { return true; });
  } else if (found.empty() && kind == PathKind::nothing) {
    throw Error(ErrorCode::not_found,
                fmt::format("there is no folder '{}', and no unfinished job with that output", printable(folder.native(), 4096)),
                {.file = folder.string()}, "name the output of a job, or the folder that it is in");
  }
  std::vector<UnfinishedJob> jobs;
  for (const fs::path& one : found) jobs.push_back(look_at(one));
  return jobs;
}

void discard_job(const UnfinishedJob& job) {
  if (is_locked(job.folder))
    throw Error(ErrorCode::invalid_argument, fmt::format("the job in '{}' is running", printable(job.folder.native(), 4096)),
                {.file = job.folder.string()}, "stop it first");
  // The lock last, so that what is left when this is interrupted is still known for what it is.
  for (const std::string& name : list_directory(job.folder))
    if (name != "lock") remove_tree(job.folder / name);
  remove_tree(job.folder);
}

}  // namespace weft
