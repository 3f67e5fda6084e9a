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

template <const char* const& kFormat>
QuantizeReport packed(const engine::QuantizeRequest& request) {
  return engine::quantize_packed(kFormat, request);
}
const char* const kGptq = "gptq";
const char* const kGptq2 = "gptq_v2";
const char* const kAwq = "awq";
const char* const kCompressed = "compressed-tensors";
const char* const kBnbNf4 = "bnb-nf4";
const char* const kBnbFp4 = "bnb-fp4";
const char* const kBnbInt8 = "bnb-int8";
const char* const kOwn = "weft";

const std::vector<Row>& rows() {
  static const std::vector<Row> kRows = {
      {{"gguf", "a file for llama.cpp, in one of its types and mixes", "gguf:Q4_K_M"}, true, engine::quantize_gguf},
      {{"gptq", "a folder in the layout of GPTQ, 2, 3, 4 or 8 bits", "gptq"}, false, packed<kGptq>},
      {{"gptq_v2", "the same in its second version, which has zero points of 0", "gptq_v2"}, false, packed<kGptq2>},
      {{"awq", "a folder in the layout of AWQ (gemm), 4 bits", "awq"}, false, packed<kAwq>},
      {{"compressed-tensors", "a folder in the layout of vLLM's library: integers of 2 to 8 bits, FP8, FP4", "compressed-tensors"},
       false,
       packed<kCompressed>},
      {{"bnb-nf4", "a folder in the layout of bitsandbytes, NF4", "bnb-nf4"}, false, packed<kBnbNf4>},
      {{"bnb-fp4", "the same with FP4", "bnb-fp4"}, false, packed<kBnbFp4>},
      {{"bnb-int8", "the same with 8-bit integers", "bnb-int8"}, false, packed<kBnbInt8>},
      {{"weft", "a folder of our own, which holds what no other layout does", "weft"}, false, packed<kOwn>},
  };
  return kRows;
}

/// The format, and what stands behind its colon. Errors: invalid_argument.
std::pair<const Row&, std::string> row_of(const QuantizeOptions& options) {
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
  return {*found, argument};
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
  const auto [row, argument] = row_of(options);
  return row.write({open_checkpoint(model, options.open), std::string(model), output, argument, options});
}

QuantizeReport engine::quantize_made(LazyModel model, const std::filesystem::path& output, const QuantizeOptions& options,
                                     std::vector<JournalHead::Ingredient> ingredients) {
  const auto [row, argument] = row_of(options);
  return row.write({nullptr, model.name, output, argument, options, &model, std::move(ingredients)});
}

}  // namespace weft
