#include "base/budget.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "support/errors.h"

namespace weft {
namespace {

TEST(MemoryBudget, gives_a_share_back_on_destruction) {
  MemoryBudget budget(100);
  MemoryBudget::Share none;
  {
    const MemoryBudget::Share all = budget.acquire(100, "work");
    EXPECT_EQ(all.size_bytes(), 100u);
    EXPECT_FALSE(budget.try_acquire(1, none));
    EXPECT_TRUE(budget.try_acquire(0, none));
  }
  EXPECT_TRUE(budget.try_acquire(100, none));
  EXPECT_EQ(budget.peak_bytes(), 100u);
}

TEST(MemoryBudget, moving_a_share_gives_back_what_was_there_before) {
  MemoryBudget budget(100);
  MemoryBudget::Share a = budget.acquire(60, "a");
  MemoryBudget::Share b = budget.acquire(40, "b");
  a = std::move(b);
  EXPECT_EQ(a.size_bytes(), 40u);
  MemoryBudget::Share c;
  EXPECT_FALSE(budget.try_acquire(61, c));
  EXPECT_TRUE(budget.try_acquire(60, c));
  MemoryBudget::Share& same = c;
  c = std::move(same);
  EXPECT_EQ(c.size_bytes(), 60u);
}

TEST(MemoryBudget, refuses_what_can_never_fit_with_both_numbers) {
  MemoryBudget budget(1000);
  EXPECT_WEFT_ERROR(budget.acquire(2000, "tensor 'w'"), out_of_memory,
                    "tensor 'w' needs 2.00 kB (2000 bytes), but the memory budget is 1.00 kB (1000 bytes)");
  MemoryBudget::Share share;
  EXPECT_FALSE(budget.try_acquire(UINT64_MAX, share));
}

TEST(MemoryBudget, holds_work_back_until_it_fits) {
  MemoryBudget budget(100);
  MemoryBudget::Share first = budget.acquire(60, "first");
  std::atomic<bool> got = false;
  std::thread waiter([&] {
    const MemoryBudget::Share second = budget.acquire(60, "second");
    got = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(got);
  first = {};
  waiter.join();
  EXPECT_TRUE(got);
  EXPECT_EQ(budget.peak_bytes(), 60u);
}

TEST(MemoryBudget, is_never_exceeded_by_many_at_once) {
  MemoryBudget budget(10);
  std::atomic<std::uint64_t> held = 0;
  std::atomic<bool> exceeded = false;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 500; ++i) {
        const std::uint64_t size = (i + t) % 10 + 1;
        const MemoryBudget::Share share = budget.acquire(size, "work");
        if (held.fetch_add(size) + size > 10) exceeded = true;
        held.fetch_sub(size);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(exceeded);
  EXPECT_LE(budget.peak_bytes(), 10u);
}

TEST(MemoryBudget, of_zero_is_a_quarter_of_what_the_machine_has) {
  EXPECT_EQ(MemoryBudget(0).limit_bytes(), physical_memory_bytes() / 4);
  EXPECT_GT(physical_memory_bytes(), 64u << 20);
}

TEST(PeakResident, grows_by_what_is_touched) {
  const std::uint64_t before = peak_resident_bytes();
  EXPECT_GT(before, 0u);
  constexpr std::size_t kBytes = std::size_t{256} << 20;
  {
    std::vector<char> block(kBytes, 1);
    EXPECT_EQ(block[kBytes / 2], 1);
  }
  EXPECT_GE(peak_resident_bytes(), kBytes);
}

}  // namespace
}  // namespace weft
