#include "math/bit_mask.h"

#include <algorithm>

#include "base/check.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/bit_mask-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/bit_mask-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(PackNonzero);
HWY_EXPORT(PackAtLeast);
HWY_EXPORT(KeepPacked);
HWY_EXPORT(ReplaceUnpacked);

void pack_nonzero(std::span<const float> values, std::span<std::uint8_t> bits) {
  WEFT_ASSERT(bits.size() == packed_bytes(values.size()));
  HWY_DYNAMIC_DISPATCH(PackNonzero)(values.data(), values.size(), bits.data());
}

void keep_packed(std::span<float> values, std::span<const std::uint8_t> bits) {
  WEFT_ASSERT(bits.size() == packed_bytes(values.size()));
  HWY_DYNAMIC_DISPATCH(KeepPacked)(values.data(), values.size(), bits.data());
}

void pack_at_or_above(std::span<const float> values, std::uint64_t first_index, float threshold, std::uint64_t last_tie_index,
                      std::span<std::uint8_t> bits) {
  WEFT_ASSERT(bits.size() == packed_bytes(values.size()));
  // In a span of consecutive indices the ties that count are a prefix.
  if (values.empty()) return;
  std::size_t num_ties = 0;
  if (last_tie_index >= first_index)
    num_ties = static_cast<std::size_t>(std::min<std::uint64_t>(last_tie_index - first_index, values.size() - 1)) + 1;
  HWY_DYNAMIC_DISPATCH(PackAtLeast)(values.data(), values.size(), threshold, num_ties, bits.data());
}

void replace_unpacked(std::span<float> values, std::span<const float> otherwise, std::span<const std::uint8_t> bits) {
  WEFT_ASSERT(bits.size() == packed_bytes(values.size()) && otherwise.size() == values.size());
  HWY_DYNAMIC_DISPATCH(ReplaceUnpacked)(values.data(), otherwise.data(), values.size(), bits.data());
}

}  // namespace weft::math
#endif
