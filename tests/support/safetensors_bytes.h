#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::testing {

/// The bytes of a file with this length field, whatever follows it.
inline std::string with_length(std::uint64_t length, std::string_view rest) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i) & 0xFF);
  return bytes.append(rest);
}

/// A safetensors file: this header, unpadded, and a payload.
inline std::string safetensors_bytes(std::string_view header, std::string_view payload = {}) {
  return with_length(header.size(), header).append(payload);
}

/// A well-formed file of float32 tensors, all of one dimension, in this order.
inline std::string safetensors_of(const std::vector<std::pair<std::string, std::vector<float>>>& tensors,
                                  std::string_view metadata = R"({"format":"pt"})") {
  std::string header = "{\"__metadata__\":" + std::string(metadata), payload;
  for (const auto& [name, values] : tensors) {
    const std::string begin = std::to_string(payload.size());
    for (const float value : values) {
      char bytes[4];
      std::memcpy(bytes, &value, 4);
      payload.append(bytes, 4);
    }
    header += ",\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[" + std::to_string(values.size()) + "],\"data_offsets\":[" + begin + "," +
              std::to_string(payload.size()) + "]}";
  }
  header += '}';
  while (header.size() % 8 != 0) header += ' ';
  return safetensors_bytes(header, payload);
}

/// Any tensor, as it stands in a file.
struct StoredTensor {
  std::string name;
  std::string dtype;  ///< "BF16"
  std::vector<std::int64_t> shape;
  std::string bytes;
};

/// A well-formed file of tensors of any type and shape.
inline std::string safetensors_of_types(const std::vector<StoredTensor>& tensors) {
  std::string header = R"({"__metadata__":{"format":"pt"})", payload;
  for (const StoredTensor& tensor : tensors) {
    header += ",\"" + tensor.name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) header += (i == 0 ? "" : ",") + std::to_string(tensor.shape[i]);
    header += "],\"data_offsets\":[" + std::to_string(payload.size()) + "," + std::to_string(payload.size() + tensor.bytes.size()) + "]}";
    payload += tensor.bytes;
  }
  header += '}';
  while (header.size() % 8 != 0) header += ' ';
  return safetensors_bytes(header, payload);
}

/// The bytes of values of any type.
template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace weft::testing
