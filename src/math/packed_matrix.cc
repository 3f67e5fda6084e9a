#include "math/packed_matrix.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "math/packed_kernels.h"
#include "math/simd_config.h"
#include "math/small_float.h"
#include "math/targets.h"
#include "weft/error.h"

#include "hwy/highway.h"

namespace weft::math {

static_assert(std::endian::native == std::endian::little);

namespace {

using packed::Form;
using packed::Kernels;

/// What the layout needs to know about a type.
struct Layout {
  Form form = packed::plain4;
  int bits = 4;
  std::size_t record_units = 1;
  std::size_t record_bytes = 32;
  int scale_kind = 0, zero_kind = 0;
  float zero = 0;
};

Form plain_form(int bits) {
  switch (bits) {
    case 2:
      return packed::plain2;
    case 3:
      return packed::plain3;
    case 4:
      return packed::plain4;
    case 5:
      return packed::plain5;
    case 6:
      return packed::plain6;
    default:
      return packed::plain8;
  }
}

Layout layout_of(const PackedFormat& format) {
  const auto middle = [](int bits) { return static_cast<float>(1 << (bits - 1)); };
  const auto legacy = [&](int bits, bool has_minimum) {
    return Layout{
        plain_form(bits), bits, 1, has_minimum ? std::size_t{64} : std::size_t{32}, 0, has_minimum ? 3 : 0, has_minimum ? 0.0F : middle(bits)};
  };
  switch (format.type) {
    case PackedType::q4_0:
      return legacy(4, false);
    case PackedType::q4_1:
      return legacy(4, true);
    case PackedType::q5_0:
      return legacy(5, false);
    case PackedType::q5_1:
      return legacy(5, true);
    case PackedType::q8_0:
      return legacy(8, false);
    case PackedType::q2_k:
      return {packed::k2, 2, 8, 320};
    case PackedType::q3_k:
      return {packed::k3, 3, 8, 224};
    case PackedType::q4_k:
      return {packed::k4, 4, 8, 256};
    case PackedType::q5_k:
      return {packed::k5, 5, 8, 256};
    case PackedType::q6_k:
      return {packed::k6, 6, 8, 288};
    case PackedType::iq4_nl:
      return {packed::table4, 4, 1, 32};
    case PackedType::integer:
    case PackedType::table:
    case PackedType::e4m3:
      break;
  }
  Layout layout;
  layout.scale_kind = format.scale_type == DType::f32 ? 2 : format.scale_type == DType::bf16 ? 1 : 0;
  layout.record_units = format.group / 32;
  const std::size_t number = layout.scale_kind == 2 ? 4 : 2;
  layout.record_bytes = kTileLanes * number;
  if (format.type == PackedType::table) {
    layout.form = packed::table4;
  } else if (format.type == PackedType::e4m3) {
    layout.form = packed::numbers8;
    layout.bits = 8;
  } else {
    layout.form = plain_form(format.bits);
    layout.bits = format.bits;
    layout.zero_kind = format.zero == PackedZero::middle ? 0 : format.zero == PackedZero::bytes ? 1 : 2;
    if (layout.zero_kind == 0) layout.zero = middle(format.bits);
    if (layout.zero_kind == 1) layout.record_bytes += kTileLanes;
    if (layout.zero_kind == 2) layout.record_bytes += kTileLanes * number;
  }
  return layout;
}

// ---- From files

constexpr std::uint32_t kLow4 = 0x0F0F0F0F, kLow2 = 0x03030303, kLow1 = 0x01010101;

/// c[k] holds the codes of columns 4k .. 4k + 3, a byte each. p: of the row's lane.
void store_codes(int bits, const std::uint32_t (&c)[8], std::uint8_t* p) {
  const auto put = [p](int word, std::uint32_t value) { std::memcpy(p + 64 * word, &value, 4); };
  if (bits == 8) {
    for (int k = 0; k < 8; ++k) put(k, c[k]);
    return;
  }
  const auto pairs = [&c](int from, int shift) {
    std::uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= (c[from + i] >> shift & kLow2) << (2 * i);
    return word;
  };
  if (bits >= 4) {
    for (int i = 0; i < 4; ++i) put(i, (c[i] & kLow4) | (c[4 + i] & kLow4) << 4);
  } else {
    put(0, pairs(0, 0));
    put(1, pairs(4, 0));
  }
  if (bits == 6) {
    put(4, pairs(0, 4));
    put(5, pairs(4, 4));
  }
  if (bits == 5 || bits == 3) {
    std::uint32_t plane = 0;
    for (int k = 0; k < 8; ++k) plane |= (c[k] >> (bits - 1) & kLow1) << k;
    put(bits - 1, plane);
  }
}

std::uint32_t word_of(const std::uint8_t* p) {
  std::uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

/// The nibbles of 16 bytes: columns 0 .. 15 are the low ones.
void nibbles(const std::uint8_t* p, std::uint32_t (&c)[8]) {
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t word = word_of(p + 4 * i);
    c[i] = word & kLow4;
    c[4 + i] = word >> 4 & kLow4;
  }
}
/// Bit i of a word becomes the fifth of column i.
void fifth_bits(const std::uint8_t* p, std::uint32_t (&c)[8]) {
  const std::uint32_t bits = word_of(p);
  for (int k = 0; k < 8; ++k) c[k] |= ((bits >> (4 * k) & 15U) * 0x00204081U & kLow1) << 4;
}

void six_bit_pairs(const std::uint8_t* packed, std::uint8_t* scales, std::uint8_t* minima) {
  for (int j = 0; j < 4; ++j) {
    scales[j] = packed[j] & 63;
    minima[j] = packed[j + 4] & 63;
    scales[j + 4] = static_cast<std::uint8_t>((packed[j + 8] & 15) | (packed[j] >> 6) << 4);
    minima[j + 4] = static_cast<std::uint8_t>((packed[j + 8] >> 4) | (packed[j + 4] >> 6) << 4);
  }
}

std::uint16_t half_of(float value) { return static_cast<std::uint16_t>(encode_small(kF16, std::bit_cast<std::uint32_t>(value))); }

void put_number(int kind, float value, std::uint8_t* at, std::size_t lane) {
  if (kind == 2) {
    std::memcpy(at + 4 * lane, &value, 4);
    return;
  }
  const std::uint16_t code = kind == 1 ? static_cast<std::uint16_t>(encode_bf16(std::bit_cast<std::uint32_t>(value))) : half_of(value);
  std::memcpy(at + 2 * lane, &code, 2);
}

constexpr std::size_t kBlockElements = 256;

/// Vectors of codes are also loaded from up to three bytes further on.
constexpr std::size_t kReadBeyond = 3;

// ---- Targets

std::atomic<const Kernels*> forced{nullptr};

struct Candidate {
  const Kernels* kernels;
  bool supported;
  std::int64_t needs;  ///< Highway's target that WEFT_SIMD must allow
};

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> kAll = [] {
    std::vector<Candidate> all;
#ifdef WEFT_PACKED_X86
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
                      __builtin_cpu_supports("avx512dq") != 0;
    const bool usual = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && __builtin_cpu_supports("f16c") != 0;
    all.push_back({&packed::kAvx512Vnni, wide && usual && __builtin_cpu_supports("avx512vnni") != 0, HWY_AVX3});
    all.push_back({&packed::kAvx512, wide && usual, HWY_AVX3});
    all.push_back({&packed::kAvx2Vnni, usual && __builtin_cpu_supports("avxvnni") != 0, HWY_AVX2});
    all.push_back({&packed::kAvx2, usual, HWY_AVX2});
#endif
    all.push_back({&packed::kPortable, true, 0});
    return all;
  }();
  return kAll;
}

const Kernels& active() {
  if (const Kernels* chosen = forced.load(std::memory_order_relaxed); chosen != nullptr) return *chosen;
  // That target or a better one, which is a lower bit.
  const std::int64_t allowed = allowed_targets();
  for (const Candidate& candidate : candidates())
    if (candidate.supported && (candidate.needs == 0 || (allowed & (2 * candidate.needs - 1)) != 0)) return *candidate.kernels;
  return packed::kPortable;
}

}  // namespace

// ---- Formats

constexpr std::pair<std::string_view, PackedType> kBlockTypes[] = {
    {"Q4_0", PackedType::q4_0}, {"Q4_1", PackedType::q4_1}, {"Q5_0", PackedType::q5_0},    {"Q5_1", PackedType::q5_1},
    {"Q8_0", PackedType::q8_0}, {"Q2_K", PackedType::q2_k}, {"Q3_K", PackedType::q3_k},    {"Q4_K", PackedType::q4_k},
    {"Q5_K", PackedType::q5_k}, {"Q6_K", PackedType::q6_k}, {"IQ4_NL", PackedType::iq4_nl}};

bool find_packed_format(std::string_view block_type, PackedFormat& format) noexcept {
  for (const auto& [name, type] : kBlockTypes)
    if (name == block_type) {
      format = {};
      format.type = type;
      return true;
    }
  return false;
}
std::string_view block_type_of(const PackedFormat& format) noexcept {
  for (const auto& [name, type] : kBlockTypes)
    if (type == format.type) return name;
  return {};
}

bool can_pack(const PackedFormat& format, std::size_t columns) noexcept {
  if (columns == 0 || columns % 32 != 0) return false;
  switch (format.type) {
    case PackedType::q2_k:
    case PackedType::q3_k:
    case PackedType::q4_k:
    case PackedType::q5_k:
    case PackedType::q6_k:
      return columns % kBlockElements == 0;
    case PackedType::integer:
      if ((format.bits < 2 || format.bits > 6) && format.bits != 8) return false;
      [[fallthrough]];
    case PackedType::table:
    case PackedType::e4m3:
      return format.group > 0 && format.group % 32 == 0 &&
             (format.scale_type == DType::f16 || format.scale_type == DType::bf16 || format.scale_type == DType::f32);
    default:
      return true;
  }
}

std::uint64_t packed_size(const PackedFormat& format, std::size_t rows, std::size_t columns) {
  const Layout layout = layout_of(format);
  const std::uint64_t tiles = (rows + kTileLanes - 1) / kTileLanes, units = columns / 32;
  const std::uint64_t records = (units + layout.record_units - 1) / layout.record_units;
  return tiles * (units * static_cast<std::uint64_t>(layout.bits) * 64 + records * layout.record_bytes);
}

PackedMatrix::PackedMatrix(const PackedFormat& format, std::size_t rows, std::size_t columns) : format_(format) {
  WEFT_ASSERT(can_pack(format, columns));
  const Layout layout = layout_of(format);
  form_ = layout.form;
  view_.rows = rows;
  view_.units = columns / 32;
  view_.unit_bytes = static_cast<std::size_t>(layout.bits) * 64;
  view_.record_units = layout.record_units;
  view_.record_bytes = layout.record_bytes;
  view_.tile_codes = view_.units * view_.unit_bytes;
  view_.tile_scales = (view_.units + layout.record_units - 1) / layout.record_units * layout.record_bytes;
  view_.scale_kind = layout.scale_kind;
  view_.zero_kind = layout.zero_kind;
  view_.zero = layout.zero;
  codes_ = AlignedBytes(num_tiles() * view_.tile_codes + kReadBeyond);
  scales_ = AlignedBytes(num_tiles() * view_.tile_scales);
  if (rows % kTileLanes != 0 && num_tiles() > 0) std::memset(codes_.data() + (num_tiles() - 1) * view_.tile_codes, 0, view_.tile_codes);
  std::memset(scales_.data(), 0, scales_.size());
  view_.codes = reinterpret_cast<const std::uint8_t*>(codes_.data());
  view_.scales = reinterpret_cast<const std::uint8_t*>(scales_.data());
  static constexpr float kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  for (std::size_t i = 0; i < 16; ++i) {
    const auto code = static_cast<float>(i);
    table_[i] = format.type == PackedType::table    ? format.levels[i]
                : format.type == PackedType::iq4_nl ? kIq4[i]
                : form_ == packed::k4               ? code
                                                    : code - 8;
  }
}

bool PackedMatrix::can_split_inputs() const noexcept { return packed::kPortable.fine[form_] != nullptr; }

void PackedMatrix::put_blocks(std::size_t row, const std::uint8_t* blocks) {
  const std::size_t tile = row / kTileLanes, lane = row % kTileLanes;
  std::uint8_t* codes = reinterpret_cast<std::uint8_t*>(codes_.data()) + tile * view_.tile_codes + 4 * lane;
  std::uint8_t* scales = reinterpret_cast<std::uint8_t*>(scales_.data()) + tile * view_.tile_scales;
  std::uint32_t c[8];
  const std::size_t units = view_.units;
  const auto half = [](std::uint8_t* to, std::size_t at, const std::uint8_t* from) { std::memcpy(to + 2 * at, from, 2); };
  switch (format_.type) {
    case PackedType::q4_0:
    case PackedType::iq4_nl:
      for (std::size_t u = 0; u < units; ++u, blocks += 18, codes += view_.unit_bytes, scales += 32) {
        half(scales, lane, blocks);
        nibbles(blocks + 2, c);
        store_codes(4, c, codes);
      }
      return;
    case PackedType::q4_1:
    case PackedType::q5_1: {
      const bool five = format_.type == PackedType::q5_1;
      for (std::size_t u = 0; u < units; ++u, blocks += five ? 24 : 20, codes += view_.unit_bytes, scales += 64) {
        half(scales, lane, blocks);
        // What is taken away is the minimum negated.
        std::uint8_t minimum[2] = {blocks[2], static_cast<std::uint8_t>(blocks[3] ^ 0x80)};
        half(scales + 32, lane, minimum);
        nibbles(blocks + (five ? 8 : 4), c);
        if (five) fifth_bits(blocks + 4, c);
        store_codes(five ? 5 : 4, c, codes);
      }
      return;
    }
    case PackedType::q5_0:
      for (std::size_t u = 0; u < units; ++u, blocks += 22, codes += view_.unit_bytes, scales += 32) {
        half(scales, lane, blocks);
        nibbles(blocks + 6, c);
        fifth_bits(blocks + 2, c);
        store_codes(5, c, codes);
      }
      return;
    case PackedType::q8_0:
      for (std::size_t u = 0; u < units; ++u, blocks += 34, codes += view_.unit_bytes, scales += 32) {
        half(scales, lane, blocks);
        for (int k = 0; k < 8; ++k) c[k] = word_of(blocks + 2 + 4 * k) ^ 0x80808080U;
        store_codes(8, c, codes);
      }
      return;
    case PackedType::q4_k:
    case PackedType::q5_k: {
      const bool five = format_.type == PackedType::q5_k;
      for (std::size_t u = 0; u < units; u += 8, blocks += five ? 176 : 144, scales += view_.record_bytes) {
        half(scales, lane, blocks);
        half(scales + 32, lane, blocks + 2);
        std::uint8_t s[8], m[8];
        six_bit_pairs(blocks + 4, s, m);
        std::uint8_t *low = scales + 64 + lane, *high = low + 128;
        for (int j = 0; j < 8; ++j) low[16 * j] = static_cast<std::uint8_t>((s[j] & 15) | (m[j] & 15) << 4);
        for (int j = 0; j < 4; ++j) high[16 * j] = static_cast<std::uint8_t>(s[j] >> 4 | m[j] >> 4 << 2 | s[j + 4] >> 4 << 4 | m[j + 4] >> 4 << 6);
        const std::uint8_t *fifths = blocks + 16, *qs = blocks + (five ? 48 : 16);
        for (int j = 0; j < 8; ++j, codes += view_.unit_bytes) {
          for (int k = 0; k < 8; ++k) {
            c[k] = word_of(qs + 32 * (j / 2) + 4 * k) >> (4 * (j % 2)) & kLow4;
            if (five) c[k] |= (word_of(fifths + 4 * k) >> j & kLow1) << 4;
          }
          store_codes(five ? 5 : 4, c, codes);
        }
      }
      return;
    }
    case PackedType::q6_k:
      for (std::size_t u = 0; u < units; u += 8, blocks += 210, scales += view_.record_bytes) {
        half(scales, lane, blocks + 208);
        for (std::size_t s = 0; s < 16; ++s) scales[32 + 16 * s + lane] = blocks[192 + s];
        for (int j = 0; j < 8; ++j, codes += view_.unit_bytes) {
          const int part = j % 4;
          const std::uint8_t *low = blocks + 64 * (j / 4) + 32 * (part % 2), *high = blocks + 128 + 32 * (j / 4);
          for (int k = 0; k < 8; ++k) c[k] = (word_of(low + 4 * k) >> (4 * (part / 2)) & kLow4) | (word_of(high + 4 * k) >> (2 * part) & kLow2) << 4;
          store_codes(6, c, codes);
        }
      }
      return;
    case PackedType::q2_k:
      for (std::size_t u = 0; u < units; u += 8, blocks += 84, scales += view_.record_bytes) {
        half(scales, lane, blocks + 80);
        half(scales + 32, lane, blocks + 82);
        for (std::size_t s = 0; s < 16; ++s) scales[64 + 16 * s + lane] = blocks[s];
        for (int j = 0; j < 8; ++j, codes += view_.unit_bytes) {
          for (int k = 0; k < 8; ++k) c[k] = word_of(blocks + 16 + 32 * (j / 4) + 4 * k) >> (2 * (j % 4)) & kLow2;
          store_codes(2, c, codes);
        }
      }
      return;
    case PackedType::q3_k:
      for (std::size_t u = 0; u < units; u += 8, blocks += 110, scales += view_.record_bytes) {
        half(scales, lane, blocks + 108);
        std::uint8_t s[16];
        const std::uint8_t* small = blocks + 96;
        for (int j = 0; j < 16; ++j) {
          const int low = j < 8 ? small[j] & 15 : small[j - 8] >> 4;
          s[j] = static_cast<std::uint8_t>(low | (small[8 + j % 4] >> (2 * (j / 4)) & 3) << 4);
        }
        std::uint8_t *low = scales + 32 + lane, *high = low + 128;
        for (int j = 0; j < 8; ++j) low[16 * j] = static_cast<std::uint8_t>((s[j] & 15) | (s[j + 8] & 15) << 4);
        for (int j = 0; j < 4; ++j)
          high[16 * j] = static_cast<std::uint8_t>(s[j] >> 4 | s[j + 4] >> 4 << 2 | s[j + 8] >> 4 << 4 | s[j + 12] >> 4 << 6);
        for (int j = 0; j < 8; ++j, codes += view_.unit_bytes) {
          for (int k = 0; k < 8; ++k)
            c[k] = (word_of(blocks + 32 + 32 * (j / 4) + 4 * k) >> (2 * (j % 4)) & kLow2) | (word_of(blocks + 4 * k) >> j & kLow1) << 2;
          store_codes(3, c, codes);
        }
      }
      return;
    case PackedType::integer:
    case PackedType::table:
    case PackedType::e4m3:
      throw Error(ErrorCode::internal, "blocks of a type that has none");
  }
}

void PackedMatrix::put_codes(std::size_t row, const std::uint8_t* codes, const float* scales, const float* zeros) {
  const std::size_t tile = row / kTileLanes, lane = row % kTileLanes;
  std::uint8_t* to = reinterpret_cast<std::uint8_t*>(codes_.data()) + tile * view_.tile_codes;
  std::uint8_t* record = reinterpret_cast<std::uint8_t*>(scales_.data()) + tile * view_.tile_scales;
  const bool numbers = format_.type == PackedType::e4m3;
  const int bits = static_cast<int>(view_.unit_bytes / 64);
  for (std::size_t u = 0; u < view_.units; ++u, to += view_.unit_bytes, codes += 32) {
    if (numbers) {
      for (std::size_t column = 0; column < 32; ++column) to[2 * kTileLanes * (column / 2) + 2 * lane + column % 2] = codes[column];
      continue;
    }
    std::uint32_t c[8];
    for (int k = 0; k < 8; ++k) c[k] = word_of(codes + 4 * k);
    store_codes(bits, c, to + 4 * lane);
  }
  const std::size_t groups = view_.tile_scales / view_.record_bytes;
  for (std::size_t g = 0; g < groups; ++g, record += view_.record_bytes) {
    put_number(view_.scale_kind, scales[g], record, lane);
    std::uint8_t* behind = record + kTileLanes * (view_.scale_kind == 2 ? 4 : 2);
    if (view_.zero_kind == 1) behind[lane] = static_cast<std::uint8_t>(zeros[g]);
    if (view_.zero_kind == 2) put_number(view_.scale_kind, zeros[g], behind, lane);
  }
}

void PackedMatrix::decode(std::size_t first_tile, std::size_t num_tiles, std::size_t first_column, std::size_t num_columns, float* out,
                          std::size_t stride) const {
  const PackedView view = this->view();
  const auto kernel = active().decode[form_];
  for (std::size_t i = 0; i < num_tiles; ++i) kernel(view, first_tile + i, first_column / 32, num_columns / 32, out + i * kTileLanes, stride);
}

void PackedMatrix::read_row(std::size_t row, float* out) const {
  constexpr std::size_t kAtOnce = 256;
  alignas(64) float columns_of_tile[kAtOnce * kTileLanes];
  for (std::size_t first = 0; first < columns(); first += kAtOnce) {
    const std::size_t count = std::min(kAtOnce, columns() - first);
    decode(row / kTileLanes, 1, first, count, columns_of_tile, kTileLanes);
    for (std::size_t c = 0; c < count; ++c) out[first + c] = columns_of_tile[c * kTileLanes + row % kTileLanes];
  }
}

// ---- x

namespace {

/// A number of x.
constexpr std::size_t input_bytes(PackedInputs kind) { return kind == PackedInputs::rounded ? 1 : kind == PackedInputs::fine ? 3 : sizeof(float); }

}  // namespace

PackedInput::PackedInput(PackedInputs kind, std::size_t num_rows, std::size_t columns) : kind_(kind), num_rows_(num_rows), columns_(columns) {
  WEFT_ASSERT(columns % 32 == 0);
  values_ = AlignedBytes(num_rows * columns * input_bytes(kind));
  facts_ = AlignedBytes(num_rows * columns / 32 * 4 * sizeof(float));
}

std::size_t PackedInput::num_blocks() const noexcept { return (num_rows_ + packed::kMostRows - 1) / packed::kMostRows; }

PackedInput::View PackedInput::block(std::size_t index) const {
  View view;
  view.first_row = index * packed::kMostRows;
  view.num_rows = std::min(packed::kMostRows, num_rows_ - view.first_row);
  const std::byte* values = values_.data() + view.first_row * columns_ * input_bytes(kind_);
  if (kind_ == PackedInputs::exact)
    view.values = reinterpret_cast<const float*>(values);
  else
    view.codes = reinterpret_cast<const std::int8_t*>(values);
  view.facts = reinterpret_cast<const float*>(facts_.data()) + view.first_row * columns_ / 32 * 4;
  return view;
}

void PackedInput::fill(std::size_t index, const float* x, std::size_t stride) {
  const View view = block(index);
  const Kernels& kernels = active();
  const float* from = x + view.first_row * stride;
  auto* facts = const_cast<float*>(view.facts);
  if (kind_ == PackedInputs::rounded)
    kernels.round(from, stride, view.num_rows, columns_ / 32, const_cast<std::int8_t*>(view.codes), facts);
  else if (kind_ == PackedInputs::fine)
    kernels.split(from, stride, view.num_rows, columns_ / 32, const_cast<std::int8_t*>(view.codes), facts);
  else
    kernels.copy(from, stride, view.num_rows, columns_ / 32, const_cast<float*>(view.values), facts);
}

void packed_products(const PackedMatrix& matrix, std::size_t first_tile, std::size_t last_tile, const PackedInput& input, float* out,
                     std::size_t out_stride) {
  const Kernels& kernels = active();
  const auto kernel = (input.kind() == PackedInputs::rounded ? kernels.rounded
                       : input.kind() == PackedInputs::fine  ? kernels.fine
                                                             : kernels.exact)[matrix.form()];
  WEFT_ASSERT(kernel != nullptr);
  const PackedView view = matrix.view();
  for (std::size_t b = 0; b < input.num_blocks(); ++b) {
    const PackedInput::View block = input.block(b);
    kernel(view, block, first_tile, last_tile, out + block.first_row * out_stride, out_stride);
  }
}

// ---- Targets

std::vector<PackedTarget> packed_targets() {
  std::vector<PackedTarget> all;
  for (const Candidate& candidate : candidates()) all.push_back({candidate.kernels->name, candidate.supported});
  return all;
}

std::string active_packed_target() { return active().name; }
bool has_byte_products() { return active().has_byte_products; }

void use_only_packed_target(std::string_view name) {
  const Kernels* chosen = nullptr;
  for (const Candidate& candidate : candidates())
    if (name == candidate.kernels->name && candidate.supported) chosen = candidate.kernels;
  if (chosen == nullptr && !name.empty()) throw Error(ErrorCode::invalid_argument, "no such target here");
  forced.store(chosen);
}

}  // namespace weft::math
