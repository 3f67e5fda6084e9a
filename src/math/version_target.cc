#include "math/targets.h"
#include "weft/version.h"

namespace weft {

// The rest of version.h lives in base, which must not know the kernels.
std::string simd_target() { return math::active_target(); }

}  // namespace weft
