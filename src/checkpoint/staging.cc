#include "checkpoint/staging.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/philox.h"
#include "base/text.h"
#include "checkpoint/first_file.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

SystemCalls& calls() noexcept { return SystemCalls::current(); }

std::string quoted(const fs::path& path) { return "'" + printable(path.native(), 4 * 4096) + "'"; }

fs::path resolved(const fs::path& destination) {
  if (destination.empty()) throw Error(ErrorCode::invalid_argument, "the output has no name", {}, "name a folder or a file");
  fs::path path;
  try {
    path = fs::weakly_canonical(fs::absolute(destination));
  } catch (const fs::filesystem_error& e) {
    throw path_error(e.code().value(), "follow", destination);
  }
  if (!path.has_filename()) path = path.parent_path();
  if (!path.has_filename())
    throw Error(ErrorCode::invalid_argument, quoted(destination) + " is the root of the file system", {}, "name a folder in it");
  return path;
}

bool is_weight_file(std::string_view name) {
  for (const std::string_view ending : {".safetensors", ".gguf", ".bin", ".pt", ".pth"})
    if (name.ends_with(ending)) return true;
  return false;
}

/// Whether a folder is something that a forced job may throw away. --force with a slip of the hand must not remove a home directory.
bool looks_like_model(const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return name == "config.json" || name == "model.safetensors.index.json" || is_weight_file(name); });
}

/// Whether the name of a weight file says that it is one of several: NAME-00001-of-00003.safetensors.
bool is_shard(std::string_view name) {
  const std::size_t of = name.rfind("-of-");
  return of != std::string_view::npos && of > 0 && name[of - 1] >= '0' && name[of - 1] <= '9';
}

/// What a folder that looks like a model holds besides: a folder in which models are kept must not go because one of them lies open in it. Empty
/// where it is one model.
std::string other_models(const fs::path& folder, const std::vector<std::string>& names) {
  const auto has = [&](std::string_view name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  if (!has("modules.json"))  // the parts of such a model lie in folders of their own
    for (const std::string& name : names) {
      if (name.starts_with('.') || path_kind(folder / name) != PathKind::folder) continue;
      const std::vector<std::string> inner = list_directory(folder / name);
      if (std::any_of(inner.begin(), inner.end(), [](const std::string& one) { return is_weight_file(one); })) return name + "/";
    }
  if (has("config.json") || has("model.safetensors.index.json")) return {};
  const auto is_single = [](const std::string& name) { return is_weight_file(name) && !is_shard(name); };
  const auto first = std::find_if(names.begin(), names.end(), is_single);
  if (first == names.end()) return {};
  const auto second = std::find_if(first + 1, names.end(), is_single);
  return second == names.end() ? std::string() : *second;
}

/// Whether a file belongs to the weights of a model whose new weights are being put beside it.
bool is_stale_weight(const std::string& name) {
  return name == "model.safetensors.index.json" || (name.starts_with("model") && name.ends_with(".safetensors"));
}

bool contains(const fs::path& folder, const fs::path& path) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

fs::path checked_name(std::string_view name) {
  const fs::path path(name);
  bool good = !name.empty() && path.is_relative() && name.find('\0') == std::string_view::npos && name.back() != '/';
  for (const fs::path& part : path) good = good && part != "." && part != ".." && !part.empty();
  if (!good) throw Error(ErrorCode::invalid_argument, "'" + printable(name) + "' is no name for a file in the output");
  return path;
}

constexpr const char* kLock = "lock";
constexpr const char* kNew = "new";
constexpr const char* kJournal = "journal";

std::uint64_t inode_of(const fs::path& path) {
  struct ::stat facts {};
  if (calls().stat(path.c_str(), &facts) != 0) throw path_error(errno, "look at", path);
  return facts.st_ino;
}

}  // namespace

bool is_working_folder_name(std::string_view name) {
  constexpr std::string_view kMark = ".weft-";
  if (name.size() < kMark.size() + 10 || name.front() != '.') return false;
  const std::string_view hash = name.substr(name.size() - 8);
  return name.substr(name.size() - 8 - kMark.size(), kMark.size()) == kMark && hash.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool is_placed(const fs::path& content, const JournalHead& head) {
  for (const JournalHead::Ingredient& ingredient : head.ingredients)
    if (ingredient.name == kFirstFile) return path_kind(content / ingredient.value) != PathKind::file;
  return false;
}

bool is_locked(const fs::path& working_folder) {
  const int fd = calls().open((working_folder / kLock).c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd < 0) {
    if (errno == ENOENT) return false;
    throw path_error(errno, "open", working_folder / kLock);
  }
  const bool locked = calls().flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  calls().close(fd);
  return locked;
}

fs::path working_folder_of(const fs::path& target, bool inside) {
  // Names of files have at most 255 bytes; what is cut off a long one still tells through the hash.
  return (inside ? target : target.parent_path()) /
         fmt::format(".{}.weft-{:08x}", target.filename().native().substr(0, 200), fnv1a64(target.native()) >> 32);
}

// ---- taking the place ----

Staging::Staging(fs::path destination, What what, Existing existing, bool resumable)
    : destination_(std::move(destination)), what_(what), existing_(existing), target_(resolved(destination_)), resumable_(resumable) {
  WEFT_ASSERT(what_ == What::folder || existing_ != Existing::write_into);
  const auto name_folder = [&] {
    folder_ = working_folder_of(target_, inside_);
    content_ = folder_ / kNew;
  };
  try {
    check_target();
  } catch (const Error&) {
    name_folder();
    tidy_leftover();
    throw;
  }
  name_folder();
  try {
    create_parents();
    take_folder();
    if (what_ == What::folder && existing_ == Existing::replace && !inside_) probe_exchange();
    if (!unfinished_) make_directory(content_);
  } catch (const Error& e) {
    give_up();
    throw explained(e);
  } catch (...) {
    give_up();
    throw;
  }
}

Staging::~Staging() { give_up(); }

void Staging::check_target() {
  const auto refused = [&](std::string message, std::string advice) {
    return Error(ErrorCode::invalid_argument, quoted(destination_) + " " + message, {.file = destination_.native()}, std::move(advice));
  };
  switch (path_kind(target_)) {
    case PathKind::nothing:
      return;
    case PathKind::link:
      throw refused("is a link to something that does not exist", "remove the link, or create the folder that it points to");
    case PathKind::other:
      throw refused("is neither a file nor a folder", "name a new place");
    case PathKind::file:
      if (what_ == What::folder) throw refused("is a file, but the output is a folder", "name a folder that does not exist yet");
      if (existing_ == Existing::refuse) throw refused("exists already", "name another file, or replace it with --force");
      return;
    case PathKind::folder:
      break;
  }
  if (what_ == What::file) throw refused("is a folder, but the output is a single file", "name a file in it");

  std::vector<std::string> names = list_directory(target_);
  inside_ = is_mount_point(target_);
  // Left by a killed job that wrote into this mount point; it is dealt with later.
  if (inside_) std::erase_if(names, [&](const std::string& name) { return name.starts_with("." + target_.filename().native() + ".weft-"); });
  if (names.empty() || existing_ == Existing::write_into) return;
  if (existing_ == Existing::refuse) throw refused("exists and is not empty", "name another folder, or replace it with --force");
  if (inside_) throw refused("is a mount point and cannot be replaced as a whole", "name a folder inside it, or empty it first");
  if (!looks_like_model(names))
    throw refused("holds neither a config.json nor weights, so it is not replaced",
                  "if nothing in it is needed, remove it; else name another folder");
  if (const std::string other = other_models(target_, names); !other.empty())
    throw refused(fmt::format("holds more than one model (such as '{}'), so it is not replaced", printable(other)),
                  "name the folder of one model; if nothing in this one is needed, remove it");
  std::error_code ignored;
  if (const fs::path here = fs::current_path(ignored); contains(target_, here))
    throw refused("is, or holds, the folder that this command runs in, so it is not replaced", "run the command from another folder");
}

void Staging::create_parents() {
  std::vector<fs::path> missing;
  for (fs::path path = target_.parent_path(); path_kind(path) == PathKind::nothing; path = path.parent_path()) missing.push_back(path);
  for (; !missing.empty(); missing.pop_back()) {
    if (calls().mkdir(missing.back().c_str(), 0777) == 0) {
      created_parents_.push_back(missing.back());
    } else if (errno != EEXIST) {  // made by another job in the meantime: then it is not ours to remove
      throw path_error(errno, "create the folder", missing.back());
    }
  }
}

void Staging::take_folder() {
  // Each round that ends without the lock means that another job gave the folder up between two of our calls.
  for (int attempt = 0; attempt < 100; ++attempt) {
    // Private: what is half built is nobody else's business, and nobody else may put links in it.
    const bool made = calls().mkdir(folder_.c_str(), 0700) == 0;
    if (!made && errno != EEXIST) throw path_error(errno, "create the folder", folder_);
    folder_taken_ = made;
    if (!lock_folder(made)) continue;
    folder_taken_ = true;
    if (resumable_ && !made) find_unfinished();
    for (const std::string& name : list_directory(folder_))
      if (name != kLock && !(unfinished_ && (name == kJournal || name == kNew))) remove_tree(folder_ / name);
    return;
  }
  throw Error(ErrorCode::io, "other jobs keep taking " + quoted(folder_), {.file = destination_.native()}, "run one job for an output at a time");
}

/// Looks for finished tensors of a job that was stopped. Sets keep_folder_ first: if looking fails, its work must not be lost.
void Staging::find_unfinished() {
  keep_folder_ = true;
  std::optional<Journal::Content> found = Journal::read(folder_ / kJournal);
  // Another inode: the finished output was exchanged with this one, which is the old output, on its way out.
  if (found && !found->records.empty() && path_kind(content_) == PathKind::folder && found->head.content_inode == content_inode() &&
      !is_placed(content_, found->head)) {
    unfinished_ = std::move(found);
  } else {
    keep_folder_ = false;
  }
}

/// The place is refused, so nobody will come to clean up what a job left that was killed after it had put its output in place.
void Staging::tidy_leftover() noexcept {
  try {
    if (path_kind(folder_) != PathKind::folder || !lock_folder(false)) return;
    folder_taken_ = true;
    find_unfinished();
    if (!keep_folder_) discard();
  } catch (...) {  // it stays, which the error at hand does not need to tell
  }
  if (lock_ >= 0) calls().close(std::exchange(lock_, -1));
  folder_taken_ = false;
}

std::uint64_t Staging::content_inode() const { return inode_of(content_); }

void Staging::take_over(const std::vector<std::string>& names) {
  const auto wanted = [&names](const fs::path& file) { return std::find(names.begin(), names.end(), file.native()) != names.end(); };
  for (const std::string& name : list_directory(content_))
    if (!wanted(name) || path_kind(content_ / name) != PathKind::file) remove_tree(content_ / name);
  unfinished_.reset();
}

/// False when the folder vanished meanwhile.
bool Staging::lock_folder(bool made) {
  const fs::path lock_path = folder_ / kLock;
  if (!made) {
    struct ::stat facts {};
    if (calls().lstat(folder_.c_str(), &facts) != 0) {
      if (errno == ENOENT) return false;
      throw path_error(errno, "look at", folder_);
    }
    // What a job left is a folder of the same user, empty or with a lock. Anything else is not ours to remove.
    bool ours = S_ISDIR(facts.st_mode) && (facts.st_uid == ::geteuid() || ::geteuid() == 0);
    if (ours) {
      std::vector<std::string> names;
      if (calls().list(folder_.c_str(), names) != 0) {
        if (errno == ENOENT) return false;
        throw path_error(errno, "list", folder_);
      }
      ours = names.empty() || std::find(names.begin(), names.end(), kLock) != names.end();
    }
    if (!ours)
      throw Error(ErrorCode::invalid_argument, quoted(folder_) + " is in the way and was not left by a job of yours", {.file = folder_.native()},
                  "remove it if nothing needs it");
  }
  const int fd = calls().open(lock_path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) {
    if (errno == ENOENT) return false;
    throw path_error(errno, "create", lock_path);
  }
  lock_ = fd;
  if (calls().flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    const auto give_up = [&](Error reason) {
      calls().close(std::exchange(lock_, -1));
      // Made by us a moment ago and locked by another since: theirs now.
      folder_taken_ = folder_taken_ && error != EWOULDBLOCK;
      throw reason;
    };
    if (error == EWOULDBLOCK)
      give_up(Error(ErrorCode::io, "another job is writing " + quoted(destination_), {.file = destination_.native()},
                    "wait until it is done, or stop it", error));
    const bool no_locks = error == ENOLCK || error == EOPNOTSUPP || error == ENOSYS;
    if (!no_locks) give_up(path_error(error, "lock", lock_path));
    // Having made the folder is proof enough of being alone; finding it is not.
    if (!made)
      give_up(Error(ErrorCode::io, "cannot tell whether another job is writing " + quoted(destination_) + ", as its file system has no locks",
                    {.file = folder_.native()}, "if none is, remove " + quoted(folder_), error));
  }
  // The job before us may have removed the file between our open and our lock.
  struct ::stat held {
  }, named{};
  if (calls().fstat(fd, &held) != 0) throw path_error(errno, "look at", lock_path);
  if (calls().stat(lock_path.c_str(), &named) == 0) {
    if (held.st_ino == named.st_ino && held.st_dev == named.st_dev) return true;
  } else if (errno != ENOENT) {
    throw path_error(errno, "look at", lock_path);
  }
  calls().close(std::exchange(lock_, -1));
  return false;
}

/// Finds out now, not after hours of work, whether the file system can exchange two folders.
void Staging::probe_exchange() {
  if (path_kind(target_) == PathKind::nothing) return;
  const fs::path a = folder_ / "a", b = folder_ / "b";
  make_directory(a);
  make_directory(b);
  try {
    exchange_paths(a, b);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::unsupported) throw;
    throw Error(ErrorCode::unsupported, "the file system of " + quoted(destination_) + " cannot exchange two folders in one step",
                {.file = destination_.native()}, "remove the old output first, or write to a new name", e.system_error());
  }
  remove_tree(a);
  remove_tree(b);
}

// ---- building ----

File& Staging::create(std::string_view name) {
  const fs::path relative = checked_name(name);
  fs::path folder;
  for (const fs::path& part : relative.parent_path()) {
    folder /= part;
    if (std::find(subfolders_.begin(), subfolders_.end(), folder) != subfolders_.end()) continue;
    make_directory(content_ / folder);
    subfolders_.push_back(folder);
  }
  files_.emplace_back(content_ / relative, FileMode::create_new);
  names_.push_back(relative);
  return files_.back();
}

File& Staging::reopen(std::string_view name) {
  files_.emplace_back(content_ / checked_name(name), FileMode::update);
  names_.push_back(checked_name(name));
  return files_.back();
}

void Staging::require_space(std::uint64_t size_bytes, std::uint64_t reserved_bytes) {
  needed_bytes_ = size_bytes;
  const std::uint64_t free_bytes = free_space_bytes(folder_);
  if (size_bytes - std::min(size_bytes, reserved_bytes) <= free_bytes) return;
  throw Error(ErrorCode::no_space,
              fmt::format("{} needs {} ({} bytes), but {} ({} bytes) are free", quoted(destination_), format_size(size_bytes), size_bytes,
                          format_size(free_bytes), free_bytes),
              {.file = destination_.native()},
              fmt::format("free {} there, or write to another disk", format_size(size_bytes - std::min(size_bytes, reserved_bytes) - free_bytes)));
}

Error Staging::explained(const Error& error) const {
  if (error.code() != ErrorCode::no_space || needed_bytes_ == 0) return error;
  return Error(error.code(), error.message(), error.place(),
               fmt::format("{} needs {} ({} bytes) in all; {}", quoted(destination_), format_size(needed_bytes_), needed_bytes_, error.advice()),
               error.system_error());
}

// ---- putting it in place ----

void Staging::sync_folders() const {
  for (const fs::path& folder : {content_, folder_, folder_.parent_path()}) sync_directory(folder);
  for (const fs::path& parent : created_parents_) sync_directory(parent.parent_path());
}

void Staging::sync_files() {
  WEFT_ASSERT(!synced_);
  try {
    for (const File& file : files_) file.sync();
  } catch (const Error& e) {
    throw explained(e);
  }
  synced_ = true;
}

void Staging::commit() {
  if (!synced_) sync_files();
  try {
    for (File& file : files_) file.close();
    for (auto folder = subfolders_.rbegin(); folder != subfolders_.rend(); ++folder) sync_directory(content_ / *folder);
    sync_directory(content_);
    for (const fs::path& parent : created_parents_) sync_directory(parent.parent_path());
    place();
  } catch (const Error& e) {
    throw explained(e);
  }
  created_parents_.clear();
  // The output is there and safe. What cannot be tidied up now is no failure of the job.
  if (!discard() && !discard())
    warnings_.push_back("the output is complete, but " + quoted(folder_) + " beside it could not be removed; remove it by hand");
}

void Staging::place() {
  placed_ = true;
  if (what_ == What::file) return place_file();
  const bool there = path_kind(target_) == PathKind::folder;
  if (inside_ || (there && existing_ == Existing::write_into)) return place_into();
  place_folder();
}

void Staging::place_file() {
  const fs::path& built = files_.front().path();
  const auto beside = [this](const File& file) { return target_.parent_path() / file.path().filename(); };
  // What is said of the old file must not be beside the new one, not even after a crash here.
  for (std::size_t i = 1; i < files_.size(); ++i)
    if (path_kind(beside(files_[i])) != PathKind::nothing) remove_file(beside(files_[i]));
  placed_ = false;
  if (existing_ == Existing::refuse) {
    rename_to_new(built, target_);
  } else {
    rename_path(built, target_);  // an old file goes at this moment; whoever has it open keeps it
  }
  placed_ = true;
  try {
    for (std::size_t i = 1; i < files_.size(); ++i) rename_path(files_[i].path(), beside(files_[i]));
  } catch (const Error& e) {
    warnings_.push_back("the output is complete, but a file that belongs beside it is missing: " + e.message());
  }
  try {
    sync_directory(target_.parent_path());
  } catch (const Error& e) {
    throw Error(e.code(), e.message(), e.place(), quoted(destination_) + " is in place, but may not survive a power failure\n" + e.advice(),
                e.system_error());
  }
}

void Staging::place_folder() {
  // Looked at again: hours may have passed. Where an old tree is expected and has gone, there is nothing to exchange; where none was, a new one
  // that is not empty makes the rename fail.
  const bool there = path_kind(target_) == PathKind::folder;
  const bool exchange = there && existing_ == Existing::replace && !list_directory(target_).empty();
  const auto move = [&] { exchange ? exchange_paths(content_, target_) : rename_path(content_, target_); };
  const auto move_back = [&] {
    if (exchange) return exchange_paths(content_, target_);
    rename_path(target_, content_);
    if (there) make_directory(target_);  // the empty one that the rename replaced
  };
  placed_ = false;
  move();
  placed_ = true;
  try {
    sync_directory(target_.parent_path());
  } catch (const Error& e) {
    // The disk may still hold the old entry, so the old tree must not be removed. Back to how it was, if that works.
    try {
      move_back();
      placed_ = false;
    } catch (const Error&) {
      keep_folder_ = exchange;
      created_parents_.clear();
      // Without its lock the folder is nobody's leftover, and no later job removes it.
      if (exchange) {
        calls().unlink(journal_path().c_str());
        calls().unlink((folder_ / kLock).c_str());
      }
      throw Error(e.code(), e.message(), e.place(),
                  quoted(destination_) + " is in place, but may not survive a power failure" +
                      (exchange ? "; the old one was kept in " + quoted(content_) : std::string()) + "\n" + e.advice(),
                  e.system_error());
    }
    throw;
  }
}

void Staging::place_into() {
  const auto below = [&](const fs::path& name) { return target_ / name; };
  for (const fs::path& name : names_)
    if (path_kind(below(name)) == PathKind::folder) throw path_error(EISDIR, "replace", below(name));

  // What makes a model complete for its readers comes last: weights, other files, the index, then config.json.
  const auto rank = [](const fs::path& name) {
    if (name == kChecksumsName) return 4;  // what it says is true only now
    if (name == "config.json") return 3;
    if (name.native().ends_with(".index.json")) return 2;
    return is_weight_file(name.native()) ? 0 : 1;
  };
  std::vector<fs::path> order = names_;
  std::stable_sort(order.begin(), order.end(), [&](const fs::path& a, const fs::path& b) { return rank(a) < rank(b); });
  try {
    for (const fs::path& folder : subfolders_)
      if (path_kind(below(folder)) == PathKind::nothing) make_directory(below(folder));
    bool stale_removed = false;
    const auto remove_stale = [&] {
      if (std::exchange(stale_removed, true)) return;
      for (const std::string& name : list_directory(target_))
        if (is_stale_weight(name) && std::find(names_.begin(), names_.end(), fs::path(name)) == names_.end()) remove_file(below(name));
    };
    if (path_kind(below(kChecksumsName)) != PathKind::nothing) remove_file(below(kChecksumsName));
    for (const fs::path& name : order) {
      if (rank(name) >= 3) remove_stale();
      rename_path(content_ / name, below(name));
    }
    remove_stale();
    for (auto folder = subfolders_.rbegin(); folder != subfolders_.rend(); ++folder) sync_directory(below(*folder));
    sync_directory(target_);
  } catch (const Error& e) {
    throw Error(e.code(), e.message(), e.place(),
                quoted(destination_) + " may hold a mixture of old and new files; run the command again once the cause is gone\n" + e.advice(),
                e.system_error());
  }
}

// ---- tidying up ----

void Staging::give_up() noexcept {
  if (!keep_folder_) discard();
  if (lock_ >= 0) calls().close(std::exchange(lock_, -1));
}

/// Removes the hidden folder, and the parents made for it while they are empty. False when something remains.
bool Staging::discard() noexcept {
  bool clean = true;
  const auto attempt = [&](auto&& step) {
    try {
      step();
    } catch (...) {
      clean = false;
    }
  };
  attempt([&] { files_.clear(); });
  if (folder_taken_) {
    attempt([&] {
      for (const std::string& name : list_directory(folder_))
        if (name != kLock) remove_tree(folder_ / name);
    });
    if (!clean) return false;
    // The lock last, and held until it is gone: until then nobody else may take the folder for a leftover.
    if (calls().unlink((folder_ / kLock).c_str()) != 0 && errno != ENOENT) return false;
    // ENOTEMPTY: another job has put its lock in since; the folder is that job's now.
    if (calls().rmdir(folder_.c_str()) != 0 && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST) return false;
    folder_taken_ = false;
  }
  if (lock_ >= 0) calls().close(std::exchange(lock_, -1));
  // Not an error where it fails: somebody may use them by now.
  while (!created_parents_.empty()) {
    calls().rmdir(created_parents_.back().c_str());
    created_parents_.pop_back();
  }
  return clean;
}

}  // namespace weft
