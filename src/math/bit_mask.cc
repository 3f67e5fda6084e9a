#include "math/bit_mask.h"

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
HWY_EXPORT(KeepPacked);

void pack_nonzero(std::span<const float> values, std::span<std::uint8_t> bits) {
  WEFT_ASSERT(bits.size() == packed_bytes(values.size()));
  HWY_DYNAMIC_DISPATCH(PackNonzero)(values.data(), values.size(), bits.data());
}

void keep_packed(std::span<float> values, std::span<const std::uint8_t> bits) {
  WEFT_ASSERT(bits.size() == packed_bytes(values.size()));
  HWY_DYNAMIC_DISPATCH(KeepPacked)(values.data(), values.size(), bits.data());
}

}  // namespace weft::math
#endif
