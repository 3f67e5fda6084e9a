#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "weft/checkpoint.h"
#include "weft/quantize.h"

// One row of the table in quantize.cc a format; each is written by a function of its own.
namespace weft::engine {

struct QuantizeRequest {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::string model;  ///< as the user wrote it
  std::filesystem::path output;
  std::string argument;  ///< of the format: "Q4_K_M" of "gguf:Q4_K_M"; may be empty
  const QuantizeOptions& options;
};

// quantize_gguf.cc
[[nodiscard]] QuantizeReport quantize_gguf(const QuantizeRequest& request);
// quantize_packed.cc: a folder in the layout of that name.
[[nodiscard]] QuantizeReport quantize_packed(const char* format, const QuantizeRequest& request);

}  // namespace weft::engine
