#include "codec/better_blocks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "codec/iq_lattice.h"
#include "codec/read_fields.h"

namespace weft::codec {
namespace {

/// What can be changed in a block of a type without its encoder.
struct Layout {
  std::string_view name;
  int scale = -1;     ///< offset of a float16 to which values are proportional, -1: none
  int minimum = -1;   ///< offset of the float16 of their offset
  int num_codes = 0;  ///< that each value may have, independent of the others; 0: codes stand for several values
};

constexpr std::array kLayouts = {
    Layout{"Q4_0", 0, -1, 16},   Layout{"Q4_1", 0, 2, 16},    Layout{"Q5_0", 0, -1, 32},  Layout{"Q5_1", 0, 2, 32},    Layout{"Q8_0", 0, -1, 256},
    Layout{"Q2_K", 80, 82, 4},   Layout{"Q3_K", 108, -1, 8},  Layout{"Q4_K", 0, 2, 16},   Layout{"Q5_K", 0, 2, 32},    Layout{"Q6_K", 208, -1, 64},
    Layout{"IQ4_NL", 0, -1, 16}, Layout{"IQ4_XS", 0, -1, 16}, Layout{"TQ1_0", 52, -1, 0}, Layout{"TQ2_0", 64, -1, 3},  Layout{"Q1_0", 0, -1, 2},
    Layout{"Q2_0", 0, -1, 4},    Layout{"IQ2_XXS", 0, -1, 0}, Layout{"IQ2_XS", 0, -1, 0}, Layout{"IQ2_S", 0, -1, 0},   Layout{"IQ3_XXS", 0, -1, 0},
    Layout{"IQ3_S", 0, -1, 0},   Layout{"IQ1_S", 0, -1, 0},   Layout{"IQ1_M", -1, -1, 0}, Layout{"MXFP4", -1, -1, 16}, Layout{"NVFP4", -1, -1, 16},
};

Layout layout_of(const BlockCodec& codec) {
  const auto found = std::find_if(kLayouts.begin(), kLayouts.end(), [&](const Layout& layout) { return layout.name == codec.name; });
  return found == kLayouts.end() ? Layout{codec.name} : *found;
}

/// Replaces `bits` bits of a byte.
void put_bits(std::uint8_t& byte, unsigned shift, unsigned bits, unsigned value) {
  const unsigned mask = ((1U << bits) - 1) << shift;
  byte = static_cast<std::uint8_t>((byte & ~mask) | ((value << shift) & mask));
}

/// Types by their numbers in files.
enum Id : std::uint32_t {
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2K = 10,
  kQ3K = 11,
  kQ4K = 12,
  kQ5K = 13,
  kQ6K = 14,
  kIq1S = 19,
  kIq4Nl = 20,
  kIq3S = 21,
  kIq4Xs = 23,
  kIq1M = 29,
  kTq2_0 = 35,
  kMxfp4 = 39,
  kNvfp4 = 40,
  kQ1_0 = 41,
  kQ2_0 = 42,
};

/// Sets the code of one value of a block.
void put_code(std::uint32_t type, std::uint8_t* block, unsigned i, unsigned code) {
  const unsigned half = i / 128, quarter = (i % 128) / 32, l = i % 32, sub = i / 32;
  const auto nibble32 = [&](std::uint8_t* qs, unsigned value) { put_bits(qs[l % 16], l < 16 ? 0 : 4, 4, value); };
  const auto nibble64 = [&](std::uint8_t* qs) { put_bits(qs[32 * (i / 64) + l], sub % 2 == 0 ? 0 : 4, 4, code & 15); };
  switch (type) {
    case kQ4_0:
    case kIq4Nl:
      return nibble32(block + 2, code);
    case kQ4_1:
      return nibble32(block + 4, code);
    case kMxfp4:
      return nibble32(block + 1, code);
    case kQ5_0:
    case kQ5_1: {
      std::uint8_t* high = block + (type == kQ5_0 ? 2 : 4);
      nibble32(high + 4, code & 15);
      return put_bits(high[l / 8], l % 8, 1, code >> 4);
    }
    case kNvfp4:
      return put_bits(block[4 + 8 * (i / 16) + i % 8], i % 16 < 8 ? 0 : 4, 4, code);
    case kQ2K:
      return put_bits(block[16 + 32 * half + l], 2 * quarter, 2, code);
    case kQ3K:
      put_bits(block[32 + 32 * half + l], 2 * quarter, 2, code & 3);
      return put_bits(block[l], sub, 1, code >> 2);
    case kQ4K:
      return nibble64(block + 16);
    case kQ5K:
      nibble64(block + 48);
      return put_bits(block[16 + l], sub, 1, code >> 4);
    case kQ6K:
      put_bits(block[64 * half + 32 * (quarter & 1) + l], quarter < 2 ? 0 : 4, 4, code & 15);
      return put_bits(block[128 + 32 * half + l], 2 * quarter, 2, code >> 4);
    case kIq4Xs:
      return put_bits(block[8 + 16 * sub + l % 16], l < 16 ? 0 : 4, 4, code);
    case kTq2_0:
      return put_bits(block[32 * half + l], 2 * quarter, 2, code);
    case kQ1_0:
      return put_bits(block[2 + i / 8], i % 8, 1, code);
    case kQ2_0:
      return put_bits(block[2 + i / 4], 2 * (i % 4), 2, code);
    default:
      return;
  }
}

/// Gives sub-blocks of zeros the point of the lattice that is zero; what stays is an eighth of their scale.
void settle_zeros(std::uint32_t type, std::span<const float> x, std::uint8_t* block) {
  if (type != kIq1S && type != kIq1M) return;
  static const auto kZero = [] {
    const std::uint8_t middle[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    const detail::Lattice& lattice = detail::iq1_lattice();
    return static_cast<unsigned>(lattice.at[static_cast<std::size_t>(lattice.combination(middle))]);
  }();
  for (unsigned g = 0; g < 32; ++g) {
    const std::span<const float> own = x.subspan(8 * g, 8);
    if (!std::all_of(own.begin(), own.end(), [](float v) { return v == 0; })) continue;
    if (type == kIq1S) {
      block[2 + g] = static_cast<std::uint8_t>(kZero & 255);
      std::uint8_t* high = block + 34 + 2 * (g / 4);
      const unsigned shift = 3 * (g % 4);
      detail::put_u16(static_cast<std::uint16_t>((detail::u16_at(high) & ~(7U << shift)) | (kZero >> 8) << shift), high);
    } else {
      block[g] = static_cast<std::uint8_t>(kZero & 255);
      put_bits(block[32 + g / 2], 4 * (g % 2), 3, kZero >> 8);
    }
  }
}

/// The search in one block.
class Search {
 public:
  Search(const BlockCodec& codec, const Layout& layout, std::span<const float> x, std::span<const float> weights, std::uint8_t* block)
      : codec_(codec), layout_(layout), x_(x), weights_(weights), block_(block), decoded_(x.size()), trial_(codec.block_bytes) {
    best_ = error_of(block_);
  }

  void run() {
    if (!std::isfinite(best_) || best_ == 0) return;
    trial_.assign(block_, block_ + codec_.block_bytes);
    settle_zeros(codec_.ggml_id, x_, trial_.data());
    refine(trial_);
    double squares = 0;
    float largest = 0;
    for (const float value : x_) {
      squares += static_cast<double>(value) * static_cast<double>(value);
      largest = std::max(largest, std::fabs(value));
    }
    const double mean = squares / static_cast<double>(x_.size());
    // Encoders count a value as importance * sqrt(spread + value^2); divided by that beforehand, what remains is the error that counts.
    std::vector<float> flat(x_.size()), plain(x_.size(), 1.0F);
    for (std::size_t i = 0; i < x_.size(); ++i) {
      if (!weights_.empty()) plain[i] = weights_[i];
      flat[i] = static_cast<float>(static_cast<double>(plain[i]) / std::sqrt(2 * mean + static_cast<double>(x_[i]) * static_cast<double>(x_[i])));
    }
    // Zeros are next to nothing instead: the encoder of IQ3_S puts what follows a sub-block of zeros in the wrong place.
    std::vector<float> values(x_.begin(), x_.end());
    if (codec_.ggml_id == kIq3S) std::replace(values.begin(), values.end(), 0.0F, 1e-6F * largest);
    attempt(values, flat);
    attempt(values, plain);
    attempt(values, {});
    // What is cut off loses more, all others lose less.
    for (const float share : {0.95F, 0.9F, 0.8F, 0.7F, 0.6F, 0.45F, 0.3F}) {
      std::vector<float> cut = values;
      for (float& value : cut) value = std::clamp(value, -share * largest, share * largest);
      attempt(cut, flat);
    }
    // Where the scale is a power of two or a small float, its neighbours.
    if (codec_.ggml_id == kMxfp4 || codec_.ggml_id == kNvfp4) {
      const std::size_t num_scales = codec_.ggml_id == kMxfp4 ? 1 : 4;
      for (std::size_t s = 0; s < num_scales; ++s) {
        const int own = block_[s];
        for (int step = -4; step <= 4; ++step) {
          const int scale = own + step;
          if (step == 0 || scale < 0 || scale > (num_scales == 1 ? 254 : 126)) continue;
          std::vector<std::uint8_t> other(block_, block_ + codec_.block_bytes);
          other[s] = static_cast<std::uint8_t>(scale);
          refine(std::move(other));
        }
      }
    }
  }

 private:
  double error_of(const std::uint8_t* bytes) {
    codec_.decode(bytes, 1, decoded_.data());
    double error = 0;
    for (std::size_t i = 0; i < x_.size(); ++i) {
      const double difference = static_cast<double>(decoded_[i]) - static_cast<double>(x_[i]);
      error += weight(i) * difference * difference;
    }
    return error;
  }
  [[nodiscard]] double weight(std::size_t i) const { return weights_.empty() ? 1.0 : static_cast<double>(weights_[i]); }

  void attempt(std::span<const float> values, std::span<const float> weights) {
    codec_.encode_row(values, {weights}, trial_.data());
    settle_zeros(codec_.ggml_id, x_, trial_.data());
    refine(trial_);
  }

  /// Takes the bytes if they are better, after scales and codes were fitted to each other in turns.
  void refine(std::vector<std::uint8_t> bytes) {
    double error = error_of(bytes.data());
    if (!std::isfinite(error)) return;
    for (int turn = 0; turn < 6; ++turn) {
      const double before = error;
      std::vector<std::uint8_t> next = bytes;
      choose_codes(next);
      accept(next, bytes, error);
      next = bytes;
      if (fit_scales(next)) accept(next, bytes, error);
      if (!(error < before * (1 - 1e-6))) break;
    }
    if (error < best_) {
      best_ = error;
      std::copy(bytes.begin(), bytes.end(), block_);
    }
  }
  void accept(const std::vector<std::uint8_t>& next, std::vector<std::uint8_t>& bytes, double& error) {
    const double now = error_of(next.data());
    if (!(now < error)) return;
    error = now;
    bytes = next;
  }

  /// The nearest of all codes for each value, scales as they are.
  void choose_codes(std::vector<std::uint8_t>& bytes) {
    if (layout_.num_codes == 0) return;
    if (codec_.ggml_id == kQ8_0) {  // too many codes to try, and evenly spaced
      const float scale = detail::f16_at(bytes.data());
      if (scale == 0) return;
      for (unsigned i = 0; i < x_.size(); ++i)
        bytes[2 + i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::clamp(std::nearbyint(x_[i] / scale), -127.0F, 127.0F)));
      return;
    }
    std::vector<float> nearest(x_.size(), INFINITY);
    std::vector<unsigned> codes(x_.size(), 0);
    for (unsigned code = 0; code < static_cast<unsigned>(layout_.num_codes); ++code) {
      for (unsigned i = 0; i < x_.size(); ++i) put_code(codec_.ggml_id, bytes.data(), i, code);
      codec_.decode(bytes.data(), 1, decoded_.data());
      for (std::size_t i = 0; i < x_.size(); ++i) {
        const float distance = std::fabs(decoded_[i] - x_[i]);
        if (distance < nearest[i]) {
          nearest[i] = distance;
          codes[i] = code;
        }
      }
    }
    for (unsigned i = 0; i < x_.size(); ++i) put_code(codec_.ggml_id, bytes.data(), i, codes[i]);
  }

  /// The scale, and the minimum where there is one, with the smallest error for the codes as they are.
  bool fit_scales(std::vector<std::uint8_t>& bytes) {
    if (layout_.scale < 0) return false;
    std::uint8_t* scale = bytes.data() + layout_.scale;
    std::uint8_t* minimum = layout_.minimum < 0 ? nullptr : bytes.data() + layout_.minimum;
    detail::put_half(1, scale);
    if (minimum != nullptr) detail::put_half(0, minimum);
    std::vector<float> slope(x_.size()), offset(x_.size(), 0.0F);
    codec_.decode(bytes.data(), 1, slope.data());
    if (minimum != nullptr) {
      detail::put_half(0, scale);
      detail::put_half(1, minimum);
      codec_.decode(bytes.data(), 1, offset.data());
    }
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
    for (std::size_t i = 0; i < x_.size(); ++i) {
      const double w = weight(i), a = static_cast<double>(slope[i]), b = static_cast<double>(offset[i]), v = static_cast<double>(x_[i]);
      aa += w * a * a;
      ab += w * a * b;
      bb += w * b * b;
      ax += w * a * v;
      bx += w * b * v;
    }
    double best_scale = aa > 0 ? ax / aa : 0;
    double best_minimum = 0;
    const double determinant = aa * bb - ab * ab;
    if (minimum != nullptr && determinant > 1e-12 * aa * bb) {
      best_scale = (ax * bb - bx * ab) / determinant;
      best_minimum = (aa * bx - ab * ax) / determinant;
    }
    constexpr double kLargestHalf = 65504;
    if (!(std::fabs(best_scale) < kLargestHalf && std::fabs(best_minimum) < kLargestHalf)) return false;
    detail::put_half(static_cast<float>(best_scale), scale);
    if (minimum != nullptr) detail::put_half(static_cast<float>(best_minimum), minimum);
    return true;
  }

  const BlockCodec& codec_;
  const Layout& layout_;
  std::span<const float> x_, weights_;
  std::uint8_t* block_;
  std::vector<float> decoded_;
  std::vector<std::uint8_t> trial_;
  double best_ = 0;
};

}  // namespace

void encode_row_better(const BlockCodec& codec, std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  codec.encode_row(row, metric, out);
  const Layout layout = layout_of(codec);
  for (std::size_t b = 0; b < row.size() / codec.block_elements; ++b) {
    const std::size_t at = b * codec.block_elements;
    const std::span<const float> weights =
        metric.column_weights.empty() ? std::span<const float>() : metric.column_weights.subspan(at, codec.block_elements);
    Search(codec, layout, row.subspan(at, codec.block_elements), weights, out + b * codec.block_bytes).run();
  }
}

}  // namespace weft::codec
