#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>

#include "weft/job.h"

namespace weft {

/// Tells a job's caller how far it has come: at most ten times a second, from one thread at a time, and once more at the end.
/// add() costs an addition and a look at the clock, so workers may call it for every chunk.
class ProgressMeter {
 public:
  /// report may be empty.
  ProgressMeter(std::function<void(const Progress&)> report, std::string what, std::uint64_t total_bytes);
  ProgressMeter(const ProgressMeter&) = delete;
  ProgressMeter& operator=(const ProgressMeter&) = delete;

  /// Thread-safe. Calls the callback when its time has come; what that throws ends the reports and is kept for finish().
  void add(std::uint64_t bytes) noexcept;
  /// The last report, with what was really done; rethrows what a callback threw. Not while others add.
  void finish();
  [[nodiscard]] std::uint64_t done_bytes() const noexcept { return done_bytes_.load(std::memory_order_relaxed); }

 private:
  using Clock = std::chrono::steady_clock;
  void call(Clock::time_point now) noexcept;  // with mutex_ held

  std::function<void(const Progress&)> report_;
  std::string what_;
  std::uint64_t total_bytes_;
  Clock::time_point start_;
  std::atomic<std::uint64_t> done_bytes_{0};
  std::atomic<Clock::rep> next_report_;  // ticks of the clock
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace weft
