#include "base/thread_team.h"

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/threads.h"
#include "weft/error.h"

namespace weft {

struct ThreadTeam::State {
  int num_threads = 1;
  std::vector<std::thread> threads;

  // One phase: written by the caller before `phase` is raised, read by the workers after they saw it raised.
  const std::function<void(std::size_t, int)>* body = nullptr;
  std::size_t num_units = 0;
  std::atomic<std::size_t> next{0};
  std::atomic<std::uint32_t> phase{0};
  std::atomic<std::uint32_t> working{0};
  std::atomic<bool> stops{false};
  std::mutex mutex;
  std::exception_ptr failure;

  void work(int worker) noexcept {
    try {
      for (std::size_t unit = next.fetch_add(1); unit < num_units; unit = next.fetch_add(1)) (*body)(unit, worker);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next.store(num_units);
    }
  }

  void stay(int worker) noexcept {
    std::uint32_t seen = 0;
    while (true) {
      phase.wait(seen, std::memory_order_acquire);
      seen = phase.load(std::memory_order_acquire);
      if (stops.load(std::memory_order_acquire)) return;
      work(worker);
      if (working.fetch_sub(1, std::memory_order_acq_rel) == 1) working.notify_one();
    }
  }

  void stop() noexcept {
    stops.store(true, std::memory_order_release);
    phase.fetch_add(1, std::memory_order_release);
    phase.notify_all();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
};

ThreadTeam::ThreadTeam(int num_threads) : state_(std::make_unique<State>()) {
  state_->num_threads = WorkerPool(num_threads).num_threads();  // which checks the number
  try {
    state_->threads.reserve(static_cast<std::size_t>(state_->num_threads) - 1);
    for (int worker = 1; worker < state_->num_threads; ++worker)
      state_->threads.emplace_back([state = state_.get(), worker] { state->stay(worker); });
  } catch (const std::exception& e) {
    const std::size_t started = state_->threads.size() + 1;
    state_->stop();
    throw Error(ErrorCode::out_of_memory,
                "the system started " + std::to_string(started) + " of " + std::to_string(state_->num_threads) + " threads: " + e.what(), {},
                "use fewer with --threads, or raise the limit (ulimit -u)");
  }
}

ThreadTeam::~ThreadTeam() { state_->stop(); }

int ThreadTeam::num_threads() const noexcept { return state_->num_threads; }

void ThreadTeam::for_each(std::size_t num_units, const std::function<void(std::size_t, int)>& body) {
  State& s = *state_;
  if (num_units <= 1 || s.threads.empty()) {
    for (std::size_t unit = 0; unit < num_units; ++unit) body(unit, 0);
    return;
  }
  s.body = &body;
  s.num_units = num_units;
  s.failure = nullptr;
  s.next.store(0);
  s.working.store(static_cast<std::uint32_t>(s.threads.size()), std::memory_order_relaxed);
  s.phase.fetch_add(1, std::memory_order_release);
  s.phase.notify_all();
  s.work(0);
  for (std::uint32_t left = s.working.load(std::memory_order_acquire); left != 0; left = s.working.load(std::memory_order_acquire))
    s.working.wait(left, std::memory_order_acquire);
  if (s.failure) std::rethrow_exception(s.failure);
}

}  // namespace weft
