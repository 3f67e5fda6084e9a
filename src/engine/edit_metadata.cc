#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "base/text.h"
#include "checkpoint/gguf.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "engine/gguf_output.h"
#include "engine/output_job.h"
#include "weft/edit.h"
#include "weft/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(std::string message, const std::string& key, std::string advice = {}) {
  throw Error(ErrorCode::invalid_argument, std::move(message), {.key = key}, std::move(advice));
}

constexpr std::pair<std::string_view, GgufType> kTypes[] = {{"u8", GgufType::u8},   {"i8", GgufType::i8},        {"u16", GgufType::u16},
                                                            {"i16", GgufType::i16}, {"u32", GgufType::u32},      {"i32", GgufType::i32},
                                                            {"u64", GgufType::u64}, {"i64", GgufType::i64},      {"f32", GgufType::f32},
                                                            {"f64", GgufType::f64}, {"bool", GgufType::boolean}, {"string", GgufType::string}};

template <typename T>
std::optional<T> parsed(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

GgufValue value_of(GgufType type, const std::string& text, const std::string& key) {
  const auto wrong = [&]() { refuse(fmt::format("'{}' is no value of type {}", printable(text), to_string(type)), key); };
  switch (type) {
    case GgufType::string:
      if (!is_valid_utf8(text)) wrong();
      return GgufValue::text(text);
    case GgufType::boolean:
      if (text != "true" && text != "false") wrong();
      return GgufValue::boolean(text == "true");
    case GgufType::f32:
    case GgufType::f64: {
      const auto number = parsed<double>(text);
      if (!number || !std::isfinite(*number)) wrong();
      return type == GgufType::f32 ? GgufValue::f32(*number) : GgufValue{type, *number};
    }
    case GgufType::u8:
    case GgufType::u16:
    case GgufType::u32:
    case GgufType::u64: {
      const auto number = parsed<std::uint64_t>(text);
      if (!number || (size_of(type) < 8 && *number >> (8 * size_of(type)) != 0)) wrong();
      return {type, *number};
    }
    case GgufType::i8:
    case GgufType::i16:
    case GgufType::i32:
    case GgufType::i64: {
      const auto number = parsed<std::int64_t>(text);
      const std::int64_t highest = size_of(type) < 8 ? (std::int64_t{1} << (8 * size_of(type) - 1)) - 1 : INT64_MAX;
      if (!number || *number > highest || *number < -highest - 1) wrong();
      return {type, *number};
    }
    case GgufType::array:
      refuse(fmt::format("'{}' is a list, which cannot be written on a command line", printable(key)), key);
  }
  return {};
}

/// What a new key most likely means, in the types that llama.cpp uses.
GgufType guessed_type(const std::string& text) {
  if (text == "true" || text == "false") return GgufType::boolean;
  if (const auto number = parsed<std::uint64_t>(text)) return *number <= 0xFFFFFFFF ? GgufType::u32 : GgufType::u64;
  if (parsed<std::int64_t>(text)) return GgufType::i32;
  if (const auto number = parsed<double>(text); number && std::isfinite(*number)) return GgufType::f32;
  return GgufType::string;
}

void edit(GgufMetadata& metadata, const MetadataEdit& change) {
  for (const std::string& key : change.remove) {
    if (key == "general.architecture") refuse("without 'general.architecture' nothing loads the file", key, "set it instead");
    if (!metadata.erase(key)) refuse(fmt::format("there is no key '{}' to remove", printable(key)), key, "'weft info' lists the keys");
  }
  for (const auto& [written, text] : change.set) {
    // KEY:TYPE, where the type matters.
    std::string key = written;
    std::optional<GgufType> type;
    if (const std::size_t colon = written.rfind(':'); colon != std::string::npos)
      for (const auto& [name, known] : kTypes)
        if (written.substr(colon + 1) == name) {
          type = known;
          key = written.substr(0, colon);
        }
    if (key.empty() || key.size() > 65535 || !is_valid_utf8(key)) refuse(fmt::format("'{}' is no key", printable(key)), key);
    const GgufValue* old = metadata.find(key);
    if (!type && old != nullptr) type = old->type;
    metadata.set(key, value_of(type.value_or(guessed_type(text)), text, key));
  }
}

}  // namespace

JobReport edit_metadata(std::string_view model, const fs::path& output, const MetadataEdit& change, const JobOptions& options) {
  if (change.set.empty() && change.remove.empty()) refuse("nothing is to be changed", "", "--set KEY=VALUE sets a key, --remove KEY removes one");
  const ModelPath source = resolve_model(model);
  const std::shared_ptr<const Checkpoint> checkpoint = open_checkpoint(source.path.string());
  engine::OutputJob job;
  if (as_gguf(*checkpoint) != nullptr) {
    if (output.extension() != ".gguf")
      refuse(fmt::format("'{}' does not end in .gguf", output.string()), "OUT", "the metadata of a GGUF file are written into a GGUF file");
    job = engine::gguf_copy_job(std::string(model), checkpoint, {});
    edit(job.gguf->metadata, change);
  } else {
    if (checkpoint->container() != "safetensors")
      throw Error(ErrorCode::unsupported, fmt::format("a file of the kind '{}' has no metadata that weft can edit", checkpoint->container()),
                  {.file = source.path.string()}, "GGUF and safetensors files have");
    if (output.extension() != ".safetensors")
      refuse(fmt::format("'{}' does not end in .safetensors", output.string()), "OUT",
             "the metadata of safetensors are written into a safetensors file");
    job.header_metadata = checkpoint->metadata();
    for (const std::string& key : change.remove)
      if (job.header_metadata.erase(key) == 0)
        refuse(fmt::format("there is no key '{}' to remove", printable(key)), key, "'weft info' lists the keys");
    for (const auto& [key, text] : change.set) {
      if (key.empty() || !is_valid_utf8(key) || !is_valid_utf8(text)) refuse(fmt::format("'{}' is no key with a text", printable(key)), key);
      job.header_metadata[key] = text;
    }
    for (const TensorInfo& info : checkpoint->tensors()) {
      engine::StreamTensor tensor;
      tensor.name = info.name;
      tensor.shape = info.shape;
      tensor.dtype = info.dtype;
      tensor.inputs = {{checkpoint, &info}};
      tensor.input_names = {std::string(model)};
      tensor.checks_finite = false;
      job.tensors.push_back(std::move(tensor));
      PlannedTensor described;
      described.name = info.name;
      described.dtype = info.dtype;
      described.shape = info.shape;
      described.inputs = {fmt::format("{}:{}", model, info.name)};
      described.method = "copy";
      job.described.push_back(std::move(described));
    }
  }
  job.single_file = true;
  job.inputs = {checkpoint};
  job.input_paths = {source.path};
  job.warnings.insert(job.warnings.begin(), checkpoint->warnings().begin(), checkpoint->warnings().end());
  std::string changes;
  for (const std::string& key : change.remove) changes += fmt::format("--remove {}\n", json_quote(key));
  for (const auto& [key, text] : change.set) changes += fmt::format("--set {}={}\n", json_quote(key), json_quote(text));
  job.ingredients = {{"the changes", std::move(changes)}};
  engine::JobBatch batch(options, "editing");
  batch.add(std::move(job), output);
  return std::move(batch.run().front());
}

}  // namespace weft
