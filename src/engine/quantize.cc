#include "weft/quantize.h"

#include <fmt/format.h>

#include "base/text.h"
#include "engine/quantize_format.h"
#include "model/gguf_mix.h"
#include "weft/error.h"

namespace weft {
namespace {

struct Row {
  QuantizeFormat format;
  bool takes_argument = false;  ///< "gguf:TYPE"
  QuantizeReport (*write)(const engine::QuantizeRequest&) = nullptr;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> kRows = {
      {{"gguf", "a file for llama.cpp, in one of its types and mixes", "gguf:Q4_K_M"}, true, engine::quantize_gguf},
  };
  return kRows;
}

}  // namespace

std::vector<QuantizeFormat> quantize_formats() {
  std::vector<QuantizeFormat> formats;
  for (const Row& row : rows()) formats.push_back(row.format);
  return formats;
}

std::vector<std::pair<std::string, double>> gguf_types() {
  std::vector<std::pair<std::string, double>> types;
  for (const model::GgufFileType& type : model::gguf_file_types()) types.emplace_back(type.name, type.bits_per_weight);
  return types;
}

QuantizeReport quantize(std::string_view model, const std::filesystem::path& output, const QuantizeOptions& options) {
  const std::size_t colon = options.format.find(':');
  const std::string name = options.format.substr(0, colon);
  const std::string argument = colon == std::string::npos ? "" : options.format.substr(colon + 1);
  std::vector<std::string> examples;
  const Row* found = nullptr;
  for (const Row& row : rows()) {
    examples.push_back(row.format.example);
    if (row.format.name == name) found = &row;
  }
  if (found == nullptr) {
    const auto nearest = nearest_name(options.format, examples);
    throw Error(ErrorCode::invalid_argument,
                options.format.empty() ? std::string("which format?") : fmt::format("there is no format '{}'", printable(options.format)),
                {.key = "format"}, nearest ? fmt::format("did you mean {}?", *nearest) : fmt::format("formats: {}", fmt::join(examples, ", ")));
  }
  if (found->takes_argument ? argument.empty() : colon != std::string::npos)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("the format '{}' {}", printable(name), found->takes_argument ? "needs a type" : "takes no type"), {.key = "format"},
                fmt::format("such as {}", found->format.example));
  return found->write({open_checkpoint(model, options.open), std::string(model), output, argument, options});
}

}  // namespace weft
