#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "base/file.h"

namespace weft::testing {

/// What goes wrong, and when.
struct Fault {
  std::uint64_t call = 0;  ///< which call fails, counted from 1 over those that `applies`; 0: none
  int error = 0;           ///< errno; 0: the call itself works (for shorten)
  bool for_good = false;   ///< and every later call of the same name too
  bool shorten = false;    ///< every read and write moves one byte less than asked, if more than one
  /// Which calls count, by name ("open", "pwrite", ...); all when empty.
  std::function<bool(const std::string& name)> applies = {};
};

/// System calls that do what the system does, except for one fault. Thread-safe.
class FaultCalls : public SystemCalls {
 public:
  explicit FaultCalls(Fault fault) : fault_(std::move(fault)) {}

  /// How many calls counted so far.
  [[nodiscard]] std::uint64_t num_calls() const;
  /// The name of the call that failed first; empty while none has.
  [[nodiscard]] std::string failed_call() const;
  /// Every call so far: "open /tmp/x".
  [[nodiscard]] std::vector<std::string> log() const;

  int open(const char* path, int flags, unsigned mode) override;
  int close(int fd) override;
  ssize_t pread(int fd, void* data, std::size_t size, off_t offset) override;
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override;
  int fsync(int fd) override;
  int fstat(int fd, struct ::stat* out) override;
  int stat(const char* path, struct ::stat* out) override;
  int lstat(const char* path, struct ::stat* out) override;
  int fallocate(int fd, off_t offset, off_t size) override;
  int sync_file_range(int fd, off_t offset, off_t size) override;
  int fadvise(int fd, off_t offset, off_t size, int advice) override;
  int flock(int fd, int operation) override;
  int rename(const char* from, const char* to) override;
  int rename_new(const char* from, const char* to) override;
  int exchange(const char* a, const char* b) override;
  int unlink(const char* path) override;
  int rmdir(const char* path) override;
  int mkdir(const char* path, unsigned mode) override;
  int list(const char* path, std::vector<std::string>& names) override;
  int is_in_memory(int) override { return 0; }  // so that tests in memory reserve as on a disk
  int is_mount_point(const char* path) override;
  std::int64_t free_bytes(const char* path) override;

 private:
  /// Counts a call; true when it must fail, with errno set.
  bool fails(const char* name, const std::string& what = {});

  Fault fault_;
  mutable std::mutex mutex_;
  std::uint64_t num_calls_ = 0;
  std::string failed_call_;
  std::vector<std::string> log_;
};

}  // namespace weft::testing
