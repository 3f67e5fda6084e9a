#include "engine/whole_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "engine/running_model.h"
#include "math/convert.h"
#include "math/linear_map.h"
#include "model/tiny_networks.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "support/tiny_runs.h"
#include "weft/edit.h"
#include "weft/quantize.h"

namespace weft::engine {
namespace {

using testing::TemporaryFolder;
using testing::relative;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";

LazyModel lazy_of(const testing::Tiny& tiny) {
  LazyModel lazy;
  lazy.name = tiny.name;
  for (const TensorInfo& tensor : tiny.checkpoint->tensors())
    lazy.parts.tensors.push_back({tensor.name, {tiny.checkpoint, &tensor}, {tiny.checkpoint, &tensor}, {}, {}});
  lazy.parts.config = tiny.config;
  return lazy;
}

std::vector<float> logits_of(RunningModel& running) {
  std::vector<std::uint32_t> ids;
  for (std::uint32_t i = 0; i < 40; ++i) ids.push_back((i * 29 + 3) % 50);
  const model::TokenChunk chunk{nullptr, ids, {}};
  std::vector<float> rows = running.network().run(std::span(&chunk, 1));
  if (!running.network().has_head()) return rows;
  const auto hidden = static_cast<std::size_t>(running.config().hidden);
  std::vector<float> out(ids.size() * static_cast<std::size_t>(running.config().vocab));
  running.network().logits({rows.data(), ids.size(), hidden, hidden}, out);
  return out;
}
std::vector<float> logits_of(const LazyModel& lazy) {
  ModelFiles files;
  files.checkpoint = checkpoint_of(lazy);
  files.config = *lazy.parts.config;
  RunningModel running(std::move(files), {});
  return logits_of(running);
}
std::vector<float> logits_of(const std::string& model) {
  RunningModel running(model, {});
  return logits_of(running);
}

std::vector<float> values_of(const LazyModel& lazy, const std::string& name) {
  for (const edit::Tensor& part : lazy.parts.tensors) {
    if (part.name != name) continue;
    std::vector<std::byte> bytes(part.values.tensor->size_bytes);
    part.values.checkpoint->read_bytes(*part.values.tensor, 0, bytes);
    std::vector<float> values(part.values.tensor->num_elements);
    math::decode(part.values.tensor->dtype, bytes, values);
    return values;
  }
  ADD_FAILURE() << "no tensor " << name;
  return {};
}

/// Fourth moment over the square of the second, less 3: 0 for a normal distribution.
double excess_kurtosis(const std::vector<float>& values) {
  double second = 0, fourth = 0;
  for (const float value : values) {
    const double square = static_cast<double>(value) * static_cast<double>(value);
    second += square;
    fourth += square * square;
  }
  return fourth * static_cast<double>(values.size()) / (second * second) - 3;
}

TEST(RotateModel, the_matrix_spreads_one_channel_over_all_and_is_orthogonal) {
  const auto four = math::make_hadamard_map(4);
  std::vector<double> x = {8, 0, 0, 0};
  four->apply(x.data(), 1);
  EXPECT_EQ(x, (std::vector<double>{4, 4, 4, 4}));
  for (const std::int64_t size : {256, 688, 24}) {
    const auto map = math::make_hadamard_map(size, math::Signs::random, 5);
    const auto n = static_cast<std::size_t>(size);
    std::vector<double> q(n * n);
    for (std::size_t i = 0; i < n; ++i) q[i * n + i] = 1;
    map->apply(q.data(), n);
    for (std::size_t i = 0; i < n; i += 7)
      for (std::size_t j = 0; j < n; ++j) {
        double dot = 0;
        for (std::size_t k = 0; k < n; ++k) dot += q[i * n + k] * q[j * n + k];
        EXPECT_NEAR(dot, i == j ? 1 : 0, 1e-12);
      }
  }
}

TEST(RotateModel, every_architecture_computes_the_same_or_says_what_stands_in_the_way) {
  std::size_t turned = 0, refused = 0;
  for (const testing::Tiny& tiny : testing::all_transformers()) {
    SCOPED_TRACE(tiny.name);
    const LazyModel before = lazy_of(tiny);
    LazyModel after = lazy_of(tiny);
    try {
      rotate_model(after, 7);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
      ++refused;
      continue;
    }
    EXPECT_LT(relative(logits_of(before), logits_of(after)), 1e-4);
    if (!after.warnings.empty()) {
      EXPECT_NE(after.warnings.front().find("only values"), std::string::npos) << after.warnings.front();
    }
    ++turned;
  }
  EXPECT_GE(turned, 12U);
  RecordProperty("refused", static_cast<int>(refused));
}

TEST(RotateModel, outlying_channels_are_gone_the_head_has_values_of_its_own_and_the_seed_decides) {
  LazyModel model = open_lazy_model(kModel);
  cast_all(model, DType::f32);
  const std::vector<float> before = logits_of(model);
  LazyModel turned = open_lazy_model(kModel);
  cast_all(turned, DType::f32);
  rotate_model(turned, 7);
  EXPECT_LT(relative(before, logits_of(turned)), 1e-4);
  EXPECT_FALSE(turned.parts.config->find("tie_word_embeddings")->boolean().value_or(true));
  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  EXPECT_LT(std::fabs(excess_kurtosis(values_of(turned, name))), std::max(0.3, std::fabs(excess_kurtosis(values_of(model, name)))));
  for (const float gain : values_of(turned, "model.layers.0.input_layernorm.weight")) EXPECT_EQ(gain, 1);
  LazyModel again = open_lazy_model(kModel), other = open_lazy_model(kModel);
  cast_all(again, DType::f32);
  cast_all(other, DType::f32);
  rotate_model(again, 7);
  rotate_model(other, 8);
  EXPECT_EQ(values_of(again, name), values_of(turned, name));
  EXPECT_GT(relative(values_of(other, name), values_of(turned, name)), 0.5);
}

TEST(RotateModel, a_gguf_file_holds_the_turned_model) {
  const TemporaryFolder folder;
  QuantizeOptions options;
  options.format = "gguf:Q8_0";
  options.method = "rotate";
  options.seed = 3;
  const QuantizeReport report = quantize(kModel, folder / "turned.gguf", options);
  EXPECT_LT(relative(logits_of(kModel), logits_of((folder / "turned.gguf").string())), 0.03);
  LazyModel turned = open_lazy_model(kModel);
  rotate_model(turned, 3);
  const LazyModel read = open_lazy_model((folder / "turned.gguf").string());
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  EXPECT_LT(relative(values_of(turned, name), values_of(read, name)), 0.01);
  options.imatrix = folder / "any.gguf";
  EXPECT_WEFT_ERROR(quantize(kModel, folder / "b.gguf", options), invalid_argument, "importance matrix");
  // A file of blocks that is turned is decoded and encoded again.
  options.imatrix.clear();
  EXPECT_WEFT_ERROR(quantize((folder / "turned.gguf").string(), folder / "c.gguf", options), invalid_argument, "quantized already");
  options.allow_requantize = true;
  (void)quantize((folder / "turned.gguf").string(), folder / "d.gguf", options);
  EXPECT_LT(relative(logits_of(kModel), logits_of((folder / "d.gguf").string())), 0.05);
}

TEST(GiveBiases, zeros_are_put_where_the_architecture_has_a_switch_for_them) {
  std::size_t given = 0, refused = 0;
  for (const testing::Tiny& tiny : testing::all_transformers()) {
    SCOPED_TRACE(tiny.name);
    const LazyModel before = lazy_of(tiny);
    LazyModel after = lazy_of(tiny);
    std::size_t count = 0;
    try {
      count = give_biases(after);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::unsupported) << error.what();
      EXPECT_TRUE(tiny.name.starts_with("mi") || tiny.name == "phi3");
      ++refused;
      continue;
    }
    EXPECT_EQ(after.parts.tensors.size(), before.parts.tensors.size() + count);
    EXPECT_EQ(after.warnings.empty(), tiny.name.starts_with("llama") || tiny.name.starts_with("gpt") || tiny.name == "bert");
    if (count == 0) continue;
    given += 1;
    EXPECT_EQ(relative(logits_of(before), logits_of(after)), 0);
    EXPECT_EQ(give_biases(after), 0U);
    if (tiny.name == "llama") {
      EXPECT_EQ(count, 2 * 7U);
      EXPECT_EQ(values_of(after, "model.layers.1.mlp.down_proj.bias"), std::vector<float>(24));
    }
  }
  EXPECT_GE(given, 3U);
  EXPECT_GE(refused, 3U);
}

}  // namespace
}  // namespace weft::engine
