#include "base/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "weft/error.h"

namespace weft {
namespace {

TEST(ThreadTeam, every_unit_runs_once_in_every_phase) {
  for (const int threads : {1, 2, 7}) {
    ThreadTeam team(threads);
    EXPECT_EQ(team.num_threads(), threads);
    for (const std::size_t units : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{1000}}) {
      std::vector<std::atomic<int>> seen(units);
      team.for_each(units, [&](std::size_t unit, int worker) {
        EXPECT_LT(worker, threads);
        ++seen[unit];
      });
      for (const auto& count : seen) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadTeam, what_one_phase_wrote_the_next_can_read) {
  ThreadTeam team(4);
  std::vector<int> values(256, 0);
  for (int phase = 0; phase < 500; ++phase)
    team.for_each(values.size(), [&](std::size_t unit, int) { values[unit] = phase == 0 ? 1 : values[unit] + 1; });
  for (const int value : values) EXPECT_EQ(value, 500);
}

TEST(ThreadTeam, an_exception_reaches_the_caller_and_the_team_goes_on) {
  ThreadTeam team(3);
  EXPECT_THROW(team.for_each(100,
                             [](std::size_t unit, int) {
                               if (unit == 7) throw std::runtime_error("seven");
                             }),
               std::runtime_error);
  std::atomic<int> count = 0;
  team.for_each(10, [&](std::size_t, int) { ++count; });
  EXPECT_EQ(count.load(), 10);
}

TEST(ThreadTeam, an_absurd_number_of_threads_is_refused) {
  EXPECT_THROW(ThreadTeam(-1), Error);
  EXPECT_THROW(ThreadTeam(100'000), Error);
}

}  // namespace
}  // namespace weft
