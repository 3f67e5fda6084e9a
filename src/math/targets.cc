#include "math/targets.h"

#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "math/simd_config.h"
#include "weft/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/targets-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/targets-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(OwnTarget);

namespace {

/// What this machine can run, whatever use_only_target() has restricted since. The portable target runs everywhere.
std::int64_t machine_targets() {
  static const std::int64_t targets = (hwy::SupportedTargets() & HWY_TARGETS) | (HWY_TARGETS & (HWY_SCALAR | HWY_EMU128));
  return targets;
}

std::atomic<std::int64_t> only_target{0};

}  // namespace

std::int64_t allowed_targets() {
  const std::int64_t only = only_target.load(std::memory_order_relaxed);
  return only != 0 ? only : machine_targets();
}

std::vector<SimdTarget> compiled_targets() {
  std::vector<SimdTarget> targets;
  // A lower bit is a better target.
  for (std::int64_t rest = HWY_TARGETS; rest != 0; rest &= rest - 1) {
    const std::int64_t bit = rest & -rest;
    targets.push_back({.name = hwy::TargetName(bit), .bit = bit, .supported = (machine_targets() & bit) != 0});
  }
  return targets;
}

std::string active_target() { return hwy::TargetName(HWY_DYNAMIC_DISPATCH(OwnTarget)()); }

void use_only_target(std::int64_t bit) {
  static_cast<void>(machine_targets());  // before the restriction hides the others
  only_target.store(bit, std::memory_order_relaxed);
  hwy::SetSupportedTargetsForTest(bit);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void apply_target_from_environment() {
  const char* wanted = std::getenv("WEFT_SIMD");
  if (wanted == nullptr || *wanted == '\0') return;
  std::string usable;
  for (const SimdTarget& target : compiled_targets()) {
    if (!target.supported) continue;
    if (target.name == wanted) return use_only_target(target.bit);
    usable += (usable.empty() ? "" : ", ") + target.name;
  }
  throw Error(ErrorCode::invalid_argument, "WEFT_SIMD names '" + std::string(wanted) + "', which this machine or this build cannot run",
              {.key = "WEFT_SIMD"}, "use one of: " + usable);
}

}  // namespace weft::math
#endif
