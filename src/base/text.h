#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace weft {

/// "2GiB", "800MB", "1.5G", "4096", mergekit's "5B" (10^9): bytes. Decimal units are powers of 1000, ...iB of 1024. Throws invalid_argument.
[[nodiscard]] std::uint64_t parse_size(std::string_view text);
/// 1234567 -> "1.23 MB".
[[nodiscard]] std::string format_size(std::uint64_t size_bytes);
/// 6823936 -> "6.82 M".
[[nodiscard]] std::string format_count(std::uint64_t count);
/// 75.2 -> "1 min 15 s", 0.0123 -> "12 ms".
[[nodiscard]] std::string format_seconds(double seconds);

/// The candidate that looks most like the word, if any looks like it at all (for "did you mean").
[[nodiscard]] std::optional<std::string> nearest_name(std::string_view word, std::span<const std::string> candidates);

/// Whether the bytes are well-formed UTF-8 (no surrogates, no overlong forms).
[[nodiscard]] bool is_valid_utf8(std::string_view bytes) noexcept;
/// The text with control characters and invalid bytes escaped, and shortened, so that a hostile name cannot disturb a terminal.
[[nodiscard]] std::string printable(std::string_view text, std::size_t max_bytes = 200);

}  // namespace weft
