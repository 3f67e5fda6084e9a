// Whatever the bytes, the header is refused with an Error, or its sizes agree and the header that is written for such an array reads back as the
// same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "checkpoint/npy.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  weft::NpyHeader header;
  try {
    header = weft::parse_npy_header({reinterpret_cast<const char*>(data), size}, "fuzz.npy");
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
    return 0;
  }
  // Elements are whole bytes; their number may be so large that that of their bits is no number.
  if (header.data_offset > size || header.data_bytes != header.num_elements * static_cast<std::uint64_t>(weft::info(header.dtype).bits / 8))
    std::abort();
  const std::string written = weft::make_npy_header(header.dtype, header.shape);
  const weft::NpyHeader again = weft::parse_npy_header(written, "again.npy");
  if (again.dtype != header.dtype || again.shape != header.shape || again.data_offset != written.size() || again.fortran_order || again.big_endian)
    std::abort();
  return 0;
}
