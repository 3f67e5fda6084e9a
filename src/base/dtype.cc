#include "weft/dtype.h"

#include <array>
#include <cctype>
#include <string>

namespace weft {
namespace {

constexpr std::array<DTypeInfo, kNumDTypes> kTable = {{
    {DType::boolean, "BOOL", "bool", 8, DTypeKind::boolean},
    {DType::f4, "F4", "float4_e2m1fn_x2", 4, DTypeKind::floating},
    {DType::f6_e2m3, "F6_E2M3", "", 6, DTypeKind::floating},
    {DType::f6_e3m2, "F6_E3M2", "", 6, DTypeKind::floating},
    {DType::u8, "U8", "uint8", 8, DTypeKind::integer},
    {DType::i8, "I8", "int8", 8, DTypeKind::integer},
    {DType::f8_e5m2, "F8_E5M2", "float8_e5m2", 8, DTypeKind::floating},
    {DType::f8_e4m3, "F8_E4M3", "float8_e4m3fn", 8, DTypeKind::floating},
    {DType::f8_e8m0, "F8_E8M0", "float8_e8m0fnu", 8, DTypeKind::floating},
    {DType::f8_e4m3fnuz, "F8_E4M3FNUZ", "float8_e4m3fnuz", 8, DTypeKind::floating},
    {DType::f8_e5m2fnuz, "F8_E5M2FNUZ", "float8_e5m2fnuz", 8, DTypeKind::floating},
    {DType::i16, "I16", "int16", 16, DTypeKind::integer},
    {DType::u16, "U16", "uint16", 16, DTypeKind::integer},
    {DType::f16, "F16", "float16", 16, DTypeKind::floating},
    {DType::bf16, "BF16", "bfloat16", 16, DTypeKind::floating},
    {DType::i32, "I32", "int32", 32, DTypeKind::integer},
    {DType::u32, "U32", "uint32", 32, DTypeKind::integer},
    {DType::f32, "F32", "float32", 32, DTypeKind::floating},
    {DType::c64, "C64", "complex64", 64, DTypeKind::complex},
    {DType::f64, "F64", "float64", 64, DTypeKind::floating},
    {DType::i64, "I64", "int64", 64, DTypeKind::integer},
    {DType::u64, "U64", "uint64", 64, DTypeKind::integer},
}};

}  // namespace

const DTypeInfo& info(DType dtype) noexcept { return kTable[static_cast<std::size_t>(dtype)]; }
std::string_view to_string(DType dtype) noexcept { return info(dtype).name; }

std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  for (const DTypeInfo& row : kTable)
    if (row.name == name) return row.dtype;
  return std::nullopt;
}

std::optional<DType> dtype_from_any(std::string_view name) noexcept {
  if (name.starts_with("torch.")) name.remove_prefix(6);
  const auto equal_ignoring_case = [](std::string_view a, std::string_view b) {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i)
      if (std::tolower(static_cast<unsigned char>(a[i])) != std::tolower(static_cast<unsigned char>(b[i]))) return false;
    return true;
  };
  for (const DTypeInfo& row : kTable)
    if (equal_ignoring_case(row.name, name) || (!row.torch_name.empty() && equal_ignoring_case(row.torch_name, name))) return row.dtype;
  constexpr std::array<std::pair<std::string_view, DType>, 7> kAliases = {{
      {"half", DType::f16}, {"float", DType::f32}, {"double", DType::f64}, {"fp16", DType::f16}, {"fp32", DType::f32}, {"fp64", DType::f64}, {"fp8", DType::f8_e4m3},
  }};
  for (const auto& [alias, dtype] : kAliases)
    if (equal_ignoring_case(alias, name)) return dtype;
  return std::nullopt;
}

bool is_decodable_float(DType dtype) noexcept {
  return info(dtype).kind == DTypeKind::floating && dtype != DType::f6_e2m3 && dtype != DType::f6_e3m2;
}

DType promote(DType a, DType b) noexcept {
  if (a == b) return a;
  if (a == DType::f64 || b == DType::f64) return DType::f64;
  if (a == DType::f32 || b == DType::f32) return DType::f32;
  const auto is_16 = [](DType d) { return d == DType::f16 || d == DType::bf16; };
  // Types of 8 and 4 bits are widened to the other's 16-bit type; two different small types to float32.
  if (is_16(a) && !is_16(b)) return a;
  if (is_16(b) && !is_16(a)) return b;
  return DType::f32;
}

}  // namespace weft
