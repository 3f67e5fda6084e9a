// Whatever the bytes, they are refused with an Error or every array lies inside the file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "checkpoint/npz.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    for (const weft::NpzArray& array : weft::read_npz_arrays(weft::memory_source(bytes, "fuzz.npz")))
      if (array.tensor.offset_bytes > size || array.tensor.size_bytes > size - array.tensor.offset_bytes) std::abort();
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
  }
  return 0;
}
