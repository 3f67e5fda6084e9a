#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/errors.h"

namespace weft {
namespace {

TEST(WorkerPool, runs_every_worker_once_and_the_first_on_the_calling_thread) {
  WorkerPool pool(5);
  EXPECT_EQ(pool.num_threads(), 5);
  std::vector<std::atomic<int>> runs(5);
  std::thread::id first;
  pool.run([&](int worker) {
    ++runs.at(static_cast<std::size_t>(worker));
    if (worker == 0) first = std::this_thread::get_id();
  });
  for (const auto& count : runs) EXPECT_EQ(count, 1);
  EXPECT_EQ(first, std::this_thread::get_id());
}

TEST(WorkerPool, runs_all_workers_at_the_same_time_however_few_cores_there_are) {
  for (const int n : {1, 2, 3, 8, 64}) {
    WorkerPool pool(n);
    std::mutex mutex;
    std::condition_variable all_here;
    std::set<std::thread::id> threads;
    // Hangs, and is ended by the time limit of the test, if one of them starts only after another has returned.
    pool.run([&](int) {
      std::unique_lock lock(mutex);
      threads.insert(std::this_thread::get_id());
      all_here.notify_all();
      all_here.wait(lock, [&] { return threads.size() == static_cast<std::size_t>(n); });
    });
    EXPECT_EQ(threads.size(), static_cast<std::size_t>(n));
  }
}

TEST(WorkerPool, two_pools_run_side_by_side) {
  std::mutex mutex;
  std::condition_variable all_here;
  int here = 0;
  const auto meet = [&](int) {
    std::unique_lock lock(mutex);
    ++here;
    all_here.notify_all();
    all_here.wait(lock, [&] { return here == 12; });
  };
  std::thread other([&] { WorkerPool(8).run(meet); });
  WorkerPool(4).run(meet);
  other.join();
  EXPECT_EQ(here, 12);
}

TEST(WorkerPool, rethrows_the_first_exception_after_all_have_returned) {
  WorkerPool pool(4);
  std::atomic<int> returned = 0;
  const auto error = testing::error_of([&] {
    pool.run([&](int worker) {
      if (worker == 2) throw Error(ErrorCode::corrupt, "worker 2");
      while (!pool.stop_token().stop_requested()) std::this_thread::yield();
      ++returned;
      throw Error(ErrorCode::io, "only because of the other");
    });
  });
  ASSERT_TRUE(error.has_value());
  EXPECT_STREQ(error->what(), "worker 2");
  EXPECT_EQ(returned, 3);
}

TEST(WorkerPool, wakes_workers_that_wait_when_another_fails) {
  WorkerPool pool(3);
  std::mutex mutex;
  std::condition_variable_any ready;
  EXPECT_THROW(pool.run([&](int worker) {
    if (worker == 0) throw std::runtime_error("stop");
    std::unique_lock lock(mutex);
    EXPECT_FALSE(ready.wait(lock, pool.stop_token(), [] { return false; }));
  }),
               std::runtime_error);
}

TEST(WorkerPool, can_run_again_after_a_failure) {
  WorkerPool pool(2);
  EXPECT_THROW(pool.run([](int) { throw std::runtime_error("once"); }), std::runtime_error);
  std::atomic<int> runs = 0;
  pool.run([&](int) {
    EXPECT_FALSE(pool.stop_token().stop_requested());
    ++runs;
  });
  EXPECT_EQ(runs, 2);
}

TEST(WorkerPool, of_zero_has_as_many_threads_as_cores_and_impossible_numbers_are_refused) {
  EXPECT_EQ(WorkerPool(0).num_threads(), usable_cores());
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_WEFT_ERROR(WorkerPool(-1), invalid_argument, "the number of threads is -1");
  EXPECT_WEFT_ERROR(WorkerPool(100'000), invalid_argument, "the number of threads is 100000");
}

}  // namespace
}  // namespace weft
