#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/block_codec.h"
#include "weft/checkpoint.h"

// llama.cpp's mixes: which type each weight of a model gets in a file of a type such as Q4_K_M.
namespace weft::model {

struct GgufFileType {
  std::string_view name;       ///< "Q4_K_M"
  std::uint32_t number = 0;    ///< general.file_type
  std::string_view base;       ///< the type that most weights get: a block type, or "F32", "F16", "BF16"
  double bits_per_weight = 0;  ///< about, of a large model
};
[[nodiscard]] std::span<const GgufFileType> gguf_file_types();
/// By name, letters of any case; also Q3_K, Q4_K and Q5_K for their middle mixes. Errors: invalid_argument with the nearest name.
[[nodiscard]] const GgufFileType& gguf_file_type(std::string_view name);

/// A type that a weight may have in a file.
struct GgufStoredType {
  const codec::BlockCodec* codec = nullptr;  ///< blocks
  std::optional<DType> dtype;                ///< float32, float16, bfloat16
  [[nodiscard]] std::string_view name() const;
  [[nodiscard]] bool operator==(const GgufStoredType&) const = default;
};
/// By name, letters of any case. Errors: invalid_argument with the nearest name of those that can be written. key: the option, for messages.
[[nodiscard]] GgufStoredType gguf_stored_type(std::string_view name, std::string_view key);

/// What the mixes look at.
struct GgufMixModel {
  std::uint64_t num_layers = 0;
  std::uint64_t num_heads = 1;
  std::uint64_t num_kv_heads = 1;
  std::uint64_t num_experts = 0;
  bool has_output = true;  ///< an output.weight of its own
  bool has_imatrix = false;
};
struct GgufMixWeight {
  std::string name;  ///< "blk.0.attn_q.weight"
  Shape shape;
};

/// The type of each weight, in the order of the list, which is that of the file: sorted by layer, then name. Rows that the type's blocks do not
/// divide are not looked at here, except for the output's; see gguf_type_for_rows.
[[nodiscard]] std::vector<GgufStoredType> gguf_mix(const GgufFileType& file_type, const GgufMixModel& model, std::span<const GgufMixWeight> weights);

/// The type, or the one that llama.cpp falls back to where its blocks do not divide rows of this length. Errors: unsupported for types without one.
[[nodiscard]] GgufStoredType gguf_type_for_rows(const GgufStoredType& type, std::uint64_t row_length, std::string_view tensor);

/// Whether llama.cpp refuses to give a weight this type without an importance matrix.
[[nodiscard]] bool needs_importance(const GgufFileType& file_type, const GgufStoredType& type, std::string_view tensor);

/// Number of the layer in a name ("blk.7."), -1 for none.
[[nodiscard]] int gguf_layer_of(std::string_view name);

}  // namespace weft::model
