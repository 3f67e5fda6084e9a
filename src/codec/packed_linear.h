#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "codec/scalar_grid.h"
#include "weft/dtype.h"

// The weights of a linear layer as codes with scales, and the tensors that other tools store them in: GPTQ, AWQ, compressed-tensors, bitsandbytes.
// Layouts only; what the codes should be is decided elsewhere.
namespace weft::codec {

/// W[rows, columns] = scale * (code - zero), or scale * level(code). A scale stands for `group` columns of a row (the last group may be short), or,
/// with row_group > 1, of so many rows.
struct QuantizedLinear {
  std::int64_t rows = 0;     ///< outputs
  std::int64_t columns = 0;  ///< inputs
  Levels levels = Levels::integer;
  int bits = 4;                        ///< of a code
  std::int64_t group = 0;              ///< columns a scale; the row's length for one scale a row
  std::int64_t row_group = 1;          ///< rows a scale
  DType scale_type = DType::f16;       ///< what the scales are stored as; they are numbers of it
  float scale_unit = 1;                ///< scales are this times numbers of their type; only weft's own form has another than 1
  bool rounds_products = false;        ///< values are the unit times E4M3 numbers, see SliceFormat; only weft's own form
  bool symmetric = false;              ///< all zero points are 2^(bits-1)
  std::vector<std::uint8_t> codes;     ///< [rows, columns]
  std::vector<float> scales;           ///< [row groups, groups]
  std::vector<float> zeros;            ///< like scales; empty for tables
  std::vector<std::int32_t> group_of;  ///< [columns]: which group a column is of; empty: column / group
  float global_divisor = 0;            ///< where not 0, scales are divided by it: NVFP4
  // What is added to the decoded values; only weft's own form holds it.
  std::int64_t rank = 0;
  std::vector<float> left, right;      ///< [rows, rank], [rank, columns]
  std::vector<std::int64_t> added_at;  ///< row * columns + column
  std::vector<float> added;

  [[nodiscard]] std::int64_t num_groups() const { return group <= 0 ? 1 : (columns + group - 1) / group; }
  [[nodiscard]] std::int64_t num_row_groups() const { return (rows + row_group - 1) / row_group; }
  [[nodiscard]] std::size_t scale_index(std::int64_t row, std::int64_t column) const {
    const std::int64_t g = group_of.empty() ? (group <= 0 ? 0 : column / group) : group_of[static_cast<std::size_t>(column)];
    return static_cast<std::size_t>(row / row_group * num_groups() + g);
  }
  /// All values, in float32.
  [[nodiscard]] std::vector<float> decoded() const;
};

/// A tensor as a file has it.
struct StoredTensor {
  std::string name;  ///< behind the module's: "qweight"
  DType dtype = DType::i32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};

// ---- Words -------------------------------------------------------------------------------------------------------------------------------

enum class WordForm : std::uint8_t {
  stream,  ///< value k at bits k * bits, words in order: values may straddle
  planar,  ///< low bits of all values first, then the higher ones ("gptq_p")
  legacy,  ///< floor(32 / bits) values a word, the rest unused (compressed-tensors before 0.17)
};
/// Words that so many values need.
[[nodiscard]] std::uint64_t words_for(std::uint64_t num_values, int bits, WordForm form);
/// values and words may be strided; planar takes multiples of 32 values.
void pack_words(const std::uint8_t* values, std::size_t value_stride, std::size_t num_values, int bits, WordForm form, std::uint32_t* words,
                std::size_t word_stride);
void unpack_words(const std::uint32_t* words, std::size_t word_stride, std::size_t num_values, int bits, WordForm form, std::uint8_t* values,
                  std::size_t value_stride);
/// AWQ's order inside a word of eight: nibble k holds column 8c + kAwqOrder[k].
inline constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// ---- Writers -----------------------------------------------------------------------------------------------------------------------------
// Errors: unsupported where the layout has no place for what the layer is, saying which has.

enum class GptqFormat : std::uint8_t { v1, v2, planar };
/// bits 2, 3, 4, 8 (planar: 3, 5, 6, 7). v1 takes zero points of at least 1.
[[nodiscard]] std::vector<StoredTensor> write_gptq(const QuantizedLinear& linear, GptqFormat format);
[[nodiscard]] std::vector<StoredTensor> write_awq(const QuantizedLinear& linear);

/// compressed-tensors' formats.
enum class CompressedForm : std::uint8_t { pack_quantized, int_quantized, float_quantized, nvfp4, mxfp4, mxfp6, mxfp8 };
[[nodiscard]] std::string_view to_string(CompressedForm form) noexcept;
[[nodiscard]] std::vector<StoredTensor> write_compressed(const QuantizedLinear& linear, CompressedForm form);
/// The scales and codes that compressed-tensors' own minimum-maximum rule gives, in the arithmetic of the weight's type, bit for bit.
/// format.levels integer (centred or affine), e4m3, or for the packed forms e2m1, e2m3. weight_type: f32, bf16 or f16. group 0: a row; row_group:
/// rows a scale (all of them for one scale a tensor).
[[nodiscard]] QuantizedLinear quantize_compressed(std::span<const float> weights, std::int64_t rows, std::int64_t columns, DType weight_type,
                                                  CompressedForm form, int bits, bool symmetric, std::int64_t group, std::int64_t row_group);

/// bitsandbytes' 4 bits, of the flattened matrix. levels: nf4 or bnb_fp4. block: 32 to 4096. weight_type: as which it is decoded.
[[nodiscard]] std::vector<StoredTensor> write_bnb4(std::span<const float> weights, std::int64_t rows, std::int64_t columns, DType weight_type,
                                                   Levels levels, std::int64_t block, bool nested);
/// LLM.int8(): of the values rounded to float16.
[[nodiscard]] std::vector<StoredTensor> write_bnb8(std::span<const float> weights, std::int64_t rows, std::int64_t columns);

/// Weft's own form, which holds all that a QuantizedLinear can be. weight_type: as what it is decoded, and what is added to it stored.
[[nodiscard]] std::vector<StoredTensor> write_own(const QuantizedLinear& linear, DType weight_type);
/// out[rows, columns] += left[rows, rank] right[rank, columns]; sums in float32, in order of the rank.
void add_product(std::span<const float> left, std::span<const float> right, std::int64_t rows, std::int64_t rank, std::int64_t columns,
                 std::span<float> out);

}  // namespace weft::codec
