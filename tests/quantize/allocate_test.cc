#include "quantize/allocate.h"

#include <gtest/gtest.h>

#include <random>

#include "support/errors.h"

namespace weft::quantize {
namespace {

TEST(Allocate, the_worked_example_of_three_layers_comes_out) {
  // 2, 3 and 4 bits of 100, 200 and 100 weights.
  const std::vector<std::vector<Choice>> items = {
      {{.9, 200}, {.3, 300}, {.1, 400}}, {{.2, 400}, {.12, 600}, {.1, 800}}, {{.5, 200}, {.25, 300}, {.2, 400}}};
  EXPECT_EQ(allocate(items, 1200), (std::vector<std::size_t>{2, 0, 2}));
  EXPECT_EQ(allocate(items, 800), (std::vector<std::size_t>{0, 0, 0}));
  EXPECT_EQ(allocate(items, 1 << 30), (std::vector<std::size_t>{2, 2, 2}));
  EXPECT_WEFT_ERROR(allocate(items, 799), invalid_argument, "800");
}

TEST(Allocate, no_other_choice_within_the_budget_loses_less) {
  std::mt19937_64 generator(11);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::vector<Choice>> items(6);
    for (std::vector<Choice>& item : items)
      for (std::size_t c = 0; c < 1 + generator() % 4; ++c) item.push_back({static_cast<double>(generator() % 1000) / 7, generator() % 50});
    const std::uint64_t budget = 20 + generator() % 200;
    double best = -1;
    std::vector<std::size_t> at(items.size());
    for (bool more = true; more;) {
      double loss = 0;
      std::uint64_t size = 0;
      for (std::size_t i = 0; i < items.size(); ++i) {
        loss += items[i][at[i]].loss;
        size += items[i][at[i]].size;
      }
      if (size <= budget && (best < 0 || loss < best)) best = loss;
      more = false;
      for (std::size_t i = 0; i < items.size() && !more; ++i) {
        more = ++at[i] < items[i].size();
        if (!more) at[i] = 0;
      }
    }
    if (best < 0) {
      EXPECT_WEFT_ERROR(allocate(items, budget), invalid_argument, "budget");
      continue;
    }
    const std::vector<std::size_t> chosen = allocate(items, budget);
    double loss = 0;
    std::uint64_t size = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      loss += items[i][chosen[i]].loss;
      size += items[i][chosen[i]].size;
    }
    EXPECT_LE(size, budget);
    EXPECT_NEAR(loss, best, 1e-9);
  }
}

}  // namespace
}  // namespace weft::quantize
