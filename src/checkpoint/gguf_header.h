#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/file.h"
#include "codec/block_codec.h"
#include "weft/checkpoint.h"
#include "weft/dtype.h"

// The header of a GGUF file: typed metadata and the list of tensors. Versions 2 and 3, either byte order.
namespace weft {

/// Types of metadata values, by their numbers in the file.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
/// "uint32", "string", ...
[[nodiscard]] std::string_view to_string(GgufType type) noexcept;
/// Of one value; 0 for strings and arrays.
[[nodiscard]] std::uint64_t size_of(GgufType type) noexcept;

/// Values of one type. Long lists (tokens, merges) are left in the file unless asked for.
struct GgufArray {
  GgufType element_type = GgufType::u8;
  std::uint64_t num_elements = 0;
  std::uint64_t offset_bytes = 0;    ///< of the first value in the file
  std::uint64_t size_bytes = 0;      ///< of the values in the file
  std::optional<std::string> bytes;  ///< packed as in a little-endian file; absent: left in the file
};

struct GgufValue {
  GgufType type = GgufType::u8;
  std::variant<std::uint64_t, std::int64_t, double, bool, std::string, GgufArray> value;

  [[nodiscard]] static GgufValue u32(std::uint64_t value);  ///< throws invalid_argument beyond 32 bits
  [[nodiscard]] static GgufValue f32(double value);
  [[nodiscard]] static GgufValue boolean(bool value) { return {GgufType::boolean, value}; }
  [[nodiscard]] static GgufValue text(std::string value) { return {GgufType::string, std::move(value)}; }
  [[nodiscard]] static GgufValue texts(const std::vector<std::string>& values);
  [[nodiscard]] static GgufValue i32s(const std::vector<std::int32_t>& values);
  [[nodiscard]] static GgufValue f32s(const std::vector<float>& values);
  [[nodiscard]] static GgufValue u8s(std::string_view bytes);

  /// Of any integer type that fits (a boolean is none); absent otherwise.
  [[nodiscard]] std::optional<std::uint64_t> unsigned_integer() const noexcept;
  [[nodiscard]] std::optional<std::int64_t> integer() const noexcept;
  [[nodiscard]] std::optional<double> number() const noexcept;  ///< of any integer or floating type
  [[nodiscard]] std::optional<bool> flag() const noexcept;
  [[nodiscard]] const std::string* string() const noexcept { return std::get_if<std::string>(&value); }
  [[nodiscard]] const GgufArray* array() const noexcept { return std::get_if<GgufArray>(&value); }

  /// Of a list that is at hand; empty when it is none of strings or numbers.
  [[nodiscard]] std::vector<std::string> string_list() const;
  [[nodiscard]] std::vector<std::int64_t> integer_list() const;
  [[nodiscard]] std::vector<float> float_list() const;
};

/// For people: numbers as they are, lists in brackets, "[32000 strings]" for those left in the file.
[[nodiscard]] std::string describe(const GgufValue& value);

/// Metadata in the order of the file.
class GgufMetadata {
 public:
  using Entry = std::pair<std::string, GgufValue>;
  [[nodiscard]] const std::vector<Entry>& entries() const noexcept { return entries_; }
  [[nodiscard]] const GgufValue* find(std::string_view key) const noexcept;
  /// Replaces or appends.
  void set(std::string_view key, GgufValue value);
  bool erase(std::string_view key);
  /// A key that is known to be new.
  void append(std::string key, GgufValue value) { entries_.emplace_back(std::move(key), std::move(value)); }

  [[nodiscard]] std::optional<std::string> text(std::string_view key) const;
  [[nodiscard]] std::optional<std::uint64_t> unsigned_integer(std::string_view key) const;
  [[nodiscard]] std::optional<double> number(std::string_view key) const;
  [[nodiscard]] std::optional<bool> flag(std::string_view key) const;

 private:
  std::vector<Entry> entries_;
};

/// A tensor as the file stores it.
struct GgufTensor {
  std::string name;
  std::uint32_t type = 0;                    ///< as in the file
  const codec::BlockCodec* codec = nullptr;  ///< null for plain types
  DType dtype = DType::f32;                  ///< of the values
  Shape shape;                               ///< outermost axis first, as everywhere in weft
  std::uint64_t num_elements = 0;
  std::uint64_t offset_bytes = 0;  ///< from the start of the file
  std::uint64_t stored_bytes = 0;
};

struct GgufHeader {
  std::uint32_t version = 3;
  bool big_endian = false;
  std::uint64_t alignment = 32;
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;  ///< in order of offset
  std::uint64_t data_offset_bytes = 0;
  std::vector<std::string> warnings;
};

enum class GgufLists { leave_long, keep_all };

/// Our own caps, far above any real model.
inline constexpr std::uint64_t kMaxGgufKeys = 100'000;
inline constexpr std::uint64_t kMaxGgufAlignment = std::uint64_t{1} << 20;

/// Errors: corrupt and unsupported, with tensor or key and byte. Memory: the result and 64 KiB, whatever the header claims.
[[nodiscard]] GgufHeader read_gguf_header(const File& file, GgufLists lists);
/// The same from memory: a whole file.
[[nodiscard]] GgufHeader parse_gguf_header(std::string_view bytes, const std::filesystem::path& file, GgufLists lists);
/// The values of a list that was left in the file.
[[nodiscard]] GgufValue read_gguf_list(const File& file, const GgufValue& list, bool big_endian);

/// Number of a plain type in a GGUF file; absent for types that the format does not have.
[[nodiscard]] std::optional<std::uint32_t> gguf_type_of(DType dtype) noexcept;

}  // namespace weft
