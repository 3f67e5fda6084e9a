#pragma once
#include <functional>

namespace weft {

/// Workers of one job: a oneTBB arena with exactly num_threads slots. Exceptions thrown by a worker stop the others (through `stop`) and are rethrown here.
class WorkerPool {
 public:
  /// 0: as many as the machine has.
  explicit WorkerPool(int num_threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  [[nodiscard]] int num_threads() const noexcept { return num_threads_; }
  /// Runs body(worker) once for each worker, 0 .. num_threads - 1, at the same time; returns when all have.
  void run(const std::function<void(int worker)>& body);

 private:
  struct Arena;
  int num_threads_;
  Arena* arena_;
};

}  // namespace weft
