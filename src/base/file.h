#pragma once
#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/error.h"

namespace weft {

/// Every system call on files that weft makes. The default does what the system does; tests put in one that fails, shortens, or forgets.
/// Results and errno are those of the call of the same name.
class SystemCalls {
 public:
  virtual ~SystemCalls() = default;
  virtual int open(const char* path, int flags, unsigned mode);
  virtual int close(int fd);
  virtual ssize_t pread(int fd, void* data, std::size_t size, off_t offset);
  virtual ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset);
  virtual int fsync(int fd);
  virtual int fstat(int fd, struct ::stat* out);
  virtual int stat(const char* path, struct ::stat* out);
  virtual int lstat(const char* path, struct ::stat* out);
  virtual int fallocate(int fd, off_t offset, off_t size);
  virtual int sync_file_range(int fd, off_t offset, off_t size);  ///< starts writing back; a hint
  virtual int fadvise(int fd, off_t offset, off_t size, int advice);
  virtual int flock(int fd, int operation);
  virtual int rename(const char* from, const char* to);
  virtual int rename_new(const char* from, const char* to);       ///< renameat2 with RENAME_NOREPLACE
  virtual int exchange(const char* a, const char* b);             ///< renameat2 with RENAME_EXCHANGE
  virtual int unlink(const char* path);
  virtual int rmdir(const char* path);
  virtual int mkdir(const char* path, unsigned mode);
  /// opendir, readdir to the end, closedir: the names in a folder without "." and "..", in no order. 0 or -1.
  virtual int list(const char* path, std::vector<std::string>& names);
  /// 1 where the file lies in memory (tmpfs, ramfs), 0 where not or unknown.
  virtual int is_in_memory(int fd);
  /// 1 where something is mounted at path itself (also a folder of the same file system), 0 where not or unknown, -1.
  virtual int is_mount_point(const char* path);
  /// Free bytes on the file system of path, or -1.
  virtual std::int64_t free_bytes(const char* path);

  static SystemCalls& current() noexcept;
};

/// Puts other system calls in place while it lives (tests only; not while another thread does I/O).
class ScopedSystemCalls {
 public:
  explicit ScopedSystemCalls(SystemCalls& calls) noexcept;
  ~ScopedSystemCalls();
  ScopedSystemCalls(const ScopedSystemCalls&) = delete;
  ScopedSystemCalls& operator=(const ScopedSystemCalls&) = delete;

 private:
  SystemCalls* previous_;
};

/// Which file this is and in what state; compared at the end of a job.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size_bytes = 0;
  std::int64_t modified_ns = 0;
  bool operator==(const FileIdentity&) const = default;
};

enum class FileMode {
  read,        ///< an existing regular file
  create_new,  ///< for writing (and reading back); must not exist
  update,      ///< an existing file, for reading and writing
};

/// An open file with positioned I/O that any thread may use. Interrupted and short calls are continued here; what fails throws an Error that
/// names the path: not_found, invalid_argument (a folder; create_new and it exists), unsupported (a pipe or device), io (errno kept),
/// no_space (ENOSPC, EDQUOT). Opening never waits: only regular files are taken.
class File {
 public:
  File() = default;
  File(std::filesystem::path path, FileMode mode);
  ~File();  ///< closes silently; to learn of errors call close()
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
  [[nodiscard]] std::uint64_t size_bytes() const;
  [[nodiscard]] FileIdentity identity() const;
  /// On the disk: less than its size where it has holes.
  [[nodiscard]] std::uint64_t allocated_bytes() const;

  /// Reads up to out.size() bytes; fewer only at the end of the file. Returns the number read.
  std::size_t read_some(std::uint64_t offset, std::span<std::byte> out) const;
  /// Reads exactly out.size() bytes; throws corrupt when the file ends before.
  void read(std::uint64_t offset, std::span<std::byte> out) const;
  void write(std::uint64_t offset, std::span<const std::byte> data) const;
  /// Reserves the bytes so that a full disk shows now; file systems that cannot are passed over, and those in memory, where reserving is as
  /// much work as writing.
  void allocate(std::uint64_t size_bytes) const;
  /// Hints; never fail.
  void will_read(std::uint64_t offset, std::uint64_t size_bytes) const noexcept;
  void start_writeback(std::uint64_t offset, std::uint64_t size_bytes) const noexcept;
  void forget() const noexcept;  ///< what the system holds of it in memory, if it is on the disk
  /// fsync, once: a failed one is never retried, because the kernel may have dropped the data.
  void sync() const;
  void close();

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

/// The whole of a small file. Throws unsupported when it is larger than limit_bytes.
[[nodiscard]] std::string read_text_file(const std::filesystem::path& path, std::uint64_t limit_bytes);

/// What a path names; links are followed, except that a link to nothing is a link.
enum class PathKind { nothing, file, folder, link, other };

// Paths: each throws an Error that names the path and what was tried.
[[nodiscard]] PathKind path_kind(const std::filesystem::path& path);
/// Names in a folder, sorted.
[[nodiscard]] std::vector<std::string> list_directory(const std::filesystem::path& path);
void make_directory(const std::filesystem::path& path);  ///< must not exist
/// What is at `to` is replaced, as by rename(2): a file by a file, an empty folder by a folder.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);
/// Nothing may be at `to`; invalid_argument otherwise.
void rename_to_new(const std::filesystem::path& from, const std::filesystem::path& to);
void exchange_paths(const std::filesystem::path& a, const std::filesystem::path& b);  ///< unsupported where the file system cannot
void remove_file(const std::filesystem::path& path);
/// Removes a folder and what is in it; never follows links. What is gone already is no error.
void remove_tree(const std::filesystem::path& path);
void sync_directory(const std::filesystem::path& path);
/// Whether something is mounted there: such a folder can be neither renamed nor exchanged.
[[nodiscard]] bool is_mount_point(const std::filesystem::path& path);
[[nodiscard]] std::uint64_t free_space_bytes(const std::filesystem::path& path);

/// An Error for a system call on a path that failed: its code, the reason in words and what to do follow from system_error. did: "open", "write to".
[[nodiscard]] Error path_error(int system_error, std::string_view did, const std::filesystem::path& path);

}  // namespace weft
