#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::testing {

/// Puts a GGUF file together number by number, right or wrong.
class GgufBytes {
 public:
  explicit GgufBytes(bool big_endian = false) : big_endian_(big_endian) {}

  template <typename T>
  GgufBytes& number(T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    if (big_endian_) std::reverse(bytes, bytes + sizeof(T));
    bytes_.append(bytes, sizeof(T));
    return *this;
  }
  GgufBytes& text(std::string_view value) {
    number<std::uint64_t>(value.size());
    bytes_ += value;
    return *this;
  }
  GgufBytes& raw(std::string_view value) {
    bytes_ += value;
    return *this;
  }
  GgufBytes& head(std::uint64_t num_tensors, std::uint64_t num_keys, std::uint32_t version = 3) {
    return raw("GGUF").number(version).number(num_tensors).number(num_keys);
  }
  GgufBytes& text_key(std::string_view key, std::string_view value) { return text(key).number<std::uint32_t>(8).text(value); }
  GgufBytes& u32_key(std::string_view key, std::uint32_t value) { return text(key).number<std::uint32_t>(4).number(value); }
  /// dims: fastest first, as in the file.
  GgufBytes& tensor(std::string_view name, const std::vector<std::int64_t>& dims, std::uint32_t type, std::uint64_t offset) {
    text(name).number(static_cast<std::uint32_t>(dims.size()));
    for (const std::int64_t dim : dims) number(dim);
    return number(type).number(offset);
  }
  GgufBytes& pad(std::size_t alignment = 32) {
    while (bytes_.size() % alignment != 0) bytes_ += '\0';
    return *this;
  }
  [[nodiscard]] const std::string& bytes() const { return bytes_; }

 private:
  bool big_endian_;
  std::string bytes_;
};

}  // namespace weft::testing
