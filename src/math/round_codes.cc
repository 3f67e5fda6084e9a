#include "math/round_codes.h"

#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/round_codes-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/round_codes-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(ExtentOf);
HWY_EXPORT(RoundToCodes);

Extent extent(std::span<const float> values) { return values.empty() ? Extent{} : HWY_DYNAMIC_DISPATCH(ExtentOf)(values.data(), values.size()); }
void round_to_codes(std::span<const float> values, float scale, float zero, float lowest, float most, std::uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(RoundToCodes)(values.data(), values.size(), scale, zero, lowest, most, codes);
}

}  // namespace weft::math
#endif
