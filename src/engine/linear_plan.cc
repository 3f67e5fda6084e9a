#include "engine/linear_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/tensor_view.h"
#include "edit/pattern.h"
#include "engine/linear_format.h"
#include "engine/linear_step.h"
#include "math/convert.h"
#include "model/architecture.h"
#include "model/text_part.h"
#include "weft/error.h"

namespace weft::engine {

using codec::CompressedForm;
using codec::Levels;
using codec::Search;
using codec::Zero;
using model::Role;

void refuse_linear(const char* key, const std::string& what, const std::string& advice) {
  throw Error(ErrorCode::invalid_argument, what, {.key = key}, advice);
}

std::vector<float> LinearTarget::read_values() const {
  std::vector<std::byte> bytes(checked_size(tensor->size_bytes, "matrix"));
  checkpoint->read_bytes(*tensor, 0, bytes);
  std::vector<float> values(checked_size(tensor->num_elements, "matrix"));
  math::decode(tensor->dtype, bytes, values);
  check_values(values);
  return values;
}

void LinearTarget::check_values(std::span<const float> values) const {
  if (const std::uint64_t bad = math::count_non_finite(values); bad > 0)
    throw Error(ErrorCode::corrupt, fmt::format("tensor '{}' holds {} values that are NaN or infinite", printable(name), bad),
                {.tensor = printable(name)}, "a model with such weights cannot be quantized; repair it first");
}

// ---- Options -------------------------------------------------------------------------------------------------------------------------------

LinearPlan::LinearPlan(const LinearQuantizeOptions& given) : options(given) {
  check_step_parameters(options);
  std::vector<const LinearStepInfo*> chain;
  for (const std::string& name : split_steps(options.method)) {
    const LinearStepInfo* step = find_linear_step(name);
    if (step == nullptr) {
      std::vector<std::string_view> names;
      for (const LinearStepInfo& known : linear_steps()) names.push_back(known.name);
      refuse_linear("method", fmt::format("there is no method '{}' for this format", printable(name)),
                    fmt::format("steps joined by +, one of which finds the codes: {}", fmt::join(names, ", ")));
    }
    if (std::find(chain.begin(), chain.end(), step) != chain.end())
      refuse_linear("method", fmt::format("'{}' stands twice in '{}'", name, printable(options.method)), "once is enough");
    if (!solver.empty() && step->place < StepPlace::codes)
      refuse_linear("method", fmt::format("'{}' changes weights before they are rounded, and stands behind '{}'", name, solver), "write it first");
    if (step->place == StepPlace::codes) {
      if (!solver.empty()) refuse_linear("method", fmt::format("'{}' and '{}' both choose the codes", solver, name), "keep one of them");
      solver = name;
    }
    if (step->place == StepPlace::channel)
      for (const LinearStepInfo* other : chain)
        if (other->place == StepPlace::channel)
          refuse_linear("method", fmt::format("{} and {} both choose scales of the same channels", other->name, name), "keep one of them");
    if (step->place == StepPlace::block)
      for (const LinearStepInfo* other : chain)
        if (other->place == StepPlace::block)
          refuse_linear("method", fmt::format("{} and {} both learn the codes of blocks", other->name, name), "keep one of them");
    chain.push_back(step);
  }
  refuse_conflicts(options);
  const bool names_solver = !solver.empty();
  if (!names_solver) {
    solver = "rtn";
    chain.push_back(find_linear_step("rtn"));
  }
  const auto has = [&](std::string_view name) {
    return std::any_of(chain.begin(), chain.end(), [&](const auto* step) { return step->name == name; });
  };

  const auto format_is = [&](std::string_view name) { return options.format == name; };
  format = format_is("gptq")                              ? LinearFormat::gptq
           : format_is("gptq_v2")                         ? LinearFormat::gptq_v2
           : format_is("awq")                             ? LinearFormat::awq
           : format_is("compressed-tensors")              ? LinearFormat::compressed
           : format_is("bnb-nf4") || format_is("bnb-fp4") ? LinearFormat::bnb4
           : format_is("bnb-int8")                        ? LinearFormat::bnb8
           : format_is("weft")                            ? LinearFormat::own
                               : throw Error(ErrorCode::invalid_argument, fmt::format("there is no format '{}'", printable(options.format)),
                                             {.key = "format"}, "gptq, gptq_v2, awq, compressed-tensors, bnb-nf4, bnb-fp4, bnb-int8, weft");
  // As AWQ is published; bitsandbytes' scales leave no room for it.
  if (!names_solver && has("awq") && !has("clip") && !is_bitsandbytes()) chain.push_back(find_linear_step("clip"));
  bits = options.bits;
  group = options.group;
  if (options.group < 0 || options.group > kMaxGroup)
    refuse_linear("group", fmt::format("a group of {} makes no sense", options.group),
                  "give the number of inputs that share a scale, or 0 for whole rows");
  if (options.numbers != "int" && format != LinearFormat::compressed && format != LinearFormat::own)
    refuse_linear("numbers", fmt::format("{} holds no {}", options.format, options.numbers),
                  "--format compressed-tensors holds floating-point codes");
  switch (format) {
    case LinearFormat::gptq:
    case LinearFormat::gptq_v2:
      if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
        refuse_linear("bits", fmt::format("the GPTQ layout holds 2, 3, 4 and 8 bits, not {}", bits), "--format compressed-tensors holds 2 to 8 bits");
      symmetric = options.symmetric.value_or(format == LinearFormat::gptq);
      if (format == LinearFormat::gptq && !symmetric)
        refuse_linear("format", "version 1 of the GPTQ layout has no place for a zero point of 0, which asymmetric codes need",
                      "write --format gptq_v2, or symmetric codes");
      break;
    case LinearFormat::awq:
      if (bits != 4) refuse_linear("bits", fmt::format("the AWQ layout holds 4 bits, not {}", bits), "use --format gptq_v2 or compressed-tensors");
      symmetric = options.symmetric.value_or(false);
      if (symmetric) refuse_linear("format", "the AWQ layout has zero points", "leave out --symmetric, or write --format gptq");
      if (options.order == "dynamic")
        refuse_linear("order", "the AWQ layout has groups of neighbouring inputs", "leave --order static, or write --format gptq");
      break;
    case LinearFormat::compressed: {
      if (options.order == "dynamic")
        refuse_linear("order", "compressed-tensors has groups of neighbouring inputs", "leave --order static, or write --format gptq");
      symmetric = options.symmetric.value_or(true);
      const std::string& numbers = options.numbers;
      const auto use = [&](CompressedForm its_form, Levels its_levels, std::int64_t its_group) {
        form = its_form;
        levels = its_levels;
        group = its_group;
        symmetric = true;
        bits = codec::info(levels).bits;
      };
      if (numbers == "int") {
        if (bits < 2 || bits > 8) refuse_linear("bits", fmt::format("{} bits are not held by compressed-tensors", bits), "give 2 to 8");
      } else if (numbers == "fp8") {
        use(CompressedForm::float_quantized, Levels::e4m3, 0);
      } else if (numbers == "fp8-block") {
        use(CompressedForm::float_quantized, Levels::e4m3, 128);
        blocks = true;
      } else if (numbers == "nvfp4") {
        use(CompressedForm::nvfp4, Levels::e2m1, 16);
      } else if (numbers == "mxfp4") {
        use(CompressedForm::mxfp4, Levels::e2m1, 32);
      } else if (numbers == "mxfp6") {
        use(CompressedForm::mxfp6, Levels::e2m3, 32);
      } else if (numbers == "mxfp8") {
        use(CompressedForm::mxfp8, Levels::e4m3, 32);
      } else {
        refuse_linear("numbers", fmt::format("there are no numbers called '{}'", printable(numbers)),
                      "int, fp8, fp8-block, nvfp4, mxfp4, mxfp6, mxfp8");
      }
      if (solver != "rtn" && (blocks || form == CompressedForm::nvfp4))
        refuse_linear("method", fmt::format("{} is rounded only", numbers), "use --method rtn, awq or smooth");
      break;
    }
    case LinearFormat::own: {
      if (options.order == "dynamic")
        refuse_linear("order", "weft's own form has groups of neighbouring inputs", "leave --order static, or write --format gptq");
      symmetric = options.symmetric.value_or(false);
      bool known = options.numbers == "int";
      for (const auto& [name, its_levels] :
           {std::pair("nf4", Levels::nf4), std::pair("e2m1", Levels::e2m1), std::pair("e2m3", Levels::e2m3), std::pair("e3m2", Levels::e3m2),
            std::pair("e3m0", Levels::e3m0), std::pair("e4m3", Levels::e4m3), std::pair("e5m2", Levels::e5m2)}) {
        if (options.numbers != name) continue;
        known = true;
        levels = its_levels;
        bits = codec::info(levels).bits;
        symmetric = true;
      }
      if (!known)
        refuse_linear("numbers", fmt::format("weft's own form has no numbers called '{}'", printable(options.numbers)),
                      "int, nf4, e2m1, e2m3, e3m2, e3m0, e4m3, e5m2");
      if (bits < 2 || bits > 8) refuse_linear("bits", fmt::format("{} bits make no sense", bits), "give 2 to 8");
      break;
    }
    case LinearFormat::bnb4:
      levels = format_is("bnb-nf4") ? Levels::nf4 : Levels::bnb_fp4;
      bits = 4;
      if (options.group == 128 || options.group == 0) group = 64;
      if (group < 32 || group > 4096 || (group & (group - 1)) != 0)
        refuse_linear("group", fmt::format("bitsandbytes has blocks of 32, 64, ... 4096, not {}", group), "leave --group out for 64");
      [[fallthrough]];
    case LinearFormat::bnb8:
      if (solver != "rtn")
        refuse_linear("method", fmt::format("bitsandbytes rounds: '{}' has no place there", solver),
                      "use --method rtn, awq or smooth, or another format");
      for (const LinearStepInfo* step : chain)
        if (step->place == StepPlace::weights)
          refuse_linear("method", fmt::format("bitsandbytes scales by the largest value, which '{}' would change", step->name),
                        "leave it out: awq+rtn");
      if (format == LinearFormat::bnb8) {
        bits = 8;
        group = 0;
      }
      break;
  }
  for (const LinearStepInfo* step : chain) {
    if (!step->adds || format == LinearFormat::own) continue;
    if (step->place == StepPlace::codes)
      refuse_linear("method", fmt::format("{} finds zero points that are no integers, which {} has no place for", step->name, options.format),
                    "write --format weft, or use --method rtn --search shrink");
    refuse_linear("method", fmt::format("{} has no place for what '{}' adds to the codes", options.format, step->name), "write --format weft");
  }

  solver_options.group = group;
  solver_options.damping = options.damping;
  if (!(options.damping >= 0) || !std::isfinite(options.damping))
    refuse_linear("damping", "the damping must be a number of at least 0", "0.01 is usual");
  if (options.order != "groups" && options.order != "static" && options.order != "dynamic" && options.order != "none")
    refuse_linear("order", fmt::format("there is no order '{}'", printable(options.order)), "groups, static, dynamic or none");
  solver_options.order = options.order == "none"     ? quantize::Order::as_stored
                         : options.order == "groups" ? quantize::Order::by_group
                                                     : quantize::Order::by_activation;
  solver_options.static_groups = options.order == "static";
  solver_options.format.levels = levels;
  solver_options.format.bits = bits;
  solver_options.format.zero = symmetric ? Zero::centred : Zero::affine;
  const std::string& search = options.search;
  if (search == "shrink")
    solver_options.format.search = Search::shrink;
  else if (search == "least-squares")
    solver_options.format.search = Search::least_squares;
  else if (!search.empty() && search != "none")
    refuse_linear("search", fmt::format("there is no search '{}'", printable(options.search)), "none, shrink or least-squares");
  solver_options.format.norm = 2;
  std::stable_sort(chain.begin(), chain.end(), [](const auto* a, const auto* b) { return a->place < b->place; });
  for (const LinearStepInfo* step : chain) {
    steps.push_back(step->make(*this));
    if (step->place == StepPlace::codes) {
      codes_step_ = steps.back().get();
      before_codes_step_ = solver_options;
    }
    steps.back()->configure(*this);
  }
  for (const LinearRule& rule : options.rules)
    if (!rule.method.empty()) add_alternative(rule);
}

void LinearPlan::add_alternative(const LinearRule& rule) {
  const LinearStepInfo* step = find_linear_step(rule.method);
  if (step == nullptr || step->place != StepPlace::codes) {
    std::vector<std::string_view> names;
    for (const LinearStepInfo& known : linear_steps())
      if (known.place == StepPlace::codes) names.push_back(known.name);
    refuse_linear("rule", fmt::format("'{}' is no step that finds the codes of layers", printable(rule.method)),
                  fmt::format("a rule may name one of {}", fmt::join(names, ", ")));
  }
  if (rule.method == solver || alternatives.contains(rule.method)) return;
  if (is_bitsandbytes() || ((blocks || form == CompressedForm::nvfp4) && rule.method != "rtn"))
    refuse_linear("rule", fmt::format("'{}' has no place in {}, which rounds", rule.method, options.format), "leave the method out of the rule");
  if (step->adds && format != LinearFormat::own)
    refuse_linear("rule", fmt::format("{} has no place for what '{}' adds to the codes", options.format, rule.method), "write --format weft");
  // It starts from where the method's own step did, and leaves that as it is.
  const quantize::SolverOptions own = std::exchange(solver_options, before_codes_step_);
  Alternative alternative{step->make(*this), {}};
  alternative.step->configure(*this);
  alternative.solver_options = std::exchange(solver_options, own);
  alternatives.emplace(rule.method, std::move(alternative));
}

std::vector<LinearStep*> LinearPlan::all_steps() const {
  std::vector<LinearStep*> all;
  for (const std::unique_ptr<LinearStep>& step : steps) all.push_back(step.get());
  for (const auto& [name, alternative] : alternatives) all.push_back(alternative.step.get());
  return all;
}

std::vector<LinearStep*> LinearPlan::steps_of(const LinearTarget& target) const {
  std::vector<LinearStep*> own;
  for (const std::unique_ptr<LinearStep>& step : steps)
    own.push_back(step.get() == codes_step_ && !target.solver.empty() ? alternatives.at(target.solver).step.get() : step.get());
  return own;
}

LinearPlan::~LinearPlan() = default;

// ---- Layers --------------------------------------------------------------------------------------------------------------------------------

namespace {

bool is_linear(Role role) {
  switch (role) {
    case Role::q:
    case Role::k:
    case Role::v:
    case Role::o:
    case Role::qkv:
    case Role::gate:
    case Role::up:
    case Role::down:
    case Role::gate_up:
    case Role::shared_gate:
    case Role::shared_up:
    case Role::shared_down:
      return true;
    default:
      return false;
  }
}

/// What tools may take for a linear layer, so that they must be told where it stays as it is: routers, heads, towers of other kinds.
bool is_layer(Role role) {
  switch (role) {
    case Role::embed:
    case Role::position:
    case Role::token_type:
    case Role::norm:
    case Role::q_norm:
    case Role::k_norm:
    case Role::buffer:
      return false;
    default:
      return true;
  }
}

/// What sees and hears beside the language model. Nothing is known of what its layers read, and readers of the formats leave it as it is.
class Towers {
 public:
  explicit Towers(const LazyModel& lazy) {
    const Json& config = *lazy.parts.config;
    const std::optional<model::TextPart> text = model::text_part(checkpoint_of(lazy), config);
    const model::Architecture* whole = model::find_architecture(config);
    is_decoder_ = whole != nullptr && whole->forward.kind == model::NetworkKind::decoder;
    if (!text) return;
    for (const TensorInfo& tensor : text->checkpoint->tensors()) text_.emplace(source_of({text->checkpoint, &tensor}), tensor.name);
    architecture_ = model::find_architecture_family(text->config);
  }
  /// What the language model calls a tensor of its own.
  [[nodiscard]] std::string running_name(const edit::Tensor& part) const {
    const auto found = text_.empty() ? text_.end() : text_.find(source_of(part.values));
    return found == text_.end() ? part.name : found->second;
  }
  /// Of the language model that is part of something larger; null where the model is nothing else.
  [[nodiscard]] const model::Architecture* architecture() const { return architecture_; }
  [[nodiscard]] bool contain(const edit::Tensor& part) const {
    if (!text_.empty()) return !text_.contains(source_of(part.values));
    if (!is_decoder_) return false;  // what sees may be all that there is
    return std::any_of(kWords.begin(), kWords.end(), [&](std::string_view word) { return part.name.find(word) != std::string::npos; });
  }

 private:
  /// Without the names that views give it.
  static const TensorInfo* source_of(TensorRef tensor) {
    while (true) {
      const TensorRef next = without_renames(tensor);
      if (next.tensor == tensor.tensor) return next.tensor;
      tensor = next;
    }
  }

  static constexpr std::array<std::string_view, 4> kWords = {"vision", "visual", "audio", "multi_modal_projector"};
  bool is_decoder_ = false;
  const model::Architecture* architecture_ = nullptr;
  std::map<const TensorInfo*, std::string> text_;  ///< of the language model, with its own names; empty where it is not known
};

}  // namespace

void LinearPlan::find_targets(const LazyModel& lazy) {
  model_name = lazy.name;
  const model::Architecture* architecture = model::find_architecture(*lazy.parts.config);
  if (architecture == nullptr) architecture = model::find_architecture_family(*lazy.parts.config);
  std::vector<edit::Pattern> patterns;
  for (const LinearRule& rule : options.rules) patterns.emplace_back(rule.pattern, "rule");
  std::vector<bool> used(patterns.size());
  std::vector<std::string> without_place;
  const Towers towers(lazy);
  const auto refuse_quantized = [&](std::string_view which) {
    if (!options.allow_requantize)
      refuse_linear("model", fmt::format("the model's weights are quantized already ({})", which),
                    "name the original model, or give --allow-requantize to round what is left of it again");
  };
  if (!lazy.quantized_as.empty()) refuse_quantized(lazy.quantized_as);
  for (const edit::Tensor& part : lazy.parts.tensors) {
    const TensorInfo& info = *part.values.tensor;
    num_parameters += info.num_elements;
    if (towers.contain(part)) {
      if (info.shape.size() == 2 && part.name.ends_with(".weight") && is_layer(model::role_of(architecture, part.name))) {
        plain.push_back(part.name.substr(0, part.name.size() - 7));
        tower_layers.push_back(part.name);
      }
      for (std::size_t i = 0; i < patterns.size(); ++i)
        if (options.rules[i].keep && patterns[i].matches(part.name)) used[i] = true;
      continue;
    }
    const std::string running = towers.running_name(part);
    if (running != part.name) running_names[part.name] = running;
    if (info.shape.size() == 3 && is_decodable_float(info.dtype) && part.name.find("experts") != std::string::npos) stacks.push_back(part.name);
    if (!info.stored_as.empty()) refuse_quantized(fmt::format("'{}' is {}", printable(part.name), info.stored_as));
    if (info.shape.size() != 2 || !part.name.ends_with(".weight") || !is_decodable_float(info.dtype) ||
        !is_linear(model::role_of(architecture, running))) {
      if (info.shape.size() == 2 && part.name.ends_with(".weight") && is_layer(model::role_of(architecture, running)))
        plain.push_back(part.name.substr(0, part.name.size() - 7));
      continue;
    }
    LinearTarget target;
    target.name = running;
    target.module = running.substr(0, running.size() - 7);
    target.file_module = part.name.substr(0, part.name.size() - 7);
    target.dtype = info.dtype == DType::f16 || info.dtype == DType::bf16 ? info.dtype : DType::f32;
    target.rows = info.shape[0];
    target.columns = info.shape[1];
    target.bits = bits;
    target.group = group;
    target.tensor = &info;
    target.checkpoint = part.values.checkpoint;
    bool keep = false, decided = false;
    for (std::size_t i = 0; i < patterns.size(); ++i) {
      if (!patterns[i].matches(part.name)) continue;
      used[i] = true;
      if (decided) continue;
      decided = true;
      const LinearRule& rule = options.rules[i];
      keep = rule.keep;
      if (!rule.method.empty() && rule.method != solver) target.solver = rule.method;
      if (rule.bits || rule.group) {
        if (format == LinearFormat::awq || is_bitsandbytes() || !integers())
          refuse_linear("rule", fmt::format("{} has one width and group for all layers", options.format),
                        "--format gptq and compressed-tensors take a rule for each");
        target.bits = rule.bits.value_or(target.bits);
        target.bits_given = rule.bits.has_value();
        target.group = rule.group.value_or(target.group);
        if (target.bits < 2 || target.bits > 8 || target.group < 0 || target.group > kMaxGroup)
          refuse_linear("rule", fmt::format("the rule '{}' asks for {} bits in groups of {}", rule.pattern, target.bits, target.group),
                        "2 to 8 bits, in groups of at most the inputs of a layer, or 0 for whole rows");
      }
    }
    if (keep) {
      kept.push_back(target.file_module);
      continue;
    }
    const auto match = architecture != nullptr ? model::match_name(*architecture, running) : std::nullopt;
    if (match) target.block = match->layer;
    if (match && match->tensor != nullptr && match->tensor->transposed)
      throw Error(ErrorCode::unsupported,
                  fmt::format("the layers of this architecture are stored transposed ('{}'), which these formats do not hold", printable(part.name)),
                  {.file = lazy.name}, "write a GGUF file: --format gguf:Q4_K_M");
    if (std::string why = no_place_for(target, *this); !why.empty()) {
      without_place.push_back(fmt::format("'{}' [{}, {}]: {}", printable(part.name), target.rows, target.columns, why));
      continue;
    }
    targets.push_back(std::move(target));
  }
  for (std::size_t i = 0; i < patterns.size(); ++i)
    if (!used[i])
      refuse_linear("rule", fmt::format("the rule '{}' matches no linear layer", printable(options.rules[i].pattern)),
                    "run 'weft info' for the names");
  if (!without_place.empty())
    throw Error(ErrorCode::unsupported,
                fmt::format("{} has no place for {} of the layers: {}", options.format, without_place.size(), without_place.front()),
                {.file = lazy.name}, "choose another --group or --format, or leave them out with a rule that keeps them");
  if (targets.empty())
    refuse_linear("model", "there is no linear layer to quantize",
                  kept.empty() ? "name a model whose layers weft knows" : "the rules keep all of them");
  index_targets();
}

void LinearPlan::index_targets() {
  by_name.clear();
  for (const LinearTarget& target : targets) {
    by_name.emplace(target.name, &target);
    by_name.emplace(target.file_name(), &target);
  }
}

std::string_view LinearPlan::running_name(std::string_view file_name) const {
  const auto found = running_names.find(file_name);
  return found == running_names.end() ? file_name : found->second;
}

const LinearTarget* LinearPlan::find(std::string_view weight) const {
  const auto found = by_name.find(weight);
  return found == by_name.end() ? nullptr : found->second;
}

quantize::SolverOptions LinearPlan::options_for(const LinearTarget& target) const {
  quantize::SolverOptions own = target.solver.empty() ? solver_options : alternatives.at(target.solver).solver_options;
  own.group = target.group;
  own.format.bits = target.bits;
  const bool powers = form == CompressedForm::mxfp4 || form == CompressedForm::mxfp6 || form == CompressedForm::mxfp8;
  own.format.scale_type = format == LinearFormat::compressed ? (powers ? DType::f8_e8m0 : target.dtype) : is_bitsandbytes() ? DType::f32 : DType::f16;
  return own;
}

void LinearPlan::leave(const std::set<std::string>& modules) {
  std::erase_if(targets, [&](const LinearTarget& target) { return modules.contains(target.file_module); });
  index_targets();
  plain.insert(plain.end(), modules.begin(), modules.end());
}

}  // namespace weft::engine
