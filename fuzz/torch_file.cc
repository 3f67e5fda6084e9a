// Whatever the bytes, they are refused with an Error or every tensor lies inside its storage and every storage inside the file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "checkpoint/torch_file.h"
#include "weft/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const weft::TorchContents contents = weft::read_torch_contents(weft::memory_source(bytes, "fuzz.pt"), {});
    for (const weft::TorchStorage& storage : contents.storages)
      if (storage.offset_bytes > size || storage.size_bytes > size - storage.offset_bytes) std::abort();
    for (const weft::TorchTensor& tensor : contents.tensors) {
      if (tensor.storage >= contents.storages.size() || tensor.strides.size() != tensor.shape.size()) std::abort();
      if (tensor.num_elements == 0) continue;
      // Cannot wrap: the reader has checked each step of this sum.
      std::uint64_t last = tensor.offset;
      for (std::size_t d = 0; d < tensor.shape.size(); ++d) last += (static_cast<std::uint64_t>(tensor.shape[d]) - 1) * tensor.strides[d];
      const std::uint64_t element_bytes = static_cast<std::uint64_t>(weft::info(tensor.dtype).bits) / 8;
      if ((last + 1) * element_bytes > contents.storages[tensor.storage].size_bytes) std::abort();
    }
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
  }
  return 0;
}
