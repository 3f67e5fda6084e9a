// Whatever the bytes, the header is refused with an Error or every tensor lies inside the file and none over another, and its lists can be read.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "checkpoint/gguf_header.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const weft::GgufLists lists : {weft::GgufLists::leave_long, weft::GgufLists::keep_all}) {
    try {
      const weft::GgufHeader header = weft::parse_gguf_header(bytes, "fuzz.gguf", lists);
      std::uint64_t end = header.tensors.empty() ? 0 : header.data_offset_bytes;
      for (const weft::GgufTensor& tensor : header.tensors) {
        if (tensor.stored_bytes != 0 && tensor.offset_bytes < end) std::abort();
        if (tensor.offset_bytes > size || tensor.stored_bytes > size - tensor.offset_bytes) std::abort();
        if (tensor.stored_bytes != 0) end = tensor.offset_bytes + tensor.stored_bytes;
      }
      for (const auto& [key, value] : header.metadata.entries()) {
        if (key.empty()) std::abort();
        (void)weft::describe(value);
        const weft::GgufArray* list = value.array();
        if (list == nullptr || !list->bytes) continue;
        if (list->element_type == weft::GgufType::string && value.string_list().size() != list->num_elements) std::abort();
        (void)value.integer_list();
        (void)value.float_list();
      }
    } catch (const weft::Error& error) {
      if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
    }
  }
  return 0;
}
