#pragma once
#include <functional>
#include <stop_token>

namespace weft {

/// Workers of one job, of which exactly num_threads run at the same time, the calling thread among them, however few cores there are: workers may
/// wait for each other. (A task scheduler such as oneTBB's promises no such thing: its limit is the lowest that anyone in the process has set, and a
/// pipeline whose second half never starts hangs. So these are threads; work that may run in any order still belongs into tasks.)
class WorkerPool {
 public:
  /// 0: as many as the machine, or the container, lets run at once. Errors: invalid_argument below 0 and above 1024.
  explicit WorkerPool(int num_threads);

  [[nodiscard]] int num_threads() const noexcept { return num_threads_; }

  /// Runs body(worker) once for each worker, 0 .. num_threads - 1, worker 0 on the calling thread; returns when all have returned.
  /// The first exception that leaves a body is rethrown here, and asks the others to stop through stop_token(). No body runs unless all can.
  /// Not from within a body of the same pool. Errors: out_of_memory when the system gives no more threads.
  void run(const std::function<void(int worker)>& body);

  /// Of the present run, for bodies: to be polled between chunks, or given to std::condition_variable_any::wait, which it then ends.
  [[nodiscard]] std::stop_token stop_token() const noexcept { return stop_.get_token(); }

 private:
  int num_threads_;
  std::stop_source stop_;
};

/// How many threads can run at once here: the cores that this process may use, no more than the container's share of them.
[[nodiscard]] int usable_cores() noexcept;

}  // namespace weft
