#include "engine/linear_step.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "base/text.h"
#include "math/convert.h"
#include "weft/error.h"

namespace weft::engine {

const std::vector<LinearStepInfo>& linear_steps() {
  using enum StepPlace;
  const auto learning = [](double rate) {
    return std::vector<StepParameter>{{"rate", rate, 0, 1, "of learning, at first"},
                                      {"epochs", 10, 0, 1000, "times that it goes through the text"},
                                      {"tokens", 512, 1, 1e9, "of a step, about"},
                                      {"gains", 0, 0, 1, "rate of learning norms' gains, too"}};
  };
  std::vector<StepParameter> lrq = learning(1e-2);
  lrq.push_back({"rank", 32, 1, 1e6, "of the thin matrices"});
  static const std::vector<LinearStepInfo> kSteps = {
      {"rotate",
       model,
       false,
       false,
       "the residual stream and values of attention turned by Hadamard matrices (--seed)",
       "QuaRot",
       {},
       make_rotate_step},
      {"keys",
       model,
       true,
       false,
       "loud channels of keys made quieter, and of queries louder, for engines that hold keys in few bits",
       "FireQ",
       {{"exponent", 0.5, 0, 1, "of the largest key of a rotary pair"}},
       make_keys_step},
      {"awq", channel, true, false, "scales of channels by how loudly they are read, so that loud ones lose less", "AWQ", {}, make_awq_step},
      {"smooth", channel, true, false, "scales of channels that even out inputs and weights", "SmoothQuant", {}, make_smooth_step},
      {"smoothplus",
       channel,
       true,
       false,
       "smooth by the one exponent with which the whole model loses least",
       "SmoothQuant+",
       {{"step", 0.05, 0.01, 1, "from one exponent to the next, 0 to 1"}, {"tokens", 8192, 2, 1e9, "of the calibration text that each is tried on"}},
       make_smoothplus_step},
      {"dsq",
       channel,
       true,
       false,
       "a second scale for each input of down, which up takes over",
       "D2Quant",
       {{"rounds", 6, 1, 100, "in which codes and scales are found in turn"}},
       make_dsq_step},
      {"rsq",
       weights,
       true,
       false,
       "tokens count by the attention that they receive",
       "RSQ",
       {{"least", 0.005, 1e-6, 1, "what the token that receives least counts, against 1 for the one that receives most"},
        {"first", 0, 0, 1, "1: the first eighth of each sequence counts instead, and nothing else"},
        {"copies", 1, 1, 64, "of each sequence, each beginning further on"}},
       make_rsq_step},
      {"adadim", weights, true, true, "groups along inputs or outputs, whichever changes less of what comes out", "AdaDim", {}, make_adadim_step},
      {"clip", weights, true, false, "the range of each group narrowed to where rounding loses least", "AWQ", {}, make_clip_step},
      {"halfway",
       weights,
       false,
       true,
       "a zero point between two codes: as many levels above 0 as below, for 2 and 3 bits",
       "",
       {},
       make_halfway_step,
       'A'},
      {"exact", weights, false, true, "a share of the weights kept as they are, beside the codes", "", {}, make_exact_step, 'A'},
      {"gwq",
       weights,
       true,
       true,
       "the weights of which the loss's gradient is largest kept as they are, beside the codes",
       "GWQ",
       {{"share", 0.01, 0, 1, "of the weights of each layer"}, {"sequences", 8, 0, 1e9, "of the text; 0: all"}},
       make_gwq_step},
      {"pqi",
       weights,
       true,
       true,
       "weights kept as they are by what the loss changes along the way to the codes: the largest where much is lost, then those that are missed "
       "most",
       "PQI",
       {{"share", 0.0045, 0, 1, "of the weights, that the codes leave out"},
        {"restored", 0.0005, 0, 1, "of the weights, put back afterwards"},
        {"exponent", 0.5, 0, 4, "how much more of layers that lose more is left out; 0: of all the same share"},
        {"points", 8, 1, 1000, "on the way, at which gradients are taken"},
        {"sequences", 8, 0, 1e9, "of the text; 0: all"}},
       make_pqi_step},
      {"super",
       weights,
       false,
       true,
       "single weights that carry the model kept as they are",
       "Super Weight",
       {{"clip", -1, -1, 1000,
         "deviations above their mean size at which the others are clipped, before they are rounded; 0: the limit of 2 to 20, or none, by what the "
         "model loses on the text, or without one each layer; below 0: none"}},
       make_super_step},
      {"fireq",
       weights,
       false,
       true,
       "scales of groups in 8-bit floating point, times one of the layer, and their products with the codes rounded to that, too",
       "FireQ",
       {},
       make_fireq_step,
       'A'},
      {"shifts",
       weights,
       false,
       false,
       "scales with which codes of few bits become a larger type's numbers by adding to exponents",
       "ZeroQuant-FP",
       {{"rule", 2, 1, 2, "1: powers of two; 2: a row's largest scale over powers of two"}},
       make_shifts_step,
       'A'},
      {"rtn", codes, false, false, "rounding to nearest", "", {}, make_rtn_step, 'A'},
      {"hqq", codes, false, true, "zero points by half-quadratic splitting, without a text", "HQQ", {}, make_hqq_step, 'A'},
      {"gptq",
       codes,
       true,
       false,
       "each column's error made good by those that follow",
       "GPTQ",
       {{"leftover", 0, 0, 1, "1: scales are searched by what is left of an error once later columns have made good what they can"}},
       make_gptq_step},
      {"gptaq", codes, true, false, "gptq that also makes good how far the inputs have drifted", "GPTAQ", {}, make_gptaq_step},
      {"decoupleq",
       codes,
       true,
       false,
       "codes and scales by turns, each the best for the other",
       "decoupleQ",
       {{"rounds", 4, 1, 100, "of scales and codes; 1: codes alone"},
        {"sweeps", 5, 0, 1000, "over single codes in a round, while any changes"},
        {"drift", 0.5, 0, 1, "share of the inputs' drift that is made good"}},
       make_decoupleq_step},
      {"refine",
       repair,
       true,
       false,
       "codes and scales moved one at a time to where the outputs lose less",
       "",
       {{"rounds", 4, 1, 1000, "over all codes and scales, at most"}, {"damping", 0.05, 0, 1000, "the more, the nearer to plain rounding"}},
       make_refine_step},
      {"lorc", repair, false, true, "the error's largest part kept as a product of two thin matrices", "ZeroQuant-FP", {}, make_lorc_step},
      {"dac",
       repair,
       true,
       false,
       "biases that put back what quantized layers shift in the means that norms give",
       "D2Quant",
       {{"prior", 256, 0, 1e9, "tokens' worth of no shift that the shift is drawn towards"}},
       make_dac_step},
      {"adaquant",
       repair,
       true,
       false,
       "what is added to each weight, and scales, learned from the layer's own outputs",
       "AdaQuant",
       {{"rate", 1e-3, 0, 1, "of learning, at first, in scales"}, {"steps", 500, 0, 1e6, "of learning"}},
       make_adaquant_step},
      {"omniquant", block, true, false, "the ends of each group's range learned, so that the block gives what it gave", "OmniQuant", learning(5e-2),
       make_omniquant_step},
      {"flexround", block, true, false, "a divisor for each weight learned, so that the block gives what it gave", "FlexRound", learning(1e-2),
       make_flexround_step},
      {"lrq", block, true, false, "divisors learned as a product of two thin matrices", "LRQ", lrq, make_lrq_step},
      {"tune", block, true, false, "scales learned while the codes stay", "decoupleQ", learning(1e-2), make_tune_step},
  };
  return kSteps;
}

const LinearStepInfo* find_linear_step(std::string_view name) {
  for (const LinearStepInfo& step : linear_steps())
    if (step.name == name) return &step;
  return nullptr;
}

std::vector<std::string> split_steps(std::string_view method) {
  std::vector<std::string> steps;
  while (true) {
    const std::size_t plus = method.find('+');
    steps.emplace_back(method.substr(0, plus));
    if (plus == std::string_view::npos) return steps;
    method.remove_prefix(plus + 1);
  }
}

double step_parameter(const LinearQuantizeOptions& options, std::string_view step, std::string_view name) {
  if (const auto given = options.parameters.find(fmt::format("{}.{}", step, name)); given != options.parameters.end()) return given->second;
  if (const LinearStepInfo* info = find_linear_step(step))
    for (const StepParameter& parameter : info->parameters)
      if (parameter.name == name) return parameter.value;
  throw Error(ErrorCode::internal, fmt::format("the step '{}' has no parameter '{}'", step, name));
}

void check_step_parameters(const LinearQuantizeOptions& options) {
  std::vector<std::string> steps = split_steps(options.method);
  for (const LinearRule& rule : options.rules)
    if (!rule.method.empty()) steps.push_back(rule.method);
  for (const auto& [key, value] : options.parameters) {
    const std::string step = key.substr(0, key.find('.'));
    const LinearStepInfo* info = find_linear_step(step);
    if (info == nullptr || std::find(steps.begin(), steps.end(), step) == steps.end())
      refuse_linear("set", fmt::format("'{}' is of a step that '{}' does not have", printable(key), printable(options.method)),
                    fmt::format("its steps are {}", fmt::join(steps, ", ")));
    std::vector<std::string> names;
    const StepParameter* found = nullptr;
    for (const StepParameter& parameter : info->parameters) {
      names.push_back(fmt::format("{}.{}", step, parameter.name));
      if (names.back() == key) found = &parameter;
    }
    if (found == nullptr)
      refuse_linear("set", fmt::format("there is no parameter '{}'", printable(key)),
                    names.empty() ? fmt::format("'{}' has none", step) : fmt::format("'{}' has {}", step, fmt::join(names, ", ")));
    if (!(value >= found->least && value <= found->most))
      refuse_linear("set", fmt::format("{} makes no sense as {}", value, key), fmt::format("give {:g} to {:g}", found->least, found->most));
  }
}

bool needs_calibration(std::string_view method) {
  const std::vector<std::string> steps = split_steps(method);
  return std::any_of(steps.begin(), steps.end(), [](const std::string& name) {
    const LinearStepInfo* step = find_linear_step(name);
    return step == nullptr || step->needs_activations;
  });
}

bool wants_activations(const LinearQuantizeOptions& options) {
  const bool rules_do = std::any_of(options.rules.begin(), options.rules.end(),
                                    [](const LinearRule& rule) { return !rule.method.empty() && needs_calibration(rule.method); });
  return rules_do || needs_calibration(options.method) || options.tokens != nullptr || options.calibration;
}

// ---- A layer -------------------------------------------------------------------------------------------------------------------------------

std::vector<float> LinearLayer::importance() const {
  std::vector<float> diagonal;
  if (statistics == nullptr) return diagonal;
  const auto width = static_cast<std::size_t>(target.columns);
  for (std::size_t j = 0; j < width; ++j) diagonal.push_back(static_cast<float>(statistics->gram[j * width + j]));
  return diagonal;
}

codec::QuantizedLinear& LinearLayer::need_codes() {
  if (!codes) codes = quantize::round_to_nearest(values, target.rows, target.columns, solver);
  return *codes;
}

void LinearLayer::take_out(std::vector<std::int64_t> at) {
  std::vector<float> own;
  for (const std::int64_t where : at) own.push_back(values[static_cast<std::size_t>(where)]);
  for (const std::int64_t where : at) values[static_cast<std::size_t>(where)] = 0;
  math::round_through(target.dtype, own);
  std::vector<std::pair<std::int64_t, float>> all;
  for (std::size_t i = 0; i < taken.size(); ++i) all.emplace_back(taken_at[i], taken[i]);
  for (std::size_t i = 0; i < at.size(); ++i)
    if (!std::binary_search(taken_at.begin(), taken_at.end(), at[i])) all.emplace_back(at[i], own[i]);
  std::sort(all.begin(), all.end());
  taken_at.clear();
  taken.clear();
  for (const auto& [where, value] : all) {
    taken_at.push_back(where);
    taken.push_back(value);
  }
}

void LinearLayer::put_back() {
  codec::QuantizedLinear& linear = need_codes();
  linear.added_at = taken_at;
  linear.added = taken;
}

void LinearLayer::hold() {
  if (held_at.empty()) return;
  codec::QuantizedLinear& linear = need_codes();
  std::map<std::int64_t, float> all;
  for (std::size_t i = 0; i < linear.added.size(); ++i) all[linear.added_at[i]] = linear.added[i];
  for (const std::int64_t at : held_at) {
    const std::size_t scale = linear.scale_index(at / linear.columns, at % linear.columns);
    const codec::SliceScale own{linear.scales[scale], linear.zeros.empty() ? 0.0F : linear.zeros[scale]};
    std::uint8_t& code = linear.codes[static_cast<std::size_t>(at)];
    code = codec::encode(0, own, solver.format);
    if (codec::decode(code, own, solver.format) != 0)
      throw Error(ErrorCode::internal, "there is no code for 0, beside which a weight could be held", {.tensor = printable(target.name)});
    all[at] = taken[static_cast<std::size_t>(std::lower_bound(taken_at.begin(), taken_at.end(), at) - taken_at.begin())];
  }
  linear.added_at.clear();
  linear.added.clear();
  for (const auto& [at, value] : all) {
    linear.added_at.push_back(at);
    linear.added.push_back(value);
  }
}

void LinearLayer::warn(std::string_view key, std::string text) {
  if (tries || block == nullptr) return;
  block->note(key.empty() ? fmt::format("warning {}", target.name) : fmt::format("warning {} {}", key, target.name), std::move(text));
}

void LinearLayer::for_each_slab(const std::function<void(std::int64_t first, std::int64_t count)>& work) const {
  std::int64_t slab = 64;
  // Rows that share scales stay together.
  if (solver.by_output) slab = solver.group <= 0 ? target.rows : (slab + solver.group - 1) / solver.group * solver.group;
  std::vector<std::pair<std::int64_t, std::int64_t>> slabs;
  for (std::int64_t first = 0; first < target.rows; first += slab) slabs.emplace_back(first, std::min(slab, target.rows - first));
  if (block == nullptr) {
    for (const auto& [first, count] : slabs) work(first, count);
    return;
  }
  block->network().team().for_each(slabs.size(), [&](std::size_t i, int) { work(slabs[i].first, slabs[i].second); });
}

}  // namespace weft::engine
