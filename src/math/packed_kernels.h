#pragma once
#include <cstddef>
#include <cstdint>

#include "math/packed_matrix.h"

// What each target provides. The kernels in x86's own instructions need GCC, whose pragma compiles a part of a file for other targets; with clang, by
// which the fuzz targets are built, there is the portable form.
#if defined(__x86_64__) && !defined(__clang__)
#define WEFT_PACKED_X86 1
#endif

namespace weft::math::packed {

/// Kinds of codes and scales that kernels are compiled for.
enum Form : int { plain2, plain3, plain4, plain5, plain6, plain8, k2, k3, k4, k5, k6, table4, numbers8, num_forms };

using Products = void (*)(const PackedView& matrix, const PackedInput::View& input, std::size_t first_tile, std::size_t last_tile, float* out,
                          std::size_t out_stride);
using Decode = void (*)(const PackedView& matrix, std::size_t tile, std::size_t first_unit, std::size_t num_units, float* out, std::size_t stride);

struct Kernels {
  const char* name;
  bool has_byte_products;
  Products rounded[num_forms];  ///< null where there is none
  Products fine[num_forms];     ///< of the plain ones
  Products exact[num_forms];
  Decode decode[num_forms];
  void (*round)(const float* x, std::size_t stride, std::size_t rows, std::size_t units, std::int8_t* codes, float* facts);
  void (*split)(const float* x, std::size_t stride, std::size_t rows, std::size_t units, std::int8_t* codes, float* facts);
  void (*copy)(const float* x, std::size_t stride, std::size_t rows, std::size_t units, float* values, float* facts);
};

/// Rows of x that go through a pass together.
inline constexpr std::size_t kMostRows = 64;

extern const Kernels kPortable;
#ifdef WEFT_PACKED_X86
extern const Kernels kAvx2, kAvx2Vnni, kAvx512, kAvx512Vnni;
#endif

}  // namespace weft::math::packed
