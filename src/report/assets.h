#pragma once
#include <string_view>

// Files that are part of the program.
namespace weft::report {

/// Vega and what it stands on, as one script; empty where the build found none.
[[nodiscard]] std::string_view vega_script() noexcept;
[[nodiscard]] std::string_view page_script() noexcept;
[[nodiscard]] std::string_view page_style() noexcept;

}  // namespace weft::report
