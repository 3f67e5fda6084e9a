#pragma once
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace weft {

/// What a job may hold in memory. Work that does not fit now waits until other work gives its share back; work that can never fit is refused.
class MemoryBudget {
 public:
  /// 0: a quarter of RAM.
  explicit MemoryBudget(std::uint64_t limit_bytes);

  /// A share that is given back on destruction.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept;
    Share& operator=(Share&& other) noexcept;
    ~Share();
    [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }

   private:
    friend class MemoryBudget;
    Share(MemoryBudget* budget, std::uint64_t size_bytes) noexcept : budget_(budget), size_bytes_(size_bytes) {}
    MemoryBudget* budget_ = nullptr;
    std::uint64_t size_bytes_ = 0;
  };

  /// Waits until the bytes are free. Throws out_of_memory, with both numbers, when they exceed the whole budget.
  [[nodiscard]] Share acquire(std::uint64_t size_bytes, const char* what);
  /// Empty when the bytes are not free now.
  [[nodiscard]] bool try_acquire(std::uint64_t size_bytes, Share& out);

  [[nodiscard]] std::uint64_t limit_bytes() const noexcept { return limit_bytes_; }
  [[nodiscard]] std::uint64_t peak_bytes() const;

 private:
  void release(std::uint64_t size_bytes) noexcept;
  std::uint64_t limit_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable freed_;
  std::uint64_t used_bytes_ = 0;
  std::uint64_t peak_bytes_ = 0;
};

/// The largest resident set of this process so far.
[[nodiscard]] std::uint64_t peak_resident_bytes() noexcept;
/// RAM of this machine, or of the container that this process runs in.
[[nodiscard]] std::uint64_t physical_memory_bytes() noexcept;

}  // namespace weft
