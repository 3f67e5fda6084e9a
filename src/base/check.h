#pragma once
#include <cstdint>
#include <string_view>

#include "weft/error.h"

namespace weft {

/// Called by WEFT_ASSERT: throws Error internal with the place in our source.
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);

// For our own mistakes only; must be unreachable from any input. Active in tests and fuzzing.
#if defined(WEFT_ASSERTIONS)
#define WEFT_ASSERT(condition) ((condition) ? void() : ::weft::assertion_failed(#condition, __FILE__, __LINE__))
#else
#define WEFT_ASSERT(condition) void(sizeof((condition) ? 1 : 0))
#endif

/// a * b and a + b; throw Error corrupt "WHAT overflows: A x B" when the result does not fit 64 bits.
[[nodiscard]] std::uint64_t checked_mul(std::uint64_t a, std::uint64_t b, std::string_view what);
[[nodiscard]] std::uint64_t checked_add(std::uint64_t a, std::uint64_t b, std::string_view what);
/// A size that must index memory here.
[[nodiscard]] std::size_t checked_size(std::uint64_t value, std::string_view what);
/// A dimension as the signed type of shapes.
[[nodiscard]] std::int64_t checked_dim(std::uint64_t value, std::string_view what);

}  // namespace weft
