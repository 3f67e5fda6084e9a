#pragma once
#include <string>
#include <vector>

namespace weft::engine {

/// Warnings that begin with "tensor 'NAME': " and say the same of several tensors become one, at the place of the first, that names the first tensor
/// and counts the others. The rest stay as they are.
[[nodiscard]] std::vector<std::string> said_once(std::vector<std::string> warnings);

}  // namespace weft::engine
