// Float32 to blocks beside a plain copy and beside a plain scalar form of the same searches, on one core.
//
//   quantize_bench [--benchmark_filter=REGEX] [--benchmark_repetitions=10] [--benchmark_out=FILE.json]
//
// 32 768 values at a time out of 64 MiB of normal numbers, in rows of 4096. `scalar/TYPE` is the search written as one would write it first, value by
// value in float32 and in the same order, so that its bytes are the same: they are compared before anything is timed, and a difference ends the
// program. bytes_per_second counts float32 bytes read and block bytes written, items are values; `share` is the ratio to the copy, measured first;
// `times` that of values a second to scalar/TYPE. Weighted forms use an importance for each column. Choose the instruction set with WEFT_SIMD.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "codec/block_codec.h"
#include "codec/packed_linear.h"
#include "math/quant_search.h"
#include "math/small_float.h"
#include "math/targets.h"
#include "quantize/solver.h"

namespace {

using namespace weft;
using benchmark::State;
using math::nearest_int;

constexpr std::size_t kPiece = 32768;
constexpr std::size_t kRow = 4096;
constexpr std::size_t kElements = std::size_t{1} << 24;

double copy_bytes_per_second = 0;
std::map<std::string, double> scalar_values_per_second;

/// Of this process on its core: what else the machine does does not count.
double seconds_since(std::clock_t start) { return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC; }

const std::vector<float>& values() {
  static const std::vector<float> kValues = [] {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 0.02F);
    std::vector<float> all(kElements);
    for (float& value : all) value = normal(random);
    return all;
  }();
  return kValues;
}
const std::vector<float>& weights() {
  static const std::vector<float> kWeights = [] {
    std::mt19937 random(2);
    std::exponential_distribution<float> exponential(1);
    std::vector<float> all(kRow);
    for (float& value : all) value = exponential(random) + 0.01F;
    return all;
  }();
  return kWeights;
}

// ---- The searches as one would write them first

float put_half(float value, std::uint8_t* out) {
  const auto half = static_cast<std::uint16_t>(math::encode_small(math::kF16, std::bit_cast<std::uint32_t>(value)));
  std::memcpy(out, &half, 2);
  return std::bit_cast<float>(math::decode_small(math::kF16, half));
}

float affine(int n, int nmax, const float* x, const float* w, std::uint8_t* codes, float& negated_minimum, float first, float step, int steps,
             bool absolute) {
  float low = x[0], high = x[0], sum_w = w[0], sum_x = w[0] * x[0];
  for (int i = 1; i < n; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    sum_w += w[i];
    sum_x += w[i] * x[i];
  }
  if (low > 0) low = 0;
  if (high <= low) {
    std::fill_n(codes, n, std::uint8_t{0});
    negated_minimum = -low;
    return 0;
  }
  std::uint8_t trial[32];
  const auto error_of = [&](const std::uint8_t* l, float scale, float minimum) {
    float error = 0;
    for (int i = 0; i < n; ++i) {
      float difference = scale * static_cast<float>(l[i]) + minimum - x[i];
      difference = absolute ? std::fabs(difference) : difference * difference;
      error += w[i] * difference;
    }
    return error;
  };
  const auto top = static_cast<float>(nmax);
  float inverse = top / (high - low), scale = 1 / inverse;
  for (int i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(nearest_int(inverse * (x[i] - low), 0, nmax));
  float best = error_of(codes, scale, low);
  for (int s = 0; s <= steps; ++s) {
    inverse = (first + step * static_cast<float>(s) + top) / (high - low);
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (int i = 0; i < n; ++i) {
      trial[i] = static_cast<std::uint8_t>(nearest_int(inverse * (x[i] - low), 0, nmax));
      const auto l = static_cast<float>(trial[i]);
      sum_l += w[i] * l;
      sum_l2 += w[i] * l * l;
      sum_xl += w[i] * l * x[i];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0)) continue;
    float this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    float this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (this_low > 0) {
      this_low = 0;
      this_scale = sum_xl / sum_l2;
    }
    const float error = error_of(trial, this_scale, this_low);
    if (error < best) {
      std::copy_n(trial, n, codes);
      best = error;
      scale = this_scale;
      low = this_low;
    }
  }
  negated_minimum = -low;
  return scale;
}

void requantize(int n, const float* x, float scale, float minimum, int low, int high, int offset, std::uint8_t* codes) {
  if (scale == 0) return;
  for (int i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(nearest_int((x[i] + minimum) / scale, low, high) + offset);
}

/// Q4_K and Q5_K.
void scalar_four_or_five(const float* x, const float* importance, std::uint8_t* out, bool five) {
  const int nmax = five ? 31 : 15;
  std::uint8_t codes[256], scale_codes[8] = {}, minimum_codes[8] = {};
  float scales[8], minima[8], sums[8], w[32];
  float squares = 0;
  for (int i = 0; i < 256; ++i) squares += x[i] * x[i];
  const float sigma2 = 2 * squares / 256;
  for (int s = 0; s < 8; ++s) {
    const float* own = x + 32 * s;
    if (importance != nullptr) {
      sums[s] = 0;
      for (int i = 0; i < 32; ++i) {
        w[i] = importance[32 * s + i] * std::sqrt(sigma2 + own[i] * own[i]);
        sums[s] += w[i];
      }
      scales[s] = affine(32, nmax, own, w, codes + 32 * s, minima[s], -0.9F, 0.05F, 36, false);
    } else {
      float sum = 0;
      for (int i = 0; i < 32; ++i) sum += own[i] * own[i];
      const float mean = std::sqrt(sum / 32);
      for (int i = 0; i < 32; ++i) w[i] = mean + std::fabs(own[i]);
      scales[s] = affine(32, nmax, own, w, codes + 32 * s, minima[s], five ? -0.5F : -1.0F, 0.1F, five ? 15 : 20, false);
    }
  }
  const auto simple = [](const float* all, std::uint8_t* parts) {
    float most = 0;
    for (int s = 0; s < 8; ++s) most = std::max(most, all[s]);
    const float inverse = most > 0 ? 63.0F / most : 0.0F;
    for (int s = 0; s < 8; ++s) parts[s] = static_cast<std::uint8_t>(std::min(63, nearest_int(inverse * all[s])));
    return most / 63.0F;
  };
  float d = importance != nullptr ? math::search_positive(8, 63, scales, sums, scale_codes) : simple(scales, scale_codes);
  float dmin = importance != nullptr ? math::search_positive(8, 63, minima, sums, minimum_codes) : simple(minima, minimum_codes);
  d = put_half(d, out);
  dmin = put_half(dmin, out + 2);
  for (int j = 0; j < 4; ++j) {
    out[4 + j] = static_cast<std::uint8_t>(scale_codes[j] | (scale_codes[j + 4] >> 4) << 6);
    out[8 + j] = static_cast<std::uint8_t>(minimum_codes[j] | (minimum_codes[j + 4] >> 4) << 6);
    out[12 + j] = static_cast<std::uint8_t>((scale_codes[j + 4] & 15) | (minimum_codes[j + 4] & 15) << 4);
  }
  for (int s = 0; s < 8; ++s)
    requantize(32, x + 32 * s, d * static_cast<float>(scale_codes[s]), dmin * static_cast<float>(minimum_codes[s]), 0, nmax, 0, codes + 32 * s);
  std::uint8_t* qs = out + (five ? 48 : 16);
  if (five) std::memset(out + 16, 0, 32);
  for (int c = 0; c < 4; ++c)
    for (int l = 0; l < 32; ++l) {
      const unsigned a = codes[64 * c + l], b = codes[64 * c + 32 + l];
      qs[32 * c + l] = static_cast<std::uint8_t>((a & 15) | (b & 15) << 4);
      if (five) out[16 + l] = static_cast<std::uint8_t>(out[16 + l] | (a >> 4) << (2 * c) | (b >> 4) << (2 * c + 1));
    }
}

void scalar_q6_k(const float* x, const float* importance, std::uint8_t* out) {
  std::uint8_t codes[256];
  float scales[16], w[16];
  float most = 0, magnitude = 0;
  for (int s = 0; s < 16; ++s) {
    for (int i = 0; i < 16; ++i) w[i] = importance != nullptr ? importance[16 * s + i] : x[16 * s + i] * x[16 * s + i];
    scales[s] = math::search_symmetric(16, 32, x + 16 * s, w, codes + 16 * s);
    if (std::fabs(scales[s]) > magnitude) {
      magnitude = std::fabs(scales[s]);
      most = scales[s];
    }
  }
  std::memset(out, 0, 210);
  if (magnitude < math::kNoMagnitude) return;
  const float inverse = -128.0F / most;
  const float d = put_half(1 / inverse, out + 208);
  for (int s = 0; s < 16; ++s) {
    const auto part = static_cast<std::int8_t>(std::min(127, nearest_int(inverse * scales[s])));
    out[192 + s] = static_cast<std::uint8_t>(part);
    requantize(16, x + 16 * s, d * static_cast<float>(part), 0, -32, 31, 32, codes + 16 * s);
  }
  for (int half = 0; half < 2; ++half)
    for (int l = 0; l < 32; ++l) {
      const std::uint8_t* c = codes + 128 * half + l;
      out[64 * half + l] = static_cast<std::uint8_t>((c[0] & 15) | (c[64] & 15) << 4);
      out[64 * half + 32 + l] = static_cast<std::uint8_t>((c[32] & 15) | (c[96] & 15) << 4);
      out[128 + 32 * half + l] = static_cast<std::uint8_t>(c[0] >> 4 | (c[32] >> 4) << 2 | (c[64] >> 4) << 4 | (c[96] >> 4) << 6);
    }
}

void two_bits(const std::uint8_t* codes, std::uint8_t* out) {
  for (int half = 0; half < 2; ++half)
    for (int l = 0; l < 32; ++l) {
      const std::uint8_t* c = codes + 128 * half + l;
      out[32 * half + l] = static_cast<std::uint8_t>(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
    }
}

void scalar_q2_k(const float* x, const float* importance, std::uint8_t* out) {
  std::uint8_t codes[256], scale_codes[16] = {}, minimum_codes[16] = {};
  float scales[16], minima[16], sums[16], w[16];
  float squares = 0;
  for (int i = 0; i < 256; ++i) squares += x[i] * x[i];
  const float sigma2 = squares / 256;
  for (int s = 0; s < 16; ++s) {
    const float* own = x + 16 * s;
    sums[s] = 0;
    for (int i = 0; i < 16; ++i) {
      w[i] = importance != nullptr ? importance[16 * s + i] * std::sqrt(sigma2 + own[i] * own[i]) : std::fabs(own[i]);
      sums[s] += w[i];
    }
    scales[s] = importance != nullptr ? affine(16, 3, own, w, codes + 16 * s, minima[s], -0.9F, 0.05F, 36, false)
                                      : affine(16, 3, own, w, codes + 16 * s, minima[s], -0.5F, 0.1F, 15, true);
  }
  const auto simple = [](const float* all, std::uint8_t* parts) {
    float most = 0;
    for (int s = 0; s < 16; ++s) most = std::max(most, all[s]);
    if (!(most > 0)) return 0.0F;
    for (int s = 0; s < 16; ++s) parts[s] = static_cast<std::uint8_t>(nearest_int(15.0F / most * all[s]));
    return most / 15.0F;
  };
  const float d = put_half(importance != nullptr ? math::search_positive(16, 15, scales, sums, scale_codes) : simple(scales, scale_codes), out + 80);
  const float dmin =
      put_half(importance != nullptr ? math::search_positive(16, 15, minima, sums, minimum_codes) : simple(minima, minimum_codes), out + 82);
  for (int s = 0; s < 16; ++s) {
    out[s] = static_cast<std::uint8_t>(scale_codes[s] | minimum_codes[s] << 4);
    requantize(16, x + 16 * s, d * static_cast<float>(scale_codes[s]), dmin * static_cast<float>(minimum_codes[s]), 0, 3, 0, codes + 16 * s);
  }
  two_bits(codes, out + 16);
}

/// One value at a time to what lowers the error most, from the plain scale on; errors count as the values' squares.
float by_turns(int n, int nmax, const float* x, std::uint8_t* codes) {
  const float largest = math::furthest_from_zero(x, n);
  std::fill_n(codes, n, std::uint8_t{0});
  if (std::fabs(largest) < math::kNoMagnitude) return 0;
  int chosen[16];
  const float inverse = -static_cast<float>(nmax) / largest;
  float sum_xl = 0, sum_l2 = 0;
  for (int i = 0; i < n; ++i) {
    chosen[i] = nearest_int(inverse * x[i], -nmax, nmax - 1);
    const auto l = static_cast<float>(chosen[i]);
    const float w = x[i] * x[i];
    sum_xl += w * x[i] * l;
    sum_l2 += w * l * l;
  }
  for (int pass = 0; pass < 5; ++pass) {
    bool changed = false;
    for (int i = 0; i < n; ++i) {
      const float w = x[i] * x[i];
      const auto own = static_cast<float>(chosen[i]);
      float xl = sum_xl - w * x[i] * own;
      if (!(xl > 0)) continue;
      float l2 = sum_l2 - w * own * own;
      const int next = nearest_int(x[i] * l2 / xl, -nmax, nmax - 1);
      if (next == chosen[i]) continue;
      const auto l = static_cast<float>(next);
      xl += w * x[i] * l;
      l2 += w * l * l;
      if (!(l2 > 0 && xl * xl * sum_l2 > sum_xl * sum_xl * l2)) continue;
      chosen[i] = next;
      sum_xl = xl;
      sum_l2 = l2;
      changed = true;
    }
    if (!changed) break;
  }
  for (int i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(chosen[i] + nmax);
  return sum_l2 > 0 ? sum_xl / sum_l2 : 0;
}

void scalar_q3_k(const float* x, const float* importance, std::uint8_t* out) {
  std::uint8_t codes[256], parts[16] = {};
  float scales[16], sums[16], w[16];
  float squares = 0;
  for (int i = 0; i < 256; ++i) squares += x[i] * x[i];
  const float sigma2 = 2 * squares / 256;
  for (int s = 0; s < 16; ++s) {
    const float* own = x + 16 * s;
    if (importance == nullptr) {
      scales[s] = by_turns(16, 4, own, codes + 16 * s);
      continue;
    }
    sums[s] = 0;
    for (int i = 0; i < 16; ++i) {
      w[i] = importance[16 * s + i] * std::sqrt(sigma2 + own[i] * own[i]);
      sums[s] += w[i];
    }
    scales[s] = math::search_symmetric(16, 4, own, w, codes + 16 * s);
  }
  float d = 0;
  if (importance != nullptr) {
    d = math::search_symmetric(16, 32, scales, sums, parts);
  } else if (const float most = math::furthest_from_zero(scales, 16); most != 0) {
    const float inverse = -32.0F / most;
    for (int s = 0; s < 16; ++s) parts[s] = static_cast<std::uint8_t>(nearest_int(inverse * scales[s], -32, 31) + 32);
    d = 1 / inverse;
  }
  d = put_half(d, out + 108);
  std::memset(out, 0, 32);
  std::memset(out + 96, 0, 12);
  for (int s = 0; s < 16; ++s) {
    out[96 + s % 8] = static_cast<std::uint8_t>(out[96 + s % 8] | (parts[s] & 15) << (4 * (s / 8)));
    out[104 + s % 4] = static_cast<std::uint8_t>(out[104 + s % 4] | (parts[s] >> 4) << (2 * (s / 4)));
    requantize(16, x + 16 * s, d * static_cast<float>(static_cast<int>(parts[s]) - 32), 0, -4, 3, 4, codes + 16 * s);
  }
  for (int i = 0; i < 256; ++i) {
    out[i % 32] = static_cast<std::uint8_t>(out[i % 32] | (codes[i] >> 2) << (i / 32));
    codes[i] &= 3;
  }
  two_bits(codes, out + 32);
}

using Scalar = void (*)(const float*, const float*, std::uint8_t*);
Scalar scalar_of(std::string_view name) {
  if (name == "Q2_K") return scalar_q2_k;
  if (name == "Q3_K") return scalar_q3_k;
  if (name == "Q4_K") return [](const float* x, const float* w, std::uint8_t* out) { scalar_four_or_five(x, w, out, false); };
  if (name == "Q5_K") return [](const float* x, const float* w, std::uint8_t* out) { scalar_four_or_five(x, w, out, true); };
  if (name == "Q6_K") return scalar_q6_k;
  return nullptr;
}

// ---- What is measured

void copy(State& state) {
  std::vector<float> out(kElements);
  std::size_t at = 0, pieces = 0;
  const float* in = values().data();
  const auto start = std::clock();
  for (auto _ : state) {
    std::memcpy(out.data() + at, in + at, kPiece * sizeof(float));
    benchmark::ClobberMemory();
    at = (at + kPiece) % kElements;
    ++pieces;
  }
  const double bytes = static_cast<double>(pieces) * kPiece * 2 * sizeof(float);
  copy_bytes_per_second = std::max(copy_bytes_per_second, bytes / seconds_since(start));
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
}

void encode_piece(const codec::BlockCodec& codec, Scalar scalar, bool weighted, const float* x, std::uint8_t* out) {
  const std::size_t row_bytes = kRow / codec.block_elements * codec.block_bytes;
  for (std::size_t row = 0; row < kPiece / kRow; ++row, x += kRow, out += row_bytes) {
    if (scalar == nullptr) {
      codec.encode_row({x, kRow}, {weighted ? std::span<const float>(weights()) : std::span<const float>()}, out);
      continue;
    }
    for (std::size_t b = 0; b < kRow / 256; ++b) scalar(x + 256 * b, weighted ? weights().data() + 256 * b : nullptr, out + b * codec.block_bytes);
  }
}

void encode(State& state, const codec::BlockCodec& codec, bool weighted, bool plainly) {
  const Scalar scalar = plainly ? scalar_of(codec.name) : nullptr;
  std::vector<std::uint8_t> out(kPiece / codec.block_elements * codec.block_bytes), check(out.size());
  if (plainly) {
    encode_piece(codec, scalar, weighted, values().data(), out.data());
    encode_piece(codec, nullptr, weighted, values().data(), check.data());
    if (out != check) {
      std::fprintf(stderr, "%s: the plain search gives other bytes\n", std::string(codec.name).c_str());
      std::exit(1);
    }
  }
  std::size_t at = 0, pieces = 0;
  const auto start = std::clock();
  for (auto _ : state) {
    encode_piece(codec, scalar, weighted, values().data() + at, out.data());
    benchmark::DoNotOptimize(out.data());
    benchmark::ClobberMemory();
    at = (at + kPiece) % kElements;
    ++pieces;
  }
  const double seconds = seconds_since(start);
  const double bytes = static_cast<double>(pieces) * (kPiece * sizeof(float) + static_cast<double>(out.size()));
  const double rate = static_cast<double>(pieces) * kPiece / seconds;
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
  state.SetItemsProcessed(static_cast<std::int64_t>(pieces * kPiece));
  const std::string key = std::string(codec.name) + (weighted ? "/weighted" : "");
  if (plainly)
    scalar_values_per_second[key] = std::max(scalar_values_per_second[key], rate);
  else if (scalar_values_per_second.contains(key))
    state.counters["times"] = rate / scalar_values_per_second[key];
  if (copy_bytes_per_second > 0) state.counters["share"] = bytes / seconds / copy_bytes_per_second;
}

/// Rounding to a grid of 4 bits in groups of 128: codes, scales and zero points; with `packs` also as the words of the GPTQ layout.
void round_matrix(State& state, codec::Zero zero, bool packs) {
  quantize::SolverOptions options;
  options.group = 128;
  options.format.bits = 4;
  options.format.zero = zero;
  options.format.scale_type = DType::f16;
  std::size_t at = 0, pieces = 0;
  double written = 0;
  const auto start = std::clock();
  for (auto _ : state) {
    const codec::QuantizedLinear linear = quantize::round_to_nearest({values().data() + at, kPiece}, kPiece / kRow * 4, kRow / 4, options);
    benchmark::DoNotOptimize(linear.codes.data());
    written += static_cast<double>(linear.codes.size() + 8 * linear.scales.size());
    if (packs) {
      const std::vector<codec::StoredTensor> parts = codec::write_gptq(linear, codec::GptqFormat::v2);
      for (const codec::StoredTensor& part : parts) written += static_cast<double>(part.bytes.size());
      benchmark::DoNotOptimize(parts.data());
    }
    at = (at + kPiece) % kElements;
    ++pieces;
  }
  const double seconds = seconds_since(start);
  const double bytes = static_cast<double>(pieces) * kPiece * sizeof(float) + written;
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes));
  state.SetItemsProcessed(static_cast<std::int64_t>(pieces * kPiece));
  if (copy_bytes_per_second > 0) state.counters["share"] = bytes / seconds / copy_bytes_per_second;
}

}  // namespace

int main(int argc, char** argv) {
  math::apply_target_from_environment();
  benchmark::AddCustomContext("simd", math::active_target());
  benchmark::RegisterBenchmark("copy", copy);
  for (const bool packs : {false, true}) {
    const std::string end = packs ? "/packed" : "";
    benchmark::RegisterBenchmark(("round/symmetric" + end).c_str(), [packs](State& state) { round_matrix(state, codec::Zero::centred, packs); });
    benchmark::RegisterBenchmark(("round/zero_points" + end).c_str(), [packs](State& state) { round_matrix(state, codec::Zero::affine, packs); });
  }
  for (const codec::BlockCodec& codec : codec::block_codecs()) {
    if (codec.encode_row == nullptr) continue;
    for (const bool weighted : {false, true}) {
      const std::string name = std::string(codec.name) + (weighted ? "/weighted" : "");
      if (scalar_of(codec.name) != nullptr)
        benchmark::RegisterBenchmark(("scalar/" + name).c_str(), [&codec, weighted](State& state) { encode(state, codec, weighted, true); });
      benchmark::RegisterBenchmark(("encode/" + name).c_str(), [&codec, weighted](State& state) { encode(state, codec, weighted, false); });
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
