#pragma once
#include <cstddef>
#include <functional>
#include <memory>

namespace weft {

/// Threads that stay, for work that comes in many small phases (the layers of a network): starting threads for each would cost more than the phase.
/// Units are fixed by the caller and handed out one by one, so that a result never depends on how many threads there are.
class ThreadTeam {
 public:
  /// 0: as many as the machine, or the container, lets run at once. Errors: invalid_argument, out_of_memory (see WorkerPool).
  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  [[nodiscard]] int num_threads() const noexcept;

  /// Calls body(unit, worker) once for each unit, workers 0 .. num_threads - 1, the calling thread among them; returns when all are done. The first
  /// exception that leaves a body is rethrown here, and no further units are begun. Not from within a body, and from one thread at a time.
  void for_each(std::size_t num_units, const std::function<void(std::size_t unit, int worker)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weft
