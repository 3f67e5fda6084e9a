// Whatever the bytes, the header is refused with an Error or every tensor lies inside the file; then a file of the same tensors can be laid out, and
// its header reads back as the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/output.h"
#include "checkpoint/safetensors.h"
#include "weft/error.h"

namespace weft::fuzz {

inline void expect_written_and_read_back(SafetensorsHeader header) {
  std::vector<TensorSpec> specs;
  for (const TensorInfo& tensor : header.tensors) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  // From here on an Error is a bug of ours, and ends the run.
  const OutputLayout layout = plan_safetensors(specs, 0, header.metadata);
  const OutputLayout::FilePlan& file = layout.files.at(0);
  SafetensorsHeader again = parse_safetensors_header(file.header, file.size_bytes, "again.safetensors");
  header.metadata["format"] = "pt";  // always there
  if (again.metadata != header.metadata || again.tensors.size() != header.tensors.size()) std::abort();
  const auto by_name = [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; };
  std::sort(header.tensors.begin(), header.tensors.end(), by_name);
  std::sort(again.tensors.begin(), again.tensors.end(), by_name);
  for (std::size_t i = 0; i < header.tensors.size(); ++i) {
    const TensorInfo &a = header.tensors[i], &b = again.tensors[i];
    if (a.name != b.name || a.dtype != b.dtype || a.shape != b.shape || a.num_elements != b.num_elements || a.size_bytes != b.size_bytes)
      std::abort();
  }
}

}  // namespace weft::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  weft::SafetensorsHeader header;
  try {
    header = weft::parse_safetensors_header(bytes, size, "fuzz.safetensors");
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
    return 0;
  }
  std::uint64_t end = header.data_offset_bytes;
  for (const weft::TensorInfo& tensor : header.tensors) {
    if (tensor.offset_bytes != end || tensor.size_bytes > size - end) std::abort();
    end += tensor.size_bytes;
  }
  if (end != size) std::abort();
  weft::fuzz::expect_written_and_read_back(std::move(header));
  return 0;
}
