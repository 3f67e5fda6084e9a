#pragma once
#include <cstddef>

#include "base/thread_team.h"
#include "model/weights.h"

namespace weft::model {

/// apply_linear() where the matrices stay packed. GGUF's types of integers take inputs rounded to 8 bits, whatever their number; other integers
/// take them to 24 bits where the CPU multiplies bytes. The rest takes them as they are: few rows go through the packed weights, many through tiles of
/// them that are decoded for a GEMM.
void apply_packed(const Linear& linear, const float* x, std::size_t x_stride, std::size_t num_rows, float* out, std::size_t out_stride,
                  ThreadTeam& team);

}  // namespace weft::model
