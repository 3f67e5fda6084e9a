#pragma once
#include <string>
#include <string_view>

#include "weft/export.h"

namespace weft {

[[nodiscard]] WEFT_API std::string_view version() noexcept;   ///< "0.1.0"
[[nodiscard]] WEFT_API std::string_view commit() noexcept;    ///< short git hash, or "unknown"
[[nodiscard]] WEFT_API std::string_view compiler() noexcept;
[[nodiscard]] WEFT_API std::string simd_target();             ///< the instruction set that the kernels use here: "AVX3_DL"

}  // namespace weft
