#include "engine/linear_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "checkpoint/quantized_view.h"
#include "engine/block_pass.h"
#include "math/convert.h"
#include "math/round_codes.h"
#include "quantize/solver.h"
#include "weft/error.h"
#include "weft/version.h"

namespace weft::engine {

using codec::CompressedForm;
using codec::Levels;
using codec::QuantizedLinear;
using codec::Search;
using codec::StoredTensor;

std::string no_place_for(const LinearTarget& target, const LinearPlan& plan) {
  const bool gptq = plan.format == LinearFormat::gptq || plan.format == LinearFormat::gptq_v2;
  const bool whole_groups = target.group <= 0 || target.group >= target.columns || target.columns % target.group == 0;
  if (gptq && (target.rows % 32 != 0 || target.columns % 32 != 0)) return "its sides are no multiples of 32";
  if (plan.format == LinearFormat::awq && target.rows % 8 != 0) return "its outputs are no multiple of 8";
  if (plan.format == LinearFormat::awq && target.group > 0 && target.columns % target.group != 0)
    return fmt::format("its inputs are no multiple of the group of {}", target.group);
  if ((gptq || plan.format == LinearFormat::compressed) && !plan.blocks && !whole_groups)
    return fmt::format("its inputs are no multiple of the group of {}", target.group);
  if (plan.levels == Levels::e2m1 && target.columns % 2 != 0) return "its inputs are odd";
  if (plan.levels == Levels::e2m3 && target.columns % 4 != 0) return "its inputs are no multiple of 4";
  return "";
}

// ---- config.json ---------------------------------------------------------------------------------------------------------------------------

namespace {

/// Layers that stay as they are.
Json kept_list(const LinearPlan& plan) {
  Json::Array names;
  names.emplace_back("lm_head");
  for (const std::string& module : plan.plain)
    if (module != "lm_head") names.emplace_back(module);
  for (const std::string& module : plan.kept) names.emplace_back(module);
  return names;
}

Json compressed_group(const LinearPlan& plan, int bits, std::int64_t group, Json targets) {
  const bool fp = !plan.integers();
  const bool row = group <= 0;
  Json weights = Json::Object{{"actorder", Json()},
                              {"block_structure", plan.blocks ? Json(Json::Array{128, 128}) : Json()},
                              {"dynamic", false},
                              {"group_size", plan.blocks || row ? Json() : Json(group)},
                              {"num_bits", bits},
                              {"observer", "minmax"},
                              {"observer_kwargs", Json::Object{}},
                              {"strategy", plan.blocks                          ? "block"
                                           : row                                ? "channel"
                                           : plan.form == CompressedForm::nvfp4 ? "tensor_group"
                                                                                : "group"},
                              {"symmetric", plan.symmetric},
                              {"type", fp ? "float" : "int"}};
  if (plan.form == CompressedForm::nvfp4) weights.set("scale_dtype", "torch.float8_e4m3fn");
  if (plan.form == CompressedForm::mxfp4 || plan.form == CompressedForm::mxfp6 || plan.form == CompressedForm::mxfp8)
    weights.set("scale_dtype", "torch.uint8");
  return Json::Object{{"format", std::string(codec::to_string(plan.form))},
                      {"input_activations", Json()},
                      {"output_activations", Json()},
                      {"targets", std::move(targets)},
                      {"weights", std::move(weights)}};
}

Json compressed_config(const LinearPlan& plan, Json groups) {
  return Json::Object{{"config_groups", std::move(groups)},  {"format", std::string(codec::to_string(plan.form))},
                      {"global_compression_ratio", Json()},  {"ignore", kept_list(plan)},
                      {"kv_cache_scheme", Json()},           {"quant_method", "compressed-tensors"},
                      {"quantization_status", "compressed"}, {"sparsity_config", Json::Object{}},
                      {"transform_config", Json::Object{}},  {"version", "0.20.0"}};
}

Json quantization_config(const LinearPlan& plan, int bits, std::int64_t group) {
  const std::int64_t group_size = group <= 0 ? -1 : group;
  const Json quantizer = Json::Array{fmt::format("weft:{}", version())};
  switch (plan.format) {
    case LinearFormat::gptq:
    case LinearFormat::gptq_v2: {
      const char* form = plan.format == LinearFormat::gptq ? "gptq" : "gptq_v2";
      return Json::Object{{"bits", bits},
                          {"group_size", group_size},
                          {"desc_act", plan.options.order == "dynamic" && plan.compensates},
                          {"sym", plan.symmetric},
                          {"lm_head", false},
                          {"quant_method", "gptq"},
                          {"checkpoint_format", form},
                          {"format", form},
                          {"pack_dtype", "int32"},
                          {"damp_percent", plan.options.damping},
                          {"static_groups", plan.options.order == "static"},
                          {"true_sequential", true},
                          {"meta", Json::Object{{"quantizer", quantizer}}}};
    }
    case LinearFormat::awq:
      return Json::Object{{"quant_method", "awq"}, {"bits", bits},      {"group_size", group_size},
                          {"zero_point", true},    {"version", "gemm"}, {"modules_to_not_convert", kept_list(plan)}};
    case LinearFormat::compressed: {
      Json groups = Json::Object{};
      groups.set("group_0", compressed_group(plan, bits, group, Json::Array{"Linear"}));
      return compressed_config(plan, std::move(groups));
    }
    case LinearFormat::own:
      return Json::Object{{"quant_method", "weft"},
                          {"method", plan.options.method},
                          {"bits", bits},
                          {"group_size", group_size},
                          {"meta", Json::Object{{"quantizer", quantizer}}}};
    case LinearFormat::bnb4:
    case LinearFormat::bnb8: {
      const bool four = plan.format == LinearFormat::bnb4;
      return Json::Object{{"quant_method", "bitsandbytes"},
                          {"load_in_4bit", four},
                          {"load_in_8bit", !four},
                          {"_load_in_4bit", four},
                          {"_load_in_8bit", !four},
                          {"bnb_4bit_quant_type", plan.levels == Levels::bnb_fp4 ? "fp4" : "nf4"},
                          {"bnb_4bit_use_double_quant", plan.options.nested},
                          {"bnb_4bit_compute_dtype", std::string(info(plan.targets.front().dtype).torch_name)},
                          {"bnb_4bit_quant_storage", "uint8"},
                          {"llm_int8_threshold", 6.0},
                          {"llm_int8_skip_modules", kept_list(plan)},
                          {"llm_int8_enable_fp32_cpu_offload", false},
                          {"llm_int8_has_fp16_weight", false}};
    }
  }
  return {};
}

Json config_for(const LinearPlan& plan, const LinearTarget& target) {
  Json config = Json::Object{};
  config.set("torch_dtype", std::string(info(target.dtype).torch_name));
  config.set("quantization_config", quantization_config(plan, target.bits, target.group));
  return config;
}

}  // namespace

void describe_in_config(const LinearPlan& plan, LazyModel& model) {
  Json quantization = quantization_config(plan, plan.bits, plan.group);
  // Layers that a rule treats apart.
  std::map<std::pair<int, std::int64_t>, std::vector<const LinearTarget*>> apart;
  for (const LinearTarget& target : plan.targets)
    if (target.bits != plan.bits || target.group != plan.group) apart[{target.bits, target.group}].push_back(&target);
  const auto escaped = [](const std::string& name) {
    std::string out;
    for (const char c : name) {
      if (c == '.') out += '\\';
      out += c;
    }
    return out;
  };
  const bool gptq = plan.format == LinearFormat::gptq || plan.format == LinearFormat::gptq_v2;
  if (gptq && (!apart.empty() || !plan.kept.empty())) {
    Json dynamic = Json::Object{};
    for (const std::string& module : plan.kept) dynamic.set(fmt::format("-:^{}$", escaped(module)), Json::Object{});
    for (const auto& [shape, layers] : apart)
      for (const LinearTarget* target : layers)
        dynamic.set(fmt::format("+:^{}$", escaped(target->file_module)),
                    Json::Object{{"bits", shape.first}, {"group_size", shape.second <= 0 ? std::int64_t{-1} : shape.second}});
    quantization.set("dynamic", std::move(dynamic));
  }
  if (plan.format == LinearFormat::compressed && !apart.empty()) {
    Json groups = *quantization.find("config_groups");
    int number = 1;
    for (const auto& [shape, layers] : apart) {
      Json::Array names;
      for (const LinearTarget* target : layers) names.emplace_back(target->file_module);
      groups.set(fmt::format("group_{}", number++), compressed_group(plan, shape.first, shape.second, std::move(names)));
    }
    quantization = compressed_config(plan, std::move(groups));
  }
  if (gptq) model.companions.push_back({.name = "quantize_config.json", .content = write_json(quantization, 2) + "\n"});
  model.parts.config->set("quantization_config", std::move(quantization));
  model.config_changed = true;
}

// ---- Tensors -------------------------------------------------------------------------------------------------------------------------------

std::uint64_t PackedLayer::size_bytes() const {
  std::uint64_t size = 0;
  for (const StoredTensor& part : parts) size += part.bytes.size();
  return size;
}

namespace {
/// Of magnitudes.
float largest_of(std::span<const float> values) {
  const math::Extent extent = math::extent(values);
  return std::max(std::fabs(extent.low), std::fabs(extent.high));
}
}  // namespace

PackedLayer pack_layer(const LinearPlan& plan, const LinearTarget& target, std::span<const float> values, const QuantizedLinear* solved) {
  PackedLayer result;
  const quantize::SolverOptions solver = plan.options_for(target);
  std::optional<QuantizedLinear> own;
  switch (plan.format) {
    case LinearFormat::bnb4:
      result.parts = codec::write_bnb4(values, target.rows, target.columns, target.dtype, plan.levels, plan.group, plan.options.nested);
      break;
    case LinearFormat::bnb8:
      // The library has them in float16 before anything else.
      if (const float largest = largest_of(values); math::decode_one(DType::f16, math::encode_one(DType::f16, largest)) > 65504.0F)
        throw Error(ErrorCode::unsupported,
                    fmt::format("tensor '{}' has values up to {}, and bitsandbytes takes those of {} as float16, which ends at 65504",
                                printable(target.name), largest, plan.options.format),
                    {.tensor = printable(target.name)}, "use --format bnb-nf4 or compressed-tensors, or leave this layer out: --rule PATTERN=keep");
      result.parts = codec::write_bnb8(values, target.rows, target.columns);
      break;
    case LinearFormat::compressed:
      // The tool's own rule where nothing else was asked for.
      if (solved == nullptr && solver.format.search == Search::none) {
        own = codec::quantize_compressed(values, target.rows, target.columns, target.dtype, plan.form, target.bits, plan.symmetric, target.group,
                                         plan.blocks ? 128 : 1);
        solved = &*own;
      }
      [[fallthrough]];
    default:
      if (solved == nullptr) {
        own = quantize::round_to_nearest(values, target.rows, target.columns, solver);
        solved = &*own;
      }
      result.parts = plan.format == LinearFormat::compressed ? codec::write_compressed(*solved, plan.form)
                     : plan.format == LinearFormat::own      ? codec::write_own(*solved, target.dtype)
                     : plan.format == LinearFormat::awq
                         ? codec::write_awq(*solved)
                         : codec::write_gptq(*solved, plan.format == LinearFormat::gptq ? codec::GptqFormat::v1 : codec::GptqFormat::v2);
      result.decoded = solved->decoded();
  }
  // One block is a matrix of scales too.
  if (plan.blocks)
    for (StoredTensor& part : result.parts)
      if (part.name == "weight_scale" && part.shape.size() == 1) part.shape = {1, 1};
  // What the reader of the packed tensors gives, which is what will run; and it must be what was meant.
  std::vector<MadeTensor> held;
  for (const StoredTensor& part : result.parts) held.push_back({fmt::format("m.{}", part.name), part.dtype, part.shape, part.bytes});
  std::string not_read;
  const auto view = decode_quantized(hold_tensors(std::move(held)), config_for(plan, target), not_read);
  const TensorInfo& tensor = view->tensor("m.weight");
  std::vector<std::byte> bytes(checked_size(tensor.size_bytes, "matrix"));
  view->read_bytes(tensor, 0, bytes);
  std::vector<float> read(checked_size(tensor.num_elements, "matrix"));
  math::decode(tensor.dtype, bytes, read);
  if (math::count_non_finite(read) > 0)
    throw Error(
        ErrorCode::unsupported,
        fmt::format("tensor '{}' has values up to {}, for which {} has no scale", printable(target.name), largest_of(values), plan.options.format),
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

}  // namespace weft::engine
