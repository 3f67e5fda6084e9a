#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned_bytes.h"
#include "weft/dtype.h"

// Matrices whose weights stay quantized in memory, and their products with rows of x. Sixteen rows lie interleaved, word by word, so that one vector
// holds a few columns of all of them and no sum has to be gathered across a vector; codes and scales take as many bits as in the file (rows are
// filled up to a multiple of 16). Class B: the same bits for any number of threads on one target.
//
// x is taken in one of three ways:
//   rounded  32 columns at a time to 8-bit integers with a step of their largest magnitude / 127, as llama.cpp rounds for its types; sums are then of
//            integers, exact within 32 columns, and the same whatever other rows of x there are. Against exact x each product's error is at most sum
//            over blocks of (step / 2) * sum |w|; for normally distributed x it is in the mean 0.5 % of the root of the sum of (w x)^2.
//   fine     32 columns at a time to integers of 24 bits, their largest magnitude being 8323072 steps, in three digits that multiply as the 8-bit
//            integers do: as near to x as float32 sums are to the product (blocks of magnitudes below 1e-30 are zero), at the speed of integers.
//   exact    float32: what decoding and multiplying gives, up to the order of sums and one rounding of each weight.
namespace weft::math {

enum class PackedType : std::uint8_t {
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_nl,
  integer,  ///< w = scale * (code - zero) in groups of columns: GPTQ, AWQ, compressed-tensors, bitsandbytes' 8 bits
  table,    ///< w = scale * levels[code], 4 bits: NF4, FP4
  e4m3,     ///< w = scale * the FP8 number
};

enum class PackedZero : std::uint8_t {
  middle,  ///< 2^(bits - 1)
  bytes,   ///< an integer from 0 to 255 a group
  floats,  ///< a number of scale_type a group
};

/// What a matrix holds. The fields behind `type` are of the last three types; GGUF's have theirs built in.
struct PackedFormat {
  PackedType type = PackedType::q4_0;
  int bits = 4;                   ///< of integer: 2, 3, 4, 5, 6 or 8
  std::size_t group = 32;         ///< columns a scale, a multiple of 32
  DType scale_type = DType::f16;  ///< f16, bf16 or f32: as what scales are kept
  PackedZero zero = PackedZero::middle;
  std::array<float, 16> levels = {};  ///< of table

  bool operator==(const PackedFormat&) const = default;
};
/// That of a GGUF type ("Q4_K"), false when there is none.
[[nodiscard]] bool find_packed_format(std::string_view block_type, PackedFormat& format) noexcept;
/// Its name; empty for those that are none of GGUF's.
[[nodiscard]] std::string_view block_type_of(const PackedFormat& format) noexcept;
/// Whether a matrix of so many columns can be kept so.
[[nodiscard]] bool can_pack(const PackedFormat& format, std::size_t columns) noexcept;
[[nodiscard]] std::uint64_t packed_size(const PackedFormat& format, std::size_t rows, std::size_t columns);

/// Where things lie, for the kernels.
struct PackedView {
  const std::uint8_t* codes = nullptr;
  const std::uint8_t* scales = nullptr;
  const float* table = nullptr;  ///< [16], of 4-bit codes
  std::size_t rows = 0;
  std::size_t units = 0;         ///< of 32 columns
  std::size_t unit_bytes = 0;    ///< codes of 16 rows and 32 columns
  std::size_t record_units = 0;  ///< units that a record of scales is for
  std::size_t record_bytes = 0;
  std::size_t tile_codes = 0, tile_scales = 0;  ///< bytes of 16 rows
  int scale_kind = 0;                           ///< 0: f16, 1: bf16, 2: f32
  int zero_kind = 0;  ///< 0: `zero`, 1: a byte, 2: a number of scale_kind, 3: what is taken away from the product is stored itself
  float zero = 0;
};

inline constexpr std::size_t kTileLanes = 16;  ///< rows that lie interleaved

class PackedMatrix {
 public:
  PackedMatrix() = default;
  /// can_pack() holds. Scales are zero until rows are put.
  PackedMatrix(const PackedFormat& format, std::size_t rows, std::size_t columns);

  [[nodiscard]] const PackedFormat& format() const noexcept { return format_; }
  [[nodiscard]] std::size_t rows() const noexcept { return view_.rows; }
  [[nodiscard]] std::size_t columns() const noexcept { return view_.units * 32; }
  [[nodiscard]] std::size_t num_tiles() const noexcept { return (view_.rows + kTileLanes - 1) / kTileLanes; }
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return num_tiles() * (view_.tile_codes + view_.tile_scales); }
  /// Whether products with rounded x exist: for integer codes.
  [[nodiscard]] bool can_round_inputs() const noexcept {
    return format_.type != PackedType::table && format_.type != PackedType::e4m3 && format_.type != PackedType::iq4_nl;
  }
  /// Whether products with fine x exist: for integer codes without blocks of blocks.
  [[nodiscard]] bool can_split_inputs() const noexcept;

  /// One row, from a GGUF file's blocks at any address. Different rows may be put from different threads.
  void put_blocks(std::size_t row, const std::uint8_t* blocks);
  /// One row: a code a byte [columns], scales [groups], zero points [groups] where the format has them (integers for PackedZero::bytes).
  void put_codes(std::size_t row, const std::uint8_t* codes, const float* scales, const float* zeros);

  /// out [columns].
  void read_row(std::size_t row, float* out) const;
  /// Columns [first, first + count) (multiples of 32) of rows [tile * 16, ...) of some tiles, turned: out[column * stride + row].
  void decode(std::size_t first_tile, std::size_t num_tiles, std::size_t first_column, std::size_t num_columns, float* out, std::size_t stride) const;

  [[nodiscard]] PackedView view() const noexcept {
    PackedView view = view_;
    view.table = table_.data();
    return view;
  }
  [[nodiscard]] int form() const noexcept { return form_; }

 private:
  PackedFormat format_;
  PackedView view_;
  int form_ = 0;
  AlignedBytes codes_, scales_;
  std::array<float, 16> table_ = {};
};

enum class PackedInputs : std::uint8_t { rounded, fine, exact };

/// Rows of x, prepared for products with packed matrices of as many columns. NaN and infinities in a block of x make every product of its row NaN.
class PackedInput {
 public:
  /// columns: a multiple of 32.
  PackedInput(PackedInputs kind, std::size_t num_rows, std::size_t columns);
  [[nodiscard]] PackedInputs kind() const noexcept { return kind_; }
  [[nodiscard]] std::size_t num_rows() const noexcept { return num_rows_; }
  /// Blocks are filled one by one, from any threads, before the first product.
  [[nodiscard]] std::size_t num_blocks() const noexcept;
  void fill(std::size_t block, const float* x, std::size_t stride);

  struct View {
    const std::int8_t* codes = nullptr;  ///< [unit][row][32] of rounded, [unit][row][3][32] of fine: the highest digits first
    const float* values = nullptr;       ///< [unit][row][32] of exact
    const float* facts = nullptr;        ///< [unit][row][4]: step, step * sum of codes, and (not of fine) that of each half of the 32
    std::size_t first_row = 0, num_rows = 0;
  };
  [[nodiscard]] View block(std::size_t index) const;

 private:
  PackedInputs kind_;
  std::size_t num_rows_, columns_;
  AlignedBytes values_, facts_;
};

/// out[t * out_stride + r] = x[t] . W[r] for the rows r of tiles [first_tile, last_tile). Rounded input needs can_round_inputs(), fine
/// can_split_inputs().
void packed_products(const PackedMatrix& matrix, std::size_t first_tile, std::size_t last_tile, const PackedInput& input, float* out,
                     std::size_t out_stride);

// ---- Targets: other than those of the other kernels, since 8-bit dot products are instructions of their own. WEFT_SIMD restricts them too: to what
// the named target has.

struct PackedTarget {
  std::string name;        ///< "avx512_vnni", "avx512", "avx2_vnni", "avx2", "portable"
  bool supported = false;  ///< by this machine
};
[[nodiscard]] std::vector<PackedTarget> packed_targets();
[[nodiscard]] std::string active_packed_target();
/// Whether the active one has instructions for products of bytes: fine x is then the fastest.
[[nodiscard]] bool has_byte_products();
/// For tests; empty: the best again. Not while kernels run.
void use_only_packed_target(std::string_view name);

}  // namespace weft::math
