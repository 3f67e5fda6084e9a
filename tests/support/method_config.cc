#include "support/method_config.h"

#include <algorithm>

namespace weft::testing {

MethodConfig plain_config(const MethodDescription& method, const std::vector<std::string>& models) {
  const bool one_of_two = method.base == "one of the two";
  const bool with_base = method.base == "required" || one_of_two;
  const bool any_number = method.models.find("or more") != std::string::npos;
  const std::size_t first = with_base && !one_of_two ? 1 : 0;
  const auto least = static_cast<std::size_t>(method.models[0] - '0');
  const std::size_t count = std::max(least, any_number ? 3 - first : 1);

  std::string global;
  std::string models_list;
  for (std::size_t i = 0; i < count; ++i) {
    std::string per_model;
    for (const MethodParameter& p : method.parameters) {
      std::string value;
      if (p.name == "density" || p.name == "select_topk") value = "0.5";
      // Halves, quarters, ...: different for each model, and their sum is exactly one.
      else if (p.name == "weight") value = std::to_string(1.0 / static_cast<double>(1U << std::min(i + 1, count - 1)));
      else if (p.required && p.type == "integer") value = "1";
      else if (p.required) value = method.name == "nearswap" ? "0.001" : "0.4";
      if (value.empty()) continue;
      std::string& list = p.scope == "model" ? per_model : global;
      if (p.scope != "model" && i > 0) continue;
      list += (list.empty() ? "" : ", ") + p.name + ": " + value;
    }
    models_list += "  - {model: " + models[first + i] + ", parameters: {" + per_model + "}}\n";
  }
  MethodConfig config;
  config.text = "merge_method: " + method.name + "\n";
  if (with_base) config.text += "base_model: " + models[0] + "\n";
  config.text += "models:\n" + models_list + "parameters: {" + global + "}\n";
  config.num_inputs = count + first;
  return config;
}

}  // namespace weft::testing
