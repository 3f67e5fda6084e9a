#include "engine/model_config.h"

#include <fmt/format.h>

#include "base/file.h"
#include "base/text.h"
#include "weft/error.h"

namespace weft {

std::optional<std::filesystem::path> folder_of_model(const std::filesystem::path& path) {
  if (path_kind(path) == PathKind::folder) return path;
  const std::string name = path.filename().string();
  const bool is_of_model = name == "model.safetensors" || (name.starts_with("model-") && name.ends_with(".safetensors")) ||
                           (name.starts_with("model.safetensors.index.") && name.ends_with(".json")) || name == "pytorch_model.bin" ||
                           name == "pytorch_model.bin.index.json";
  if (!is_of_model) return std::nullopt;
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::optional<Json> read_model_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  if (path_kind(path) == PathKind::nothing) return std::nullopt;
  Json config = read_json_file(path);
  if (!config.is_object()) throw Error(ErrorCode::corrupt, "config.json is no JSON object", {.file = path.string()}, "fetch it again");
  return config;
}

std::string architecture_class(const Json& config) {
  const Json* classes = config.find("architectures");
  const Json::Array* list = classes ? classes->array() : nullptr;
  return list && !list->empty() && list->front().string() ? *list->front().string() : "";
}

std::string describe_quantization(const Json& config) {
  const Json* quantization = config.find("quantization_config");
  if (!quantization) quantization = config.find("compression_config");
  if (!quantization || !quantization->is_object()) return "";
  const auto text = [quantization](const char* key) {
    const Json* value = quantization->find(key);
    return value && value->string() ? printable(*value->string(), 60) : std::string();
  };
  std::string described = text("quant_method");
  if (described.empty()) described = "unknown";
  if (const Json* bits = quantization->find("bits"); bits && bits->integer()) described += fmt::format(" {}-bit", *bits->integer());
  const auto is_set = [quantization](const char* key) {
    const Json* value = quantization->find(key);
    return value && value->boolean().value_or(false);
  };
  if (is_set("load_in_4bit")) described += " " + (text("bnb_4bit_quant_type").empty() ? "4-bit" : text("bnb_4bit_quant_type"));
  if (is_set("load_in_8bit")) described += " int8";
  for (const char* key : {"format", "fmt"})
    if (const std::string format = text(key); !format.empty()) described += " " + format;
  return described;
}

}  // namespace weft
