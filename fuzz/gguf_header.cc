// Whatever the bytes, the header is refused with an Error or every tensor lies inside the file and none over another, and its lists can be read; then
// a file of the same tensors and metadata can be laid out, unless the writer is stricter, and its header reads back as the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf_header.h"
#include "checkpoint/gguf_writer.h"
#include "weft/error.h"

namespace weft::fuzz {

inline void expect_written_and_read_back(GgufHeader header) {
  std::vector<GgufTensorSpec> specs;
  for (const GgufTensor& tensor : header.tensors) specs.push_back({tensor.name, tensor.type, tensor.codec, tensor.dtype, tensor.shape});
  std::optional<OutputLayout> layout;
  try {
    layout = plan_gguf(specs, header.metadata, 0, "again");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::invalid_argument) std::abort();
    return;  // longer names, say, which llama.cpp would not read
  }
  std::string file = layout->files.at(0).header;
  file.resize(static_cast<std::size_t>(layout->files[0].size_bytes));
  // From here on an Error is a bug of ours, and ends the run.
  GgufHeader again = parse_gguf_header(file, "again.gguf", GgufLists::keep_all);
  if (again.tensors.size() != header.tensors.size() || again.metadata.entries().size() != header.metadata.entries().size()) std::abort();
  for (std::size_t i = 0; i < header.metadata.entries().size(); ++i) {
    const auto& [key, value] = header.metadata.entries()[i];
    const auto& [again_key, again_value] = again.metadata.entries()[i];
    if (key != again_key || value.type != again_value.type || describe(value) != describe(again_value)) std::abort();
    if (value.array() != nullptr &&
        (value.array()->bytes != again_value.array()->bytes || value.array()->element_type != again_value.array()->element_type))
      std::abort();
  }
  const auto by_name = [](const GgufTensor& a, const GgufTensor& b) { return a.name < b.name; };
  std::sort(header.tensors.begin(), header.tensors.end(), by_name);
  std::sort(again.tensors.begin(), again.tensors.end(), by_name);
  for (std::size_t i = 0; i < header.tensors.size(); ++i) {
    const GgufTensor &a = header.tensors[i], &b = again.tensors[i];
    const bool same_shape = a.shape == b.shape || (a.shape.empty() && b.num_elements == 1);  // a number is written as a list of one
    if (a.name != b.name || a.type != b.type || !same_shape || a.num_elements != b.num_elements || a.stored_bytes != b.stored_bytes) std::abort();
  }
}

}  // namespace weft::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const weft::GgufLists lists : {weft::GgufLists::leave_long, weft::GgufLists::keep_all}) {
    try {
      const weft::GgufHeader header = weft::parse_gguf_header(bytes, "fuzz.gguf", lists);
      std::uint64_t end = header.tensors.empty() ? 0 : header.data_offset_bytes;
      for (const weft::GgufTensor& tensor : header.tensors) {
        if (tensor.stored_bytes == 0) continue;  // may be said to lie anywhere: nothing is read of it
        if (tensor.offset_bytes < end) std::abort();
        if (tensor.offset_bytes > size || tensor.stored_bytes > size - tensor.offset_bytes) std::abort();
        end = tensor.offset_bytes + tensor.stored_bytes;
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
      if (lists == weft::GgufLists::keep_all) weft::fuzz::expect_written_and_read_back(header);
    } catch (const weft::Error& error) {
      if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::unsupported) std::abort();
    }
  }
  return 0;
}
