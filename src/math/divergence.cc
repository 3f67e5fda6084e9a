#include "math/divergence.h"

#include <algorithm>

#include "base/check.h"
#include "math/reduce.h"
#include "math/reduce_order.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/divergence-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/divergence-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(Exponentials);
HWY_EXPORT(DivergenceSums);
HWY_EXPORT(ScaledChanges);
HWY_EXPORT(TakeLargeChanges);

namespace {

constexpr float kSmallExponent = 0.34F;

/// exp(x), up to a factor that is the same for all of x; returns one over their sum.
double exponentials(std::span<const float> x, bool small, double* out) {
  const double shift = small ? 0.0 : -static_cast<double>(*std::max_element(x.begin(), x.end()));
  Partials partials;
  HWY_DYNAMIC_DISPATCH(Exponentials)(x.data(), small, shift, x.size(), out, partials.sums.data());
  return 1 / add_partials(partials);
}

}  // namespace

double softmax_divergence(std::span<const float> a, std::span<const float> b, double added, std::vector<double>& scratch) {
  WEFT_ASSERT(a.size() == b.size() && !a.empty());
  scratch.resize(2 * a.size());
  double* const exp_a = scratch.data();
  double* const exp_b = exp_a + a.size();
  // Weights are small as a rule: then nothing can overflow, and a short series does.
  const bool small = max_abs(a) <= kSmallExponent && max_abs(b) <= kSmallExponent;
  const double scale_a = exponentials(a, small, exp_a);
  const double scale_b = exponentials(b, small, exp_b);
  Partials partials;
  HWY_DYNAMIC_DISPATCH(DivergenceSums)(exp_a, scale_a, exp_b, scale_b, added, a.size(), partials.sums.data());
  return std::max(add_partials(partials), 0.0);
}

void scaled_changes(std::span<const float> x, std::span<const float> y, double scale, std::span<float> out) {
  WEFT_ASSERT(x.size() == out.size() && y.size() == out.size());
  HWY_DYNAMIC_DISPATCH(ScaledChanges)(x.data(), y.data(), scale, out.size(), out.data());
}

void take_large_changes(std::span<const float> base, std::span<const float> other, double scale, float least, std::span<float> out) {
  WEFT_ASSERT(base.size() == out.size() && other.size() == out.size());
  HWY_DYNAMIC_DISPATCH(TakeLargeChanges)(base.data(), other.data(), scale, least, out.size(), out.data());
}

}  // namespace weft::math
#endif
