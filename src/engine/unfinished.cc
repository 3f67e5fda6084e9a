#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/first_file.h"
#include "checkpoint/journal.h"
#include "checkpoint/staging.h"
#include "weft/error.h"
#include "weft/job.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// What passes over blocks and searches keep: ".NAME.weft-blocks", a folder, and ".NAME.weft-search", a file, of an output NAME.
constexpr std::string_view kBlocks = ".weft-blocks", kSearch = ".weft-search";

/// The output that it is kept for; empty for any other path.
fs::path output_of(const fs::path& kept) {
  const std::string name = kept.filename().string();
  if (!name.starts_with('.')) return {};
  const std::string_view mark = name.ends_with(kBlocks) ? kBlocks : kSearch;
  if (!name.ends_with(mark) || name.size() <= 1 + mark.size()) return {};
  if (path_kind(kept) != (mark == kBlocks ? PathKind::folder : PathKind::file)) return {};
  if (mark == kBlocks && path_kind(kept / "lock") != PathKind::file) return {};
  return kept.parent_path() / name.substr(1, name.size() - 1 - mark.size());
}

/// A search holds its log itself.
bool is_locked_file(const fs::path& file) {
  const int fd = SystemCalls::current().open(file.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool locked = SystemCalls::current().flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  SystemCalls::current().close(fd);
  return locked;
}

std::uint64_t bytes_in(const fs::path& folder) {
  std::uint64_t bytes = 0;
  for (const std::string& name : list_directory(folder)) {
    std::error_code ignored;
    const std::uintmax_t size = fs::file_size(folder / name, ignored);
    if (!ignored) bytes += size;
  }
  return bytes;
}

/// What is left of a pass: blocks in place of tensors.
UnfinishedJob look_at_blocks(const fs::path& folder) {
  UnfinishedJob job;
  job.folder = folder;
  job.output = output_of(folder);
  job.running = is_locked(folder);
  const std::optional<Journal::Content> journal = Journal::read(folder / "journal");
  if (!journal) return job;
  job.what = journal->head.what;
  job.num_tensors = journal->head.num_tensors;
  for (const JournalRecord& record : journal->records) job.num_finished = std::max<std::uint64_t>(job.num_finished, record.file_index + 1);
  job.size_bytes = job.finished_bytes = bytes_in(folder);
  job.resumable = !job.running && job.num_finished > 0;
  return job;
}

/// What a search has evaluated: one line each, behind the first.
UnfinishedJob look_at_search(const fs::path& file) {
  constexpr std::uint64_t kLargestLog = std::uint64_t{1} << 30;
  UnfinishedJob job;
  job.folder = file;
  job.output = output_of(file);
  job.running = is_locked_file(file);
  const std::string text = read_text_file(file, kLargestLog);
  if (!text.starts_with("weft-search ")) return job;
  job.what = "searching";
  const auto lines = static_cast<std::uint64_t>(std::count(text.begin(), text.end(), '\n'));
  job.num_tensors = job.num_finished = lines == 0 ? 0 : lines - 1;
  job.size_bytes = job.finished_bytes = text.size();
  job.resumable = !job.running && job.num_finished > 0;
  return job;
}

UnfinishedJob look_at(const fs::path& folder) {
  if (!output_of(folder).empty()) return path_kind(folder) == PathKind::file ? look_at_search(folder) : look_at_blocks(folder);
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
      else if (!output_of(parent / name).empty())
        found.insert(parent / name);
  };
  std::error_code ignored;
  fs::path target = fs::weakly_canonical(path, ignored);
  if (!target.has_filename()) target = target.parent_path();
  const fs::path beside = working_folder_of(target, false);
  const PathKind kind = path_kind(path);
  if (path_kind(beside) == PathKind::folder) found.insert(beside);
  const fs::path named = path.has_filename() ? path : path.parent_path();
  for (const fs::path& output : {named, target})
    for (const std::string_view mark : {kBlocks, kSearch})
      if (const fs::path kept = output.parent_path() / fmt::format(".{}{}", output.filename().string(), mark); !output_of(kept).empty())
        found.insert(fs::canonical(kept, ignored));
  if (!output_of(target).empty()) found.insert(target);
  if (kind == PathKind::folder && output_of(target).empty()) {
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
  const bool is_file = path_kind(job.folder) == PathKind::file;
  if (is_file ? is_locked_file(job.folder) : is_locked(job.folder))
    throw Error(ErrorCode::invalid_argument, fmt::format("the job in '{}' is running", printable(job.folder.native(), 4096)),
                {.file = job.folder.string()}, "stop it first");
  if (is_file) {
    remove_file(job.folder);
    return;
  }
  // The lock last, so that what is left when this is interrupted is still known for what it is.
  for (const std::string& name : list_directory(job.folder))
    if (name != "lock") remove_tree(job.folder / name);
  remove_tree(job.folder);
}

}  // namespace weft
