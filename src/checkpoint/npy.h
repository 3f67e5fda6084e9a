#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "weft/checkpoint.h"

// NumPy's .npy: a short header, then the elements of one array.
namespace weft {

/// Enough of the beginning of any sensible file to hold its header; a longer one is refused.
inline constexpr std::uint64_t kMaxNpyHeaderBytes = 1 << 20;

struct NpyHeader {
  DType dtype = DType::f32;
  Shape shape;
  bool fortran_order = false;  ///< first axis fastest
  bool big_endian = false;     ///< elements, where they have several bytes
  std::uint64_t num_elements = 0;
  std::uint64_t data_offset = 0;  ///< of the first element, from the start of the array's file
  std::uint64_t data_bytes = 0;
};

/// From the beginning of a file (all of the header, or all of the file): versions 1 to 3. Nothing is evaluated; the header is read as the literal
/// that it is. Errors: corrupt (no .npy, cut off, contradictory), unsupported (Python objects, records, types that tensors do not have).
[[nodiscard]] NpyHeader parse_npy_header(std::string_view beginning, const std::filesystem::path& file);

/// The bytes before the elements, as NumPy writes them (version 1; 2 where the shape is longer): a multiple of 64. dtype must be one of NumPy's.
[[nodiscard]] std::string make_npy_header(DType dtype, const Shape& shape);

/// The type that holds the values of a tensor of this type in NumPy: its own, or float32 for bfloat16 and the eight-bit floats, which NumPy does not
/// know. Errors: unsupported (F4, F6).
[[nodiscard]] DType npy_dtype(DType dtype);

/// The array as a checkpoint of one tensor, in C order and the byte order of this machine, called `name` (empty: by the file's stem).
/// Errors: those of parse_npy_header; corrupt when the file has another length; unsupported for Fortran order with more than two axes.
[[nodiscard]] std::shared_ptr<const Checkpoint> open_npy(const std::filesystem::path& file, std::string name = {});

/// Writes a tensor as a .npy file, in bounded memory, in place only when complete. Errors: io, no_space, invalid_argument (something is there and
/// replace is false), unsupported.
void write_npy(const Checkpoint& checkpoint, const TensorInfo& tensor, const std::filesystem::path& file, bool replace);

}  // namespace weft
