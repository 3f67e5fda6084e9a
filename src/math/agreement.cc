#include "math/agreement.h"

#include "base/check.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/agreement-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/agreement-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(DeltaVariances);
HWY_EXPORT(AddAgreeingMean);

void delta_variances(std::span<const float> base, std::span<const float* const> models, std::span<float> out) {
  WEFT_ASSERT(base.size() == out.size() && !models.empty());
  HWY_DYNAMIC_DISPATCH(DeltaVariances)(base.data(), models.data(), models.size(), out.size(), out.data());
}

void add_agreeing_mean(std::span<const float> base, std::span<const float* const> models, std::span<const double> weights, double smallest_divisor,
                       std::span<float> out) {
  WEFT_ASSERT(base.size() == out.size() && models.size() == weights.size());
  HWY_DYNAMIC_DISPATCH(AddAgreeingMean)(base.data(), models.data(), weights.data(), models.size(), smallest_divisor, out.size(), out.data());
}

}  // namespace weft::math
#endif
