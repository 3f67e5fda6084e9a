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

}  // namespace weft::testing
