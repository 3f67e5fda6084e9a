#include "base/budget.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "base/text.h"
#include "weft/error.h"

namespace weft {
namespace {

/// The number at the start of a small system file; 0 where there is none ("max", no such file).
std::uint64_t number_in(const char* path) noexcept {
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return 0;
  unsigned long long value = 0;
  if (std::fscanf(file, "%llu", &value) != 1) value = 0;
  std::fclose(file);
  return value;
}

}  // namespace

MemoryBudget::MemoryBudget(std::uint64_t limit_bytes) : limit_bytes_(limit_bytes != 0 ? limit_bytes : physical_memory_bytes() / 4) {}

MemoryBudget::Share::Share(Share&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}

MemoryBudget::Share& MemoryBudget::Share::operator=(Share&& other) noexcept {
  if (this != &other) {
    if (budget_ != nullptr) budget_->release(size_bytes_);
    budget_ = std::exchange(other.budget_, nullptr);
    size_bytes_ = std::exchange(other.size_bytes_, 0);
  }
  return *this;
}

MemoryBudget::Share::~Share() {
  if (budget_ != nullptr) budget_->release(size_bytes_);
}

MemoryBudget::Share MemoryBudget::acquire(std::uint64_t size_bytes, const char* what) {
  if (size_bytes > limit_bytes_)
    throw Error(ErrorCode::out_of_memory,
                std::string(what) + " needs " + format_size(size_bytes) + " (" + std::to_string(size_bytes) + " bytes), but the memory budget is " +
                    format_size(limit_bytes_) + " (" + std::to_string(limit_bytes_) + " bytes)",
                {}, "raise the budget with --memory");
  std::unique_lock lock(mutex_);
  // No queue: whoever fits goes on. Strict order could leave a large request waiting for work that waits behind it.
  freed_.wait(lock, [&] { return size_bytes <= limit_bytes_ - used_bytes_; });
  used_bytes_ += size_bytes;
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  return Share(this, size_bytes);
}

bool MemoryBudget::try_acquire(std::uint64_t size_bytes, Share& out) {
  {
    const std::lock_guard lock(mutex_);
    if (size_bytes > limit_bytes_ - used_bytes_) return false;
    used_bytes_ += size_bytes;
    peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  }
  out = Share(this, size_bytes);
  return true;
}

std::uint64_t MemoryBudget::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_bytes_;
}

void MemoryBudget::release(std::uint64_t size_bytes) noexcept {
  {
    const std::lock_guard lock(mutex_);
    used_bytes_ -= size_bytes;
  }
  freed_.notify_all();
}

std::uint64_t peak_resident_bytes() noexcept {
  // Not ru_maxrss first: it starts from what the parent held before exec, so a small process started by a large one looks large.
  if (std::FILE* file = std::fopen("/proc/self/status", "re"); file != nullptr) {
    char line[256];
    unsigned long long kib = 0;
    while (std::fgets(line, sizeof line, file) != nullptr)
      if (std::sscanf(line, "VmHWM: %llu", &kib) == 1) break;
    std::fclose(file);
    if (kib != 0) return kib * 1024;
  }
  struct ::rusage usage {};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<std::uint64_t>(usage.ru_maxrss) * 1024 : 0;
}

std::uint64_t physical_memory_bytes() noexcept {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page = ::sysconf(_SC_PAGESIZE);
  std::uint64_t bytes = pages > 0 && page > 0 ? static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page) : std::uint64_t{1} << 30;
  // A container is ended when it takes more than its own limit, however much the machine has.
  for (const char* limit : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"})
    if (const std::uint64_t value = number_in(limit); value != 0) bytes = std::min(bytes, value);
  return bytes;
}

}  // namespace weft
