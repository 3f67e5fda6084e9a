#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

#include "weft/export.h"

namespace weft {

/// The element types of the safetensors contract. The order is the sort key of its writer (which sorts descending).
enum class DType : std::uint8_t {
  boolean, f4, f6_e2m3, f6_e3m2, u8, i8, f8_e5m2, f8_e4m3, f8_e8m0, f8_e4m3fnuz, f8_e5m2fnuz,
  i16, u16, f16, bf16, i32, u32, f32, c64, f64, i64, u64,
};
inline constexpr int kNumDTypes = 22;

enum class DTypeKind : std::uint8_t { boolean, integer, floating, complex };

struct DTypeInfo {
  DType dtype;
  std::string_view name;        ///< as in a safetensors header: "BF16"
  std::string_view torch_name;  ///< as in a config: "bfloat16"; empty where torch has none
  int bits;                     ///< of one element
  DTypeKind kind;
};

[[nodiscard]] WEFT_API const DTypeInfo& info(DType dtype) noexcept;
/// "BF16".
[[nodiscard]] WEFT_API std::string_view to_string(DType dtype) noexcept;
/// From the container's spelling ("BF16"), case sensitive.
[[nodiscard]] WEFT_API std::optional<DType> dtype_from_name(std::string_view name) noexcept;
/// From any spelling that people use: "bfloat16", "torch.bfloat16", "bf16", "BF16".
[[nodiscard]] WEFT_API std::optional<DType> dtype_from_any(std::string_view name) noexcept;
/// Whether the values are real floating-point numbers that weft can decode to float32 and encode from it (F6 has no defined packing).
[[nodiscard]] WEFT_API bool is_decodable_float(DType dtype) noexcept;
/// The type that torch would compute a mixture of the two in: bf16 with f16 is f32, float with integer is the float. Both are floating.
[[nodiscard]] WEFT_API DType promote(DType a, DType b) noexcept;

}  // namespace weft
