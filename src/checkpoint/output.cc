#include "checkpoint/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/json.h"
#include "weft/error.h"

namespace weft {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's cap on the length in the first eight bytes
constexpr std::string_view kMetadata = "__metadata__";

std::string named(const TensorSpec& spec) {
  return fmt::format("tensor '{}' ({} {})", printable(spec.name), to_string(spec.dtype), to_string(spec.shape));
}

std::uint64_t stored_bytes(const TensorSpec& spec) {
  std::uint64_t elements = 1;
  for (const std::int64_t dim : spec.shape) {
    if (dim < 0) throw Error(ErrorCode::invalid_argument, named(spec) + " has a negative dimension", {.tensor = spec.name});
    elements = checked_mul(elements, static_cast<std::uint64_t>(dim), named(spec));
  }
  const std::uint64_t bits = checked_mul(elements, static_cast<std::uint64_t>(info(spec.dtype).bits), named(spec));
  if (bits % 8 != 0)
    throw Error(ErrorCode::invalid_argument, fmt::format("{} ends inside a byte: {} bits", named(spec), bits), {.tensor = spec.name},
                "its number of elements must fill whole bytes");
  return bits / 8;
}

void check_name(std::string_view what, std::string_view name) {
  if (!is_valid_utf8(name))
    throw Error(ErrorCode::invalid_argument, fmt::format("{} '{}' is not UTF-8", what, printable(name)), {}, "safetensors files hold UTF-8 only");
}

/// Which tensors share a file: filled in the order of the specs, as Hugging Face's splitter does. A tensor over the limit goes alone, and the
/// file that was being filled goes on after it.
std::vector<std::vector<std::size_t>> shards_of(const std::vector<std::uint64_t>& sizes, std::uint64_t max_shard_bytes) {
  std::vector<std::vector<std::size_t>> shards;
  std::vector<std::size_t> current;
  std::uint64_t current_bytes = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (max_shard_bytes != 0 && sizes[i] > max_shard_bytes) {
      shards.push_back({i});
      continue;
    }
    // current_bytes is at most the limit here, so the subtraction cannot wrap.
    if (max_shard_bytes != 0 && sizes[i] > max_shard_bytes - current_bytes) {
      shards.push_back(std::exchange(current, {}));
      current_bytes = 0;
    }
    current.push_back(i);
    current_bytes = checked_add(current_bytes, sizes[i], "the size of a file");
  }
  if (!current.empty() || shards.empty()) shards.push_back(std::move(current));
  return shards;
}

std::string header_of(const std::vector<TensorSpec>& specs, const std::vector<std::size_t>& order, const std::vector<std::uint64_t>& sizes,
                      const std::map<std::string, std::string>& metadata) {
  std::string header(8, '\0');
  header += "{\"__metadata__\":{";
  bool first = true;
  for (const auto& [key, value] : metadata) {
    header += (std::exchange(first, false) ? "" : ",") + json_quote(key) + ":" + json_quote(value);
  }
  header += "}";
  std::uint64_t begin = 0;
  for (const std::size_t i : order) {
    header += "," + json_quote(specs[i].name) + ":{\"dtype\":\"";
    header += to_string(specs[i].dtype);
    header += fmt::format("\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", fmt::join(specs[i].shape, ","), begin, begin + sizes[i]);
    begin += sizes[i];
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  const std::uint64_t length = header.size() - 8;
  if (length > kMaxHeaderBytes)
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("the header of {} tensors would have {} bytes, more than the format's limit of {}", order.size(), length, kMaxHeaderBytes), {},
        "write more and smaller files with --max-shard-size, or less metadata");
  for (std::size_t i = 0; i < 8; ++i) header[i] = static_cast<char>(length >> (8 * i) & 0xFF);
  return header;
}

std::string index_of(const OutputLayout& layout, const std::map<std::string, std::string>& index_metadata) {
  const auto quote = [](const std::string& text) { return write_json(Json(text), 0, true); };
  // By hand rather than through a tree of values: a million names need no second copy.
  std::string json = "{\n  \"metadata\": {\n";
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : index_metadata) metadata[key] = quote(value);
  metadata["total_size"] = std::to_string(layout.tensor_bytes);
  bool first = true;
  for (const auto& [key, value] : metadata) json += (std::exchange(first, false) ? "    " : ",\n    ") + quote(key) + ": " + value;
  json += "\n  },\n  \"weight_map\": {\n";
  // Bytes of UTF-8 sort as code points do, so this is the order of Python's sort_keys.
  std::vector<const OutputLayout::Tensor*> sorted;
  for (const OutputLayout::Tensor& tensor : layout.tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  first = true;
  for (const auto* tensor : sorted)
    json += (std::exchange(first, false) ? "    " : ",\n    ") + quote(tensor->name) + ": " + quote(layout.files[tensor->file_index].name);
  return json + "\n  }\n}\n";
}

}  // namespace

OutputLayout plan_safetensors(const std::vector<TensorSpec>& specs, std::uint64_t max_shard_bytes, const std::map<std::string, std::string>& metadata,
                              std::string_view stem, const std::map<std::string, std::string>& index_metadata) {
  std::unordered_set<std::string_view> names;
  std::vector<std::uint64_t> sizes;
  for (const TensorSpec& spec : specs) {
    check_name("the tensor name", spec.name);
    if (spec.name == kMetadata)
      throw Error(ErrorCode::invalid_argument, "a tensor cannot be called '__metadata__': the format uses that name itself", {.tensor = spec.name},
                  "rename it");
    if (!names.insert(spec.name).second)
      throw Error(ErrorCode::invalid_argument, fmt::format("two tensors of the output are called '{}'", printable(spec.name)), {.tensor = spec.name});
    sizes.push_back(stored_bytes(spec));
  }
  std::map<std::string, std::string> all_metadata = metadata;
  all_metadata["format"] = "pt";  // loaders look for it, and some fail without
  for (const auto& [key, value] : all_metadata) {
    check_name("the metadata key", key);
    check_name("the metadata value", value);
  }

  OutputLayout layout;
  layout.tensors.resize(specs.size());
  const std::vector<std::vector<std::size_t>> shards = shards_of(sizes, max_shard_bytes);
  for (std::size_t f = 0; f < shards.size(); ++f) {
    std::vector<std::size_t> order = shards[f];
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      if (specs[a].dtype != specs[b].dtype) return specs[a].dtype > specs[b].dtype;
      return specs[a].name < specs[b].name;
    });
    OutputLayout::FilePlan file;
    file.name = shards.size() == 1 ? fmt::format("{}.safetensors", stem) : fmt::format("{}-{:05d}-of-{:05d}.safetensors", stem, f + 1, shards.size());
    file.header = header_of(specs, order, sizes, all_metadata);
    std::uint64_t offset = file.header.size();
    for (const std::size_t i : order) {
      layout.tensors[i] = {specs[i].name, static_cast<std::uint32_t>(f), offset, sizes[i]};
      offset = checked_add(offset, sizes[i], "the size of a file");
    }
    file.size_bytes = offset;
    layout.tensor_bytes = checked_add(layout.tensor_bytes, offset - file.header.size(), "the size of the output");
    layout.files.push_back(std::move(file));
  }
  if (layout.files.size() > 1) {
    layout.index_name = fmt::format("{}.safetensors.index.json", stem);
    layout.index_json = index_of(layout, index_metadata);
  }
  return layout;
}

// ---- Output ----

Output::Output(std::filesystem::path destination, Staging::What what, Existing existing) : staging_(std::move(destination), what, existing) {}
Output::~Output() = default;

void Output::create_files(OutputLayout layout) {
  WEFT_ASSERT(files_.empty());
  layout_ = std::move(layout);
  std::uint64_t total = layout_.index_json.size();
  for (const OutputLayout::FilePlan& file : layout_.files) total = checked_add(total, file.size_bytes, "the size of the output");
  staging_.require_space(total);
  try {
    for (const OutputLayout::FilePlan& file : layout_.files) {
      files_.push_back(&staging_.create(file.name));
      files_.back()->allocate(file.size_bytes);
    }
    if (!layout_.index_name.empty()) staging_.create(layout_.index_name).write(0, std::as_bytes(std::span(layout_.index_json)));
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
}

void Output::write_tensor(std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data) {
  const OutputLayout::Tensor& place = layout_.tensors.at(tensor);
  if (offset > place.size_bytes || data.size() > place.size_bytes - offset)
    throw Error(ErrorCode::internal,
                fmt::format("bytes {} + {} lie outside of tensor '{}' of {} bytes", offset, data.size(), printable(place.name), place.size_bytes),
                {.tensor = place.name});
  const File& file = *files_[place.file_index];
  try {
    file.write(place.offset_bytes + offset, data);
  } catch (const Error& e) {
    const Error whole = staging_.explained(e);
    throw Error(whole.code(), whole.message(), {.file = whole.place().file, .tensor = place.name}, whole.advice(), whole.system_error());
  }
  written_bytes_.fetch_add(data.size(), std::memory_order_relaxed);
  // Whoever finishes a window has it written back while others go on, so that the sync at the end finds little left to do.
  constexpr std::uint64_t kWindow = std::uint64_t{8} << 20;
  const std::uint64_t end = place.offset_bytes + offset + data.size();
  if (const std::uint64_t window = end / kWindow; window != (end - data.size()) / kWindow) file.start_writeback((window - 1) * kWindow, kWindow);
}

void Output::read_tensor(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const {
  const OutputLayout::Tensor& place = layout_.tensors.at(tensor);
  WEFT_ASSERT(offset + out.size() <= place.size_bytes);
  files_[place.file_index]->read(place.offset_bytes + offset, out);
}

void Output::commit() {
  if (written_bytes_ != layout_.tensor_bytes)
    throw Error(ErrorCode::internal, fmt::format("{} of {} bytes of tensors were written", written_bytes_.load(), layout_.tensor_bytes));
  try {
    for (std::size_t f = 0; f < files_.size(); ++f) files_[f]->write(0, std::as_bytes(std::span(layout_.files[f].header)));
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
  files_.clear();
  staging_.commit();
}

// ---- OutputFolder ----

OutputFolder::OutputFolder(std::filesystem::path destination, Existing existing) : Output(std::move(destination), Staging::What::folder, existing) {}

void OutputFolder::write_text(std::string_view name, std::string_view content) {
  try {
    staging_.create(name).write(0, std::as_bytes(std::span(content)));
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
}

void OutputFolder::copy_file(const std::filesystem::path& source, std::string_view name) {
  const File from(source, FileMode::read);
  try {
    const File& to = staging_.create(name);
    std::vector<std::byte> buffer(std::size_t{1} << 20);
    for (std::uint64_t offset = 0;;) {
      const std::size_t got = from.read_some(offset, buffer);
      to.write(offset, std::span(buffer).first(got));
      if (got < buffer.size()) return;
      offset += got;
    }
  } catch (const Error& e) {
    throw staging_.explained(e);
  }
}

// ---- OutputFile ----

OutputFile::OutputFile(std::filesystem::path destination, Existing existing) : Output(std::move(destination), Staging::What::file, existing) {}

}  // namespace weft
