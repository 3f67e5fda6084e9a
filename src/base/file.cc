#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/text.h"

namespace weft {

// ---- the system's calls ----

// NOLINTBEGIN: the C interface of open is variadic.
int SystemCalls::open(const char* path, int flags, unsigned mode) { return ::open(path, flags, mode); }
// NOLINTEND
int SystemCalls::close(int fd) { return ::close(fd); }
ssize_t SystemCalls::pread(int fd, void* data, std::size_t size, off_t offset) { return ::pread(fd, data, size, offset); }
ssize_t SystemCalls::pwrite(int fd, const void* data, std::size_t size, off_t offset) { return ::pwrite(fd, data, size, offset); }
int SystemCalls::fsync(int fd) { return ::fsync(fd); }
int SystemCalls::fstat(int fd, struct ::stat* out) { return ::fstat(fd, out); }
int SystemCalls::stat(const char* path, struct ::stat* out) { return ::stat(path, out); }
int SystemCalls::lstat(const char* path, struct ::stat* out) { return ::lstat(path, out); }
// The system call itself: glibc's posix_fallocate writes zeros where the file system cannot reserve.
int SystemCalls::fallocate(int fd, off_t offset, off_t size) { return ::fallocate(fd, 0, offset, size); }
int SystemCalls::sync_file_range(int fd, off_t offset, off_t size) { return ::sync_file_range(fd, offset, size, SYNC_FILE_RANGE_WRITE); }
int SystemCalls::fadvise(int fd, off_t offset, off_t size, int advice) { return ::posix_fadvise(fd, offset, size, advice); }
int SystemCalls::flock(int fd, int operation) { return ::flock(fd, operation); }
int SystemCalls::rename(const char* from, const char* to) { return ::rename(from, to); }
int SystemCalls::rename_new(const char* from, const char* to) { return ::renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE); }
int SystemCalls::exchange(const char* a, const char* b) { return ::renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE); }
int SystemCalls::unlink(const char* path) { return ::unlink(path); }
int SystemCalls::rmdir(const char* path) { return ::rmdir(path); }
int SystemCalls::mkdir(const char* path, unsigned mode) { return ::mkdir(path, mode); }

int SystemCalls::list(const char* path, std::vector<std::string>& names) {
  DIR* folder = ::opendir(path);
  if (folder == nullptr) return -1;
  names.clear();
  int error = 0;
  try {
    for (;;) {
      errno = 0;
      const dirent* entry = ::readdir(folder);
      if (entry == nullptr) {
        error = errno;
        break;
      }
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
  } catch (...) {
    ::closedir(folder);
    throw;
  }
  ::closedir(folder);
  errno = error;
  return error == 0 ? 0 : -1;
}

int SystemCalls::is_in_memory(int fd) {
  struct ::statfs facts {};
  return ::fstatfs(fd, &facts) == 0 && (facts.f_type == TMPFS_MAGIC || facts.f_type == RAMFS_MAGIC) ? 1 : 0;
}

int SystemCalls::is_mount_point(const char* path) {
  struct ::statx facts {};
  if (::statx(AT_FDCWD, path, 0, 0, &facts) != 0) return errno == ENOSYS ? 0 : -1;
  return (facts.stx_attributes_mask & facts.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0 ? 1 : 0;
}

std::int64_t SystemCalls::free_bytes(const char* path) {
  struct ::statvfs space {};
  if (::statvfs(path, &space) != 0) return -1;
  const unsigned __int128 bytes = static_cast<unsigned __int128>(space.f_bavail) * space.f_frsize;
  return static_cast<std::int64_t>(std::min<unsigned __int128>(bytes, INT64_MAX));
}

namespace {

SystemCalls real_calls;
SystemCalls* current_calls = &real_calls;

}  // namespace

SystemCalls& SystemCalls::current() noexcept { return *current_calls; }
ScopedSystemCalls::ScopedSystemCalls(SystemCalls& calls) noexcept : previous_(std::exchange(current_calls, &calls)) {}
ScopedSystemCalls::~ScopedSystemCalls() { current_calls = previous_; }

// ---- errors ----

Error path_error(int system_error, std::string_view did, const std::filesystem::path& path) {
  // Long enough for every path that the system takes; unlike a name from a file it must not be cut.
  const std::string name = "'" + printable(path.native(), 4 * 4096) + "'";
  const auto error = [&](ErrorCode code, std::string reason, std::string advice = {}) {
    return Error(code, fmt::format("cannot {} {}: {}", did, name, reason), {.file = path.native()}, std::move(advice), system_error);
  };
  switch (system_error) {
    case ENOENT:
      return error(ErrorCode::not_found, "no such file or folder");
    case ENOTDIR:
      return error(ErrorCode::not_found, "a part of the path is a file, not a folder");
    case EISDIR:
      return error(ErrorCode::invalid_argument, "it is a folder, not a file");
    case EEXIST:
      return error(ErrorCode::invalid_argument, "it exists already");
    case ENAMETOOLONG:
      return error(ErrorCode::invalid_argument, "the name is too long for the file system", "choose a shorter name");
    case ELOOP:
      return error(ErrorCode::invalid_argument, "too many links, or a link where none may be");
    case ENOSPC:
      return error(ErrorCode::no_space, "no space left on the device", "free some space, or write to another disk");
    case EDQUOT:
      return error(ErrorCode::no_space, "the disk quota is used up", "free some space, or write to another disk");
    case EACCES:
      return error(ErrorCode::io, "permission denied", "check the owner and the permissions of the file and of the folders above it");
    case EPERM:
      return error(ErrorCode::io, "operation not permitted", "check the owner and the attributes of the file and of its folder");
    case EROFS:
      return error(ErrorCode::io, "the file system is read-only", "write to another place");
    case EFBIG:
      return error(ErrorCode::io, "the file would be larger than the limit of the file system or of this process",
                   "raise the limit (ulimit -f), or write smaller files with --max-shard-size");
    case EMFILE:
      return error(ErrorCode::io, "this process has too many files open", "raise the limit (ulimit -n)");
    case ENFILE:
      return error(ErrorCode::io, "the system has too many files open");
    case EIO:
      return error(ErrorCode::io, "input/output error", "the device may be failing; look at the system's log (dmesg)");
    case EXDEV:
      return error(ErrorCode::io, "it lies on another file system");
    case ENOTEMPTY:
      return error(ErrorCode::io, "the folder is not empty");
    case EBUSY:
      return error(ErrorCode::io, "it is in use, perhaps as a mount point");
    case EINTR:
      return error(ErrorCode::io, "the call was interrupted");
    default:
      return error(ErrorCode::io, std::generic_category().message(system_error));
  }
}

namespace {

SystemCalls& calls() noexcept { return SystemCalls::current(); }

/// Far more than any signal handler causes; a call that never gets through must become an error, not a hang.
constexpr int kMaxInterruptions = 1000;

/// Repeats a call while signals interrupt it. For calls that have done nothing then.
template <typename Call>
auto uninterrupted(Call&& call) {
  for (int i = 1;; ++i) {
    const auto result = call();
    if (result >= 0 || errno != EINTR || i == kMaxInterruptions) return result;
  }
}

/// One call of read and write may move no more than this many bytes (Linux stops at 2^31 - 4096).
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;

off_t file_offset(std::uint64_t offset, std::uint64_t size_bytes, const std::filesystem::path& path) {
  std::uint64_t end = 0;
  if (__builtin_add_overflow(offset, size_bytes, &end) || end > static_cast<std::uint64_t>(INT64_MAX))
    throw Error(ErrorCode::corrupt, fmt::format("bytes {} + {} lie beyond what a file can hold", offset, size_bytes), {.file = path.native()});
  return static_cast<off_t>(offset);
}

const char* special_kind(unsigned mode) noexcept {
  switch (mode & S_IFMT) {
    case S_IFIFO:
      return "a pipe (FIFO)";
    case S_IFSOCK:
      return "a socket";
    case S_IFCHR:
    case S_IFBLK:
      return "a device";
    default:
      return "something else";
  }
}

}  // namespace

// ---- File ----

File::File(std::filesystem::path path, FileMode mode) : path_(std::move(path)) {
  // Without O_NONBLOCK, opening a pipe would wait for its other end for ever; on regular files it changes nothing.
  int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  std::string_view did = "open";
  switch (mode) {
    case FileMode::read:
      flags |= O_RDONLY;
      break;
    case FileMode::update:
      flags |= O_RDWR;
      break;
    case FileMode::create_new:
      flags |= O_RDWR | O_CREAT | O_EXCL;
      did = "create";
      break;
  }
  fd_ = uninterrupted([&] { return calls().open(path_.c_str(), flags, 0666); });
  if (fd_ < 0) {
    // A socket, or the writing end of a pipe that nobody reads.
    if (errno == ENXIO)
      throw Error(ErrorCode::unsupported, fmt::format("'{}' is not a regular file", printable(path_.native(), 4 * 4096)), {.file = path_.native()});
    throw path_error(errno, did, path_);
  }
  struct ::stat facts {};
  const int status = uninterrupted([&] { return calls().fstat(fd_, &facts); });
  if (status == 0 && S_ISREG(facts.st_mode)) return;
  const int error = status == 0 ? 0 : errno;
  calls().close(std::exchange(fd_, -1));
  if (error != 0) {
    if (mode == FileMode::create_new) calls().unlink(path_.c_str());
    throw path_error(error, "look at", path_);
  }
  if (S_ISDIR(facts.st_mode)) throw path_error(EISDIR, did, path_);
  throw Error(ErrorCode::unsupported, fmt::format("'{}' is {}, not a regular file", printable(path_.native(), 4 * 4096), special_kind(facts.st_mode)),
              {.file = path_.native()}, "copy its content to a regular file first");
}

File::~File() {
  if (fd_ >= 0) calls().close(fd_);
}

File::File(File&& other) noexcept : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) calls().close(fd_);
    path_ = std::move(other.path_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

FileIdentity File::identity() const {
  struct ::stat facts {};
  if (uninterrupted([&] { return calls().fstat(fd_, &facts); }) != 0) throw path_error(errno, "look at", path_);
  return {facts.st_dev, facts.st_ino, static_cast<std::uint64_t>(facts.st_size),
          std::int64_t{facts.st_mtim.tv_sec} * 1'000'000'000 + facts.st_mtim.tv_nsec};
}

std::uint64_t File::allocated_bytes() const {
  struct ::stat facts {};
  if (uninterrupted([&] { return calls().fstat(fd_, &facts); }) != 0) throw path_error(errno, "look at", path_);
  return static_cast<std::uint64_t>(facts.st_blocks) * 512;
}

std::uint64_t File::size_bytes() const { return identity().size_bytes; }

std::size_t File::read_some(std::uint64_t offset, std::span<std::byte> out) const {
  const off_t first = file_offset(offset, out.size(), path_);
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t piece = std::min(out.size() - done, kMaxTransfer);
    const ssize_t got = uninterrupted([&] { return calls().pread(fd_, out.data() + done, piece, first + static_cast<off_t>(done)); });
    if (got < 0) throw path_error(errno, "read from", path_);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

void File::read(std::uint64_t offset, std::span<std::byte> out) const {
  const std::size_t got = read_some(offset, out);
  if (got != out.size())
    throw Error(ErrorCode::corrupt,
                fmt::format("'{}' ends at byte {}, but bytes {} to {} are needed", printable(path_.native(), 4 * 4096), offset + got, offset,
                            offset + out.size()),
                {.file = path_.native()}, "the file is incomplete, or something shortened it while it was read");
}

void File::write(std::uint64_t offset, std::span<const std::byte> data) const {
  const off_t first = file_offset(offset, data.size(), path_);
  std::size_t done = 0;
  while (done < data.size()) {
    const std::size_t piece = std::min(data.size() - done, kMaxTransfer);
    const ssize_t got = uninterrupted([&] { return calls().pwrite(fd_, data.data() + done, piece, first + static_cast<off_t>(done)); });
    if (got < 0) throw path_error(errno, "write to", path_);
    if (got == 0) throw path_error(EIO, "write to", path_);  // must not happen on a regular file; a loop would never end
    done += static_cast<std::size_t>(got);
  }
}

void File::allocate(std::uint64_t size_bytes) const {
  if (size_bytes == 0) return;
  file_offset(0, size_bytes, path_);
  // tmpfs takes and clears every page at this moment: measured, 0.43 s for a GiB that takes 1.0 s to write, and on one thread.
  if (calls().is_in_memory(fd_) == 1) return;
  if (uninterrupted([&] { return calls().fallocate(fd_, 0, static_cast<off_t>(size_bytes)); }) == 0) return;
  // ENOSYS, EINVAL: what other kernels and network file systems answer for "cannot".
  if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL) return;
  throw path_error(errno, "reserve " + format_size(size_bytes) + " for", path_);
}

void File::will_read(std::uint64_t offset, std::uint64_t size_bytes) const noexcept {
  calls().fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(size_bytes), POSIX_FADV_WILLNEED);
}

void File::start_writeback(std::uint64_t offset, std::uint64_t size_bytes) const noexcept {
  calls().sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(size_bytes));
}

void File::forget() const noexcept { calls().fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

void File::sync() const {
  if (calls().fsync(fd_) != 0) throw path_error(errno, "bring to the disk", path_);
}

void File::close() {
  if (fd_ < 0) return;
  // Linux has given the descriptor back even when it reports an error or an interruption: calling again could close another's.
  if (calls().close(std::exchange(fd_, -1)) != 0 && errno != EINTR) throw path_error(errno, "close", path_);
}

std::string read_text_file(const std::filesystem::path& path, std::uint64_t limit_bytes) {
  const File file(path, FileMode::read);
  const auto too_large = [&](std::uint64_t size) {
    return Error(ErrorCode::unsupported,
                 fmt::format("'{}' has {} bytes, more than the limit of {}", printable(path.native(), 4 * 4096), size, limit_bytes),
                 {.file = path.native()}, "this is not the kind of file that is expected here");
  };
  const std::uint64_t size = file.size_bytes();
  if (size > limit_bytes) throw too_large(size);
  std::string text(checked_size(size, "size of the file"), '\0');
  text.resize(file.read_some(0, std::as_writable_bytes(std::span(text))));
  return text;
}

// ---- paths ----

PathKind path_kind(const std::filesystem::path& path) {
  struct ::stat facts {};
  if (uninterrupted([&] { return calls().stat(path.c_str(), &facts); }) == 0)
    return S_ISREG(facts.st_mode) ? PathKind::file : S_ISDIR(facts.st_mode) ? PathKind::folder : PathKind::other;
  if (errno != ENOENT && errno != ELOOP) throw path_error(errno, "look at", path);
  if (uninterrupted([&] { return calls().lstat(path.c_str(), &facts); }) == 0) return PathKind::link;
  if (errno != ENOENT) throw path_error(errno, "look at", path);
  return PathKind::nothing;
}

std::vector<std::string> list_directory(const std::filesystem::path& path) {
  std::vector<std::string> names;
  if (uninterrupted([&] { return calls().list(path.c_str(), names); }) != 0) throw path_error(errno, "list", path);
  std::sort(names.begin(), names.end());
  return names;
}

void make_directory(const std::filesystem::path& path) {
  if (calls().mkdir(path.c_str(), 0777) != 0) throw path_error(errno, "create the folder", path);
}

void rename_path(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (calls().rename(from.c_str(), to.c_str()) != 0) throw path_error(errno, fmt::format("rename '{}' to", printable(from.native(), 4 * 4096)), to);
}

void rename_to_new(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (calls().rename_new(from.c_str(), to.c_str()) == 0) return;
  if (errno == EINVAL || errno == ENOSYS) {
    // The file system cannot do both in one step; what remains is the moment between look and rename.
    if (path_kind(to) != PathKind::nothing) throw path_error(EEXIST, "create", to);
    return rename_path(from, to);
  }
  throw path_error(errno, fmt::format("rename '{}' to", printable(from.native(), 4 * 4096)), to);
}

void exchange_paths(const std::filesystem::path& a, const std::filesystem::path& b) {
  if (calls().exchange(a.c_str(), b.c_str()) == 0) return;
  const int error = errno;
  if (error == EINVAL || error == ENOSYS || error == EOPNOTSUPP)
    throw Error(ErrorCode::unsupported,
                fmt::format("the file system of '{}' cannot exchange two folders in one step", printable(b.native(), 4 * 4096)), {.file = b.native()},
                "remove the old output first, or write to a new name", error);
  throw path_error(error, fmt::format("exchange '{}' with", printable(a.native(), 4 * 4096)), b);
}

void remove_file(const std::filesystem::path& path) {
  if (calls().unlink(path.c_str()) != 0) throw path_error(errno, "remove", path);
}

void remove_tree(const std::filesystem::path& path) {
  struct ::stat facts {};
  if (calls().lstat(path.c_str(), &facts) != 0) {
    if (errno == ENOENT) return;
    throw path_error(errno, "look at", path);
  }
  if (!S_ISDIR(facts.st_mode)) {
    if (calls().unlink(path.c_str()) != 0 && errno != ENOENT) throw path_error(errno, "remove", path);
    return;
  }
  for (const std::string& name : list_directory(path)) remove_tree(path / name);
  if (calls().rmdir(path.c_str()) != 0 && errno != ENOENT) throw path_error(errno, "remove the folder", path);
}

void sync_directory(const std::filesystem::path& path) {
  const int fd = uninterrupted([&] { return calls().open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0); });
  if (fd < 0) throw path_error(errno, "open the folder", path);
  const int status = calls().fsync(fd);
  const int error = errno;
  calls().close(fd);
  // EINVAL: a file system whose folders need none.
  if (status != 0 && error != EINVAL) throw path_error(error, "bring to the disk the folder", path);
}

bool is_mount_point(const std::filesystem::path& path) {
  const int answer = uninterrupted([&] { return calls().is_mount_point(path.c_str()); });
  if (answer < 0) throw path_error(errno, "look at", path);
  return answer == 1;
}

std::uint64_t free_space_bytes(const std::filesystem::path& path) {
  const std::int64_t bytes = uninterrupted([&] { return calls().free_bytes(path.c_str()); });
  if (bytes < 0) throw path_error(errno, "ask for the free space of", path);
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace weft
