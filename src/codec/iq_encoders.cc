#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

#include "codec/families.h"
#include "codec/iq_lattice.h"
#include "codec/read_fields.h"
#include "math/quant_search.h"

// Encoders of the lattice types. A scale is tried, each group of values becomes the nearest combination of levels, and where the lattice lacks that,
// the best of the points near it; the scale that fits the outcome best stays. Every sum in the order of the format's reference.
namespace weft::codec::detail {
namespace {

constexpr int kBlock = 256;

/// The weights of a block: importance times what a value of this size matters, or without importance the rule of the type.
enum class Plain {
  squares,     ///< x^2
  with_floor,  ///< x^2 and a quarter of the block's mean square
  all_alike,   ///< as if every importance were one
};

float mean_square(const float* x, float factor) {
  float sum = 0;
  for (int i = 0; i < kBlock; ++i) sum += x[i] * x[i];
  return factor * sum / kBlock;
}

void weigh(const float* x, const float* importance, int count, float sigma2, Plain plain, float* out) {
  for (int i = 0; i < count; ++i) {
    if (importance != nullptr)
      out[i] = importance[i] * std::sqrt(sigma2 + x[i] * x[i]);
    else if (plain == Plain::squares)
      out[i] = x[i] * x[i];
    else if (plain == Plain::with_floor)
      out[i] = 0.25F * sigma2 + x[i] * x[i];
    else
      out[i] = std::sqrt(sigma2 + x[i] * x[i]);
  }
}

/// Magnitudes of eight values, and their signs as bits.
std::uint8_t split_signs(const float* x, float* magnitudes) {
  unsigned signs = 0;
  for (int i = 0; i < 8; ++i) {
    const bool positive = x[i] >= 0;
    magnitudes[i] = positive ? x[i] : -x[i];
    if (!positive) signs |= 1U << i;
  }
  return static_cast<std::uint8_t>(signs);
}

/// The same where only seven signs are stored and the number of negative ones must be even: the value whose sign matters least gives way.
std::uint8_t split_even_signs(const float* x, const float* w, float* magnitudes) {
  unsigned signs = split_signs(x, magnitudes);
  if (std::popcount(signs) % 2 == 1) {
    int least = 0;
    float smallest = w[0] * x[0] * x[0];
    for (int i = 1; i < 8; ++i) {
      const float cost = w[i] * x[i] * x[i];
      if (cost < smallest) {
        smallest = cost;
        least = i;
      }
    }
    magnitudes[least] = -magnitudes[least];
    signs ^= 1U << least;
  }
  return static_cast<std::uint8_t>(signs & 127);
}

float largest_of(const float* x, int count) {
  float largest = x[0];
  for (int i = 1; i < count; ++i) largest = largest > x[i] ? largest : x[i];
  return largest;
}

/// The point for a group whose nearest levels are given; levels become the point's. Level l stands for (2 l + 1) scales.
std::int32_t settle(const Lattice& lattice, const float* x, const float* w, float scale, std::uint8_t* levels, bool& on_grid) {
  const std::int32_t place = lattice.at[static_cast<std::size_t>(lattice.combination(levels))];
  on_grid = place >= 0;
  if (on_grid) return place;
  float best = FLT_MAX;
  std::int32_t found = -1;
  for (const std::uint16_t point : lattice.neighbours(place)) {
    const auto& candidate = lattice.points[point];
    float distance = 0;
    for (int i = 0; i < lattice.dimensions; ++i) {
      const auto q = static_cast<float>(2 * candidate[static_cast<std::size_t>(i)] + 1);
      const float diff = scale * q - x[i];
      distance += w[i] * diff * diff;
    }
    if (distance < best) {
      best = distance;
      found = point;
    }
  }
  // Weights that are no numbers leave nothing to choose by.
  if (found < 0) found = lattice.neighbours(place).front();
  for (int i = 0; i < lattice.dimensions; ++i) levels[i] = lattice.points[static_cast<std::size_t>(found)][static_cast<std::size_t>(i)];
  return found;
}

std::uint8_t level_of(float x, float inverse, int num_levels) {
  return static_cast<std::uint8_t>(math::nearest_int(0.5F * (inverse * x - 1), 0, num_levels - 1));
}

/// The best scale of levels that are chosen, and how much of the values it explains.
struct Fit {
  float sum_qx = 0;
  float sum_q2 = 0;
};
Fit fit_of(const float* x, const float* w, const std::uint8_t* levels, int count) {
  Fit fit;
  for (int i = 0; i < count; ++i) {
    const auto q = static_cast<float>(2 * levels[i] + 1);
    fit.sum_qx += w[i] * x[i] * q;
    fit.sum_q2 += w[i] * q * q;
  }
  return fit;
}

/// How scales of a sub-block are tried.
struct Trials {
  int count;  ///< on either side
  float step;
  float smallest;            ///< sub-blocks below are zero
  bool always_settle_again;  ///< also groups that were on the lattice are chosen again at the end
};

/// A sub-block's scale, 0 when it is empty, and its points. x: magnitudes, perhaps one below zero.
template <int kCount>
float search_points(const Lattice& lattice, const float* x, const float* w, const Trials& trials, std::int32_t* points) {
  const int width = lattice.dimensions;
  const int num_groups = kCount / width;
  const int top = 2 * lattice.num_levels - 1;  // what the highest level stands for
  std::uint8_t levels[kCount] = {};
  std::uint8_t trial[kCount];
  bool on_grid[kCount / 4], trial_on_grid[kCount / 4];
  float root[kCount];
  std::fill_n(on_grid, num_groups, !trials.always_settle_again);
  const auto number = [&] {
    for (int g = 0; g < num_groups; ++g) points[g] = lattice.at[static_cast<std::size_t>(lattice.combination(levels + width * g))];
  };
  for (int i = 0; i < kCount; ++i) root[i] = std::sqrt(w[i]);
  const float largest = largest_of(x, kCount);
  if (largest < trials.smallest) {
    number();
    return 0;
  }
  float best = 0;
  float scale = largest / static_cast<float>(top);
  for (int t = -trials.count; t <= trials.count; ++t) {
    const float inverse = (static_cast<float>(top) + static_cast<float>(t) * trials.step) / largest;
    const float this_scale = 1 / inverse;
    for (int g = 0; g < num_groups; ++g) {
      for (int i = width * g; i < width * (g + 1); ++i) trial[i] = level_of(x[i], inverse, lattice.num_levels);
      settle(lattice, x + width * g, root + width * g, this_scale, trial + width * g, trial_on_grid[g]);
    }
    const Fit fit = fit_of(x, w, trial, kCount);
    if (fit.sum_q2 > 0 && fit.sum_qx * fit.sum_qx > best * fit.sum_q2) {
      scale = fit.sum_qx / fit.sum_q2;
      best = scale * fit.sum_qx;
      std::copy_n(trial, kCount, levels);
      std::copy_n(trial_on_grid, num_groups, on_grid);
    }
  }
  if (scale > 0 && std::count(on_grid, on_grid + num_groups, false) > 0) {
    const float inverse = 1 / scale;
    for (int g = 0; g < num_groups; ++g) {
      if (on_grid[g] && !trials.always_settle_again) continue;
      for (int i = width * g; i < width * (g + 1); ++i) levels[i] = level_of(x[i], inverse, lattice.num_levels);
      bool ignored = false;
      settle(lattice, x + width * g, root + width * g, scale, levels + width * g, ignored);
    }
    const Fit fit = fit_of(x, w, levels, kCount);
    if (fit.sum_q2 > 0) scale = fit.sum_qx / fit.sum_q2;
  }
  number();
  return scale;
}

/// The code of a sub-block's scale: it stands for (2 code + 1) units.
unsigned scale_code(float scale, float inverse, int most) { return static_cast<unsigned>(math::nearest_int(0.5F * (inverse * scale - 1), 0, most)); }

const float* importance_at(const Metric& metric, std::size_t value) {
  return metric.column_weights.empty() ? nullptr : metric.column_weights.data() + value;
}

}  // namespace

void encode_iq2_xxs(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  const Lattice& lattice = iq2_xxs_lattice();
  constexpr int kTop = 3;
  for (std::size_t b = 0; b < row.size() / kBlock; ++b, out += 66) {
    const float* x = row.data() + kBlock * b;
    const float sigma2 = mean_square(x, 1);
    std::memset(out, 0, 66);
    float scales[8];
    std::uint32_t words[16] = {};
    float most = 0;
    for (std::size_t s = 0; s < 8; ++s) {
      const float* xs = x + 32 * s;
      const float* own = importance_at(metric, kBlock * b + 32 * s);
      float w[32], root[32], magnitudes[32];
      weigh(xs, own, 32, sigma2, Plain::all_alike, w);
      for (int i = 0; i < 32; ++i) root[i] = std::sqrt(w[i]);
      std::uint32_t signs = 0;
      for (int g = 0; g < 4; ++g) signs |= static_cast<std::uint32_t>(split_even_signs(xs + 8 * g, w + 8 * g, magnitudes + 8 * g)) << (7 * g);
      std::uint8_t levels[32] = {};
      scales[s] = 0;
      const float largest = largest_of(magnitudes, 32);
      // Unlike the others this type starts from the best plain grid of four levels.
      float scale = largest < math::kNoMagnitude ? 0 : math::search_positive(32, kTop + 1, magnitudes, w, levels);
      const float reach = scale * static_cast<float>(kTop);
      if (largest < math::kNoMagnitude || !(reach > 0)) continue;  // the words stay zero
      float best = 0;
      for (int t = -6; t <= 6; ++t) {
        const float inverse = (2 * kTop - 1 + static_cast<float>(t) * 0.1F) / reach;
        const float this_scale = 1 / inverse;
        std::uint8_t trial[32];
        for (int g = 0; g < 4; ++g) {
          for (int i = 8 * g; i < 8 * g + 8; ++i) trial[i] = level_of(magnitudes[i], inverse, kTop);
          bool ignored = false;
          settle(lattice, magnitudes + 8 * g, root + 8 * g, this_scale, trial + 8 * g, ignored);
        }
        const Fit fit = fit_of(magnitudes, w, trial, 32);
        if (fit.sum_q2 > 0 && fit.sum_qx * fit.sum_qx > best * fit.sum_q2) {
          scale = fit.sum_qx / fit.sum_q2;
          best = scale * fit.sum_qx;
          std::copy_n(trial, 32, levels);
        }
      }
      if (scale > 0) {
        const float inverse = 1 / scale;
        for (int g = 0; g < 4; ++g) {
          for (int i = 8 * g; i < 8 * g + 8; ++i) levels[i] = level_of(magnitudes[i], inverse, kTop);
          bool ignored = false;
          settle(lattice, magnitudes + 8 * g, root + 8 * g, scale, levels + 8 * g, ignored);
        }
        const Fit fit = fit_of(magnitudes, w, levels, 32);
        if (fit.sum_q2 > 0) scale = fit.sum_qx / fit.sum_q2;
      }
      if (scale < 0) {  // all signs the other way round
        scale = -scale;
        signs ^= 0x0FFFFFFF;
      }
      for (int g = 0; g < 4; ++g) {
        bool ignored = false;
        words[2 * s] |= static_cast<std::uint32_t>(settle(lattice, magnitudes + 8 * g, root + 8 * g, scale, levels + 8 * g, ignored)) << (8 * g);
      }
      words[2 * s + 1] = signs;
      scales[s] = scale;
      most = std::max(most, scale);
    }
    if (most == 0) continue;
    const float d = most / 31;
    put_half(d, out);
    const float inverse = 1 / d;
    for (std::size_t s = 0; s < 8; ++s) words[2 * s + 1] |= scale_code(scales[s], inverse, 15) << 28;
    std::memcpy(out + 2, words, 64);
  }
}

void encode_iq2_xs(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  const Lattice& lattice = iq2_xs_lattice();
  for (std::size_t b = 0; b < row.size() / kBlock; ++b, out += 74) {
    const float* x = row.data() + kBlock * b;
    const float sigma2 = mean_square(x, 1);
    std::memset(out, 0, 74);
    float scales[16];
    std::uint16_t words[32];
    float most = 0;
    for (std::size_t s = 0; s < 16; ++s) {
      float w[16], magnitudes[16];
      std::uint8_t signs[2];
      std::int32_t points[2];
      weigh(x + 16 * s, importance_at(metric, kBlock * b + 16 * s), 16, sigma2, Plain::all_alike, w);
      for (std::size_t g = 0; g < 2; ++g) signs[g] = split_even_signs(x + 16 * s + 8 * g, w + 8 * g, magnitudes + 8 * g);
      scales[s] = search_points<16>(lattice, magnitudes, w, {9, 0.1F, math::kNoMagnitude, false}, points);
      if (scales[s] < 0) {
        scales[s] = -scales[s];
        for (std::uint8_t& sign : signs) sign ^= 127;
      }
      // An empty sub-block keeps its words at zero.
      for (std::size_t g = 0; g < 2; ++g)
        words[2 * s + g] = scales[s] == 0 && largest_of(magnitudes, 16) < math::kNoMagnitude ? std::uint16_t{0}
                                                                                             : static_cast<std::uint16_t>(points[g] | signs[g] << 9);
      most = std::max(most, scales[s]);
    }
    if (most == 0) continue;
    const float d = most / 31;
    put_half(d, out);
    const float inverse = 1 / d;
    for (std::size_t s = 0; s < 16; ++s)
      out[66 + s / 2] = static_cast<std::uint8_t>(out[66 + s / 2] | scale_code(scales[s], inverse, 15) << (4 * (s % 2)));
    std::memcpy(out + 2, words, 64);
  }
}

void encode_iq2_s(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  const Lattice& lattice = iq2_s_lattice();
  constexpr float kSmallest = 1e-8F;
  for (std::size_t b = 0; b < row.size() / kBlock; ++b, out += 82) {
    const float* x = row.data() + kBlock * b;
    const float sigma2 = mean_square(x, 2);
    std::memset(out, 0, 82);
    float scales[16];
    float most = 0;
    for (std::size_t s = 0; s < 16; ++s) {
      float w[16], magnitudes[16];
      std::uint8_t signs[2];
      std::int32_t points[2];
      weigh(x + 16 * s, importance_at(metric, kBlock * b + 16 * s), 16, sigma2, Plain::with_floor, w);
      for (std::size_t g = 0; g < 2; ++g) signs[g] = split_signs(x + 16 * s + 8 * g, magnitudes + 8 * g);
      scales[s] = search_points<16>(lattice, magnitudes, w, {9, 0.1F, kSmallest, false}, points);
      if (largest_of(magnitudes, 16) < kSmallest) continue;
      if (scales[s] < 0) {
        scales[s] = -scales[s];
        for (std::uint8_t& sign : signs) sign = static_cast<std::uint8_t>(~sign);
      }
      for (std::size_t g = 0; g < 2; ++g) {
        const std::size_t at = 2 * s + g;
        out[2 + at] = static_cast<std::uint8_t>(points[g] & 255);
        out[34 + at] = signs[g];
        out[66 + at / 4] = static_cast<std::uint8_t>(out[66 + at / 4] | (points[g] >> 8) << (2 * (at % 4)));
      }
      most = std::max(most, scales[s]);
    }
    if (most == 0) continue;
    const float d = most / 31;
    put_half(d * 0.9875F, out);
    const float inverse = 1 / d;
    for (std::size_t s = 0; s < 16; ++s)
      out[74 + s / 2] = static_cast<std::uint8_t>(out[74 + s / 2] | scale_code(scales[s], inverse, 15) << (4 * (s % 2)));
  }
}

void encode_iq3_xxs(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  const Lattice& lattice = iq3_xxs_lattice();
  constexpr float kSmallest = 1e-8F;
  for (std::size_t b = 0; b < row.size() / kBlock; ++b, out += 98) {
    const float* x = row.data() + kBlock * b;
    const float sigma2 = mean_square(x, 2);
    std::memset(out, 0, 98);
    float scales[8];
    std::uint8_t codes[64] = {};
    std::uint32_t rest[8] = {};
    float most = 0;
    for (std::size_t s = 0; s < 8; ++s) {
      float w[32], magnitudes[32];
      std::int32_t points[8];
      weigh(x + 32 * s, importance_at(metric, kBlock * b + 32 * s), 32, sigma2, Plain::squares, w);
      std::uint32_t signs = 0;
      for (int g = 0; g < 4; ++g) signs |= static_cast<std::uint32_t>(split_even_signs(x + 32 * s + 8 * g, w + 8 * g, magnitudes + 8 * g)) << (7 * g);
      scales[s] = search_points<32>(lattice, magnitudes, w, {15, 0.2F, kSmallest, false}, points);
      if (largest_of(magnitudes, 32) < kSmallest) continue;
      if (scales[s] < 0) {
        scales[s] = -scales[s];
        signs ^= 0x0FFFFFFF;
      }
      for (std::size_t g = 0; g < 8; ++g) codes[8 * s + g] = static_cast<std::uint8_t>(points[g]);
      rest[s] = signs;
      most = std::max(most, scales[s]);
    }
    if (most == 0) continue;
    const float d = most / 31;
    put_half(d * 1.0125F, out);
    const float inverse = 1 / d;
    for (std::size_t s = 0; s < 8; ++s) rest[s] |= scale_code(scales[s], inverse, 15) << 28;
    std::memcpy(out + 2, codes, 64);
    std::memcpy(out + 66, rest, 32);
  }
}

void encode_iq3_s(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  const Lattice& lattice = iq3_s_lattice();
  constexpr float kSmallest = std::numeric_limits<float>::denorm_min();  // only zeros are empty
  for (std::size_t b = 0; b < row.size() / kBlock; ++b, out += 110) {
    const float* x = row.data() + kBlock * b;
    const float sigma2 = mean_square(x, 2);
    std::memset(out, 0, 110);
    float scales[8];
    float most = 0;
    // The reference moves its place for codes and signs on only where there are any, so those of the sub-blocks behind an empty one lie 8 and 4 bytes
    // early. Files are compared with its files; encode_better() puts them where readers look.
    std::size_t place = 0;
    for (std::size_t s = 0; s < 8; ++s) {
      float w[32], magnitudes[32];
      std::int32_t points[8];
      std::uint8_t signs[4];
      weigh(x + 32 * s, importance_at(metric, kBlock * b + 32 * s), 32, sigma2, Plain::squares, w);
      for (std::size_t g = 0; g < 4; ++g) signs[g] = split_signs(x + 32 * s + 8 * g, magnitudes + 8 * g);
      scales[s] = search_points<32>(lattice, magnitudes, w, {9, 0.2F, kSmallest, true}, points);
      if (largest_of(magnitudes, 32) < kSmallest) continue;
      if (scales[s] < 0) {
        scales[s] = -scales[s];
        for (std::uint8_t& sign : signs) sign = static_cast<std::uint8_t>(~sign);
      }
      for (std::size_t g = 0; g < 8; ++g) {
        out[2 + 8 * place + g] = static_cast<std::uint8_t>(points[g] & 255);
        out[66 + s] = static_cast<std::uint8_t>(out[66 + s] | (points[g] >> 8) << g);
      }
      std::copy_n(signs, 4, out + 74 + 4 * place);
      ++place;
      most = std::max(most, scales[s]);
    }
    if (most == 0) continue;
    const float d = most / 31;
    put_half(d * 1.033F, out);
    const float inverse = 1 / d;
    for (std::size_t s = 0; s < 8; ++s)
      out[106 + s / 2] = static_cast<std::uint8_t>(out[106 + s / 2] | scale_code(scales[s], inverse, 15) << (4 * (s % 2)));
  }
}

// ---- IQ1: three levels around a shift of an eighth either way

namespace {

constexpr float kShift = 0.125F;
constexpr float kUp[3] = {-1 + kShift, kShift, 1 + kShift};
constexpr float kDown[3] = {-1 - kShift, -kShift, 1 - kShift};

/// Places of the values in rising order.
template <int kCount>
void sort_places(const float* x, std::array<int, kCount>& places) {
  std::iota(places.begin(), places.end(), 0);
  std::stable_sort(places.begin(), places.end(), [x](int a, int b) { return x[a] < x[b]; });
}

/// As settle(), for levels whose values are given.
std::int32_t settle_shifted(const Lattice& lattice, const float* x, const float* w, float scale, const float* values, std::uint8_t* levels,
                            bool& on_grid) {
  const std::int32_t place = lattice.at[static_cast<std::size_t>(lattice.combination(levels))];
  if (place >= 0) return place;
  on_grid = false;
  float best = FLT_MAX;
  std::int32_t found = -1;
  for (const std::uint16_t point : lattice.neighbours(place)) {
    const auto& candidate = lattice.points[point];
    float distance = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      const float diff = scale * values[candidate[i]] - x[i];
      distance += w[i] * diff * diff;
    }
    if (distance < best) {
      best = distance;
      found = point;
    }
  }
  if (found < 0) found = lattice.neighbours(place).front();
  for (std::size_t i = 0; i < 8; ++i) levels[i] = lattice.points[static_cast<std::size_t>(found)][i];
  return found;
}

void add_fit(Fit& fit, const float* x, const float* w, const float* values, const std::array<std::uint8_t, 8>& point, float factor) {
  for (std::size_t i = 0; i < 8; ++i) {
    const float q = values[point[i]] * factor;
    fit.sum_qx += w[i] * q * x[i];
    fit.sum_q2 += w[i] * q * q;
  }
}

float largest_magnitude(const float* x, int count) {
  float largest = std::fabs(x[0]);
  for (int i = 1; i < count; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

}  // namespace

void encode_iq1_s(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  const Lattice& lattice = iq1_lattice();
  constexpr float kSmallest = 1e-12F;
  for (std::size_t b = 0; b < row.size() / kBlock; ++b, out += 50) {
    const float* x = row.data() + kBlock * b;
    const float sigma2 = mean_square(x, 2);
    std::memset(out, 0, 50);
    float scales[8] = {};
    bool down[8] = {};
    std::uint16_t high[8] = {};
    float most = 0;
    for (std::size_t s = 0; s < 8; ++s) {
      const float* xs = x + 32 * s;
      float w[32];
      weigh(xs, importance_at(metric, kBlock * b + 32 * s), 32, sigma2, Plain::all_alike, w);
      if (largest_magnitude(xs, 32) < kSmallest) continue;
      // With three levels the best codes are two cuts through the sorted values: all of them are tried.
      std::array<int, 32> places{};
      sort_places<32>(xs, places);
      float sum_x[33], sum_w[33];
      sum_x[0] = sum_w[0] = 0;
      for (std::size_t j = 0; j < 32; ++j) {
        const auto i = static_cast<std::size_t>(places[j]);
        sum_x[j + 1] = sum_x[j] + w[i] * xs[i];
        sum_w[j + 1] = sum_w[j] + w[i];
      }
      float best = -FLT_MAX;
      float scale = largest_magnitude(xs, 32);
      std::size_t first = 0;
      std::size_t second = 0;
      bool is_down = false;
      const auto attempt = [&](std::size_t i1, std::size_t i2, const float* values, bool this_down) {
        const float sum_qx = (sum_x[i1] - sum_x[0]) * values[0] + (sum_x[i2] - sum_x[i1]) * values[1] + (sum_x[32] - sum_x[i2]) * values[2];
        const float sum_q2 = (sum_w[i1] - sum_w[0]) * values[0] * values[0] + (sum_w[i2] - sum_w[i1]) * values[1] * values[1] +
                             (sum_w[32] - sum_w[i2]) * values[2] * values[2];
        if (!(sum_q2 > 0 && sum_qx * sum_qx > best * sum_q2)) return;
        scale = sum_qx / sum_q2;
        best = scale * sum_qx;
        first = i1;
        second = i2;
        is_down = this_down;
      };
      for (std::size_t i1 = 0; i1 <= 32; ++i1)
        for (std::size_t i2 = i1; i2 <= 32; ++i2) {
          attempt(i1, i2, kUp, false);
          attempt(i1, i2, kDown, true);
        }
      std::uint8_t levels[32];
      for (std::size_t j = 0; j < 32; ++j) levels[places[j]] = j < first ? 0 : j < second ? 1 : 2;
      if (scale < 0) {
        for (std::uint8_t& level : levels) level = static_cast<std::uint8_t>(2 - level);
        scale = -scale;
        is_down = !is_down;
      }
      const float* values = is_down ? kDown : kUp;
      bool on_grid = true;
      std::int32_t points[4];
      for (std::size_t g = 0; g < 4; ++g) points[g] = settle_shifted(lattice, xs + 8 * g, w + 8 * g, scale, values, levels + 8 * g, on_grid);
      if (!on_grid) {
        Fit fit;
        for (std::size_t g = 0; g < 4; ++g) add_fit(fit, xs + 8 * g, w + 8 * g, values, lattice.points[static_cast<std::size_t>(points[g])], 1);
        if (fit.sum_qx > 0 && fit.sum_q2 > 0) scale = fit.sum_qx / fit.sum_q2;
      }
      for (std::size_t g = 0; g < 4; ++g) {
        out[2 + 4 * s + g] = static_cast<std::uint8_t>(points[g] & 255);
        high[s] = static_cast<std::uint16_t>(high[s] | (points[g] >> 8) << (3 * g));
      }
      scales[s] = scale;
      down[s] = is_down;
      most = std::max(most, scale);
    }
    if (most != 0) {
      const float d = most / 15;
      put_half(d * 1.125F, out);
      const float inverse = 1 / d;
      for (std::size_t s = 0; s < 8; ++s)
        high[s] = static_cast<std::uint16_t>(high[s] | (scale_code(scales[s], inverse, 7) | (down[s] ? 8U : 0U)) << 12);
    }
    std::memcpy(out + 34, high, 16);
  }
}

void encode_iq1_m(std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  const Lattice& lattice = iq1_lattice();
  constexpr float kSmallest = 1e-7F;
  const auto values_of = [](int kind, std::size_t group) { return kind >> (group == 0 ? 1 : 0) & 1 ? kDown : kUp; };
  for (std::size_t b = 0; b < row.size() / kBlock; ++b, out += 56) {
    const float* x = row.data() + kBlock * b;
    const float sigma2 = mean_square(x, 2);
    std::memset(out, 0, 56);
    float scales[16] = {};
    int kind_of[16] = {};  // bit 1: the first eight values are shifted down; bit 0: the others
    float most = 0;
    for (std::size_t s = 0; s < 16; ++s) {
      const float* xs = x + 16 * s;
      float w[16];
      weigh(xs, importance_at(metric, kBlock * b + 16 * s), 16, sigma2, Plain::squares, w);
      if (largest_magnitude(xs, 16) < kSmallest) continue;
      std::array<int, 16> places{};
      sort_places<16>(xs, places);
      float best = -FLT_MAX;
      float scale = largest_magnitude(xs, 16);
      std::size_t first = 0;
      std::size_t second = 0;
      int kind = 0;
      // Sums over the sorted values, of either half of the sub-block by itself, because each half has its own shift.
      float sum_x[2][17], sum_w[2][17];
      for (std::size_t h = 0; h < 2; ++h) sum_x[h][0] = sum_w[h][0] = 0;
      for (std::size_t j = 0; j < 16; ++j) {
        const auto i = static_cast<std::size_t>(places[j]);
        const std::size_t own = i / 8;
        sum_x[own][j + 1] = sum_x[own][j] + w[i] * xs[i];
        sum_w[own][j + 1] = sum_w[own][j] + w[i];
        sum_x[1 - own][j + 1] = sum_x[1 - own][j];
        sum_w[1 - own][j + 1] = sum_w[1 - own][j];
      }
      // The levels are one apart, so each cut takes its sum away once.
      const auto half_fit = [&](std::size_t h, std::size_t i1, std::size_t i2, const float* values) {
        return Fit{sum_x[h][16] * values[2] - (sum_x[h][i1] + sum_x[h][i2]), sum_w[h][i1] * (values[0] * values[0] - values[1] * values[1]) +
                                                                                 sum_w[h][16] * values[2] * values[2] +
                                                                                 sum_w[h][i2] * (values[1] * values[1] - values[2] * values[2])};
      };
      for (std::size_t i1 = 0; i1 <= 16; ++i1) {
        for (std::size_t i2 = i1; i2 <= 16; ++i2) {
          const Fit up[2] = {half_fit(0, i1, i2, kUp), half_fit(1, i1, i2, kUp)};
          const Fit down[2] = {half_fit(0, i1, i2, kDown), half_fit(1, i1, i2, kDown)};
          for (int k = 0; k < 4; ++k) {
            const Fit& one = k & 2 ? down[0] : up[0];
            const Fit& other = k & 1 ? down[1] : up[1];
            const float sum_qx = one.sum_qx + other.sum_qx;
            const float sum_q2 = one.sum_q2 + other.sum_q2;
            if (!(sum_q2 > 0 && sum_qx * sum_qx > best * sum_q2)) continue;
            scale = sum_qx / sum_q2;
            best = scale * sum_qx;
            first = i1;
            second = i2;
            kind = k;
          }
        }
      }
      std::uint8_t levels[16];
      for (std::size_t j = 0; j < 16; ++j) levels[places[j]] = j < first ? 0 : j < second ? 1 : 2;
      if (scale < 0) {
        for (std::uint8_t& level : levels) level = static_cast<std::uint8_t>(2 - level);
        scale = -scale;
        kind ^= 3;
      }
      bool on_grid = true;
      std::int32_t points[2];
      for (std::size_t g = 0; g < 2; ++g)
        points[g] = settle_shifted(lattice, xs + 8 * g, w + 8 * g, scale, values_of(kind, g), levels + 8 * g, on_grid);
      if (!on_grid) {
        Fit fit;
        for (std::size_t g = 0; g < 2; ++g)
          add_fit(fit, xs + 8 * g, w + 8 * g, values_of(kind, g), lattice.points[static_cast<std::size_t>(points[g])], 1);
        if (fit.sum_qx > 0 && fit.sum_q2 > 0) scale = fit.sum_qx / fit.sum_q2;
      }
      out[2 * s] = static_cast<std::uint8_t>(points[0] & 255);
      out[2 * s + 1] = static_cast<std::uint8_t>(points[1] & 255);
      out[32 + s] = static_cast<std::uint8_t>(points[0] >> 8 | (points[1] >> 8) << 4);
      scales[s] = scale;
      kind_of[s] = kind;
      most = std::max(most, scale);
    }
    if (most == 0) continue;
    float d = most / 15;
    const float inverse = 1 / d;
    std::uint16_t packed[4] = {};
    Fit fit;
    for (std::size_t s = 0; s < 16; ++s) {
      const unsigned code = scale_code(scales[s], inverse, 7);
      packed[s / 4] = static_cast<std::uint16_t>(packed[s / 4] | code << (3 * (s % 4)));
      const float* xs = x + 16 * s;
      float w[16];
      weigh(xs, importance_at(metric, kBlock * b + 16 * s), 16, sigma2, Plain::squares, w);
      for (std::size_t g = 0; g < 2; ++g) {
        const auto point = static_cast<std::size_t>(out[2 * s + g] | ((out[32 + s] >> (4 * g)) & 7) << 8);
        add_fit(fit, xs + 8 * g, w + 8 * g, values_of(kind_of[s], g), lattice.points[point], static_cast<float>(2 * code + 1));
      }
      out[32 + s] = static_cast<std::uint8_t>(out[32 + s] | (kind_of[s] & 2 ? 0x08 : 0) | (kind_of[s] & 1 ? 0x80 : 0));
    }
    if (fit.sum_q2 > 0) d = fit.sum_qx / fit.sum_q2;
    std::uint8_t half[2];
    put_half(d * 1.1125F, half);
    const std::uint16_t bits = u16_at(half);
    for (int i = 0; i < 4; ++i) put_u16(static_cast<std::uint16_t>(packed[i] | ((bits >> (4 * i)) & 15) << 12), out + 48 + 2 * i);
  }
}

}  // namespace weft::codec::detail
