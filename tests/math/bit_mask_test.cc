#include "math/bit_mask.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace weft::math
