#include "checkpoint/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/model_folder.h"
#include "checkpoint/safetensors.h"
#include "weft/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSplitAdvice = "the parts of a split model belong into one folder under their own names; fetch them again";

/// Reverses each number of so many bytes.
void swap_numbers(std::span<std::byte> bytes, std::size_t size) {
  for (std::size_t i = 0; size > 1 && i + size <= bytes.size(); i += size)
    std::reverse(bytes.begin() + static_cast<std::ptrdiff_t>(i), bytes.begin() + static_cast<std::ptrdiff_t>(i + size));
}

constexpr bool is_foreign(bool big_endian) { return big_endian == (std::endian::native == std::endian::little); }

/// Scratch of a reading thread; as large as the largest piece decoded at once.
struct Scratch {
  std::vector<std::byte> blocks;
  std::vector<float> values;
};
Scratch& scratch() {
  thread_local Scratch s;
  return s;
}

template <class T>
std::span<T> at_least(std::vector<T>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return std::span(buffer).first(size);
}

}  // namespace

std::optional<GgufPartName> parse_gguf_part_name(std::string_view name) {
  constexpr std::string_view kEnding = "-00001-of-00002.gguf";
  if (name.size() <= kEnding.size()) return std::nullopt;
  const std::string_view end = name.substr(name.size() - kEnding.size());
  GgufPartName part{.stem = std::string(name.substr(0, name.size() - kEnding.size()))};
  for (std::size_t i = 0; i < end.size(); ++i) {
    const bool wants_digit = kEnding[i] >= '0' && kEnding[i] <= '9';
    if (wants_digit != (end[i] >= '0' && end[i] <= '9') || (!wants_digit && end[i] != kEnding[i])) return std::nullopt;
    if (!wants_digit) continue;
    std::uint32_t& number = i < 7 ? part.number : part.count;
    number = number * 10 + static_cast<std::uint32_t>(end[i] - '0');
  }
  return part;
}

std::string gguf_part_name(std::string_view stem, std::uint32_t number, std::uint32_t count) {
  return fmt::format("{}-{:05d}-of-{:05d}.gguf", stem, number, count);
}

GgufCheckpoint::GgufCheckpoint(const fs::path& file, fs::path named, std::vector<std::string> warnings) {
  container_ = "gguf";
  path_ = std::move(named);
  warnings_ = std::move(warnings);
  File first(file, FileMode::read);
  GgufHeader header = read_gguf_header(first, GgufLists::leave_long);
  const std::uint64_t count = header.metadata.unsigned_integer("split.count").value_or(1);
  if (count <= 1) {
    version_ = header.version;
    metadata_values_ = header.metadata;
    add_part(file, std::move(first), std::move(header));
  } else {
    const auto fail = [](ErrorCode code, std::string message, const fs::path& where, const char* key) {
      throw Error(code, std::move(message), {.file = where.string(), .key = key}, kSplitAdvice);
    };
    const std::uint64_t own = header.metadata.unsigned_integer("split.no").value_or(0);
    if (count > kMaxShards) fail(ErrorCode::unsupported, fmt::format("the file claims to be one of {} parts", count), file, "split.count");
    if (own >= count) fail(ErrorCode::corrupt, fmt::format("the file claims to be part {} of {}, counted from 0", own, count), file, "split.no");
    const std::optional<GgufPartName> name = parse_gguf_part_name(file.filename().string());
    if (!name || name->number != own + 1 || name->count != count)
      fail(ErrorCode::corrupt, fmt::format("the file is part {} of {} but is called '{}'", own + 1, count, printable(file.filename().string())), file,
           "split.no");
    std::uint64_t num_tensors = 0;
    const std::uint64_t expected = header.metadata.unsigned_integer("split.tensors.count").value_or(~std::uint64_t{0});
    for (std::uint32_t number = 1; number <= count; ++number) {
      const fs::path path = file.parent_path() / gguf_part_name(name->stem, number, static_cast<std::uint32_t>(count));
      if (number != own + 1 && path_kind(path) != PathKind::file)
        fail(ErrorCode::not_found, fmt::format("part {} of {} is missing", number, count), path, "split.count");
      if (number != own + 1 && !stays_inside(file.parent_path().empty() ? fs::path(".") : file.parent_path(), path))
        fail(ErrorCode::corrupt, "a part is a link that leaves the model's folder", path, "split.count");
      File part = number == own + 1 ? std::move(first) : File(path, FileMode::read);
      GgufHeader part_header = number == own + 1 ? std::move(header) : read_gguf_header(part, GgufLists::leave_long);
      if (part_header.metadata.unsigned_integer("split.count").value_or(1) != count ||
          part_header.metadata.unsigned_integer("split.no").value_or(0) != number - 1)
        fail(ErrorCode::corrupt, fmt::format("the file should be part {} of {} by its name, but its header says otherwise", number, count), path,
             "split.no");
      num_tensors += part_header.tensors.size();
      if (num_tensors > kMaxTensors)
        fail(ErrorCode::unsupported, fmt::format("the parts list more than {} tensors", kMaxTensors), path, "split.tensors.count");
      if (number == 1) {
        version_ = part_header.version;
        metadata_values_ = part_header.metadata;
      }
      add_part(path, std::move(part), std::move(part_header));
    }
    if (expected != ~std::uint64_t{0} && expected != num_tensors)
      fail(ErrorCode::corrupt, fmt::format("the parts should hold {} tensors together but hold {}", expected, num_tensors), file,
           "split.tensors.count");
    for (const char* key : {"split.no", "split.count", "split.tensors.count"}) metadata_values_.erase(key);
  }
  for (const auto& [key, value] : metadata_values_.entries()) metadata_[key] = describe(value);
  index_tensors();
}

void GgufCheckpoint::add_part(const fs::path& path, File file, GgufHeader header) {
  const auto file_index = static_cast<std::uint32_t>(files_.size());
  const FileIdentity identity = file.identity();
  files_.push_back({path, identity.size_bytes});
  parts_.push_back({std::move(file), identity, header.big_endian});
  for (std::string& warning : header.warnings) warnings_.push_back(fmt::format("{}: {}", path.filename().string(), warning));
  for (GgufTensor& tensor : header.tensors) {
    TensorInfo info;
    info.name = std::move(tensor.name);
    info.dtype = tensor.dtype;
    info.shape = std::move(tensor.shape);
    info.num_elements = tensor.num_elements;
    info.size_bytes = tensor.num_elements * static_cast<std::uint64_t>(weft::info(tensor.dtype).bits) / 8;
    info.file_index = file_index;
    info.offset_bytes = tensor.offset_bytes;
    if (tensor.codec != nullptr) info.stored_as = tensor.codec->name;
    info.stored_bytes = tensor.stored_bytes;
    tensors_.push_back(std::move(info));
  }
}

void GgufCheckpoint::read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  WEFT_ASSERT(tensor.file_index < parts_.size());
  WEFT_ASSERT(offset <= tensor.size_bytes && out.size() <= tensor.size_bytes - offset);
  if (out.empty()) return;
  const Part& part = parts_[tensor.file_index];
  if (tensor.stored_as.empty()) {
    const auto size = static_cast<std::uint64_t>(info(tensor.dtype).bits) / 8;
    if (!is_foreign(part.big_endian) || size == 1) return part.file.read(tensor.offset_bytes + offset, out);
    const std::uint64_t first = offset / size * size;
    const std::uint64_t end = (offset + out.size() + size - 1) / size * size;
    const std::span<std::byte> whole = at_least(scratch().blocks, static_cast<std::size_t>(end - first));
    part.file.read(tensor.offset_bytes + first, whole);
    swap_numbers(whole, static_cast<std::size_t>(size));
    std::memcpy(out.data(), whole.data() + (offset - first), out.size());
    return;
  }
  const codec::BlockCodec& codec = *codec::find_block_codec(tensor.stored_as);
  const std::uint64_t block_values_bytes = std::uint64_t{codec.block_elements} * sizeof(float);
  // A piece at a time, so that neither the blocks nor the values leave the cache between the two steps.
  constexpr std::uint64_t kPieceBytes = 128 * 1024;
  const std::uint64_t piece_blocks = std::max<std::uint64_t>(1, kPieceBytes / block_values_bytes);
  for (std::uint64_t at = offset, done = 0; done < out.size();) {
    const std::uint64_t first_block = at / block_values_bytes;
    const std::uint64_t last_block = std::min((offset + out.size() - 1) / block_values_bytes, first_block + piece_blocks - 1);
    const auto num_blocks = static_cast<std::size_t>(last_block - first_block + 1);
    const std::span<std::byte> blocks = at_least(scratch().blocks, num_blocks * codec.block_bytes);
    read_stored(tensor, first_block * codec.block_bytes, blocks);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(blocks.data());
    const std::uint64_t skipped = at - first_block * block_values_bytes;
    const std::uint64_t size = std::min<std::uint64_t>(out.size() - done, num_blocks * block_values_bytes - skipped);
    std::byte* to = out.data() + done;
    if (skipped == 0 && size == num_blocks * block_values_bytes && reinterpret_cast<std::uintptr_t>(to) % alignof(float) == 0) {
      codec.decode(bytes, num_blocks, reinterpret_cast<float*>(to));
    } else {
      const std::span<float> values = at_least(scratch().values, num_blocks * codec.block_elements);
      codec.decode(bytes, num_blocks, values.data());
      std::memcpy(to, reinterpret_cast<const std::byte*>(values.data()) + skipped, static_cast<std::size_t>(size));
    }
    at += size;
    done += size;
  }
}

void GgufCheckpoint::read_stored(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const {
  if (tensor.stored_as.empty()) return read_bytes(tensor, offset, out);
  WEFT_ASSERT(tensor.file_index < parts_.size());
  WEFT_ASSERT(offset <= tensor.stored_bytes && out.size() <= tensor.stored_bytes - offset);
  const Part& part = parts_[tensor.file_index];
  if (!is_foreign(part.big_endian)) return part.file.read(tensor.offset_bytes + offset, out);
  const codec::BlockCodec& codec = *codec::find_block_codec(tensor.stored_as);
  const std::uint64_t first = offset / codec.block_bytes * codec.block_bytes;
  const std::uint64_t end = (offset + out.size() + codec.block_bytes - 1) / codec.block_bytes * codec.block_bytes;
  std::vector<std::byte> whole(static_cast<std::size_t>(end - first));
  part.file.read(tensor.offset_bytes + first, whole);
  codec::swap_block_bytes(codec, whole);
  std::memcpy(out.data(), whole.data() + (offset - first), out.size());
}

void GgufCheckpoint::will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept {
  if (tensor.file_index >= parts_.size()) return;
  if (tensor.stored_as.empty()) return parts_[tensor.file_index].file.will_read(tensor.offset_bytes + offset, size_bytes);
  const codec::BlockCodec* codec = codec::find_block_codec(tensor.stored_as);
  if (codec == nullptr) return;
  const std::uint64_t block_values_bytes = std::uint64_t{codec->block_elements} * sizeof(float);
  const std::uint64_t first = offset / block_values_bytes * codec->block_bytes;
  parts_[tensor.file_index].file.will_read(tensor.offset_bytes + first, (size_bytes / block_values_bytes + 1) * codec->block_bytes);
}

void GgufCheckpoint::check_unchanged() const {
  for (const Part& part : parts_) {
    const FileIdentity now = part.file.identity();
    if (now == part.identity) continue;
    throw Error(ErrorCode::corrupt,
                fmt::format("the file was changed while it was being read: it had {} bytes when it was opened and has {} now{}",
                            part.identity.size_bytes, now.size_bytes, now.size_bytes == part.identity.size_bytes ? ", but was written to" : ""),
                {.file = part.file.path().string()}, "run the command again when nothing writes to the model any more");
  }
}

std::optional<GgufValue> GgufCheckpoint::value(std::string_view key) const {
  const GgufValue* found = metadata_values_.find(key);
  if (found == nullptr) return std::nullopt;
  return read_gguf_list(parts_.front().file, *found, parts_.front().big_endian);
}

GgufMetadata GgufCheckpoint::whole_metadata() const {
  GgufMetadata whole;
  for (const auto& [key, value] : metadata_values_.entries())
    whole.append(key, read_gguf_list(parts_.front().file, value, parts_.front().big_endian));
  return whole;
}

const GgufCheckpoint* as_gguf(const Checkpoint& checkpoint) noexcept { return dynamic_cast<const GgufCheckpoint*>(&checkpoint); }

}  // namespace weft
