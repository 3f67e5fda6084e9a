#include "weft/methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "merge/method.h"
#include "weft/error.h"
#include "weft/quantize.h"

namespace weft {
namespace {

std::string range_of(double least, double most) {
  const bool low = least > -1e300;
  const bool high = most < 1e300;
  if (low && high) return fmt::format("{:g}..{:g}", least, most);
  if (low) return fmt::format(">= {:g}", least);
  if (high) return fmt::format("<= {:g}", most);
  return "";
}

std::string models_of(const merge::Method& m) {
  if (m.min_models == m.max_models) return fmt::format("{}", m.min_models);
  if (m.max_models >= 1 << 20) return fmt::format("{} or more", m.min_models);
  return fmt::format("{} to {}", m.min_models, m.max_models);
}

std::string base_of(merge::BaseRule rule) {
  switch (rule) {
    case merge::BaseRule::unused: return "none";
    case merge::BaseRule::optional: return "optional";
    case merge::BaseRule::required: return "required";
    case merge::BaseRule::one_of_two: return "one of the two";
  }
  return "";
}

MethodDescription describe(const merge::Method& m) {
  MethodDescription d;
  d.name = m.name;
  d.family = "merge";
  d.summary = m.summary;
  d.paper = m.paper;
  for (const merge::Parameter& p : m.parameters) {
    MethodParameter out;
    out.name = p.name;
    out.type = p.type == merge::ParameterType::boolean ? "boolean" : p.type == merge::ParameterType::integer ? "integer" : "number";
    out.scope = p.scope == merge::ParameterScope::global ? "global" : "model";
    out.default_value = p.default_value;
    out.required = !p.default_value && !p.optional_value;
    out.range = range_of(p.min, p.max);
    out.help = p.help;
    d.parameters.push_back(std::move(out));
  }
  d.models = models_of(m);
  d.base = base_of(m.base);
  d.passes = m.passes;
  d.determinism = m.determinism == merge::Determinism::A ? "A" : m.determinism == merge::Determinism::B ? "B" : "C";
  return d;
}

/// Methods that run the models: they are no row of the table, whose methods see tensors only.
MethodDescription regression(std::string name, std::string summary, std::string paper) {
  MethodDescription d;
  d.name = std::move(name);
  d.family = "merge";
  d.summary = std::move(summary);
  d.paper = std::move(paper);
  const auto add = [&d](const char* parameter, const char* type, std::optional<double> default_value, const char* range, const char* help) {
    d.parameters.push_back({parameter, type, "global", default_value, false, range, help});
  };
  add("off_diagonal", "number", 1, "0..1", "factor of second moments off the diagonal");
  add("samples", "integer", 256, ">= 0", "sequences of each model's text; 0: all");
  add("length", "integer", 256, ">= 1", "tokens of a sequence");
  add("exclude", "text", std::nullopt, "", "names of weights that are averaged instead (a regular expression)");
  d.models = "2 or more";
  d.base = "none";
  d.calibration = true;
  d.determinism = "C";
  return d;
}

/// A step of a method of quantizing the linear layers of blocks.
MethodDescription describe(const QuantizeStep& step) {
  MethodDescription d;
  d.name = step.name;
  d.family = "quantize";
  d.summary = step.summary;
  d.paper = step.source;
  for (const QuantizeStep::Parameter& p : step.parameters)
    d.parameters.push_back({p.name, "number", "global", p.value, false, range_of(p.least, p.most), p.help});
  d.models = "1";
  d.base = "none";
  d.calibration = step.needs_text;
  d.determinism = step.determinism;
  // bitsandbytes rounds by rules of its own.
  const bool rounds_alone = step.place == "model" || step.place == "channels" || step.name == "rtn" || step.name == "dac";
  for (const QuantizeFormat& format : quantize_formats())
    if (format.name == "weft" || (!step.own_only && format.name != "gguf" && (!format.name.starts_with("bnb") || rounds_alone)))
      d.formats.push_back(format.name);
  return d;
}

/// What weft eval rounds: activations, of which no format holds anything.
MethodDescription channel_groups() {
  MethodDescription d;
  d.name = "dgq";
  d.family = "eval";
  d.summary = "ranges of activations that stay, for groups of channels with ranges alike, and shares of attention as powers of two";
  d.paper = "github.com/ugonfor/DGQ";
  d.parameters.push_back({"activation-ranges", "integer", "global", 8, false, "1..256", "groups of each layer's channels; 1: one range for all"});
  d.parameters.push_back({"activations", "text", "global", std::nullopt, true, "int2..int16, fp8", "the numbers"});
  d.parameters.push_back({"attention-shares", "text", "global", std::nullopt, false, "log1..log6, int1..int6", "of shares of attention"});
  d.models = "1";
  d.base = "none";
  d.calibration = true;
  d.determinism = "B";
  d.formats = {"none"};
  return d;
}

}  // namespace

std::vector<MethodDescription> list_methods(std::string_view family) {
  if (!family.empty() && family != "merge" && family != "quantize" && family != "eval") {
    throw Error(ErrorCode::invalid_argument, fmt::format("there is no family of methods called '{}'", family), {}, "families: eval, merge, quantize");
  }
  std::vector<MethodDescription> all;
  for (const QuantizeStep& step : quantize_steps()) all.push_back(describe(step));
  for (const merge::Method& m : merge::methods()) all.push_back(describe(m));
  all.push_back(channel_groups());
  all.push_back(regression("regmean", "the linear layers that best reproduce each model's answers to its own inputs", "arXiv:2212.09849"));
  all.push_back(regression("regmean_plusplus", "the same, on inputs that came through the merged layers before", "arXiv:2508.03121"));
  std::erase_if(all, [&](const MethodDescription& method) { return !family.empty() && method.family != family; });
  for (MethodDescription& method : all)
    if (method.formats.empty()) method.formats = {"safetensors", "gguf"};
  std::sort(all.begin(), all.end(),
            [](const MethodDescription& a, const MethodDescription& b) { return a.family != b.family ? a.family < b.family : a.name < b.name; });
  return all;
}

}  // namespace weft
