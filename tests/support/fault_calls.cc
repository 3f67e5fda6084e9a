#include "support/fault_calls.h"

#include <cerrno>

namespace weft::testing {

std::uint64_t FaultCalls::num_calls() const {
  const std::lock_guard lock(mutex_);
  return num_calls_;
}

std::string FaultCalls::failed_call() const {
  const std::lock_guard lock(mutex_);
  return failed_call_;
}

std::vector<std::string> FaultCalls::log() const {
  const std::lock_guard lock(mutex_);
  return log_;
}

bool FaultCalls::fails(const char* name, const std::string& what) {
  const std::lock_guard lock(mutex_);
  log_.push_back(std::string(name) + " " + what);
  if (fault_.call == 0 || (fault_.applies && !fault_.applies(name))) return false;
  ++num_calls_;
  const bool again = fault_.for_good && num_calls_ > fault_.call && failed_call_ == name;
  if (num_calls_ != fault_.call && !again) return false;
  if (failed_call_.empty()) failed_call_ = name;
  if (fault_.error == 0) return false;
  errno = fault_.error;
  return true;
}

int FaultCalls::open(const char* path, int flags, unsigned mode) { return fails("open", path) ? -1 : SystemCalls::open(path, flags, mode); }

int FaultCalls::close(int fd) {
  // As on Linux: the descriptor is gone even when the call reports an error.
  const bool failed = fails("close");
  const int error = errno;
  const int result = SystemCalls::close(fd);
  if (failed) errno = error;
  return failed ? -1 : result;
}

ssize_t FaultCalls::pread(int fd, void* data, std::size_t size, off_t offset) {
  if (fails("pread")) return -1;
  return SystemCalls::pread(fd, data, fault_.shorten && size > 1 ? size - 1 : size, offset);
}
ssize_t FaultCalls::pwrite(int fd, const void* data, std::size_t size, off_t offset) {
  if (fails("pwrite")) return -1;
  return SystemCalls::pwrite(fd, data, fault_.shorten && size > 1 ? size - 1 : size, offset);
}
int FaultCalls::fsync(int fd) { return fails("fsync") ? -1 : SystemCalls::fsync(fd); }
int FaultCalls::fstat(int fd, struct ::stat* out) { return fails("fstat") ? -1 : SystemCalls::fstat(fd, out); }
int FaultCalls::stat(const char* path, struct ::stat* out) { return fails("stat", path) ? -1 : SystemCalls::stat(path, out); }
int FaultCalls::lstat(const char* path, struct ::stat* out) { return fails("lstat", path) ? -1 : SystemCalls::lstat(path, out); }
int FaultCalls::fallocate(int fd, off_t offset, off_t size) { return fails("fallocate") ? -1 : SystemCalls::fallocate(fd, offset, size); }
int FaultCalls::sync_file_range(int fd, off_t offset, off_t size) {
  return fails("sync_file_range") ? -1 : SystemCalls::sync_file_range(fd, offset, size);
}
int FaultCalls::fadvise(int fd, off_t offset, off_t size, int advice) {
  return fails("fadvise") ? -1 : SystemCalls::fadvise(fd, offset, size, advice);
}
int FaultCalls::flock(int fd, int operation) { return fails("flock") ? -1 : SystemCalls::flock(fd, operation); }
int FaultCalls::rename(const char* from, const char* to) {
  return fails("rename", std::string(from) + " " + to) ? -1 : SystemCalls::rename(from, to);
}
int FaultCalls::rename_new(const char* from, const char* to) {
  return fails("rename_new", std::string(from) + " " + to) ? -1 : SystemCalls::rename_new(from, to);
}
int FaultCalls::exchange(const char* a, const char* b) { return fails("exchange", std::string(a) + " " + b) ? -1 : SystemCalls::exchange(a, b); }
int FaultCalls::unlink(const char* path) { return fails("unlink", path) ? -1 : SystemCalls::unlink(path); }
int FaultCalls::rmdir(const char* path) { return fails("rmdir", path) ? -1 : SystemCalls::rmdir(path); }
int FaultCalls::mkdir(const char* path, unsigned mode) { return fails("mkdir", path) ? -1 : SystemCalls::mkdir(path, mode); }
int FaultCalls::list(const char* path, std::vector<std::string>& names) { return fails("list", path) ? -1 : SystemCalls::list(path, names); }
int FaultCalls::is_mount_point(const char* path) { return fails("is_mount_point", path) ? -1 : SystemCalls::is_mount_point(path); }
std::int64_t FaultCalls::free_bytes(const char* path) { return fails("free_bytes", path) ? -1 : SystemCalls::free_bytes(path); }

}  // namespace weft::testing
