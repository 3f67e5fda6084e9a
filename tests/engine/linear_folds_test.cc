#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "engine/block_pass.h"
#include "engine/lazy_model.h"
#include "engine/linear_plan.h"
#include "engine/linear_scales.h"
#include "engine/quantize_linear.h"
#include "engine/running_model.h"
#include "math/convert.h"
#include "model/space_map.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "support/tiny_runs.h"

// Steps that turn, scale and shift what layers read, from end to end: rotate, rsq, adadim, dsq, dac, smoothplus.
namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using model::Role;
using testing::TemporaryFolder;
using testing::relative;
using testing::some_tokens;
using testing::values_of;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";

std::vector<float> logits_of(const std::string& model) {
  RunningModel running(model, {});
  const std::vector<std::uint32_t> ids = some_tokens(1, 40)->sequences.front();
  const model::TokenChunk chunk{nullptr, ids, {}};
  std::vector<float> rows = running.network().run(std::span(&chunk, 1));
  const auto hidden = static_cast<std::size_t>(running.config().hidden);
  std::vector<float> out(ids.size() * static_cast<std::size_t>(running.config().vocab));
  running.network().logits({rows.data(), ids.size(), hidden, hidden}, out);
  return out;
}

LinearQuantizeOptions with(const std::string& method, const std::string& format, int bits, std::int64_t group) {
  LinearQuantizeOptions options;
  options.method = method;
  options.format = format;
  options.bits = bits;
  options.group = group;
  return options;
}

/// The model with four channels of each norm 30 times as loud, and what reads them a thirtieth: the same function, with outlying activations.
LazyModel with_outliers() {
  LazyModel model = open_lazy_model(kModel);
  cast_all(model, DType::f32);
  std::vector<model::SpaceMap> maps;
  for (int layer = 0; layer < 2; ++layer)
    for (const char* norm : {"attention_in", "mlp_in"}) {
      std::vector<double> factors(256, 1.0);
      for (const std::size_t channel : {17U, 90U, 141U, 230U}) factors[channel] = 30;
      maps.push_back(model::scaled(fmt::format("{}.{}", norm, layer), factors));
    }
  const model::MappedModel mapped = model::map_spaces(checkpoint_of(model), *model.parts.config, maps);
  model.parts.tensors.clear();
  for (const TensorInfo& tensor : mapped.checkpoint->tensors())
    model.parts.tensors.push_back({tensor.name, {mapped.checkpoint, &tensor}, {mapped.checkpoint, &tensor}, {}, {}});
  return model;
}

TEST(LinearFolds, a_turned_model_is_an_ordinary_one_in_every_format) {
  const TemporaryFolder folder;
  const std::vector<float> logits = logits_of(kModel);
  for (const char* format : {"gptq", "compressed-tensors", "bnb-int8", "weft"}) {
    LinearQuantizeOptions options = with("rotate+rtn", format, 8, 0);
    const fs::path output = folder / format;
    const LinearQuantizeReport report = quantize_linear(kModel, output, options);
    EXPECT_EQ(report.layers.size(), 14U);
    EXPECT_LT(relative(logits, logits_of(output.string())), 0.03) << format;
    const Json config = read_json_file(output / "config.json");
    EXPECT_FALSE(config.find("tie_word_embeddings")->boolean().value_or(true));
    const auto result = open_checkpoint(output.string());
    EXPECT_NE(result->find_tensor("lm_head.weight"), nullptr);
    for (const float gain : values_of(*result, "model.layers.1.post_attention_layernorm.weight")) EXPECT_EQ(gain, 1);
  }
  // The seed turns it, and nothing else does.
  LinearQuantizeOptions options = with("rotate+gptq", "gptq", 4, 128);
  options.tokens = some_tokens(6, 64);
  for (const auto& [name, seed, threads] : {std::tuple("a", 1, 1), std::tuple("b", 1, 2), std::tuple("c", 2, 2)}) {
    options.seed = static_cast<std::uint64_t>(seed);
    options.threads = threads;
    static_cast<void>(quantize_linear(kModel, folder / name, options));
  }
  EXPECT_TRUE(testing::read_file(folder / "a/model.safetensors") == testing::read_file(folder / "b/model.safetensors"));
  EXPECT_FALSE(testing::read_file(folder / "a/model.safetensors") == testing::read_file(folder / "c/model.safetensors"));
}

TEST(LinearFolds, tokens_that_count_alike_make_rsq_plain_compensation) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options = with("gptq", "gptq", 3, 0);
  options.tokens = some_tokens(10, 96);
  static_cast<void>(quantize_linear(kModel, folder / "plain", options));
  options.method = "rsq+gptq";
  options.parameters = {{"rsq.least", 1.0}};
  static_cast<void>(quantize_linear(kModel, folder / "alike", options));
  EXPECT_TRUE(testing::read_file(folder / "plain/model.safetensors") == testing::read_file(folder / "alike/model.safetensors"));
  // 960 tokens are too few for 512 inputs if they do not count alike, and that is told.
  options.parameters = {};
  const LinearQuantizeReport few = quantize_linear(kModel, folder / "few", options);
  EXPECT_TRUE(testing::read_file(folder / "plain/model.safetensors") == testing::read_file(folder / "few/model.safetensors"));
  ASSERT_EQ(few.warnings.size(), 2U);
  EXPECT_NE(few.warnings.front().find("equal ones of 960"), std::string::npos) << few.warnings.front();
  options.tokens = some_tokens(30, 96);
  static_cast<void>(quantize_linear(kModel, folder / "weighted", options));
  EXPECT_FALSE(testing::read_file(folder / "plain/model.safetensors") == testing::read_file(folder / "weighted/model.safetensors"));
  options.threads = 1;
  static_cast<void>(quantize_linear(kModel, folder / "again", options));
  EXPECT_TRUE(testing::read_file(folder / "weighted/model.safetensors") == testing::read_file(folder / "again/model.safetensors"));
  for (const auto& parameters : std::vector<std::map<std::string, double>>{{{"rsq.first", 1.0}}, {{"rsq.copies", 2.0}}}) {
    options.parameters = parameters;
    static_cast<void>(quantize_linear(kModel, folder / parameters.begin()->first, options));
    EXPECT_LT(relative(logits_of(kModel), logits_of((folder / parameters.begin()->first).string())), 1);
  }
  options.parameters = {};
  options.method = "rsq+rtn";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "b", options), invalid_argument, "rsq+gptq");
}

TEST(LinearFolds, groups_along_outputs_are_taken_where_they_lose_less) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options = with("adadim+rtn", "weft", 3, 64);
  options.tokens = some_tokens(8, 64);
  const LinearQuantizeReport ada = quantize_linear(with_outliers(), folder / "ada", options);
  options.method = "rtn";
  const LinearQuantizeReport rtn = quantize_linear(with_outliers(), folder / "rtn", options);
  std::size_t by_output = 0;
  for (std::size_t i = 0; i < ada.layers.size(); ++i) {
    by_output += ada.layers[i].method.ends_with(" by output") ? 1 : 0;
    if (ada.layers[i].name.ends_with("q_proj.weight")) {
      EXPECT_EQ(ada.layers[i].method, "adadim+rtn by output") << "its loud inputs are four";
    }
  }
  EXPECT_GE(by_output, 4U);
  EXPECT_LT(relative(logits_of(kModel), logits_of((folder / "ada").string())),
            0.9 * relative(logits_of(kModel), logits_of((folder / "rtn").string())));
  EXPECT_LT(ada.linear_bits, rtn.linear_bits + 0.02);
  options.method = "adadim+gptq";
  const LinearQuantizeReport gptq = quantize_linear(with_outliers(), folder / "gptq", options);
  for (std::size_t i = 0; i < gptq.layers.size(); ++i) EXPECT_LT(gptq.layers[i].relative_loss, rtn.layers[i].relative_loss) << gptq.layers[i].name;
  options.threads = 1;
  static_cast<void>(quantize_linear(with_outliers(), folder / "again", options));
  EXPECT_TRUE(testing::read_file(folder / "gptq/model.safetensors") == testing::read_file(folder / "again/model.safetensors"));
  options.format = "gptq";
  EXPECT_WEFT_ERROR(quantize_linear(kModel, folder / "b", options), invalid_argument, "--format weft");
}

TEST(LinearFolds, a_second_scale_of_down_costs_no_bits_and_loses_no_more) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options = with("dsq+rtn", "gptq_v2", 3, 64);
  options.tokens = some_tokens(8, 64);
  const LinearQuantizeReport dual = quantize_linear(kModel, folder / "dual", options);
  options.method = "rtn";
  const LinearQuantizeReport rtn = quantize_linear(kModel, folder / "rtn", options);
  EXPECT_EQ(dual.linear_bits, rtn.linear_bits);
  for (std::size_t i = 0; i < dual.layers.size(); ++i)
    if (dual.layers[i].name.ends_with("0.mlp.down_proj.weight")) {
      EXPECT_LT(dual.layers[i].relative_loss, rtn.layers[i].relative_loss);
    }
  // At 8 bits nothing but the fold is left.
  options.method = "dsq+rtn";
  options.bits = 8;
  options.group = 32;
  static_cast<void>(quantize_linear(kModel, folder / "fine", options));
  EXPECT_LT(relative(logits_of(kModel), logits_of((folder / "fine").string())), 0.02);
}

TEST(LinearFolds, means_that_blocks_shift_are_put_back_by_biases) {
  const TemporaryFolder folder;
  const auto tokens = some_tokens(10, 64);
  LinearQuantizeOptions options = with("rtn+dac", "gptq", 2, 64);
  options.tokens = tokens;
  options.parameters = {{"dac.prior", 0.0}};
  static_cast<void>(quantize_linear(kModel, folder / "dac", options));
  const Json config = read_json_file(folder / "dac/config.json");
  EXPECT_TRUE(config.find("attention_bias")->boolean().value_or(false));
  EXPECT_TRUE(config.find("mlp_bias")->boolean().value_or(false));

  // What the layers answer to the calibration text has, on the mean, the answer to what the unchanged model gives them.
  std::map<std::pair<int, Role>, std::vector<double>> sums[2];
  for (const int which : {0, 1}) {
    RunningModel running(which == 0 ? kModel : (folder / "dac").string(), {});
    BlockPass pass(running, tokens, {});
    static_cast<void>(pass.run([&](Block& block) {
      for (const InputStatistics& read : block.statistics({.gram = false, .cross = false, .points = {}}))
        sums[which][{block.layer(), read.point.role}] = read.sum;
    }));
  }
  const auto result = open_checkpoint((folder / "dac").string());
  for (const auto& [layer, role, module] :
       {std::tuple(0, Role::up, "mlp.gate_proj"), std::tuple(1, Role::q, "self_attn.k_proj"), std::tuple(1, Role::up, "mlp.up_proj")}) {
    const std::string name = fmt::format("model.layers.{}.{}", layer, module);
    const std::vector<float> weight = values_of(*result, name + ".weight"), bias = values_of(*result, name + ".bias");
    const std::vector<double>&original = sums[0][{layer, role}], &changed = sums[1][{layer, role}];
    double left = 0, shifted = 0;
    for (std::size_t o = 0; o < bias.size(); ++o) {
      double before = 0, after = 0;
      for (std::size_t j = 0; j < original.size(); ++j) {
        before += static_cast<double>(weight[o * original.size() + j]) * original[j] / 640;
        after += static_cast<double>(weight[o * original.size() + j]) * changed[j] / 640;
      }
      left += std::pow(after + static_cast<double>(bias[o]) - before, 2);
      shifted += std::pow(after - before, 2);
    }
    // Biases are of bfloat16.
    EXPECT_LT(left, 1e-3 * shifted) << name;
  }
  for (const float value : values_of(*result, "model.layers.0.mlp.down_proj.bias")) EXPECT_EQ(value, 0);
}

/// What the layers of each block read, as the two streams together have it, when channels were scaled before; and what the unchanged stream gave.
struct ScaledWalk {
  std::vector<std::vector<InputStatistics>> read;
  std::vector<std::vector<float>> original;  ///< behind each block, of the first batch
  std::vector<std::map<Role, std::vector<float>>> scales;
};
ScaledWalk walk_scaled(const std::shared_ptr<const CalibrationTokens>& tokens, const std::function<float(std::size_t)>& scale) {
  const LinearQuantizeOptions options = with("awq+gptaq", "weft", 4, 64);
  LinearPlan plan(options);
  plan.find_targets(open_lazy_model(kModel));
  RunningModel running(kModel, {});
  BlockPassOptions pass_options;
  pass_options.two_streams = true;
  BlockPass pass(running, tokens, pass_options);
  ScaledWalk walk;
  static_cast<void>(pass.run([&](Block& block) {
    std::map<Role, std::vector<float>>& chosen = walk.scales.emplace_back();
    if (scale)
      fold_scales(
          plan, block,
          [&](std::span<const quantize::Reader>, const InputStatistics& read, const LinearTarget&) {
            std::vector<float>& own = chosen[read.point.role];
            for (std::size_t j = 0; j < read.width; ++j) own.push_back(scale(j));
            return own;
          },
          false);
    const Activations::Batch& batch = block.batches().front();
    walk.original.push_back(block.run(batch, block.input(batch, Stream::original), nullptr, Stream::original));
    // A power of two: no rounding of it, so that drift differs by the scales alone.
    for (const model::BlockTensor* tensor : block.linears()) {
      LinearMatrix matrix = block.matrix(tensor->tensor->name);
      EXPECT_EQ(matrix.values, block.matrix(tensor->tensor->name, Stream::original).values);
      if (tensor->slot.role != Role::o) continue;
      for (float& value : matrix.values) value *= 0.5F;
      block.set_matrix(tensor->tensor->name, matrix);
    }
    walk.read.push_back(block.statistics({.gram = true, .cross = true, .points = {}}));
  }));
  return walk;
}

TEST(LinearFolds, both_streams_read_channels_on_one_scale) {
  const auto tokens = some_tokens(4, 48);
  const ScaledWalk plain = walk_scaled(tokens, {}), ones = walk_scaled(tokens, [](std::size_t) { return 1.0F; }),
                   scaled = walk_scaled(tokens, [](std::size_t j) { return std::exp2(static_cast<float>(static_cast<int>(j % 5) - 2)); });
  for (std::size_t layer = 0; layer < plain.read.size(); ++layer) {
    EXPECT_FALSE(scaled.scales[layer].empty());
    EXPECT_EQ(plain.original[layer], ones.original[layer]);
    EXPECT_LT(relative(plain.original[layer], scaled.original[layer]), 1e-5);
    for (std::size_t p = 0; p < plain.read[layer].size(); ++p) {
      const InputStatistics &one = plain.read[layer][p], &other = scaled.read[layer][p];
      ASSERT_EQ(one.point, other.point);
      // With scales of 1 gptaq and all others see the same bits, and make the same of them.
      EXPECT_EQ(one.gram, ones.read[layer][p].gram);
      EXPECT_EQ(one.cross, ones.read[layer][p].cross);
      const auto found = scaled.scales[layer].find(one.point.role);
      std::vector<double> unscaled_gram = other.gram, unscaled_cross = other.cross;
      if (found != scaled.scales[layer].end())
        for (std::size_t i = 0; i < one.width; ++i)
          for (std::size_t j = 0; j < one.width; ++j) {
            const double factor = static_cast<double>(found->second[i]) * static_cast<double>(found->second[j]);
            unscaled_gram[i * one.width + j] *= factor;
            unscaled_cross[i * one.width + j] *= factor;
          }
      const auto distance = [](const std::vector<double>& a, const std::vector<double>& b) {
        double difference = 0, size = 0;
        for (std::size_t i = 0; i < a.size(); ++i) {
          difference += (a[i] - b[i]) * (a[i] - b[i]);
          size += a[i] * a[i];
        }
        return std::sqrt(difference / std::max(size, 1e-300));
      };
      EXPECT_LT(distance(one.gram, unscaled_gram), 1e-5) << layer << " " << to_string(one.point);
      if (layer > 0 || one.point.role == Role::up) {
        EXPECT_LT(distance(one.cross, unscaled_cross), 1e-3) << layer << " " << to_string(one.point);
      }
    }
  }
}

TEST(LinearFolds, drift_is_made_good_behind_scales_of_channels) {
  const TemporaryFolder folder;
  const auto tokens = some_tokens(16, 64);
  const std::vector<float> logits = logits_of(kModel);
  std::map<std::string, double> far;
  for (const char* method : {"smooth+rtn", "smooth+gptq", "smooth+gptaq", "smooth+decoupleq"}) {
    LinearQuantizeOptions options = with(method, "weft", 3, 64);
    options.tokens = tokens;
    static_cast<void>(quantize_linear(with_outliers(), folder / method, options));
    far[method] = relative(logits, logits_of((folder / method).string()));
  }
  for (const char* method : {"smooth+gptaq", "smooth+decoupleq"}) {
    EXPECT_LT(far[method], far["smooth+rtn"]) << method;
    EXPECT_LT(far[method], 1.1 * far["smooth+gptq"]) << method;
  }
}

TEST(LinearFolds, one_exponent_of_smoothing_is_found_for_the_whole_model) {
  const TemporaryFolder folder;
  LinearQuantizeOptions options = with("smoothplus+rtn", "gptq_v2", 4, 128);
  options.tokens = some_tokens(8, 64);
  options.parameters = {{"smoothplus.step", 0.25}};
  const LinearQuantizeReport smooth = quantize_linear(with_outliers(), folder / "smooth", options);
  ASSERT_FALSE(smooth.warnings.empty());
  EXPECT_NE(smooth.warnings.front().find("smoothplus smooths by"), std::string::npos) << smooth.warnings.front();
  options.method = "rtn";
  options.parameters = {};
  static_cast<void>(quantize_linear(with_outliers(), folder / "rtn", options));
  EXPECT_LT(relative(logits_of(kModel), logits_of((folder / "smooth").string())),
            0.7 * relative(logits_of(kModel), logits_of((folder / "rtn").string())));
}

}  // namespace
}  // namespace weft::engine
