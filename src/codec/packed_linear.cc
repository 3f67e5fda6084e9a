#include "codec/packed_linear.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "codec/stored_tensor.h"
#include "math/convert.h"
#include "math/round_codes.h"
#include "weft/error.h"

namespace weft::codec {
namespace {

using detail::stored;

StoredTensor stored_floats(std::string name, DType dtype, std::vector<std::int64_t> shape, std::span<const float> values) {
  StoredTensor out{std::move(name), dtype, std::move(shape), {}};
  out.bytes.resize(values.size() * static_cast<std::size_t>(info(dtype).bits) / 8);
  math::encode(dtype, values, out.bytes);
  return out;
}

std::size_t count(std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b); }

[[noreturn]] void no_place(const std::string& what, const char* advice) { throw Error(ErrorCode::unsupported, what, {}, advice); }

/// A matrix [rows, columns] with its axes exchanged.
template <typename Element>
std::vector<Element> transposed(std::span<const Element> in, std::int64_t rows, std::int64_t columns) {
  std::vector<Element> out(in.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) out[static_cast<std::size_t>(c * rows + r)] = in[static_cast<std::size_t>(r * columns + c)];
  return out;
}

/// Zero points as codes.
std::vector<std::uint8_t> integer_zeros(const QuantizedLinear& linear, const char* format) {
  std::vector<std::uint8_t> zeros(linear.zeros.size());
  const auto most = static_cast<float>((1 << linear.bits) - 1);
  for (std::size_t i = 0; i < zeros.size(); ++i) {
    const float zero = linear.zeros[i];
    if (zero != std::nearbyint(zero) || zero < 0 || zero > most)
      no_place(fmt::format("{} holds integer zero points, and {} is none of {} bits", format, zero, linear.bits),
               "methods with offsets of any value are held by --format weft");
    zeros[i] = static_cast<std::uint8_t>(zero);
  }
  return zeros;
}

void refuse_additions(const QuantizedLinear& linear, const char* format) {
  if (linear.scale_unit != 1 || linear.rounds_products)
    no_place(fmt::format("{} has no place for a unit of all scales, and for rounded products", format), "use --format weft");
  if (linear.rank > 0 || !linear.added.empty()) no_place(fmt::format("{} has no place for what is added to the codes", format), "use --format weft");
}

void need_integers(const QuantizedLinear& linear, const char* format) {
  refuse_additions(linear, format);
  if (linear.levels != Levels::integer || linear.row_group != 1)
    no_place(fmt::format("{} holds integers with scales along the inputs, not {}", format,
                         linear.levels == Levels::integer ? "scales of several rows" : std::string(info(linear.levels).name)),
             "compressed-tensors, bitsandbytes and weft's own form hold floating-point codes");
}

// ---- compressed-tensors' arithmetic ----

/// A number as the type that the tool computes in has it.
float in(DType type, float value) { return type == DType::f32 ? value : math::decode_one(type, math::encode_one(type, value)); }

float epsilon(DType type) { return type == DType::bf16 ? 0.0078125F : type == DType::f16 ? 0.0009765625F : 1.1920928955078125e-07F; }

/// The power of two that MX formats scale by, as its code: the largest value goes to the top of the range.
int mx_code(float largest, CompressedForm form) {
  if (largest == 0) return 0;
  int exponent = 0;
  const float fraction = std::frexp(largest, &exponent) * 2 - 1;  // of 1.fraction * 2^(exponent - 1)
  const float turn = form == CompressedForm::mxfp6 ? 0.9375F : 0.75F;
  const int power = exponent - 1 + (fraction >= turn ? 1 : 0);
  return std::clamp(127 + power - (form == CompressedForm::mxfp8 ? 8 : 2), 0, 254);
}

std::vector<std::uint8_t> nibbles(const QuantizedLinear& linear) {
  std::vector<std::uint8_t> bytes(count(linear.rows, linear.columns) / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(linear.codes[2 * i] | linear.codes[2 * i + 1] << 4);
  return bytes;
}

}  // namespace

std::vector<float> QuantizedLinear::decoded() const {
  std::vector<float> values(codes.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    // As far as the columns share a scale.
    std::int64_t end = 0;
    for (std::int64_t c = 0; c < columns; c = end) {
      end = !group_of.empty() ? c + 1 : group <= 0 ? columns : std::min(columns, c / group * group + group);
      const std::size_t at = scale_index(r, c);
      const float scale = global_divisor != 0 ? scales[at] / global_divisor : scales[at];
      const auto begin = static_cast<std::size_t>(r * columns + c), count = static_cast<std::size_t>(end - c);
      const std::uint8_t* from = codes.data() + begin;
      float* to = values.data() + begin;
      if (rounds_products) {
        for (std::size_t i = 0; i < count; ++i) to[i] = rounded_product(static_cast<float>(from[i]) - zeros[at], scale, scale_unit);
      } else if (levels == Levels::integer) {
        const float zero = zeros[at];
        for (std::size_t i = 0; i < count; ++i) to[i] = scale * (static_cast<float>(from[i]) - zero);
      } else {
        for (std::size_t i = 0; i < count; ++i) to[i] = scale * level(levels, from[i]);
      }
    }
  }
  if (rank > 0) add_product(left, right, rows, rank, columns, values);
  for (std::size_t i = 0; i < added.size(); ++i) values[static_cast<std::size_t>(added_at[i])] += added[i];
  return values;
}

void add_product(std::span<const float> left, std::span<const float> right, std::int64_t rows, std::int64_t rank, std::int64_t columns,
                 std::span<float> out) {
  const auto width = static_cast<std::size_t>(columns), depth = static_cast<std::size_t>(rank);
  std::vector<float> sums(width);
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
    std::fill(sums.begin(), sums.end(), 0.0F);
    for (std::size_t k = 0; k < depth; ++k)
      for (std::size_t c = 0; c < width; ++c) sums[c] += left[r * depth + k] * right[k * width + c];
    for (std::size_t c = 0; c < width; ++c) out[r * width + c] += sums[c];
  }
}

// ---- GPTQ --------------------------------------------------------------------------------------------------------------------------------

std::vector<StoredTensor> write_gptq(const QuantizedLinear& linear, GptqFormat format) {
  need_integers(linear, "the GPTQ layout");
  const bool planar = format == GptqFormat::planar;
  const bool has_width = planar ? linear.bits == 3 || (linear.bits >= 5 && linear.bits <= 7)
                                : linear.bits == 2 || linear.bits == 3 || linear.bits == 4 || linear.bits == 8;
  if (!has_width) no_place(fmt::format("the GPTQ layout holds 2, 3, 4 and 8 bits, not {}", linear.bits), "use --format compressed-tensors or weft");
  if (linear.rows % 32 != 0 || linear.columns % 32 != 0)
    no_place(fmt::format("the GPTQ layout packs in multiples of 32, and the layer is [{}, {}]", linear.rows, linear.columns),
             "use --format compressed-tensors, or leave the layer out with a rule");
  const WordForm form = planar ? WordForm::planar : WordForm::stream;
  const std::int64_t groups = linear.num_groups();
  const auto rows = static_cast<std::size_t>(linear.rows), columns = static_cast<std::size_t>(linear.columns);
  std::vector<std::uint8_t> zeros = integer_zeros(linear, "the GPTQ layout");
  if (format == GptqFormat::v1) {
    for (std::uint8_t& zero : zeros) {
      // Stored less one: the tools' packers spoil the neighbours of a -1.
      if (zero == 0) no_place("a zero point of 0 has no place in version 1 of the GPTQ layout", "write --format gptq_v2");
      --zero;
    }
  }
  const std::int64_t word_rows = linear.columns / 32 * linear.bits;
  std::vector<std::uint32_t> words(count(word_rows, linear.rows));
  // 32 codes of a few rows at a time: words of neighbouring rows are neighbours.
  constexpr std::size_t kTile = 64;
  const auto words_of_32 = static_cast<std::size_t>(linear.bits);
  for (std::size_t first = 0; first < rows; first += kTile)
    for (std::size_t c = 0; c < columns; c += 32)
      for (std::size_t r = first; r < std::min(rows, first + kTile); ++r)
        pack_words(linear.codes.data() + r * columns + c, 1, 32, linear.bits, form, words.data() + c / 32 * words_of_32 * rows + r, rows);
  const std::int64_t zero_words = linear.rows / 32 * linear.bits;
  std::vector<std::uint32_t> packed_zeros(count(groups, zero_words));
  for (std::int64_t g = 0; g < groups; ++g)
    pack_words(zeros.data() + g, static_cast<std::size_t>(groups), rows, linear.bits, form, packed_zeros.data() + g * zero_words, 1);
  std::vector<std::int32_t> group_of = linear.group_of;
  if (group_of.empty()) {
    group_of.resize(columns);
    for (std::int64_t c = 0; c < linear.columns; ++c)
      group_of[static_cast<std::size_t>(c)] = static_cast<std::int32_t>(linear.group <= 0 ? 0 : c / linear.group);
  }
  std::vector<StoredTensor> out;
  out.push_back(stored("qweight", DType::i32, {word_rows, linear.rows}, words));
  out.push_back(stored("qzeros", DType::i32, {groups, zero_words}, packed_zeros));
  out.push_back(stored_floats("scales", linear.scale_type, {groups, linear.rows}, transposed<float>(linear.scales, linear.rows, groups)));
  out.push_back(stored("g_idx", DType::i32, {linear.columns}, group_of));
  return out;
}

// ---- AWQ ---------------------------------------------------------------------------------------------------------------------------------

std::vector<StoredTensor> write_awq(const QuantizedLinear& linear) {
  need_integers(linear, "the AWQ layout");
  if (linear.bits != 4) no_place(fmt::format("the AWQ layout holds 4 bits, not {}", linear.bits), "use --format gptq, compressed-tensors or weft");
  if (!linear.group_of.empty()) no_place("the AWQ layout has groups of neighbouring inputs only", "use --format gptq, or static groups");
  if (linear.rows % 8 != 0 || (linear.group > 0 && linear.columns % linear.group != 0))
    no_place(fmt::format("the AWQ layout takes outputs in eights and whole groups, and the layer is [{}, {}] in groups of {}", linear.rows,
                         linear.columns, linear.group),
             "use --format compressed-tensors, or leave the layer out with a rule");
  const std::int64_t groups = linear.num_groups(), words = linear.rows / 8;
  const std::vector<std::uint8_t> zeros = integer_zeros(linear, "the AWQ layout");
  const auto pack = [&](std::span<const std::uint8_t> values, std::int64_t width) {
    std::vector<std::uint32_t> out(count(width, words));
    for (std::int64_t i = 0; i < width; ++i)
      for (std::int64_t w = 0; w < words; ++w) {
        std::uint32_t word = 0;
        for (int k = 0; k < 8; ++k) word |= std::uint32_t{values[count(8 * w + kAwqOrder[k], width) + static_cast<std::size_t>(i)]} << (4 * k);
        out[static_cast<std::size_t>(i * words + w)] = word;
      }
    return out;
  };
  std::vector<StoredTensor> out;
  out.push_back(stored("qweight", DType::i32, {linear.columns, words}, pack(linear.codes, linear.columns)));
  out.push_back(stored("qzeros", DType::i32, {groups, words}, pack(zeros, groups)));
  out.push_back(stored_floats("scales", linear.scale_type, {groups, linear.rows}, transposed<float>(linear.scales, linear.rows, groups)));
  return out;
}

// ---- compressed-tensors --------------------------------------------------------------------------------------------------------------------

std::string_view to_string(CompressedForm form) noexcept {
  static constexpr std::array<std::string_view, 7> kNames = {"pack-quantized",       "int-quantized",        "float-quantized",
                                                             "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized",
                                                             "mxfp8-quantized"};
  return kNames[static_cast<std::size_t>(form)];
}

std::vector<StoredTensor> write_compressed(const QuantizedLinear& linear, CompressedForm form) {
  refuse_additions(linear, "compressed-tensors");
  if (!linear.group_of.empty()) no_place("compressed-tensors takes groups of neighbouring inputs only", "use --format gptq, or static groups");
  if (linear.group > 0 && linear.columns % linear.group != 0 && linear.columns > linear.group && linear.row_group == 1)
    no_place(fmt::format("compressed-tensors takes whole groups, and {} inputs are no multiple of {}", linear.columns, linear.group),
             "choose another --group, or leave the layer out with a rule");
  const std::int64_t groups = linear.num_groups(), row_groups = linear.num_row_groups();
  const bool whole = linear.row_group >= linear.rows && groups == 1 && linear.row_group > 1;
  const std::vector<std::int64_t> scale_shape = whole ? std::vector<std::int64_t>{1} : std::vector<std::int64_t>{row_groups, groups};
  const auto rows = static_cast<std::size_t>(linear.rows), columns = static_cast<std::size_t>(linear.columns);
  std::vector<StoredTensor> out;
  const auto add_scales = [&](DType type) { out.push_back(stored_floats("weight_scale", type, scale_shape, linear.scales)); };
  const auto add_powers = [&] {
    std::vector<std::uint8_t> powers(linear.scales.size());
    for (std::size_t i = 0; i < powers.size(); ++i) powers[i] = static_cast<std::uint8_t>(math::encode_one(DType::f8_e8m0, linear.scales[i]));
    out.push_back(stored("weight_scale", DType::u8, scale_shape, powers));
  };
  const auto signed_codes = [&](std::span<const std::uint8_t> codes) {
    std::vector<std::uint8_t> values(codes.begin(), codes.end());
    for (std::uint8_t& value : values) value = static_cast<std::uint8_t>(value - (1 << (linear.bits - 1)));
    return values;
  };
  const std::vector<std::int64_t> shape = {linear.rows, linear.columns};
  switch (form) {
    case CompressedForm::pack_quantized: {
      if (linear.levels != Levels::integer) no_place("pack-quantized holds integers", "use float-quantized or one of the FP4 forms");
      const auto words = static_cast<std::int64_t>(words_for(columns, linear.bits, WordForm::stream));
      std::vector<std::uint32_t> packed(count(linear.rows, words));
      for (std::size_t r = 0; r < rows; ++r)
        pack_words(linear.codes.data() + r * columns, 1, columns, linear.bits, WordForm::stream, packed.data() + r * static_cast<std::size_t>(words),
                   1);
      out.push_back(stored("weight_packed", DType::i32, {linear.rows, words}, packed));
      add_scales(linear.scale_type);
      if (!linear.symmetric) {
        if (whole) no_place("pack-quantized has zero points of rows and groups only", "choose another --group");
        const std::vector<std::uint8_t> zeros = integer_zeros(linear, "pack-quantized");
        const auto zero_words = static_cast<std::int64_t>(words_for(static_cast<std::uint64_t>(row_groups), linear.bits, WordForm::stream));
        std::vector<std::uint32_t> packed_zeros(count(zero_words, groups));
        for (std::int64_t g = 0; g < groups; ++g)
          pack_words(zeros.data() + g, static_cast<std::size_t>(groups), static_cast<std::size_t>(row_groups), linear.bits, WordForm::stream,
                     packed_zeros.data() + g, static_cast<std::size_t>(groups));
        out.push_back(stored("weight_zero_point", DType::i32, {zero_words, groups}, packed_zeros));
      }
      out.push_back(stored("weight_shape", DType::i64, {2}, shape));
      return out;
    }
    case CompressedForm::int_quantized:
      if (linear.levels != Levels::integer) no_place("int-quantized holds integers", "use float-quantized");
      out.push_back(stored("weight", DType::i8, shape, signed_codes(linear.codes)));
      add_scales(linear.scale_type);
      if (!linear.symmetric) out.push_back(stored("weight_zero_point", DType::i8, scale_shape, signed_codes(integer_zeros(linear, "int-quantized"))));
      return out;
    case CompressedForm::float_quantized:
    case CompressedForm::mxfp8:
      if (linear.levels != Levels::e4m3) no_place(fmt::format("{} holds E4M3", to_string(form)), "use another form");
      out.push_back(stored("weight", DType::f8_e4m3, shape, linear.codes));
      if (form == CompressedForm::mxfp8)
        add_powers();
      else
        add_scales(linear.scale_type);
      return out;
    case CompressedForm::nvfp4:
    case CompressedForm::mxfp4:
      if (linear.levels != Levels::e2m1 || linear.columns % 2 != 0)
        no_place(fmt::format("{} holds E2M1 in pairs", to_string(form)), "use another form");
      out.push_back(stored("weight_packed", DType::u8, {linear.rows, linear.columns / 2}, nibbles(linear)));
      if (form == CompressedForm::mxfp4) {
        add_powers();
      } else {
        add_scales(DType::f8_e4m3);
        out.push_back(stored("weight_global_scale", DType::f32, {1}, std::vector<float>{linear.global_divisor}));
      }
      return out;
    case CompressedForm::mxfp6: {
      if (linear.levels != Levels::e2m3 || linear.columns % 4 != 0) no_place("mxfp6-pack-quantized holds E2M3 in fours", "use another form");
      std::vector<std::uint8_t> bytes(count(linear.rows, linear.columns) / 4 * 3);
      for (std::size_t i = 0; i < bytes.size() / 3; ++i) {
        std::uint32_t four = 0;
        for (unsigned k = 0; k < 4; ++k) four |= std::uint32_t{linear.codes[4 * i + k]} << (6 * k);
        for (unsigned k = 0; k < 3; ++k) bytes[3 * i + k] = static_cast<std::uint8_t>(four >> (8 * k));
      }
      out.push_back(stored("weight_packed", DType::u8, {linear.rows, linear.columns / 4 * 3}, bytes));
      add_powers();
      return out;
    }
  }
  return out;
}

QuantizedLinear quantize_compressed(std::span<const float> weights, std::int64_t rows, std::int64_t columns, DType weight_type, CompressedForm form,
                                    int bits, bool symmetric, std::int64_t group, std::int64_t row_group) {
  QuantizedLinear out;
  out.rows = rows;
  out.columns = columns;
  out.group = group <= 0 ? columns : group;
  out.row_group = row_group;
  out.scale_type = weight_type;
  out.symmetric = symmetric;
  const bool integers = form == CompressedForm::pack_quantized || form == CompressedForm::int_quantized;
  const bool powers = form == CompressedForm::mxfp4 || form == CompressedForm::mxfp6 || form == CompressedForm::mxfp8;
  out.levels = integers                                                         ? Levels::integer
               : form == CompressedForm::nvfp4 || form == CompressedForm::mxfp4 ? Levels::e2m1
               : form == CompressedForm::mxfp6                                  ? Levels::e2m3
                                                                                : Levels::e4m3;
  out.bits = integers ? bits : info(out.levels).bits;
  const std::int64_t groups = out.num_groups(), row_groups = out.num_row_groups();
  out.scales.assign(count(row_groups, groups), 0);
  if (integers) out.zeros.assign(out.scales.size(), static_cast<float>(1 << (bits - 1)));
  out.codes.resize(count(rows, columns));
  float largest_of_all = 0;
  for (const float w : weights) largest_of_all = std::max(largest_of_all, std::fabs(w));
  if (form == CompressedForm::nvfp4) {
    // As the tool has it, in the weight's own type, where a number over a tensor is its reciprocal times the number; 1 where there is nothing to
    // scale.
    out.global_divisor = largest_of_all == 0 ? 1.0F : in(weight_type, in(weight_type, 1.0F / largest_of_all) * (448.0F * 6.0F));
    if (!std::isfinite(out.global_divisor)) out.global_divisor = std::numeric_limits<float>::max();
  }
  const float lowest = -static_cast<float>(1 << (bits - 1)), most = static_cast<float>((1 << (bits - 1)) - 1);
  std::vector<float> slice;
  for (std::int64_t rg = 0; rg < row_groups; ++rg) {
    for (std::int64_t g = 0; g < groups; ++g) {
      float low = 0, high = 0;
      const std::int64_t first_row = rg * row_group, end_row = std::min(rows, first_row + row_group);
      const std::int64_t first = g * out.group, end = std::min(columns, first + out.group);
      for (std::int64_t r = first_row; r < end_row; ++r)
        for (std::int64_t c = first; c < end; ++c) {
          low = std::min(low, weights[static_cast<std::size_t>(r * columns + c)]);
          high = std::max(high, weights[static_cast<std::size_t>(r * columns + c)]);
        }
      const float largest = std::max(-low, high);
      float scale = 0, zero = 0;
      if (powers) {
        scale = math::decode_one(DType::f8_e8m0, static_cast<std::uint64_t>(mx_code(largest, form)));
      } else if (form == CompressedForm::nvfp4) {
        // The group's scale is a number of the weight's type before the tensor's is applied.
        scale = math::decode_one(DType::f8_e4m3, math::encode_one(DType::f8_e4m3, out.global_divisor * in(weight_type, largest / 6.0F)));
        if (scale == 0) scale = 0.125F;
      } else {
        const float span = integers ? most - lowest : 896.0F;
        scale = symmetric ? in(weight_type, largest / (span / 2)) : in(weight_type, in(weight_type, high - low) / span);
        if (!symmetric) {
          // Where there is no range the tool divides 0 by 0, and what it makes of that is 0.
          const float shifted = scale == 0 ? 0 : in(weight_type, lowest - in(weight_type, low / scale));
          zero = std::nearbyint(std::clamp(shifted, lowest, most));
        }
        if (scale == 0) scale = epsilon(weight_type);
      }
      const std::size_t at = count(rg, groups) + static_cast<std::size_t>(g);
      out.scales[at] = scale;
      if (integers) out.zeros[at] = zero - lowest;
      const float divisor = form == CompressedForm::nvfp4 ? scale / out.global_divisor : scale;
      const DType type = form == CompressedForm::nvfp4 ? DType::f32 : weight_type;
      slice.resize(static_cast<std::size_t>(end - first));
      for (std::int64_t r = first_row; r < end_row; ++r) {
        const auto from = static_cast<std::size_t>(r * columns + first);
        for (std::size_t c = 0; c < slice.size(); ++c) slice[c] = weights[from + c] / divisor;
        if (type != DType::f32) math::round_through(type, slice);
        if (!integers) {
          for (std::size_t c = 0; c < slice.size(); ++c) out.codes[from + c] = nearest_level(out.levels, slice[c]);
          continue;
        }
        if (!symmetric) {
          for (float& x : slice) x += zero;
          if (type != DType::f32) math::round_through(type, slice);
        }
        math::round_to_codes(slice, 1, -lowest, 0, most - lowest, out.codes.data() + from);
      }
    }
  }
  return out;
}

}  // namespace weft::codec
