#include "quantize/reconstruct.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "math/convert.h"
#include "model/network_config.h"
#include "model/tiny_networks.h"
#include "model/weights.h"
#include "quantize/solver.h"

namespace weft::quantize {
namespace {

using model::BlockParameters;
using model::BlockTensor;
using model::Role;

SolverOptions solver_of(int bits) {
  SolverOptions solver;
  solver.format.bits = bits;
  solver.format.zero = codec::Zero::affine;
  solver.format.scale_type = DType::f16;
  solver.group = 8;
  return solver;
}

/// A block of a tiny network, and what it reads and gives.
struct Setting {
  explicit Setting(const std::string& name, int threads = 2)
      : model(find(name)),
        config(model::read_network_config(model.config)),
        team(threads),
        reader(model.checkpoint, model.config, config, Precision::float32) {
    parameters = model::parameters_of<float>(reader.block(0, team));
    for (const BlockTensor& tensor : reader.block_tensors(0))
      if (!tensor.is_bias && tensor.tensor->shape.size() == 2 && tensor.slot.role != Role::router && tensor.slot.role != Role::shared_router)
        tensors.push_back(tensor);
    const auto hidden = static_cast<std::size_t>(config.hidden);
    const model::BlockFunction<float> function(config, 0, team);
    for (std::uint64_t u = 0; u < 8; ++u) {
      ReconstructUnit unit;
      unit.lengths = {13, 9};
      unit.input = testing::random_values(22 * hidden, 100 + u);
      unit.target = function.forward(parameters, unit.lengths, unit.input);
      units.push_back(std::move(unit));
    }
  }
  static testing::Tiny find(const std::string& name) {
    for (testing::Tiny& one : testing::all_transformers())
      if (one.name == name) return std::move(one);
    throw std::runtime_error(name);
  }
  [[nodiscard]] ReconstructData data() {
    return {units.size(), [this](std::size_t unit, ReconstructUnit& out) { out = units[unit]; }};
  }
  [[nodiscard]] std::vector<float> weights_of(const BlockTensor& tensor) {
    const auto place = model::place_of_tensor(parameters, config, tensor);
    std::vector<float> out(place.rows.size() * place.matrix->columns);
    place.read(out);
    return out;
  }

  testing::Tiny model;
  model::NetworkConfig config;
  ThreadTeam team;
  model::WeightReader reader;
  BlockParameters<float> parameters;
  std::vector<BlockTensor> tensors;
  std::vector<ReconstructUnit> units;
};

ReconstructResult learn(Setting& setting, Learned what, const ReconstructOptions& options, int bits = 3) {
  const SolverOptions solver = solver_of(bits);
  std::vector<codec::QuantizedLinear> starts;
  std::vector<LearnedCodes<float>> codes;
  starts.reserve(setting.tensors.size());
  codes.reserve(setting.tensors.size());
  std::vector<ReconstructLayer> layers;
  for (const BlockTensor& tensor : setting.tensors) {
    const auto place = model::place_of_tensor(setting.parameters, setting.config, tensor);
    const std::vector<float> weights = setting.weights_of(tensor);
    starts.push_back(
        round_to_nearest(weights, static_cast<std::int64_t>(place.rows.size()), static_cast<std::int64_t>(place.matrix->columns), solver));
    codes.emplace_back(weights, starts.back(), solver, LearnedOptions{.what = what, .rank = 4}, tensor.tensor->name);
    layers.push_back({&tensor, &codes.back(), &starts.back()});
  }
  return reconstruct(setting.config, 0, setting.team, setting.parameters, layers, setting.data(), options);
}

TEST(Reconstruct, the_place_of_every_tensor_is_where_its_values_are) {
  for (const testing::Tiny& one : testing::all_transformers()) {
    SCOPED_TRACE(one.name);
    const model::NetworkConfig config = model::read_network_config(one.config);
    ThreadTeam team(1);
    const model::WeightReader reader(one.checkpoint, one.config, config, Precision::float32);
    BlockParameters<float> parameters = model::parameters_of<float>(reader.block(0, team));
    std::set<std::pair<const void*, std::size_t>> seen;
    for (const BlockTensor& tensor : reader.block_tensors(0)) {
      if (tensor.is_bias || tensor.tensor->shape.size() != 2) continue;
      const auto place = model::place_of_tensor(parameters, config, tensor);
      if (place.matrix == nullptr) continue;
      for (const std::size_t row : place.rows) EXPECT_TRUE(seen.emplace(place.matrix, row).second);
      std::vector<float> values(place.rows.size() * place.matrix->columns), stored = model::values_of_tensor(parameters, config, tensor);
      place.read(values);
      if (!tensor.slot.transposed) {
        EXPECT_EQ(values, stored);
      }
      std::reverse(values.begin(), values.end());
      place.write(values);
      stored = model::values_of_tensor(parameters, config, tensor);
      if (!tensor.slot.transposed) {
        EXPECT_EQ(values, stored);
      }
    }
  }
}

TEST(Reconstruct, every_way_of_learning_brings_the_block_nearer_to_what_it_gave) {
  const std::vector<std::pair<Learned, double>> rates = {
      {Learned::clip, 1e-1}, {Learned::divisor, 1e-2}, {Learned::low_rank, 1e-2}, {Learned::weight, 3e-2}, {Learned::scale, 1e-2}};
  for (const char* name : {"llama", "gpt2", "mixtral"})
    for (const auto& [what, rate] : rates) {
      Setting setting(name);
      const ReconstructResult result = learn(setting, what, {.rate = rate, .epochs = 15});
      SCOPED_TRACE(fmt::format("{} {}: {} to {}, learned from {} to {}", name, static_cast<int>(what), result.before, result.after,
                               result.learned_before, result.learned_after));
      EXPECT_LT(result.after, 0.97 * result.before);
      // In a mixture tokens go to other experts as weights change, and what was best on the units held out need not be so on the others.
      if (std::string(name) != "mixtral") {
        EXPECT_LT(result.learned_after, 0.97 * result.learned_before);
      }
      EXPECT_FALSE(result.kept_start);
      // What runs is what the codes say.
      for (std::size_t i = 0; i < result.codes.size(); ++i) EXPECT_EQ(setting.weights_of(setting.tensors[i]), result.codes[i].decoded());
    }
}

TEST(Reconstruct, what_learning_does_not_improve_stays) {
  Setting setting("llama");
  const ReconstructResult none = learn(setting, Learned::divisor, {.rate = 1e-2, .epochs = 0});
  EXPECT_TRUE(none.kept_start);
  EXPECT_EQ(none.after, none.before);
  Setting other("llama");
  const ReconstructResult wild = learn(other, Learned::scale, {.rate = 30, .epochs = 2});
  EXPECT_LE(wild.after, wild.before);
}

TEST(Reconstruct, threads_change_nothing_and_the_seed_something) {
  std::vector<ReconstructResult> results;
  for (const auto& [threads, seed] : {std::pair(1, 1), std::pair(3, 1), std::pair(1, 2)}) {
    Setting setting("llama", threads);
    results.push_back(learn(setting, Learned::low_rank, {.rate = 1e-2, .epochs = 3, .seed = static_cast<std::uint64_t>(seed)}));
  }
  EXPECT_EQ(results[0].after, results[1].after);
  for (std::size_t i = 0; i < results[0].codes.size(); ++i) EXPECT_EQ(results[0].codes[i].codes, results[1].codes[i].codes);
  EXPECT_NE(results[0].after, results[2].after);
}

TEST(Reconstruct, gains_are_learned_and_stored_as_their_type_has_them) {
  Setting plain("llama"), with("llama");
  const ReconstructResult without = learn(plain, Learned::scale, {.rate = 1e-2, .epochs = 10}, 2);
  const ReconstructResult gains = learn(with, Learned::scale, {.rate = 1e-2, .epochs = 10, .gain_rate = 1e-2, .gain_type = DType::bf16}, 2);
  EXPECT_LT(gains.after, without.after);
  std::size_t changed = 0;
  for (std::size_t i = 0; i < with.parameters.norms.size(); ++i)
    for (std::size_t j = 0; j < with.parameters.norms[i].weight.size(); ++j) {
      std::vector<float> rounded = {with.parameters.norms[i].weight[j]};
      math::round_through(DType::bf16, rounded);
      EXPECT_EQ(rounded[0], with.parameters.norms[i].weight[j]);
      if (rounded[0] != plain.parameters.norms[i].weight[j]) ++changed;
    }
  EXPECT_GT(changed, 20u);
}

/// The whole chain, from a parameter to the block's output, in float64.
TEST(Reconstruct, the_gradient_of_the_parameters_through_the_block_is_that_of_finite_differences) {
  Setting setting("llama");
  BlockParameters<double> parameters = model::parameters_of<double>(setting.reader.block(0, setting.team));
  const model::BlockFunction<double> function(setting.config, 0, setting.team);
  const std::vector<std::size_t> lengths = {7, 4};
  std::vector<double> x;
  for (const float value : testing::random_values(11 * 24, 5)) x.push_back(static_cast<double>(value));
  const std::vector<double> target = function.forward(parameters, lengths, x);
  const SolverOptions solver = solver_of(3);
  for (const Learned what : {Learned::clip, Learned::low_rank, Learned::weight}) {
    for (const BlockTensor& tensor : setting.tensors) {
      SCOPED_TRACE(fmt::format("{} {}", static_cast<int>(what), tensor.tensor->name));
      BlockParameters<double> own = parameters, gradient = parameters.zeros();
      const auto place = model::place_of_tensor(own, setting.config, tensor), back = model::place_of_tensor(gradient, setting.config, tensor);
      const std::vector<float> weights = setting.weights_of(tensor);
      LearnedCodes<double> codes(
          weights, round_to_nearest(weights, static_cast<std::int64_t>(place.rows.size()), static_cast<std::int64_t>(place.matrix->columns), solver),
          solver, {.what = what, .rank = 2});
      std::size_t k = 0;
      for (double& parameter : codes.parameters()) parameter = (what == Learned::clip ? 1.5 : parameter) + 0.1 * std::sin(static_cast<double>(++k));
      codes.freeze_rounding(setting.team);
      std::vector<double> values(weights.size()), learned(codes.parameters().size());
      const auto loss = [&](std::vector<double>* d, model::BlockTape<double>* tape) {
        codes.values(setting.team, values);
        place.write(values);
        const std::vector<double> out = function.forward(own, lengths, x, tape);
        double sum = 0;
        if (d != nullptr) d->resize(out.size());
        for (std::size_t i = 0; i < out.size(); ++i) {
          sum += (out[i] - target[i]) * (out[i] - target[i]);
          if (d != nullptr) (*d)[i] = 2 * (out[i] - target[i]);
        }
        return sum;
      };
      std::vector<double> d;
      model::BlockTape<double> tape;
      static_cast<void>(loss(&d, &tape));
      static_cast<void>(function.backward(own, tape, d, &gradient));
      back.read(values);
      codes.backward(setting.team, values, learned);
      double largest = 0;
      for (const double g : learned) largest = std::max(largest, std::fabs(g));
      for (std::size_t i = 0; i < learned.size(); i += 1 + learned.size() / 12) {
        constexpr double kStep = 1e-5;
        const double before = codes.parameters()[i];
        codes.parameters()[i] = before + kStep;
        const double above = loss(nullptr, nullptr);
        codes.parameters()[i] = before - kStep;
        const double below = loss(nullptr, nullptr);
        codes.parameters()[i] = before;
        EXPECT_NEAR(learned[i], (above - below) / (2 * kStep), 1e-5 * largest);
      }
    }
  }
}

TEST(Reconstruct, a_layer_alone_is_brought_nearer_by_its_own_outputs) {
  constexpr std::int64_t kRows = 24, kColumns = 32;
  const std::vector<float> weights = testing::random_values(kRows * kColumns, 1, 0.05F);
  std::vector<double> grams[2];
  for (int half = 0; half < 2; ++half) {
    grams[half].resize(kColumns * kColumns);
    std::vector<float> x = testing::random_values(400 * kColumns, 2 + static_cast<std::uint64_t>(half));
    for (std::size_t t = 0; t < 400; ++t)
      for (std::size_t j = 1; j < kColumns; ++j) x[t * kColumns + j] += 0.7F * x[t * kColumns + j - 1];
    for (std::size_t t = 0; t < 400; ++t)
      for (std::size_t i = 0; i < kColumns; ++i)
        for (std::size_t j = 0; j < kColumns; ++j)
          grams[half][i * kColumns + j] += static_cast<double>(x[t * kColumns + i]) * static_cast<double>(x[t * kColumns + j]);
  }
  for (const int bits : {2, 3}) {
    const SolverOptions solver = solver_of(bits);
    const codec::QuantizedLinear start = round_to_nearest(weights, kRows, kColumns, solver);
    ThreadTeam team(2);
    LearnedCodes<float> codes(weights, start, solver, {.what = Learned::weight});
    const LocalResult result = reconstruct_layer(team, weights, start, codes, grams[0], grams[1], 1e-3, 500);
    EXPECT_NEAR(result.before, relative_loss(weights, start.decoded(), kRows, kColumns, grams[1]), 1e-12);
    EXPECT_NEAR(result.after, relative_loss(weights, result.codes.decoded(), kRows, kColumns, grams[1]), 1e-12);
    EXPECT_LT(result.after, 0.85 * result.before) << bits;
  }
}

TEST(Adam, a_step_is_as_long_as_its_rate_at_first_and_a_gradient_of_nan_is_none) {
  Adam adam(3);
  std::vector<float> parameters = {1, 1, 1};
  const std::vector<float> gradient = {0.1F, -0.2F, 0};
  const Adam::Run runs[] = {{1, 0.5}, {2, 0.25}};
  EXPECT_TRUE(adam.step(parameters, gradient, runs));
  EXPECT_NEAR(parameters[0], 0.5, 1e-5);
  EXPECT_NEAR(parameters[1], 1.25, 1e-5);
  EXPECT_EQ(parameters[2], 1);
  const std::vector<float> bad = {std::nanf(""), 0, 0}, before = parameters;
  EXPECT_FALSE(adam.step(parameters, bad, runs));
  EXPECT_EQ(parameters, before);
  EXPECT_EQ(cosine_rate(0, 10), 1);
  EXPECT_NEAR(cosine_rate(5, 10), 0.5, 1e-12);
}

TEST(Reconstruct, units_are_held_out_evenly_and_never_all) {
  EXPECT_EQ(held_out_units(1, 0.5), std::vector<bool>{false});
  EXPECT_EQ(held_out_units(2, 0.125), (std::vector<bool>{false, true}));
  for (const std::size_t count : {3u, 16u, 33u}) {
    const std::vector<bool> held = held_out_units(count, 0.125);
    EXPECT_EQ(std::count(held.begin(), held.end(), true), std::max<std::ptrdiff_t>(1, std::lround(static_cast<double>(count) / 8)));
  }
  std::vector<std::size_t> order = shuffled(20, 3, 1);
  EXPECT_NE(order, shuffled(20, 3, 2));
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < 20; ++i) EXPECT_EQ(order[i], i);
}

}  // namespace
}  // namespace weft::quantize
