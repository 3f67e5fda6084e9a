#include "base/torch_random.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace weft {
namespace {

// Printed by torch 2.15.

TEST(TorchRandom, permutations_begin_as_those_of_pytorch) {
  EXPECT_EQ(TorchRandom(777).permutation(64 * 48, 8), (std::vector<std::uint64_t>{1127, 1744, 1773, 2960, 851, 516, 1659, 1904}));
  EXPECT_EQ(TorchRandom(0).permutation(5, 5), (std::vector<std::uint64_t>{4, 0, 1, 3, 2}));
  EXPECT_EQ(TorchRandom(0).permutation(5, 9).size(), 5u);
  EXPECT_EQ(TorchRandom(0).permutation(0, 9).size(), 0u);
  std::vector<std::uint64_t> all = TorchRandom(3).permutation(1000, 1000);
  EXPECT_EQ(std::vector<std::uint64_t>(all.begin(), all.begin() + 10), TorchRandom(3).permutation(1000, 10));
  std::sort(all.begin(), all.end());
  for (std::uint64_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], i);
}

TEST(SlowTorchRandom, permutations_of_many_numbers_are_drawn_another_way) {
  EXPECT_EQ(TorchRandom(5).permutation(4294967295 / 20 + 7, 20),
            (std::vector<std::uint64_t>{91252029, 200188117, 89143689,  193777243, 63032797, 86211230,  118982567, 77878345,  149589347, 29618193,
                                        32963061, 96182610,  152261271, 118956817, 60422443, 127379095, 95375171,  207842751, 22263589,  106574556}));
}

TEST(TorchRandom, uniform_numbers_are_those_of_pytorch_bit_for_bit) {
  TorchRandom random((std::uint64_t{1} << 40) + 5);  // the low half of the seed counts
  std::vector<float> values(4);
  random.uniform(-0.123F, 0.123F, values);
  EXPECT_EQ(values, (std::vector<float>{0x1.4cc4600000000p-4F, -0x1.78bc940000000p-4F, 0x1.9a92b00000000p-4F, 0x1.425d160000000p-4F}));
  EXPECT_EQ(random.permutation(1000, 3), (std::vector<std::uint64_t>{6, 872, 414}));
  TorchRandom later(5);
  later.skip(4);
  EXPECT_EQ(later.permutation(1000, 3), (std::vector<std::uint64_t>{6, 872, 414}));
}

}  // namespace
}  // namespace weft
