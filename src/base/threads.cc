#include "base/threads.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "weft/error.h"

namespace weft {
namespace {

// More than any machine has cores for; a typing error should not start a hundred thousand threads.
constexpr int kMaxThreads = 1024;

/// The control group's processor time for each second, rounded up; 0 where it is not limited.
int container_cores() noexcept {
  std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "re");
  if (file == nullptr) return 0;
  long long quota = 0, period = 0;
  if (std::fscanf(file, "%lld %lld", &quota, &period) != 2) quota = 0;  // "max 100000"
  std::fclose(file);
  return quota > 0 && period > 0 ? static_cast<int>(std::min<long long>(kMaxThreads, (quota + period - 1) / period)) : 0;
}

}  // namespace

int usable_cores() noexcept {
  int cores = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, static_cast<unsigned>(kMaxThreads)));
  if (const int limit = container_cores(); limit > 0) cores = std::min(cores, limit);
  return cores;
}

WorkerPool::WorkerPool(int num_threads) : num_threads_(num_threads == 0 ? usable_cores() : num_threads) {
  if (num_threads < 0 || num_threads > kMaxThreads)
    throw Error(ErrorCode::invalid_argument, "the number of threads is " + std::to_string(num_threads) + ", not 0 to " + std::to_string(kMaxThreads),
                {}, "give 0 for as many as the machine has");
}

void WorkerPool::run(const std::function<void(int worker)>& body) {
  stop_ = std::stop_source();
  std::mutex mutex;
  std::condition_variable opened;
  enum class Gate { closed, open, cancelled } gate = Gate::closed;
  std::exception_ptr failure;

  const auto work = [&](int worker) noexcept {
    try {
      body(worker);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      stop_.request_stop();
    }
  };
  const auto open_gate = [&](Gate how) {
    {
      const std::lock_guard lock(mutex);
      gate = how;
    }
    opened.notify_all();
  };

  std::vector<std::thread> threads;
  try {
    threads.reserve(static_cast<std::size_t>(num_threads_) - 1);
    for (int worker = 1; worker < num_threads_; ++worker)
      threads.emplace_back([&, worker] {
        {
          std::unique_lock lock(mutex);
          opened.wait(lock, [&] { return gate != Gate::closed; });
          if (gate == Gate::cancelled) return;
        }
        work(worker);
      });
  } catch (const std::exception& e) {
    const int started = static_cast<int>(threads.size()) + 1;
    open_gate(Gate::cancelled);
    for (std::thread& thread : threads) thread.join();
    throw Error(ErrorCode::out_of_memory,
                "the system started " + std::to_string(started) + " of " + std::to_string(num_threads_) + " threads: " + e.what(), {},
                "use fewer with --threads, or raise the limit (ulimit -u)");
  }
  open_gate(Gate::open);
  work(0);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace weft
