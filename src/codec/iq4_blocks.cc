#include <cmath>

#include "codec/families.h"
#include "codec/read_fields.h"
#include "math/quant_search.h"

// Four bits that name one of sixteen levels, finer near zero. IQ4_NL has a scale for each 32 values, IQ4_XS one for 256 and six bits for each 32.
namespace weft::codec::detail {
namespace {

constexpr int kFirst = -127;
constexpr float kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int kTrials = 7;

/// The nearest level; of two as near the upper.
std::uint8_t nearest_level(float x) {
  if (x <= kLevels[0]) return 0;
  if (x >= kLevels[15]) return 15;
  unsigned low = 0;
  unsigned high = 15;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (x < kLevels[middle] ? high : low) = middle;
  }
  return static_cast<std::uint8_t>(x - kLevels[low] < kLevels[high] - x ? low : high);
}

/// The scale of 32 values whose weighted squared error is smallest among those tried; 0 where there is nothing.
float search_scale(const float* x, const float* w) {
  const float largest = math::furthest_from_zero(x, 32);
  if (std::fabs(largest) < math::kNoMagnitude) return 0;
  const auto sums = [&](float inverse, float& sum_qx, float& sum_q2) {
    sum_qx = sum_q2 = 0;
    for (int i = 0; i < 32; ++i) {
      const float q = kLevels[nearest_level(inverse * x[i])];
      sum_qx += w[i] * q * x[i];
      sum_q2 += w[i] * q * q;
    }
  };
  float sum_qx = 0;
  float sum_q2 = 0;
  sums(1 / (-largest / kLevels[0]), sum_qx, sum_q2);
  float scale = sum_qx / sum_q2;
  float best = scale * sum_qx;
  for (int trial = -kTrials; trial <= kTrials; ++trial) {
    sums(static_cast<float>(trial + kFirst) / largest, sum_qx, sum_q2);
    if (sum_q2 > 0 && sum_qx * sum_qx > best * sum_q2) {
      scale = sum_qx / sum_q2;
      best = scale * sum_qx;
    }
  }
  return scale;
}

/// The scales of a block's sub-blocks of 32.
void search_scales(const float* x, const float* w, int num_sub_blocks, float* scales) {
  const int count = 32 * num_sub_blocks;
  float sigma2 = 0;
  for (int i = 0; i < count; ++i) sigma2 += x[i] * x[i];
  sigma2 *= 2.0F / static_cast<float>(count);
  for (int s = 0; s < num_sub_blocks; ++s) {
    float weights[32];
    for (int i = 0; i < 32; ++i) {
      const float v = x[32 * s + i];
      weights[i] = w != nullptr ? w[32 * s + i] * std::sqrt(sigma2 + v * v) : v * v;
    }
    scales[s] = search_scale(x + 32 * s, weights);
  }
}

void put_levels(const float* x, float inverse, std::uint8_t* out) {
  for (int i = 0; i < 16; ++i) out[i] = static_cast<std::uint8_t>(nearest_level(inverse * x[i]) | nearest_level(inverse * x[16 + i]) << 4);
}

}  // namespace

void encode_iq4_nl(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  for (std::size_t b = 0; b < row.size() / 32; ++b, out += 18) {
    const float* x = row.data() + 32 * b;
    float scale = 0;
    search_scales(x, metric.column_weights.empty() ? nullptr : metric.column_weights.data() + 32 * b, 1, &scale);
    put_half(scale, out);
    put_levels(x, scale != 0 ? 1 / scale : 0, out + 2);
  }
}

void encode_iq4_xs(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  for (std::size_t b = 0; b < row.size() / 256; ++b, out += 136) {
    const float* x = row.data() + 256 * b;
    float scales[8];
    search_scales(x, metric.column_weights.empty() ? nullptr : metric.column_weights.data() + 256 * b, 8, scales);
    const float d = -math::furthest_from_zero(scales, 8) / 32;
    const float inverse = d != 0 ? 1 / d : 0;
    put_half(d, out);
    unsigned high = 0;
    std::memset(out + 4, 0, 4);
    for (unsigned s = 0; s < 8; ++s) {
      const std::int32_t part = math::nearest_int(inverse * scales[s], -32, 31);
      const float scale = d * static_cast<float>(part);
      put_levels(x + 32 * s, scale != 0 ? 1 / scale : 0, out + 8 + 16 * s);
      const auto stored = static_cast<unsigned>(part + 32);
      out[4 + s / 2] = static_cast<std::uint8_t>(out[4 + s / 2] | (stored & 15) << (4 * (s % 2)));
      high |= stored >> 4 << (2 * s);
    }
    put_u16(static_cast<std::uint16_t>(high), out + 2);
  }
}

}  // namespace weft::codec::detail
