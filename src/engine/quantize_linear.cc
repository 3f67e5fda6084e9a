#include "engine/quantize_linear.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <set>

#include "base/budget.h"
#include "base/check.h"
#include "base/file.h"
#include "base/text.h"
#include "base/threads.h"
#include "checkpoint/output.h"
#include "checkpoint/quantized_view.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_view.h"
#include "codec/packed_linear.h"
#include "edit/pattern.h"
#include "engine/block_pass.h"
#include "engine/calibration_text.h"
#include "engine/lazy_model.h"
#include "engine/output_job.h"
#include "math/convert.h"
#include "model/architecture.h"
#include "quantize/allocate.h"
#include "quantize/block_importance.h"
#include "quantize/low_rank.h"
#include "quantize/scale_fold.h"
#include "quantize/solver.h"
#include "weft/error.h"
#include "weft/version.h"

namespace fs = std::filesystem;

namespace weft::engine {
namespace {

using codec::CompressedForm;
using codec::Levels;
using codec::QuantizedLinear;
using codec::Search;
using codec::StoredTensor;
using codec::Zero;
using model::Role;
using Layer = LinearQuantizeOptions::Layer;

[[noreturn]] void refuse(const char* key, const std::string& what, const std::string& advice) {
  throw Error(ErrorCode::invalid_argument, what, {.key = key}, advice);
}

/// Above any row's length, and far from where sums of sizes would overflow.
constexpr std::int64_t kMaxGroup = std::int64_t{1} << 30;

enum class Format : std::uint8_t { gptq, gptq_v2, awq, compressed, bnb4, bnb8, own };

/// The options, understood.
struct Plan {
  std::vector<std::string> steps;
  std::string solver;  ///< rtn, hqq, gptq, gptaq
  bool awq = false, smooth = false, clip = false, exact = false, lorc = false;
  Format format = Format::gptq;
  CompressedForm form = CompressedForm::pack_quantized;
  Levels levels = Levels::integer;
  bool symmetric = true;
  bool blocks = false;  ///< scales of 128 by 128
  int bits = 4;
  std::int64_t group = 128;
  quantize::SolverOptions solver_options;
  [[nodiscard]] bool integers() const { return levels == Levels::integer; }
};

std::vector<std::string> split_steps(std::string_view method) {
  std::vector<std::string> steps;
  while (true) {
    const std::size_t plus = method.find('+');
    steps.emplace_back(method.substr(0, plus));
    if (plus == std::string_view::npos) return steps;
    method.remove_prefix(plus + 1);
  }
}

Plan plan_of(const LinearQuantizeOptions& options) {
  Plan plan;
  plan.steps = split_steps(options.method);
  for (const std::string& step : plan.steps) {
    if (step == "awq" || step == "smooth" || step == "clip" || step == "exact") {
      if (!plan.solver.empty())
        refuse("method", fmt::format("'{}' changes weights before they are rounded, and stands behind '{}'", step, plan.solver), "write it first");
      (step == "awq" ? plan.awq : step == "smooth" ? plan.smooth : step == "clip" ? plan.clip : plan.exact) = true;
    } else if (step == "rtn" || step == "hqq" || step == "gptq" || step == "gptaq") {
      if (!plan.solver.empty()) refuse("method", fmt::format("'{}' and '{}' both choose the codes", plan.solver, step), "keep one of them");
      plan.solver = step;
    } else if (step == "lorc") {
      plan.lorc = true;
    } else {
      refuse("method", fmt::format("there is no method '{}' for this format", printable(step)),
             "rtn, hqq, gptq, gptaq; before one of them awq, smooth, clip, exact, behind it lorc, joined by +");
    }
  }
  if (plan.awq && plan.smooth) refuse("method", "awq and smooth both choose scales of the same channels", "keep one of them");
  const bool names_solver = !plan.solver.empty();
  if (!names_solver) plan.solver = "rtn";

  const auto format_is = [&](std::string_view name) { return options.format == name; };
  plan.format = format_is("gptq")                              ? Format::gptq
                : format_is("gptq_v2")                         ? Format::gptq_v2
                : format_is("awq")                             ? Format::awq
                : format_is("compressed-tensors")              ? Format::compressed
                : format_is("bnb-nf4") || format_is("bnb-fp4") ? Format::bnb4
                : format_is("bnb-int8")                        ? Format::bnb8
                : format_is("weft")                            ? Format::own
                                    : throw Error(ErrorCode::invalid_argument, fmt::format("there is no format '{}'", printable(options.format)),
                                                  {.key = "format"}, "gptq, gptq_v2, awq, compressed-tensors, bnb-nf4, bnb-fp4, bnb-int8, weft");
  // As AWQ is published; bitsandbytes' scales leave no room for it.
  if (!names_solver && plan.awq && plan.format != Format::bnb4 && plan.format != Format::bnb8) plan.clip = true;
  plan.bits = options.bits;
  plan.group = options.group;
  if (options.group < 0 || options.group > kMaxGroup)
    refuse("group", fmt::format("a group of {} makes no sense", options.group), "give the number of inputs that share a scale, or 0 for whole rows");
  if (options.numbers != "int" && plan.format != Format::compressed && plan.format != Format::own)
    refuse("numbers", fmt::format("{} holds no {}", options.format, options.numbers), "--format compressed-tensors holds floating-point codes");
  switch (plan.format) {
    case Format::gptq:
    case Format::gptq_v2:
      if (plan.bits != 2 && plan.bits != 3 && plan.bits != 4 && plan.bits != 8)
        refuse("bits", fmt::format("the GPTQ layout holds 2, 3, 4 and 8 bits, not {}", plan.bits), "--format compressed-tensors holds 2 to 8 bits");
      plan.symmetric = options.symmetric.value_or(plan.format == Format::gptq);
      if (plan.format == Format::gptq && !plan.symmetric)
        refuse("format", "version 1 of the GPTQ layout has no place for a zero point of 0, which asymmetric codes need",
               "write --format gptq_v2, or symmetric codes");
      break;
    case Format::awq:
      if (plan.bits != 4) refuse("bits", fmt::format("the AWQ layout holds 4 bits, not {}", plan.bits), "use --format gptq_v2 or compressed-tensors");
      plan.symmetric = options.symmetric.value_or(false);
      if (plan.symmetric) refuse("format", "the AWQ layout has zero points", "leave out --symmetric, or write --format gptq");
      if (options.order == "dynamic")
        refuse("order", "the AWQ layout has groups of neighbouring inputs", "leave --order static, or write --format gptq");
      break;
    case Format::compressed: {
      if (options.order == "dynamic")
        refuse("order", "compressed-tensors has groups of neighbouring inputs", "leave --order static, or write --format gptq");
      plan.symmetric = options.symmetric.value_or(true);
      const std::string& numbers = options.numbers;
      const auto use = [&](CompressedForm form, Levels levels, std::int64_t group) {
        plan.form = form;
        plan.levels = levels;
        plan.group = group;
        plan.symmetric = true;
        plan.bits = codec::info(levels).bits;
      };
      if (numbers == "int") {
        if (plan.bits < 2 || plan.bits > 8) refuse("bits", fmt::format("{} bits are not held by compressed-tensors", plan.bits), "give 2 to 8");
      } else if (numbers == "fp8") {
        use(CompressedForm::float_quantized, Levels::e4m3, 0);
      } else if (numbers == "fp8-block") {
        use(CompressedForm::float_quantized, Levels::e4m3, 128);
        plan.blocks = true;
      } else if (numbers == "nvfp4") {
        use(CompressedForm::nvfp4, Levels::e2m1, 16);
      } else if (numbers == "mxfp4") {
        use(CompressedForm::mxfp4, Levels::e2m1, 32);
      } else if (numbers == "mxfp6") {
        use(CompressedForm::mxfp6, Levels::e2m3, 32);
      } else if (numbers == "mxfp8") {
        use(CompressedForm::mxfp8, Levels::e4m3, 32);
      } else {
        refuse("numbers", fmt::format("there are no numbers called '{}'", printable(numbers)), "int, fp8, fp8-block, nvfp4, mxfp4, mxfp6, mxfp8");
      }
      if (plan.solver != "rtn" && (plan.blocks || plan.form == CompressedForm::nvfp4))
        refuse("method", fmt::format("{} is rounded only", numbers), "use --method rtn, awq or smooth");
      break;
    }
    case Format::own: {
      if (options.order == "dynamic")
        refuse("order", "weft's own form has groups of neighbouring inputs", "leave --order static, or write --format gptq");
      plan.symmetric = options.symmetric.value_or(false);
      bool known = options.numbers == "int";
      for (const auto& [name, levels] :
           {std::pair("nf4", Levels::nf4), std::pair("e2m1", Levels::e2m1), std::pair("e2m3", Levels::e2m3), std::pair("e3m2", Levels::e3m2),
            std::pair("e3m0", Levels::e3m0), std::pair("e4m3", Levels::e4m3), std::pair("e5m2", Levels::e5m2)}) {
        if (options.numbers != name) continue;
        known = true;
        plan.levels = levels;
        plan.bits = codec::info(levels).bits;
        plan.symmetric = true;
      }
      if (!known)
        refuse("numbers", fmt::format("weft's own form has no numbers called '{}'", printable(options.numbers)),
               "int, nf4, e2m1, e2m3, e3m2, e3m0, e4m3, e5m2");
      if (plan.bits < 2 || plan.bits > 8) refuse("bits", fmt::format("{} bits make no sense", plan.bits), "give 2 to 8");
      break;
    }
    case Format::bnb4:
      plan.levels = format_is("bnb-nf4") ? Levels::nf4 : Levels::bnb_fp4;
      plan.bits = 4;
      if (options.group == 128 || options.group == 0) plan.group = 64;
      if (plan.group < 32 || plan.group > 4096 || (plan.group & (plan.group - 1)) != 0)
        refuse("group", fmt::format("bitsandbytes has blocks of 32, 64, ... 4096, not {}", plan.group), "leave --group out for 64");
      [[fallthrough]];
    case Format::bnb8:
      if (plan.solver != "rtn")
        refuse("method", fmt::format("bitsandbytes rounds: '{}' has no place there", plan.solver),
               "use --method rtn, awq or smooth, or another format");
      if (plan.clip) refuse("method", "bitsandbytes scales by the largest value, which clipping would change", "use awq+rtn");
      if (plan.format == Format::bnb8) {
        plan.bits = 8;
        plan.group = 0;
      }
      break;
  }
  if (plan.format != Format::own) {
    if (plan.solver == "hqq")
      refuse("method", fmt::format("hqq finds zero points that are no integers, which {} has no place for", options.format),
             "write --format weft, or use --method rtn --search shrink");
    if (plan.lorc || plan.exact)
      refuse("method", fmt::format("{} has no place for what is added to the codes", options.format), "write --format weft");
  }
  if (plan.solver == "hqq" && !plan.integers())
    refuse("method", "hqq finds zero points, which floating-point codes have none of", "use --numbers int");
  if (plan.lorc && options.rank < 1) refuse("rank", "a repair of rank 0 repairs nothing", "give --rank 1 or more");
  if (plan.exact && !(options.exact > 0 && options.exact < 1))
    refuse("exact", fmt::format("{} is no share between 0 and 1", options.exact), "0.001 is one weight of a thousand");

  quantize::SolverOptions& solver = plan.solver_options;
  solver.group = plan.group;
  solver.damping = options.damping;
  if (!(options.damping >= 0) || !std::isfinite(options.damping)) refuse("damping", "the damping must be a number of at least 0", "0.01 is usual");
  if (options.order != "static" && options.order != "dynamic" && options.order != "none")
    refuse("order", fmt::format("there is no order '{}'", printable(options.order)), "static, dynamic or none");
  solver.order = options.order == "none" ? quantize::Order::as_stored : quantize::Order::by_activation;
  solver.static_groups = options.order == "static";
  solver.drift = plan.solver == "gptaq" ? options.drift : 0;
  solver.format.levels = plan.levels;
  solver.format.bits = plan.bits;
  solver.format.zero = plan.symmetric ? Zero::centred : Zero::affine;
  const bool compensates = plan.solver == "gptq" || plan.solver == "gptaq";
  const std::string search = !options.search.empty() ? options.search : compensates ? "shrink" : "none";
  if (search == "shrink")
    solver.format.search = Search::shrink;
  else if (search == "least-squares")
    solver.format.search = Search::least_squares;
  else if (search != "none")
    refuse("search", fmt::format("there is no search '{}'", printable(options.search)), "none, shrink or least-squares");
  solver.format.norm = 2;
  if (plan.solver == "hqq") {
    solver.format.zero = Zero::offset;
    solver.format.search = Search::hqq;
  }
  return plan;
}

// ---- Layers --------------------------------------------------------------------------------------------------------------------------------

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

/// A layer that is to be quantized.
struct Target {
  std::string name;    ///< of the weight
  std::string module;  ///< without ".weight"
  DType dtype = DType::bf16;
  std::int64_t rows = 0, columns = 0;
  int bits = 4;
  int block = -1;
  bool bits_given = false;  ///< by a rule: a budget does not change them
  std::int64_t group = 128;
  const TensorInfo* tensor = nullptr;
  std::shared_ptr<const Checkpoint> checkpoint;
};

/// Whether the format has a place for it; otherwise why not.
std::string no_place_for(const Target& target, const Plan& plan) {
  const bool gptq = plan.format == Format::gptq || plan.format == Format::gptq_v2;
  const bool whole_groups = target.group <= 0 || target.group >= target.columns || target.columns % target.group == 0;
  if (gptq && (target.rows % 32 != 0 || target.columns % 32 != 0)) return "its sides are no multiples of 32";
  if (plan.format == Format::awq && target.rows % 8 != 0) return "its outputs are no multiple of 8";
  if (plan.format == Format::awq && target.group > 0 && target.columns % target.group != 0)
    return fmt::format("its inputs are no multiple of the group of {}", target.group);
  if ((gptq || plan.format == Format::compressed) && !plan.blocks && !whole_groups)
    return fmt::format("its inputs are no multiple of the group of {}", target.group);
  if (plan.levels == Levels::e2m1 && target.columns % 2 != 0) return "its inputs are odd";
  if (plan.levels == Levels::e2m3 && target.columns % 4 != 0) return "its inputs are no multiple of 4";
  return "";
}

class LinearJob {
 public:
  LinearJob(std::string_view model, const fs::path& output, const LinearQuantizeOptions& options)
      : options_(options), plan_(plan_of(options)), lazy_(open_lazy_model(model)), output_(output) {
    if (!lazy_.parts.config)
      throw Error(ErrorCode::not_found, "there is no config.json, which says what the weights are", {.file = lazy_.name}, "name the model's folder");
    if (output.extension() == ".safetensors" || output.extension() == ".gguf")
      refuse("output", fmt::format("{} is a folder, and '{}' would be a file", options.format, output.string()), "name a folder");
    // Before the work, not after it; what is in the way is looked at again when the place is taken.
    if (!options.force && !options.dry_run && path_kind(output) != PathKind::nothing)
      throw Error(ErrorCode::invalid_argument, fmt::format("the output '{}' exists already", output.string()), {.file = output.string()},
                  "choose another name, or give --force to replace it");
    find_targets();
    if (has_budget()) find_widths();
  }

  [[nodiscard]] bool wants_activations() const { return needs_calibration(options_.method) || options_.tokens != nullptr || options_.calibration; }
  [[nodiscard]] const LazyModel& lazy() const { return lazy_; }

  LinearQuantizeReport run(std::string_view model) {
    const auto start = std::chrono::steady_clock::now();
    std::shared_ptr<const Checkpoint> made;
    if (has_budget()) choose_widths(model);
    if (options_.dry_run) {
      made = nullptr;
    } else if (wants_activations()) {
      made = run_blocks(model);
    } else {
      made = round_all();
    }
    LinearQuantizeReport report;
    if (!options_.dry_run)
      replace_tensors(made);
    else
      for (edit::Tensor& part : lazy_.parts.tensors)
        if (by_name_.contains(part.name)) part.steps = {options_.method};
    edit_config();
    OutputJob job = output_job_of(std::move(lazy_), output_);
    job.ingredients = ingredients();
    JobBatch batch(options_, "quantizing");
    batch.add(std::move(job), output_);
    static_cast<JobReport&>(report) = std::move(batch.run().front());
    if (!pass_folder_.empty() && !options_.dry_run) remove_tree(pass_folder_);
    report.layers = std::move(layers_);
    report.num_parameters = num_parameters_;  // not of the tensors that hold them packed
    report.elapsed_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::uint64_t weights = 0, bits = 0;
    for (const Target& target : targets_) weights += static_cast<std::uint64_t>(target.rows * target.columns);
    for (const auto& [module, size] : part_bytes_) bits += 8 * size;
    report.linear_bits = weights == 0 ? 0 : static_cast<double>(bits) / static_cast<double>(weights);
    report.model_bits = num_parameters_ == 0 ? 0 : 8.0 * static_cast<double>(report.size_bytes) / static_cast<double>(num_parameters_);
    return report;
  }

 private:
  void find_targets() {
    const model::Architecture* architecture = model::find_architecture(*lazy_.parts.config);
    if (architecture == nullptr) architecture = model::find_architecture_family(*lazy_.parts.config);
    std::vector<edit::Pattern> patterns;
    for (const LinearRule& rule : options_.rules) patterns.emplace_back(rule.pattern, "rule");
    std::vector<bool> used(patterns.size());
    std::vector<std::string> without_place, stacks;
    for (const edit::Tensor& part : lazy_.parts.tensors) {
      const TensorInfo& info = *part.values.tensor;
      num_parameters_ += info.num_elements;
      if (info.shape.size() == 3 && is_decodable_float(info.dtype) && part.name.find("experts") != std::string::npos) stacks.push_back(part.name);
      if (!info.stored_as.empty() && !options_.allow_requantize)
        refuse("model", fmt::format("the model's weights are quantized already ('{}' is {})", printable(part.name), info.stored_as),
               "name the original model, or give --allow-requantize to round what is left of it again");
      if (info.shape.size() != 2 || !part.name.ends_with(".weight") || !is_decodable_float(info.dtype) ||
          !is_linear(model::role_of(architecture, part.name))) {
        if (info.shape.size() == 2 && part.name.ends_with(".weight") && is_layer(model::role_of(architecture, part.name)))
          plain_.push_back(part.name.substr(0, part.name.size() - 7));
        continue;
      }
      Target target;
      target.name = part.name;
      target.module = part.name.substr(0, part.name.size() - 7);
      target.dtype = info.dtype == DType::f16 || info.dtype == DType::bf16 ? info.dtype : DType::f32;
      target.rows = info.shape[0];
      target.columns = info.shape[1];
      target.bits = plan_.bits;
      target.group = plan_.group;
      target.tensor = &info;
      target.checkpoint = part.values.checkpoint;
      bool keep = false;
      for (std::size_t i = 0; i < patterns.size(); ++i) {
        if (!patterns[i].matches(part.name)) continue;
        used[i] = true;
        const LinearRule& rule = options_.rules[i];
        keep = rule.keep;
        if (rule.bits || rule.group) {
          if (plan_.format == Format::awq || plan_.format == Format::bnb4 || plan_.format == Format::bnb8 || !plan_.integers())
            refuse("rule", fmt::format("{} has one width and group for all layers", options_.format),
                   "--format gptq and compressed-tensors take a rule for each");
          target.bits = rule.bits.value_or(target.bits);
          target.bits_given = rule.bits.has_value();
          target.group = rule.group.value_or(target.group);
          if (target.bits < 2 || target.bits > 8 || target.group < 0 || target.group > kMaxGroup)
            refuse("rule", fmt::format("the rule '{}' asks for {} bits in groups of {}", rule.pattern, target.bits, target.group),
                   "2 to 8 bits, in groups of at most the inputs of a layer, or 0 for whole rows");
        }
        break;
      }
      if (keep) {
        kept_.push_back(target.module);
        continue;
      }
      const auto match = architecture != nullptr ? model::match_name(*architecture, part.name) : std::nullopt;
      if (match) target.block = match->layer;
      if (match && match->tensor != nullptr && match->tensor->transposed)
        throw Error(
            ErrorCode::unsupported,
            fmt::format("the layers of this architecture are stored transposed ('{}'), which these formats do not hold", printable(part.name)),
            {.file = lazy_.name}, "write a GGUF file: --format gguf:Q4_K_M");
      if (std::string why = no_place_for(target, plan_); !why.empty()) {
        without_place.push_back(fmt::format("'{}' [{}, {}]: {}", printable(part.name), target.rows, target.columns, why));
        continue;
      }
      targets_.push_back(std::move(target));
    }
    for (std::size_t i = 0; i < patterns.size(); ++i)
      if (!used[i])
        refuse("rule", fmt::format("the rule '{}' matches no linear layer", printable(options_.rules[i].pattern)), "run 'weft info' for the names");
    if (!without_place.empty())
      throw Error(ErrorCode::unsupported,
                  fmt::format("{} has no place for {} of the layers: {}", options_.format, without_place.size(), without_place.front()),
                  {.file = lazy_.name}, "choose another --group or --format, or leave them out with a rule that keeps them");
    if (targets_.empty())
      refuse("model", "there is no linear layer to quantize", kept_.empty() ? "name a model whose layers weft knows" : "the rules keep all of them");
    if (!stacks.empty())
      warn(fmt::format("{} tensors hold the matrices of several experts each, which these formats have no place for; they stay as they are: '{}'{}",
                       stacks.size(), printable(stacks.front()), stacks.size() == 1 ? "" : " and others"));
    for (const Target& target : targets_) by_name_.emplace(target.name, &target);
  }

  [[nodiscard]] quantize::SolverOptions options_for(const Target& target) const {
    quantize::SolverOptions solver = plan_.solver_options;
    solver.group = target.group;
    solver.format.bits = target.bits;
    const bool powers = plan_.form == CompressedForm::mxfp4 || plan_.form == CompressedForm::mxfp6 || plan_.form == CompressedForm::mxfp8;
    solver.format.scale_type = plan_.format == Format::compressed                             ? (powers ? DType::f8_e8m0 : target.dtype)
                               : plan_.format == Format::bnb4 || plan_.format == Format::bnb8 ? DType::f32
                                                                                              : DType::f16;
    return solver;
  }

  static void check_values(const Target& target, std::span<const float> values) {
    if (const std::uint64_t bad = math::count_non_finite(values); bad > 0)
      throw Error(ErrorCode::corrupt, fmt::format("tensor '{}' holds {} values that are NaN or infinite", printable(target.name), bad),
                  {.tensor = printable(target.name)}, "a model with such weights cannot be quantized; repair it first");
  }

  struct Result {
    std::vector<StoredTensor> parts;
    std::vector<float> decoded;  ///< what a reader makes of the parts
  };

  /// Codes by rounding, or given ones, as the tensors of the format.
  Result pack(const Target& target, std::span<const float> values, const QuantizedLinear* solved) const {
    Result result;
    const quantize::SolverOptions solver = options_for(target);
    std::optional<QuantizedLinear> own;
    switch (plan_.format) {
      case Format::bnb4:
        result.parts = codec::write_bnb4(values, target.rows, target.columns, target.dtype, plan_.levels, plan_.group, options_.nested);
        break;
      case Format::bnb8:
        result.parts = codec::write_bnb8(values, target.rows, target.columns);
        break;
      case Format::compressed:
        // The tool's own rule where nothing else was asked for.
        if (solved == nullptr && solver.format.search == Search::none) {
          own = codec::quantize_compressed(values, target.rows, target.columns, target.dtype, plan_.form, target.bits, plan_.symmetric, target.group,
                                           plan_.blocks ? 128 : 1);
          solved = &*own;
        }
        [[fallthrough]];
      default:
        if (solved == nullptr) {
          own = quantize::round_to_nearest(values, target.rows, target.columns, solver);
          solved = &*own;
        }
        result.parts = plan_.format == Format::compressed ? codec::write_compressed(*solved, plan_.form)
                       : plan_.format == Format::own      ? codec::write_own(*solved, target.dtype)
                       : plan_.format == Format::awq
                           ? codec::write_awq(*solved)
                           : codec::write_gptq(*solved, plan_.format == Format::gptq ? codec::GptqFormat::v1 : codec::GptqFormat::v2);
        result.decoded = solved->decoded();
    }
    // What the reader of the packed tensors gives, which is what will run; and it must be what was meant.
    std::vector<MadeTensor> held;
    for (const StoredTensor& part : result.parts) held.push_back({fmt::format("m.{}", part.name), part.dtype, part.shape, part.bytes});
    std::string not_read;
    const auto view = decode_quantized(hold_tensors(std::move(held)), quantization_config_for(target), not_read);
    const TensorInfo& tensor = view->tensor("m.weight");
    std::vector<std::byte> bytes(checked_size(tensor.size_bytes, "matrix"));
    view->read_bytes(tensor, 0, bytes);
    std::vector<float> read(checked_size(tensor.num_elements, "matrix"));
    math::decode(tensor.dtype, bytes, read);
    if (math::count_non_finite(read) > 0)
      throw Error(
          ErrorCode::unsupported,
          fmt::format("tensor '{}' has values up to {}, for which {} has no scale", printable(target.name),
                      std::fabs(*std::max_element(values.begin(), values.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); })),
                      options_.format),
          {.tensor = printable(target.name)}, "leave this layer out with a rule that keeps it");
    if (!result.decoded.empty()) {
      math::round_through(tensor.dtype, result.decoded);
      for (std::size_t i = 0; i < read.size(); ++i)
        if (read[i] != result.decoded[i])
          throw Error(ErrorCode::internal,
                      fmt::format("what was packed for '{}' reads back as {} in place of {}", printable(target.name), read[i], result.decoded[i]),
                      {.tensor = printable(target.name)});
    }
    result.decoded = std::move(read);
    return result;
  }

  [[nodiscard]] Json quantization_config_for(const Target& target) const {
    Json config = Json::Object{};
    config.set("torch_dtype", std::string(info(target.dtype).torch_name));
    config.set("quantization_config", quantization_config(target.bits, target.group));
    return config;
  }

  [[nodiscard]] static std::uint64_t bytes_of(const std::vector<StoredTensor>& parts) {
    std::uint64_t size = 0;
    for (const StoredTensor& part : parts) size += part.bytes.size();
    return size;
  }

  Layer describe(const Target& target, const std::vector<StoredTensor>& parts, double loss, std::string method) const {
    return {target.name, std::move(method),
            8.0 * static_cast<double>(bytes_of(parts)) / (static_cast<double>(target.rows) * static_cast<double>(target.columns)), loss};
  }

  // ---- What is added to the codes ----

  struct Added {
    std::vector<std::int64_t> at;
    std::vector<float> values;
  };

  /// Takes the weights out that matter most, by w^2 times how loudly they are read.
  Added take_exact(const Target& target, std::span<float> values, std::span<const float> importance) const {
    Added added;
    if (!plan_.exact) return added;
    const auto width = static_cast<std::size_t>(target.columns);
    // In double, where no square of a float overflows; a NaN among them would be no order.
    const auto weight_of = [&](std::size_t i) {
      const double share = importance.empty() ? 1.0 : static_cast<double>(importance[i % width]);
      return std::isfinite(share) ? static_cast<double>(values[i]) * static_cast<double>(values[i]) * share : 0.0;
    };
    std::vector<std::int64_t> order(values.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
    const auto size = static_cast<std::ptrdiff_t>(std::llround(options_.exact * static_cast<double>(values.size())));
    std::nth_element(order.begin(), order.begin() + size, order.end(), [&](std::int64_t a, std::int64_t b) {
      const double x = weight_of(static_cast<std::size_t>(a)), y = weight_of(static_cast<std::size_t>(b));
      return x != y ? x > y : a < b;
    });
    added.at.assign(order.begin(), order.begin() + size);
    std::sort(added.at.begin(), added.at.end());
    for (const std::int64_t at : added.at) {
      added.values.push_back(values[static_cast<std::size_t>(at)]);
      values[static_cast<std::size_t>(at)] = 0;
    }
    math::round_through(target.dtype, added.values);
    return added;
  }

  void complete(const Target& target, QuantizedLinear& linear, Added added, std::span<const float> original, std::span<const double> gram) const {
    linear.added_at = std::move(added.at);
    linear.added = std::move(added.values);
    if (!plan_.lorc) return;
    std::vector<float> residual = linear.decoded();
    for (std::size_t i = 0; i < residual.size(); ++i) residual[i] = original[i] - residual[i];
    quantize::LowRank repair = quantize::repair(residual, target.rows, target.columns, options_.rank, gram);
    math::round_through(target.dtype, repair.left);
    math::round_through(target.dtype, repair.right);
    linear.rank = repair.rank;
    linear.left = std::move(repair.left);
    linear.right = std::move(repair.right);
  }

  // ---- Without activations ----

  Result round_layer(const Target& target, const std::vector<float>& values) const {
    std::optional<QuantizedLinear> solved;
    if (plan_.exact || plan_.lorc) {
      std::vector<float> rest = values;
      Added added = take_exact(target, rest, {});
      solved = quantize::round_to_nearest(rest, target.rows, target.columns, options_for(target));
      complete(target, *solved, std::move(added), values, {});
    }
    return pack(target, values, solved ? &*solved : nullptr);
  }

  static double loss_of_weights(std::span<const float> values, std::span<const float> decoded) {
    double lost = 0, whole = 0;
    for (std::size_t k = 0; k < values.size(); ++k) {
      const double difference = static_cast<double>(decoded[k]) - values[k];
      lost += difference * difference;
      whole += static_cast<double>(values[k]) * values[k];
    }
    return whole > 0 ? lost / whole : 0;
  }

  /// For each layer, from several threads. Values, what is left of them and of the codes, twice in float32 each; what is packed and its check.
  template <typename Work>
  void for_each_target(MemoryBudget& budget, const Work& work) const {
    std::atomic<std::size_t> next = 0;
    WorkerPool pool(std::max(1, options_.threads == 0 ? usable_cores() : options_.threads));
    pool.run([&](int) {
      for (std::size_t i = next++; i < targets_.size(); i = next++) {
        if (options_.cancel != nullptr && options_.cancel->load()) throw Error(ErrorCode::interrupted, "quantizing was interrupted");
        if (pool.stop_token().stop_requested()) return;
        constexpr std::uint64_t kBytesAWeight = 20;
        const MemoryBudget::Share share = budget.acquire(
            kBytesAWeight * static_cast<std::uint64_t>(targets_[i].rows) * static_cast<std::uint64_t>(targets_[i].columns), "quantizing a layer");
        work(i);
      }
    });
  }

  std::shared_ptr<const Checkpoint> round_all() {
    std::vector<std::vector<MadeTensor>> made(targets_.size());
    std::vector<std::shared_ptr<const Checkpoint>> spooled(targets_.size());
    std::vector<Layer> layers(targets_.size());
    std::mutex told;
    // What is made waits in memory until it is written in the output's order; where it is too much for that, in files.
    MemoryBudget budget(options_.memory_bytes);
    std::uint64_t packed_bytes = 0;
    for (const Target& target : targets_)
      packed_bytes +=
          static_cast<std::uint64_t>(target.rows) * static_cast<std::uint64_t>(target.columns) * static_cast<std::uint64_t>(target.bits + 1) / 8;
    const bool spools = packed_bytes > budget.limit_bytes() / 4;
    if (spools) {
      spool_.path = block_pass_folder(output_);
      fs::create_directories(spool_.path);
    }
    for_each_target(budget, [&](std::size_t i) {
      const Target& target = targets_[i];
      const std::vector<float> values = read_values(target);
      Result result = round_layer(target, values);
      layers[i] = describe(target, result.parts, loss_of_weights(values, result.decoded), options_.method);
      for (StoredTensor& part : result.parts)
        made[i].push_back({fmt::format("{}.{}", target.module, part.name), part.dtype, std::move(part.shape), std::move(part.bytes)});
      if (spools) {
        spooled[i] = spool(made[i], i);
        made[i].clear();
      }
      const std::lock_guard lock(told);
      if (options_.on_layer) options_.on_layer(layers[i]);
    });
    layers_ = std::move(layers);
    if (spools) {
      std::vector<NamedTensor> tensors;
      for (const std::shared_ptr<const Checkpoint>& file : spooled)
        for (const TensorInfo& tensor : file->tensors()) tensors.push_back({{file, &tensor}, tensor.name});
      return select_tensors(tensors, *spooled.front());
    }
    std::vector<MadeTensor> all;
    for (std::vector<MadeTensor>& part : made) std::move(part.begin(), part.end(), std::back_inserter(all));
    return hold_tensors(std::move(all));
  }

  /// To a file of its own.
  std::shared_ptr<const Checkpoint> spool(const std::vector<MadeTensor>& tensors, std::size_t number) const {
    std::vector<TensorSpec> specs;
    for (const MadeTensor& tensor : tensors) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    const fs::path file = spool_.path / fmt::format("{}.safetensors", number);
    OutputFile out(file, Existing::replace);
    out.create_files(plan_safetensors(specs, 0, {}));
    for (std::size_t i = 0; i < tensors.size(); ++i) out.write_tensor(i, 0, tensors[i].bytes);
    out.commit();
    return open_safetensors_file(file, file);
  }

  static std::vector<float> read_values(const Target& target) {
    std::vector<std::byte> bytes(checked_size(target.tensor->size_bytes, "matrix"));
    target.checkpoint->read_bytes(*target.tensor, 0, bytes);
    std::vector<float> values(checked_size(target.tensor->num_elements, "matrix"));
    math::decode(target.tensor->dtype, bytes, values);
    check_values(target, values);
    return values;
  }

  // ---- With activations ----

  void open_running(std::string_view model) {
    if (running_ != nullptr) return;
    tokens_ = options_.tokens;
    if (tokens_ == nullptr && !options_.calibration)
      refuse("calibration", fmt::format("'{}' looks at what the layers read, and there is no calibration text", options_.method),
             "give --calibration FILE, or use --method rtn");
    running_ = std::make_unique<RunningModel>(model, options_);
    if (tokens_ == nullptr) tokens_ = read_calibration_text(*running_, *options_.calibration, options_.seed).tokens;
  }

  std::shared_ptr<const Checkpoint> run_blocks(std::string_view model) {
    open_running(model);
    RunningModel& running = *running_;
    BlockPassOptions pass_options;
    static_cast<RunOptions&>(pass_options) = options_;
    pass_options.two_streams = plan_.solver_options.drift != 0;
    pass_folder_ = block_pass_folder(output_);
    pass_options.folder = pass_folder_;
    pass_options.ingredients = ingredients();
    pass_options.ingredients.push_back(model_ingredient("the model", *running.files().checkpoint));
    BlockPass pass(running, tokens_, pass_options);
    BlockPassResult result = pass.run([&](Block& block) { visit(block); });
    // The table, also of blocks that an earlier run has done.
    for (const std::map<std::string, std::string>& notes : result.notes)
      for (const auto& [key, value] : notes) {
        if (key.starts_with("warning ")) warn(value);
        if (!key.starts_with("layer ")) continue;
        const Json note = parse_json(value, "note");
        layers_.push_back(
            {key.substr(6), *note.find("method")->string(), note.find("bits")->number().value_or(0), note.find("loss")->number().value_or(0)});
      }
    return result.tensors;
  }

  void warn(std::string text) {
    if (options_.on_warning) options_.on_warning(text);
    lazy_.warnings.push_back(std::move(text));
  }

  static bool is_of(const InputPoint& point, std::initializer_list<Role> roles) {
    return std::find(roles.begin(), roles.end(), point.role) != roles.end();
  }

  void visit(Block& block) {
    if (plan_.awq || plan_.smooth) fold_scales(block);
    // In the order in which a token meets them, so that each reads what those before it give now.
    const bool sequential = plan_.solver != "rtn" || plan_.clip;
    std::vector<InputPoint> points;
    for (const model::BlockTensor* tensor : block.linears()) {
      if (!by_name_.contains(tensor->tensor->name)) continue;
      const InputPoint point = input_point(tensor->slot.role, tensor->slot.expert);
      if (std::find(points.begin(), points.end(), point) == points.end()) points.push_back(point);
    }
    const std::initializer_list<Role> stages[] = {{Role::q}, {Role::o}, {Role::up, Role::shared_up}, {Role::down, Role::shared_down}};
    std::vector<std::vector<InputPoint>> waves;
    if (sequential) {
      for (const auto& roles : stages) {
        std::vector<InputPoint> wave;
        for (const InputPoint& point : points)
          if (is_of(point, roles)) wave.push_back(point);
        if (!wave.empty()) waves.push_back(std::move(wave));
      }
    } else if (!points.empty()) {
      waves.push_back(points);
    }
    for (const std::vector<InputPoint>& wave : waves) {
      factor_of_ = nullptr;
      StatisticsRequest request;
      request.gram = true;
      request.cross = plan_.solver_options.drift != 0;
      request.points = wave;
      for (InputStatistics& statistics : block.statistics(request))
        for (const std::string& name : statistics.weights)
          if (const auto found = by_name_.find(name); found != by_name_.end()) quantize_layer(block, *found->second, statistics);
    }
  }

  struct Solution {
    Result result;
    double loss = 0;  ///< of the outputs; 0 for a layer that no token was sent to
    std::string method;
  };
  /// Codes for a matrix that is read as the statistics say. tries: what they would be, with nothing told.
  Solution solve(Block& block, const Target& target, const std::vector<float>& original, const InputStatistics& statistics, bool tries) {
    quantize::SolverOptions solver = options_for(target);
    if (tries) solver.drift = 0;
    const auto width = static_cast<std::size_t>(target.columns);
    const auto note = [&](const std::string& key, std::string text) {
      if (!tries) block.note(key, std::move(text));
    };
    std::vector<float> values = original;
    std::string method = options_.method;
    if (statistics.num_tokens == 0) {
      // An expert that no token was sent to.
      note("warning " + target.name, fmt::format("'{}' was read by no token of the calibration text: it is rounded", printable(target.name)));
      method = "rtn";
    } else if (plan_.clip) {
      const auto slabs = slabs_of(target.rows);
      block.network().team().for_each(slabs.size(), [&](std::size_t i, int) {
        const auto [first, count] = slabs[i];
        quantize::clip_groups(
            std::span(values).subspan(static_cast<std::size_t>(first * target.columns), static_cast<std::size_t>(count * target.columns)), count,
            target.columns, statistics.gram, solver);
      });
    }
    std::vector<float> importance(width);
    for (std::size_t j = 0; j < importance.size(); ++j) importance[j] = static_cast<float>(statistics.gram[j * importance.size() + j]);
    Added added = take_exact(target, values, importance);
    std::optional<QuantizedLinear> solved;
    if ((plan_.solver == "gptq" || plan_.solver == "gptaq") && statistics.num_tokens > 0) {
      // Layers that read the same share the factor.
      if (factor_of_ != &statistics) {
        factor_ = quantize::factorise(statistics.gram, target.columns, solver, statistics.cross);
        factor_of_ = &statistics;
        if (factor_.usable && factor_.damping > solver.damping * 1.5)
          note("warning damping " + target.name, fmt::format("the inputs of '{}' are seen through {} tokens, too few for {} inputs: damped by {:g}",
                                                             printable(target.name), statistics.num_tokens, target.columns, factor_.damping));
      }
      if (factor_.usable) {
        solved = quantize::prepare(target.rows, target.columns, solver, factor_);
        const auto slabs = slabs_of(target.rows);
        block.network().team().for_each(
            slabs.size(), [&](std::size_t i, int) { quantize::compensate_rows(values, factor_, solver, slabs[i].first, slabs[i].second, *solved); });
      } else {
        note("warning " + target.name, fmt::format("what was read by '{}' cannot be used: it is rounded", printable(target.name)));
        method = "rtn";
      }
    }
    if (plan_.exact || plan_.lorc) {
      if (!solved) solved = quantize::round_to_nearest(values, target.rows, target.columns, solver);
      complete(target, *solved, std::move(added), original,
               statistics.num_tokens > 0 ? std::span<const double>(statistics.gram) : std::span<const double>());
    }
    Result result = pack(target, values, solved ? &*solved : nullptr);
    const double loss =
        statistics.num_tokens == 0 ? 0 : quantize::relative_loss(original, result.decoded, target.rows, target.columns, statistics.gram);
    return {std::move(result), loss, std::move(method)};
  }

  void quantize_layer(Block& block, const Target& target, const InputStatistics& statistics) {
    LinearMatrix matrix = block.matrix(target.name);
    check_values(target, matrix.values);
    if (static_cast<std::int64_t>(matrix.rows) != target.rows || static_cast<std::int64_t>(matrix.columns) != target.columns)
      throw Error(ErrorCode::internal, "a layer has another shape than its tensor", {.tensor = printable(target.name)});
    Solution solution = solve(block, target, matrix.values, statistics, false);
    const Layer layer = describe(target, solution.result.parts, solution.loss, solution.method);
    for (StoredTensor& part : solution.result.parts)
      block.emit({fmt::format("{}.{}", target.module, part.name), part.dtype, std::move(part.shape), std::move(part.bytes)});
    block.note("layer " + target.name, write_json(Json::Object{{"method", layer.method}, {"bits", layer.bits}, {"loss", layer.relative_loss}}));
    matrix.values = std::move(solution.result.decoded);
    block.set_matrix(target.name, matrix);
    if (options_.on_layer) options_.on_layer(layer);
  }

  static std::vector<std::pair<std::int64_t, std::int64_t>> slabs_of(std::int64_t rows) {
    constexpr std::int64_t kSlab = 64;
    std::vector<std::pair<std::int64_t, std::int64_t>> slabs;
    for (std::int64_t first = 0; first < rows; first += kSlab) slabs.emplace_back(first, std::min(kSlab, rows - first));
    return slabs;
  }

  // ---- Widths under a budget ----

  [[nodiscard]] bool has_budget() const { return options_.budget_bits || options_.budget_bytes; }

  /// The widths that the format has.
  void find_widths() {
    const bool gptq = plan_.format == Format::gptq || plan_.format == Format::gptq_v2;
    if (plan_.format == Format::awq || plan_.format == Format::bnb4 || plan_.format == Format::bnb8 || !plan_.integers())
      refuse("budget", fmt::format("{} has one width for all layers, and a budget nothing to choose from", options_.format),
             "use --format gptq, compressed-tensors or weft, with --numbers int");
    if (options_.budget_bits && !(*options_.budget_bits > 0 && std::isfinite(*options_.budget_bits)))
      refuse("budget", fmt::format("a budget of {} bits a weight makes no sense", *options_.budget_bits), "3.2bpw or 2.1GiB, for instance");
    const std::vector<int> held = gptq ? std::vector<int>{2, 3, 4, 8} : std::vector<int>{2, 3, 4, 5, 6, 7, 8};
    const bool by_block = options_.budget_by != "loss";
    if (by_block && options_.budget_by != "lim" && options_.budget_by != "zd")
      refuse("budget-by", fmt::format("a budget cannot be spent by '{}'", printable(options_.budget_by)), "loss, lim or zd");
    if (options_.budget_by == "lim" && !wants_activations())
      refuse("calibration", "lim looks at what blocks do to a text, and there is none", "give --calibration FILE, or use --budget-by zd");
    widths_ = !options_.widths.empty() ? options_.widths : by_block ? std::vector<int>{2, 4} : held;
    std::sort(widths_.begin(), widths_.end());
    widths_.erase(std::unique(widths_.begin(), widths_.end()), widths_.end());
    for (const int width : widths_)
      if (std::find(held.begin(), held.end(), width) == held.end())
        refuse("widths", fmt::format("{} does not hold {} bits", options_.format, width), fmt::format("its widths are {}", fmt::join(held, ", ")));
    if (by_block && widths_.size() != 2)
      refuse("widths", fmt::format("{} gives blocks one of two widths, not of {}", options_.budget_by, widths_.size()), "2,4 or 4,8, for instance");
    if (by_block)
      for (const Target& target : targets_)
        if (target.block < 0)
          throw Error(ErrorCode::unsupported, fmt::format("'{}' is in no block that has a number", printable(target.name)), {.file = lazy_.name},
                      "use --budget-by loss");
  }

  /// All at the lower width, then whole blocks at the higher, the most important first, as long as the budget holds.
  [[nodiscard]] std::vector<std::size_t> raise_blocks(const std::vector<std::vector<quantize::Choice>>& choices, std::uint64_t budget) const {
    std::map<int, double> scores = change_scores_;
    if (options_.budget_by == "zd") {
      std::map<int, std::vector<std::vector<float>>> matrices;
      for (const Target& target : targets_) matrices[target.block];
      for (auto& [block, own] : matrices) {
        for (const Target& target : targets_)
          if (target.block == block) own.push_back(read_values(target));
        scores[block] = -quantize::share_above_deviation(own);
        own = {};
      }
    }
    std::vector<std::pair<double, int>> order;
    for (const auto& [block, score] : scores) order.emplace_back(-score, block);
    std::sort(order.begin(), order.end());
    std::vector<std::size_t> chosen(targets_.size());
    std::uint64_t size = 0;
    for (const std::vector<quantize::Choice>& choice : choices) size += choice.front().size;
    for (const auto& [minus_score, block] : order) {
      std::uint64_t raised = size;
      for (std::size_t i = 0; i < targets_.size(); ++i)
        if (targets_[i].block == block) raised += choices[i].back().size - choices[i].front().size;
      if (raised > budget) break;
      size = raised;
      for (std::size_t i = 0; i < targets_.size(); ++i)
        if (targets_[i].block == block) chosen[i] = choices[i].size() - 1;
    }
    return chosen;
  }

  [[nodiscard]] std::vector<int> widths_of(const Target& target) const { return target.bits_given ? std::vector<int>{target.bits} : widths_; }

  /// What each width of each layer takes and loses, in a run of their own; then the widths that lose least together.
  void choose_widths(std::string_view model) {
    std::vector<std::vector<quantize::Choice>> choices(targets_.size());
    if (wants_activations()) {
      open_running(model);
      BlockPassOptions pass_options;
      static_cast<RunOptions&>(pass_options) = options_;
      BlockPass pass(*running_, tokens_, pass_options);
      static_cast<void>(pass.run([&](Block& block) { weigh_block(block, choices); }));
      factor_of_ = nullptr;
    } else {
      MemoryBudget budget(options_.memory_bytes);
      for_each_target(budget, [&](std::size_t i) {
        const std::vector<float> values = read_values(targets_[i]);
        for (const int bits : widths_of(targets_[i])) {
          Target target = targets_[i];
          target.bits = bits;
          const Result result = round_layer(target, values);
          choices[i].push_back({loss_of_weights(values, result.decoded), bytes_of(result.parts)});
        }
      });
    }

    std::uint64_t weights = 0, least = 0, others = 0;
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      // In no block that the text runs through: it stays as it is.
      if (choices[i].empty()) {
        others += targets_[i].tensor->size_bytes;
        choices[i].push_back({});
        continue;
      }
      weights += static_cast<std::uint64_t>(targets_[i].rows) * static_cast<std::uint64_t>(targets_[i].columns);
      least += std::min_element(choices[i].begin(), choices[i].end(), [](const auto& a, const auto& b) { return a.size < b.size; })->size;
    }
    for (const edit::Tensor& part : lazy_.parts.tensors)
      if (!by_name_.contains(part.name)) others += part.values.tensor->size_bytes;
    if (weights == 0) return;  // refused when nothing was made
    const auto bits_a_weight = [&](std::uint64_t size) { return 8 * static_cast<double>(size) / static_cast<double>(weights); };
    const char* const advice = "give a larger budget, larger groups, or fewer layers a rule of their own";
    std::uint64_t budget = ~std::uint64_t{0};
    if (options_.budget_bits) {
      if (*options_.budget_bits < bits_a_weight(least))
        refuse("budget",
               fmt::format("a budget of {:g} bits a weight is below the least that the {} linear layers take with their scales, {:.4f}",
                           *options_.budget_bits, targets_.size(), bits_a_weight(least)),
               advice);
      budget = static_cast<std::uint64_t>(std::min(*options_.budget_bits, 64.0) * static_cast<double>(weights) / 8);
      budget = std::max(budget, least);  // where the division was rounded
    }
    if (options_.budget_bytes) {
      if (*options_.budget_bytes < others || *options_.budget_bytes - others < least)
        refuse("budget",
               fmt::format(
                   "a budget of {} ({} bytes) is below the least that the model's tensors take, {} ({} bytes: {} of linear layers, {} of others)",
                   format_size(*options_.budget_bytes), *options_.budget_bytes, format_size(others + least), others + least, least, others),
               advice);
      budget = std::min(budget, *options_.budget_bytes - others);
    }
    const std::vector<std::size_t> chosen = options_.budget_by == "loss" ? quantize::allocate(choices, budget) : raise_blocks(choices, budget);
    std::map<int, std::int64_t> counts;
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      if (choices[i].front().size == 0) continue;
      targets_[i].bits = widths_of(targets_[i])[chosen[i]];
      counts[targets_[i].bits] += targets_[i].rows * targets_[i].columns;
      if (!options_.dry_run) continue;
      const quantize::Choice& choice = choices[i][chosen[i]];
      layers_.push_back({targets_[i].name, options_.method,
                         8 * static_cast<double>(choice.size) / (static_cast<double>(targets_[i].rows) * static_cast<double>(targets_[i].columns)),
                         choice.loss});
      if (options_.on_layer) options_.on_layer(layers_.back());
    }
    // What most weights have is what the config says of all.
    plan_.bits = std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->first;
  }

  void weigh_block(Block& block, std::vector<std::vector<quantize::Choice>>& choices) {
    if (options_.budget_by == "lim") {
      quantize::ChangeScore score;
      const auto width = static_cast<std::size_t>(block.network().config().hidden);
      for (const Activations::Batch& batch : block.batches()) {
        const std::vector<float> before = block.input(batch);
        score.add(before, block.run(batch, before), width);
      }
      change_scores_[block.layer()] = score.score();
    }
    std::vector<InputPoint> points;
    StatisticsRequest request;
    request.gram = true;
    std::uint64_t bytes = 0;
    for (const model::BlockTensor* tensor : block.linears()) {
      const auto found = by_name_.find(tensor->tensor->name);
      if (found == by_name_.end()) continue;
      const InputPoint point = input_point(tensor->slot.role, tensor->slot.expert);
      if (std::find(points.begin(), points.end(), point) != points.end()) continue;
      points.push_back(point);
      bytes += statistics_bytes(static_cast<std::size_t>(found->second->columns), request);
    }
    std::vector<std::vector<InputPoint>> waves;
    if (bytes <= block.statistics_budget())
      waves.push_back(points);
    else
      for (const InputPoint& point : points) waves.push_back({point});
    for (std::size_t w = 0; w < waves.size() && !points.empty(); ++w) {
      request.points = waves[w];
      request.last = w + 1 == waves.size();
      for (const InputStatistics& statistics : block.statistics(request)) {
        factor_of_ = nullptr;  // what was here before may have had the same address
        for (const std::string& name : statistics.weights) {
          const auto found = by_name_.find(name);
          if (found == by_name_.end()) continue;
          const std::vector<float> values = block.matrix(name).values;
          check_values(*found->second, values);
          for (const int bits : widths_of(*found->second)) {
            Target target = *found->second;
            target.bits = bits;
            const Solution solution = solve(block, target, values, statistics, true);
            choices[static_cast<std::size_t>(found->second - targets_.data())].push_back(
                {statistics.num_tokens > 0 ? solution.loss : loss_of_weights(values, solution.result.decoded), bytes_of(solution.result.parts)});
          }
        }
      }
    }
  }

  // ---- Scales of channels ----

  /// What divides a channel, where a norm or a matrix writes it alone.
  void fold_scales(Block& block) {
    const model::NetworkConfig& network = block.network().config();
    const auto of_role = [&](std::initializer_list<Role> roles) {
      std::vector<const model::BlockTensor*> found;
      for (const model::BlockTensor* tensor : block.linears())
        if (std::find(roles.begin(), roles.end(), tensor->slot.role) != roles.end()) found.push_back(tensor);
      return found;
    };
    const auto norm_at = [&](model::Site site, bool bias) -> const model::BlockTensor* {
      const model::BlockTensor* found = nullptr;
      for (const model::BlockTensor& tensor : block.tensors())
        if (tensor.slot.role == Role::norm && tensor.slot.site == site && tensor.is_bias == bias) found = &tensor;
      return found;
    };
    StatisticsRequest request;
    request.gram = true;
    std::vector<InputStatistics> statistics = block.statistics(request);
    const auto at = [&](Role role) -> InputStatistics* {
      for (InputStatistics& one : statistics)
        if (one.point == InputPoint{role, -1}) return &one;
      return nullptr;
    };
    const auto fold_norm = [&](model::Site site, std::vector<const model::BlockTensor*> readers, InputStatistics* read) {
      const model::BlockTensor* norm = norm_at(site, false);
      if (norm == nullptr || read == nullptr || readers.empty() || read->num_tokens == 0) return;
      if (read->weights.size() != readers.size()) return;  // something else reads there, too
      const std::vector<float> scales = choose(block, readers, *read);
      if (scales.empty()) return;
      apply_fold(block, scales, readers, [&](std::span<float> exact) {
        const bool plus_one = network.norm == model::NormKind::rms_plus_one;
        std::vector<float> gains = block.values(norm->tensor->name);
        if (gains.size() != exact.size()) return false;
        for (std::size_t j = 0; j < gains.size(); ++j) {
          const float gain = plus_one ? gains[j] + 1 : gains[j];
          float next = gain / exact[j];
          // The gain is rounded to what it is stored as, and the scale follows it, so that nothing is lost there.
          const float kept = math::decode_one(norm->tensor->dtype, math::encode_one(norm->tensor->dtype, plus_one ? next - 1 : next));
          next = plus_one ? kept + 1 : kept;
          exact[j] = next != 0 && std::isfinite(next) && gain / next > 0 ? gain / next : 1;
          gains[j] = exact[j] == 1 && !(next != 0) ? gains[j] : kept;
        }
        if (const model::BlockTensor* bias = norm_at(site, true)) {
          std::vector<float> values = block.values(bias->tensor->name);
          for (std::size_t j = 0; j < values.size(); ++j) values[j] /= exact[j];
          block.emit(bias->tensor->name, bias->tensor->dtype, bias->tensor->shape, values);
          block.set_values(bias->tensor->name, std::move(values));
        }
        block.emit(norm->tensor->name, norm->tensor->dtype, norm->tensor->shape, gains);
        block.set_values(norm->tensor->name, std::move(gains));
        return true;
      });
    };
    if (!network.parallel) {
      fold_norm(model::Site::attention_in, of_role({Role::q, Role::k, Role::v, Role::qkv}), at(Role::q));
      fold_norm(model::Site::mlp_in, of_role({Role::up, Role::gate, Role::gate_up}), at(Role::up));
    }
    // Into the rows that write what down reads. Behind an activation that is no multiple of its argument only a gated layer's `up` can take a scale.
    const auto up = of_role({Role::up}), gate = of_role({Role::gate}), down = of_role({Role::down});
    InputStatistics* read = at(Role::down);
    if (up.size() == 1 && gate.size() == 1 && down.size() == 1 && read != nullptr && read->num_tokens > 0 &&
        by_name_.contains(up.front()->tensor->name)) {
      const std::vector<float> scales = choose(block, down, *read);
      if (!scales.empty())
        apply_fold(block, scales, down, [&](std::span<float> exact) {
          LinearMatrix writer = block.matrix(up.front()->tensor->name);
          if (writer.rows != exact.size()) return false;
          for (const model::BlockTensor& tensor : block.tensors())
            if (tensor.is_bias && tensor.slot.role == Role::up) return false;
          quantize::divide_rows(writer.values, static_cast<std::int64_t>(writer.columns), exact);
          block.set_matrix(up.front()->tensor->name, writer);
          return true;
        });
    }
  }

  /// Scales for these readers; empty where none are better than none.
  std::vector<float> choose(Block& block, const std::vector<const model::BlockTensor*>& tensors, const InputStatistics& read) const {
    std::vector<LinearMatrix> matrices;
    std::vector<quantize::Reader> readers;
    for (const model::BlockTensor* tensor : tensors) {
      if (!by_name_.contains(tensor->tensor->name)) return {};
      matrices.push_back(block.matrix(tensor->tensor->name));
    }
    const Target& target = *by_name_.at(tensors.front()->tensor->name);
    for (const LinearMatrix& matrix : matrices) readers.push_back({matrix.values, static_cast<std::int64_t>(matrix.rows)});
    if (plan_.smooth) return quantize::smooth_scales(readers, target.columns, read.max_abs, options_.smoothing);
    std::vector<double> mean(read.sum_abs);
    for (double& value : mean) value /= static_cast<double>(read.num_tokens);
    quantize::ScaleChoice choice = quantize::search_awq(readers, target.columns, mean, read.gram, options_for(target));
    if (choice.exponent == 0) return {};
    return choice.scales;
  }

  /// Changes writer and readers, and undoes it where the block then gives something else.
  template <typename Write>
  void apply_fold(Block& block, const std::vector<float>& scales, const std::vector<const model::BlockTensor*>& readers, const Write& write) {
    constexpr double kTolerance = 1e-4;
    const Activations::Batch& batch = block.batches().front();
    const std::vector<float> before = block.run(batch, block.input(batch));
    std::vector<float> exact = scales;
    if (!write(std::span(exact))) return;
    for (const model::BlockTensor* tensor : readers) {
      LinearMatrix matrix = block.matrix(tensor->tensor->name);
      quantize::scale_columns(matrix.values, static_cast<std::int64_t>(matrix.columns), exact);
      block.set_matrix(tensor->tensor->name, matrix);
    }
    const std::vector<float> after = block.run(batch, block.input(batch));
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
      const double d = static_cast<double>(after[i]) - before[i];
      difference += d * d;
      size += static_cast<double>(before[i]) * before[i];
    }
    if (!(difference <= kTolerance * kTolerance * size))
      throw Error(
          ErrorCode::unsupported,
          fmt::format("scaling channels changes what block {} of this architecture gives (by {:.2g})", block.layer(), std::sqrt(difference / size)),
          {.file = lazy_.name}, "use --method gptq or rtn");
  }

  // ---- The output ----

  void replace_tensors(const std::shared_ptr<const Checkpoint>& made) {
    const auto refuse_all = [this] {
      refuse("model", fmt::format("none of the {} layers is in a block that the calibration text runs through", targets_.size()),
             "use --method rtn, or let the rules keep fewer layers");
    };
    if (made == nullptr) refuse_all();
    std::map<std::string, std::vector<const TensorInfo*>> by_module;
    std::map<std::string, const TensorInfo*> changed;
    std::set<std::string> modules;
    for (const Target& target : targets_) modules.insert(target.module);
    for (const TensorInfo& tensor : made->tensors()) {
      std::string module;
      for (std::size_t dot = tensor.name.find('.'); dot != std::string::npos; dot = tensor.name.find('.', dot + 1))
        if (modules.contains(tensor.name.substr(0, dot))) module = tensor.name.substr(0, dot);
      if (module.empty())
        changed.emplace(tensor.name, &tensor);
      else
        by_module[module].push_back(&tensor);
    }
    std::vector<edit::Tensor> parts;
    std::set<std::string> left;
    for (edit::Tensor& part : lazy_.parts.tensors) {
      if (const auto other = changed.find(part.name); other != changed.end()) {
        part.values = part.source = {made, other->second};
        part.steps = {"scale"};
      }
      if (!by_name_.contains(part.name)) {
        parts.push_back(std::move(part));
        continue;
      }
      const Target& target = *by_name_.at(part.name);
      std::vector<const TensorInfo*>& own = by_module[target.module];
      if (own.empty()) {
        left.insert(target.module);
        parts.push_back(std::move(part));
        continue;
      }
      for (const TensorInfo* tensor : own) {
        parts.push_back({tensor->name, {made, tensor}, {made, tensor}, part.inputs, {options_.method}});
        part_bytes_[target.module] += tensor->size_bytes;
      }
    }
    lazy_.parts.tensors = std::move(parts);
    // A pass over blocks sees the language model only, not the towers for images and sounds beside it.
    if (!left.empty()) {
      if (part_bytes_.empty()) refuse_all();
      warn(fmt::format("{} layers are in no block that the calibration text runs through, and stay as they are: '{}'{}", left.size(),
                       printable(*left.begin()), left.size() == 1 ? "" : " and others"));
      by_name_.clear();
      std::erase_if(targets_, [&](const Target& target) { return left.contains(target.module); });
      plain_.insert(plain_.end(), left.begin(), left.end());
    }
    // Files that are made anew by every run are no input: a job that was stopped must know itself again.
    if (spool_.path.empty()) lazy_.inputs.push_back(made);
  }

  [[nodiscard]] Json quantization_config(int bits, std::int64_t group) const {
    const std::int64_t group_size = group <= 0 ? -1 : group;
    const Json quantizer = Json::Array{fmt::format("weft:{}", version())};
    switch (plan_.format) {
      case Format::gptq:
      case Format::gptq_v2: {
        const char* form = plan_.format == Format::gptq ? "gptq" : "gptq_v2";
        return Json::Object{{"bits", bits},
                            {"group_size", group_size},
                            {"desc_act", options_.order == "dynamic" && (plan_.solver == "gptq" || plan_.solver == "gptaq")},
                            {"sym", plan_.symmetric},
                            {"lm_head", false},
                            {"quant_method", "gptq"},
                            {"checkpoint_format", form},
                            {"format", form},
                            {"pack_dtype", "int32"},
                            {"damp_percent", options_.damping},
                            {"static_groups", options_.order == "static"},
                            {"true_sequential", true},
                            {"meta", Json::Object{{"quantizer", quantizer}}}};
      }
      case Format::awq:
        return Json::Object{{"quant_method", "awq"}, {"bits", bits},      {"group_size", group_size},
                            {"zero_point", true},    {"version", "gemm"}, {"modules_to_not_convert", kept_list()}};
      case Format::compressed: {
        Json groups = Json::Object{};
        groups.set("group_0", compressed_group(bits, group, Json::Array{"Linear"}));
        return compressed_config(std::move(groups));
      }
      case Format::own:
        return Json::Object{{"quant_method", "weft"},
                            {"method", options_.method},
                            {"bits", bits},
                            {"group_size", group_size},
                            {"meta", Json::Object{{"quantizer", quantizer}}}};
      case Format::bnb4:
      case Format::bnb8: {
        const bool four = plan_.format == Format::bnb4;
        return Json::Object{{"quant_method", "bitsandbytes"},
                            {"load_in_4bit", four},
                            {"load_in_8bit", !four},
                            {"_load_in_4bit", four},
                            {"_load_in_8bit", !four},
                            {"bnb_4bit_quant_type", plan_.levels == Levels::bnb_fp4 ? "fp4" : "nf4"},
                            {"bnb_4bit_use_double_quant", options_.nested},
                            {"bnb_4bit_compute_dtype", std::string(info(targets_.front().dtype).torch_name)},
                            {"bnb_4bit_quant_storage", "uint8"},
                            {"llm_int8_threshold", 6.0},
                            {"llm_int8_skip_modules", kept_list()},
                            {"llm_int8_enable_fp32_cpu_offload", false},
                            {"llm_int8_has_fp16_weight", false}};
      }
    }
    return {};
  }

  /// Layers that stay as they are.
  [[nodiscard]] Json kept_list() const {
    Json::Array names;
    names.emplace_back("lm_head");
    for (const std::string& module : plain_)
      if (module != "lm_head") names.emplace_back(module);
    for (const std::string& module : kept_) names.emplace_back(module);
    return names;
  }

  [[nodiscard]] Json compressed_group(int bits, std::int64_t group, Json targets) const {
    const bool fp = !plan_.integers();
    const bool row = group <= 0;
    Json weights = Json::Object{{"actorder", Json()},
                                {"block_structure", plan_.blocks ? Json(Json::Array{128, 128}) : Json()},
                                {"dynamic", false},
                                {"group_size", plan_.blocks || row ? Json() : Json(group)},
                                {"num_bits", bits},
                                {"observer", "minmax"},
                                {"observer_kwargs", Json::Object{}},
                                {"strategy", plan_.blocks                          ? "block"
                                             : row                                 ? "channel"
                                             : plan_.form == CompressedForm::nvfp4 ? "tensor_group"
                                                                                   : "group"},
                                {"symmetric", plan_.symmetric},
                                {"type", fp ? "float" : "int"}};
    if (plan_.form == CompressedForm::nvfp4) weights.set("scale_dtype", "torch.float8_e4m3fn");
    if (plan_.form == CompressedForm::mxfp4 || plan_.form == CompressedForm::mxfp6 || plan_.form == CompressedForm::mxfp8)
      weights.set("scale_dtype", "torch.uint8");
    return Json::Object{{"format", std::string(codec::to_string(plan_.form))},
                        {"input_activations", Json()},
                        {"output_activations", Json()},
                        {"targets", std::move(targets)},
                        {"weights", std::move(weights)}};
  }

  [[nodiscard]] Json compressed_config(Json groups) const {
    return Json::Object{{"config_groups", std::move(groups)},  {"format", std::string(codec::to_string(plan_.form))},
                        {"global_compression_ratio", Json()},  {"ignore", kept_list()},
                        {"kv_cache_scheme", Json()},           {"quant_method", "compressed-tensors"},
                        {"quantization_status", "compressed"}, {"sparsity_config", Json::Object{}},
                        {"transform_config", Json::Object{}},  {"version", "0.20.0"}};
  }

  void edit_config() {
    Json quantization = quantization_config(plan_.bits, plan_.group);
    // Layers that a rule treats apart.
    std::map<std::pair<int, std::int64_t>, std::vector<const Target*>> apart;
    for (const Target& target : targets_)
      if (target.bits != plan_.bits || target.group != plan_.group) apart[{target.bits, target.group}].push_back(&target);
    const auto escaped = [](const std::string& name) {
      std::string out;
      for (const char c : name) {
        if (c == '.') out += '\\';
        out += c;
      }
      return out;
    };
    const bool gptq = plan_.format == Format::gptq || plan_.format == Format::gptq_v2;
    if (gptq && (!apart.empty() || !kept_.empty())) {
      Json dynamic = Json::Object{};
      for (const std::string& module : kept_) dynamic.set(fmt::format("-:^{}$", escaped(module)), Json::Object{});
      for (const auto& [shape, layers] : apart)
        for (const Target* target : layers)
          dynamic.set(fmt::format("+:^{}$", escaped(target->module)),
                      Json::Object{{"bits", shape.first}, {"group_size", shape.second <= 0 ? std::int64_t{-1} : shape.second}});
      quantization.set("dynamic", std::move(dynamic));
    }
    if (plan_.format == Format::compressed && !apart.empty()) {
      Json groups = *quantization.find("config_groups");
      int number = 1;
      for (const auto& [shape, layers] : apart) {
        Json::Array names;
        for (const Target* target : layers) names.emplace_back(target->module);
        groups.set(fmt::format("group_{}", number++), compressed_group(shape.first, shape.second, std::move(names)));
      }
      quantization = compressed_config(std::move(groups));
    }
    if (gptq) lazy_.companions.push_back({.name = "quantize_config.json", .content = write_json(quantization, 2) + "\n"});
    lazy_.parts.config->set("quantization_config", std::move(quantization));
    lazy_.config_changed = true;
  }

  [[nodiscard]] std::vector<JournalHead::Ingredient> ingredients() const {
    std::string rules;
    for (const LinearRule& rule : options_.rules)
      rules += fmt::format("{}={}/{}/{};", rule.pattern, rule.keep, rule.bits.value_or(-1), rule.group.value_or(-1));
    return {{"--method", options_.method},
            {"--format", options_.format},
            {"the numbers", fmt::format("{}, {} bits, groups of {}, {}, {}", options_.numbers, options_.bits, options_.group,
                                        plan_.symmetric ? "symmetric" : "asymmetric", options_.nested ? "nested" : "plain")},
            {"how scales and codes are found",
             fmt::format("search {}, damping {}, order {}, drift {}, smoothing {}, rank {}, exact {}", options_.search, options_.damping,
                         options_.order, options_.drift, options_.smoothing, options_.rank, options_.exact)},
            {"the rules", rules},
            {"--budget", fmt::format("{} bits a weight, {} bytes, by {} of {}", options_.budget_bits.value_or(0), options_.budget_bytes.value_or(0),
                                     options_.budget_by, fmt::join(widths_, ","))},
            {"the calibration text", tokens_ != nullptr ? tokens_->digest() : "none"}};
  }

  /// Files that are gone when the job is.
  struct Spool {
    fs::path path;
    Spool() = default;
    Spool(const Spool&) = delete;
    Spool& operator=(const Spool&) = delete;
    ~Spool() {
      std::error_code ignored;
      if (!path.empty()) fs::remove_all(path, ignored);
    }
  };

  Spool spool_;  // before all that reads from it
  const LinearQuantizeOptions& options_;
  Plan plan_;
  LazyModel lazy_;
  fs::path output_, pass_folder_;
  std::vector<Target> targets_;
  std::map<std::string, const Target*, std::less<>> by_name_;
  std::vector<std::string> kept_;   ///< by rules
  std::vector<std::string> plain_;  ///< what is no layer of these formats
  std::vector<Layer> layers_;
  std::map<std::string, std::uint64_t> part_bytes_;
  std::uint64_t num_parameters_ = 0;
  std::shared_ptr<const CalibrationTokens> tokens_;
  std::vector<int> widths_;              ///< that a budget chooses from
  std::map<int, double> change_scores_;  ///< of blocks
  std::unique_ptr<RunningModel> running_;
  quantize::Factor factor_;
  const InputStatistics* factor_of_ = nullptr;
};

}  // namespace

bool needs_calibration(std::string_view method) {
  const std::vector<std::string> steps = split_steps(method);
  return std::any_of(steps.begin(), steps.end(),
                     [](const std::string& step) { return step != "rtn" && step != "hqq" && step != "exact" && step != "lorc"; });
}

LinearQuantizeReport quantize_linear(std::string_view model, const fs::path& output, const LinearQuantizeOptions& options) {
  return LinearJob(model, output, options).run(model);
}

}  // namespace weft::engine
