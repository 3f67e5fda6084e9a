#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

// Codecs of fixed blocks: a number of consecutive values of a row as a number of bytes. One row of the table a type; one file a family.
namespace weft::codec {

/// How much an error of each value counts. Encoders without a use for it ignore it.
struct Metric {
  std::span<const float> column_weights;  ///< [row length]: mean squared activation of each input; empty: all alike
};

/// A multi-byte number in a block, for files of the other byte order.
struct BlockField {
  std::uint16_t offset_bytes = 0;
  std::uint16_t size_bytes = 0;  ///< 2 or 4
  std::uint16_t count = 0;
};

struct BlockCodec {
  std::uint32_t ggml_id = 0;  ///< in GGUF files
  std::string_view name;      ///< "Q4_K"
  std::uint32_t block_elements = 0;
  std::uint32_t block_bytes = 0;
  std::span<const BlockField> fields;
  /// blocks: [num_blocks * block_bytes], at any address. out: [num_blocks * block_elements]. Any bytes decode to some values, perhaps not finite.
  void (*decode)(const std::uint8_t* blocks, std::size_t num_blocks, float* out) = nullptr;
  /// Encodes one row, whose length is a multiple of block_elements; null where weft has no encoder.
  void (*encode_row)(std::span<const float> row, const Metric& metric, std::uint8_t* out) = nullptr;
};

/// All types, by ggml_id.
[[nodiscard]] std::span<const BlockCodec> block_codecs();
/// Null when unknown.
[[nodiscard]] const BlockCodec* find_block_codec(std::uint32_t ggml_id) noexcept;
/// By name, letters of any case.
[[nodiscard]] const BlockCodec* find_block_codec(std::string_view name) noexcept;

/// Turns blocks of the other byte order into this machine's, in place.
void swap_block_bytes(const BlockCodec& codec, std::span<std::byte> blocks);

}  // namespace weft::codec
