#include "math/bit_mask.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "math/targets.h"
#include "support/merge_data.h"

namespace weft::math {
namespace {

using weft::testing::gridded_values;

TEST(BitMask, what_was_not_zero_is_kept_and_the_rest_becomes_zero_on_every_target) {
  struct AllTargets {
    ~AllTargets() { use_only_target(0); }
  } all_targets_again;
  for (const SimdTarget& target : compiled_targets()) {
    if (!target.supported) continue;
    use_only_target(target.bit);
    ASSERT_EQ(active_target(), target.name);
    for (std::size_t n = 0; n <= 200; ++n) {
      const std::vector<float> mask = gridded_values(n, n + 1, 1, 1);  // about a third are zero
      constexpr std::uint8_t kGuard = 0xA5;
      std::vector<std::uint8_t> bits(packed_bytes(n) + 8, kGuard);
      const std::span<std::uint8_t> packed = std::span(bits).first(packed_bytes(n));
      pack_nonzero(mask, packed);
      for (std::size_t i = 0; i < 8 * packed.size(); ++i)
        ASSERT_EQ(packed[i / 8] >> (i % 8) & 1, i < n && mask[i] != 0 ? 1 : 0) << target.name << " " << i << " of " << n;
      for (std::size_t i = packed.size(); i < bits.size(); ++i) ASSERT_EQ(bits[i], kGuard) << target.name << " wrote past the end of " << n;
      std::vector<float> values(n + 16, 7.0F);
      keep_packed(std::span(values).first(n), packed);
      for (std::size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(values[i], i < n && mask[i] == 0 ? 0.0F : 7.0F) << target.name << " " << i << " of " << n;
    }
  }
}

TEST(BitMask, what_ranks_at_or_above_a_pair_is_packed_and_the_rest_replaced_on_every_target) {
  struct AllTargets {
    ~AllTargets() { use_only_target(0); }
  } all_targets_again;
  for (const SimdTarget& target : compiled_targets()) {
    if (!target.supported) continue;
    use_only_target(target.bit);
    for (std::size_t n = 0; n <= 150; ++n) {
      std::vector<float> keys = gridded_values(n, n + 1, 1, 0.5);
      for (float& key : keys) key = std::abs(key);
      constexpr std::uint64_t kFirst = 1000;
      for (const std::uint64_t last : {std::uint64_t{0}, kFirst - 1, kFirst, kFirst + 13, kFirst + n / 2, kFirst + n, ~std::uint64_t{0}}) {
        constexpr std::uint8_t kGuard = 0xA5;
        std::vector<std::uint8_t> bits(packed_bytes(n) + 8, kGuard);
        const std::span<std::uint8_t> packed = std::span(bits).first(packed_bytes(n));
        pack_at_or_above(keys, kFirst, 0.5F, last, packed);
        for (std::size_t i = 0; i < 8 * packed.size(); ++i) {
          const bool want = i < n && (keys[i] > 0.5F || (keys[i] == 0.5F && kFirst + i <= last));
          ASSERT_EQ(packed[i / 8] >> (i % 8) & 1, want ? 1 : 0) << target.name << " " << i << " of " << n << ", ties to " << last;
        }
        for (std::size_t i = packed.size(); i < bits.size(); ++i) ASSERT_EQ(bits[i], kGuard) << target.name << " wrote past the end of " << n;
        std::vector<float> values(n + 16, 7.0F);
        std::vector<float> otherwise(n);
        for (std::size_t i = 0; i < n; ++i) otherwise[i] = static_cast<float>(i);
        replace_unpacked(std::span(values).first(n), otherwise, packed);
        for (std::size_t i = 0; i < values.size(); ++i) {
          const bool kept = i >= n || (packed[i / 8] >> (i % 8) & 1) != 0;
          ASSERT_EQ(values[i], kept ? 7.0F : otherwise[i]) << target.name << " " << i << " of " << n;
        }
      }
    }
  }
}

}  // namespace
}  // namespace weft::math
