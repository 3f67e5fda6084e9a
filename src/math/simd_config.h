#pragma once
// Included before Highway, in every file that includes it. The kernels hold arrays of vectors (16 partial sums), which the types of scalable vectors
// forbid; such CPUs run NEON or the portable code.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
