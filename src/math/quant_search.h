#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

// Searches for the scale of a few values, one block at a time. What llama.cpp's quantizers do, operation for operation in float32: a sum taken in
// another order gives other bytes. The searches that take the time are vectors over many blocks, in encode_blocks-inl.h.
namespace weft::math {

/// Smaller than this, a block counts as zero.
inline constexpr float kNoMagnitude = 1e-15F;

/// To the nearest integer, halves to even, for magnitudes below 2^22; beyond, some number of that range (so does the format's reference).
[[nodiscard]] inline std::int32_t nearest_int(float value) {
  return static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(value + 12582912.0F) & 0x007FFFFF) - 0x00400000;
}
[[nodiscard]] inline std::int32_t nearest_int(float value, std::int32_t low, std::int32_t high) {
  const std::int32_t whole = nearest_int(value);
  const std::int32_t capped = whole < high ? whole : high;
  return capped > low ? capped : low;
}

/// The value of the largest magnitude, the first of them; 0 when all are 0 or NaN.
[[nodiscard]] inline float furthest_from_zero(const float* x, int count) {
  float largest = 0;
  float magnitude = 0;
  for (int i = 0; i < count; ++i) {
    const float a = x[i] < 0 ? -x[i] : x[i];
    if (a > magnitude) {
      magnitude = a;
      largest = x[i];
    }
  }
  return largest;
}

/// Values of either sign as multiples of one scale, from -nmax to nmax - 1. codes: plus nmax. Returns the scale.
[[nodiscard]] inline float search_symmetric(int count, int nmax, const float* x, const float* w, std::uint8_t* codes) {
  const float largest = furthest_from_zero(x, count);
  for (int i = 0; i < count; ++i) codes[i] = 0;
  if (largest < kNoMagnitude && -largest < kNoMagnitude) return 0;
  const auto top = static_cast<float>(nmax);
  float used = -top / largest;
  float scale = 0;
  float best = 0;
  for (int step = -10; step <= 9; ++step) {  // first the plain scale, then those around it
    if (step == 0) continue;
    const float inverse = step == -10 ? used : -(top + 0.1F * static_cast<float>(step)) / largest;
    float sum_xl = 0;
    float sum_l2 = 0;
    for (int i = 0; i < count; ++i) {
      const auto l = static_cast<float>(nearest_int(inverse * x[i], -nmax, nmax - 1));
      sum_xl += w[i] * x[i] * l;
      sum_l2 += w[i] * l * l;
    }
    if (step == -10) {
      scale = sum_l2 > 0 ? sum_xl / sum_l2 : 0;
      best = scale * sum_xl;
    } else if (sum_l2 > 0 && sum_xl * sum_xl > best * sum_l2) {
      scale = sum_xl / sum_l2;
      best = scale * sum_xl;
      used = inverse;
    }
  }
  for (int i = 0; i < count; ++i) codes[i] = static_cast<std::uint8_t>(nmax + nearest_int(used * x[i], -nmax, nmax - 1));
  return scale;
}

/// Values that are not negative as multiples of one scale, from 0 to nmax. Returns the scale.
[[nodiscard]] inline float search_positive(int count, int nmax, const float* x, const float* w, std::uint8_t* codes) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = largest > x[i] ? largest : x[i];
  for (int i = 0; i < count; ++i) codes[i] = 0;
  if (largest < kNoMagnitude) return 0;
  const auto top = static_cast<float>(nmax);
  // The codes of the reference are bytes; only the plain scale is not held to nmax.
  const auto code_of = [](std::int32_t l) { return static_cast<float>(static_cast<std::uint8_t>(l)); };
  float used = top / largest;
  float best = 0;
  const float first_scale = 1 / used;
  for (int i = 0; i < count; ++i) {
    const float diff = x[i] - first_scale * code_of(nearest_int(used * x[i]));
    best += w[i] * diff * diff;
  }
  const auto held = [nmax](std::int32_t l) { return l < nmax ? l : nmax; };
  for (int step = -4; step <= 4; ++step) {
    if (step == 0) continue;
    const float inverse = (0.1F * static_cast<float>(step) + top) / largest;
    const float scale = 1 / inverse;
    float error = 0;
    for (int i = 0; i < count; ++i) {
      const float diff = x[i] - scale * static_cast<float>(held(nearest_int(inverse * x[i])));
      error += w[i] * diff * diff;
    }
    if (error < best) {
      best = error;
      used = inverse;
    }
  }
  float sum_xl = 0;
  float sum_l2 = 0;
  for (int i = 0; i < count; ++i) {
    const auto l = held(nearest_int(used * x[i]));
    codes[i] = static_cast<std::uint8_t>(l);
    sum_xl += w[i] * x[i] * static_cast<float>(l);
    sum_l2 += w[i] * static_cast<float>(l) * static_cast<float>(l);
  }
  for (int pass = 0; pass < 5; ++pass) {
    bool changed = false;
    for (int i = 0; i < count; ++i) {
      const auto own = static_cast<float>(codes[i]);
      float without_xl = sum_xl - w[i] * x[i] * own;
      float without_l2 = sum_l2 - w[i] * own * own;
      if (!(without_xl > 0 && without_l2 > 0)) continue;
      const std::int32_t l = held(nearest_int(x[i] * without_l2 / without_xl));
      if (l == codes[i]) continue;
      without_xl += w[i] * x[i] * static_cast<float>(l);
      without_l2 += w[i] * static_cast<float>(l) * static_cast<float>(l);
      if (without_xl * without_xl * sum_l2 > sum_xl * sum_xl * without_l2) {
        codes[i] = static_cast<std::uint8_t>(l);
        sum_xl = without_xl;
        sum_l2 = without_l2;
        changed = true;
      }
    }
    if (!changed) break;
  }
  return sum_l2 > 0 ? sum_xl / sum_l2 : 0;
}

}  // namespace weft::math
