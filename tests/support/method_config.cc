#include "support/method_config.h"

#include <algorithm>

namespace weft::testing {

MethodConfig plain_config(const MethodDescription& method, const std::vector<std::string>& models) {
  const bool one_of_two = method.base == "one of the two";
  const bool with_base = method.base == "required" || one_of_two;
  const bool any_number = method.models.find("or more") != std::string::npos;
  const std::size_t first = with_base && !one_of_two ? 1 : 0;
  const auto least = static_cast<std::size_t>(method.models[0] - '0');
  const std::size_t count = std::max(least, any_number ? models.size() - first : 1);

  std::string per_model;
  std::string global;
  for (const MethodParameter& p : method.parameters) {
    std::string value;
    if (p.name == "density" || p.name == "select_topk") value = "0.5";
    else if (p.required) value = method.name == "nearswap" ? "0.001" : "0.4";
    if (value.empty()) continue;
    std::string& list = p.scope == "model" ? per_model : global;
    list += (list.empty() ? "" : ", ") + p.name + ": " + value;
  }
  MethodConfig config;
  config.text = "merge_method: " + method.name + "\n";
  if (with_base) config.text += "base_model: " + models[0] + "\n";
  config.text += "models:\n";
  for (std::size_t i = 0; i < count; ++i) config.text += "  - {model: " + models[(first + i) % models.size()] + ", parameters: {" + per_model + "}}\n";
  config.text += "parameters: {" + global + "}\n";
  config.num_inputs = count + first;
  return config;
}

}  // namespace weft::testing
