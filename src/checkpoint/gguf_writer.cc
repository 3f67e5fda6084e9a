#include "checkpoint/gguf_writer.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <unordered_set>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/gguf.h"
#include "weft/error.h"

namespace weft {
namespace {

void append(std::string& out, std::uint64_t value, std::uint64_t size_bytes) {
  for (std::uint64_t i = 0; i < size_bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}
void append(std::string& out, std::string_view text) {
  append(out, text.size(), 8);
  out += text;
}

void append(std::string& out, const std::string& key, const GgufValue& value) {
  append(out, std::string_view(key));
  append(out, static_cast<std::uint32_t>(value.type), 4);
  if (const std::string* text = value.string()) return append(out, std::string_view(*text));
  if (const GgufArray* list = value.array()) {
    if (!list->bytes) throw Error(ErrorCode::internal, "a list of the metadata was not read", {.key = key});
    append(out, static_cast<std::uint32_t>(list->element_type), 4);
    append(out, list->num_elements, 8);
    out += *list->bytes;
    return;
  }
  std::uint64_t bits = 0;
  if (const auto* u = std::get_if<std::uint64_t>(&value.value)) bits = *u;
  if (const auto* i = std::get_if<std::int64_t>(&value.value)) bits = static_cast<std::uint64_t>(*i);
  if (const auto* b = std::get_if<bool>(&value.value)) bits = *b ? 1 : 0;
  if (const auto* d = std::get_if<double>(&value.value))
    bits = value.type == GgufType::f32 ? std::bit_cast<std::uint32_t>(static_cast<float>(*d)) : std::bit_cast<std::uint64_t>(*d);
  append(out, bits, size_of(value.type));
}

std::uint64_t aligned(std::uint64_t size, std::uint64_t alignment) {
  return checked_add(size, alignment - 1, "the size of a file") / alignment * alignment;
}

std::uint64_t size_of(const GgufTensorSpec& spec) {
  const auto fail = [&spec](std::string message, std::string advice = {}) {
    throw Error(ErrorCode::invalid_argument, std::move(message), {.tensor = spec.name}, std::move(advice));
  };
  const auto named = [&spec] { return fmt::format("tensor '{}' {}", printable(spec.name), to_string(spec.shape)); };
  if (spec.name.empty() || spec.name.size() > 63)
    fail(fmt::format("the name '{}' has {} bytes; GGUF allows 1 to 63", printable(spec.name), spec.name.size()), "rename it");
  if (!is_valid_utf8(spec.name)) fail(fmt::format("the tensor name '{}' is not UTF-8", printable(spec.name)));
  if (spec.shape.size() > 4) fail(named() + " has more than the 4 dimensions that GGUF allows");
  std::uint64_t elements = 1;
  for (const std::int64_t dim : spec.shape) elements = checked_mul(elements, static_cast<std::uint64_t>(dim), named());
  if (spec.codec == nullptr) return checked_mul(elements, static_cast<std::uint64_t>(info(spec.dtype).bits) / 8, named());
  if (spec.shape.empty() || static_cast<std::uint64_t>(spec.shape.back()) % spec.codec->block_elements != 0)
    fail(fmt::format("the rows of {} are no whole number of {} blocks of {}", named(), spec.codec->name, spec.codec->block_elements));
  return checked_mul(elements / spec.codec->block_elements, spec.codec->block_bytes, named());
}

std::string header_of(const GgufMetadata& metadata, const std::vector<GgufTensorSpec>& specs, std::size_t begin, std::size_t end,
                      const std::vector<std::uint64_t>& sizes, std::uint64_t alignment) {
  std::string header = "GGUF";
  append(header, 3, 4);
  append(header, end - begin, 8);
  append(header, metadata.entries().size(), 8);
  for (const auto& [key, value] : metadata.entries()) append(header, key, value);
  std::uint64_t offset = 0;
  for (std::size_t i = begin; i < end; ++i) {
    const GgufTensorSpec& spec = specs[i];
    append(header, std::string_view(spec.name));
    // A number alone has one dimension, as in files of llama.cpp.
    append(header, spec.shape.empty() ? 1 : spec.shape.size(), 4);
    if (spec.shape.empty()) append(header, 1, 8);
    for (std::size_t d = spec.shape.size(); d-- > 0;) append(header, static_cast<std::uint64_t>(spec.shape[d]), 8);
    append(header, spec.type, 4);
    append(header, offset, 8);
    offset = aligned(checked_add(offset, sizes[i], "the size of a file"), alignment);
  }
  header.resize(static_cast<std::size_t>(aligned(header.size(), alignment)), '\0');
  return header;
}

}  // namespace

OutputLayout plan_gguf(const std::vector<GgufTensorSpec>& specs, const GgufMetadata& metadata, std::uint64_t max_file_bytes, std::string_view stem,
                       const std::vector<std::size_t>& parts) {
  std::uint64_t alignment = 32;
  if (const GgufValue* given = metadata.find("general.alignment")) {
    const auto value = given->unsigned_integer();
    if (given->type != GgufType::u32 || !value || !std::has_single_bit(*value) || *value > kMaxGgufAlignment)
      throw Error(ErrorCode::invalid_argument, fmt::format("'general.alignment' is {}; it must be a power of two of type uint32", describe(*given)),
                  {.key = "general.alignment"});
    alignment = *value;
  }
  std::unordered_set<std::string_view> names;
  std::vector<std::uint64_t> sizes;
  for (const GgufTensorSpec& spec : specs) {
    sizes.push_back(size_of(spec));
    if (!names.insert(spec.name).second)
      throw Error(ErrorCode::invalid_argument, fmt::format("two tensors of the output are called '{}'", printable(spec.name)), {.tensor = spec.name});
  }
  // Where each part begins. A tensor over the limit gets a part of its own.
  std::vector<std::size_t> begins = {0};
  std::uint64_t filled = 0;
  if (!parts.empty()) begins = parts;
  for (std::size_t i = 0; i < specs.size() && parts.empty(); ++i) {
    if (max_file_bytes != 0 && filled != 0 && sizes[i] > max_file_bytes - std::min(filled, max_file_bytes)) {
      begins.push_back(i);
      filled = 0;
    }
    filled = aligned(checked_add(filled, sizes[i], "the size of a file"), alignment);
  }
  const auto count = static_cast<std::uint32_t>(begins.size());
  if (count > 65535)
    throw Error(ErrorCode::invalid_argument, fmt::format("the file would be cut into {} parts, the limit is 65535", count), {.key = "max_shard_size"},
                "choose larger parts");

  OutputLayout layout;
  layout.tensors.resize(specs.size());
  for (std::uint32_t part = 0; part < count; ++part) {
    const std::size_t begin = begins[part], end = part + 1 < count ? begins[part + 1] : specs.size();
    GgufMetadata part_metadata;
    if (part == 0) part_metadata = metadata;
    if (part != 0 && alignment != 32) part_metadata.append("general.alignment", GgufValue::u32(alignment));
    if (count > 1) {
      part_metadata.set("split.no", {GgufType::u16, std::uint64_t{part}});
      part_metadata.set("split.count", {GgufType::u16, std::uint64_t{count}});
      part_metadata.set("split.tensors.count", {GgufType::i32, static_cast<std::int64_t>(specs.size())});
    }
    OutputLayout::FilePlan file;
    file.name = count == 1 ? fmt::format("{}.gguf", stem) : gguf_part_name(stem, part + 1, count);
    file.header = header_of(part_metadata, specs, begin, end, sizes, alignment);
    std::uint64_t offset = file.header.size();
    for (std::size_t i = begin; i < end; ++i) {
      layout.tensors[i] = {specs[i].name, part, offset, sizes[i]};
      layout.tensor_bytes = checked_add(layout.tensor_bytes, sizes[i], "the size of the output");
      offset = aligned(checked_add(offset, sizes[i], "the size of a file"), alignment);
    }
    file.size_bytes = offset;
    layout.files.push_back(std::move(file));
  }
  return layout;
}

}  // namespace weft
