#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "checkpoint/json.h"
#include "engine/quantize_linear.h"
#include "engine/running_model.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/read_all.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "support/tiny_runs.h"

// Methods that fit scales, keep single weights, and make statistics good again, from the options to a model that runs.
namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using testing::logits_of;
using testing::relative;
using testing::some_tokens;
using testing::TemporaryFolder;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";

TEST(QuantizeRepair, codes_and_scales_by_turns_lose_less_than_compensation_in_every_format) {
  const TemporaryFolder folder;
  const std::vector<float> plain = logits_of(kModel, 60);
  for (const char* format : {"weft", "gptq_v2", "gptq", "compressed-tensors"}) {
    SCOPED_TRACE(format);
    std::map<std::string, double> drift, loss;
    for (const char* method : {"gptq", "decoupleq"}) {
      LinearQuantizeOptions options;
      options.method = method;
      options.format = format;
      options.bits = 2;
      options.group = 64;
      // Three layers of the first block tell as much as all.
      options.rules = {{"layers\\.1|self_attn\\.[qo]|down|up", true, {}, {}}};
      options.tokens = some_tokens(6, 64);
      if (method == std::string("decoupleq")) options.parameters = {{"decoupleq.drift", 0}, {"decoupleq.rounds", 2}};
      const fs::path output = folder / fmt::format("{}-{}", format, method);
      const LinearQuantizeReport report = quantize_linear(kModel, output, options);
      ASSERT_EQ(report.layers.size(), 3u);
      loss[method] = report.layers.front().relative_loss;
      drift[method] = relative(plain, logits_of(output.string(), 60));
      if (std::string(format) == "weft") {
        // Codes, 16 bits of scale a group, and a zero point: as wide as a code, or as a scale.
        EXPECT_NEAR(report.linear_bits, method == std::string("gptq") ? 2 + 18.0 / 64 : 2 + 32.0 / 64, 0.02);
      }
    }
    EXPECT_LT(loss["decoupleq"], 0.9 * loss["gptq"]);
    EXPECT_LT(drift["decoupleq"], drift["gptq"]);
  }
}

TEST(QuantizeRepair, parameters_of_steps_are_checked_and_count) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.method = "decoupleq";
  options.format = "gptq_v2";
  options.tokens = some_tokens(2, 32);
  options.parameters = {{"decoupleq.turns", 1}};
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "decoupleq.turns");
  options.parameters = {{"decoupleq.rounds", 0}};
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "decoupleq.rounds");
  options.parameters = {};
  options.order = "dynamic";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "out", options), invalid_argument, "neighbouring inputs");
}

TEST(QuantizeRepair, drift_of_inputs_is_made_good_by_turns) {
  const TemporaryFolder folder;
  const std::vector<float> plain = logits_of(kModel, 60);
  std::map<double, double> off;
  for (const double drift : {0.0, 0.5}) {
    LinearQuantizeOptions options;
    options.method = "decoupleq";
    options.format = "weft";
    options.bits = 2;
    options.group = 64;
    options.rules = {{"down", true, {}, {}}};
    options.tokens = some_tokens(10, 64);
    options.parameters = {{"decoupleq.drift", drift}, {"decoupleq.rounds", 1}, {"decoupleq.sweeps", 1}};
    const fs::path output = folder / fmt::format("drift-{}", drift);
    static_cast<void>(quantize_linear(kModel, output, options));
    off[drift] = relative(plain, logits_of(output.string(), 60));
  }
  EXPECT_LT(off[0.5], off[0.0]);
}

using Change = std::function<void(const std::string& name, std::size_t width, std::vector<float>& values)>;
/// tiny-base in float32, with other weights.
std::string changed_model(const fs::path& folder, const Change& change) {
  fs::create_directories(folder);
  const testing::Tensors base = testing::read_all(kModel);
  const auto checkpoint = open_checkpoint(kModel);
  std::vector<testing::StoredTensor> tensors;
  for (const TensorInfo& info : checkpoint->tensors()) {
    std::vector<float> values = testing::values_of(info.dtype, base.at(info.name));
    change(info.name, static_cast<std::size_t>(info.shape.back()), values);
    tensors.push_back({info.name, "F32", info.shape, testing::bytes_of(values)});
  }
  testing::write_file(folder / "model.safetensors", testing::safetensors_of_types(tensors));
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json"}) fs::copy_file(fs::path(kModel) / name, folder / name);
  return folder.string();
}
std::vector<float> float_weights(const fs::path& model, const std::string& name) {
  const auto checkpoint = open_checkpoint(model.string());
  const TensorInfo& info = checkpoint->tensor(name);
  return testing::values_of(info.dtype, testing::read_all(model).at(name));
}

TEST(QuantizeRepair, a_planted_super_weight_is_found_and_kept_and_its_row_loses_less) {
  constexpr std::size_t kRow = 17, kColumn = 23;
  constexpr float kValue = 3.7F;
  const std::string down = "model.layers.0.mlp.down_proj.weight";
  const TemporaryFolder folder;
  // One weight carries what one channel says very loudly.
  const std::string model = changed_model(folder / "model", [&](const std::string& name, std::size_t width, std::vector<float>& values) {
    if (name == "model.layers.0.mlp.up_proj.weight")
      for (std::size_t j = 0; j < width; ++j) values[kColumn * width + j] *= 1000;
    if (name == down) values[kRow * width + kColumn] = kValue;
  });
  const std::vector<float> plain = logits_of(model, 60), before = float_weights(model, down);
  const std::size_t width = before.size() / 256;
  std::map<std::string, double> drift, lost;
  for (const char* method : {"rtn", "super+rtn", "exact+super+rtn"}) {
    SCOPED_TRACE(method);
    LinearQuantizeOptions options;
    options.method = method;
    options.format = "weft";
    options.group = 0;
    options.rules = {{"layers\\.1|self_attn|up|gate", true, {}, {}}};
    std::vector<std::string> warnings;
    options.on_warning = [&](const std::string& text) { warnings.push_back(text); };
    const fs::path output = folder / method;
    static_cast<void>(quantize_linear(model, output, options));
    drift[method] = relative(plain, logits_of(output.string(), 60));
    const std::vector<float> after = float_weights(output, down);
    ASSERT_EQ(after.size(), before.size());
    for (std::size_t j = 0; j < width; ++j)
      if (j != kColumn) lost[method] += std::pow(static_cast<double>(after[kRow * width + j]) - before[kRow * width + j], 2);
    if (method == std::string("rtn")) continue;
    ASSERT_EQ(warnings.size(), 1u);
    EXPECT_NE(warnings.front().find(fmt::format("{}[{}, {}] = 3.7", down, kRow, kColumn)), std::string::npos) << warnings.front();
    EXPECT_EQ(after[kRow * width + kColumn], kValue);
  }
  EXPECT_LT(lost["super+rtn"], 0.1 * lost["rtn"]);
  EXPECT_LT(drift["super+rtn"], drift["rtn"]);
  EXPECT_LT(drift["exact+super+rtn"], drift["rtn"]);
}

TEST(QuantizeRepair, a_model_without_super_weights_is_told_once_to_have_none) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.method = "super+rtn";
  options.format = "weft";
  options.rules = {{"layers\\.1|self_attn", true, {}, {}}};
  std::vector<std::string> warnings;
  options.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  const LinearQuantizeReport report = quantize_linear(kModel, folder / "super", options);
  EXPECT_EQ(warnings, std::vector<std::string>{"super weights: none"});
  EXPECT_EQ(report.warnings, warnings);
  options.method = "rtn";
  static_cast<void>(quantize_linear(kModel, folder / "rtn", options));
  EXPECT_EQ(testing::read_file(folder / "super/model.safetensors"), testing::read_file(folder / "rtn/model.safetensors"))
      << "where none is found and nothing clipped, rounding is left";
  // The best of several limits, none among them, never loses more of a layer's weights.
  options.method = "super+rtn";
  options.parameters = {{"super.clip", 0}};
  const LinearQuantizeReport clipped = quantize_linear(kModel, folder / "clipped", options);
  ASSERT_EQ(clipped.layers.size(), report.layers.size());
  for (const auto& layer : report.layers)
    for (const auto& other : clipped.layers)
      if (other.name == layer.name) {
        EXPECT_LE(other.relative_loss, layer.relative_loss) << layer.name;
      }
  options.method = "super+gptq";
  options.format = "gptq";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "gptq", options), invalid_argument, "write --format weft");
}

TEST(QuantizeRepair, a_budget_by_the_models_loss_gives_least_to_layers_that_nothing_hears) {
  const TemporaryFolder folder;
  const std::string deaf = "model.layers.1.self_attn.";
  const std::string model = changed_model(folder / "model", [&](const std::string& name, std::size_t, std::vector<float>& values) {
    if (name == deaf + "o_proj.weight")
      for (float& value : values) value *= 1e-5F;
  });
  LinearQuantizeOptions options;
  options.method = "rtn";
  options.format = "weft";
  options.group = 64;
  options.widths = {2, 4};
  options.budget_bits = 3.2;  // for down alone, or two of the others
  options.budget_by = "model";
  options.rules = {{"layers\\.0|mlp", true, {}, {}}};
  EXPECT_WEFT_ERROR(quantize_linear(model, folder / "out", options), invalid_argument, "--budget-by loss");
  options.rules = {{"layers\\.0|gate|up", true, {}, {}}};
  options.calibration = CalibrationText{.files = {fs::path(WEFT_SOURCE_DIR) / "README.md"}, .num_sequences = 4, .length = 64};
  const LinearQuantizeReport report = quantize_linear(model, folder / "out", options);
  ASSERT_EQ(report.layers.size(), 5u);
  EXPECT_LE(report.linear_bits, 3.2);
  for (const auto& layer : report.layers) EXPECT_EQ(layer.bits > 3.5, layer.name.find("down_proj") != std::string::npos) << layer.name << layer.bits;
}

TEST(QuantizeRepair, an_expert_without_tokens_is_done_by_what_its_neighbours_read) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "model");
  const testing::Tensors base = testing::read_all(kModel);
  const auto checkpoint = open_checkpoint(kModel);
  std::vector<testing::StoredTensor> tensors;
  const std::map<std::string, std::string> names = {{"gate_proj", "w1"}, {"down_proj", "w2"}, {"up_proj", "w3"}};
  for (const TensorInfo& info : checkpoint->tensors()) {
    const std::string bytes = testing::bytes_of(testing::values_of(info.dtype, base.at(info.name)));
    const std::size_t at = info.name.find("mlp.");
    if (at == std::string::npos) {
      tensors.push_back({info.name, "F32", info.shape, bytes});
      continue;
    }
    const std::string block = info.name.substr(0, at) + "block_sparse_moe.", kind = info.name.substr(at + 4, info.name.size() - at - 11);
    for (int expert = 0; expert < 3; ++expert)
      tensors.push_back({fmt::format("{}experts.{}.{}.weight", block, expert, names.at(kind)), "F32", info.shape, bytes});
    if (kind != "up_proj") continue;
    // Of a direction and its opposite one is always above 0, so that nothing is left for the third.
    std::vector<float> router(std::size_t{3} * 256);
    for (std::size_t j = 0; j < 256; ++j) router[256 + j] = -(router[j] = j % 3 == 0 ? 1.0F : -0.4F);
    tensors.push_back({block + "gate.weight", "F32", {3, 256}, testing::bytes_of(router)});
  }
  testing::write_file(folder / "model/model.safetensors", testing::safetensors_of_types(tensors));
  std::string config(testing::read_file(fs::path(kModel) / "config.json"));
  const auto replace = [&](const std::string& what, const std::string& with) { config.replace(config.find(what), what.size(), with); };
  replace("LlamaForCausalLM", "MixtralForCausalLM");
  replace("\"llama\"", "\"mixtral\", \"num_local_experts\": 3, \"num_experts_per_tok\": 1");
  testing::write_file(folder / "model/config.json", config);

  LinearQuantizeOptions options;
  options.method = "gptq";
  options.format = "weft";
  options.group = 64;
  options.rules = {{"layers\\.1|self_attn", true, {}, {}}};
  options.tokens = some_tokens(4, 48);
  std::vector<std::string> warnings;
  options.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  const LinearQuantizeReport report = quantize_linear((folder / "model").string(), folder / "out", options);
  std::size_t num_unread = 0;
  for (const std::string& warning : report.warnings) {
    if (warning.find("was read by no token") == std::string::npos) continue;
    ++num_unread;
    EXPECT_NE(warning.find("experts.2."), std::string::npos) << warning;
    const bool is_down = warning.find(".w2.") != std::string::npos;
    EXPECT_NE(warning.find(is_down ? "all that it may read counts alike" : "done by what its neighbours read"), std::string::npos) << warning;
  }
  EXPECT_EQ(num_unread, 3u);
  EXPECT_EQ(warnings, report.warnings) << "each told once";
  ASSERT_EQ(report.layers.size(), 9u);
  for (const auto& layer : report.layers) EXPECT_EQ(layer.method, "gptq") << layer.name;
}

TEST(QuantizeRepair, smoothed_keys_leave_the_model_as_it_was) {
  const TemporaryFolder folder;
  const std::string model = changed_model(folder / "model", [](const std::string&, std::size_t, std::vector<float>&) {});
  LinearQuantizeOptions options;
  options.format = "weft";
  options.bits = 8;
  options.group = 64;
  options.tokens = some_tokens(4, 48);
  options.rules = {{"layers\\.0|self_attn|up|gate", true, {}, {}}};
  for (const char* method : {"rtn", "keys+rtn"}) {
    options.method = method;
    static_cast<void>(quantize_linear(model, folder / method, options));
  }
  EXPECT_LT(relative(logits_of((folder / "rtn").string(), 60), logits_of((folder / "keys+rtn").string(), 60)), 1e-5);
  const std::string keys = "model.layers.0.self_attn.k_proj.weight";
  EXPECT_GT(relative(float_weights(folder / "rtn", keys), float_weights(folder / "keys+rtn", keys)), 0.01);
}

TEST(QuantizeRepair, scales_of_8_bits_take_less_room_and_their_products_are_what_runs) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.format = "weft";
  options.symmetric = true;
  options.group = 64;
  options.rules = {{"layers\\.1|self_attn", true, {}, {}}};
  std::map<std::string, LinearQuantizeReport> reports;
  for (const char* method : {"rtn", "fireq+rtn"}) {
    options.method = method;
    reports[method] = quantize_linear(kModel, folder / method, options);
  }
  EXPECT_NEAR(reports["rtn"].linear_bits - reports["fireq+rtn"].linear_bits, 8.0 / 64, 0.02);
  for (std::size_t i = 0; i < reports["rtn"].layers.size(); ++i) {
    const double plain = reports["rtn"].layers[i].relative_loss, own = reports["fireq+rtn"].layers[i].relative_loss;
    EXPECT_GT(own, plain) << "the products are rounded, which costs something";
    EXPECT_LT(own, 1.5 * plain);
  }
  options.method = "fireq+gptq";
  options.format = "gptq";
  options.tokens = some_tokens(2, 32);
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "gptq", options), invalid_argument, "write --format weft");
  options.format = "weft";
  options.method = "fireq+refine";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "refined", options), invalid_argument, "do not go together");
}

TEST(QuantizeRepair, scales_that_shift_are_held_by_every_format_of_free_scales) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options;
  options.group = 64;
  options.rules = {{"layers\\.1|self_attn|down", true, {}, {}}};
  for (const char* format : {"gptq", "compressed-tensors", "weft"}) {
    SCOPED_TRACE(format);
    options.format = format;
    options.symmetric = true;
    std::map<int, double> loss;
    for (const int rule : {0, 1, 2}) {
      options.method = rule == 0 ? "rtn" : "shifts+rtn";
      options.parameters.clear();
      if (rule > 0) options.parameters = {{"shifts.rule", rule}};
      const fs::path output = folder / fmt::format("{}-{}", format, rule);
      loss[rule] = quantize_linear(kModel, output, options).layers.front().relative_loss;
    }
    EXPECT_LT(loss[2], loss[1]);
    EXPECT_LT(loss[0], loss[2]);
    EXPECT_LT(loss[1], 3 * loss[0]);
  }
  options.method = "shifts+rtn";
  options.parameters = {{"shifts.rule", 1.5}};
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "none", options), invalid_argument, "1 or 2");
  options.parameters.clear();
  options.format = "compressed-tensors";
  options.numbers = "mxfp4";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "mx", options), invalid_argument, "powers of two already");
}

}  // namespace
}  // namespace weft::engine
