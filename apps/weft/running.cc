#include "running.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/file.h"
#include "weft/error.h"

namespace weft::app {
namespace {

constexpr std::uint64_t kMaxFileBytes = std::uint64_t{1} << 30;

}  // namespace

void add_running_options(Command& command, RunningOptions& options) {
  command.group("Model");
  Option& precision = command.value(
      {"--precision"}, "HOW", options.precision,
      "float32 throughout; fast: weights and large products may be bfloat16; int8: the layers' matrices and the inputs of large products "
      "are rounded to 8 bits, which is several times faster and changes answers a little; packed: quantized matrices are multiplied as they are "
      "stored, those of GGUF's types with inputs rounded to 8 bits, which takes their memory and no more");
  precision.kind = ValueKind::choice;
  precision.choices = {"float32", "fast", "int8", "packed"};
  precision.default_text = options.precision;
  Option& overlay = command.custom({"--overlay"}, "ADAPTER", "an adapter that is put over the model; may be given again",
                                   [&options](const std::string& text) { options.overlays.push_back(text); });
  overlay.kind = ValueKind::path;
  overlay.repeated = true;
  command.flag({"--allow-non-finite"}, options.common.allow_non_finite, "go on when activations become NaN or infinite");
}

void fill_running(Console& console, const RunningOptions& from, RunOptions& to) {
  console.fill(to);
  to.precision = from.precision == "fast"     ? Precision::fast
                 : from.precision == "int8"   ? Precision::int8
                 : from.precision == "packed" ? Precision::packed
                                              : Precision::float32;
}

std::string with_overlays(const std::string& model, const RunningOptions& options) {
  std::string name = model;
  for (const std::string& overlay : options.overlays) name += "+" + overlay;
  return name;
}

std::vector<std::string> read_text_lines(const std::string& file) {
  const std::string text = read_text_file(file, kMaxFileBytes);
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    lines.emplace_back(text, at, end - at);
    if (!lines.back().empty() && lines.back().back() == '\r') lines.back().pop_back();
    at = end + 1;
  }
  return lines;
}

std::vector<ForwardInput> read_id_lines(const std::string& file) {
  std::vector<ForwardInput> inputs;
  std::size_t number = 0;
  for (const std::string& line : read_text_lines(file)) {
    ++number;
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    const auto refuse = [&](const std::string& what) {
      throw Error(ErrorCode::invalid_argument, fmt::format("line {}: {}", number, what), {.file = file},
                  R"(each line is [1, 2, 3] or {"ids": [1, 2, 3]})");
    };
    Json json;
    try {
      json = parse_json(line, file);
    } catch (const Error& error) {
      refuse(error.message());
    }
    ForwardInput& input = inputs.emplace_back();
    const auto read = [&](const Json& list, std::vector<std::uint32_t>& out) {
      if (list.array() == nullptr) refuse("there is no list of ids");
      for (const Json& id : *list.array()) {
        const auto value = id.unsigned_integer();
        if (!value || *value >= (std::uint64_t{1} << 32)) refuse("an id is no whole number from 0 to 4294967295");
        out.push_back(static_cast<std::uint32_t>(*value));
      }
    };
    const Json* ids = json.is_object() ? json.find("ids") : &json;
    if (ids == nullptr) refuse("there is no list of ids");
    read(*ids, input.ids);
    for (const char* key : {"type_ids", "types"})
      if (const Json* types = json.find(key); types != nullptr && !types->is_null() && input.types.empty()) read(*types, input.types);
  }
  if (inputs.empty())
    throw Error(ErrorCode::invalid_argument, "the file holds no line of ids", {.file = file}, R"(each line is [1, 2, 3] or {"ids": [1, 2, 3]})");
  return inputs;
}

}  // namespace weft::app
