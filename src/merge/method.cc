#include "merge/method.h"

#include "weft/error.h"

namespace weft::merge {

std::optional<double> Values::find(std::string_view name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? std::nullopt : std::optional<double>(found->second);
}

double Values::number(std::string_view name) const {
  if (const auto value = find(name)) return *value;
  throw Error(ErrorCode::internal, "parameter '" + std::string(name) + "' was declared but never set");
}

std::optional<std::size_t> TensorContext::base() const noexcept {
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].is_base) return i;
  return std::nullopt;
}

std::vector<std::size_t> TensorContext::non_base() const {
  std::vector<std::size_t> positions;
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (!inputs[i].is_base) positions.push_back(i);
  return positions;
}

std::uint64_t TensorContext::row_length() const noexcept { return shape.empty() ? 1 : static_cast<std::uint64_t>(shape.back()); }

void TensorContext::warn(std::string text) const {
  if (warnings != nullptr) warnings->push_back(std::move(text));
}

}  // namespace weft::merge
