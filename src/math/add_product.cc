#include "math/add_product.h"

#include <algorithm>

#include "base/check.h"
#include "math/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math/add_product-inl.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "math/add_product-inl.h"

#if HWY_ONCE
namespace weft::math {

HWY_EXPORT(AddProduct);

namespace {
constexpr std::size_t kPanelColumns = 16;
}

PanelMatrix pack_matrix(std::span<const float> values, std::size_t rank, std::size_t columns) {
  WEFT_ASSERT(values.size() == rank * columns);
  PanelMatrix packed;
  packed.rank = rank;
  packed.columns = columns;
  packed.panels.assign((columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns * rank, 0.0F);
  for (std::size_t j = 0; j < columns; j += kPanelColumns) {
    const std::size_t width = std::min(kPanelColumns, columns - j);
    for (std::size_t i = 0; i < rank; ++i) std::copy_n(values.data() + i * columns + j, width, packed.panels.data() + j * rank + i * kPanelColumns);
  }
  return packed;
}

void add_product(const double* left, std::size_t left_stride, std::size_t rows, const PanelMatrix& right, double* out, std::size_t out_stride) {
  HWY_DYNAMIC_DISPATCH(AddProduct)(left, left_stride, rows, right.panels.data(), right.rank, right.columns, out, out_stride);
}

}  // namespace weft::math
#endif
