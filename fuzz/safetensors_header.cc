// Whatever the bytes, the header is refused with an Error or every tensor lies inside the file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "checkpoint/safetensors.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const weft::SafetensorsHeader header = weft::parse_safetensors_header(bytes, size, "fuzz.safetensors");
    std::uint64_t end = header.data_offset_bytes;
    for (const weft::TensorInfo& tensor : header.tensors) {
      if (tensor.offset_bytes != end || tensor.size_bytes > size - end) std::abort();
      end += tensor.size_bytes;
    }
    if (end != size) std::abort();
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
  }
  return 0;
}
