#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf_header.h"
#include "checkpoint/output.h"

namespace weft {

/// A tensor of a GGUF file to be written.
struct GgufTensorSpec {
  std::string name;
  std::uint32_t type = 0;                    ///< in the file
  const codec::BlockCodec* codec = nullptr;  ///< null for plain types
  DType dtype = DType::f32;                  ///< of plain types
  Shape shape;                               ///< outermost axis first
};

/// Lays tensors out in the given order as llama.cpp demands it: aligned, without gaps, padded at the end. With max_file_bytes (0: no limit) the file
/// is cut into parts STEM-00001-of-0000N.gguf, each with whole tensors; the first has all metadata. stem: without ".gguf".
/// parts: number of the first tensor of each part, 0 first, instead of cutting by size; may be empty. Errors: invalid_argument
/// for names and shapes that the format cannot hold, duplicate names, lists that were left in another file.
[[nodiscard]] OutputLayout plan_gguf(const std::vector<GgufTensorSpec>& specs, const GgufMetadata& metadata, std::uint64_t max_file_bytes,
                                     std::string_view stem, const std::vector<std::size_t>& parts = {});

}  // namespace weft
