#pragma once
#include <cstdint>
#include <span>
#include <vector>

// Which width each layer gets when all of them together may take so many bytes.
namespace weft::quantize {

/// One way to store one item.
struct Choice {
  double loss = 0;
  std::uint64_t size = 0;  ///< in any unit
};

/// One choice for each item with the least sum of losses whose sizes stay within the budget: exact (a dynamic programme over the sets of size and
/// loss that nothing beats), whatever the sizes. items[i] are the choices of item i, in any order. Errors: invalid_argument when not even the
/// smallest choices fit, with both numbers.
[[nodiscard]] std::vector<std::size_t> allocate(std::span<const std::vector<Choice>> items, std::uint64_t budget);

}  // namespace weft::quantize
