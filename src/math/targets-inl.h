#if defined(WEFT_MATH_TARGETS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_TARGETS_INL_H_
#undef WEFT_MATH_TARGETS_INL_H_
#else
#define WEFT_MATH_TARGETS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

/// Tells which copy of the kernels the dispatcher really calls.
std::int64_t OwnTarget() { return HWY_TARGET; }

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
