#include "model/block_gradient.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "model/network.h"
#include "model/tiny_networks.h"
#include "support/errors.h"
#include "support/golden.h"

// The gradient by hand is that of finite differences in float64, on every architecture of the table, and that of torch on stored cases.
namespace weft::model {
namespace {

using testing::Tiny;

std::vector<double> random_doubles(std::size_t count, std::uint64_t seed) {
  std::vector<double> values;
  for (const float value : weft::testing::random_values(count, seed)) values.push_back(static_cast<double>(value));
  return values;
}
double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
double norm(std::span<const double> a) { return std::sqrt(dot(a, a)); }

/// A block of a tiny network with something to read.
struct Block {
  explicit Block(const Tiny& model, std::size_t layer_number)
      : layer(layer_number), config(read_network_config(model.config)), team(2), reader(model.checkpoint, model.config, config, Precision::float32) {
    parameters = parameters_of<double>(reader.block(layer, team));
    x = random_doubles(lengths[0] * 24 + lengths[1] * 24, 7);
  }
  std::size_t layer;
  NetworkConfig config;
  ThreadTeam team;
  WeightReader reader;
  BlockParameters<double> parameters;
  /// Longer than a window; one sequence of a single token.
  std::vector<std::size_t> lengths = {11, 1};
  std::vector<double> x;
};

TEST(BlockGradient, the_forward_pass_is_the_network_s_own) {
  for (const Tiny& model : testing::all_transformers()) {
    SCOPED_TRACE(model.name);
    Network network(model.checkpoint, model.config, {.threads = 2});
    std::vector<std::uint32_t> ids[2];
    // More rows than go through attention at once.
    for (std::uint32_t i = 0; i < 60; ++i) ids[0].push_back((i * i + 3) % 50);
    for (std::uint32_t i = 0; i < 9; ++i) ids[1].push_back((i * 7) % 50);
    const TokenChunk chunks[] = {{nullptr, ids[0], {}}, {nullptr, ids[1], {}}};
    std::vector<float> x = network.embed(chunks);
    const std::vector<std::size_t> lengths = {60, 9};
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const BlockWeights weights = network.read_block(layer);
      const std::vector<float> out = BlockFunction<float>(network.config(), layer, network.team()).forward(parameters_of<float>(weights), lengths, x);
      network.run_block(layer, weights, chunks, x);
      double worst = 0, largest = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        worst = std::max(worst, static_cast<double>(std::abs(x[i] - out[i])));
        largest = std::max(largest, static_cast<double>(std::abs(x[i])));
      }
      EXPECT_LT(worst, 2e-5 * largest);
    }
  }
}

TEST(BlockGradient, long_sequences_are_cut_without_a_trace) {
  // Several parts of queries, with and without a window.
  for (const char* name : {"llama", "mistral"}) {
    Json config = testing::tiny_config(*find_architecture(parse_json(fmt::format(R"({{"model_type": "{}"}})", name), "")));
    config.set("max_position_embeddings", 512);
    config.set("sliding_window", 150);
    const Tiny model = testing::tiny(name, std::move(config));
    Network network(model.checkpoint, model.config, {.threads = 2});
    std::vector<std::uint32_t> ids;
    for (std::uint32_t i = 0; i < 300; ++i) ids.push_back((i * i + 3) % 50);
    const TokenChunk chunk{nullptr, ids, {}};
    std::vector<float> x = network.embed({&chunk, 1});
    const std::size_t length = ids.size();
    const BlockWeights weights = network.read_block(0);
    const std::vector<float> out = BlockFunction<float>(network.config(), 0, network.team()).forward(parameters_of<float>(weights), {&length, 1}, x);
    network.run_block(0, weights, {&chunk, 1}, x);
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], out[i], 1e-4) << name;
  }
}

TEST(BlockGradient, every_gradient_of_every_architecture_is_that_of_finite_differences) {
  std::size_t checked = 0;
  for (const Tiny& model : testing::all_transformers()) {
    for (const std::size_t layer : {0U, 1U}) {
      SCOPED_TRACE(model.name + " " + std::to_string(layer));
      Block block(model, layer);
      const BlockFunction<double> function(block.config, layer, block.team);
      const std::vector<double> d_output = random_doubles(block.x.size(), 8);
      BlockTape<double> tape;
      static_cast<void>(function.forward(block.parameters, block.lengths, block.x, &tape));
      BlockParameters<double> gradient = block.parameters.zeros();
      const std::vector<double> dx = function.backward(block.parameters, tape, d_output, &gradient);
      // The loss is the product of the output with d_output; its slope along a random direction, twice as near for the error's order.
      const auto slope = [&](std::vector<double>& values, const std::vector<double>& direction) {
        const std::vector<double> before = values;
        const auto at = [&](double step) {
          for (std::size_t i = 0; i < values.size(); ++i) values[i] = before[i] + step * direction[i];
          return dot(function.forward(block.parameters, block.lengths, block.x), d_output);
        };
        const double h = 1e-4;
        const double coarse = (at(h) - at(-h)) / (2 * h), fine = (at(h / 2) - at(-h / 2)) / h;
        values = before;
        return (4 * fine - coarse) / 3;
      };
      const auto compare = [&](const std::string& name, std::vector<double>& values, const std::vector<double>& by_hand) {
        const std::vector<double> direction = random_doubles(values.size(), 9 + checked);
        const double want = slope(values, direction), got = dot(by_hand, direction);
        // Of what the product of two such vectors is by its size, a part in 10^7: the rest of the series and the rounding of the loss.
        EXPECT_NEAR(got, want, 1e-7 * (norm(by_hand) * norm(direction) + norm(d_output))) << name;
        EXPECT_GT(norm(by_hand), 0) << name;
        ++checked;
      };
      compare("x", block.x, dx);
      std::map<std::string, std::vector<double>> by_name;
      gradient.for_each([&](const std::string& name, std::vector<double>& values) { by_name[name] = values; });
      block.parameters.for_each([&](const std::string& name, std::vector<double>& values) {
        // An expert that no token goes to has none.
        if (name.starts_with("expert.") && norm(by_name.at(name)) == 0) return;
        compare(name, values, by_name.at(name));
      });
    }
  }
  EXPECT_GE(checked, 300U);
}

TEST(BlockGradient, a_wrong_sign_or_a_forgotten_term_would_show) {
  // The same comparison with the gradient of another cap, another eps, another window: it must fail.
  const Architecture& gemma = *find_architecture(parse_json(R"({"model_type": "gemma2"})", ""));
  const Tiny model = testing::tiny("gemma2", testing::tiny_config(gemma));
  Block block(model, 0);
  const std::vector<double> d_output = random_doubles(block.x.size(), 8), direction = random_doubles(block.x.size(), 3);
  const auto gradient_along = [&](const NetworkConfig& config) {
    const BlockFunction<double> function(config, 0, block.team);
    BlockTape<double> tape;
    static_cast<void>(function.forward(block.parameters, block.lengths, block.x, &tape));
    return dot(function.backward(block.parameters, tape, d_output, nullptr), direction);
  };
  const double right = gradient_along(block.config);
  for (int change = 0; change < 4; ++change) {
    NetworkConfig config = block.config;
    if (change == 0) config.score_cap = 1;
    if (change == 1) config.norm_eps = 0.1F;
    if (change == 2) config.layers[0].window = 3;
    if (change == 3) config.layers[0].rope = -1;
    EXPECT_GT(std::abs(gradient_along(config) - right), 1e-4 * std::abs(right)) << change;
  }
}

TEST(BlockGradient, the_tensors_of_a_checkpoint_get_their_parts_in_their_own_layout) {
  // Parameters taken apart by tensor are the checkpoint's own values, whatever is fused, interleaved or stored transposed.
  for (const Tiny& model : testing::all_transformers()) {
    SCOPED_TRACE(model.name);
    Block block(model, 1);
    for (const BlockTensor& tensor : block.reader.block_tensors(1)) {
      std::vector<std::byte> bytes(tensor.tensor->size_bytes);
      model.checkpoint->read_bytes(*tensor.tensor, 0, bytes);
      const std::vector<float> stored = weft::testing::values_of(tensor.tensor->dtype, bytes);
      EXPECT_EQ(values_of_tensor(block.parameters, block.config, tensor), std::vector<double>(stored.begin(), stored.end())) << tensor.tensor->name;
    }
  }
}

// ---- The loss

std::vector<std::vector<std::uint32_t>> some_sequences() {
  std::vector<std::vector<std::uint32_t>> all(2);
  for (std::uint32_t i = 0; i < 13; ++i) all[0].push_back((i * i + 5) % 50);
  for (std::uint32_t i = 0; i < 4; ++i) all[1].push_back((i * 11 + 1) % 50);
  return all;
}

using Gradients = std::map<std::string, std::vector<double>>;
Gradients gradients_of(const std::shared_ptr<const Checkpoint>& checkpoint, const Json& config,
                       const std::vector<std::vector<std::uint32_t>>& sequences) {
  Gradients all;
  static_cast<void>(loss_gradient_double(checkpoint, config, sequences, [&](const TensorInfo& tensor, std::span<const double> gradient) {
    EXPECT_EQ(gradient.size(), tensor.num_elements);
    EXPECT_TRUE(all.emplace(tensor.name, std::vector<double>(gradient.begin(), gradient.end())).second) << tensor.name;
  }));
  return all;
}

/// The checkpoint with one tensor moved along a direction, and how far it went: float32 rounds where it arrives.
std::shared_ptr<const Checkpoint> moved(const Checkpoint& from, const std::string& name, const std::vector<double>& direction, double step,
                                        std::vector<double>& values) {
  std::vector<weft::testing::MemoryCheckpoint::Tensor> tensors;
  for (const TensorInfo& tensor : from.tensors()) {
    std::vector<std::byte> bytes(tensor.size_bytes);
    from.read_bytes(tensor, 0, bytes);
    if (tensor.name == name) {
      std::vector<float> floats = weft::testing::values_of(DType::f32, bytes);
      for (std::size_t i = 0; i < floats.size(); ++i) floats[i] = static_cast<float>(static_cast<double>(floats[i]) + step * direction[i]);
      values.assign(floats.begin(), floats.end());
      bytes = weft::testing::stored_as(DType::f32, floats);
    }
    tensors.push_back({tensor.name, DType::f32, tensor.shape, std::move(bytes)});
  }
  return std::make_shared<weft::testing::MemoryCheckpoint>(std::move(tensors));
}

TEST(LossGradient, every_tensor_s_gradient_is_that_of_the_loss_and_none_is_missing) {
  // Steps that float32 weights can take cross the kinks of ReLU and of the choice of experts: here all experts are chosen, and ReLU is left to the
  // blocks' own test, whose steps are smaller.
  for (const Tiny& model : testing::all_transformers(testing::Experts::all)) {
    SCOPED_TRACE(model.name);
    if (model.name.find("relu") != std::string::npos) continue;
    if (find_architecture(model.config)->forward.kind != NetworkKind::decoder) {
      EXPECT_WEFT_ERROR(gradients_of(model.checkpoint, model.config, some_sequences()), unsupported, "only a decoder with a head");
      continue;
    }
    const Gradients gradients = gradients_of(model.checkpoint, model.config, some_sequences());
    EXPECT_EQ(gradients.size(), model.checkpoint->tensors().size());
    std::uint64_t seed = 1;
    for (const auto& [name, gradient] : gradients) {
      const std::vector<double> direction = random_doubles(gradient.size(), seed++);
      std::vector<double> up, down;
      const double h = 1e-3;
      const auto loss_at = [&](double step, std::vector<double>& values) {
        return loss_gradient_double(moved(*model.checkpoint, name, direction, step, values), model.config, some_sequences(), {}).loss;
      };
      const double difference = loss_at(h, up) - loss_at(-h, down);
      for (std::size_t i = 0; i < up.size(); ++i) up[i] -= down[i];
      // The next term of the series, h^2 of something like the gradient.
      EXPECT_NEAR(dot(gradient, up), difference, 1e-3 * norm(gradient) * norm(up) + 1e-9) << name;
    }
  }
}

TEST(LossGradient, float32_is_within_its_rounding_of_float64_and_any_number_of_threads_gives_the_same_bits) {
  for (const Tiny& model : testing::all_transformers()) {
    if (find_architecture(model.config)->forward.kind != NetworkKind::decoder) continue;
    SCOPED_TRACE(model.name);
    const Gradients exact = gradients_of(model.checkpoint, model.config, some_sequences());
    std::map<std::string, std::vector<float>> one, three;
    const auto run = [&](int threads, auto& into) {
      return loss_gradient(
                 model.checkpoint, model.config, some_sequences(),
                 [&](const TensorInfo& tensor, std::span<const float> gradient) { into[tensor.name].assign(gradient.begin(), gradient.end()); },
                 {.threads = threads, .memory_bytes = 0})
          .loss;
    };
    EXPECT_EQ(run(1, one), run(3, three));
    EXPECT_EQ(one, three);
    for (const auto& [name, gradient] : one) {
      std::vector<double> error(gradient.begin(), gradient.end());
      for (std::size_t i = 0; i < error.size(); ++i) error[i] -= exact.at(name)[i];
      EXPECT_LT(norm(error), 1e-4 * norm(exact.at(name)) + 1e-7) << name;
    }
  }
}

TEST(LossGradient, losses_and_gradients_are_torch_s) {
  // Made by scripts/gradient_golden.py from the bundled model and from those whose logits are stored.
  const std::filesystem::path source = WEFT_SOURCE_DIR;
  const Json golden = read_json_file(source / "tests/data/gradients/torch.json");
  std::size_t tensors = 0;
  for (const Json& one : *golden.find("cases")->array()) {
    const std::string name = weft::testing::golden_text(one, "name");
    SCOPED_TRACE(name);
    const std::filesystem::path folder = name == "tiny-base" ? source / "models/tiny-base" : source / "../shared/golden/logits/models" / name;
    if (!std::filesystem::exists(folder / "config.json")) continue;
    const Json config = read_json_file(folder / "config.json");
    const auto vocab = static_cast<std::uint32_t>(*config.find("vocab_size")->integer());
    std::vector<std::vector<std::uint32_t>> sequences(2);
    for (std::uint32_t i = 0; i < 40; ++i) sequences[0].push_back((i * i + 5) % vocab);
    for (std::uint32_t i = 0; i < 7; ++i) sequences[1].push_back((11 * i + 1) % vocab);
    Gradients gradients;
    const LossGradient result = loss_gradient_double(
        open_checkpoint(folder.string()), config, sequences,
        [&](const TensorInfo& tensor, std::span<const double> gradient) { gradients[tensor.name].assign(gradient.begin(), gradient.end()); });
    // Torch's norms and angles are in float32 also where the rest is in float64.
    constexpr double kClose = 2e-5;
    EXPECT_NEAR(result.loss, *one.find("loss")->number(), kClose);
    for (const auto& [tensor, numbers] : *one.find("tensors")->object()) {
      ASSERT_TRUE(gradients.contains(tensor)) << tensor;
      const std::vector<double>& gradient = gradients.at(tensor);
      const double want_norm = *(*numbers.array())[0].number(), want_product = *(*numbers.array())[1].number();
      double product = 0;
      for (std::size_t i = 0; i < gradient.size(); ++i) product += gradient[i] * std::cos(0.1 * static_cast<double>(i));
      EXPECT_NEAR(norm(gradient), want_norm, kClose * want_norm + 1e-9) << tensor;
      EXPECT_NEAR(product, want_product, kClose * want_norm + 1e-9) << tensor;
      ++tensors;
    }
  }
  EXPECT_GE(tensors, 21U);
}

TEST(LossGradient, what_cannot_be_is_refused) {
  const Tiny model = testing::tiny("llama", testing::tiny_config(*find_architecture(parse_json(R"({"model_type": "llama"})", ""))));
  const auto loss = [&](std::vector<std::vector<std::uint32_t>> sequences, std::uint64_t memory = 0) {
    return loss_gradient(model.checkpoint, model.config, sequences, [](const TensorInfo&, std::span<const float>) {},
                         {.threads = 1, .memory_bytes = memory});
  };
  EXPECT_WEFT_ERROR(loss({}), invalid_argument, "no sequence");
  EXPECT_WEFT_ERROR(loss({{1, 2}, {3}}), invalid_argument, "fewer than two tokens");
  EXPECT_WEFT_ERROR(loss({{1, 50}}), invalid_argument, "token id 50 is not below 50");
  EXPECT_WEFT_ERROR(loss({{1, 2}}, 10'000), out_of_memory, "the budget is 10");
  EXPECT_NEAR(loss({{1, 2, 3}}).loss, std::log(50), 3);
  EXPECT_EQ(loss({{1, 2, 3}, {4, 5}}).num_predicted, 3U);
}

}  // namespace
}  // namespace weft::model
