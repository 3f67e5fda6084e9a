#include "merge/method.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "weft/error.h"

namespace weft::merge {
namespace {

/// model: whose value it is; empty for a global one.
void check_value(const Parameter& parameter, const Values& values, const std::string& tensor, const std::string& model) {
  const auto refuse = [&](const std::string& what, std::string advice) {
    const std::string of = model.empty() ? fmt::format("tensor '{}'", tensor) : fmt::format("model '{}', tensor '{}'", model, tensor);
    throw Error(ErrorCode::invalid_argument, fmt::format("parameter '{}' of {} {}", parameter.name, of, what),
                {.tensor = tensor, .key = parameter.name}, std::move(advice));
  };
  const std::optional<double> value = values.find(parameter.name);
  if (!value) {
    if (!parameter.optional_value) refuse("is required and has no value", "give it a value that applies to this tensor");
    return;
  }
  if (!std::isfinite(*value)) refuse(fmt::format("is {}, not a finite number", *value), "give a finite number");
  if (*value < parameter.min || *value > parameter.max) {
    const std::string range = parameter.max >= 1e300    ? fmt::format("at least {}", parameter.min)
                              : parameter.min <= -1e300 ? fmt::format("at most {}", parameter.max)
                                                        : fmt::format("from {} to {}", parameter.min, parameter.max);
    refuse(fmt::format("is {}, but must be {}", *value, range), "change it");
  }
  if (parameter.type == ParameterType::integer && *value != std::trunc(*value)) refuse(fmt::format("is {}, not a whole number", *value), "change it");
  if (parameter.type == ParameterType::boolean && *value != 0 && *value != 1) refuse(fmt::format("is {}, not true or false", *value), "change it");
}

class Copy final : public TensorMerge {
 public:
  explicit Copy(std::size_t input) : input_(input) {}

  [[nodiscard]] std::optional<std::size_t> copied_input() const override { return input_; }
  [[nodiscard]] bool reads_input(std::size_t i) const override { return i == input_; }
  void map(const Tile& tile, std::span<float> out) const override { std::copy_n(tile.inputs[input_], tile.count, out.begin()); }

 private:
  std::size_t input_;
};

}  // namespace

std::unique_ptr<TensorMerge> copy_of(std::size_t input) { return std::make_unique<Copy>(input); }

std::unique_ptr<TensorMerge> make_merge(const Method& method, const TensorContext& context) {
  for (const Parameter& parameter : method.parameters) {
    if (parameter.ignored) continue;  // the config's resolver leaves these unset
    if (parameter.scope == ParameterScope::global) {
      check_value(parameter, context.values, context.name, "");
      continue;
    }
    for (const Input& input : context.inputs) {
      // Where a base has a role of its own it takes no per-model parameters.
      if (input.is_base && method.base != BaseRule::unused) continue;
      check_value(parameter, input.values, context.name, input.model);
    }
  }
  return method.make(context);
}

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
