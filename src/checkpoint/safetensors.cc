#include "checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/json.h"
#include "checkpoint/model_folder.h"
#include "weft/error.h"

namespace weft {
namespace {

constexpr const char* kFetchAgain = "the file is damaged or incompletely downloaded; fetch it again, or run 'weft verify' on the folder";
constexpr const char* kHostile = "this is beyond any real model; the file is damaged or hostile";
constexpr std::uint64_t kLengthBytes = 8;

/// "tensor 'NAME' (F16 [11008, 4096])"
std::string described(const TensorInfo& tensor) {
  return fmt::format("tensor '{}' ({} {})", printable(tensor.name), to_string(tensor.dtype), to_string(tensor.shape));
}

std::optional<std::uint64_t> plain_integer(std::string_view text) {
  std::uint64_t value = 0;  // from_chars of an unsigned type takes no sign; a fraction or an exponent is left over
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

// ---- Header -------------------------------------------------------------------------------------------------------------------------------

/// Turns the events of the header's JSON into tensors. Remembers nothing of a header but its result.
class HeaderReader final : public JsonEvents {
 public:
  explicit HeaderReader(const std::filesystem::path& file) : file_(file) {}

  /// Checks what only the whole header shows, and gives the result.
  SafetensorsHeader finish(std::uint64_t data_offset_bytes, std::uint64_t file_size_bytes);

  void null() override {
    // Some writers put null where they have no metadata.
    if (state_ == State::metadata_value) {
      state_ = State::top;
    } else {
      scalar("null");
    }
  }
  void boolean(bool) override { scalar("a boolean"); }
  void number(std::string_view text) override {
    if (state_ != State::shape && state_ != State::offsets) return scalar("a number");
    const std::optional<std::uint64_t> value = plain_integer(text);
    const char* key = state_ == State::shape ? "shape" : "data_offsets";
    if (!value) fail(ErrorCode::corrupt, fmt::format("'{}' holds {}, no plain integer of 64 bits", key, printable(text)), key);
    if (state_ == State::shape) {
      if (tensor_.shape.size() == kMaxRank)
        fail(ErrorCode::unsupported, fmt::format("the shape has more than {} dimensions", kMaxRank), key, kHostile);
      if (*value > static_cast<std::uint64_t>(INT64_MAX))
        fail(ErrorCode::corrupt, fmt::format("the shape holds {}, which overflows 63 bits (ValidationOverflow)", *value), key);
      tensor_.shape.push_back(static_cast<std::int64_t>(*value));
    } else {
      if (num_offsets_ == 2) fail(ErrorCode::corrupt, "'data_offsets' holds more than 2 numbers", key);
      offsets_[num_offsets_++] = *value;
    }
  }
  void string(std::string& value) override {
    if (state_ == State::metadata) {
      metadata_.emplace(std::move(key_), std::move(value));
    } else if (state_ == State::dtype) {
      const std::optional<DType> dtype = dtype_from_name(value);
      if (!dtype)
        fail(ErrorCode::unsupported, fmt::format("the dtype '{}' is unknown", printable(value)), "dtype",
             "the file is damaged, or written by a newer version of safetensors than weft knows");
      tensor_.dtype = *dtype;
      state_ = State::entry;
    } else {
      scalar("a string");
    }
  }
  void begin_object() override {
    switch (state_) {
      case State::start:
        state_ = State::top;
        break;
      case State::metadata_value:
        state_ = State::metadata;
        break;
      case State::tensor_value:
        state_ = State::entry;
        tensor_.shape.clear();
        // Not clear(), nor `= {}`, which is the same: it would walk again all buckets that one hostile entry made it grow.
        if (!keys_seen_.empty()) keys_seen_ = std::unordered_set<std::string>();
        has_dtype_ = has_shape_ = has_offsets_ = false;
        break;
      case State::unknown:
        unknown_.emplace_back();
        break;
      default:
        scalar("an object");
    }
  }
  void key(std::string& name) override {
    switch (state_) {
      case State::top:
        if (name == "__metadata__") {
          if (has_metadata_) fail(ErrorCode::corrupt, "the key '__metadata__' stands twice in the header", "__metadata__");
          has_metadata_ = true;
          state_ = State::metadata_value;
        } else {
          if (tensors_.size() == kMaxTensors)
            fail(ErrorCode::unsupported, fmt::format("the header lists more than {} tensors", kMaxTensors), "", kHostile);
          tensor_.name = std::move(name);
          in_tensor_ = true;
          entry_byte_ = position();
          state_ = State::tensor_value;
        }
        break;
      case State::metadata:
        if (metadata_.contains(name))
          fail(ErrorCode::corrupt, fmt::format("the key '{}' stands twice in '__metadata__'", printable(name)), "__metadata__");
        key_ = std::move(name);
        break;
      case State::entry:
        entry_key(name);
        break;
      case State::unknown:
        if (!unknown_.back().insert(name).second)
          fail(ErrorCode::corrupt, fmt::format("the key '{}' stands twice in one object", printable(name)), printable(name));
        break;
      default:
        break;
    }
  }
  void end_object() override {
    switch (state_) {
      case State::top:
        state_ = State::done;
        break;
      case State::metadata:
        state_ = State::top;
        break;
      case State::entry:
        end_entry();
        break;
      case State::unknown:
        unknown_.pop_back();
        leave_unknown();
        break;
      default:
        break;
    }
  }
  void begin_array() override {
    switch (state_) {
      case State::shape_value:
        state_ = State::shape;
        break;
      case State::offsets_value:
        state_ = State::offsets;
        num_offsets_ = 0;
        break;
      case State::unknown:
        unknown_.emplace_back();
        break;
      default:
        scalar("a list");
    }
  }
  void end_array() override {
    switch (state_) {
      case State::shape:
        state_ = State::entry;
        break;
      case State::offsets:
        if (num_offsets_ != 2) fail(ErrorCode::corrupt, fmt::format("'data_offsets' holds {} numbers, not 2", num_offsets_), "data_offsets");
        state_ = State::entry;
        break;
      case State::unknown:
        unknown_.pop_back();
        leave_unknown();
        break;
      default:
        break;
    }
  }

 private:
  enum class State {
    start,
    top,             ///< inside the header's object
    metadata_value,  ///< the value of __metadata__ comes next
    metadata,        ///< inside it
    tensor_value,    ///< the value of a tensor comes next
    entry,           ///< inside it
    dtype,           ///< the value of its key comes next
    shape_value,
    offsets_value,
    shape,  ///< inside the list
    offsets,
    unknown,  ///< the value of a key that the format does not define, or inside it; passed over
    done,
  };
  struct Range {
    std::uint64_t begin, end;
    std::uint64_t byte;  ///< of the tensor's name in the header, for messages
  };

  [[noreturn]] void fail(ErrorCode code, std::string message, std::string key, const char* advice = kFetchAgain) const {
    ErrorPlace place{.file = file_.string(), .key = std::move(key), .byte = position()};
    if (in_tensor_) {
      place.tensor = printable(tensor_.name);
      message = fmt::format("tensor '{}': {}", place.tensor, message);
    }
    throw Error(code, "safetensors header: " + message, std::move(place), advice);
  }
  [[noreturn]] void fail_at(const TensorInfo& tensor, const Range& range, std::string message) const {
    throw Error(ErrorCode::corrupt, std::move(message), {.file = file_.string(), .tensor = printable(tensor.name), .byte = range.byte}, kFetchAgain);
  }

  /// A value that may stand only where the format defines nothing.
  void scalar(const char* what) {
    switch (state_) {
      case State::unknown:
        return leave_unknown();
      case State::start:
        fail(ErrorCode::corrupt, fmt::format("it is {}, not a JSON object", what), "");
      case State::metadata_value:
        fail(ErrorCode::corrupt, fmt::format("'__metadata__' is {}, not an object of strings", what), "__metadata__");
      case State::metadata:
        fail(ErrorCode::corrupt, fmt::format("'__metadata__' holds {} under '{}'; its values must be strings", what, printable(key_)),
             "__metadata__");
      case State::tensor_value:
        fail(ErrorCode::corrupt, fmt::format("its entry is {}, not an object", what), "");
      case State::dtype:
        fail(ErrorCode::corrupt, fmt::format("'dtype' is {}, not a string", what), "dtype");
      case State::shape_value:
      case State::shape:
        fail(ErrorCode::corrupt, fmt::format("'shape' is or holds {}, not a list of integers", what), "shape");
      default:
        fail(ErrorCode::corrupt, fmt::format("'data_offsets' is or holds {}, not a list of 2 integers", what), "data_offsets");
    }
  }

  /// One value that the format does not define has ended, or one inside it.
  void leave_unknown() {
    if (unknown_.empty()) state_ = State::entry;
  }

  void entry_key(const std::string& name) {
    const auto first_time = [&](bool& has) {
      if (has) fail(ErrorCode::corrupt, fmt::format("the key '{}' stands twice", name), name);
      has = true;
    };
    if (name == "dtype") {
      first_time(has_dtype_);
      state_ = State::dtype;
    } else if (name == "shape") {
      first_time(has_shape_);
      state_ = State::shape_value;
    } else if (name == "data_offsets") {
      first_time(has_offsets_);
      state_ = State::offsets_value;
    } else {
      if (!keys_seen_.insert(name).second) fail(ErrorCode::corrupt, fmt::format("the key '{}' stands twice", printable(name)), printable(name));
      state_ = State::unknown;
    }
  }

  void end_entry() {
    if (!has_dtype_ || !has_shape_ || !has_offsets_)
      fail(ErrorCode::corrupt, fmt::format("its entry has no '{}'", !has_dtype_ ? "dtype" : !has_shape_ ? "shape" : "data_offsets"), "");
    std::uint64_t num_elements = 1;
    std::uint64_t num_bits = 0;
    for (const std::int64_t dim : tensor_.shape)
      if (__builtin_mul_overflow(num_elements, static_cast<std::uint64_t>(dim), &num_elements))
        fail(ErrorCode::corrupt, fmt::format("the number of elements of shape {} overflows 64 bits (ValidationOverflow)", to_string(tensor_.shape)),
             "shape");
    if (__builtin_mul_overflow(num_elements, static_cast<std::uint64_t>(info(tensor_.dtype).bits), &num_bits))
      fail(ErrorCode::corrupt,
           fmt::format("the size of {} {} overflows 64 bits (ValidationOverflow)", to_string(tensor_.dtype), to_string(tensor_.shape)), "shape");
    if (num_bits % 8 != 0)
      fail(ErrorCode::corrupt,
           fmt::format("{} {} is {} bits, no whole number of bytes (MisalignedSlice)", to_string(tensor_.dtype), to_string(tensor_.shape), num_bits),
           "shape");
    tensor_.num_elements = num_elements;
    tensor_.size_bytes = num_bits / 8;
    tensor_.offset_bytes = offsets_[0];
    ranges_.push_back({offsets_[0], offsets_[1], entry_byte_});
    tensors_.push_back(std::move(tensor_));
    tensor_ = {};
    in_tensor_ = false;
    state_ = State::top;
  }

  const std::filesystem::path& file_;
  State state_ = State::start;
  std::vector<TensorInfo> tensors_;
  std::vector<Range> ranges_;  ///< of tensors_
  std::map<std::string, std::string> metadata_;
  bool has_metadata_ = false;
  std::string key_;  ///< in __metadata__

  // The entry being read.
  TensorInfo tensor_;
  bool in_tensor_ = false;
  std::uint64_t entry_byte_ = 0;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::array<std::uint64_t, 2> offsets_{};
  std::size_t num_offsets_ = 0;
  std::unordered_set<std::string> keys_seen_;             ///< beyond those three
  std::vector<std::unordered_set<std::string>> unknown_;  ///< keys of the open containers inside a key that the format does not define
};

SafetensorsHeader HeaderReader::finish(std::uint64_t data_offset_bytes, std::uint64_t file_size_bytes) {
  in_tensor_ = false;
  std::vector<std::uint32_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), 0u);
  const auto before = [this](std::uint32_t a, std::uint32_t b) {
    return std::pair(ranges_[a].begin, ranges_[a].end) < std::pair(ranges_[b].begin, ranges_[b].end);
  };
  if (!std::is_sorted(order.begin(), order.end(), before)) std::stable_sort(order.begin(), order.end(), before);

  // Duplicate names first: they are the cause when their ranges overlap as well.
  {
    std::unordered_map<std::string_view, std::uint32_t> seen(tensors_.size());
    for (const std::uint32_t i : order)
      if (const auto [first, is_new] = seen.emplace(tensors_[i].name, i); !is_new) {
        const std::uint32_t later = std::max(i, first->second);
        fail_at(tensors_[later], ranges_[later],
                fmt::format("tensor '{}' is listed twice in the safetensors header", printable(tensors_[later].name)));
      }
  }

  const std::uint64_t buffer_bytes = file_size_bytes - data_offset_bytes;
  std::uint64_t end = 0;
  const TensorInfo* beyond = nullptr;  // the first tensor that does not fit the file
  for (const std::uint32_t i : order) {
    TensorInfo& tensor = tensors_[i];
    const Range& range = ranges_[i];
    if (range.begin > range.end)
      fail_at(tensor, range, fmt::format("{} begins at {} and ends before that, at {} (InvalidOffset)", described(tensor), range.begin, range.end));
    if (range.begin != end)
      fail_at(tensor, range,
              fmt::format("{} begins at {} but {} {}: {} (InvalidOffset)", described(tensor), range.begin,
                          i == order.front() ? "the first tensor must begin at" : "the tensor before it ends at", end,
                          range.begin < end ? "they overlap" : "the bytes between belong to none"));
    if (range.end - range.begin != tensor.size_bytes)
      fail_at(tensor, range,
              fmt::format("{} needs {} bytes but its offsets span {} (TensorInvalidInfo)", described(tensor), tensor.size_bytes,
                          range.end - range.begin));
    end = range.end;
    if (end > buffer_bytes && !beyond) beyond = &tensor;
    tensor.offset_bytes = data_offset_bytes + range.begin;  // cannot overflow where it is used: every end lies in the file, or we throw below
  }
  if (beyond)
    throw Error(ErrorCode::corrupt,
                fmt::format("the file ends at byte {} but its tensors need {} bytes more; '{}' is the first that is cut (MetadataIncompleteBuffer)",
                            file_size_bytes, end - buffer_bytes, printable(beyond->name)),
                {.file = file_.string(), .tensor = printable(beyond->name), .byte = file_size_bytes}, kFetchAgain);
  if (end < buffer_bytes)
    throw Error(ErrorCode::corrupt, fmt::format("{} bytes behind the last tensor belong to none (MetadataIncompleteBuffer)", buffer_bytes - end),
                {.file = file_.string(), .byte = data_offset_bytes + end}, kFetchAgain);

  SafetensorsHeader header;
  header.metadata = std::move(metadata_);
  header.data_offset_bytes = data_offset_bytes;
  if (std::is_sorted(order.begin(), order.end())) {
    header.tensors = std::move(tensors_);
  } else {
    header.tensors.reserve(tensors_.size());
    for (const std::uint32_t i : order) header.tensors.push_back(std::move(tensors_[i]));
  }
  return header;
}

/// The length that the first eight bytes give, checked.
std::uint64_t header_length(std::span<const std::byte> first_bytes, std::uint64_t file_size_bytes, const std::filesystem::path& file) {
  const auto fail = [&](std::string message) -> void {
    throw Error(ErrorCode::corrupt, std::move(message), {.file = file.string(), .byte = 0},
                "this is no safetensors file, or its beginning is damaged; fetch it again");
  };
  if (file_size_bytes < kLengthBytes || first_bytes.size() < kLengthBytes)
    fail(fmt::format("the file has {} bytes, too few for a safetensors header (HeaderTooSmall)", file_size_bytes));
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(first_bytes[i]);
  if (length > kMaxSafetensorsHeaderBytes)
    fail(fmt::format("the safetensors header claims {} bytes, the limit is {} (HeaderTooLarge)", length, kMaxSafetensorsHeaderBytes));
  if (length > file_size_bytes - kLengthBytes)
    fail(fmt::format("the safetensors header claims {} bytes but the file has only {} behind its length (InvalidHeaderLength)", length,
                     file_size_bytes - kLengthBytes));
  return length;
}

// The number of values is bounded by the header's bytes; tensors and ranks have caps of their own.
constexpr JsonLimits kHeaderLimits{
    .max_bytes = kMaxSafetensorsHeaderBytes, .max_depth = 128, .max_values = kMaxSafetensorsHeaderBytes, .numbers = JsonNumbers::strict};

}  // namespace

SafetensorsHeader read_safetensors_header(const File& file) {
  std::array<std::byte, kLengthBytes> first{};
  const std::uint64_t file_size_bytes = file.size_bytes();
  const std::size_t num_read = file.read_some(0, first);
  const std::uint64_t length = header_length(std::span(first).first(num_read), file_size_bytes, file.path());
  HeaderReader reader(file.path());
  parse_json_events(file, kLengthBytes, length, kHeaderLimits, reader);
  return reader.finish(kLengthBytes + length, file_size_bytes);
}

SafetensorsHeader parse_safetensors_header(std::string_view beginning, std::uint64_t file_size_bytes, const std::filesystem::path& file) {
  const std::uint64_t length = header_length(std::as_bytes(std::span(beginning)), file_size_bytes, file);
  WEFT_ASSERT(beginning.size() >= kLengthBytes + length);
  HeaderReader reader(file);
  parse_json_events(beginning.substr(kLengthBytes, length), file, kHeaderLimits, reader, kLengthBytes);
  return reader.finish(kLengthBytes + length, file_size_bytes);
}

// ---- Shard index --------------------------------------------------------------------------------------------------------------------------

namespace {

constexpr const char* kBadIndex = "the index is damaged or was edited by hand; fetch it again";

class IndexReader final : public JsonEvents {
 public:
  explicit IndexReader(const std::filesystem::path& file) : file_(file) {}

  ShardIndex finish() {
    if (!has_map_)
      throw Error(ErrorCode::corrupt, "the file is JSON but no shard index: it has no 'weight_map'", {.file = file_.string(), .key = "weight_map"},
                  "name the folder of the model, its safetensors file, or its index");
    std::unordered_set<std::string_view> seen(index_.entries.size());
    for (const ShardIndex::Entry& entry : index_.entries)
      if (!seen.insert(entry.tensor).second) fail(fmt::format("tensor '{}' is listed twice", printable(entry.tensor)), printable(entry.tensor));
    // In the order of their names, which is the order of their numbers.
    std::vector<std::uint32_t> order(index_.shards.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [this](std::uint32_t a, std::uint32_t b) { return index_.shards[a] < index_.shards[b]; });
    std::vector<std::uint32_t> new_number(order.size());
    std::vector<std::string> sorted;
    for (const std::uint32_t old : order) {
      new_number[old] = static_cast<std::uint32_t>(sorted.size());
      sorted.push_back(index_.shards[old]);
    }
    index_.shards = std::move(sorted);
    for (ShardIndex::Entry& entry : index_.entries) entry.shard = new_number[entry.shard];
    return std::move(index_);
  }

  void null() override { other("null"); }
  void boolean(bool) override { other("a boolean"); }
  void number(std::string_view text) override {
    if (path_is("metadata") && key_ == "total_size") index_.total_size = text;
    other("a number");
  }
  void string(std::string& value) override {
    if (!path_is("weight_map")) return other("a string");
    if (!is_plain_file_name(value))
      fail(fmt::format("tensor '{}' is said to be in '{}', which is no plain file name", printable(key_), printable(value)), printable(key_));
    if (index_.entries.size() == kMaxTensors)
      throw Error(ErrorCode::unsupported, fmt::format("the index lists more than {} tensors", kMaxTensors),
                  {.file = file_.string(), .byte = position()}, kHostile);
    const auto [shard, is_new] = shard_numbers_.emplace(value, static_cast<std::uint32_t>(index_.shards.size()));
    if (is_new) {
      if (index_.shards.size() == kMaxShards)
        throw Error(ErrorCode::unsupported, fmt::format("the index names more than {} shards", kMaxShards),
                    {.file = file_.string(), .byte = position()}, kHostile);
      index_.shards.push_back(value);
    }
    index_.entries.push_back({std::move(key_), shard->second});
  }
  void begin_object() override {
    if (depth_ == 1 && top_key_ == "weight_map") {
      if (has_map_) fail("'weight_map' stands twice", "weight_map");
      has_map_ = true;
    } else {
      other("an object");
    }
    ++depth_;
  }
  void key(std::string& value) override {
    key_ = std::move(value);
    if (depth_ == 1) {
      top_key_ = key_;
      if (top_key_ == "weight_map" && has_map_) fail("the key 'weight_map' stands twice", "weight_map");
    }
  }
  void end_object() override { --depth_; }
  void begin_array() override {
    other("a list");
    ++depth_;
  }
  void end_array() override { --depth_; }

 private:
  [[nodiscard]] bool path_is(std::string_view top) const noexcept { return depth_ == 2 && top_key_ == top; }
  /// Anything may stand elsewhere, but not in the map.
  void other(const char* what) {
    if (depth_ == 0 && std::string_view(what) != "an object") fail(fmt::format("it is {}, not a JSON object", what), "");
    if (depth_ == 1 && top_key_ == "weight_map") fail(fmt::format("'weight_map' is {}, not an object", what), "weight_map");
    if (path_is("weight_map")) fail(fmt::format("'weight_map' holds {} for tensor '{}', not a file name", what, printable(key_)), printable(key_));
  }
  [[noreturn]] void fail(const std::string& message, std::string key) const {
    throw Error(ErrorCode::corrupt, "shard index: " + message, {.file = file_.string(), .key = std::move(key), .byte = position()}, kBadIndex);
  }

  const std::filesystem::path& file_;
  ShardIndex index_;
  std::unordered_map<std::string, std::uint32_t> shard_numbers_;
  int depth_ = 0;
  std::string top_key_;
  std::string key_;
  bool has_map_ = false;
};

/// A million names of two hundred bytes.
constexpr JsonLimits kIndexLimits{.max_bytes = 256'000'000, .max_depth = 128, .max_values = 8 * kMaxTensors, .numbers = JsonNumbers::strict};

}  // namespace

ShardIndex parse_shard_index(std::string_view text, const std::filesystem::path& file) {
  IndexReader reader(file);
  parse_json_events(text, file, kIndexLimits, reader);
  return reader.finish();
}

ShardIndex read_shard_index(const std::filesystem::path& path) {
  const File file(path, FileMode::read);
  IndexReader reader(path);
  parse_json_events(file, 0, file.size_bytes(), kIndexLimits, reader);
  return reader.finish();
}

std::filesystem::path shard_path(const std::filesystem::path& index, const std::string& shard) {
  const std::filesystem::path folder = index.parent_path();
  const std::filesystem::path path = folder / shard;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    const bool is_link = std::filesystem::is_symlink(path, error);
    throw Error(ErrorCode::not_found,
                fmt::format("the shard '{}' that the index names is missing{}", printable(shard), is_link ? " (its link leads nowhere)" : ""),
                {.file = path.string()}, "the download is incomplete; run 'hf download' again, or copy the missing file into the folder");
  }
  if (!stays_inside(folder, path))
    throw Error(ErrorCode::corrupt, fmt::format("the shard '{}' is a link that leaves the model's folder", printable(shard)), {.file = path.string()},
                "a model from elsewhere must not name other files of this machine; copy the shard into the folder if it belongs there");
  return path;
}

// ---- Checkpoints --------------------------------------------------------------------------------------------------------------------------

namespace {

class SafetensorsCheckpoint final : public Checkpoint {
 public:
  SafetensorsCheckpoint(std::filesystem::path named, std::vector<std::string> warnings) {
    container_ = "safetensors";
    path_ = std::move(named);
    warnings_ = std::move(warnings);
  }

  void add_file(const std::filesystem::path& path) {
    File file(path, FileMode::read);
    const FileIdentity identity = file.identity();
    SafetensorsHeader header = read_safetensors_header(file);
    const std::uint32_t file_index = static_cast<std::uint32_t>(files_.size());
    files_.push_back({path, identity.size_bytes, identity.inode, identity.modified_ns});
    open_.push_back(std::move(file));
    identities_.push_back(identity);
    for (TensorInfo& tensor : header.tensors) tensor.file_index = file_index;
    if (tensors_.empty()) {
      tensors_ = std::move(header.tensors);
    } else {
      if (tensors_.size() + header.tensors.size() > kMaxTensors)
        throw Error(ErrorCode::unsupported, fmt::format("the shards list more than {} tensors", kMaxTensors), {.file = path.string()}, kHostile);
      std::move(header.tensors.begin(), header.tensors.end(), std::back_inserter(tensors_));
    }
    metadata_.merge(header.metadata);  // the first one wins
  }

  void finish() { index_tensors(); }

  void check_index(const ShardIndex& index, const std::filesystem::path& index_path) {
    for (const ShardIndex::Entry& entry : index.entries) {
      const TensorInfo* tensor = find_tensor(entry.tensor);
      if (tensor && tensor->file_index == entry.shard) continue;
      throw Error(ErrorCode::corrupt,
                  fmt::format("the index places tensor '{}' in '{}', {}", printable(entry.tensor), printable(index.shards[entry.shard]),
                              tensor ? fmt::format("but it is in '{}'", printable(index.shards[tensor->file_index])) : std::string("which lacks it")),
                  {.file = index_path.string(), .tensor = printable(entry.tensor)},
                  "index and shards are of different versions, or one is damaged; fetch them again");
    }
    if (index.entries.size() == tensors_.size()) return;
    std::unordered_set<std::string_view> listed(index.entries.size());
    for (const ShardIndex::Entry& entry : index.entries) listed.insert(entry.tensor);
    std::uint64_t num_unlisted = 0;
    const TensorInfo* first = nullptr;
    for (const TensorInfo& tensor : tensors_) {
      if (listed.contains(tensor.name)) continue;
      ++num_unlisted;
      if (!first) first = &tensor;
    }
    warnings_.push_back(fmt::format("{} of {} tensors in the shards are not in the index, the first is '{}'; they are read all the same",
                                    num_unlisted, tensors_.size(), printable(first->name)));
  }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    WEFT_ASSERT(tensor.file_index < open_.size());
    WEFT_ASSERT(offset <= tensor.size_bytes && out.size() <= tensor.size_bytes - offset);
    open_[tensor.file_index].read(tensor.offset_bytes + offset, out);
  }
  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    if (tensor.file_index < open_.size()) open_[tensor.file_index].will_read(tensor.offset_bytes + offset, size_bytes);
  }
  void check_unchanged() const override {
    for (std::size_t i = 0; i < open_.size(); ++i) {
      const FileIdentity now = open_[i].identity();
      if (now == identities_[i]) continue;
      throw Error(ErrorCode::corrupt,
                  fmt::format("input changed while it was being read: it had {} bytes when it was opened and has {} now{}",
                              identities_[i].size_bytes, now.size_bytes, now.size_bytes == identities_[i].size_bytes ? ", but was written to" : ""),
                  {.file = open_[i].path().string()}, "run the command again when nothing writes to the model any more");
    }
  }

 private:
  std::vector<File> open_;
  std::vector<FileIdentity> identities_;
};

}  // namespace

std::shared_ptr<const Checkpoint> open_safetensors_file(const std::filesystem::path& file, const std::filesystem::path& named,
                                                        std::vector<std::string> warnings) {
  auto checkpoint = std::make_shared<SafetensorsCheckpoint>(named, std::move(warnings));
  checkpoint->add_file(file);
  checkpoint->finish();
  return checkpoint;
}

std::shared_ptr<const Checkpoint> open_safetensors_shards(const std::filesystem::path& index_path, const ShardIndex& index,
                                                          const std::filesystem::path& named, std::vector<std::string> warnings) {
  // All of them before any is opened, so that an incomplete download is told at once.
  std::vector<std::filesystem::path> paths;
  for (const std::string& shard : index.shards) paths.push_back(shard_path(index_path, shard));
  auto checkpoint = std::make_shared<SafetensorsCheckpoint>(named, std::move(warnings));
  for (const std::filesystem::path& path : paths) checkpoint->add_file(path);
  checkpoint->finish();
  checkpoint->check_index(index, index_path);
  return checkpoint;
}

}  // namespace weft
