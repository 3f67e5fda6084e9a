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
  bool even = false;  ///< what codes stand for is evenly spaced
};

constexpr std::array kLayouts = {
    Layout{"Q4_0", 0, -1, 16, true}, Layout{"Q4_1", 0, 2, 16, true},    Layout{"Q5_0", 0, -1, 32, true},  Layout{"Q5_1", 0, 2, 32, true},
    Layout{"Q8_0", 0, -1, 256},      Layout{"Q2_K", 80, 82, 4, true},   Layout{"Q3_K", 108, -1, 8, true}, Layout{"Q4_K", 0, 2, 16, true},
    Layout{"Q5_K", 0, 2, 32, true},  Layout{"Q6_K", 208, -1, 64, true}, Layout{"IQ4_NL", 0, -1, 16},      Layout{"IQ4_XS", 0, -1, 16},
    Layout{"TQ1_0", 52, -1, 0},      Layout{"TQ2_0", 64, -1, 3, true},  Layout{"Q1_0", 0, -1, 2},         Layout{"Q2_0", 0, -1, 4},
    Layout{"IQ2_XXS", 0, -1, 0},     Layout{"IQ2_XS", 0, -1, 0},        Layout{"IQ2_S", 0, -1, 0},        Layout{"IQ3_XXS", 0, -1, 0},
    Layout{"IQ3_S", 0, -1, 0},       Layout{"IQ1_S", 0, -1, 0},         Layout{"IQ1_M", -1, -1, 0},       Layout{"MXFP4", -1, -1, 16},
    Layout{"NVFP4", -1, -1, 16},
};

Layout layout_of(const BlockCodec& codec) {
  const auto found = std::find_if(kLayouts.begin(), kLayouts.end(), [&](const Layout& layout) { return layout.name == codec.name; });
  return found == kLayouts.end() ? Layout{codec.name} : *found;
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

/// Replaces `bits` bits of a byte.
void put_bits(std::uint8_t& byte, unsigned shift, unsigned bits, unsigned value) {
  const unsigned mask = ((1U << bits) - 1) << shift;
  byte = static_cast<std::uint8_t>((byte & ~mask) | ((value << shift) & mask));
}

/// Where codes lie in a block: their low bits, and the bits above those of 3 and more than 4 bits.
struct Places {
  unsigned low = 0, num_low = 0;  ///< bytes
  unsigned low_bits = 4;
  unsigned high = 0, num_high = 0;
};
Places places_of(std::uint32_t type) {
  switch (type) {
    case kQ4_0:
    case kIq4Nl:
      return {2, 16};
    case kQ4_1:
      return {4, 16};
    case kMxfp4:
      return {1, 16};
    case kNvfp4:
      return {4, 32};
    case kQ5_0:
      return {6, 16, 4, 2, 4};
    case kQ5_1:
      return {8, 16, 4, 4, 4};
    case kQ2K:
      return {16, 64, 2};
    case kQ3K:
      return {32, 64, 2, 0, 32};
    case kQ4K:
      return {16, 128};
    case kQ5K:
      return {48, 128, 4, 16, 32};
    case kQ6K:
      return {0, 128, 4, 128, 64};
    case kIq4Xs:
      return {8, 128};
    case kTq2_0:
      return {0, 64, 2};
    case kQ1_0:
      return {2, 16, 1};
    case kQ2_0:
      return {2, 16, 2};
    default:
      return {};
  }
}

/// Gives all values of a block one code.
void fill_codes(std::uint32_t type, std::uint8_t* block, unsigned code) {
  const Places places = places_of(type);
  const unsigned low = code & ((1U << places.low_bits) - 1), high = code >> places.low_bits;
  std::memset(block + places.low, static_cast<int>(low * (places.low_bits == 4 ? 0x11U : places.low_bits == 2 ? 0x55U : 0xFFU)), places.num_low);
  std::memset(block + places.high, static_cast<int>(high * (type == kQ6K ? 0x55U : 0xFFU)), places.num_high);
}

// How bytes hold the codes of the values of a block.

/// count nibbles of values, then those of as many that are behind them.
void put_nibbles(const std::uint8_t* codes, unsigned count, std::uint8_t* out) {
  for (unsigned i = 0; i < count; ++i) out[i] = static_cast<std::uint8_t>((codes[i] & 15) | (codes[count + i] & 15) << 4);
}
/// Of 256 values: two bits each, four that are 32 apart in a byte.
void put_two_bits(const std::uint8_t* codes, unsigned shift, std::uint8_t* out) {
  for (unsigned half = 0; half < 2; ++half, codes += 128, out += 32)
    for (unsigned l = 0; l < 32; ++l)
      out[l] = static_cast<std::uint8_t>((codes[l] >> shift & 3) | (codes[32 + l] >> shift & 3) << 2 | (codes[64 + l] >> shift & 3) << 4 |
                                         (codes[96 + l] >> shift & 3) << 6);
}
/// Of 256 values: one bit each, eight that are 32 apart in a byte.
void put_high_bits(const std::uint8_t* codes, unsigned shift, std::uint8_t* out) {
  for (unsigned l = 0; l < 32; ++l) {
    unsigned bits = 0;
    for (unsigned part = 0; part < 8; ++part) bits |= (codes[32 * part + l] >> shift & 1U) << part;
    out[l] = static_cast<std::uint8_t>(bits);
  }
}
/// One code after another, from the lowest bit of a byte on.
void put_in_order(const std::uint8_t* codes, unsigned count, unsigned bits, unsigned shift, std::uint8_t* out) {
  const unsigned a_byte = 8 / bits;
  for (unsigned i = 0; i < count / a_byte; ++i) {
    unsigned byte = 0;
    for (unsigned k = 0; k < a_byte; ++k) byte |= (codes[a_byte * i + k] >> shift & ((1U << bits) - 1)) << (bits * k);
    out[i] = static_cast<std::uint8_t>(byte);
  }
}

void put_codes(std::uint32_t type, const std::uint8_t* codes, std::uint8_t* block) {
  const Places places = places_of(type);
  std::uint8_t* low = block + places.low;
  std::uint8_t* high = block + places.high;
  switch (type) {
    case kQ4_0:
    case kIq4Nl:
    case kQ4_1:
    case kMxfp4:
      return put_nibbles(codes, 16, low);
    case kQ5_0:
    case kQ5_1:
      put_nibbles(codes, 16, low);
      return put_in_order(codes, 32, 1, 4, high);
    case kNvfp4:
      for (unsigned s = 0; s < 4; ++s) put_nibbles(codes + 16 * s, 8, low + 8 * s);
      return;
    case kQ3K:
      put_high_bits(codes, 2, high);
      [[fallthrough]];
    case kQ2K:
    case kTq2_0:
      return put_two_bits(codes, 0, low);
    case kQ5K:
      put_high_bits(codes, 4, high);
      [[fallthrough]];
    case kQ4K:
      for (unsigned c = 0; c < 4; ++c) put_nibbles(codes + 64 * c, 32, low + 32 * c);
      return;
    case kQ6K:
      for (unsigned half = 0; half < 2; ++half)
        for (unsigned l = 0; l < 64; ++l) {
          const std::uint8_t* own = codes + 128 * half + l;
          low[64 * half + l] = static_cast<std::uint8_t>((own[0] & 15) | (own[64] & 15) << 4);
        }
      return put_two_bits(codes, 4, high);
    case kIq4Xs:
      for (unsigned s = 0; s < 8; ++s) put_nibbles(codes + 32 * s, 16, low + 16 * s);
      return;
    case kQ1_0:
      return put_in_order(codes, 128, 1, 0, low);
    case kQ2_0:
      return put_in_order(codes, 64, 2, 0, low);
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

constexpr std::size_t kMostElements = 256, kMostBytes = 256;

/// A block and how far it has come.
struct Candidate {
  std::array<std::uint8_t, kMostBytes> bytes;
  double error = 0;
};

/// The search in one block: scales and codes are fitted to each other in turns, from several starts.
class Search {
 public:
  Search(const BlockCodec& codec, const Layout& layout, std::span<const float> x, std::span<const float> weights, std::uint8_t* block,
         std::array<float, kMostElements>& scratch)
      : codec_(codec), layout_(layout), x_(x), weights_(weights), block_(block), decoded_(scratch) {
    best_ = error_of(block_);
    active_ = std::isfinite(best_) && best_ != 0;
  }

  [[nodiscard]] bool active() const { return active_; }

  /// Goes on from these bytes, and keeps what is better than all before.
  void start(const std::uint8_t* bytes) {
    if (!active_) return;
    Candidate candidate;
    std::copy(bytes, bytes + codec_.block_bytes, candidate.bytes.begin());
    settle_zeros(codec_.ggml_id, x_, candidate.bytes.data());
    const std::uint64_t hash = hash_of(candidate.bytes.data());
    if (std::find(seen_.begin(), seen_.end(), hash) != seen_.end()) return;
    seen_.push_back(hash);
    refine(candidate);
  }

  /// Where the scale is a power of two or a small float: its neighbours.
  void try_neighbours() {
    if (!active_ || (codec_.ggml_id != kMxfp4 && codec_.ggml_id != kNvfp4)) return;
    const std::size_t num_scales = codec_.ggml_id == kMxfp4 ? 1 : 4;
    for (std::size_t s = 0; s < num_scales; ++s) {
      const int own = block_[s];
      for (int step = -4; step <= 4; ++step) {
        const int scale = own + step;
        if (step == 0 || scale < 0 || scale > (num_scales == 1 ? 254 : 126)) continue;
        Candidate other;
        std::copy(block_, block_ + codec_.block_bytes, other.bytes.begin());
        other.bytes[s] = static_cast<std::uint8_t>(scale);
        refine(other);
      }
    }
  }

 private:
  [[nodiscard]] std::uint64_t hash_of(const std::uint8_t* bytes) const {
    std::uint64_t hash = 0;
    for (std::size_t i = 0; i < codec_.block_bytes; i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes + i, std::min<std::size_t>(8, codec_.block_bytes - i));
      hash = (hash ^ word) * 0x9E3779B97F4A7C15ULL;
      hash ^= hash >> 29;
    }
    return hash;
  }

  double error_of(const std::uint8_t* bytes) {
    codec_.decode(bytes, 1, decoded_.data());
    double sums[4] = {};
    for (std::size_t i = 0; i < x_.size(); i += 4)
      for (std::size_t k = 0; k < 4; ++k) {
        const double difference = static_cast<double>(decoded_[i + k]) - static_cast<double>(x_[i + k]);
        sums[k] += weight(i + k) * difference * difference;
      }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  [[nodiscard]] double weight(std::size_t i) const { return weights_.empty() ? 1.0 : static_cast<double>(weights_[i]); }

  void refine(Candidate& now) {
    now.error = error_of(now.bytes.data());
    if (!std::isfinite(now.error)) return;
    for (int turn = 0; turn < 6; ++turn) {
      const double before = now.error;
      Candidate next = now;
      if (choose_codes(next.bytes.data())) accept(next, now);
      next = now;
      if (fit_scales(next.bytes.data())) accept(next, now);
      if (turn == 0 && now.error > 1.5 * best_) return;  // too far behind
      if (!(now.error < before * (1 - 1e-6))) break;
    }
    if (now.error < best_) {
      best_ = now.error;
      std::copy(now.bytes.begin(), now.bytes.begin() + codec_.block_bytes, block_);
    }
  }
  void accept(Candidate& next, Candidate& now) {
    next.error = error_of(next.bytes.data());
    if (next.error < now.error) now = next;
  }

  /// The nearest of all codes for each value, scales as they are.
  bool choose_codes(std::uint8_t* bytes) {
    const auto num_codes = static_cast<unsigned>(layout_.num_codes);
    const std::size_t count = x_.size();
    if (num_codes == 0) return false;
    if (codec_.ggml_id == kQ8_0) {
      const float scale = detail::f16_at(bytes);
      if (scale == 0) return false;
      for (unsigned i = 0; i < count; ++i)
        bytes[2 + i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::clamp(std::nearbyint(x_[i] / scale), -127.0F, 127.0F)));
      return true;
    }
    std::array<std::uint8_t, kMostElements> codes{};
    std::array<float, kMostElements> first;
    fill_codes(codec_.ggml_id, bytes, 0);
    codec_.decode(bytes, 1, first.data());
    if (layout_.even) {
      fill_codes(codec_.ggml_id, bytes, num_codes - 1);
      codec_.decode(bytes, 1, decoded_.data());
      const auto top = static_cast<float>(num_codes - 1);
      for (std::size_t i = 0; i < count; ++i) {
        const float range = decoded_[i] - first[i];
        const float place = range != 0 ? (x_[i] - first[i]) / range * top : 0.0F;
        codes[i] = static_cast<std::uint8_t>(static_cast<int>((place > 0 ? (place < top ? place : top) : 0.0F) + 0.5F));
      }
    } else {
      std::array<float, kMostElements> nearest;
      for (std::size_t i = 0; i < count; ++i) nearest[i] = std::fabs(first[i] - x_[i]);
      for (unsigned code = 1; code < num_codes; ++code) {
        fill_codes(codec_.ggml_id, bytes, code);
        codec_.decode(bytes, 1, decoded_.data());
        for (std::size_t i = 0; i < count; ++i) {
          const float distance = std::fabs(decoded_[i] - x_[i]);
          const bool nearer = distance < nearest[i];
          nearest[i] = nearer ? distance : nearest[i];
          codes[i] = nearer ? static_cast<std::uint8_t>(code) : codes[i];
        }
      }
    }
    put_codes(codec_.ggml_id, codes.data(), bytes);
    return true;
  }

  /// The scale, and the minimum where there is one, with the smallest error for the codes as they are.
  bool fit_scales(std::uint8_t* bytes) {
    if (layout_.scale < 0) return false;
    std::uint8_t* scale = bytes + layout_.scale;
    std::uint8_t* minimum = layout_.minimum < 0 ? nullptr : bytes + layout_.minimum;
    detail::put_half(1, scale);
    if (minimum != nullptr) detail::put_half(0, minimum);
    std::array<float, kMostElements> offset;
    codec_.decode(bytes, 1, decoded_.data());
    double best_scale = 0, best_minimum = 0;
    if (minimum == nullptr) {
      double aa[4] = {}, ax[4] = {};
      for (std::size_t i = 0; i < x_.size(); i += 4)
        for (std::size_t k = 0; k < 4; ++k) {
          const double a = static_cast<double>(decoded_[i + k]), wa = weight(i + k) * a;
          aa[k] += wa * a;
          ax[k] += wa * static_cast<double>(x_[i + k]);
        }
      const double below = (aa[0] + aa[1]) + (aa[2] + aa[3]);
      best_scale = below > 0 ? ((ax[0] + ax[1]) + (ax[2] + ax[3])) / below : 0;
    } else {
      detail::put_half(0, scale);
      detail::put_half(1, minimum);
      codec_.decode(bytes, 1, offset.data());
      double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
      for (std::size_t i = 0; i < x_.size(); ++i) {
        const double a = static_cast<double>(decoded_[i]), b = static_cast<double>(offset[i]), v = static_cast<double>(x_[i]);
        const double wa = weight(i) * a, wb = weight(i) * b;
        aa += wa * a;
        ab += wa * b;
        bb += wb * b;
        ax += wa * v;
        bx += wb * v;
      }
      best_scale = aa > 0 ? ax / aa : 0;
      const double determinant = aa * bb - ab * ab;
      if (determinant > 1e-12 * aa * bb) {
        best_scale = (ax * bb - bx * ab) / determinant;
        best_minimum = (aa * bx - ab * ax) / determinant;
      }
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
  std::array<float, kMostElements>& decoded_;
  std::vector<std::uint64_t> seen_;  ///< starts
  double best_ = 0;
  bool active_ = false;
};

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  return largest;
}

}  // namespace

void encode_row_better(const BlockCodec& codec, std::span<const float> row, const Metric& metric, std::uint8_t* out) {
  codec.encode_row(row, metric, out);
  const Layout layout = layout_of(codec);
  const std::size_t size = codec.block_elements, num_blocks = row.size() / size;
  std::array<float, kMostElements> scratch;
  std::vector<Search> blocks;
  blocks.reserve(num_blocks);
  bool any = false;
  for (std::size_t b = 0; b < num_blocks; ++b) {
    const std::span<const float> weights = metric.column_weights.empty() ? std::span<const float>() : metric.column_weights.subspan(b * size, size);
    blocks.emplace_back(codec, layout, row.subspan(b * size, size), weights, out + b * codec.block_bytes, scratch);
    any = any || blocks.back().active();
  }
  if (!any) return;

  // Encoders go over whole rows, whose blocks they search side by side.
  std::vector<std::uint8_t> bytes(out, out + num_blocks * codec.block_bytes);
  const auto start_all = [&] {
    for (std::size_t b = 0; b < num_blocks; ++b) blocks[b].start(bytes.data() + b * codec.block_bytes);
  };
  const auto attempt = [&](std::span<const float> values, std::span<const float> weights) {
    codec.encode_row(values, {weights}, bytes.data());
    start_all();
  };
  start_all();
  // Encoders count a value as importance * sqrt(spread + value^2); divided by that beforehand, what remains is the error that counts.
  std::vector<float> flat(row.size()), plain(row.size(), 1.0F), largest(num_blocks);
  if (!metric.column_weights.empty()) plain.assign(metric.column_weights.begin(), metric.column_weights.end());
  // Those of short blocks take the spread of the row.
  const std::size_t together = size < 256 ? row.size() : size;
  for (std::size_t first = 0; first < row.size(); first += together) {
    double squares = 0;
    for (std::size_t i = first; i < first + together; ++i) squares += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    const double spread = (size < 256 ? 1 : 2) * squares / static_cast<double>(together);
    for (std::size_t i = first; i < first + together; ++i)
      flat[i] = static_cast<float>(static_cast<double>(plain[i]) / std::sqrt(spread + static_cast<double>(row[i]) * static_cast<double>(row[i])));
  }
  for (float& weight : flat)
    if (!std::isfinite(weight)) weight = 0;
  // Zeros are next to nothing instead: the encoder of IQ3_S puts what follows a sub-block of zeros in the wrong place.
  std::vector<float> values(row.begin(), row.end());
  for (std::size_t b = 0; b < num_blocks; ++b) {
    largest[b] = largest_magnitude(row.subspan(b * size, size));
    if (codec.ggml_id == kIq3S)
      std::replace(values.begin() + static_cast<std::ptrdiff_t>(b * size), values.begin() + static_cast<std::ptrdiff_t>((b + 1) * size), 0.0F,
                   1e-6F * largest[b]);
  }
  attempt(values, flat);
  attempt(values, plain);
  attempt(values, {});
  // What is cut off loses more, all others lose less.
  std::vector<float> cut(row.size());
  for (const float share : {0.95F, 0.9F, 0.8F, 0.7F, 0.6F, 0.45F, 0.3F}) {
    for (std::size_t i = 0; i < cut.size(); ++i) {
      const float limit = share * largest[i / size];
      cut[i] = std::clamp(values[i], -limit, limit);
    }
    attempt(cut, flat);
  }
  for (Search& block : blocks) block.try_neighbours();
}

}  // namespace weft::codec
