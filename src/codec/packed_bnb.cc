#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "codec/packed_linear.h"
#include "codec/stored_tensor.h"
#include "math/convert.h"
#include "weft/error.h"

// bitsandbytes' layouts.
namespace weft::codec {
namespace {

constexpr std::size_t kNestedBlock = 256;

using detail::stored;

/// The 256 values that 8-bit codes of the "dynamic" map stand for: seven decades, each cut more finely than the one below.
std::array<float, 256> make_dynamic_map() {
  std::vector<float> values;
  for (int i = 0; i < 7; ++i) {
    const int steps = 1 << i;
    // As torch.linspace counts: from both ends, by a step in float32, each sum rounded once.
    const float step = (1.0F - 0.1F) / static_cast<float>(steps);
    const auto boundary = [steps, step](int k) {
      return k < (steps + 1) / 2 ? static_cast<float>(static_cast<double>(0.1F) + static_cast<double>(step) * k)
                                 : static_cast<float>(1.0 - static_cast<double>(step) * (steps - k));
    };
    for (int k = 0; k < steps; ++k) {
      const float middle = (boundary(k) + boundary(k + 1)) / 2.0F;
      const auto value = static_cast<float>(std::pow(10.0, i - 6)) * middle;
      values.push_back(value);
      values.push_back(-value);
    }
  }
  values.push_back(0);
  values.push_back(1);
  std::sort(values.begin(), values.end());
  std::array<float, 256> map{};
  std::copy(values.begin(), values.end(), map.begin());
  return map;
}

/// The tool looks numbers of [-1, 1] up by their nearest of 65536 steps, of which none is 0.
std::uint8_t nearest_in(const std::array<float, 256>& map, float value) {
  constexpr float kSteps = 65535;
  const float index = std::floor((std::clamp(value, -1.0F, 1.0F) + 1.0F) * 0.5F * kSteps + 0.5F);
  const double step = -1.0 + 2.0 * static_cast<double>(index) / kSteps;
  const auto above = std::lower_bound(map.begin(), map.end(), step, [](float a, double b) { return static_cast<double>(a) < b; });
  if (above == map.begin()) return 0;
  if (above == map.end()) return 255;
  const auto at = static_cast<std::uint8_t>(above - map.begin());
  return step - map[at - 1U] > map[at] - step ? at : static_cast<std::uint8_t>(at - 1);
}

/// The sum of float32 numbers as torch adds them up with vectors of eight: in four vectors at a time and, of long rows, in cascades; its last bit is
/// in the files that the tool writes.
float torch_sum(std::span<const float> values) {
  constexpr std::size_t kLanes = 8, kRows = 4, kLevels = 4;
  using Vector = std::array<float, kLanes>;
  const auto add = [](Vector& to, const float* from) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) to[lane] += from[lane];
  };
  const std::size_t num_vectors = values.size() / kLanes, size = num_vectors / kRows;
  std::size_t log = 0;
  while ((std::size_t{1} << log) < size) ++log;
  const std::size_t power = std::max<std::size_t>(4, log / kLevels), step = std::size_t{1} << power;
  std::array<std::array<Vector, kRows>, kLevels> sums{};
  std::size_t i = 0;
  const auto take = [&] {
    for (std::size_t row = 0; row < kRows; ++row) add(sums[0][row], values.data() + (i * kRows + row) * kLanes);
    ++i;
  };
  while (i + step <= size) {
    for (std::size_t j = 0; j < step; ++j) take();
    for (std::size_t level = 1; level < kLevels; ++level) {
      for (std::size_t row = 0; row < kRows; ++row) {
        add(sums[level][row], sums[level - 1][row].data());
        sums[level - 1][row] = {};
      }
      if ((i & (step - 1) << (level * power)) != 0) break;
    }
  }
  while (i < size) take();
  for (std::size_t level = 1; level < kLevels; ++level)
    for (std::size_t row = 0; row < kRows; ++row) add(sums[0][row], sums[level][row].data());
  for (std::size_t v = size * kRows; v < num_vectors; ++v) add(sums[0][0], values.data() + v * kLanes);
  for (std::size_t row = 1; row < kRows; ++row) add(sums[0][0], sums[0][row].data());
  float sum = 0;
  for (std::size_t k = num_vectors * kLanes; k < values.size(); ++k) sum += values[k];
  for (const float lane : sums[0][0]) sum += lane;
  return sum;
}

/// Python's repr of a float64.
std::string python_number(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

}  // namespace

std::vector<StoredTensor> write_bnb4(std::span<const float> weights, std::int64_t rows, std::int64_t columns, DType weight_type, Levels levels,
                                     std::int64_t block, bool nested) {
  const std::size_t size = weights.size(), step = static_cast<std::size_t>(block), num_blocks = (size + step - 1) / step;
  std::vector<float> absmax(num_blocks);
  std::vector<std::uint8_t> bytes((size + 1) / 2);
  const std::uint8_t empty = levels == Levels::nf4 ? 7 : 0;
  for (std::size_t b = 0; b < num_blocks; ++b) {
    const std::size_t end = std::min(size, (b + 1) * step);
    for (std::size_t i = b * step; i < end; ++i) absmax[b] = std::max(absmax[b], std::fabs(weights[i]));
    const float inverse = 1.0F / absmax[b];
    for (std::size_t i = b * step; i < end; ++i) {
      const std::uint8_t code = absmax[b] == 0 ? empty : nearest_level(levels, weights[i] * inverse);
      bytes[i / 2] = static_cast<std::uint8_t>(bytes[i / 2] | (i % 2 == 0 ? code << 4 : code));
    }
  }
  if (size % 2 != 0) bytes.back() = static_cast<std::uint8_t>(bytes.back() | empty);
  const std::string type = levels == Levels::nf4 ? "nf4" : "fp4";
  std::string state = fmt::format(R"({{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}, {}])", type, block,
                                  info(weight_type).torch_name, rows, columns);
  std::vector<StoredTensor> out;
  out.push_back(stored("weight", DType::u8, {static_cast<std::int64_t>(bytes.size()), 1}, bytes));
  if (nested) {
    const float offset = torch_sum(absmax) / static_cast<float>(std::max<std::size_t>(1, num_blocks));
    static const std::array<float, 256> kMap = make_dynamic_map();
    std::vector<std::uint8_t> codes(num_blocks);
    std::vector<float> outer((num_blocks + kNestedBlock - 1) / kNestedBlock);
    for (std::size_t b = 0; b < num_blocks; ++b) outer[b / kNestedBlock] = std::max(outer[b / kNestedBlock], std::fabs(absmax[b] - offset));
    for (std::size_t b = 0; b < num_blocks; ++b) {
      const float scale = outer[b / kNestedBlock];
      codes[b] = nearest_in(kMap, scale == 0 ? 0.0F : (absmax[b] - offset) / scale);
    }
    out.push_back(stored("weight.absmax", DType::u8, {static_cast<std::int64_t>(num_blocks)}, codes));
    out.push_back(stored("weight.nested_absmax", DType::f32, {static_cast<std::int64_t>(outer.size())}, outer));
    out.push_back(stored("weight.nested_quant_map", DType::f32, {256}, std::vector<float>(kMap.begin(), kMap.end())));
    state += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {})", kNestedBlock, python_number(offset));
  } else {
    out.push_back(stored("weight.absmax", DType::f32, {static_cast<std::int64_t>(num_blocks)}, absmax));
  }
  state += "}";
  std::vector<float> map(16);
  for (std::size_t code = 0; code < 16; ++code) map[code] = level(levels, static_cast<std::uint8_t>(code));
  out.push_back(stored("weight.quant_map", DType::f32, {16}, map));
  out.push_back(stored(fmt::format("weight.quant_state.bitsandbytes__{}", type), DType::u8, {static_cast<std::int64_t>(state.size())},
                       std::vector<char>(state.begin(), state.end())));
  return out;
}

std::vector<StoredTensor> write_bnb8(std::span<const float> weights, std::int64_t rows, std::int64_t columns) {
  std::vector<float> largest(static_cast<std::size_t>(rows));
  std::vector<std::int8_t> codes(weights.size());
  for (std::size_t r = 0; r < largest.size(); ++r) {
    const auto width = static_cast<std::size_t>(columns);
    std::vector<float> row(weights.begin() + static_cast<std::ptrdiff_t>(r * width), weights.begin() + static_cast<std::ptrdiff_t>((r + 1) * width));
    math::round_through(DType::f16, row);
    for (const float value : row) largest[r] = std::max(largest[r], std::fabs(value));
    if (largest[r] == 0) continue;
    const float inverse = 127.0F * (1.0F / largest[r]);  // two roundings, as the tool has them
    for (std::size_t c = 0; c < width; ++c) codes[r * width + c] = static_cast<std::int8_t>(std::nearbyint(row[c] * inverse));
  }
  std::vector<StoredTensor> out;
  out.push_back(stored("weight", DType::i8, {rows, columns}, codes));
  out.push_back(stored("SCB", DType::f32, {rows}, largest));
  out.push_back(stored("weight_format", DType::u8, {}, std::vector<std::uint8_t>{0}));
  return out;
}

}  // namespace weft::codec
