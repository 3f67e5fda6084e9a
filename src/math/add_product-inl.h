#if defined(WEFT_MATH_ADD_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_MATH_ADD_PRODUCT_INL_H_
#undef WEFT_MATH_ADD_PRODUCT_INL_H_
#else
#define WEFT_MATH_ADD_PRODUCT_INL_H_
#endif

#include <cstddef>
#include <cstring>

#include "math/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::math::HWY_NAMESPACE {

using DProduct = hn::ScalableTag<double>;
inline constexpr std::size_t kProductLanes = hn::MaxLanes(DProduct());
inline constexpr std::size_t kPanel = 16;
inline constexpr std::size_t kPanelVectors = kPanel / kProductLanes;

/// One panel of kRows rows; out: kRows rows of 16.
template <std::size_t kRows>
HWY_INLINE void AddPanel(const double* left, std::size_t left_stride, const float* panel, std::size_t rank, double* out, std::size_t out_stride) {
  const DProduct d;
  // Half a panel at a time keeps the sums of four rows in registers.
  constexpr std::size_t kVectors = kPanelVectors > 2 ? 2 : kPanelVectors;
  for (std::size_t v = 0; v < kPanelVectors; v += kVectors) {
    hn::Vec<DProduct> sums[kRows][kVectors];
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t k = 0; k < kVectors; ++k) sums[r][k] = hn::LoadU(d, out + r * out_stride + (v + k) * kProductLanes);
    for (std::size_t i = 0; i < rank; ++i) {
      hn::Vec<DProduct> right[kVectors];
      for (std::size_t k = 0; k < kVectors; ++k) right[k] = LoadAsDouble(d, panel + i * kPanel + (v + k) * kProductLanes);
      for (std::size_t r = 0; r < kRows; ++r) {
        const auto factor = hn::Set(d, left[r * left_stride + i]);
        for (std::size_t k = 0; k < kVectors; ++k) sums[r][k] = hn::Add(sums[r][k], hn::Mul(factor, right[k]));
      }
    }
    for (std::size_t r = 0; r < kRows; ++r)
      for (std::size_t k = 0; k < kVectors; ++k) hn::StoreU(sums[r][k], d, out + r * out_stride + (v + k) * kProductLanes);
  }
}

template <std::size_t kRows>
HWY_INLINE void AddRows(const double* left, std::size_t left_stride, const float* panels, std::size_t rank, std::size_t columns, double* out,
                        std::size_t out_stride) {
  std::size_t j = 0;
  for (; j + kPanel <= columns; j += kPanel) AddPanel<kRows>(left, left_stride, panels + j * rank, rank, out + j, out_stride);
  if (j == columns) return;
  double last[kRows * kPanel] = {};
  for (std::size_t r = 0; r < kRows; ++r) std::memcpy(last + r * kPanel, out + r * out_stride + j, (columns - j) * sizeof(double));
  AddPanel<kRows>(left, left_stride, panels + j * rank, rank, last, kPanel);
  for (std::size_t r = 0; r < kRows; ++r) std::memcpy(out + r * out_stride + j, last + r * kPanel, (columns - j) * sizeof(double));
}

void AddProduct(const double* left, std::size_t left_stride, std::size_t rows, const float* panels, std::size_t rank, std::size_t columns,
                double* out, std::size_t out_stride) {
  std::size_t r = 0;
  for (; r + 4 <= rows; r += 4) AddRows<4>(left + r * left_stride, left_stride, panels, rank, columns, out + r * out_stride, out_stride);
  for (; r < rows; ++r) AddRows<1>(left + r * left_stride, left_stride, panels, rank, columns, out + r * out_stride, out_stride);
}

}  // namespace weft::math::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
