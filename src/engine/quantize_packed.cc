#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "base/text.h"
#include "engine/linear_step_table.h"
#include "engine/quantize_format.h"
#include "engine/quantize_keys.h"
#include "engine/quantize_linear.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

/// "keep", or BITS, GROUP and what finds the codes, with slashes between them: "4", "4/64", "/64", "4/64/rtn", "rtn", "8/rtn".
LinearRule rule_of(const std::string& pattern, const std::string& what) {
  LinearRule rule;
  rule.pattern = pattern;
  if (what == "keep") {
    rule.keep = true;
    return rule;
  }
  const auto number = [&](std::string_view digits) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size() || value < 0)
      throw Error(ErrorCode::invalid_argument, fmt::format("'{}={}' is no rule", printable(pattern), printable(what)), {.key = "rule"},
                  "write PATTERN=keep, or PATTERN=BITS/GROUP/METHOD, of which any may be left out");
    return value;
  };
  std::string_view rest = what;
  // The method is what is no number, and last.
  if (const std::string_view last = rest.substr(rest.rfind('/') + 1);
      !last.empty() && last.find_first_not_of("0123456789") != std::string_view::npos) {
    rule.method = last;
    rest = last.size() == rest.size() ? std::string_view() : rest.substr(0, rest.size() - last.size() - 1);
    if (rest.empty()) return rule;
  }
  const std::size_t slash = rest.find('/');
  if (slash != 0) rule.bits = static_cast<int>(std::min<std::int64_t>(number(rest.substr(0, slash)), 100));
  if (slash != std::string_view::npos && (slash + 1 != rest.size() || rule.method.empty())) rule.group = number(rest.substr(slash + 1));
  return rule;
}

}  // namespace

QuantizeReport quantize_packed(const char* format, const QuantizeRequest& request) {
  const QuantizeOptions& from = request.options;
  if (from.pure || from.better || !from.imatrix.empty() || !from.output_type.empty() || !from.token_embedding_type.empty() || from.leave_output ||
      !from.include_weights.empty() || !from.exclude_weights.empty() || !from.prune_layers.empty() || !from.override_kv.empty() || from.keep_split)
    throw Error(ErrorCode::invalid_argument, fmt::format("'{}' has none of the options of GGUF files", format), {.key = "format"},
                "leave them out, or write --format gguf:TYPE");
  LinearQuantizeOptions options;
  static_cast<JobOptions&>(options) = from;
  const LinearQuantization& linear = from.linear;
  options.method = from.method.empty() ? "rtn" : from.method;
  options.format = format;
  options.numbers = linear.numbers;
  options.bits = linear.bits;
  options.group = linear.group;
  options.symmetric = linear.symmetric;
  options.search = linear.search;
  options.damping = linear.damping;
  options.order = linear.order;
  options.drift = linear.drift;
  options.smoothing = linear.smoothing;
  options.rank = linear.rank;
  options.exact = linear.exact;
  options.parameters = linear.parameters;
  options.nested = linear.nested;
  options.budget_bits = linear.budget_bits;
  options.budget_bytes = linear.budget_bytes;
  options.budget_by = linear.budget_by;
  options.widths = linear.widths;
  options.allow_requantize = from.allow_requantize;
  if (!linear.calibration.files.empty()) options.calibration = linear.calibration;
  for (const auto& [pattern, what] : from.rules) options.rules.push_back(rule_of(pattern, what));
  for (const auto& [pattern, what] : read_quantize_rules(from.rules_text)) options.rules.push_back(rule_of(pattern, what));
  const auto public_layer = [](const LinearQuantizeOptions::Layer& layer) {
    return QuantizedLayer{layer.name, layer.method, layer.bits, layer.relative_loss};
  };
  if (from.on_layer) options.on_layer = [&](const LinearQuantizeOptions::Layer& layer) { from.on_layer(public_layer(layer)); };
  options.ingredients = request.ingredients;
  LinearQuantizeReport made = request.made != nullptr ? quantize_linear(std::move(*request.made), request.output, options)
                                                      : quantize_linear(request.model, request.output, options);
  QuantizeReport report;
  static_cast<JobReport&>(report) = std::move(static_cast<JobReport&>(made));
  for (const LinearQuantizeOptions::Layer& layer : made.layers) report.layers.push_back(public_layer(layer));
  report.bits_per_weight = made.model_bits;
  report.linear_bits_per_weight = made.linear_bits;
  return report;
}

}  // namespace weft::engine

namespace weft {

std::vector<QuantizeStep> quantize_steps() {
  static constexpr std::array<const char*, 6> kPlaces = {"model", "channels", "weights", "codes", "repair", "block"};
  std::vector<QuantizeStep> steps;
  for (const engine::LinearStepInfo& info : engine::linear_steps()) {
    QuantizeStep step;
    step.name = info.name;
    step.place = kPlaces.at(static_cast<std::size_t>(info.place));
    step.source = info.source;
    step.summary = info.summary;
    step.needs_text = info.needs_activations;
    step.own_only = info.adds;
    step.determinism = std::string(1, info.determinism);
    for (const engine::StepParameter& parameter : info.parameters)
      step.parameters.push_back({std::string(parameter.name), parameter.value, parameter.least, parameter.most, std::string(parameter.help)});
    steps.push_back(std::move(step));
  }
  return steps;
}

}  // namespace weft
