#include "engine/quantize_linear.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "base/file.h"
#include "checkpoint/json.h"
#include "checkpoint/output.h"
#include "checkpoint/safetensors.h"
#include "engine/block_pass.h"
#include "engine/running_model.h"
#include "math/convert.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "support/tiny_runs.h"
#include "weft/inspect.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;
using testing::logits_of;
using testing::relative;
using testing::some_tokens;
using testing::values_of;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";
const std::string kUp = "model.layers.0.mlp.up_proj.weight";

/// ||a - b|| / ||a|| of two tensors of one name.
double distance(const Checkpoint& a, const Checkpoint& b, const std::string& name) {
  return relative(values_of(a, name), values_of(b, name));
}

struct Case {
  std::string format, numbers;
  int bits;
  std::int64_t group;
  double expected_bits, most_distance;
  std::string stored_as;
};

TEST(QuantizeLinear, every_format_is_written_as_a_folder_that_reads_back_as_a_model) {
  const TemporaryFolder folder;
  const auto original = open_checkpoint(kModel);
  const std::vector<Case> cases = {
      {"gptq", "int", 4, 128, 4.1, 0.12, "GPTQ4"},
      {"gptq", "int", 8, 0, 8.1, 0.012, "GPTQ8"},
      {"gptq_v2", "int", 3, 64, 3.2, 0.22, "GPTQ3"},
      {"gptq_v2", "int", 2, 32, 2.5, 0.5, "GPTQ2"},
      {"awq", "int", 4, 64, 4.3, 0.1, "AWQ4"},
      {"compressed-tensors", "int", 4, 128, 4.1, 0.12, "INT4"},
      {"compressed-tensors", "int", 5, 32, 5.5, 0.05, "INT5"},
      {"compressed-tensors", "fp8", 4, 128, 8.05, 0.03, "FP8"},
      {"compressed-tensors", "fp8-block", 4, 128, 8, 0.03, "FP8"},
      {"compressed-tensors", "nvfp4", 4, 128, 4.5, 0.1, "NVFP4"},
      {"compressed-tensors", "mxfp4", 4, 128, 4.25, 0.13, "MXFP4"},
      {"compressed-tensors", "mxfp6", 4, 128, 6.25, 0.04, "MXFP6"},
      {"compressed-tensors", "mxfp8", 4, 128, 8.25, 0.03, "MXFP8"},
      {"bnb-nf4", "int", 4, 64, 4.5, 0.1, "NF4"},
      {"bnb-fp4", "int", 4, 64, 4.5, 0.13, "FP4"},
      {"bnb-int8", "int", 8, 0, 8.1, 0.012, "INT8"},
      {"weft", "int", 3, 64, 3.4, 0.2, "INT3"},
      {"weft", "nf4", 4, 64, 4.25, 0.1, "NF4"},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(one.format + " " + one.numbers + " " + std::to_string(one.bits));
    LinearQuantizeOptions options;
    options.format = one.format;
    options.numbers = one.numbers;
    options.bits = one.bits;
    options.group = one.group;
    const fs::path output = folder / fmt::format("{}-{}-{}", one.format, one.numbers, one.bits);
    const LinearQuantizeReport report = quantize_linear(kModel, output, options);
    EXPECT_EQ(report.layers.size(), 14u);
    EXPECT_NEAR(report.linear_bits, one.expected_bits, 0.25);
    const auto result = open_checkpoint(output.string());
    EXPECT_EQ(result->tensors().size(), original->tensors().size());
    for (const TensorInfo& tensor : original->tensors()) {
      const TensorInfo& own = result->tensor(tensor.name);
      EXPECT_EQ(own.shape, tensor.shape);
      if (own.stored_as.empty()) {
        EXPECT_EQ(values_of(*result, tensor.name), values_of(*original, tensor.name)) << tensor.name;
      } else {
        EXPECT_EQ(own.stored_as, one.stored_as);
        EXPECT_LT(distance(*original, *result, tensor.name), one.most_distance) << tensor.name;
      }
    }
    EXPECT_LT(relative(logits_of(kModel), logits_of(output.string())), 4 * one.most_distance);
    const ModelInfo info = inspect(output.string());
    EXPECT_FALSE(info.quantization.empty());
    EXPECT_LT(info.bits_per_weight, 16);
    // Plain weights again.
    const fs::path plain = folder / (output.filename().string() + "-plain");
    static_cast<void>(convert(output.string(), plain, {}));
    EXPECT_EQ(values_of(*open_checkpoint(plain.string()), kUp), values_of(*result, kUp));
    EXPECT_EQ(read_json_file(plain / "config.json").find("quantization_config"), nullptr);
    EXPECT_EQ(path_kind(plain / "quantize_config.json"), PathKind::nothing);
    fs::remove_all(output);
    fs::remove_all(plain);
  }
}

TEST(QuantizeLinear, making_errors_good_loses_less_of_the_outputs_than_rounding) {
  const TemporaryFolder folder;
  std::map<std::string, std::map<std::string, double>> losses;
  std::map<std::string, double> drifts;
  for (const char* method : {"rtn", "gptq", "gptaq", "awq", "rtn+refine", "gptq+refine"}) {
    LinearQuantizeOptions options;
    options.method = method;
    options.format = "gptq_v2";
    options.bits = 3;
    options.tokens = some_tokens(10, 64);
    const fs::path output = folder / method;
    const LinearQuantizeReport report = quantize_linear(kModel, output, options);
    ASSERT_EQ(report.layers.size(), 14u);
    for (const LinearQuantizeOptions::Layer& layer : report.layers) losses[method][layer.name] = layer.relative_loss;
    drifts[method] = relative(logits_of(kModel), logits_of(output.string()));
    EXPECT_FALSE(fs::exists(folder.path() / fmt::format(".{}.weft", method)));
  }
  for (const auto& [name, loss] : losses["rtn"]) {
    EXPECT_GT(loss, 0);
    EXPECT_LT(losses["gptq"][name], loss) << name;
    EXPECT_LT(losses["rtn+refine"][name], loss) << name;
  }
  const auto sum = [&](const char* method) {
    double all = 0;
    for (const auto& [name, loss] : losses[method]) all += loss;
    return all;
  };
  EXPECT_LT(sum("gptq+refine"), sum("gptq"));
  EXPECT_LT(drifts["gptq"], drifts["rtn"]);
  EXPECT_LT(drifts["gptaq"], drifts["rtn"]);
  EXPECT_LT(drifts["awq"], drifts["rtn"]);
}

TEST(QuantizeLinear, scales_that_are_folded_leave_the_function_alone) {
  const TemporaryFolder folder;
  for (const char* method : {"awq+rtn", "smooth+rtn"}) {
    LinearQuantizeOptions options;
    options.method = method;
    options.format = "gptq";
    options.bits = 8;
    options.group = 32;
    options.tokens = some_tokens(8, 64);
    static_cast<void>(quantize_linear(kModel, folder / method, options));
    // What 8 bits lose, and what a norm's gain in bfloat16 would: nothing.
    EXPECT_LT(relative(logits_of(kModel), logits_of((folder / method).string())), 0.02) << method;
    const auto result = open_checkpoint((folder / method).string());
    EXPECT_EQ(result->tensor("model.layers.0.input_layernorm.weight").dtype, DType::bf16);
  }
}

TEST(QuantizeLinear, what_is_added_to_the_codes_gives_back_most_of_what_they_lose) {
  const TemporaryFolder folder;
  std::map<std::string, double> loss, bits;
  for (const char* method : {"rtn", "hqq", "rtn+lorc", "exact+rtn", "exact+gptq+lorc", "halfway+rtn"}) {
    LinearQuantizeOptions options;
    options.method = method;
    options.format = "weft";
    options.bits = 3;
    options.group = 64;
    options.exact = 0.01;
    if (std::string(method).find("gptq") != std::string::npos) options.tokens = some_tokens(10, 64);
    const LinearQuantizeReport report = quantize_linear(kModel, folder / method, options);
    loss[method] = relative(logits_of(kModel), logits_of((folder / method).string()));
    bits[method] = report.linear_bits;
  }
  EXPECT_LT(loss["rtn+lorc"], loss["rtn"]);
  EXPECT_LT(loss["exact+rtn"], loss["rtn"]);
  EXPECT_LT(loss["exact+gptq+lorc"], loss["rtn"]);
  EXPECT_GT(bits["rtn+lorc"], bits["rtn"] + 0.4);
  // Zero points that are integers take the bits of a code, others those of a scale; one for all takes a few bytes of the form.
  EXPECT_NEAR(bits["hqq"], bits["rtn"] + 13.0 / 64, 0.003);
  EXPECT_NEAR(bits["halfway+rtn"], bits["rtn"] - 3.0 / 64, 0.003);
}

TEST(QuantizeLinear, a_small_memory_changes_no_byte_and_leaves_nothing_behind) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.threads = 3;
  static_cast<void>(quantize_linear(kModel, folder / "large", options));
  options.memory_bytes = std::uint64_t{600} << 10;
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "small", options), out_of_memory, "quantizing a layer");
  options.memory_bytes = std::uint64_t{1100} << 10;
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "small", options), out_of_memory, "quantizing a layer");
  options.memory_bytes = std::uint64_t{3} << 20;
  options.group = 0;
  options.bits = 8;
  options.threads = 1;
  static_cast<void>(quantize_linear(kModel, folder / "small", options));
  options.memory_bytes = 0;
  options.threads = 2;
  static_cast<void>(quantize_linear(kModel, folder / "again", options));
  EXPECT_EQ(testing::read_file(folder / "small/model.safetensors"), testing::read_file(folder / "again/model.safetensors"));
  for (const std::string& name : testing::tree(folder.path())) EXPECT_FALSE(name.starts_with(".")) << name;
}

TEST(QuantizeLinear, a_job_that_was_stopped_goes_on_behind_the_blocks_that_it_had_finished) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.method = "gptq";
  options.tokens = some_tokens(6, 64);
  options.journal_seconds = 0;
  static_cast<void>(quantize_linear(kModel, folder / "whole", options));
  std::atomic<bool> cancel = false;
  options.cancel = &cancel;
  std::size_t num_layers = 0;
  options.on_layer = [&](const LinearQuantizeOptions::Layer&) { cancel = ++num_layers > 8; };
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "stopped", options), interrupted, "interrupted");
  EXPECT_FALSE(fs::exists(folder / "stopped"));
  cancel = false;
  num_layers = 0;
  options.on_layer = [&](const LinearQuantizeOptions::Layer&) { ++num_layers; };
  const LinearQuantizeReport report = quantize_linear(kModel, folder / "stopped", options);
  EXPECT_EQ(num_layers, 7u) << "the second of two blocks";
  EXPECT_EQ(report.layers.size(), 14u);
  EXPECT_EQ(testing::read_file(folder / "stopped/model.safetensors"), testing::read_file(folder / "whole/model.safetensors"));
  for (const std::string& name : testing::tree(folder.path())) EXPECT_FALSE(name.starts_with(".")) << name;
}

TEST(QuantizeLinear, rules_keep_layers_or_give_them_a_width_of_their_own) {
  const TemporaryFolder folder;
  for (const char* format : {"gptq", "compressed-tensors"}) {
    LinearQuantizeOptions options;
    options.format = format;
    options.rules = {{.pattern = "layers\\.0\\..*down_proj", .keep = true, .bits = {}, .group = {}}, {.pattern = "v_proj", .bits = 8, .group = 64}};
    const LinearQuantizeReport report = quantize_linear(kModel, folder / format, options);
    EXPECT_EQ(report.layers.size(), 13u);
    const auto result = open_checkpoint((folder / format).string());
    EXPECT_TRUE(result->tensor("model.layers.0.mlp.down_proj.weight").stored_as.empty());
    EXPECT_EQ(result->tensor("model.layers.1.self_attn.v_proj.weight").stored_as, std::string(format) == "gptq" ? "GPTQ8" : "INT8");
    EXPECT_EQ(result->tensor("model.layers.1.self_attn.k_proj.weight").stored_as, std::string(format) == "gptq" ? "GPTQ4" : "INT4");
    EXPECT_LT(distance(*open_checkpoint(kModel), *result, "model.layers.1.self_attn.v_proj.weight"), 0.01);
  }
}

TEST(QuantizeLinear, awq_alone_clips_where_the_format_has_place_for_it_and_rounds_in_bitsandbytes) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.method = "awq";
  options.tokens = some_tokens(4, 32);
  options.rules = {{.pattern = "mlp|layers\\.1", .keep = true, .bits = {}, .group = {}}};
  options.format = "bnb-nf4";
  EXPECT_EQ(quantize_linear(kModel, folder / "nf4", options).layers.size(), 4u);
  options.method = "awq+rtn";
  static_cast<void>(quantize_linear(kModel, folder / "same", options));
  EXPECT_EQ(testing::read_file(folder / "nf4/model.safetensors"), testing::read_file(folder / "same/model.safetensors"));
  options.format = "compressed-tensors";
  static_cast<void>(quantize_linear(kModel, folder / "plain", options));
  options.method = "awq";
  static_cast<void>(quantize_linear(kModel, folder / "clipped", options));
  EXPECT_NE(testing::read_file(folder / "plain/model.safetensors"), testing::read_file(folder / "clipped/model.safetensors"));
}

void write_weights(const fs::path& folder, const std::vector<MadeTensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const MadeTensor& tensor : tensors) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  OutputFile out(folder / "model.safetensors", Existing::replace);
  out.create_files(plan_safetensors(specs, 0, {{"format", "pt"}}));
  for (std::size_t i = 0; i < tensors.size(); ++i) out.write_tensor(i, 0, tensors[i].bytes);
  out.commit();
}

/// tiny-base with tensors beside it.
std::string with_tensors(const fs::path& folder, const std::vector<std::pair<std::string, Shape>>& more, std::byte fill = {}) {
  fs::create_directories(folder);
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json"}) fs::copy_file(fs::path(kModel) / name, folder / name);
  const auto model = open_checkpoint(kModel);
  std::vector<MadeTensor> tensors;
  for (const TensorInfo& tensor : model->tensors()) {
    tensors.push_back({tensor.name, tensor.dtype, tensor.shape, std::vector<std::byte>(tensor.size_bytes)});
    model->read_bytes(tensor, 0, tensors.back().bytes);
  }
  for (const auto& [name, shape] : more) {
    std::size_t size = 1;
    for (const std::int64_t dim : shape) size *= static_cast<std::size_t>(dim);
    tensors.push_back({name, DType::f16, shape, std::vector<std::byte>(2 * size, fill)});
  }
  write_weights(folder, tensors);
  return folder.string();
}

TEST(QuantizeLinear, layers_that_no_token_passes_stay_as_they_are_and_are_told_of) {
  const TemporaryFolder folder;
  const std::string tower = "vision_tower.layers.0.self_attn.q_proj", experts = "model.layers.0.mlp.experts.gate_up_proj";
  const std::string model = with_tensors(folder / "model", {{tower + ".weight", {64, 64}}, {experts, {2, 64, 64}}});
  LinearQuantizeOptions options;
  options.format = "compressed-tensors";
  options.method = "gptq";
  options.group = 32;
  options.tokens = some_tokens(4, 32);
  const LinearQuantizeReport report = quantize_linear(model, folder / "out", options);
  EXPECT_EQ(report.layers.size(), 14u);
  EXPECT_THAT(report.warnings, ::testing::Contains(::testing::HasSubstr(tower)));
  EXPECT_THAT(report.warnings, ::testing::Contains(::testing::HasSubstr(experts)));
  const auto result = open_checkpoint((folder / "out").string());
  EXPECT_TRUE(result->tensor(tower + ".weight").stored_as.empty());
  EXPECT_FALSE(result->tensor(kUp).stored_as.empty());
  EXPECT_NE(testing::read_file(folder / "out/config.json").find('"' + tower + '"'), std::string::npos) << "among what is ignored";
  EXPECT_FALSE(fs::exists(folder / ".out.weft-blocks"));
  // Rounding leaves them, too, though it could do without activations.
  LinearQuantizeOptions rounding;
  rounding.format = "compressed-tensors";
  rounding.group = 32;
  rounding.rules = {{.pattern = "vision", .keep = true, .bits = {}, .group = {}}};
  EXPECT_EQ(quantize_linear(model, folder / "rounded", rounding).layers.size(), 14u);
  EXPECT_TRUE(open_checkpoint((folder / "rounded").string())->tensor(tower + ".weight").stored_as.empty());
  // A budget is for those that are quantized.
  options.budget_bits = 3.6;
  const LinearQuantizeReport chosen = quantize_linear(model, folder / "chosen", options);
  EXPECT_LE(chosen.linear_bits, 3.6);
  EXPECT_GT(chosen.linear_bits, 3.2);
  EXPECT_TRUE(open_checkpoint((folder / "chosen").string())->tensor(tower + ".weight").stored_as.empty());
  options.budget_bits.reset();
  options.budget_bytes = chosen.size_bytes;
  EXPECT_LE(quantize_linear(model, folder / "sized", options).size_bytes, chosen.size_bytes);
}

/// The bundled model as the text part of one that also sees.
std::string within_larger_model(const fs::path& folder) {
  fs::create_directories(folder);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) fs::copy_file(fs::path(kModel) / name, folder / name);
  const Json text = parse_json(testing::read_file(fs::path(kModel) / "config.json"), "config");
  const Json whole = Json::Object{{"architectures", Json::Array{"LlavaForConditionalGeneration"}}, {"model_type", "llava"}, {"text_config", text}};
  testing::write_file(folder / "config.json", write_json(whole));
  const auto from = open_checkpoint(kModel);
  std::vector<MadeTensor> tensors;
  for (const TensorInfo& tensor : from->tensors()) {
    std::vector<std::byte> bytes(tensor.size_bytes);
    from->read_bytes(tensor, 0, bytes);
    tensors.push_back({"language_model." + tensor.name, tensor.dtype, tensor.shape, std::move(bytes)});
  }
  tensors.push_back({"vision_tower.layers.0.self_attn.q_proj.weight", DType::bf16, {64, 64}, std::vector<std::byte>(2 * 64 * 64)});
  write_weights(folder, tensors);
  return folder.string();
}

TEST(QuantizeLinear, the_text_part_of_a_larger_model_is_quantized_like_the_text_model_alone) {
  const TemporaryFolder folder;
  const std::string larger = within_larger_model(folder / "larger");
  for (const auto& [method, format] : {std::pair{"gptq", "compressed-tensors"}, {"smooth+rtn", "compressed-tensors"}, {"pqi+rtn", "weft"}}) {
    SCOPED_TRACE(method);
    LinearQuantizeOptions options;
    options.format = format;
    options.method = method;
    if (options.method == "pqi+rtn") options.parameters = {{"pqi.points", 2}, {"pqi.sequences", 2}};
    options.group = 32;
    options.force = true;
    options.tokens = some_tokens(4, 32);
    options.rules = {{.pattern = "language_model.model.layers.1.mlp.down_proj", .keep = true, .bits = {}, .group = {}}};
    const LinearQuantizeReport report = quantize_linear(larger, folder / "out", options);
    options.rules.front().pattern = "layers.1.mlp.down_proj";
    const LinearQuantizeReport alone_report = quantize_linear(kModel, folder / "alone", options);
    ASSERT_EQ(report.layers.size(), alone_report.layers.size());
    for (std::size_t i = 0; i < report.layers.size(); ++i) {
      EXPECT_EQ(report.layers[i].name, "language_model." + alone_report.layers[i].name);
      EXPECT_EQ(report.layers[i].relative_loss, alone_report.layers[i].relative_loss);
    }
    const auto alone = open_safetensors_file(folder / "alone/model.safetensors", folder / "alone/model.safetensors");
    const auto part = open_safetensors_file(folder / "out/model.safetensors", folder / "out/model.safetensors");
    EXPECT_EQ(part->tensors().size(), alone->tensors().size() + 1);
    for (const TensorInfo& tensor : alone->tensors()) {
      std::vector<std::byte> a(tensor.size_bytes), b(tensor.size_bytes);
      alone->read_bytes(tensor, 0, a);
      part->read_bytes(part->tensor("language_model." + tensor.name), 0, b);
      EXPECT_EQ(a, b) << tensor.name;
    }
    const std::string config = testing::read_file(folder / "out/config.json");
    if (options.format == "compressed-tensors") {
      EXPECT_NE(config.find("\"language_model.model.layers.1.mlp.down_proj\""), std::string::npos) << "among what is ignored";
    }
    EXPECT_FALSE(fs::exists(folder / ".out.weft-blocks"));
  }
  // A mistake that shows on the way leaves nothing behind.
  LinearQuantizeOptions options;
  options.format = "weft";
  options.method = "gptq";
  options.tokens = some_tokens(4, 32);
  options.rules = {{.pattern = "layers.[01]", .keep = true, .bits = {}, .group = {}}};
  const std::string unreached = with_tensors(folder / "unreached", {{"model.other.up_proj.weight", {128, 128}}});
  EXPECT_WEFT_ERROR(quantize_linear(unreached, folder / "none", options), invalid_argument, "none of the 1 layers is in a block");
  EXPECT_FALSE(fs::exists(folder / "none"));
  EXPECT_FALSE(fs::exists(folder / ".none.weft-blocks"));
}

TEST(QuantizeLinear, a_layer_that_is_one_block_has_a_matrix_of_one_scale) {
  const TemporaryFolder folder;
  const std::string name = "model.layers.9.mlp.up_proj", model = with_tensors(folder / "model", {{name + ".weight", {32, 96}}});
  LinearQuantizeOptions options;
  options.format = "compressed-tensors";
  options.numbers = "fp8-block";
  EXPECT_EQ(quantize_linear(model, folder / "out", options).layers.size(), 15u);
  const fs::path file = folder / "out/model.safetensors";
  EXPECT_EQ(open_safetensors_file(file, file)->tensor(name + ".weight_scale").shape, (Shape{1, 1}));
  EXPECT_EQ(open_checkpoint((folder / "out").string())->tensor(name + ".weight").shape, (Shape{32, 96}));
}

TEST(QuantizeLinear, values_that_the_scales_do_not_reach_are_refused_not_made_infinite) {
  const TemporaryFolder folder;
  // 0xFBFB is -65376 in float16, and the lowest of eight codes lies a little beyond.
  const std::string name = "model.layers.9.mlp.up_proj.weight", model = with_tensors(folder / "model", {{name, {32, 128}}}, std::byte{0xFB});
  LinearQuantizeOptions options;
  options.bits = 3;
  EXPECT_WEFT_ERROR(quantize_linear(model, folder / "out", options), unsupported, "up to 65376, for which gptq has no scale");
  options.rules = {{.pattern = "layers\\.9", .keep = true, .bits = {}, .group = {}}};
  EXPECT_EQ(quantize_linear(model, folder / "out", options).layers.size(), 14u);
}

TEST(QuantizeLinear, configs_name_the_routers_and_heads_that_tools_would_take_for_layers) {
  const fs::path model = fs::path(WEFT_SOURCE_DIR) / "../shared/golden/logits/models/mixtral";
  if (!fs::exists(model)) GTEST_SKIP() << "no reference data beside the repository";
  const TemporaryFolder folder;
  for (const auto& [format, key] :
       {std::pair("compressed-tensors", "ignore"), std::pair("awq", "modules_to_not_convert"), std::pair("bnb-nf4", "llm_int8_skip_modules")}) {
    SCOPED_TRACE(format);
    LinearQuantizeOptions options;
    options.format = format;
    options.group = 0;
    static_cast<void>(quantize_linear(model.string(), folder / format, options));
    const Json config = read_json_file(folder / format / "config.json");
    std::vector<std::string> names;
    for (const Json& name : *config.find("quantization_config")->find(key)->array()) names.push_back(*name.string());
    EXPECT_EQ(std::count(names.begin(), names.end(), "lm_head"), 1);
    const auto result = open_checkpoint((folder / format).string());
    std::size_t num_routers = 0;
    for (const TensorInfo& tensor : result->tensors()) {
      if (!tensor.name.ends_with(".block_sparse_moe.gate.weight")) continue;
      ++num_routers;
      EXPECT_TRUE(tensor.stored_as.empty());
      EXPECT_EQ(std::count(names.begin(), names.end(), tensor.name.substr(0, tensor.name.size() - 7)), 1) << tensor.name;
    }
    EXPECT_GT(num_routers, 0u);
    EXPECT_EQ(names.size(), num_routers + 1);
  }
}

TEST(QuantizeLinear, a_budget_gives_each_layer_a_width_and_loses_no_more_than_one_width_for_all) {
  const TemporaryFolder folder;
  struct Run {
    const char* format;
    const char* method;
    bool reads;
    std::string name;
  };
  for (const Run& run : {Run{"gptq", "rtn", false, "a"}, Run{"gptq_v2", "gptq", true, "b"}, Run{"compressed-tensors", "rtn", true, "c"},
                         Run{"weft", "exact+rtn", false, "d"}}) {
    SCOPED_TRACE(fmt::format("{} {}", run.format, run.method));
    LinearQuantizeOptions options;
    options.format = run.format;
    options.method = run.method;
    options.group = 64;
    if (run.reads) options.tokens = some_tokens(4, 64);
    options.bits = 3;
    const LinearQuantizeReport uniform = quantize_linear(kModel, folder / (run.name + "-uniform"), options);
    options.budget_bits = uniform.linear_bits;
    const LinearQuantizeReport chosen = quantize_linear(kModel, folder / (run.name + "-bits"), options);
    EXPECT_LE(chosen.linear_bits, uniform.linear_bits + 1e-9);
    EXPECT_GT(chosen.linear_bits, uniform.linear_bits - 0.2);
    double before = 0, after = 0;
    for (const LinearQuantizeOptions::Layer& layer : uniform.layers) before += layer.relative_loss;
    for (const LinearQuantizeOptions::Layer& layer : chosen.layers) after += layer.relative_loss;
    EXPECT_EQ(chosen.layers.size(), 14u);
    // With a text, what a layer reads behind quantized ones is not what the widths were chosen by.
    EXPECT_LE(after, before * (run.reads ? 1.02 : 1));
    EXPECT_LT(relative(logits_of(kModel), logits_of((folder / (run.name + "-bits")).string())), 0.8);
    if (run.name != "a") continue;
    // The same in bytes of the whole model.
    options.budget_bits.reset();
    options.budget_bytes = uniform.size_bytes;
    const LinearQuantizeReport sized = quantize_linear(kModel, folder / (run.name + "-bytes"), options);
    EXPECT_LE(sized.size_bytes, uniform.size_bytes);
    EXPECT_EQ(sized.linear_bits, chosen.linear_bits);
    EXPECT_EQ(testing::read_file(folder / (run.name + "-bytes/config.json")), testing::read_file(folder / (run.name + "-bits/config.json")));
  }
}

TEST(QuantizeLinear, a_budget_that_is_spent_on_blocks_gives_the_important_ones_the_higher_width) {
  const TemporaryFolder folder;
  for (const char* by : {"lim", "zd"}) {
    SCOPED_TRACE(by);
    LinearQuantizeOptions options;
    options.group = 64;
    options.budget_by = by;
    options.widths = {4, 3};
    if (std::string(by) == "lim") options.tokens = some_tokens(6, 64);
    options.budget_bits = 3.95;  // half of the weights at 3 bits, half at 4, and what their scales take
    const LinearQuantizeReport report = quantize_linear(kModel, folder / by, options);
    EXPECT_LE(report.linear_bits, 3.95);
    std::map<char, std::set<double>> widths;
    for (const LinearQuantizeOptions::Layer& layer : report.layers) widths[layer.name.at(13)].insert(std::floor(layer.bits));
    ASSERT_EQ(widths.size(), 2u);
    for (const auto& [block, own] : widths) EXPECT_EQ(own.size(), 1u);
    EXPECT_NE(widths['0'], widths['1']);
    if (std::string(by) == "lim") continue;
    // By hand, from the weights.
    const auto original = open_checkpoint(kModel);
    std::map<char, double> shares;
    for (const char block : {'0', '1'}) {
      double count = 0, sum = 0, squares = 0, above = 0;
      std::vector<float> all;
      for (const LinearQuantizeOptions::Layer& layer : report.layers)
        if (layer.name.at(13) == block)
          for (const float value : values_of(*original, layer.name)) all.push_back(value);
      for (const float value : all) ++count, sum += value, squares += static_cast<double>(value) * value;
      const double mean = sum / count, deviation = std::sqrt(squares / count - mean * mean);
      for (const float value : all) above += (value - mean) / deviation > 1;
      shares[block] = above / count;
    }
    EXPECT_EQ(widths['0'] > widths['1'], shares['0'] < shares['1']);
  }
  LinearQuantizeOptions options;
  options.budget_bits = 4;
  options.budget_by = "lim";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "--calibration");
  options.budget_by = "zd";
  options.widths = {2, 3, 4};
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "one of two widths");
  options.widths = {4, 5};
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "does not hold 5 bits");
}

TEST(QuantizeLinear, a_budget_leaves_rules_alone_and_is_refused_below_the_least_that_the_layers_take) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.group = 64;
  options.budget_bits = 4;
  options.rules = {{.pattern = "down_proj", .bits = 8, .group = {}}, {.pattern = "o_proj", .keep = true, .bits = {}, .group = {}}};
  const LinearQuantizeReport report = quantize_linear(kModel, folder / "rules", options);
  EXPECT_EQ(report.layers.size(), 12u);
  EXPECT_LE(report.linear_bits, 4);
  std::set<double> widths;
  for (const LinearQuantizeOptions::Layer& layer : report.layers) widths.insert(std::floor(layer.bits));
  EXPECT_GT(widths.size(), 2u);
  const auto result = open_checkpoint((folder / "rules").string());
  EXPECT_EQ(result->tensor("model.layers.1.mlp.down_proj.weight").stored_as, "GPTQ8");
  EXPECT_TRUE(result->tensor("model.layers.0.self_attn.o_proj.weight").stored_as.empty());

  const auto with = [&](auto&& change) {
    LinearQuantizeOptions other;
    other.group = 64;
    change(other);
    return quantize_linear(kModel, folder / "out", other);
  };
  using Options = LinearQuantizeOptions;
  const auto least = with([](Options& o) { o.budget_bits = 2.5; }).linear_bits;
  fs::remove_all(folder / "out");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.budget_bits = 2; }), invalid_argument, "a budget of 2 bits a weight is below the least");
  EXPECT_GE(least, 2.28);
  EXPECT_WEFT_ERROR(with([](Options& o) { o.budget_bits = 2; }), invalid_argument, ", 2.3924");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.budget_bytes = 1000; }), invalid_argument,
                    "1000 bytes) is below the least that the model's tensors take");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.budget_bits = NAN; }), invalid_argument, "makes no sense");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.format = "awq", o.budget_bits = 4; }), invalid_argument, "one width for all layers");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.format = "weft", o.numbers = "nf4", o.budget_bits = 4; }), invalid_argument, "one width");
  EXPECT_FALSE(fs::exists(folder / "out"));
  // More than all of them can use.
  EXPECT_LT(with([](Options& o) { o.budget_bytes = std::uint64_t{1} << 40; }).linear_bits, 8.5);
}

TEST(QuantizeLinear, what_cannot_be_is_refused_before_anything_is_written) {
  const TemporaryFolder folder;
  const fs::path output = folder / "out";
  const auto with = [&](auto&& change) {
    LinearQuantizeOptions options;
    change(options);
    return quantize_linear(kModel, output, options);
  };
  using Options = LinearQuantizeOptions;
  EXPECT_WEFT_ERROR(with([](Options& o) { o.method = "gptq"; }), invalid_argument, "--calibration");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.method = "magic"; }), invalid_argument, "no method 'magic'");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.method = "gptq+awq"; }), invalid_argument, "stands behind");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.method = "rtn+gptq"; }), invalid_argument, "both choose");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.method = "hqq"; }), invalid_argument, "--format weft");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.method = "rtn+lorc"; }), invalid_argument, "--format weft");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.format = "exl2"; }), invalid_argument, "no format 'exl2'");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.symmetric = false; }), invalid_argument, "gptq_v2");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.bits = 5; }), invalid_argument, "2, 3, 4 and 8 bits");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.format = "awq", o.bits = 3; }), invalid_argument, "4 bits");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.group = 96; }), unsupported, "no multiple of the group of 96");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.group = -3; }), invalid_argument, "makes no sense");
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  EXPECT_WEFT_ERROR(with([](Options& o) { o.group = kMost; }), invalid_argument, "makes no sense");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.format = "compressed-tensors", o.rules = {{.pattern = "v_proj", .bits = 4, .group = kMost}}; }),
                    invalid_argument, "in groups of 9223372036854775807");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.rules = {{.pattern = "no_such", .keep = true, .bits = {}, .group = {}}}; }), invalid_argument,
                    "matches no linear layer");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.rules = {{.pattern = "proj", .keep = true, .bits = {}, .group = {}}}; }), invalid_argument,
                    "no linear layer to quantize");
  EXPECT_WEFT_ERROR(with([](Options& o) { o.damping = NAN; }), invalid_argument, "damping");
  EXPECT_FALSE(fs::exists(output));
  static_cast<void>(with([](Options&) {}));
  EXPECT_WEFT_ERROR(quantize_linear(output.string(), folder / "again", {}), invalid_argument, "quantized already");
  LinearQuantizeOptions again;
  again.allow_requantize = true;
  static_cast<void>(quantize_linear(output.string(), folder / "again", again));
  EXPECT_LT(distance(*open_checkpoint(output.string()), *open_checkpoint((folder / "again").string()), kUp), 0.12);
}

}  // namespace
}  // namespace weft::engine
