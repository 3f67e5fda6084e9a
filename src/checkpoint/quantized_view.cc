#include "checkpoint/quantized_view.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/packed_rows.h"
#include "codec/packed_linear.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft {
namespace {

using codec::Levels;
using codec::WordForm;

constexpr std::uint64_t kBandBytes = std::uint64_t{16} << 20;
constexpr std::int64_t kMaxSide = std::int64_t{1} << 40;
constexpr std::uint64_t kMaxStateBytes = 64 << 10;
constexpr const char* kDamaged = "the file is damaged or was written by a broken tool; fetch it again";

/// Suffixes of what stands beside or in place of "MODULE.weight".
constexpr std::array<std::string_view, 10> kParts = {
    ".qweight",      ".qzeros",           ".weight_packed", ".weight_scale",       ".weight_zero_point",
    ".weight_shape", ".weight_scale_inv", ".SCB",           ".weight.quant_state", ".weight_form"};

[[noreturn]] void damaged(const Checkpoint& checkpoint, std::string_view tensor, const std::string& what) {
  throw Error(ErrorCode::corrupt, what, {.file = checkpoint.path().string(), .tensor = printable(tensor)}, kDamaged);
}
[[noreturn]] void unknown(const Checkpoint& checkpoint, std::string_view key, const std::string& what, const char* advice) {
  throw Error(ErrorCode::unsupported, what, {.file = checkpoint.path().string(), .key = printable(key)}, advice);
}

std::vector<std::byte> read_all(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> bytes(checked_size(tensor.size_bytes, "tensor"));
  checkpoint.read_bytes(tensor, 0, bytes);
  return bytes;
}

/// Columns [first, first + count) of a matrix, without gaps.
std::vector<std::byte> read_columns(const Checkpoint& checkpoint, const TensorInfo& tensor, std::int64_t first, std::int64_t count) {
  const auto element = static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8;
  const auto rows = static_cast<std::uint64_t>(tensor.shape[0]), columns = static_cast<std::uint64_t>(tensor.shape[1]);
  const std::uint64_t wanted = static_cast<std::uint64_t>(count) * element;
  std::vector<std::byte> bytes(checked_size(rows * wanted, "columns"));
  if (static_cast<std::uint64_t>(count) == columns) {
    checkpoint.read_bytes(tensor, 0, bytes);
    return bytes;
  }
  for (std::uint64_t r = 0; r < rows; ++r)
    checkpoint.read_bytes(tensor, (r * columns + static_cast<std::uint64_t>(first)) * element,
                          std::span(bytes).subspan(static_cast<std::size_t>(r * wanted), static_cast<std::size_t>(wanted)));
  return bytes;
}

std::vector<std::byte> read_rows(const Checkpoint& checkpoint, const TensorInfo& tensor, std::int64_t first, std::int64_t count) {
  const std::uint64_t row = tensor.shape[0] == 0 ? 0 : tensor.size_bytes / static_cast<std::uint64_t>(tensor.shape[0]);
  std::vector<std::byte> bytes(checked_size(row * static_cast<std::uint64_t>(count), "rows"));
  checkpoint.read_bytes(tensor, row * static_cast<std::uint64_t>(first), bytes);
  return bytes;
}

std::vector<std::uint32_t> words_of(const std::vector<std::byte>& bytes) {
  std::vector<std::uint32_t> words(bytes.size() / 4);
  if (!words.empty()) std::memcpy(words.data(), bytes.data(), words.size() * 4);
  return words;
}

std::vector<float> floats_of(DType dtype, const std::vector<std::byte>& bytes) {
  std::vector<float> values(bytes.size() * 8 / static_cast<std::size_t>(info(dtype).bits));
  math::decode(dtype, bytes, values);
  return values;
}

/// Scales, which are finite wherever a file makes sense.
std::vector<float> scales_of(const Checkpoint& checkpoint, const TensorInfo& tensor, const std::vector<std::byte>& bytes) {
  // Powers of two are kept as plain bytes.
  std::vector<float> values = floats_of(tensor.dtype == DType::u8 ? DType::f8_e8m0 : tensor.dtype, bytes);
  if (math::count_non_finite(values) > 0) damaged(checkpoint, tensor.name, "there are scales that are NaN or infinite");
  return values;
}

/// One matrix that is put together from packed parts.
class Packed {
 public:
  virtual ~Packed() = default;
  /// Rows [first, first + count) of [rows, columns].
  virtual void decode(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::span<float> out) const = 0;
  /// The same rows as codes, scales and zero points (with a count of 0 only the format); false where there is no format for what they are.
  virtual bool pack(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, PackedRows& out) const {
    static_cast<void>(checkpoint), static_cast<void>(first), static_cast<void>(count), static_cast<void>(out);
    return false;
  }
  [[nodiscard]] virtual std::vector<const TensorInfo*> parts() const = 0;

  std::int64_t rows = 0, columns = 0;
  DType dtype = DType::f16;
  std::string form;  ///< "GPTQ4"
};

const TensorInfo& part(const Checkpoint& checkpoint, const std::string& module, const char* suffix) {
  const TensorInfo* found = checkpoint.find_tensor(module + suffix);
  if (found == nullptr) damaged(checkpoint, module, fmt::format("the packed matrix '{}' lacks its part '{}'", printable(module), suffix + 1));
  return *found;
}

void need(bool holds, const Checkpoint& checkpoint, const TensorInfo& tensor, const std::string& expected) {
  if (!holds)
    damaged(checkpoint, tensor.name,
            fmt::format("tensor '{}' is {} {}, where {} is expected", printable(tensor.name), to_string(tensor.dtype), to_string(tensor.shape),
                        expected));
}
bool is_matrix(const TensorInfo& tensor, DType dtype) {
  return tensor.dtype == dtype && tensor.shape.size() == 2 && tensor.shape[0] > 0 && tensor.shape[1] > 0;
}
bool is_scale_type(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32; }

/// Begins rows of `count`: their sizes; false when the format cannot hold so many columns.
bool begin_rows(const math::PackedFormat& format, std::int64_t columns, std::int64_t count, PackedRows& out) {
  out = {};
  out.format = format;
  if (!math::can_pack(format, static_cast<std::size_t>(columns))) return false;
  const std::size_t groups = (static_cast<std::size_t>(columns) + format.group - 1) / format.group, n = static_cast<std::size_t>(count);
  out.codes.resize(n * static_cast<std::size_t>(columns));
  out.scales.resize(n * groups);
  if (format.type == math::PackedType::integer && format.zero != math::PackedZero::middle) out.zeros.resize(n * groups);
  return true;
}
/// A type for numbers of this one without loss.
DType kept_as(DType dtype) {
  if (dtype == DType::f8_e4m3) return DType::f16;
  return dtype == DType::u8 || dtype == DType::f8_e8m0 ? DType::bf16 : dtype;
}

// ---- GPTQ and AWQ ------------------------------------------------------------------------------------------------------------------------

struct IntegerLayout {
  int bits = 4;
  std::int64_t group = -1;
  WordForm form = WordForm::stream;
  int zero_bias = 0;        ///< added to what is stored
  bool fixed_zero = false;  ///< no zero points: the middle
};

class Gptq final : public Packed {
 public:
  Gptq(const Checkpoint& checkpoint, const std::string& module, const IntegerLayout& layout)
      : layout_(layout),
        codes_(part(checkpoint, module, ".qweight")),
        zeros_(part(checkpoint, module, ".qzeros")),
        scales_(part(checkpoint, module, ".scales")),
        index_(checkpoint.find_tensor(module + ".g_idx")) {
    need(is_matrix(codes_, DType::i32) && codes_.shape[0] % layout.bits == 0, checkpoint, codes_,
         fmt::format("I32 [inputs * {} / 32, outputs]", layout.bits));
    rows = codes_.shape[1];
    columns = codes_.shape[0] / layout.bits * 32;
    need(rows % 32 == 0, checkpoint, codes_, "a number of outputs that is a multiple of 32");
    need(scales_.shape.size() == 2 && is_scale_type(scales_.dtype) && scales_.shape[1] == rows && scales_.shape[0] > 0, checkpoint, scales_,
         fmt::format("F16 [groups, {}]", rows));
    const std::int64_t groups = scales_.shape[0], group = layout.group <= 0 ? columns : layout.group;
    need(groups == (columns + group - 1) / group, checkpoint, scales_,
         fmt::format("{} groups of {} inputs, for {} inputs,", (columns + group - 1) / group, group, columns));
    need(is_matrix(zeros_, DType::i32) && zeros_.shape[0] == groups && zeros_.shape[1] == rows / 32 * layout.bits, checkpoint, zeros_,
         fmt::format("I32 [{}, {}]", groups, rows / 32 * layout.bits));
    if (index_ != nullptr)
      need(index_->dtype == DType::i32 && index_->shape == Shape{columns}, checkpoint, *index_, fmt::format("I32 [{}]", columns));
    group_ = group;
    dtype = scales_.dtype;
    form = fmt::format("GPTQ{}", layout.bits);
  }

  void decode(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::span<float> out) const override {
    const auto width = static_cast<std::size_t>(columns), n = static_cast<std::size_t>(count);
    const std::vector<std::int32_t> group_of = groups_of_columns(checkpoint);
    const std::vector<std::uint32_t> words = words_of(read_columns(checkpoint, codes_, first, count));
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_columns(checkpoint, scales_, first, count));
    const std::vector<std::uint8_t> zeros = zero_points(checkpoint);
    std::vector<std::uint8_t> codes(width);
    for (std::size_t r = 0; r < n; ++r) {
      codec::unpack_words(words.data() + r, n, width, layout_.bits, layout_.form, codes.data(), 1);
      for (std::size_t c = 0; c < width; ++c) {
        const auto g = static_cast<std::size_t>(group_of[c]);
        const int zero = zeros[g * static_cast<std::size_t>(rows) + static_cast<std::size_t>(first) + r] + layout_.zero_bias;
        out[r * width + c] = scales[g * n + r] * static_cast<float>(codes[c] - zero);
      }
    }
  }
  bool pack(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, PackedRows& out) const override {
    // Version 1 has zero points up to 256, which a byte does not hold.
    const math::PackedFormat format{.type = math::PackedType::integer,
                                    .bits = layout_.bits,
                                    .group = static_cast<std::size_t>(group_),
                                    .scale_type = scales_.dtype,
                                    .zero = layout_.bits == 8 ? math::PackedZero::floats : math::PackedZero::bytes,
                                    .levels = {}};
    if (!begin_rows(format, columns, count, out)) return false;
    if (count == 0) {
      const std::vector<std::int32_t> group_of = groups_of_columns(checkpoint);
      for (std::size_t c = 0; c < group_of.size(); ++c)
        if (group_of[c] != static_cast<std::int32_t>(c / static_cast<std::size_t>(group_))) return false;  // in order of importance
      return true;
    }
    const auto width = static_cast<std::size_t>(columns), n = static_cast<std::size_t>(count), groups = static_cast<std::size_t>(scales_.shape[0]);
    const std::vector<std::uint32_t> words = words_of(read_columns(checkpoint, codes_, first, count));
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_columns(checkpoint, scales_, first, count));
    const std::vector<std::uint8_t> zeros = zero_points(checkpoint);
    for (std::size_t r = 0; r < n; ++r) {
      codec::unpack_words(words.data() + r, n, width, layout_.bits, layout_.form, out.codes.data() + r * width, 1);
      for (std::size_t g = 0; g < groups; ++g) {
        out.scales[r * groups + g] = scales[g * n + r];
        out.zeros[r * groups + g] =
            static_cast<float>(zeros[g * static_cast<std::size_t>(rows) + static_cast<std::size_t>(first) + r] + layout_.zero_bias);
      }
    }
    return true;
  }
  [[nodiscard]] std::vector<const TensorInfo*> parts() const override {
    std::vector<const TensorInfo*> all = {&codes_, &zeros_, &scales_};
    if (index_ != nullptr) all.push_back(index_);
    return all;
  }

 private:
  [[nodiscard]] std::vector<std::int32_t> groups_of_columns(const Checkpoint& checkpoint) const {
    std::vector<std::int32_t> group_of(static_cast<std::size_t>(columns));
    const std::int64_t groups = scales_.shape[0];
    if (index_ != nullptr) {
      const std::vector<std::byte> bytes = read_all(checkpoint, *index_);
      std::memcpy(group_of.data(), bytes.data(), bytes.size());
      for (const std::int32_t g : group_of)
        if (g < 0 || g >= groups)
          damaged(checkpoint, index_->name, fmt::format("'{}' places an input in group {}, and there are {}", printable(index_->name), g, groups));
    } else {
      for (std::size_t c = 0; c < group_of.size(); ++c) group_of[c] = static_cast<std::int32_t>(static_cast<std::int64_t>(c) / group_);
    }
    return group_of;
  }
  /// As they are stored [groups, rows]: they straddle words, so all of them.
  [[nodiscard]] std::vector<std::uint8_t> zero_points(const Checkpoint& checkpoint) const {
    const std::int64_t groups = scales_.shape[0];
    const std::vector<std::uint32_t> words = words_of(read_all(checkpoint, zeros_));
    std::vector<std::uint8_t> zeros(static_cast<std::size_t>(groups * rows));
    for (std::int64_t g = 0; g < groups; ++g)
      codec::unpack_words(words.data() + g * zeros_.shape[1], 1, static_cast<std::size_t>(rows), layout_.bits, layout_.form, zeros.data() + g * rows,
                          1);
    return zeros;
  }

  IntegerLayout layout_;
  const TensorInfo &codes_, &zeros_, &scales_;
  const TensorInfo* index_;
  std::int64_t group_ = 0;
};

class AwqGemm final : public Packed {
 public:
  AwqGemm(const Checkpoint& checkpoint, const std::string& module, const IntegerLayout& layout)
      : layout_(layout),
        codes_(part(checkpoint, module, ".qweight")),
        scales_(part(checkpoint, module, ".scales")),
        zeros_(checkpoint.find_tensor(module + ".qzeros")) {
    need(is_matrix(codes_, DType::i32), checkpoint, codes_, "I32 [inputs, outputs / 8]");
    columns = codes_.shape[0];
    rows = codes_.shape[1] * 8;
    group_ = layout.group <= 0 ? columns : layout.group;
    need(columns % group_ == 0, checkpoint, codes_, fmt::format("a number of inputs that is a multiple of the group of {}", group_));
    const std::int64_t groups = columns / group_;
    need(is_scale_type(scales_.dtype) && scales_.shape == Shape{groups, rows}, checkpoint, scales_, fmt::format("F16 [{}, {}]", groups, rows));
    if (zeros_ != nullptr)
      need(zeros_->dtype == DType::i32 && zeros_->shape == Shape{groups, rows / 8}, checkpoint, *zeros_,
           fmt::format("I32 [{}, {}]", groups, rows / 8));
    if (zeros_ == nullptr && !layout.fixed_zero)
      damaged(checkpoint, module, fmt::format("the packed matrix '{}' lacks its part 'qzeros'", printable(module)));
    dtype = scales_.dtype;
    form = "AWQ4";
  }

  void decode(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::span<float> out) const override {
    const std::int64_t first_word = first / 8, num_words = (first + count + 7) / 8 - first_word;
    const std::vector<std::uint32_t> words = words_of(read_columns(checkpoint, codes_, first_word, num_words));
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_columns(checkpoint, scales_, first, count));
    std::vector<std::uint32_t> zeros;
    if (zeros_ != nullptr && !layout_.fixed_zero) zeros = words_of(read_columns(checkpoint, *zeros_, first_word, num_words));
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int64_t word = (first + r) / 8 - first_word;
      for (std::int64_t c = 0; c < columns; ++c) {
        const std::int64_t g = c / group_;
        const int code = field(words[static_cast<std::size_t>(c * num_words + word)], first + r);
        const int zero = zeros.empty() ? 8 : field(zeros[static_cast<std::size_t>(g * num_words + word)], first + r);
        out[static_cast<std::size_t>(r * columns + c)] = scales[static_cast<std::size_t>(g * count + r)] * static_cast<float>(code - zero);
      }
    }
  }
  bool pack(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, PackedRows& out) const override {
    const bool has_zeros = zeros_ != nullptr && !layout_.fixed_zero;
    const math::PackedFormat format{.type = math::PackedType::integer,
                                    .bits = 4,
                                    .group = static_cast<std::size_t>(group_),
                                    .scale_type = scales_.dtype,
                                    .zero = has_zeros ? math::PackedZero::bytes : math::PackedZero::middle,
                                    .levels = {}};
    if (!begin_rows(format, columns, count, out)) return false;
    if (count == 0) return true;
    const std::int64_t first_word = first / 8, num_words = (first + count + 7) / 8 - first_word, groups = columns / group_;
    const std::vector<std::uint32_t> words = words_of(read_columns(checkpoint, codes_, first_word, num_words));
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_columns(checkpoint, scales_, first, count));
    std::vector<std::uint32_t> zeros;
    if (has_zeros) zeros = words_of(read_columns(checkpoint, *zeros_, first_word, num_words));
    for (std::int64_t r = 0; r < count; ++r) {
      const std::int64_t word = (first + r) / 8 - first_word;
      for (std::int64_t c = 0; c < columns; ++c)
        out.codes[static_cast<std::size_t>(r * columns + c)] =
            static_cast<std::uint8_t>(field(words[static_cast<std::size_t>(c * num_words + word)], first + r));
      for (std::int64_t g = 0; g < groups; ++g) {
        out.scales[static_cast<std::size_t>(r * groups + g)] = scales[static_cast<std::size_t>(g * count + r)];
        if (has_zeros)
          out.zeros[static_cast<std::size_t>(r * groups + g)] =
              static_cast<float>(field(zeros[static_cast<std::size_t>(g * num_words + word)], first + r));
      }
    }
    return true;
  }
  [[nodiscard]] std::vector<const TensorInfo*> parts() const override {
    std::vector<const TensorInfo*> all = {&codes_, &scales_};
    if (zeros_ != nullptr) all.push_back(zeros_);
    return all;
  }

 private:
  static int field(std::uint32_t word, std::int64_t row) {
    static constexpr std::array<unsigned, 8> kNibble = {0, 4, 1, 5, 2, 6, 3, 7};
    return static_cast<int>(word >> (4 * kNibble[static_cast<std::size_t>(row % 8)]) & 15U);
  }
  IntegerLayout layout_;
  const TensorInfo &codes_, &scales_;
  const TensorInfo* zeros_;
  std::int64_t group_ = 0;
};

class AwqGemv final : public Packed {
 public:
  AwqGemv(const Checkpoint& checkpoint, const std::string& module, const IntegerLayout& layout)
      : codes_(part(checkpoint, module, ".qweight")), zeros_(part(checkpoint, module, ".qzeros")), scales_(part(checkpoint, module, ".scales")) {
    need(is_matrix(codes_, DType::i32), checkpoint, codes_, "I32 [outputs, inputs / 8]");
    rows = codes_.shape[0];
    columns = codes_.shape[1] * 8;
    group_ = layout.group <= 0 ? columns : layout.group;
    need(columns % group_ == 0, checkpoint, codes_, fmt::format("a number of inputs that is a multiple of the group of {}", group_));
    // Zero points are padded to whole words, and those to what the kernel reads at once.
    const std::int64_t granule = group_ >= 128 ? 1 : group_ >= 64 ? 2 : 4;
    const std::int64_t words = ((columns / group_ + 7) / 8 + granule - 1) / granule * granule;
    need(zeros_.dtype == DType::i32 && zeros_.shape == Shape{rows, words}, checkpoint, zeros_, fmt::format("I32 [{}, {}]", rows, words));
    need(is_scale_type(scales_.dtype) && scales_.shape == Shape{rows, words * 8}, checkpoint, scales_, fmt::format("F16 [{}, {}]", rows, words * 8));
    dtype = scales_.dtype;
    form = "AWQ4";
  }
  void decode(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::span<float> out) const override {
    const std::vector<std::uint32_t> words = words_of(read_rows(checkpoint, codes_, first, count)),
                                     zeros = words_of(read_rows(checkpoint, zeros_, first, count));
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_rows(checkpoint, scales_, first, count));
    const std::int64_t zero_words = zeros_.shape[1];
    const auto field = [](std::uint32_t word, std::int64_t at) { return static_cast<int>(word >> (4 * (at % 8)) & 15U); };
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t c = 0; c < columns; ++c) {
        const std::int64_t g = c / group_;
        const int code = field(words[static_cast<std::size_t>(r * (columns / 8) + c / 8)], c),
                  zero = field(zeros[static_cast<std::size_t>(r * zero_words + g / 8)], g);
        out[static_cast<std::size_t>(r * columns + c)] = scales[static_cast<std::size_t>(r * zero_words * 8 + g)] * static_cast<float>(code - zero);
      }
  }
  bool pack(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, PackedRows& out) const override {
    const math::PackedFormat format{.type = math::PackedType::integer,
                                    .bits = 4,
                                    .group = static_cast<std::size_t>(group_),
                                    .scale_type = scales_.dtype,
                                    .zero = math::PackedZero::bytes,
                                    .levels = {}};
    if (!begin_rows(format, columns, count, out)) return false;
    if (count == 0) return true;
    const std::vector<std::uint32_t> words = words_of(read_rows(checkpoint, codes_, first, count)),
                                     zeros = words_of(read_rows(checkpoint, zeros_, first, count));
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_rows(checkpoint, scales_, first, count));
    const std::int64_t zero_words = zeros_.shape[1], groups = columns / group_;
    const auto field = [](std::uint32_t word, std::int64_t at) { return static_cast<std::uint8_t>(word >> (4 * (at % 8)) & 15U); };
    for (std::int64_t r = 0; r < count; ++r) {
      for (std::int64_t c = 0; c < columns; ++c)
        out.codes[static_cast<std::size_t>(r * columns + c)] = field(words[static_cast<std::size_t>(r * (columns / 8) + c / 8)], c);
      for (std::int64_t g = 0; g < groups; ++g) {
        out.scales[static_cast<std::size_t>(r * groups + g)] = scales[static_cast<std::size_t>(r * zero_words * 8 + g)];
        out.zeros[static_cast<std::size_t>(r * groups + g)] = static_cast<float>(field(zeros[static_cast<std::size_t>(r * zero_words + g / 8)], g));
      }
    }
    return true;
  }
  [[nodiscard]] std::vector<const TensorInfo*> parts() const override { return {&codes_, &zeros_, &scales_}; }

 private:
  const TensorInfo &codes_, &zeros_, &scales_;
  std::int64_t group_ = 0;
};

// ---- compressed-tensors --------------------------------------------------------------------------------------------------------------------

struct CompressedArgs {
  int bits = 8;
  bool symmetric = true;
  std::string strategy;
  std::int64_t group = 0;  ///< 0: none
  std::int64_t block_rows = 0, block_columns = 0;
  std::string version;
};

class Compressed final : public Packed {
 public:
  enum class Codes : std::uint8_t { packed, int8, e4m3, nvfp4, mxfp4, mxfp6 };

  Compressed(const Checkpoint& checkpoint, const std::string& module, const CompressedArgs& args, bool inverse = false)
      : args_(args),
        scales_(part(checkpoint, module, inverse ? ".weight_scale_inv" : ".weight_scale")),
        zeros_(checkpoint.find_tensor(module + ".weight_zero_point")),
        index_(checkpoint.find_tensor(module + ".weight_g_idx")),
        divisor_(checkpoint.find_tensor(module + ".weight_global_scale")),
        shape_(checkpoint.find_tensor(module + ".weight_shape")) {
    const TensorInfo *plain = checkpoint.find_tensor(module + ".weight"), *packed = checkpoint.find_tensor(module + ".weight_packed");
    if ((plain == nullptr) == (packed == nullptr))
      damaged(checkpoint, module,
              fmt::format("the packed matrix '{}' has {} of 'weight' and 'weight_packed'", printable(module), plain == nullptr ? "none" : "both"));
    codes_ = plain != nullptr ? plain : packed;
    need(codes_->shape.size() == 2 && codes_->shape[0] > 0 && codes_->shape[1] > 0, checkpoint, *codes_, "a matrix");
    rows = codes_->shape[0];
    dtype = DType::bf16;
    if (packed != nullptr && packed->dtype == DType::i32) {
      kind_ = Codes::packed;
      if (args.bits < 1 || args.bits > 8)
        unknown(checkpoint, "num_bits", fmt::format("weights of {} bits are packed in a way that weft does not know", args.bits),
                "1 to 8 bits are read");
      read_shape(checkpoint);
      form = fmt::format("INT{}", args.bits);
    } else if (packed != nullptr) {
      need(packed->dtype == DType::u8, checkpoint, *packed, "U8 or I32");
      if (args.bits == 6) {
        kind_ = Codes::mxfp6;
        need(packed->shape[1] % 3 == 0, checkpoint, *packed, "three bytes for four values");
        columns = packed->shape[1] / 3 * 4;
        form = "MXFP6";
      } else {
        kind_ = divisor_ != nullptr ? Codes::nvfp4 : Codes::mxfp4;
        columns = packed->shape[1] * 2;
        form = divisor_ != nullptr ? "NVFP4" : "MXFP4";
      }
    } else {
      need(plain->dtype == DType::i8 || plain->dtype == DType::f8_e4m3, checkpoint, *plain, "I8 or F8_E4M3");
      kind_ = plain->dtype == DType::i8 ? Codes::int8 : Codes::e4m3;
      columns = plain->shape[1];
      form = plain->dtype == DType::i8 ? "INT8" : scales_.dtype == DType::u8 ? "MXFP8" : "FP8";
    }
    const bool powers = kind_ == Codes::mxfp4 || kind_ == Codes::mxfp6 || (kind_ == Codes::e4m3 && scales_.dtype == DType::u8);
    if (kind_ == Codes::nvfp4)
      need(scales_.dtype == DType::f8_e4m3, checkpoint, scales_, "F8_E4M3");
    else if (powers)
      need(scales_.dtype == DType::u8 || scales_.dtype == DType::f8_e8m0, checkpoint, scales_, "U8");
    else
      need(is_scale_type(scales_.dtype), checkpoint, scales_, "F16, BF16 or F32");
    if (is_scale_type(scales_.dtype) && !inverse) dtype = scales_.dtype;
    find_groups(checkpoint);
    if (divisor_ != nullptr) need(divisor_->dtype == DType::f32 && divisor_->num_elements == 1, checkpoint, *divisor_, "one F32");
    if (index_ != nullptr)
      need(index_->dtype == DType::i32 && index_->shape == Shape{columns}, checkpoint, *index_, fmt::format("I32 [{}]", columns));
    check_zeros(checkpoint);
  }

  void decode(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::span<float> out) const override {
    const auto width = static_cast<std::size_t>(columns);
    std::vector<float> scales = scales_of(checkpoint, scales_, read_all(checkpoint, scales_));
    if (divisor_ != nullptr) {
      const float divisor = floats_of(DType::f32, read_all(checkpoint, *divisor_)).front();
      if (!std::isfinite(divisor) || divisor <= 0)
        damaged(checkpoint, divisor_->name, fmt::format("the scale that others are divided by is {}", divisor));
      for (float& scale : scales) scale /= divisor;
    }
    const std::vector<std::int32_t> group_of = groups_of_columns(checkpoint);
    const std::vector<int> zeros = zero_points(checkpoint);
    const std::vector<std::byte> bytes = read_rows(checkpoint, *codes_, first, count);
    const auto* raw = reinterpret_cast<const std::uint8_t*>(bytes.data());
    const std::vector<std::uint32_t> words = kind_ == Codes::packed ? words_of(bytes) : std::vector<std::uint32_t>();
    std::vector<std::uint8_t> unpacked(width);
    const std::size_t row_words = kind_ == Codes::packed ? static_cast<std::size_t>(codes_->shape[1]) : 0;
    for (std::int64_t r = 0; r < count; ++r) {
      const auto at = static_cast<std::size_t>(r) * width;
      if (kind_ == Codes::packed)
        codec::unpack_words(words.data() + static_cast<std::size_t>(r) * row_words, 1, width, args_.bits, word_form_, unpacked.data(), 1);
      const std::int64_t scale_row = (first + r) / row_group_ * num_groups_;
      for (std::size_t c = 0; c < width; ++c) {
        const auto s = static_cast<std::size_t>(scale_row + group_of[c]);
        const float scale = scales[s];
        const std::size_t i = at + c;
        switch (kind_) {
          case Codes::packed:
            out[i] = scale * static_cast<float>(unpacked[c] - (1 << (args_.bits - 1)) - (zeros.empty() ? 0 : zeros[s]));
            break;
          case Codes::int8:
            out[i] = scale * static_cast<float>(static_cast<std::int8_t>(raw[i]) - (zeros.empty() ? 0 : zeros[s]));
            break;
          case Codes::e4m3:
            out[i] = scale * codec::level(Levels::e4m3, raw[i]);
            break;
          case Codes::nvfp4:
          case Codes::mxfp4:
            out[i] = scale * codec::level(Levels::e2m1, static_cast<std::uint8_t>(raw[i / 2] >> (i % 2 * 4) & 15U));
            break;
          case Codes::mxfp6: {
            const std::uint8_t* four = raw + i / 4 * 3;
            const std::uint32_t all = four[0] | std::uint32_t{four[1]} << 8 | std::uint32_t{four[2]} << 16;
            out[i] = scale * codec::level(Levels::e2m3, static_cast<std::uint8_t>(all >> (i % 4 * 6) & 63U));
            break;
          }
        }
      }
    }
  }
  bool pack(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, PackedRows& out) const override {
    math::PackedFormat format{.type = math::PackedType::integer,
                              .bits = kind_ == Codes::packed ? args_.bits : 8,
                              .group = static_cast<std::size_t>(std::min(group_, columns)),
                              .scale_type = kept_as(scales_.dtype),
                              .zero = zeros_ != nullptr ? math::PackedZero::bytes : math::PackedZero::middle,
                              .levels = {}};
    if (kind_ == Codes::nvfp4 || kind_ == Codes::mxfp6) return false;
    if (kind_ == Codes::e4m3) format.type = math::PackedType::e4m3;
    if (kind_ == Codes::mxfp4) {
      format.type = math::PackedType::table;
      for (std::size_t i = 0; i < 16; ++i) format.levels[i] = codec::level(Levels::e2m1, static_cast<std::uint8_t>(i));
    }
    if (!begin_rows(format, columns, count, out)) return false;
    if (count == 0) {
      const std::vector<std::int32_t> group_of = groups_of_columns(checkpoint);
      for (std::size_t c = 0; c < group_of.size(); ++c)
        if (group_of[c] != static_cast<std::int32_t>(static_cast<std::int64_t>(c) / group_)) return false;  // in order of importance
      return true;
    }
    const auto width = static_cast<std::size_t>(columns), groups = static_cast<std::size_t>(num_groups_);
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_all(checkpoint, scales_));
    const std::vector<int> zeros = zero_points(checkpoint);
    const std::vector<std::byte> bytes = read_rows(checkpoint, *codes_, first, count);
    const auto* raw = reinterpret_cast<const std::uint8_t*>(bytes.data());
    const std::vector<std::uint32_t> words = kind_ == Codes::packed ? words_of(bytes) : std::vector<std::uint32_t>();
    const std::size_t row_words = kind_ == Codes::packed ? static_cast<std::size_t>(codes_->shape[1]) : 0;
    const int middle = 1 << (format.bits - 1);
    for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
      std::uint8_t* codes = out.codes.data() + r * width;
      const std::size_t scale_row = static_cast<std::size_t>((first + static_cast<std::int64_t>(r)) / row_group_) * groups;
      for (std::size_t g = 0; g < groups; ++g) {
        out.scales[r * groups + g] = scales[scale_row + g];
        if (!out.zeros.empty()) out.zeros[r * groups + g] = static_cast<float>((zeros.empty() ? 0 : zeros[scale_row + g]) + middle);
      }
      if (kind_ == Codes::packed)
        codec::unpack_words(words.data() + r * row_words, 1, width, args_.bits, word_form_, codes, 1);
      else if (kind_ == Codes::mxfp4)
        for (std::size_t c = 0; c < width; ++c) codes[c] = raw[(r * width + c) / 2] >> (c % 2 * 4) & 15U;
      else
        for (std::size_t c = 0; c < width; ++c) {
          codes[c] = kind_ == Codes::int8 ? raw[r * width + c] ^ 0x80U : raw[r * width + c];
          // The packed form has no NaN among its codes.
          if (kind_ == Codes::e4m3 && (codes[c] & 0x7FU) == 0x7FU)
            out.scales[r * groups + c / format.group] = std::numeric_limits<float>::quiet_NaN();
        }
    }
    return true;
  }
  [[nodiscard]] std::vector<const TensorInfo*> parts() const override {
    std::vector<const TensorInfo*> all = {codes_, &scales_};
    for (const TensorInfo* tensor : {zeros_, index_, divisor_, shape_})
      if (tensor != nullptr) all.push_back(tensor);
    return all;
  }

 private:
  /// What the words hold is told apart by how many there are; nothing is believed that the file's size does not bear out.
  void read_shape(const Checkpoint& checkpoint) {
    if (shape_ == nullptr) damaged(checkpoint, codes_->name, fmt::format("'{}' has no weight_shape beside it", printable(codes_->name)));
    need(shape_->dtype == DType::i64 && shape_->shape == Shape{2}, checkpoint, *shape_, "I64 [2]");
    std::array<std::int64_t, 2> shape{};
    checkpoint.read_bytes(*shape_, 0, std::as_writable_bytes(std::span(shape)));
    columns = shape[1];
    if (shape[0] != rows || columns <= 0 || columns > kMaxSide)
      damaged(checkpoint, shape_->name,
              fmt::format("weight_shape says [{}, {}], and the packed matrix is {}", shape[0], shape[1], to_string(codes_->shape)));
    const auto words = static_cast<std::uint64_t>(codes_->shape[1]), n = static_cast<std::uint64_t>(columns);
    const bool dense = codec::words_for(n, args_.bits, WordForm::stream) == words,
               legacy = codec::words_for(n, args_.bits, WordForm::legacy) == words;
    if (!dense && !legacy)
      damaged(checkpoint, codes_->name, fmt::format("{} words a row cannot hold {} values of {} bits", words, columns, args_.bits));
    const bool old_version = args_.version.starts_with("0.") && std::atoi(args_.version.c_str() + 2) < 17;
    word_form_ = dense && (!legacy || !old_version) ? WordForm::stream : WordForm::legacy;
  }

  void find_groups(const Checkpoint& checkpoint) {
    if (scales_.num_elements == 1 && args_.group <= 0 && args_.block_rows <= 0) {
      row_group_ = rows;
      group_ = columns;
      num_groups_ = 1;
      return;
    }
    need(scales_.shape.size() == 2 || (scales_.shape.size() == 1 && scales_.shape[0] == rows), checkpoint, scales_, "a matrix of scales");
    const std::int64_t across = scales_.shape.size() == 1 ? 1 : scales_.shape[1];
    if (args_.block_rows > 0) {
      row_group_ = args_.block_rows;
      group_ = args_.block_columns;
    } else {
      group_ = args_.group > 0 ? std::min(args_.group, columns) : columns;
      if (group_ < columns && columns % group_ != 0)
        damaged(checkpoint, scales_.name, fmt::format("{} inputs are no whole groups of {}", columns, group_));
    }
    num_groups_ = (columns + group_ - 1) / group_;
    need(scales_.shape[0] == (rows + row_group_ - 1) / row_group_ && across == num_groups_, checkpoint, scales_,
         fmt::format("[{}, {}]", (rows + row_group_ - 1) / row_group_, num_groups_));
  }

  void check_zeros(const Checkpoint& checkpoint) const {
    if (zeros_ == nullptr) {
      if (!args_.symmetric && (kind_ == Codes::packed || kind_ == Codes::int8))
        damaged(checkpoint, scales_.name, "the weights are said to be asymmetric, and there are no zero points");
      return;
    }
    if (kind_ == Codes::packed) {
      // A single scale may be a number without axes.
      const std::uint64_t in_group = scales_.num_elements / static_cast<std::uint64_t>(num_groups_);
      const auto words = static_cast<std::int64_t>(codec::words_for(in_group, args_.bits, WordForm::stream));
      const auto old = static_cast<std::int64_t>(codec::words_for(in_group, args_.bits, WordForm::legacy));
      need(zeros_->dtype == DType::i32 && (zeros_->shape == Shape{words, num_groups_} || zeros_->shape == Shape{old, num_groups_}), checkpoint,
           *zeros_, fmt::format("I32 [{}, {}]", words, num_groups_));
    } else {
      need(zeros_->dtype == DType::i8 && zeros_->num_elements == scales_.num_elements, checkpoint, *zeros_, "I8, one for each scale");
    }
  }

  [[nodiscard]] std::vector<int> zero_points(const Checkpoint& checkpoint) const {
    if (zeros_ == nullptr || (kind_ != Codes::packed && kind_ != Codes::int8)) return {};
    const std::vector<std::byte> bytes = read_all(checkpoint, *zeros_);
    std::vector<int> zeros(static_cast<std::size_t>(scales_.num_elements));
    if (kind_ == Codes::int8) {
      for (std::size_t i = 0; i < zeros.size(); ++i) zeros[i] = static_cast<std::int8_t>(bytes[i]);
    } else {
      const std::vector<std::uint32_t> words = words_of(bytes);
      const auto groups = static_cast<std::size_t>(num_groups_), n = zeros.size() / groups;
      // Packed like the codes, unless there are too few or too many words for that.
      const auto own_words = static_cast<std::uint64_t>(zeros_->shape[0]);
      const WordForm other = word_form_ == WordForm::stream ? WordForm::legacy : WordForm::stream;
      const WordForm zero_form = own_words == codec::words_for(n, args_.bits, word_form_) ? word_form_ : other;
      std::vector<std::uint8_t> codes(zeros.size());
      for (std::size_t g = 0; g < groups; ++g) codec::unpack_words(words.data() + g, groups, n, args_.bits, zero_form, codes.data() + g, groups);
      for (std::size_t i = 0; i < zeros.size(); ++i) zeros[i] = codes[i] - (1 << (args_.bits - 1));
    }
    if (args_.symmetric && std::any_of(zeros.begin(), zeros.end(), [](int zero) { return zero != 0; }))
      damaged(checkpoint, zeros_->name, "the weights are said to be symmetric, and there are zero points other than 0");
    return zeros;
  }

  [[nodiscard]] std::vector<std::int32_t> groups_of_columns(const Checkpoint& checkpoint) const {
    std::vector<std::int32_t> group_of(static_cast<std::size_t>(columns));
    for (std::size_t c = 0; c < group_of.size(); ++c) group_of[c] = static_cast<std::int32_t>(static_cast<std::int64_t>(c) / group_);
    if (index_ == nullptr) return group_of;
    std::vector<std::int32_t> given(group_of.size());
    const std::vector<std::byte> bytes = read_all(checkpoint, *index_);
    std::memcpy(given.data(), bytes.data(), bytes.size());
    // -1 anywhere: never filled in.
    if (std::any_of(given.begin(), given.end(), [](std::int32_t g) { return g == -1; })) return group_of;
    std::vector<std::int64_t> members(static_cast<std::size_t>(num_groups_));
    for (const std::int32_t g : given) {
      if (g < 0 || g >= num_groups_)
        damaged(checkpoint, index_->name, fmt::format("an input is placed in group {}, and there are {}", g, num_groups_));
      ++members[static_cast<std::size_t>(g)];
    }
    for (const std::int64_t size : members)
      if (size != group_) damaged(checkpoint, index_->name, fmt::format("a group has {} inputs in place of {}", size, group_));
    return given;
  }

  CompressedArgs args_;
  const TensorInfo& scales_;
  const TensorInfo *zeros_, *index_, *divisor_, *shape_;
  const TensorInfo* codes_ = nullptr;
  Codes kind_ = Codes::packed;
  WordForm word_form_ = WordForm::stream;
  std::int64_t group_ = 0, row_group_ = 1, num_groups_ = 1;
};

// ---- bitsandbytes --------------------------------------------------------------------------------------------------------------------------

class Bnb4 final : public Packed {
 public:
  Bnb4(const Checkpoint& checkpoint, const std::string& module, const TensorInfo& state)
      : state_(state),
        codes_(part(checkpoint, module, ".weight")),
        absmax_(part(checkpoint, module, ".weight.absmax")),
        map_(part(checkpoint, module, ".weight.quant_map")) {
    need(state.dtype == DType::u8 && state.size_bytes > 0 && state.size_bytes <= kMaxStateBytes, checkpoint, state, "at most 64 KiB of JSON");
    const std::vector<std::byte> bytes = read_all(checkpoint, state);
    const Json json =
        parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, checkpoint.path(), {.max_bytes = kMaxStateBytes, .max_depth = 8});
    const auto refuse = [&](const char* key) {
      damaged(checkpoint, state.name, fmt::format("the state of '{}' has no valid '{}'", printable(module), key));
    };
    const auto number = [&](const char* key) {
      const Json* value = json.find(key);
      if (value == nullptr || !value->integer()) refuse(key);
      return *value->integer();
    };
    const Json* type = json.find("quant_type");
    if (type == nullptr || type->string() == nullptr || (*type->string() != "nf4" && *type->string() != "fp4")) refuse("quant_type");
    block_ = number("blocksize");
    if (block_ < 32 || block_ > 4096 || (block_ & (block_ - 1)) != 0) refuse("blocksize");
    const Json* stored_type = json.find("dtype");
    const std::optional<DType> known =
        stored_type != nullptr && stored_type->string() != nullptr ? dtype_from_any(*stored_type->string()) : std::nullopt;
    if (!known || !is_scale_type(*known)) refuse("dtype");
    dtype = *known;
    const Json* shape = json.find("shape");
    if (shape == nullptr || shape->array() == nullptr || shape->array()->empty() || shape->array()->size() > 4) refuse("shape");
    std::uint64_t size = 1;
    for (const Json& dim : *shape->array()) {
      if (!dim.integer() || *dim.integer() <= 0 || *dim.integer() > kMaxSide) refuse("shape");
      dims_.push_back(*dim.integer());
      size = checked_mul(size, static_cast<std::uint64_t>(*dim.integer()), "shape");
    }
    columns = dims_.back();
    rows = static_cast<std::int64_t>(size / static_cast<std::uint64_t>(columns));
    need(codes_.size_bytes == (size + 1) / 2, checkpoint, codes_, fmt::format("{} bytes", (size + 1) / 2));
    const std::uint64_t blocks = (size + static_cast<std::uint64_t>(block_) - 1) / static_cast<std::uint64_t>(block_);
    need(absmax_.num_elements == blocks && (absmax_.dtype == DType::f32 || absmax_.dtype == DType::u8), checkpoint, absmax_,
         fmt::format("{} scales", blocks));
    need(map_.dtype == DType::f32 && map_.num_elements == 16, checkpoint, map_, "F32 [16]");
    if (absmax_.dtype == DType::u8) {
      nested_block_ = number("nested_blocksize");
      if (nested_block_ <= 0 || nested_block_ > 1 << 20) refuse("nested_blocksize");
      nested_ = &part(checkpoint, module, ".weight.nested_absmax");
      nested_map_ = &part(checkpoint, module, ".weight.nested_quant_map");
      const auto step = static_cast<std::uint64_t>(nested_block_);
      need(nested_->dtype == DType::f32 && nested_->num_elements == (blocks + step - 1) / step, checkpoint, *nested_,
           fmt::format("F32 [{}]", (blocks + step - 1) / step));
      need(nested_map_->dtype == DType::f32 && nested_map_->num_elements == 256, checkpoint, *nested_map_, "F32 [256]");
      const Json* offset = json.find("nested_offset");
      if (offset == nullptr || !offset->number() || !std::isfinite(*offset->number())) refuse("nested_offset");
      offset_ = static_cast<float>(*offset->number());
    }
    form = *type->string() == "nf4" ? "NF4" : "FP4";
  }

  void decode(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::span<float> out) const override {
    const std::uint64_t begin = static_cast<std::uint64_t>(first * columns), end = begin + static_cast<std::uint64_t>(count * columns);
    std::vector<std::byte> bytes(checked_size((end + 1) / 2 - begin / 2, "rows"));
    checkpoint.read_bytes(codes_, begin / 2, bytes);
    const std::vector<float> map = scales_of(checkpoint, map_, read_all(checkpoint, map_));
    const std::vector<float> absmax = magnitudes(checkpoint);
    for (std::uint64_t i = begin; i < end; ++i) {
      const auto byte = std::to_integer<unsigned>(bytes[static_cast<std::size_t>(i / 2 - begin / 2)]);
      out[static_cast<std::size_t>(i - begin)] =
          map[i % 2 == 0 ? byte >> 4 : byte & 15U] * absmax[static_cast<std::size_t>(i / static_cast<std::uint64_t>(block_))];
    }
  }
  [[nodiscard]] std::vector<const TensorInfo*> parts() const override {
    std::vector<const TensorInfo*> all = {&codes_, &absmax_, &map_, &state_};
    if (nested_ != nullptr) all.insert(all.end(), {nested_, nested_map_});
    return all;
  }
  [[nodiscard]] const Shape& dims() const { return dims_; }
  bool pack(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, PackedRows& out) const override {
    math::PackedFormat format{.type = math::PackedType::table,
                              .bits = 4,
                              .group = static_cast<std::size_t>(block_),
                              .scale_type = DType::f32,
                              .zero = math::PackedZero::middle,
                              .levels = {}};
    const std::vector<float> map = scales_of(checkpoint, map_, read_all(checkpoint, map_));
    std::copy(map.begin(), map.end(), format.levels.begin());
    if (dims_.size() != 2 || columns % block_ != 0 || !begin_rows(format, columns, count, out)) return false;
    if (count == 0) return true;
    std::vector<std::byte> bytes(static_cast<std::size_t>(count * columns / 2));
    checkpoint.read_bytes(codes_, static_cast<std::uint64_t>(first * columns / 2), bytes);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      out.codes[2 * i] = std::to_integer<std::uint8_t>(bytes[i] >> 4);
      out.codes[2 * i + 1] = std::to_integer<std::uint8_t>(bytes[i] & std::byte{15});
    }
    const std::vector<float> absmax = magnitudes(checkpoint);
    std::copy_n(absmax.begin() + first * columns / block_, out.scales.size(), out.scales.begin());
    return true;
  }

 private:
  [[nodiscard]] std::vector<float> magnitudes(const Checkpoint& checkpoint) const {
    std::vector<float> absmax;
    if (nested_ != nullptr) {
      const std::vector<float> nested = scales_of(checkpoint, *nested_, read_all(checkpoint, *nested_)),
                               nested_map = scales_of(checkpoint, *nested_map_, read_all(checkpoint, *nested_map_));
      const std::vector<std::byte> codes = read_all(checkpoint, absmax_);
      absmax.resize(codes.size());
      for (std::size_t i = 0; i < codes.size(); ++i)
        absmax[i] = nested_map[std::to_integer<std::size_t>(codes[i])] * nested[i / static_cast<std::size_t>(nested_block_)] + offset_;
    } else {
      absmax = scales_of(checkpoint, absmax_, read_all(checkpoint, absmax_));
    }
    return absmax;
  }

  const TensorInfo &state_, &codes_, &absmax_, &map_;
  const TensorInfo *nested_ = nullptr, *nested_map_ = nullptr;
  Shape dims_;
  std::int64_t block_ = 64, nested_block_ = 256;
  float offset_ = 0;
};

class Bnb8 final : public Packed {
 public:
  Bnb8(const Checkpoint& checkpoint, const std::string& module, DType as)
      : codes_(part(checkpoint, module, ".weight")),
        scales_(part(checkpoint, module, ".SCB")),
        tiling_(checkpoint.find_tensor(module + ".weight_format")) {
    need(is_matrix(codes_, DType::i8), checkpoint, codes_, "I8 [outputs, inputs]");
    rows = codes_.shape[0];
    columns = codes_.shape[1];
    need(scales_.dtype == DType::f32 && scales_.num_elements == static_cast<std::uint64_t>(rows), checkpoint, scales_, fmt::format("F32 [{}]", rows));
    if (tiling_ != nullptr) {
      need(tiling_->dtype == DType::u8 && tiling_->num_elements == 1, checkpoint, *tiling_, "one U8");
      if (std::to_integer<int>(read_all(checkpoint, *tiling_).front()) != 0)
        unknown(checkpoint, "weight_format", fmt::format("'{}' is laid out for one kind of GPU", printable(codes_.name)),
                "save the model again with a current bitsandbytes");
    }
    dtype = as;
    form = "INT8";
  }
  void decode(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::span<float> out) const override {
    const std::vector<std::byte> bytes = read_rows(checkpoint, codes_, first, count);
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_all(checkpoint, scales_));
    for (std::size_t i = 0; i < bytes.size(); ++i)
      out[i] = static_cast<float>(static_cast<std::int8_t>(bytes[i])) *
               scales[static_cast<std::size_t>(first) + i / static_cast<std::size_t>(columns)] / 127.0F;
  }
  bool pack(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, PackedRows& out) const override {
    const math::PackedFormat format{.type = math::PackedType::integer,
                                    .bits = 8,
                                    .group = static_cast<std::size_t>(columns),
                                    .scale_type = DType::f32,
                                    .zero = math::PackedZero::middle,
                                    .levels = {}};
    if (!begin_rows(format, columns, count, out)) return false;
    if (count == 0) return true;
    const std::vector<std::byte> bytes = read_rows(checkpoint, codes_, first, count);
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_all(checkpoint, scales_));
    for (std::size_t i = 0; i < bytes.size(); ++i) out.codes[i] = std::to_integer<std::uint8_t>(bytes[i] ^ std::byte{0x80});
    for (std::size_t r = 0; r < out.scales.size(); ++r) out.scales[r] = scales[static_cast<std::size_t>(first) + r] / 127.0F;
    return true;
  }
  [[nodiscard]] std::vector<const TensorInfo*> parts() const override {
    std::vector<const TensorInfo*> all = {&codes_, &scales_};
    if (tiling_ != nullptr) all.push_back(tiling_);
    return all;
  }

 private:
  const TensorInfo &codes_, &scales_;
  const TensorInfo* tiling_;
};

// ---- Weft's own ----------------------------------------------------------------------------------------------------------------------------

class Own final : public Packed {
 public:
  Own(const Checkpoint& checkpoint, const std::string& module)
      : codes_(part(checkpoint, module, ".weight_codes")),
        scales_(part(checkpoint, module, ".weight_scales")),
        form_(part(checkpoint, module, ".weight_form")),
        zeros_(checkpoint.find_tensor(module + ".weight_zeros")),
        left_(checkpoint.find_tensor(module + ".weight_left")),
        right_(checkpoint.find_tensor(module + ".weight_right")),
        added_at_(checkpoint.find_tensor(module + ".weight_added_at")),
        added_rows_(checkpoint.find_tensor(module + ".weight_added_rows")),
        added_columns_(checkpoint.find_tensor(module + ".weight_added_columns")),
        added_(checkpoint.find_tensor(module + ".weight_added")) {
    need(form_.dtype == DType::u8 && form_.size_bytes > 0 && form_.size_bytes <= kMaxStateBytes, checkpoint, form_, "at most 64 KiB of JSON");
    const std::vector<std::byte> bytes = read_all(checkpoint, form_);
    const Json json =
        parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, checkpoint.path(), {.max_bytes = kMaxStateBytes, .max_depth = 8});
    const auto refuse = [&](const char* key) {
      damaged(checkpoint, form_.name, fmt::format("the form of '{}' has no valid '{}'", printable(module), key));
    };
    const Json* levels = json.find("levels");
    if (levels == nullptr || levels->string() == nullptr) refuse("levels");
    bool known = false;
    for (const Levels candidate :
         {Levels::integer, Levels::e4m3, Levels::e5m2, Levels::e2m3, Levels::e3m2, Levels::e2m1, Levels::e3m0, Levels::nf4, Levels::bnb_fp4})
      if (codec::info(candidate).name == *levels->string()) levels_ = candidate, known = true;
    if (!known) refuse("levels");
    const auto number = [&](const char* key, std::int64_t least, std::int64_t most) {
      const Json* value = json.find(key);
      if (value == nullptr || !value->integer() || *value->integer() < least || *value->integer() > most) refuse(key);
      return *value->integer();
    };
    bits_ = static_cast<int>(number("bits", 1, 8));
    if (levels_ != Levels::integer && bits_ != codec::info(levels_).bits) refuse("bits");
    const Json* shape = json.find("shape");
    if (shape == nullptr || shape->array() == nullptr || shape->array()->size() != 2 || !shape->array()->front().integer() ||
        !shape->array()->back().integer())
      refuse("shape");
    rows = *shape->array()->front().integer();
    columns = *shape->array()->back().integer();
    if (rows <= 0 || columns <= 0 || rows > kMaxSide || columns > kMaxSide) refuse("shape");
    group_ = number("group", 1, kMaxSide);
    if (json.find("row_group") != nullptr) row_group_ = number("row_group", 1, kMaxSide);
    if (const Json* unit = json.find("scale_unit")) {
      // As it is read it must be a number that divides.
      const double value = unit->number().value_or(0);
      if (!(value >= std::numeric_limits<float>::min() && value <= std::numeric_limits<float>::max())) refuse("scale_unit");
      unit_ = static_cast<float>(value);
    }
    if (const Json* products = json.find("products")) {
      if (products->string() == nullptr || *products->string() != "E4M3" || levels_ != Levels::integer) refuse("products");
      rounds_products_ = true;
    }
    const Json* as = json.find("dtype");
    const std::optional<DType> type = as != nullptr && as->string() != nullptr ? dtype_from_any(*as->string()) : std::nullopt;
    if (!type || !is_scale_type(*type)) refuse("dtype");
    dtype = *type;
    const auto words = static_cast<std::int64_t>(codec::words_for(static_cast<std::uint64_t>(columns), bits_, WordForm::stream));
    need(codes_.dtype == DType::i32 && codes_.shape == Shape{rows, words}, checkpoint, codes_, fmt::format("I32 [{}, {}]", rows, words));
    const Shape groups = {(rows + row_group_ - 1) / row_group_, (columns + group_ - 1) / group_};
    need((is_scale_type(scales_.dtype) || scales_.dtype == DType::f8_e8m0 || scales_.dtype == DType::f8_e4m3) && scales_.shape == groups, checkpoint,
         scales_, to_string(groups));
    if (rounds_products_) need(scales_.dtype == DType::f8_e4m3, checkpoint, scales_, "F8_E4M3, whose products are rounded");
    zero_ = static_cast<float>(1 << (bits_ - 1));
    if (const Json* zero = json.find("zero")) {
      if (!zero->number() || !(std::fabs(*zero->number()) <= 256)) refuse("zero");
      zero_ = static_cast<float>(*zero->number());
    }
    if (zeros_ != nullptr && zeros_->dtype == DType::i32) {
      // In one stream; older files begin a word for each row of groups.
      const auto words_of_zeros = [&](std::int64_t count) {
        return static_cast<std::int64_t>(codec::words_for(static_cast<std::uint64_t>(count), bits_, WordForm::stream));
      };
      const Shape stream = {words_of_zeros(groups[0] * groups[1])}, by_row = {groups[0], words_of_zeros(groups[1])};
      need(zeros_->shape == stream || zeros_->shape == by_row, checkpoint, *zeros_, to_string(stream));
    } else if (zeros_ != nullptr) {
      need(is_scale_type(zeros_->dtype) && zeros_->shape == groups, checkpoint, *zeros_, to_string(groups));
    }
    if ((left_ == nullptr) != (right_ == nullptr) || (added_rows_ == nullptr) != (added_columns_ == nullptr) ||
        (added_ == nullptr) != (added_at_ == nullptr && added_rows_ == nullptr) || (added_at_ != nullptr && added_rows_ != nullptr))
      damaged(checkpoint, module, fmt::format("'{}' has one half of a pair of parts", printable(module)));
    if (left_ != nullptr) {
      need(is_scale_type(left_->dtype) && left_->shape.size() == 2 && left_->shape[0] == rows, checkpoint, *left_, fmt::format("[{}, rank]", rows));
      need(is_scale_type(right_->dtype) && right_->shape == Shape{left_->shape[1], columns}, checkpoint, *right_,
           fmt::format("[{}, {}]", left_->shape[1], columns));
    }
    if (added_ != nullptr) {
      need(is_scale_type(added_->dtype) && added_->shape.size() == 1, checkpoint, *added_, "a list of values");
      if (added_at_ != nullptr)
        need(added_at_->dtype == DType::i64 && added_at_->shape == added_->shape, checkpoint, *added_at_,
             fmt::format("I64 {}", to_string(added_->shape)));
      if (added_rows_ != nullptr) {
        need(added_rows_->dtype == DType::i32 && added_rows_->shape == Shape{rows + 1}, checkpoint, *added_rows_, fmt::format("I32 [{}]", rows + 1));
        need((added_columns_->dtype == DType::u16 || added_columns_->dtype == DType::i32) && added_columns_->shape == added_->shape, checkpoint,
             *added_columns_, fmt::format("U16 or I32 {}", to_string(added_->shape)));
      }
    }
    form = levels_ == Levels::integer ? fmt::format("INT{}", bits_) : std::string(codec::info(levels_).name);
  }

  void decode(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::span<float> out) const override {
    const auto width = static_cast<std::size_t>(columns), row_words = static_cast<std::size_t>(codes_.shape[1]),
               groups = static_cast<std::size_t>(scales_.shape[1]);
    const std::vector<std::uint32_t> words = words_of(read_rows(checkpoint, codes_, first, count));
    const std::int64_t first_group = first / row_group_, num_groups = count == 0 ? 0 : (first + count - 1) / row_group_ - first_group + 1;
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_rows(checkpoint, scales_, first_group, num_groups));
    const std::vector<float> zeros = zeros_of(checkpoint, first_group, num_groups, groups);
    std::vector<std::uint8_t> codes(width);
    std::array<float, 256> products{};  // of a group's scale with all codes
    for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
      codec::unpack_words(words.data() + r * row_words, 1, width, bits_, WordForm::stream, codes.data(), 1);
      const auto row_group = static_cast<std::size_t>((first + static_cast<std::int64_t>(r)) / row_group_ - first_group);
      for (std::size_t c = 0; c < width; ++c) {
        const std::size_t s = row_group * groups + c / static_cast<std::size_t>(group_);
        const float zero = zeros.empty() ? zero_ : zeros[s], scale = scales[s] * unit_;
        if (rounds_products_) {
          if (c % static_cast<std::size_t>(group_) == 0)
            for (std::size_t code = 0; code < (std::size_t{1} << bits_); ++code)
              products[code] = codec::rounded_product(static_cast<float>(code) - zero, scale, unit_);
          out[r * width + c] = products[codes[c]];
          continue;
        }
        out[r * width + c] = scale * (levels_ == Levels::integer ? static_cast<float>(codes[c]) - zero : codec::level(levels_, codes[c]));
      }
    }
    if (left_ != nullptr) {
      const std::vector<float> left = scales_of(checkpoint, *left_, read_rows(checkpoint, *left_, first, count)),
                               right = scales_of(checkpoint, *right_, read_all(checkpoint, *right_));
      codec::add_product(left, right, count, left_->shape[1], columns, out);
    }
    if (added_ != nullptr) {
      const std::vector<std::int64_t> at = positions_of_added(checkpoint);
      const std::vector<float> values = scales_of(checkpoint, *added_, read_all(checkpoint, *added_));
      for (std::size_t i = 0; i < at.size(); ++i) {
        if (at[i] < 0 || at[i] / columns >= rows)
          damaged(checkpoint, added_->name, fmt::format("a value is to be added at {}, outside of the matrix", at[i]));
        if (at[i] >= first * columns && at[i] < (first + count) * columns) out[static_cast<std::size_t>(at[i] - first * columns)] += values[i];
      }
    }
  }
  bool pack(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, PackedRows& out) const override {
    math::PackedFormat format{.type = math::PackedType::integer,
                              .bits = bits_,
                              .group = static_cast<std::size_t>(std::min(group_, columns)),
                              .scale_type = kept_as(scales_.dtype),
                              .zero = math::PackedZero::middle,
                              .levels = {}};
    if (left_ != nullptr || added_ != nullptr || unit_ != 1 || rounds_products_) return false;  // more than codes and scales
    if (levels_ == Levels::e4m3) {
      format.type = math::PackedType::e4m3;
    } else if (levels_ != Levels::integer) {
      if (bits_ != 4) return false;
      format.type = math::PackedType::table;
      for (std::size_t i = 0; i < 16; ++i) format.levels[i] = codec::level(levels_, static_cast<std::uint8_t>(i));
    } else if (zeros_ != nullptr && zeros_->dtype != DType::i32) {
      format.zero = math::PackedZero::floats;
      if (zeros_->dtype != format.scale_type) format.scale_type = DType::f32;
    } else if (zeros_ != nullptr || zero_ != static_cast<float>(1 << (bits_ - 1))) {
      format.zero = math::PackedZero::bytes;
      if (zeros_ == nullptr && (zero_ < 0 || zero_ > 255 || zero_ != std::floor(zero_))) {
        // One between two codes: halves up to 128 have the 8 bits of every type of scales.
        format.zero = math::PackedZero::floats;
        if (std::fabs(zero_) > 128 || 2 * zero_ != std::floor(2 * zero_)) format.scale_type = DType::f32;
      }
    }
    if (!begin_rows(format, columns, count, out)) return false;
    if (count == 0) return true;
    const auto width = static_cast<std::size_t>(columns), row_words = static_cast<std::size_t>(codes_.shape[1]),
               groups = static_cast<std::size_t>(scales_.shape[1]);
    const std::vector<std::uint32_t> words = words_of(read_rows(checkpoint, codes_, first, count));
    const std::int64_t first_group = first / row_group_, num_groups = (first + count - 1) / row_group_ - first_group + 1;
    const std::vector<float> scales = scales_of(checkpoint, scales_, read_rows(checkpoint, scales_, first_group, num_groups));
    const std::vector<float> zeros = zeros_of(checkpoint, first_group, num_groups, groups);
    for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
      const std::size_t of_row = static_cast<std::size_t>((first + static_cast<std::int64_t>(r)) / row_group_ - first_group) * groups;
      for (std::size_t g = 0; g < groups; ++g) {
        out.scales[r * groups + g] = scales[of_row + g];
        if (!out.zeros.empty()) out.zeros[r * groups + g] = zeros.empty() ? zero_ : zeros[of_row + g];
      }
      codec::unpack_words(words.data() + r * row_words, 1, width, bits_, WordForm::stream, out.codes.data() + r * width, 1);
      for (std::size_t c = 0; c < width && format.type == math::PackedType::e4m3; ++c)  // no NaN among its codes
        if ((out.codes[r * width + c] & 0x7FU) == 0x7FU) out.scales[r * groups + c / format.group] = std::numeric_limits<float>::quiet_NaN();
    }
    return true;
  }
  [[nodiscard]] std::vector<const TensorInfo*> parts() const override {
    std::vector<const TensorInfo*> all = {&codes_, &scales_, &form_};
    for (const TensorInfo* tensor : {zeros_, left_, right_, added_at_, added_rows_, added_columns_, added_})
      if (tensor != nullptr) all.push_back(tensor);
    return all;
  }

 private:
  /// Of each group of these rows; empty: one for all.
  [[nodiscard]] std::vector<float> zeros_of(const Checkpoint& checkpoint, std::int64_t first, std::int64_t count, std::size_t groups) const {
    if (zeros_ == nullptr) return {};
    if (zeros_->dtype == DType::i32 && zeros_->shape.size() == 1) {
      // From the last whole number of words before the first that is asked for.
      constexpr std::int64_t kTogether = 32;
      const auto width = static_cast<std::int64_t>(groups);
      const std::int64_t begin = first * width / kTogether * kTogether, end = (first + count) * width;
      const auto wanted = static_cast<std::size_t>(end - begin);
      const auto num_words = static_cast<std::int64_t>(codec::words_for(wanted, bits_, WordForm::stream));
      const std::vector<std::uint32_t> words = words_of(read_rows(checkpoint, *zeros_, begin / kTogether * bits_, num_words));
      std::vector<std::uint8_t> values(wanted);
      codec::unpack_words(words.data(), 1, wanted, bits_, WordForm::stream, values.data(), 1);
      return {values.begin() + (first * width - begin), values.end()};
    }
    const std::vector<std::byte> bytes = read_rows(checkpoint, *zeros_, first, count);
    if (zeros_->dtype != DType::i32) return scales_of(checkpoint, *zeros_, bytes);
    const std::vector<std::uint32_t> words = words_of(bytes);
    const auto row_words = static_cast<std::size_t>(zeros_->shape[1]);
    std::vector<std::uint8_t> of_row(groups);
    std::vector<float> zeros;
    for (std::size_t r = 0; r < static_cast<std::size_t>(count); ++r) {
      codec::unpack_words(words.data() + r * row_words, 1, groups, bits_, WordForm::stream, of_row.data(), 1);
      zeros.insert(zeros.end(), of_row.begin(), of_row.end());
    }
    return zeros;
  }

  /// Row * columns + column of each added value; the caller sees to it that they lie within the matrix.
  [[nodiscard]] std::vector<std::int64_t> positions_of_added(const Checkpoint& checkpoint) const {
    const auto integers_of = [&](const TensorInfo& tensor) {
      const std::vector<std::byte> bytes = read_all(checkpoint, tensor);
      std::vector<std::int64_t> all(static_cast<std::size_t>(tensor.num_elements));
      const auto read = [&]<typename Element>(Element) {
        for (std::size_t i = 0; i < all.size(); ++i) {
          Element value = 0;
          std::memcpy(&value, bytes.data() + i * sizeof(Element), sizeof(Element));
          all[i] = static_cast<std::int64_t>(value);
        }
      };
      if (tensor.dtype == DType::i64)
        read(std::int64_t{});
      else if (tensor.dtype == DType::i32)
        read(std::int32_t{});
      else
        read(std::uint16_t{});
      return all;
    };
    if (added_at_ != nullptr) return integers_of(*added_at_);
    const std::vector<std::int64_t> starts = integers_of(*added_rows_);
    std::vector<std::int64_t> at = integers_of(*added_columns_);
    for (std::size_t r = 0; r < starts.size(); ++r)
      if (starts[r] < (r == 0 ? 0 : starts[r - 1]) || starts[r] > static_cast<std::int64_t>(at.size()) || (r == 0 && starts[r] != 0))
        damaged(checkpoint, added_rows_->name, fmt::format("the values of row {} begin at {}, which is out of order", r, starts[r]));
    if (starts.back() != static_cast<std::int64_t>(at.size()))
      damaged(checkpoint, added_rows_->name, fmt::format("{} values are of some row, but there are {}", starts.back(), at.size()));
    for (std::size_t r = 0; r + 1 < starts.size(); ++r)
      for (std::int64_t i = starts[r]; i < starts[r + 1]; ++i) {
        std::int64_t& column = at[static_cast<std::size_t>(i)];
        if (column < 0 || column >= columns)
          damaged(checkpoint, added_columns_->name, fmt::format("a value is to be added in column {} of {}", column, columns));
        column += static_cast<std::int64_t>(r) * columns;
      }
    return at;
  }

  const TensorInfo &codes_, &scales_, &form_;
  const TensorInfo *zeros_, *left_, *right_, *added_at_, *added_rows_, *added_columns_, *added_;
  Levels levels_ = Levels::integer;
  int bits_ = 4;
  std::int64_t group_ = 1, row_group_ = 1;
  float unit_ = 1;  ///< of the scales
  bool rounds_products_ = false;
  float zero_ = 8;
};

// ---- The config ----------------------------------------------------------------------------------------------------------------------------

/// Python's re.match: anchored at the start only. RE2 runs in linear time, whatever the file says.
class StartPattern {
 public:
  StartPattern(const Checkpoint& checkpoint, std::string_view pattern) {
    RE2::Options options;
    options.set_log_errors(false);
    re_ = std::make_unique<RE2>(re2::StringPiece(pattern.data(), pattern.size()), options);
    if (!re_->ok())
      unknown(checkpoint, "quantization_config", fmt::format("the pattern '{}' of the config cannot be read: {}", printable(pattern), re_->error()),
              "write it without look-around and back references");
  }
  [[nodiscard]] bool matches(std::string_view name) const {
    return re_->Match(re2::StringPiece(name.data(), name.size()), 0, name.size(), RE2::ANCHOR_START, nullptr, 0);
  }

 private:
  std::unique_ptr<RE2> re_;
};

const Json* find_any(const Json& object, std::initializer_list<std::string_view> keys) {
  for (const std::string_view key : keys)
    if (const Json* value = object.find(key); value != nullptr && !value->is_null()) return value;
  return nullptr;
}
std::int64_t integer_of(const Checkpoint& checkpoint, const Json& object, std::initializer_list<std::string_view> keys, std::int64_t missing) {
  const Json* value = find_any(object, keys);
  if (value == nullptr) return missing;
  if (!value->integer())
    unknown(checkpoint, *keys.begin(), fmt::format("'{}' of the quantization config is no integer", *keys.begin()), "repair config.json");
  return *value->integer();
}
std::string text_of(const Json& object, std::initializer_list<std::string_view> keys) {
  const Json* value = find_any(object, keys);
  return value != nullptr && value->string() != nullptr ? *value->string() : "";
}
bool flag_of(const Json& object, std::string_view key, bool missing) {
  const Json* value = object.find(key);
  return value != nullptr && value->boolean() ? *value->boolean() : missing;
}
std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return text;
}

class QuantizedCheckpoint final : public Checkpoint, public PackedSource {
 public:
  QuantizedCheckpoint(std::shared_ptr<const Checkpoint> stored, const Json& config) : stored_(std::move(stored)) {
    container_ = stored_->container();
    path_ = stored_->path();
    metadata_ = stored_->metadata();
    files_.assign(stored_->files().begin(), stored_->files().end());
    warnings_.assign(stored_->warnings().begin(), stored_->warnings().end());
    if (const Json* given = find_any(config, {"quantization_config", "compression_config"})) quantization_ = *given;
    if (const std::optional<DType> type = dtype_from_any(text_of(config, {"torch_dtype", "dtype"})); type && is_scale_type(*type))
      model_dtype_ = *type;
  }

  /// False when the config is of a kind that is not known; then `not_read` says so.
  bool find_modules(std::string& not_read) {
    const std::string method = lower(text_of(quantization_, {"quant_method"}));
    const bool has_words = has(".qweight"), has_compressed = has(".weight_packed") || has(".weight_scale"), has_inverse = has(".weight_scale_inv");
    if (has(".weight.quant_state.bitsandbytes__") || has(".SCB")) {
      add_bitsandbytes();
    } else if (has(".weight_form")) {
      add_modules(".weight_form", [&](const std::string& module, const TensorInfo&) { return std::make_unique<Own>(*stored_, module); });
    } else if (has_words && (method == "gptq" || method.empty())) {
      if (quantization_.is_null()) return not_known(not_read, "packed weights (qweight), and no config that says how they were packed");
      add_gptq();
    } else if (has_words && method == "awq") {
      add_awq();
    } else if (has_compressed && (method == "compressed-tensors" || quantization_.find("config_groups") != nullptr)) {
      add_compressed();
    } else if (has_inverse && method == "fp8") {
      add_block_fp8();
    } else {
      return not_known(not_read, fmt::format("weights packed by '{}'", method.empty() ? "an unknown tool" : printable(method)));
    }
    finish();
    return true;
  }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const Entry& entry = entry_of(tensor);
    if (entry.packed == nullptr) return stored_->read_bytes(*entry.plain, offset, out);
    if (offset > tensor.size_bytes || out.size() > tensor.size_bytes - offset)
      throw Error(ErrorCode::internal, "bytes beyond the end of a tensor were asked for", {.tensor = tensor.name});
    while (!out.empty()) {
      const std::uint64_t number = offset / entry.band_bytes, inside = offset % entry.band_bytes;
      const std::shared_ptr<Band> band = load(entry, number);
      const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), band->bytes.size() - inside));
      std::memcpy(out.data(), band->bytes.data() + inside, size);
      out = out.subspan(size);
      offset += size;
      const std::lock_guard lock(entry.cache->mutex);
      band->served_bytes += size;
      if (band->served_bytes >= band->bytes.size()) std::erase(entry.cache->bands, band);
    }
  }
  void read_stored(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    const Entry& entry = entry_of(tensor);
    if (entry.packed == nullptr) return stored_->read_stored(*entry.plain, offset, out);
    // The parts, one behind the other.
    for (const TensorInfo* part : entry.packed->parts()) {
      if (out.empty()) return;
      if (offset >= part->size_bytes) {
        offset -= part->size_bytes;
        continue;
      }
      const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), part->size_bytes - offset));
      stored_->read_bytes(*part, offset, out.first(size));
      out = out.subspan(size);
      offset = 0;
    }
  }
  bool read_packed_rows(const TensorInfo& tensor, std::uint64_t first, std::uint64_t count, PackedRows& out) const override {
    const Entry& entry = entry_of(tensor);
    if (entry.packed == nullptr) return weft::read_packed_rows(*stored_, *entry.plain, first, count, out);
    return entry.packed->pack(*stored_, static_cast<std::int64_t>(first), static_cast<std::int64_t>(count), out);
  }
  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    const auto found = by_name_.find(tensor.name);
    if (found == by_name_.end()) return;
    const Entry& entry = entries_[found->second];
    if (entry.packed == nullptr) return stored_->will_read(*entry.plain, offset, size_bytes);
    if (offset == 0)
      for (const TensorInfo* part : entry.packed->parts()) stored_->will_read(*part, 0, part->size_bytes);
  }
  void check_unchanged() const override { stored_->check_unchanged(); }
  void verify_checksums() const override { stored_->verify_checksums(); }

 private:
  struct Band {
    std::uint64_t number = 0;
    std::vector<std::byte> bytes;
    std::uint64_t served_bytes = 0;
  };
  struct Cache {
    std::mutex mutex;
    std::vector<std::shared_ptr<Band>> bands;
  };
  struct Entry {
    const TensorInfo* plain = nullptr;  ///< of the stored checkpoint
    std::unique_ptr<Packed> packed;
    std::int64_t band_rows = 1;
    std::uint64_t band_bytes = 1;
    std::unique_ptr<Cache> cache;
  };

  [[nodiscard]] bool has(std::string_view part) const {
    return std::any_of(stored_->tensors().begin(), stored_->tensors().end(), [&](const TensorInfo& tensor) {
      return part.ends_with("__") ? tensor.name.find(part) != std::string::npos : tensor.name.ends_with(part);
    });
  }
  bool not_known(std::string& not_read, std::string what) const {
    not_read = fmt::format("the folder holds {}, which weft does not decode: its tensors are shown as they are stored", what);
    return false;
  }
  [[nodiscard]] const Entry& entry_of(const TensorInfo& tensor) const {
    const auto found = by_name_.find(tensor.name);
    if (found == by_name_.end()) throw Error(ErrorCode::internal, "a tensor of another checkpoint was asked for", {.tensor = tensor.name});
    return entries_[found->second];
  }

  std::shared_ptr<Band> load(const Entry& entry, std::uint64_t number) const {
    const std::lock_guard lock(entry.cache->mutex);
    for (const auto& band : entry.cache->bands)
      if (band->number == number) return band;
    const std::int64_t first = static_cast<std::int64_t>(number) * entry.band_rows, count = std::min(entry.band_rows, entry.packed->rows - first);
    auto band = std::make_shared<Band>();
    band->number = number;
    std::vector<float> values(static_cast<std::size_t>(count * entry.packed->columns));
    entry.packed->decode(*stored_, first, count, values);
    band->bytes.resize(values.size() * static_cast<std::size_t>(info(entry.packed->dtype).bits) / 8);
    math::encode(entry.packed->dtype, values, band->bytes);
    if (entry.cache->bands.size() == 2) entry.cache->bands.erase(entry.cache->bands.begin());
    entry.cache->bands.push_back(band);
    return band;
  }

  /// Modules whose tensors end so, in the order of the file.
  template <typename Make>
  void add_modules(std::string_view suffix, const Make& make) {
    for (const TensorInfo& tensor : stored_->tensors()) {
      if (!tensor.name.ends_with(suffix)) continue;
      const std::string module = tensor.name.substr(0, tensor.name.size() - suffix.size());
      if (modules_.contains(module)) continue;
      std::unique_ptr<Packed> packed = make(module, tensor);
      if (packed == nullptr) continue;
      // Codes in a tensor of their own leave no room for plain weights of the same name.
      const std::vector<const TensorInfo*> parts = packed->parts();
      const TensorInfo* plain = stored_->find_tensor(module + ".weight");
      if (plain != nullptr && std::find(parts.begin(), parts.end(), plain) == parts.end())
        damaged(*stored_, module, fmt::format("'{}' is there both packed and plain", printable(module)));
      modules_.emplace(module, std::move(packed));
    }
  }

  void add_gptq() {
    IntegerLayout usual;
    usual.bits = check_bits(integer_of(*stored_, quantization_, {"bits", "w_bit"}, 4));
    usual.group = check_group(integer_of(*stored_, quantization_, {"group_size", "q_group_size"}, -1));
    std::string format = lower(text_of(quantization_, {"checkpoint_format", "format"}));
    if (flag_of(quantization_, "is_marlin_format", false)) format = "marlin";
    if (const std::string pack = text_of(quantization_, {"pack_dtype"}); !pack.empty() && pack != "int32")
      unknown(*stored_, "pack_dtype", fmt::format("weights are packed in '{}'", printable(pack)), "files packed in int32 are read");
    if (format.empty()) format = "gptq";
    if (format != "gptq" && format != "gptq_v2" && format != "gptq_p")
      unknown(*stored_, "checkpoint_format", fmt::format("the GPTQ form '{}' is laid out for one kind of GPU", printable(format)),
              "gptq, gptq_v2 and gptq_p are read; GPTQModel converts others");
    if (format == "gptq_p") usual.form = WordForm::planar;
    const bool symmetric = flag_of(quantization_, "sym", true);
    usual.zero_bias = format == "gptq" ? 1 : 0;
    if (format == "gptq" && symmetric && usual.bits == 4 && zeros_are_those_of_version_2()) {
      usual.zero_bias = 0;
      warnings_.push_back("the config calls these weights version 1 of the GPTQ layout, but their zero points are those of version 2; read as that");
    }
    std::vector<std::pair<StartPattern, const Json*>> dynamic;
    if (const Json* rules = quantization_.find("dynamic"); rules != nullptr && rules->object() != nullptr) {
      for (const auto& [key, value] : *rules->object()) {
        std::string_view pattern = key;
        if (pattern.starts_with("+:") || pattern.starts_with("-:")) pattern.remove_prefix(2);
        dynamic.emplace_back(StartPattern(*stored_, pattern), &value);
      }
    }
    add_modules(".qweight", [&](const std::string& module, const TensorInfo&) {
      IntegerLayout layout = usual;
      for (const auto& [pattern, value] : dynamic) {
        if (!pattern.matches(module)) continue;
        if (value->is_object()) {
          layout.bits = check_bits(integer_of(*stored_, *value, {"bits"}, layout.bits));
          layout.group = check_group(integer_of(*stored_, *value, {"group_size"}, layout.group));
        }
        break;
      }
      if (layout.form == WordForm::stream && layout.bits > 4 && layout.bits < 8) layout.form = WordForm::planar;
      if (layout.form == WordForm::planar && layout.bits != 3 && (layout.bits < 5 || layout.bits == 8)) layout.form = WordForm::stream;
      return std::make_unique<Gptq>(*stored_, module, layout);
    });
  }

  /// Mislabelled releases exist.
  [[nodiscard]] bool zeros_are_those_of_version_2() const {
    for (const TensorInfo& tensor : stored_->tensors()) {
      if (!tensor.name.ends_with(".qzeros") || tensor.dtype != DType::i32) continue;
      std::vector<std::byte> bytes(static_cast<std::size_t>(std::min<std::uint64_t>(tensor.size_bytes, 4096)));
      stored_->read_bytes(tensor, 0, bytes);
      return !bytes.empty() && std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0x88}; });
    }
    return false;
  }

  int check_bits(std::int64_t bits) const {
    if (bits < 2 || bits > 8) unknown(*stored_, "bits", fmt::format("weights of {} bits cannot be read", bits), "2 to 8 bits are read");
    return static_cast<int>(bits);
  }
  std::int64_t check_group(std::int64_t group) const {
    if (group == 0 || group < -1 || group > kMaxSide)
      unknown(*stored_, "group_size", fmt::format("a group size of {} makes no sense", group), "-1 for whole rows, or a positive number");
    return group;
  }

  void add_awq() {
    IntegerLayout layout;
    layout.bits = check_bits(integer_of(*stored_, quantization_, {"bits", "w_bit"}, 4));
    if (layout.bits != 4) unknown(*stored_, "bits", fmt::format("AWQ weights of {} bits cannot be read", layout.bits), "the layout has 4 bits");
    layout.group = check_group(integer_of(*stored_, quantization_, {"group_size", "q_group_size"}, 128));
    layout.fixed_zero = !flag_of(quantization_, "zero_point", true);
    const std::string version = lower(text_of(quantization_, {"version", "format", "checkpoint_format"}));
    const bool gemv = version == "gemv";
    if (!version.empty() && version != "gemm" && !gemv)
      unknown(*stored_, "version", fmt::format("the AWQ form '{}' is laid out for one kind of GPU", printable(version)), "gemm and gemv are read");
    add_modules(".qweight", [&](const std::string& module, const TensorInfo&) -> std::unique_ptr<Packed> {
      if (gemv) return std::make_unique<AwqGemv>(*stored_, module, layout);
      return std::make_unique<AwqGemm>(*stored_, module, layout);
    });
  }

  struct CompressedGroup {
    std::vector<std::string> names;  ///< exact ones
    std::vector<StartPattern> patterns;
    bool all = false;  ///< a class of layers
    CompressedArgs args;
  };

  CompressedArgs preset(const std::string& name) const {
    CompressedArgs args;
    args.group = 128;
    if (name.starts_with("NVFP4")) return args.bits = 4, args.group = 16, args;
    if (name.starts_with("MXFP4")) return args.bits = 4, args.group = 32, args;
    if (name.starts_with("MXFP6")) return args.bits = 6, args.group = 32, args;
    if (name.starts_with("MXFP8")) return args.group = 32, args;
    if (name == "FP8_BLOCK") return args.group = 0, args.block_rows = args.block_columns = 128, args;
    if (name.starts_with("FP8") || name == "W8A8" || name == "INT8") return args.group = 0, args;
    if (name.size() >= 5 && name[0] == 'W' && name[1] >= '2' && name[1] <= '8' && name[2] == 'A') {
      args.bits = name[1] - '0';
      args.symmetric = !name.ends_with("_ASYM");
      return args;
    }
    unknown(*stored_, "config_groups", fmt::format("the scheme '{}' is not known", printable(name)), "write its arguments out");
  }

  CompressedArgs args_of(const Json& weights) const {
    CompressedArgs args;
    args.bits = static_cast<int>(std::clamp<std::int64_t>(integer_of(*stored_, weights, {"num_bits"}, 8), 0, 64));
    if (args.bits < 1 || args.bits > 8)
      unknown(*stored_, "num_bits", fmt::format("weights of {} bits cannot be read", args.bits), "1 to 8 bits are read");
    args.symmetric = flag_of(weights, "symmetric", true);
    args.strategy = text_of(weights, {"strategy"});
    args.group = integer_of(*stored_, weights, {"group_size"}, 0);
    if (args.group < -1 || (args.group == 0 && weights.find("group_size") != nullptr && weights.find("group_size")->integer()))
      unknown(*stored_, "group_size", fmt::format("a group size of {} makes no sense", args.group), "-1 for whole rows, or a positive number");
    args.group = std::max<std::int64_t>(args.group, 0);
    if (const Json* block = find_any(weights, {"block_structure"})) {
      std::int64_t r = 0, c = 0;
      if (block->array() != nullptr && block->array()->size() == 2 && block->array()->front().integer() && block->array()->back().integer()) {
        r = *block->array()->front().integer();
        c = *block->array()->back().integer();
      } else if (block->string() != nullptr) {
        const std::size_t x = block->string()->find('x');
        if (x != std::string::npos) r = std::atoll(block->string()->c_str()), c = std::atoll(block->string()->c_str() + x + 1);
      }
      if (r <= 0 || c <= 0 || r > kMaxSide || c > kMaxSide)
        unknown(*stored_, "block_structure", "the size of the blocks makes no sense", "two positive numbers");
      args.block_rows = r;
      args.block_columns = c;
      args.group = 0;
    }
    return args;
  }

  void add_compressed() {
    constexpr std::size_t kMaxGroups = 1000;
    const Json* groups = quantization_.find("config_groups");
    if (groups == nullptr || groups->object() == nullptr || groups->object()->empty() || groups->object()->size() > kMaxGroups)
      unknown(*stored_, "config_groups", "the quantization config has no groups that say how weights were packed", "repair config.json");
    const std::string version = text_of(quantization_, {"version"});
    if (const std::string format = text_of(quantization_, {"format"});
        format == "marlin-24" || format == "sparse-24-bitmask" || format == "sparse-bitmask")
      unknown(*stored_, "format", fmt::format("weights in the form '{}' cannot be read", printable(format)),
              "save the model again with a current compressed-tensors");
    std::vector<CompressedGroup> known;
    for (const auto& [name, value] : *groups->object()) {
      CompressedGroup group;
      const Json* targets = value.is_array() ? &value : value.find("targets");
      if (value.is_array()) {
        group.args = preset(name);
      } else {
        const Json* weights = value.find("weights");
        if (weights == nullptr || !weights->is_object()) continue;  // activations only
        group.args = args_of(*weights);
      }
      group.args.version = version;
      if (targets == nullptr || targets->array() == nullptr)
        unknown(*stored_, "targets", fmt::format("group '{}' names no layers", printable(name)), "repair config.json");
      for (const Json& target : *targets->array()) {
        if (target.string() == nullptr) continue;
        if (target.string()->starts_with("re:"))
          group.patterns.emplace_back(*stored_, std::string_view(*target.string()).substr(3));
        else if (target.string()->find('.') == std::string::npos && *target.string() != "lm_head")
          group.all = true;
        else
          group.names.push_back(*target.string());
      }
      known.push_back(std::move(group));
    }
    const auto find_args = [&](const std::string& module) -> const CompressedArgs& {
      for (const CompressedGroup& group : known)
        if (std::find(group.names.begin(), group.names.end(), module) != group.names.end()) return group.args;
      for (const CompressedGroup& group : known)
        if (std::any_of(group.patterns.begin(), group.patterns.end(), [&](const StartPattern& pattern) { return pattern.matches(module); }))
          return group.args;
      for (const CompressedGroup& group : known)
        if (group.all) return group.args;
      damaged(*stored_, module, fmt::format("'{}' is packed, but no group of the config is for it", printable(module)));
    };
    if (has(".scale_packed"))
      unknown(*stored_, "format", "weights in the form 'marlin-24' cannot be read", "save the model again with a current compressed-tensors");
    add_modules(".weight_scale", [&](const std::string& module, const TensorInfo&) -> std::unique_ptr<Packed> {
      // Simulated quantization leaves scales beside weights of a plain type.
      const TensorInfo* plain = stored_->find_tensor(module + ".weight");
      if (plain != nullptr && stored_->find_tensor(module + ".weight_packed") == nullptr && is_scale_type(plain->dtype)) return nullptr;
      return std::make_unique<Compressed>(*stored_, module, find_args(module));
    });
    for (const TensorInfo& tensor : stored_->tensors())
      if (tensor.name.ends_with(".weight_packed") && !modules_.contains(tensor.name.substr(0, tensor.name.size() - 14)))
        damaged(*stored_, tensor.name, fmt::format("the packed matrix '{}' lacks its part 'weight_scale'", printable(tensor.name)));
  }

  /// DeepSeek's form: blocks of 128 by 128 with a multiplier.
  void add_block_fp8() {
    CompressedArgs args;
    args.block_rows = args.block_columns = 128;
    if (const Json* block = quantization_.find("weight_block_size"); block != nullptr && block->array() != nullptr && block->array()->size() == 2) {
      args.block_rows = block->array()->front().integer().value_or(0);
      args.block_columns = block->array()->back().integer().value_or(0);
    }
    if (args.block_rows <= 0 || args.block_columns <= 0 || args.block_rows > kMaxSide || args.block_columns > kMaxSide)
      unknown(*stored_, "weight_block_size", "the size of the blocks makes no sense", "two positive numbers");
    add_modules(".weight_scale_inv",
                [&](const std::string& module, const TensorInfo&) { return std::make_unique<Compressed>(*stored_, module, args, true); });
  }

  void add_bitsandbytes() {
    for (const TensorInfo& tensor : stored_->tensors()) {
      const std::size_t at = tensor.name.find(".weight.quant_state.bitsandbytes__");
      if (at == std::string::npos) continue;
      const std::string module = tensor.name.substr(0, at);
      if (modules_.contains(module)) damaged(*stored_, tensor.name, fmt::format("'{}' has several states", printable(module)));
      modules_.emplace(module, std::make_unique<Bnb4>(*stored_, module, tensor));
    }
    add_modules(".SCB", [&](const std::string& module, const TensorInfo&) {
      return std::make_unique<Bnb8>(*stored_, module, model_dtype_.value_or(DType::f16));
    });
  }

  /// The list of tensors: each matrix where its codes are.
  void finish() {
    std::set<std::string_view> gone;
    std::map<std::string_view, std::string> module_of;  // by name of the codes
    for (const auto& [module, packed] : modules_) {
      const std::vector<const TensorInfo*> parts = packed->parts();
      module_of.emplace(parts.front()->name, module);
      for (const TensorInfo* tensor : parts) gone.insert(tensor->name);
      // What was for activations has no place in a plain model.
      for (const char* suffix : {".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".weight_format"})
        if (const TensorInfo* tensor = stored_->find_tensor(module + suffix)) gone.insert(tensor->name);
    }
    for (const TensorInfo& tensor : stored_->tensors()) {
      const auto module = module_of.find(tensor.name);
      if (module == module_of.end() && gone.contains(tensor.name)) continue;
      Entry entry;
      TensorInfo described = tensor;
      if (module == module_of.end()) {
        entry.plain = &tensor;
      } else {
        entry.packed = std::move(modules_.at(module->second));
        const Packed& packed = *entry.packed;
        described.name = module->second + ".weight";
        described.dtype = packed.dtype;
        described.shape = {packed.rows, packed.columns};
        if (const auto* flat = dynamic_cast<const Bnb4*>(&packed)) described.shape = flat->dims();
        described.num_elements = checked_mul(static_cast<std::uint64_t>(packed.rows), static_cast<std::uint64_t>(packed.columns), "matrix");
        const std::uint64_t row_bytes =
            checked_mul(static_cast<std::uint64_t>(packed.columns), static_cast<std::uint64_t>(info(packed.dtype).bits) / 8, "row");
        described.size_bytes = checked_mul(row_bytes, static_cast<std::uint64_t>(packed.rows), "matrix");
        described.stored_as = packed.form;
        described.stored_bytes = 0;
        for (const TensorInfo* part : packed.parts()) described.stored_bytes += part->size_bytes;
        entry.band_rows = static_cast<std::int64_t>(
            std::clamp<std::uint64_t>(kBandBytes / (4 * static_cast<std::uint64_t>(packed.columns)), 1, static_cast<std::uint64_t>(packed.rows)));
        entry.band_bytes = static_cast<std::uint64_t>(entry.band_rows) * row_bytes;
        entry.cache = std::make_unique<Cache>();
      }
      tensors_.push_back(std::move(described));
      entries_.push_back(std::move(entry));
    }
    index_tensors();
    for (std::size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
  }

  std::shared_ptr<const Checkpoint> stored_;
  Json quantization_;
  std::optional<DType> model_dtype_;
  std::map<std::string, std::unique_ptr<Packed>> modules_;
  std::vector<Entry> entries_;  ///< of tensors_ at the same position
  std::unordered_map<std::string_view, std::size_t> by_name_;
};

}  // namespace

bool is_packed_part(std::string_view name) noexcept {
  return std::any_of(kParts.begin(), kParts.end(), [&](std::string_view suffix) { return name.ends_with(suffix); }) ||
         name.find(".weight.quant_state.bitsandbytes__") != std::string_view::npos;
}

bool has_packed_tensors(const Checkpoint& checkpoint) noexcept {
  return std::any_of(checkpoint.tensors().begin(), checkpoint.tensors().end(), [](const TensorInfo& tensor) { return is_packed_part(tensor.name); });
}

std::shared_ptr<const Checkpoint> decode_quantized(std::shared_ptr<const Checkpoint> stored, const Json& config, std::string& not_read) {
  if (!has_packed_tensors(*stored)) return stored;
  auto view = std::make_shared<QuantizedCheckpoint>(stored, config);
  return view->find_modules(not_read) ? std::shared_ptr<const Checkpoint>(std::move(view)) : stored;
}

void drop_quantization(const Checkpoint& checkpoint, Json& config) {
  if (!config.is_object() || has_packed_tensors(checkpoint)) return;
  for (const char* key : {"quantization_config", "compression_config"}) {
    const Json* given = config.find(key);
    if (given == nullptr) continue;
    const std::string method = lower(text_of(*given, {"quant_method"}));
    const bool known = method == "gptq" || method == "awq" || method == "compressed-tensors" || method == "bitsandbytes" || method == "fp8" ||
                       method == "weft" || given->find("config_groups") != nullptr;
    if (known) config.erase(key);
  }
}

}  // namespace weft
