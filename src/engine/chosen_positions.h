#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace weft::engine {

/// Single weights of some matrices: row * columns + column as they are stored, ascending; by tensor.
using ChosenPositions = std::map<std::string, std::vector<std::int64_t>, std::less<>>;

}  // namespace weft::engine
