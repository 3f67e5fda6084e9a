#include "base/progress.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

TEST(ProgressMeter, counts_what_all_threads_add_and_reports_it_at_the_end) {
  std::vector<Progress> reports;
  ProgressMeter meter([&](const Progress& p) { reports.push_back(p); }, "merging", 8000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) meter.add(1);
    });
  for (std::thread& thread : threads) thread.join();
  meter.finish();
  ASSERT_FALSE(reports.empty());
  EXPECT_EQ(reports.back().what, "merging");
  EXPECT_EQ(reports.back().done_bytes, 8000u);
  EXPECT_EQ(reports.back().total_bytes, 8000u);
  EXPECT_GE(reports.back().elapsed_seconds, 0.0);
  EXPECT_EQ(meter.done_bytes(), 8000u);
}

TEST(ProgressMeter, reports_no_more_than_ten_times_a_second_from_one_thread_at_a_time) {
  std::atomic<int> inside = 0;
  std::atomic<bool> overlapped = false;
  std::vector<Clock::time_point> times;
  const Clock::time_point start = Clock::now();
  ProgressMeter meter(
      [&](const Progress&) {
        if (++inside != 1) overlapped = true;
        times.push_back(Clock::now());
        --inside;
      },
      "reading", 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      while (Clock::now() - start < std::chrono::milliseconds(450)) meter.add(1);
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(overlapped);
  EXPECT_GE(times.size(), 1u);
  EXPECT_GE(times.front() - start, std::chrono::milliseconds(100));
  for (std::size_t i = 1; i < times.size(); ++i) EXPECT_GE(times[i] - times[i - 1], std::chrono::milliseconds(100)) << i;
}

TEST(ProgressMeter, done_bytes_never_go_back) {
  std::uint64_t last = 0;
  ProgressMeter meter(
      [&](const Progress& p) {
        EXPECT_GE(p.done_bytes, last);
        last = p.done_bytes;
      },
      "x", 0);
  const Clock::time_point start = Clock::now();
  while (Clock::now() - start < std::chrono::milliseconds(250)) meter.add(3);
  meter.finish();
  EXPECT_EQ(last, meter.done_bytes());
}

TEST(ProgressMeter, keeps_what_a_callback_throws_for_the_end_and_calls_it_no_more) {
  int calls = 0;
  ProgressMeter meter(
      [&](const Progress&) {
        ++calls;
        throw std::runtime_error("enough");
      },
      "x", 0);
  const Clock::time_point start = Clock::now();
  while (Clock::now() - start < std::chrono::milliseconds(250)) meter.add(1);
  EXPECT_THROW(meter.finish(), std::runtime_error);
  EXPECT_EQ(calls, 1);
}

TEST(ProgressMeter, works_without_a_callback) {
  ProgressMeter meter({}, "x", 10);
  meter.add(10);
  meter.finish();
  EXPECT_EQ(meter.done_bytes(), 10u);
}

}  // namespace
}  // namespace weft
