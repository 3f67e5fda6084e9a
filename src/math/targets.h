#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace weft::math {

/// A SIMD target that the kernels are compiled for, in order of preference.
struct SimdTarget {
  std::string name;       ///< "AVX3", "AVX2", "SSE4", ...
  std::int64_t bit = 0;
  bool supported = false; ///< by this machine
};

[[nodiscard]] std::vector<SimdTarget> compiled_targets();
/// The one that the next kernel call will use.
[[nodiscard]] std::string active_target();
/// Bits of the targets that kernels may use. The machine is asked once: to ask it again is hundreds of times slower than a small kernel where a
/// hypervisor answers.
[[nodiscard]] std::int64_t allowed_targets();
/// Restricts the kernels to one target (0: all again). For tests and for the environment variable WEFT_SIMD; not while kernels run.
void use_only_target(std::int64_t bit);
/// Applies WEFT_SIMD (a target's name) if set; throws invalid_argument for a name that is unknown or unsupported here.
void apply_target_from_environment();

}  // namespace weft::math
