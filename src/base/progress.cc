#include "base/progress.h"

#include <utility>

namespace weft {
namespace {
constexpr std::chrono::milliseconds kInterval{100};
}

ProgressMeter::ProgressMeter(std::function<void(const Progress&)> report, std::string what, std::uint64_t total_bytes)
    : report_(std::move(report)),
      what_(std::move(what)),
      total_bytes_(total_bytes),
      start_(Clock::now()),
      next_report_((start_ + kInterval).time_since_epoch().count()) {}

void ProgressMeter::add(std::uint64_t bytes) noexcept {
  done_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  if (!report_) return;
  const Clock::time_point now = Clock::now();
  if (now.time_since_epoch().count() < next_report_.load(std::memory_order_relaxed)) return;
  // Whoever comes while another reports goes on working instead of waiting for a terminal.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || now.time_since_epoch().count() < next_report_.load(std::memory_order_relaxed)) return;
  call(now);
  // From the end of the call: a slow callback must not be called back to back.
  next_report_.store((Clock::now() + kInterval).time_since_epoch().count(), std::memory_order_relaxed);
}

void ProgressMeter::finish() {
  const std::lock_guard lock(mutex_);
  if (report_) call(Clock::now());
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ProgressMeter::call(Clock::time_point now) noexcept {
  if (failure_) return;
  try {
    report_({what_, done_bytes(), total_bytes_, std::chrono::duration<double>(now - start_).count()});
  } catch (...) {
    failure_ = std::current_exception();
  }
}

}  // namespace weft
