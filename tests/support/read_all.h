#pragma once
#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace weft::testing {

/// Bytes of tensors by name.
using Tensors = std::map<std::string, std::vector<std::byte>>;

/// Everything that a model holds, to compare outputs whatever their files.
[[nodiscard]] Tensors read_all(const std::filesystem::path& model);

}  // namespace weft::testing
