#include "checkpoint/gguf_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <unordered_set>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/safetensors.h"
#include "weft/error.h"

namespace weft {
namespace {

constexpr const char* kFetchAgain = "the file is damaged or incompletely downloaded; fetch it again";
constexpr const char* kHostile = "this is beyond any real model; the file is damaged or hostile";
constexpr std::uint64_t kMaxStringBytes = std::uint64_t{1} << 30;  // as the reference
constexpr std::uint64_t kMaxKeyBytes = 65535;
constexpr std::uint64_t kMaxNameBytes = 63;
constexpr std::int64_t kMaxDimension = std::int64_t{1} << 40;
constexpr std::uint64_t kShortList = 64;  // elements; longer lists are left in the file
constexpr std::uint64_t kShortListBytes = 4096;

struct PlainType {
  std::uint32_t id;
  DType dtype;
};
constexpr PlainType kPlainTypes[] = {{0, DType::f32},  {1, DType::f16},  {24, DType::i8},  {25, DType::i16},
                                     {26, DType::i32}, {27, DType::i64}, {28, DType::f64}, {30, DType::bf16}};

constexpr std::uint32_t kNumTypes = 13;

bool has_control_characters(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

/// Where the bytes of a header come from.
class Source {
 public:
  Source() = default;
  virtual ~Source() = default;
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  [[nodiscard]] virtual std::uint64_t size_bytes() const = 0;
  virtual void read(std::uint64_t offset, std::span<std::byte> out) const = 0;
  [[nodiscard]] virtual const std::filesystem::path& path() const = 0;
};

class FileSource final : public Source {
 public:
  explicit FileSource(const File& file) : file_(file), size_bytes_(file.size_bytes()) {}
  [[nodiscard]] std::uint64_t size_bytes() const override { return size_bytes_; }
  void read(std::uint64_t offset, std::span<std::byte> out) const override { file_.read(offset, out); }
  [[nodiscard]] const std::filesystem::path& path() const override { return file_.path(); }

 private:
  const File& file_;
  std::uint64_t size_bytes_;
};

class MemorySource final : public Source {
 public:
  MemorySource(std::string_view bytes, const std::filesystem::path& path) : bytes_(bytes), path_(path) {}
  [[nodiscard]] std::uint64_t size_bytes() const override { return bytes_.size(); }
  void read(std::uint64_t offset, std::span<std::byte> out) const override {
    WEFT_ASSERT(offset <= bytes_.size() && out.size() <= bytes_.size() - offset);
    if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
  }
  [[nodiscard]] const std::filesystem::path& path() const override { return path_; }

 private:
  std::string_view bytes_;
  const std::filesystem::path& path_;
};

/// Walks through a source. Every length is compared with what the file still has before anything is allocated for it.
class Cursor {
 public:
  explicit Cursor(const Source& source) : source_(source), size_bytes_(source.size_bytes()) {}

  [[nodiscard]] std::uint64_t position() const noexcept { return position_; }
  [[nodiscard]] std::uint64_t remaining() const noexcept { return size_bytes_ - position_; }
  [[nodiscard]] std::uint64_t size_bytes() const noexcept { return size_bytes_; }
  void set_big_endian(bool big_endian) noexcept { swap_ = big_endian == (std::endian::native == std::endian::little); }

  /// Where in the header we are, for messages.
  std::string key;
  std::string tensor;

  [[noreturn]] void fail(ErrorCode code, std::string message, const char* advice = kFetchAgain) const {
    throw Error(code, "GGUF header: " + std::move(message),
                {.file = source_.path().string(), .tensor = printable(tensor), .key = printable(key), .byte = position_}, advice);
  }
  void need(std::uint64_t size_bytes, std::string_view what) const {
    if (size_bytes > remaining())
      fail(ErrorCode::corrupt, fmt::format("{} needs {} bytes but the file has only {} left", what, size_bytes, remaining()));
  }
  void skip(std::uint64_t size_bytes, std::string_view what) {
    need(size_bytes, what);
    position_ += size_bytes;
  }
  void read(std::span<std::byte> out, std::string_view what) {
    need(out.size(), what);
    if (out.size() > kBufferBytes) {
      source_.read(position_, out);
    } else if (!out.empty()) {
      if (position_ < buffer_begin_ || position_ + out.size() > buffer_begin_ + buffer_.size()) {
        buffer_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kBufferBytes, remaining())));
        buffer_begin_ = position_;
        source_.read(position_, buffer_);
      }
      std::memcpy(out.data(), buffer_.data() + (position_ - buffer_begin_), out.size());
    }
    position_ += out.size();
  }
  template <typename T>
  T number(std::string_view what) {
    std::array<std::byte, sizeof(T)> bytes{};
    read(bytes, what);
    if (swap_) std::reverse(bytes.begin(), bytes.end());
    return std::bit_cast<T>(bytes);
  }
  std::string string(std::uint64_t max_bytes, std::string_view what) {
    const auto length = number<std::uint64_t>(what);
    if (length > max_bytes) fail(ErrorCode::corrupt, fmt::format("{} claims {} bytes, the limit is {}", what, length, max_bytes));
    need(length, what);
    std::string text(static_cast<std::size_t>(length), '\0');
    read(std::as_writable_bytes(std::span(text)), what);
    return text;
  }

 private:
  static constexpr std::size_t kBufferBytes = std::size_t{1} << 16;
  const Source& source_;
  std::uint64_t size_bytes_;
  std::uint64_t position_ = 0;
  bool swap_ = false;
  std::vector<std::byte> buffer_;
  std::uint64_t buffer_begin_ = 0;
};

void append_number(std::string& out, std::uint64_t value, std::uint64_t size_bytes) {
  for (std::uint64_t i = 0; i < size_bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}
std::uint64_t number_at(const std::string& bytes, std::size_t at, std::uint64_t size_bytes) {
  std::uint64_t value = 0;
  for (std::uint64_t i = size_bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

GgufValue scalar_of(GgufType type, std::uint64_t bits) {
  switch (type) {
    case GgufType::u8:
    case GgufType::u16:
    case GgufType::u32:
    case GgufType::u64:
      return {type, bits};
    case GgufType::i8:
      return {type, std::int64_t{static_cast<std::int8_t>(bits)}};
    case GgufType::i16:
      return {type, std::int64_t{static_cast<std::int16_t>(bits)}};
    case GgufType::i32:
      return {type, std::int64_t{static_cast<std::int32_t>(bits)}};
    case GgufType::i64:
      return {type, static_cast<std::int64_t>(bits)};
    case GgufType::f32:
      return {type, static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits)))};
    case GgufType::f64:
      return {type, std::bit_cast<double>(bits)};
    case GgufType::boolean:
      return {type, bits != 0};
    default:
      return {};
  }
}

std::uint64_t read_bits(Cursor& cursor, GgufType type, std::string_view what) {
  switch (size_of(type)) {
    case 1:
      return cursor.number<std::uint8_t>(what);
    case 2:
      return cursor.number<std::uint16_t>(what);
    case 4:
      return cursor.number<std::uint32_t>(what);
    default:
      return cursor.number<std::uint64_t>(what);
  }
}

/// Reads the values of a list into their packed form.
std::string read_list(Cursor& cursor, const GgufArray& list) {
  std::string bytes;
  if (list.element_type == GgufType::string) {
    for (std::uint64_t i = 0; i < list.num_elements; ++i) {
      const std::string text = cursor.string(kMaxStringBytes, "a string of a list");
      append_number(bytes, text.size(), 8);
      bytes += text;
    }
    return bytes;
  }
  const std::uint64_t size = size_of(list.element_type);
  bytes.reserve(static_cast<std::size_t>(list.num_elements * size));  // no more than the file has: checked when the list was found
  for (std::uint64_t i = 0; i < list.num_elements; ++i) append_number(bytes, read_bits(cursor, list.element_type, "a list"), size);
  return bytes;
}

GgufType type_of(Cursor& cursor, std::uint32_t number, std::string_view what) {
  if (number >= kNumTypes) cursor.fail(ErrorCode::corrupt, fmt::format("{} {} is unknown", what, number));
  return static_cast<GgufType>(number);
}

GgufValue read_value(Cursor& cursor, GgufLists lists) {
  const GgufType type = type_of(cursor, cursor.number<std::uint32_t>("the type of a value"), "the value type");
  if (type == GgufType::string) return GgufValue::text(cursor.string(kMaxStringBytes, "a string value"));
  if (type != GgufType::array) return scalar_of(type, read_bits(cursor, type, "a value"));

  GgufArray list;
  list.element_type = type_of(cursor, cursor.number<std::uint32_t>("the type of a list"), "the element type");
  if (list.element_type == GgufType::array) cursor.fail(ErrorCode::unsupported, "a list of lists", "the format's own tools refuse it too");
  list.num_elements = cursor.number<std::uint64_t>("the length of a list");
  const std::uint64_t least = list.element_type == GgufType::string ? 8 : size_of(list.element_type);
  if (list.num_elements > cursor.remaining() / least)
    cursor.fail(ErrorCode::corrupt, fmt::format("a list claims {} values of {} bytes or more, but the file has only {} bytes left", list.num_elements,
                                                least, cursor.remaining()));
  list.offset_bytes = cursor.position();
  if (lists == GgufLists::keep_all) {
    list.bytes = read_list(cursor, list);
  } else if (list.element_type != GgufType::string) {
    if (list.num_elements <= kShortList)
      list.bytes = read_list(cursor, list);
    else
      cursor.skip(list.num_elements * least, "a list");
  } else {
    std::string kept;
    for (std::uint64_t i = 0; i < list.num_elements; ++i) {
      if (list.num_elements <= kShortList && kept.size() <= kShortListBytes) {
        const auto length = cursor.number<std::uint64_t>("a string of a list");
        if (length <= kShortListBytes) {
          cursor.need(length, "a string of a list");
          std::string text(static_cast<std::size_t>(length), '\0');
          cursor.read(std::as_writable_bytes(std::span(text)), "a string of a list");
          append_number(kept, length, 8);
          kept += text;
          continue;
        }
        kept.resize(kShortListBytes + 1);  // too long to be kept
        cursor.skip(length, "a string of a list");
      } else {
        cursor.skip(cursor.number<std::uint64_t>("a string of a list"), "a string of a list");
      }
    }
    if (list.num_elements <= kShortList && kept.size() <= kShortListBytes) list.bytes = std::move(kept);
  }
  list.size_bytes = cursor.position() - list.offset_bytes;
  return {GgufType::array, std::move(list)};
}

GgufTensor read_tensor(Cursor& cursor, std::uint64_t alignment) {
  GgufTensor tensor;
  tensor.name = cursor.string(kMaxStringBytes, "the name of a tensor");
  cursor.tensor = tensor.name;
  if (tensor.name.empty()) cursor.fail(ErrorCode::corrupt, "a tensor has no name");
  if (tensor.name.size() > kMaxNameBytes)
    cursor.fail(ErrorCode::unsupported,
                fmt::format("the name of a tensor has {} bytes, the format's limit is {}", tensor.name.size(), kMaxNameBytes));
  if (!is_valid_utf8(tensor.name) || has_control_characters(tensor.name))
    cursor.fail(ErrorCode::corrupt, "the name of a tensor holds control characters or is not UTF-8");
  const auto rank = cursor.number<std::uint32_t>("the number of dimensions");
  if (rank > 4) cursor.fail(ErrorCode::corrupt, fmt::format("a tensor has {} dimensions, the format's limit is 4", rank));
  std::uint64_t row = 1, rows = 1;
  for (std::uint32_t i = 0; i < rank; ++i) {
    const auto dimension = cursor.number<std::int64_t>("a dimension");
    if (dimension < 0 || dimension > kMaxDimension)
      cursor.fail(ErrorCode::corrupt, fmt::format("dimension {} of a tensor is {}", i, dimension), kHostile);
    tensor.shape.insert(tensor.shape.begin(), dimension);
    if (i == 0)
      row = static_cast<std::uint64_t>(dimension);
    else
      rows = checked_mul(rows, static_cast<std::uint64_t>(dimension), "the number of rows of '" + printable(tensor.name) + "'");
  }
  tensor.type = cursor.number<std::uint32_t>("the type of a tensor");
  tensor.num_elements = checked_mul(row, rows, "the number of elements of '" + printable(tensor.name) + "'");
  std::uint64_t block_elements = 1, block_bytes = 0;
  if (const auto plain = std::find_if(std::begin(kPlainTypes), std::end(kPlainTypes), [&](const PlainType& p) { return p.id == tensor.type; });
      plain != std::end(kPlainTypes)) {
    tensor.dtype = plain->dtype;
    block_bytes = static_cast<std::uint64_t>(info(plain->dtype).bits) / 8;
  } else if ((tensor.codec = codec::find_block_codec(tensor.type)) != nullptr) {
    block_elements = tensor.codec->block_elements;
    block_bytes = tensor.codec->block_bytes;
  } else {
    cursor.fail(ErrorCode::unsupported, fmt::format("tensor type {} is unknown or was removed from the format", tensor.type),
                "convert the file with the program that wrote it");
  }
  if (row % block_elements != 0)
    cursor.fail(ErrorCode::corrupt, fmt::format("rows of {} values are no whole number of {} blocks of {}", row, tensor.codec->name, block_elements));
  const std::string what = "the size of '" + printable(tensor.name) + "'";
  tensor.stored_bytes = checked_mul(checked_mul(row / block_elements, block_bytes, what), rows, what);
  // Values are float32 where blocks are decoded; that product must hold as well.
  (void)checked_mul(tensor.num_elements, 8, what);
  tensor.offset_bytes = cursor.number<std::uint64_t>("the offset of a tensor");
  if (tensor.offset_bytes % alignment != 0)
    cursor.fail(ErrorCode::corrupt, fmt::format("the offset {} is no multiple of the alignment {}", tensor.offset_bytes, alignment));
  return tensor;
}

/// Offsets become those from the start of the file; every tensor must lie inside it, and none over another.
void place_tensors(Cursor& cursor, GgufHeader& header) {
  std::uint64_t expected = 0;
  bool canonical = true;
  for (const GgufTensor& tensor : header.tensors) {
    canonical = canonical && tensor.offset_bytes == expected;
    const std::uint64_t end = checked_add(tensor.offset_bytes, tensor.stored_bytes, "the end of '" + printable(tensor.name) + "'");
    expected = checked_add(end, header.alignment - 1, "the end of '" + printable(tensor.name) + "'") / header.alignment * header.alignment;
  }
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const GgufTensor& a, const GgufTensor& b) { return a.offset_bytes < b.offset_bytes; });
  const std::uint64_t data_bytes = header.data_offset_bytes <= cursor.size_bytes() ? cursor.size_bytes() - header.data_offset_bytes : 0;
  std::uint64_t end = 0;
  const GgufTensor* before = nullptr;
  cursor.key.clear();
  for (GgufTensor& tensor : header.tensors) {
    cursor.tensor = tensor.name;
    if (tensor.stored_bytes != 0 && tensor.offset_bytes < end)
      cursor.fail(ErrorCode::corrupt, fmt::format("the tensor begins at byte {} of the data, inside of '{}', which ends at {}", tensor.offset_bytes,
                                                  printable(before->name), end));
    if (tensor.offset_bytes > data_bytes || tensor.stored_bytes > data_bytes - tensor.offset_bytes)
      cursor.fail(ErrorCode::corrupt, fmt::format("the tensor has {} bytes from byte {} of the data on, but the file holds only {} bytes of data",
                                                  tensor.stored_bytes, tensor.offset_bytes, data_bytes));
    if (tensor.stored_bytes != 0) {
      end = tensor.offset_bytes + tensor.stored_bytes;
      before = &tensor;
    }
    tensor.offset_bytes += header.data_offset_bytes;
  }
  if (!canonical) header.warnings.emplace_back("the tensors do not follow each other without gaps in the order of their list, as llama.cpp demands");
  if (data_bytes > end && data_bytes - end >= header.alignment)
    header.warnings.push_back(fmt::format("{} bytes follow the last tensor, which nothing describes", data_bytes - end));
}

GgufHeader read_header(const Source& source, GgufLists lists) {
  Cursor cursor(source);
  constexpr const char* kNoGguf = "this is no GGUF file, or its beginning is damaged; fetch it again";
  std::array<char, 4> magic{};
  cursor.read(std::as_writable_bytes(std::span(magic)), "the magic number");
  if (std::string_view(magic.data(), 4) != "GGUF")
    cursor.fail(ErrorCode::corrupt, fmt::format("the file begins with '{}', not with 'GGUF'", printable({magic.data(), 4})), kNoGguf);
  GgufHeader header;
  header.version = cursor.number<std::uint32_t>("the version");
  // The magic reads the same in either order; the version, which is small, tells them apart.
  if ((header.version & 0xFFFF) == 0 && header.version != 0) {
    header.big_endian = true;
    cursor.set_big_endian(true);
    header.version = header.version >> 24 | (header.version >> 8 & 0xFF00) | (header.version << 8 & 0xFF0000) | header.version << 24;
  }
  if (header.version != 2 && header.version != 3)
    cursor.fail(ErrorCode::unsupported, fmt::format("version {} is not known; weft reads 2 and 3", header.version),
                header.version == 1 ? "convert it again with a newer llama.cpp" : kNoGguf);
  const auto num_tensors = cursor.number<std::uint64_t>("the number of tensors");
  const auto num_keys = cursor.number<std::uint64_t>("the number of keys");
  // The least that an entry can take: a key of one byte and a value of one; a name of one byte, no dimension.
  constexpr std::uint64_t kLeastEntry = 8 + 1 + 4 + 1, kLeastTensor = 8 + 1 + 4 + 4 + 8;
  if (num_keys > cursor.remaining() / kLeastEntry)
    cursor.fail(ErrorCode::corrupt, fmt::format("the header claims {} keys, but the file has only {} bytes left", num_keys, cursor.remaining()));
  if (num_tensors > cursor.remaining() / kLeastTensor)
    cursor.fail(ErrorCode::corrupt,
                fmt::format("the header claims {} tensors, but the file has only {} bytes left", num_tensors, cursor.remaining()));
  if (num_keys > kMaxGgufKeys)
    cursor.fail(ErrorCode::unsupported, fmt::format("the header has {} keys, the limit is {}", num_keys, kMaxGgufKeys), kHostile);
  if (num_tensors > kMaxTensors)
    cursor.fail(ErrorCode::unsupported, fmt::format("the header has {} tensors, the limit is {}", num_tensors, kMaxTensors), kHostile);

  std::unordered_set<std::string> seen;
  for (std::uint64_t i = 0; i < num_keys; ++i) {
    cursor.key.clear();
    std::string key = cursor.string(kMaxKeyBytes, "a key");
    cursor.key = key;
    if (key.empty()) cursor.fail(ErrorCode::corrupt, "a key is empty");
    if (!is_valid_utf8(key) || has_control_characters(key)) cursor.fail(ErrorCode::corrupt, "a key holds control characters or is not UTF-8");
    if (!seen.insert(key).second) cursor.fail(ErrorCode::corrupt, fmt::format("the key '{}' stands twice", printable(key)));
    GgufValue value = read_value(cursor, lists);
    header.metadata.append(std::move(key), std::move(value));
  }
  cursor.key.clear();
  if (const GgufValue* alignment = header.metadata.find("general.alignment")) {
    cursor.key = "general.alignment";
    if (alignment->type != GgufType::u32)
      cursor.fail(ErrorCode::corrupt, fmt::format("the alignment is of type {}, not uint32", to_string(alignment->type)));
    header.alignment = *alignment->unsigned_integer();
    if (!std::has_single_bit(header.alignment) || header.alignment > kMaxGgufAlignment)
      cursor.fail(ErrorCode::corrupt,
                  fmt::format("the alignment is {}; it must be a power of two and at most {}", header.alignment, kMaxGgufAlignment), kHostile);
    cursor.key.clear();
  }
  seen.clear();
  for (std::uint64_t i = 0; i < num_tensors; ++i) {
    cursor.tensor.clear();
    header.tensors.push_back(read_tensor(cursor, header.alignment));
    if (!seen.insert(header.tensors.back().name).second)
      cursor.fail(ErrorCode::corrupt, fmt::format("tensor '{}' is listed twice", printable(header.tensors.back().name)));
  }
  header.data_offset_bytes = (cursor.position() + header.alignment - 1) / header.alignment * header.alignment;
  place_tensors(cursor, header);
  return header;
}

std::string short_number(double value) {
  // As float32 where that is what it was.
  if (static_cast<double>(static_cast<float>(value)) == value) return fmt::format("{}", static_cast<float>(value));
  return fmt::format("{}", value);
}

}  // namespace

std::string_view to_string(GgufType type) noexcept {
  constexpr std::string_view kNames[kNumTypes] = {"uint8",   "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
                                                  "boolean", "string", "list",   "uint64", "int64",  "float64"};
  return kNames[static_cast<std::uint32_t>(type)];
}

std::uint64_t size_of(GgufType type) noexcept {
  constexpr std::uint64_t kSizes[kNumTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kSizes[static_cast<std::uint32_t>(type)];
}

std::optional<std::uint32_t> gguf_type_of(DType dtype) noexcept {
  for (const PlainType& plain : kPlainTypes)
    if (plain.dtype == dtype) return plain.id;
  return std::nullopt;
}

// ---- Values

GgufValue GgufValue::u32(std::uint64_t value) {
  if (value > 0xFFFFFFFF) throw Error(ErrorCode::invalid_argument, fmt::format("{} does not fit a number of 32 bits", value));
  return {GgufType::u32, value};
}
GgufValue GgufValue::f32(double value) { return {GgufType::f32, static_cast<double>(static_cast<float>(value))}; }

GgufValue GgufValue::texts(const std::vector<std::string>& values) {
  GgufArray list{.element_type = GgufType::string, .num_elements = values.size(), .bytes = std::string()};
  for (const std::string& text : values) {
    append_number(*list.bytes, text.size(), 8);
    *list.bytes += text;
  }
  return {GgufType::array, std::move(list)};
}
GgufValue GgufValue::i32s(const std::vector<std::int32_t>& values) {
  GgufArray list{.element_type = GgufType::i32, .num_elements = values.size(), .bytes = std::string()};
  for (const std::int32_t value : values) append_number(*list.bytes, static_cast<std::uint32_t>(value), 4);
  return {GgufType::array, std::move(list)};
}
GgufValue GgufValue::f32s(const std::vector<float>& values) {
  GgufArray list{.element_type = GgufType::f32, .num_elements = values.size(), .bytes = std::string()};
  for (const float value : values) append_number(*list.bytes, std::bit_cast<std::uint32_t>(value), 4);
  return {GgufType::array, std::move(list)};
}
GgufValue GgufValue::u8s(std::string_view bytes) {
  return {GgufType::array, GgufArray{.element_type = GgufType::u8, .num_elements = bytes.size(), .bytes = std::string(bytes)}};
}

std::optional<std::uint64_t> GgufValue::unsigned_integer() const noexcept {
  if (const auto* u = std::get_if<std::uint64_t>(&value)) return *u;
  if (const auto* i = std::get_if<std::int64_t>(&value); i != nullptr && *i >= 0) return static_cast<std::uint64_t>(*i);
  return std::nullopt;
}
std::optional<std::int64_t> GgufValue::integer() const noexcept {
  if (const auto* i = std::get_if<std::int64_t>(&value)) return *i;
  if (const auto* u = std::get_if<std::uint64_t>(&value); u != nullptr && *u <= static_cast<std::uint64_t>(INT64_MAX))
    return static_cast<std::int64_t>(*u);
  return std::nullopt;
}
std::optional<double> GgufValue::number() const noexcept {
  if (const auto* d = std::get_if<double>(&value)) return *d;
  if (const auto* u = std::get_if<std::uint64_t>(&value)) return static_cast<double>(*u);
  if (const auto* i = std::get_if<std::int64_t>(&value)) return static_cast<double>(*i);
  return std::nullopt;
}
std::optional<bool> GgufValue::flag() const noexcept {
  if (const auto* b = std::get_if<bool>(&value)) return *b;
  return std::nullopt;
}

std::vector<std::string> GgufValue::string_list() const {
  std::vector<std::string> texts;
  const GgufArray* list = array();
  if (list == nullptr || list->element_type != GgufType::string || !list->bytes) return texts;
  std::size_t at = 0;
  for (std::uint64_t i = 0; i < list->num_elements; ++i) {
    const std::size_t length = static_cast<std::size_t>(number_at(*list->bytes, at, 8));
    texts.push_back(list->bytes->substr(at + 8, length));
    at += 8 + length;
  }
  return texts;
}
std::vector<std::int64_t> GgufValue::integer_list() const {
  std::vector<std::int64_t> numbers;
  const GgufArray* list = array();
  if (list == nullptr || !list->bytes || list->element_type == GgufType::string) return numbers;
  const std::uint64_t size = size_of(list->element_type);
  for (std::uint64_t i = 0; i < list->num_elements; ++i) {
    const GgufValue element = scalar_of(list->element_type, number_at(*list->bytes, static_cast<std::size_t>(i * size), size));
    if (const auto flag = element.flag())
      numbers.push_back(*flag);
    else if (const auto integer = element.integer())
      numbers.push_back(*integer);
    else
      return {};
  }
  return numbers;
}
std::vector<float> GgufValue::float_list() const {
  std::vector<float> numbers;
  const GgufArray* list = array();
  if (list == nullptr || !list->bytes || list->element_type == GgufType::string) return numbers;
  const std::uint64_t size = size_of(list->element_type);
  for (std::uint64_t i = 0; i < list->num_elements; ++i) {
    const auto number = scalar_of(list->element_type, number_at(*list->bytes, static_cast<std::size_t>(i * size), size)).number();
    if (!number) return {};
    numbers.push_back(static_cast<float>(*number));
  }
  return numbers;
}

std::string describe(const GgufValue& value) {
  if (const std::string* text = value.string()) return is_valid_utf8(*text) ? *text : printable(*text);
  if (const auto flag = value.flag()) return *flag ? "true" : "false";
  if (const auto* u = std::get_if<std::uint64_t>(&value.value)) return std::to_string(*u);
  if (const auto* i = std::get_if<std::int64_t>(&value.value)) return std::to_string(*i);
  if (const auto* d = std::get_if<double>(&value.value)) return short_number(*d);
  const GgufArray& list = *value.array();
  if (!list.bytes || list.num_elements > kShortList)
    return fmt::format("[{} {}{}]", list.num_elements, to_string(list.element_type), list.element_type == GgufType::string ? "s" : " values");
  std::string text = "[";
  const auto add = [&text](std::string_view element) {
    if (text.size() > 1) text += ", ";
    text += element;
  };
  if (list.element_type == GgufType::string) {
    for (const std::string& element : value.string_list()) add(is_valid_utf8(element) ? element : printable(element));
  } else if (list.element_type == GgufType::f32 || list.element_type == GgufType::f64) {
    for (const float element : value.float_list()) add(fmt::format("{}", element));
  } else {
    for (const std::int64_t element : value.integer_list()) add(std::to_string(element));
  }
  return text + "]";
}

const GgufValue* GgufMetadata::find(std::string_view key) const noexcept {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [key](const Entry& entry) { return entry.first == key; });
  return found == entries_.end() ? nullptr : &found->second;
}
void GgufMetadata::set(std::string_view key, GgufValue value) {
  for (Entry& entry : entries_)
    if (entry.first == key) {
      entry.second = std::move(value);
      return;
    }
  entries_.emplace_back(std::string(key), std::move(value));
}
bool GgufMetadata::erase(std::string_view key) {
  return std::erase_if(entries_, [key](const Entry& entry) { return entry.first == key; }) > 0;
}
std::optional<std::string> GgufMetadata::text(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr && value->string() != nullptr ? std::optional(*value->string()) : std::nullopt;
}
std::optional<std::uint64_t> GgufMetadata::unsigned_integer(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr ? value->unsigned_integer() : std::nullopt;
}
std::optional<double> GgufMetadata::number(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr ? value->number() : std::nullopt;
}
std::optional<bool> GgufMetadata::flag(std::string_view key) const {
  const GgufValue* value = find(key);
  return value != nullptr ? value->flag() : std::nullopt;
}

// ---- Reading

GgufHeader read_gguf_header(const File& file, GgufLists lists) { return read_header(FileSource(file), lists); }
GgufHeader parse_gguf_header(std::string_view bytes, const std::filesystem::path& file, GgufLists lists) {
  return read_header(MemorySource(bytes, file), lists);
}

GgufValue read_gguf_list(const File& file, const GgufValue& list, bool big_endian) {
  GgufValue result = list;
  auto* array = std::get_if<GgufArray>(&result.value);
  if (array == nullptr || array->bytes) return result;
  const FileSource source(file);
  Cursor cursor(source);
  cursor.set_big_endian(big_endian);
  cursor.skip(array->offset_bytes, "a list");
  cursor.need(array->size_bytes, "a list");
  array->bytes = read_list(cursor, *array);
  return result;
}

}  // namespace weft
