#include "model/packed_linear.h"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "math/gemm.h"
#include "math/neural.h"

namespace weft::model {
namespace {

using math::kTileLanes;
using math::PackedInput;
using math::PackedInputs;
using math::PackedMatrix;
using math::PackedType;

/// Up to here rows of x multiply with codes where no integers do; more of them repay decoding.
constexpr std::size_t kMostExactRows = 16;
/// Of tiles that go through a few rows of x, and through blocks of many: these stay in the second-level cache beside a block of x.
constexpr std::size_t kTilesOfMany = 4;
/// Decoded at a time: rows in tiles, and columns.
constexpr std::size_t kDecodedTiles = 8;
constexpr std::size_t kDecodedColumns = 2048;
/// Matrices below this are not worth waking threads for.
constexpr std::uint64_t kSmallBytes = std::uint64_t{128} << 10;

/// How a matrix takes so many rows of x; nothing: it is decoded.
std::optional<PackedInputs> inputs_for(const PackedMatrix& matrix, std::size_t num_rows) {
  if (matrix.can_round_inputs() && matrix.format().type != PackedType::integer) return PackedInputs::rounded;
  if (matrix.can_split_inputs() && math::has_byte_products()) return PackedInputs::fine;
  if (num_rows <= kMostExactRows) return PackedInputs::exact;
  return std::nullopt;
}

}  // namespace

void apply_packed(const Linear& linear, const float* x, std::size_t x_stride, std::size_t num_rows, float* out, std::size_t out_stride,
                  ThreadTeam& team) {
  std::array<std::optional<PackedInput>, 3> inputs;  // by kind
  for (const PackedMatrix& matrix : linear.packed) {
    const std::optional<PackedInputs> kind = inputs_for(matrix, num_rows);
    if (!kind) continue;
    std::optional<PackedInput>& input = inputs[static_cast<std::size_t>(*kind)];
    if (input) continue;
    input.emplace(*kind, num_rows, linear.columns);
    if (input->num_blocks() == 1)
      input->fill(0, x, x_stride);
    else
      team.for_each(input->num_blocks(), [&](std::size_t block, int) { input->fill(block, x, x_stride); });
  }

  // Tiles of all matrices, cut so that no unit spans two. Each output is one sum, whatever the cut.
  struct Unit {
    const PackedMatrix* matrix;
    std::size_t first_row, first_tile, last_tile;
  };
  std::vector<Unit> units;
  const std::uint64_t size_bytes = linear.size_bytes();
  const std::size_t all_tiles = (linear.rows + kTileLanes - 1) / kTileLanes;
  const std::size_t few = size_bytes * num_rows < kSmallBytes ? 1 : static_cast<std::size_t>(team.num_threads()) * 4;
  const std::size_t share = std::max<std::size_t>((all_tiles + few - 1) / few, 1);
  std::size_t first_row = 0;
  for (const PackedMatrix& matrix : linear.packed) {
    const std::size_t step = num_rows <= kMostExactRows ? share : inputs_for(matrix, num_rows) ? kTilesOfMany : kDecodedTiles;
    for (std::size_t tile = 0; tile < matrix.num_tiles(); tile += step)
      units.push_back({&matrix, first_row, tile, std::min(tile + step, matrix.num_tiles())});
    first_row += matrix.rows();
  }

  team.for_each(units.size(), [&](std::size_t index, int) {
    const Unit& unit = units[index];
    const PackedMatrix& matrix = *unit.matrix;
    float* to = out + unit.first_row;
    const std::size_t first = unit.first_tile * kTileLanes, end = std::min(unit.last_tile * kTileLanes, matrix.rows());
    if (const std::optional<PackedInputs> kind = inputs_for(matrix, num_rows)) {
      packed_products(matrix, unit.first_tile, unit.last_tile, *inputs[static_cast<std::size_t>(*kind)], to, out_stride);
    } else {
      thread_local std::vector<float> decoded;
      const std::size_t tiles = unit.last_tile - unit.first_tile, stride = tiles * kTileLanes;
      for (std::size_t begin = 0; begin < matrix.columns(); begin += kDecodedColumns) {
        const std::size_t width = std::min(kDecodedColumns, matrix.columns() - begin);
        decoded.resize(width * stride);
        matrix.decode(unit.first_tile, tiles, begin, width, decoded.data(), stride);
        math::gemm_nn(num_rows, end - first, width, x + begin, x_stride, decoded.data(), stride, to + first, out_stride,
                      begin == 0 ? math::Sum::replace : math::Sum::add);
      }
    }
    if (linear.bias.empty()) return;
    for (std::size_t t = 0; t < num_rows; ++t)
      math::add_to(linear.bias.data() + unit.first_row + first, out + t * out_stride + unit.first_row + first, end - first);
  });
}

}  // namespace weft::model
