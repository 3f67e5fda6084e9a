#include "math/integer_grid.h"

#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/integer_grid-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/integer_grid-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(GridError);

double integer_grid_error(const float* values, const float* weights, std::size_t n, const IntegerGrid& grid, double enough) {
  return HWY_DYNAMIC_DISPATCH(GridError)(values, weights, n, grid, enough);
}

}  // namespace weft::math
#endif
