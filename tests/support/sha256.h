#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace weft::testing {

/// SHA-256 in lower-case hexadecimal, for the hashes that goldens are given as.
[[nodiscard]] std::string sha256(std::span<const std::byte> data);

}  // namespace weft::testing
