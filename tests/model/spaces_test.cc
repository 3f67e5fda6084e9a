#include "model/spaces.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "model/image_network.h"
#include "model/network.h"
#include "support/golden.h"
#include "support/memory_checkpoint.h"

// The maps that spaces allow leave the function of real networks alone.
namespace weft::model {
namespace {

const std::filesystem::path kShared = std::filesystem::path(WEFT_SOURCE_DIR) / "../shared";

using Weights = std::map<std::string, std::vector<float>>;

Weights read_all(const Checkpoint& checkpoint) {
  Weights weights;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    std::vector<std::byte> bytes(tensor.size_bytes);
    checkpoint.read_bytes(tensor, 0, bytes);
    weights[tensor.name] = testing::values_of(tensor.dtype, bytes);
  }
  return weights;
}

std::shared_ptr<const Checkpoint> made_of(const Checkpoint& like, const Weights& weights) {
  std::vector<testing::MemoryCheckpoint::Tensor> tensors;
  for (const TensorInfo& tensor : like.tensors())
    tensors.push_back({tensor.name, DType::f32, tensor.shape, testing::stored_as(DType::f32, weights.at(tensor.name))});
  return std::make_shared<testing::MemoryCheckpoint>(std::move(tensors));
}

/// Element i of the axis becomes element indices[i].
std::vector<float> take(const std::vector<float>& from, const Shape& shape, std::size_t axis, const std::vector<std::int64_t>& indices) {
  std::size_t inner = 1, outer = 1;
  for (std::size_t i = 0; i < shape.size(); ++i) (i < axis ? outer : inner) *= i == axis ? 1 : static_cast<std::size_t>(shape[i]);
  const auto size = static_cast<std::size_t>(shape[axis]);
  std::vector<float> out(from.size());
  for (std::size_t o = 0; o < outer; ++o)
    for (std::size_t i = 0; i < size; ++i)
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>((o * size + static_cast<std::size_t>(indices[i])) * inner), inner,
                  out.begin() + static_cast<std::ptrdiff_t>((o * size + i) * inner));
  return out;
}

void permute(Weights& weights, const Checkpoint& checkpoint, const NetworkSpaces& spaces, const Space& space, std::uint64_t seed) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(space.size));
  const std::vector<float> keys = testing::random_values(order.size(), seed);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  std::sort(order.begin(), order.end(),
            [&](std::int64_t a, std::int64_t b) { return keys[static_cast<std::size_t>(a)] < keys[static_cast<std::size_t>(b)]; });
  if (std::is_sorted(order.begin(), order.end())) std::rotate(order.begin(), order.begin() + 1, order.end());
  for (const auto& [name, axes] : spaces.tensors)
    for (std::size_t axis = 0; axis < axes.size(); ++axis)
      if (axes[axis].touches(space.name))
        weights[name] = take(weights[name], checkpoint.tensor(name).shape, axis, spaces.reordered(axes[axis], space.name, order));
}

std::vector<float> run(const std::shared_ptr<const Checkpoint>& checkpoint, const Json& config) {
  Network network(checkpoint, config, {.threads = 2});
  std::vector<std::uint32_t> ids;
  for (std::uint32_t i = 0; i < 30; ++i) ids.push_back((i * 37 + 5) % 96);
  const TokenChunk chunk{nullptr, ids, {}};
  std::vector<float> x = network.run({&chunk, 1});
  if (!network.has_head()) return network.pool(std::span(x).first(static_cast<std::size_t>(network.config().hidden)));
  std::vector<float> logits(ids.size() * static_cast<std::size_t>(network.config().vocab));
  const auto hidden = static_cast<std::size_t>(network.config().hidden);
  network.logits({x.data(), ids.size(), hidden, hidden}, logits);
  return logits;
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0, worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i])));
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return worst / largest;
}

TEST(Spaces, reordering_every_space_that_allows_it_leaves_every_golden_network_s_logits_alone) {
  const std::filesystem::path golden = kShared / "golden/logits";
  if (!std::filesystem::exists(golden / "index.json")) GTEST_SKIP() << "no golden data";
  const Json index = read_json_file(golden / "index.json");
  for (const Json& model : *index.find("nano")->array()) {
    SCOPED_TRACE(testing::golden_text(model, "name"));
    const std::filesystem::path folder = golden / testing::golden_text(model, "folder");
    const auto checkpoint = open_checkpoint(folder.string());
    const Json config = read_json_file(folder / "config.json");
    const Architecture* architecture = find_architecture(config);
    const NetworkSpaces spaces = spaces_of(*architecture, config, *checkpoint);
    Weights weights = read_all(*checkpoint);
    EXPECT_EQ(spaces.tensors.size(), checkpoint->tensors().size()) << "some tensor has no spaces";
    std::size_t permuted = 0;
    std::uint64_t seed = 1;
    for (const Space& space : spaces.spaces) {
      if ((space.allows & kPermute) == 0) continue;
      permute(weights, *checkpoint, spaces, space, seed++);
      ++permuted;
    }
    EXPECT_GE(permuted, 2 * 3U);
    EXPECT_NE(weights, read_all(*checkpoint));
    EXPECT_LT(relative_difference(run(checkpoint, config), run(made_of(*checkpoint, weights), config)), 1e-4);
  }
}

TEST(Spaces, a_space_that_allows_no_order_does_matter) {
  const std::filesystem::path folder = kShared / "golden/logits/models/llama";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no golden data";
  const auto checkpoint = open_checkpoint(folder.string());
  const Json config = read_json_file(folder / "config.json");
  const NetworkSpaces spaces = spaces_of(*find_architecture(config), config, *checkpoint);
  for (const char* name : {"pair.0", "half"}) {
    Weights weights = read_all(*checkpoint);
    permute(weights, *checkpoint, spaces, *spaces.find(name), 3);
    EXPECT_GT(relative_difference(run(checkpoint, config), run(made_of(*checkpoint, weights), config)), 1e-3) << name;
  }
}

TEST(Spaces, axes_are_written_as_products_and_their_groups_follow_the_norms) {
  const std::filesystem::path models = kShared / "golden/logits/models";
  if (!std::filesystem::exists(models)) GTEST_SKIP() << "no golden data";
  const auto of = [&](const char* name) {
    const Json config = read_json_file(models / name / "config.json");
    return spaces_of(*find_architecture(config), config, *open_checkpoint((models / name).string()));
  };
  const NetworkSpaces llama = of("llama");
  EXPECT_EQ(llama.tensors.at("model.layers.1.self_attn.q_proj.weight")[0].text(), "kv.1 x group.1 x half x pair.1");
  EXPECT_EQ(llama.tensors.at("model.layers.1.self_attn.o_proj.weight")[1].text(), "kv.1 x group.1 x value.1");
  EXPECT_EQ(llama.tensors.at("model.layers.2.mlp.down_proj.weight")[1].text(), "mlp.2");
  EXPECT_TRUE(llama.find("residual")->allows_folded & kRotate);
  EXPECT_FALSE(llama.find("residual")->allows & kRotate);
  EXPECT_FALSE(of("gemma2").find("residual")->allows_folded & kRotate) << "a gain stands between a block and its sum";
  EXPECT_FALSE(of("gpt2").find("residual")->allows & kSign) << "LayerNorm takes a mean";
  EXPECT_FALSE(of("qwen3").find("pair.0")->allows & kScale) << "a norm stands between q and the scores";
  EXPECT_EQ(of("gpt-neox").tensors.at("gpt_neox.layers.0.attention.query_key_value.weight")[0].text(),
            "kv.0 x ((half x pair.0 + pass.0) + (half x pair.0 + pass.0) + value.0)");
  EXPECT_EQ(of("phi3").tensors.at("model.layers.0.mlp.gate_up_proj.weight")[0].text(), "(mlp.0 + mlp.0)");
}

TEST(Spaces, reordering_and_scaling_the_units_of_image_networks_leaves_their_logits_alone) {
  const std::filesystem::path vision = kShared / "zoo/vision";
  if (!std::filesystem::exists(vision)) GTEST_SKIP() << "no zoo";
  for (const char* name : {"rebasin/mlp-0", "robust/clean"}) {
    SCOPED_TRACE(name);
    const auto checkpoint = open_checkpoint((vision / name).string());
    const Json config = read_json_file(vision / name / "config.json");
    const NetworkSpaces spaces = spaces_of(*find_architecture(config), config, *checkpoint);
    EXPECT_EQ(spaces.tensors.size(), checkpoint->tensors().size());
    Weights weights = read_all(*checkpoint);
    std::uint64_t seed = 5;
    for (const Space& space : spaces.spaces)
      if ((space.allows & kPermute) != 0) permute(weights, *checkpoint, spaces, space, seed++);
    EXPECT_GE(seed, 5U + 3U);
    ThreadTeam team(2);
    const std::vector<float> images = testing::random_values(8 * 784, 3);
    const std::vector<float> before = ImageNetwork(*checkpoint, config).run(images, team);
    const std::vector<float> after = ImageNetwork(*made_of(*checkpoint, weights), config).run(images, team);
    EXPECT_LT(relative_difference(before, after), 1e-4);
  }
}

}  // namespace
}  // namespace weft::model
