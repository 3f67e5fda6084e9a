#include "model/space_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "checkpoint/tensor_view.h"
#include "model/image_network.h"
#include "model/network.h"
#include "model/tiny_networks.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"

// A random member of every group that every space of every architecture declares leaves the logits alone; what the group does not allow is refused;
// and a map that is applied to the wrong side, or forgets a tensor, does not pass for one.
namespace weft::model {
namespace {

using testing::all_transformers;
using testing::Experts;
using testing::MemoryCheckpoint;
using testing::tiny;
using testing::Tiny;
using testing::tiny_config;

/// Logits may change by this much of the largest one, in float32.
constexpr double kSame = 1e-4;
/// What a broken map changes, at least.
constexpr double kOther = 10 * kSame;

std::vector<float> run(const std::shared_ptr<const Checkpoint>& checkpoint, const Json& config) {
  Network network(checkpoint, config, {.threads = 1});
  std::vector<std::uint32_t> ids;
  for (std::uint32_t i = 0; i < 24; ++i) ids.push_back((i * i + 7 * i + 3) % 50);
  const TokenChunk chunk{nullptr, ids, {}};
  const std::vector<float> x = network.run({&chunk, 1});
  EXPECT_TRUE(network.has_head());
  const auto hidden = static_cast<std::size_t>(network.config().hidden);
  std::vector<float> logits(ids.size() * static_cast<std::size_t>(network.config().vocab));
  network.logits({x.data(), ids.size(), hidden, hidden}, logits);
  return logits;
}
std::vector<float> run(const MappedModel& model) { return run(model.checkpoint, model.config); }

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double largest = 0, worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i])));
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return worst / largest;
}

// ---- Random members

std::vector<std::int64_t> random_order(std::int64_t size, std::uint64_t seed) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const std::vector<float> keys = testing::random_values(order.size(), seed);
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return keys[static_cast<std::size_t>(a)] < keys[static_cast<std::size_t>(b)]; });
  if (std::is_sorted(order.begin(), order.end()) && size > 1) std::rotate(order.begin(), order.begin() + 1, order.end());
  return order;
}
std::vector<double> random_signs(std::int64_t size, std::uint64_t seed) {
  std::vector<double> signs;
  for (const float value : testing::random_values(static_cast<std::size_t>(size), seed)) signs.push_back(value < 0 ? -1 : 1);
  signs[0] = -1;
  return signs;
}
std::vector<double> random_scales(std::int64_t size, std::uint64_t seed) {
  std::vector<double> scales;
  for (const float value : testing::random_values(static_cast<std::size_t>(size), seed)) scales.push_back(std::exp(0.7 * static_cast<double>(value)));
  return scales;
}
std::shared_ptr<const math::LinearMap> random_general(std::int64_t size, std::uint64_t seed) {
  const auto n = static_cast<std::size_t>(size);
  std::vector<double> m;
  for (const float value : testing::random_values(n * n, seed, 0.15F)) m.push_back(static_cast<double>(value));
  for (std::size_t i = 0; i < n; ++i) m[i * n + i] += 1;
  return math::make_matrix_map(std::move(m), size);
}
/// Each element at least once, some more often; all equally often where that is needed.
std::vector<std::int64_t> random_copies(std::int64_t size, bool equally, std::uint64_t seed) {
  std::vector<std::int64_t> order = random_order(size, seed);
  if (equally) order.insert(order.end(), order.begin(), order.begin() + size);
  if (!equally) order.insert(order.end(), {order[0], order[0], order[static_cast<std::size_t>(size) / 2]});
  std::rotate(order.begin(), order.begin() + 1, order.end());
  return order;
}

struct Member {
  unsigned group;
  SpaceMap map;
};

/// One member of each group, allowed or not.
std::vector<Member> members(const std::string& name, std::int64_t size, std::uint64_t seed) {
  std::vector<Member> all;
  all.push_back({kPermute, permuted(name, random_order(size, seed))});
  all.push_back({kSign, scaled(name, random_signs(size, seed + 1))});
  all.push_back({kScale, scaled(name, random_scales(size, seed + 2))});
  all.push_back({kRotate, rotated(name, math::make_random_orthogonal(size, seed + 3))});
  all.push_back({kRotate, rotated(name, math::make_hadamard_map(size, math::Signs::random, seed))});
  all.push_back({kRotateMean, rotated(name, math::keeping_the_mean(math::make_hadamard_map(size, math::Signs::random, seed)))});
  all.push_back({kGeneral, rotated(name, random_general(size, seed + 4))});
  return all;
}

/// Whether a group that is allowed contains it.
bool contains(unsigned allows, unsigned group) {
  if ((allows & kGeneral) != 0 && group != kResize) return true;
  if ((allows & kRotate) != 0 && (group == kRotateMean || group == kSign || group == kPermute)) return true;
  return (allows & group) != 0;
}

TEST(SpaceMap, a_random_member_of_every_group_of_every_space_leaves_the_logits_of_every_architecture_alone) {
  for (const Tiny& model : all_transformers()) {
    SCOPED_TRACE(model.name);
    const std::vector<float> logits = run(model.checkpoint, model.config);
    const NetworkSpaces spaces = spaces_of(*find_architecture(model.config), model.config, *model.checkpoint);
    EXPECT_EQ(spaces.tensors.size(), model.checkpoint->tensors().size()) << "some tensor has no spaces";
    std::uint64_t seed = 100;
    std::vector<SpaceMap> together;
    std::size_t allowed = 0, refused = 0;
    for (const Space& space : spaces.spaces) {
      for (const Member& member : members(space.name, space.size, seed += 10)) {
        SCOPED_TRACE(space.name + " by " + allowed_text(member.group));
        if (space.size == 1 && member.group != kScale && member.group != kGeneral) continue;  // nothing to reorder or turn
        if (contains(space.allows, member.group)) {
          ++allowed;
          const MappedModel mapped = map_spaces(model.checkpoint, model.config, std::span(&member.map, 1));
          EXPECT_GE(mapped.changed.size(), 1U);  // q and k may lie in one tensor
          EXPECT_LT(difference(logits, run(mapped)), kSame);
          together.push_back(member.map);
        } else if (!contains(space.allows_folded, member.group)) {
          ++refused;
          EXPECT_WEFT_ERROR(map_spaces(model.checkpoint, model.config, std::span(&member.map, 1)), invalid_argument, "'" + space.name + "'");
        }
      }
    }
    // One behind the other, they are still one network.
    const MappedModel mapped = map_spaces(model.checkpoint, model.config, together);
    EXPECT_LT(difference(logits, run(mapped)), 3 * kSame);
    EXPECT_GE(allowed, 20U);
    EXPECT_GE(refused, 20U);
  }
}

TEST(SpaceMap, heads_may_have_maps_of_their_own) {
  for (const Tiny& model : all_transformers()) {
    SCOPED_TRACE(model.name);
    const std::vector<float> logits = run(model.checkpoint, model.config);
    const NetworkSpaces spaces = spaces_of(*find_architecture(model.config), model.config, *model.checkpoint);
    const std::int64_t heads = spaces.find("kv.1")->size, size = spaces.find("value.1")->size;
    SpaceMap turned = rotated("kv.1 x value.1", nullptr);
    turned.matrices.clear();
    for (std::int64_t h = 0; h < heads; ++h) turned.matrices.push_back(math::make_random_orthogonal(size, static_cast<std::uint64_t>(h + 5)));
    std::vector<std::int64_t> orders;
    for (std::int64_t h = 0; h < heads; ++h)
      for (const std::int64_t i : random_order(size, static_cast<std::uint64_t>(h + 9))) orders.push_back(i);
    const SpaceMap maps[] = {scaled("kv.1 x value.1", random_scales(heads * size, 3)), turned, permuted("kv.1 x value.1", orders)};
    EXPECT_LT(difference(logits, run(map_spaces(model.checkpoint, model.config, maps))), kSame);
    // The same lists in another order are another network.
    const SpaceMap odd[] = {permuted("kv.0 x mlp.0", random_order(spaces.find("mlp.0") == nullptr ? 8 : spaces.find("mlp.0")->size, 1))};
    if (spaces.find("mlp.0") != nullptr)
      EXPECT_WEFT_ERROR(map_spaces(model.checkpoint, model.config, odd), invalid_argument, "do not stand beside each other");
  }
}

TEST(SpaceMap, the_residual_stream_turns_once_gains_are_folded_and_only_where_they_can_be) {
  std::size_t turned = 0, refused = 0;
  for (const Tiny& model : all_transformers()) {
    SCOPED_TRACE(model.name);
    const NetworkSpaces spaces = spaces_of(*find_architecture(model.config), model.config, *model.checkpoint);
    const Space& residual = *spaces.find("residual");
    const auto any = rotated("residual", math::make_hadamard_map(residual.size, math::Signs::random, 3));
    const auto mean = rotated("residual", math::keeping_the_mean(math::make_random_orthogonal(residual.size, 4)));
    if ((residual.allows_folded & (kRotate | kRotateMean)) == 0) {
      ++refused;
      EXPECT_WEFT_ERROR(map_spaces(model.checkpoint, model.config, std::span(&mean, 1)), invalid_argument,
                        "between a block and its sum, or on the sum");
      continue;
    }
    ++turned;
    EXPECT_WEFT_ERROR(map_spaces(model.checkpoint, model.config, std::span(&mean, 1)), invalid_argument, "--fold-norms");
    const std::vector<float> logits = run(model.checkpoint, model.config);
    const MappedModel folded = fold_norms(model.checkpoint, model.config);
    EXPECT_LT(difference(logits, run(folded)), kSame);
    EXPECT_LT(difference(logits, run(map_spaces(folded.checkpoint, folded.config, std::span(&mean, 1)))), kSame);
    if ((residual.allows_folded & kRotate) != 0)
      EXPECT_LT(difference(logits, run(map_spaces(folded.checkpoint, folded.config, std::span(&any, 1)))), kSame);
    else
      EXPECT_WEFT_ERROR(map_spaces(folded.checkpoint, folded.config, std::span(&any, 1)), invalid_argument, "leave the vector of ones alone");
  }
  EXPECT_GE(turned, 14U);
  EXPECT_GE(refused, 3U);  // gemma2, gemma3, olmo2 and bert
}

TEST(SpaceMap, folding_makes_gains_one_and_unties_what_shares_them) {
  for (const Tiny& model : all_transformers()) {
    SCOPED_TRACE(model.name);
    const Architecture& architecture = *find_architecture(model.config);
    if (architecture.name == "bert") {
      EXPECT_WEFT_ERROR(fold_norms(model.checkpoint, model.config), unsupported, "no norm of a bert");
      continue;
    }
    const MappedModel folded = fold_norms(model.checkpoint, model.config);
    EXPECT_FALSE(is_tied(architecture, folded.config));
    EXPECT_LT(difference(run(model.checkpoint, model.config), run(folded)), kSame);
    for (const TensorSlot& slot : tensor_slots(architecture, folded.config, 2)) {
      const bool folds = slot.site == Site::attention_in || slot.site == Site::mlp_in || slot.site == Site::final;
      if (!folds || slot.name.ends_with("bias")) continue;
      const TensorInfo& tensor = folded.checkpoint->tensor(slot.name);
      std::vector<std::byte> bytes(tensor.size_bytes);
      folded.checkpoint->read_bytes(tensor, 0, bytes);
      const float one = architecture.forward.norm == NormKind::rms_plus_one ? 0.0F : 1.0F;
      for (const float gain : testing::values_of(tensor.dtype, bytes)) EXPECT_EQ(gain, one) << slot.name;
    }
  }
}

TEST(SpaceMap, a_layer_norm_s_model_can_be_centred_and_no_other) {
  std::size_t centred = 0;
  for (const Tiny& model : all_transformers()) {
    SCOPED_TRACE(model.name);
    if (find_architecture(model.config)->forward.norm != NormKind::layer) {
      EXPECT_WEFT_ERROR(centre_residual(model.checkpoint, model.config), unsupported, "do not subtract a mean");
      continue;
    }
    ++centred;
    const MappedModel mapped = centre_residual(model.checkpoint, model.config);
    EXPECT_LT(difference(run(model.checkpoint, model.config), run(mapped)), kSame);
    if (model.name == "bert") continue;
    // The stream has no mean left.
    Network network(mapped.checkpoint, mapped.config, {.threads = 1});
    const std::vector<std::uint32_t> ids = {1, 2, 3};
    const TokenChunk chunk{nullptr, ids, {}};
    const std::vector<float> x = network.run({&chunk, 1});
    for (std::size_t t = 0; t < 3; ++t)
      EXPECT_NEAR(std::accumulate(x.begin() + static_cast<std::ptrdiff_t>(t * 24), x.begin() + static_cast<std::ptrdiff_t>(t * 24 + 24), 0.0), 0,
                  1e-4);
  }
  EXPECT_GE(centred, 5U);
}

TEST(SpaceMap, expanding_a_space_leaves_the_logits_alone_and_config_follows) {
  std::size_t expanded = 0, refused = 0;
  for (const Tiny& model : all_transformers()) {
    SCOPED_TRACE(model.name);
    const Architecture& architecture = *find_architecture(model.config);
    const std::vector<float> logits = run(model.checkpoint, model.config);
    const NetworkSpaces spaces = spaces_of(architecture, model.config, *model.checkpoint);
    for (const char* base : {"mlp", "kv", "group", "shared_mlp", "residual"}) {
      SCOPED_TRACE(base);
      std::vector<SpaceMap> maps;
      const std::string prefix = std::string(base) + ".";
      for (const Space& space : spaces.spaces)
        if (space.name == base || space.name.starts_with(prefix)) {
          SpaceMap map = permuted(space.name, random_copies(space.size, space.name == "residual" || space.size < 3, 7));
          map.kind = SpaceMap::Kind::expand;
          maps.push_back(std::move(map));
        }
      if (maps.empty()) continue;
      try {
        const MappedModel mapped = map_spaces(model.checkpoint, model.config, maps);
        EXPECT_LT(difference(logits, run(mapped)), kSame);
        ++expanded;
      } catch (const Error& error) {
        ++refused;
        EXPECT_EQ(error.exit_status(), 2) << error.what();
        const std::string_view what = error.what();
        const bool is_known = what.find("head of its own") != std::string_view::npos || what.find("root of its width") != std::string_view::npos ||
                              what.find("config.json cannot say") != std::string_view::npos ||
                              what.find("one number for all") != std::string_view::npos;
        EXPECT_TRUE(is_known) << error.what();
      }
    }
  }
  EXPECT_GE(expanded, 50U);
  EXPECT_GE(refused, 3U);
}

TEST(SpaceMap, selecting_leaves_elements_out_of_every_tensor) {
  const Tiny model = tiny("llama", tiny_config(*find_architecture(parse_json(R"({"model_type": "llama"})", ""))));
  std::vector<SpaceMap> maps;
  for (const char* name : {"residual", "mlp.0", "mlp.1", "kv.0", "kv.1"}) {
    SpaceMap map = permuted(name, name[0] == 'k' ? std::vector<std::int64_t>{1} : std::vector<std::int64_t>{3, 5, 0, 9, 11, 12, 13, 17});
    map.kind = SpaceMap::Kind::select;
    maps.push_back(std::move(map));
  }
  const MappedModel small = map_spaces(model.checkpoint, model.config, maps);
  EXPECT_EQ(small.config.find("hidden_size")->integer(), 8);
  EXPECT_EQ(small.config.find("intermediate_size")->integer(), 8);
  EXPECT_EQ(small.config.find("num_attention_heads")->integer(), 2);
  EXPECT_EQ(small.config.find("num_key_value_heads")->integer(), 1);
  const TensorInfo& up = small.checkpoint->tensor("model.layers.1.mlp.up_proj.weight");
  EXPECT_EQ(up.shape, (Shape{8, 8}));
  std::vector<std::byte> bytes(up.size_bytes), all(20 * 24 * 4);
  small.checkpoint->read_bytes(up, 0, bytes);
  model.checkpoint->read_bytes(model.checkpoint->tensor(up.name), 0, all);
  const std::vector<float> chosen = testing::values_of(DType::f32, bytes), original = testing::values_of(DType::f32, all);
  EXPECT_EQ(chosen[0], original[3 * 24 + 3]);
  EXPECT_EQ(chosen[3 * 8 + 7], original[9 * 24 + 17]);
  EXPECT_EQ(run(small).size(), 24U * 50U);
  EXPECT_WEFT_ERROR(map_spaces(model.checkpoint, model.config, std::span(&maps[1], 1)), unsupported, "one number for all");
}

// ---- Mutations: the tests above can fail.

/// The steps as they would be if the other side were taken.
AxisStep on_the_wrong_side(AxisStep step) {
  for (double& factor : step.factors) factor = 1 / factor;
  if (!step.order.empty()) {
    std::vector<std::int64_t> inverse(step.order.size());
    for (std::size_t i = 0; i < inverse.size(); ++i) inverse[static_cast<std::size_t>(step.order[i])] = static_cast<std::int64_t>(i);
    step.order = std::move(inverse);
  }
  for (AxisStep::Block& block : step.blocks) {
    // The transposed matrix.
    const std::size_t n = block.map->size();
    std::vector<double> columns(n * n);
    for (std::size_t i = 0; i < n; ++i) columns[i * n + i] = 1;
    if (block.is_dual)
      block.map->apply_dual(columns.data(), n);
    else
      block.map->apply(columns.data(), n);
    block.map = math::make_matrix_map(columns, static_cast<std::int64_t>(n));  // rows are what columns were
    block.is_dual = false;
  }
  return step;
}

std::shared_ptr<const Checkpoint> with_steps(const Checkpoint& like, const std::shared_ptr<const Checkpoint>& checkpoint,
                                             const std::map<std::string, std::vector<AxisStep>, std::less<>>& steps) {
  std::vector<NamedTensor> tensors;
  for (const TensorInfo& tensor : like.tensors()) {
    const auto found = steps.find(tensor.name);
    const TensorRef ref{checkpoint, &checkpoint->tensor(tensor.name)};
    tensors.push_back({found == steps.end() ? ref : change_axes(ref, found->second), tensor.name});
  }
  return select_tensors(tensors, like);
}

/// What a network's function does not depend on at all: biases of 0 (folded norms leave some), and a bias of keys where nothing turns, which adds the
/// same to every score of a query.
bool matters(const Checkpoint& checkpoint, const std::string& name, const Architecture& architecture) {
  if (architecture.name == "bert" && name.ends_with("key.bias")) return false;
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<std::byte> bytes(tensor.size_bytes);
  checkpoint.read_bytes(tensor, 0, bytes);
  const std::vector<float> values = testing::values_of(tensor.dtype, bytes);
  return std::any_of(values.begin(), values.end(), [](float value) { return value != 0; });
}

TEST(SpaceMap, forgetting_any_one_tensor_or_taking_the_wrong_side_of_it_shows_in_the_logits) {
  std::size_t mutations = 0;
  for (const Tiny& original : all_transformers(Experts::all)) {
    SCOPED_TRACE(original.name);
    const Architecture& architecture = *find_architecture(original.config);
    // Rotations need folded gains.
    Tiny model = original;
    if (architecture.name != "bert") {
      MappedModel folded = fold_norms(original.checkpoint, original.config);
      model = {original.name, std::move(folded.config), std::move(folded.checkpoint)};
    }
    for (const bool is_folded : {false, true}) {
      const Tiny& one = is_folded ? model : original;
      const std::vector<float> logits = run(one.checkpoint, one.config);
      const NetworkSpaces spaces = spaces_of(architecture, one.config, *one.checkpoint);
      for (const Space& space : spaces.spaces) {
        // One layer is enough, and of the folded network its turns.
        if (space.size < 2 || (is_folded ? space.name != "residual" : space.name.find(".0") != std::string::npos)) continue;
        for (const Member& member : members(space.name, space.size, 50)) {
          const bool is_turn = member.group == kRotate || member.group == kRotateMean;
          if (is_folded != (is_turn && space.name == "residual")) continue;
          if (!contains(is_folded ? space.allows_folded : space.allows, member.group)) continue;
          if (!is_folded && space.name == "residual" && is_turn) continue;
          const auto steps = steps_of_map(spaces, member.map);
          ASSERT_LT(difference(logits, run(with_steps(*one.checkpoint, one.checkpoint, steps), one.config)), kSame);
          // In a tensor alone, both sides are wrong together.
          if (steps.size() == 1) continue;
          for (const auto& [tensor, of_tensor] : steps) {
            if (!matters(*one.checkpoint, tensor, architecture)) continue;
            SCOPED_TRACE(space.name + " by " + allowed_text(member.group) + ", " + tensor);
            auto forgotten = steps;
            forgotten.erase(tensor);
            EXPECT_GT(difference(logits, run(with_steps(*one.checkpoint, one.checkpoint, forgotten), one.config)), kOther);
            ++mutations;
            // Signs are their own inverse, and so is the one other order of two.
            if (member.group == kSign || (member.group == kPermute && space.size == 2)) continue;
            auto wrong = steps;
            for (AxisStep& step : wrong[tensor]) step = on_the_wrong_side(step);
            EXPECT_GT(difference(logits, run(with_steps(*one.checkpoint, one.checkpoint, wrong), one.config)), kOther);
            ++mutations;
          }
        }
      }
    }
  }
  EXPECT_GE(mutations, 2000U);
}

// ---- Networks that read images

/// With float32 weights, so that no map has to be rounded.
std::shared_ptr<const Checkpoint> in_float32(const Checkpoint& checkpoint) {
  std::vector<MemoryCheckpoint::Tensor> tensors;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.size_bytes));
    checkpoint.read_bytes(tensor, 0, bytes);
    tensors.push_back({tensor.name, DType::f32, tensor.shape, testing::stored_as(DType::f32, testing::values_of(tensor.dtype, bytes))});
  }
  return std::make_shared<MemoryCheckpoint>(std::move(tensors));
}

/// Random weights for a config.
Tiny tiny_image_network(const std::string& name, const std::string& config, const std::vector<std::pair<std::string, Shape>>& shapes) {
  std::vector<MemoryCheckpoint::Tensor> tensors;
  std::uint64_t seed = 1;
  for (const auto& [tensor, shape] : shapes) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    tensors.push_back({tensor, DType::f32, shape, testing::stored_as(DType::f32, testing::random_values(count, seed++, 0.3F))});
  }
  return {name, parse_json(config, "config.json"), std::make_shared<MemoryCheckpoint>(std::move(tensors))};
}
Tiny tiny_perceptron(const std::string& activation) {
  return tiny_image_network("mlp with " + activation, R"({"model_type": "mlp", "layer_sizes": [30, 12, 8, 5], "activation": ")" + activation + "\"}",
                            {{"layers.0.weight", {12, 30}},
                             {"layers.0.bias", {12}},
                             {"layers.1.weight", {8, 12}},
                             {"layers.1.bias", {8}},
                             {"layers.2.weight", {5, 8}},
                             {"layers.2.bias", {5}}});
}
/// The second activation is another.
Tiny tiny_convolutions(const std::string& second) {
  return tiny_image_network("cnn with " + second,
                            R"({"model_type": "cnn", "input_shape": [2, 8, 8], "layers": [{"conv2d": "one", "padding": 1}, {"activation": "relu"},
                               {"max_pool2d": 2}, {"conv2d": "two", "padding": 1}, {"activation": ")" +
                                second +
                                R"("}, {"avg_pool2d": 2}, {"flatten": true}, {"linear": "three"}, {"activation": "relu"}, {"linear": "four"}]})",
                            {{"one.weight", {6, 2, 3, 3}},
                             {"one.bias", {6}},
                             {"two.weight", {7, 6, 3, 3}},
                             {"two.bias", {7}},
                             {"three.weight", {9, 28}},
                             {"three.bias", {9}},
                             {"four.weight", {4, 9}}});
}

/// least: what a map that forgets a tensor changes.
void expect_maps_of_images(const Tiny& model, double least) {
  SCOPED_TRACE(model.name);
  ThreadTeam team(1);
  const std::vector<float> images = testing::random_values(6 * ImageNetwork(*model.checkpoint, model.config).num_inputs(), 3);
  const auto logits_of = [&](const Checkpoint& checkpoint) { return ImageNetwork(checkpoint, model.config).run(images, team); };
  const std::vector<float> logits = logits_of(*model.checkpoint);
  const NetworkSpaces spaces = spaces_of(*find_architecture(model.config), model.config, *model.checkpoint);
  EXPECT_EQ(spaces.tensors.size(), model.checkpoint->tensors().size());
  std::uint64_t seed = 300;
  std::vector<SpaceMap> together;
  std::size_t refused = 0, mutations = 0;
  for (const Space& space : spaces.spaces) {
    SpaceMap larger = permuted(space.name, random_copies(space.size, false, ++seed));
    larger.kind = SpaceMap::Kind::expand;
    std::vector<Member> all = {{kPermute, permuted(space.name, random_order(space.size, ++seed))},
                               {kSign, scaled(space.name, random_signs(space.size, ++seed))},
                               {kScale, scaled(space.name, random_scales(space.size, ++seed))},
                               {kResize, std::move(larger)}};
    if (space.size <= 64) {
      all.push_back({kRotate, rotated(space.name, math::make_random_orthogonal(space.size, ++seed))});
      all.push_back({kGeneral, rotated(space.name, random_general(space.size, ++seed))});
    }
    const bool is_units = space.name.starts_with("units.");
    for (const Member& member : all) {
      SCOPED_TRACE(space.name + " by " + allowed_text(member.group));
      if (space.size == 1 && member.group != kScale && member.group != kGeneral) continue;
      if (!contains(space.allows, member.group)) {
        ++refused;
        EXPECT_WEFT_ERROR(map_spaces(model.checkpoint, model.config, std::span(&member.map, 1)), invalid_argument, "'" + space.name + "'");
        continue;
      }
      EXPECT_TRUE(is_units && (member.group == kPermute || member.group == kScale));
      const MappedModel mapped = map_spaces(model.checkpoint, model.config, std::span(&member.map, 1));
      EXPECT_GE(mapped.changed.size(), 2U);
      EXPECT_LT(difference(logits, logits_of(*mapped.checkpoint)), kSame);
      together.push_back(member.map);
      // A forgotten tensor shows.
      const auto steps = steps_of_map(spaces, member.map);
      for (const auto& [name, own] : steps) {
        auto without = steps;
        without.erase(name);
        EXPECT_GT(difference(logits, logits_of(*with_steps(*model.checkpoint, model.checkpoint, without))), least) << name << " was forgotten";
        ++mutations;
      }
    }
    EXPECT_EQ(is_units, (space.allows & kPermute) != 0);
  }
  const MappedModel mapped = map_spaces(model.checkpoint, model.config, together);
  EXPECT_LT(difference(logits, logits_of(*mapped.checkpoint)), 3 * kSame);
  EXPECT_GE(refused, 8U);
  EXPECT_GE(mutations, 6U);
}

TEST(SpaceMap, orders_and_positive_scales_of_units_leave_the_logits_of_image_networks_alone_and_all_else_is_refused) {
  for (const char* activation : {"relu", "gelu", "silu", "tanh", "sigmoid"}) {
    expect_maps_of_images(tiny_perceptron(activation), kOther);
    expect_maps_of_images(tiny_convolutions(activation), kOther);
  }
}

TEST(SpaceMap, units_of_the_image_networks_of_the_zoo_may_be_mapped) {
  const std::filesystem::path vision = std::filesystem::path(WEFT_SOURCE_DIR) / "../shared/zoo/vision";
  if (!std::filesystem::exists(vision)) GTEST_SKIP() << "no zoo";
  for (const char* name : {"rebasin/mlp-0", "path/step-01600", "robust/clean"}) {
    const auto checkpoint = open_checkpoint((vision / name).string());
    // Some of what was trained has biases that hardly matter; they still fail the test above.
    expect_maps_of_images({name, read_json_file(vision / name / "config.json"), in_float32(*checkpoint)}, 3 * kSame);
  }
}

TEST(SpaceMap, units_behind_another_activation_than_relu_have_no_scale_of_their_own) {
  const auto scales = [](const Tiny& model) {
    std::string text;
    for (const Space& space : spaces_of(*find_architecture(model.config), model.config, *model.checkpoint).spaces)
      if ((space.allows & kScale) != 0) text += space.name + " ";
    return text;
  };
  EXPECT_EQ(scales(tiny_perceptron("relu")), "units.0 units.1 ");
  EXPECT_EQ(scales(tiny_perceptron("gelu")), "");
  EXPECT_EQ(scales(tiny_convolutions("relu")), "units.0 units.1 units.2 ");
  EXPECT_EQ(scales(tiny_convolutions("tanh")), "units.0 units.2 ");
}

TEST(SpaceMap, maps_of_the_wrong_size_or_space_are_refused_by_name) {
  const Tiny model = tiny("llama", tiny_config(*find_architecture(parse_json(R"({"model_type": "llama"})", ""))));
  const auto apply = [&](const SpaceMap& map) { return map_spaces(model.checkpoint, model.config, std::span(&map, 1)); };
  EXPECT_WEFT_ERROR(apply(permuted("mpl.0", {0})), invalid_argument, "did you mean 'mlp.0'");
  EXPECT_WEFT_ERROR(apply(permuted("mlp.0", {1, 0})), invalid_argument, "2 indices are given for space 'mlp.0' of 20 elements");
  std::vector<std::int64_t> order = random_order(20, 1);
  order[3] = order[4];
  EXPECT_WEFT_ERROR(apply(permuted("mlp.0", order)), invalid_argument, "twice");
  order[3] = 20;
  EXPECT_WEFT_ERROR(apply(permuted("mlp.0", order)), invalid_argument, "element 20 is asked for");
  EXPECT_WEFT_ERROR(apply(scaled("mlp.0", std::vector<double>(20, 0.0))), invalid_argument, "is 0");
  EXPECT_WEFT_ERROR(apply(scaled("mlp.0", std::vector<double>(20, NAN))), invalid_argument, "is nan");
  EXPECT_WEFT_ERROR(apply(rotated("value.0", math::make_hadamard_map(4))), invalid_argument, "a matrix of size 4");
  EXPECT_WEFT_ERROR(apply(rotated("mlp.0", math::make_hadamard_map(20))), invalid_argument, "an activation acts on each unit by itself");
  EXPECT_WEFT_ERROR(apply(rotated("residual", random_general(24, 1))), invalid_argument, "not orthogonal");
  EXPECT_WEFT_ERROR(map_spaces(model.checkpoint, parse_json(R"({"model_type": "vit"})", ""), {}), unsupported, "type vit");
}

TEST(SpaceMap, a_tensor_that_may_read_the_space_unknown_to_the_table_stops_a_map) {
  const Tiny model = tiny("llama", tiny_config(*find_architecture(parse_json(R"({"model_type": "llama"})", ""))));
  std::vector<MemoryCheckpoint::Tensor> tensors = {{"score.weight", DType::f32, {2, 24}, std::vector<std::byte>(2 * 24 * 4)}};
  const auto more = std::make_shared<MemoryCheckpoint>(std::move(tensors));
  const auto both = overlay_tensors(model.checkpoint, {{more, &more->tensors().front()}});
  const SpaceMap residual = permuted("residual", random_order(24, 1)), mlp = permuted("mlp.0", random_order(20, 1));
  EXPECT_WEFT_ERROR(map_spaces(both, model.config, std::span(&residual, 1)), unsupported, "'score.weight'");
  EXPECT_NO_THROW(static_cast<void>(map_spaces(both, model.config, std::span(&mlp, 1))));
}

TEST(SpaceMap, several_maps_of_one_tensor_are_rounded_once) {
  const Tiny model = tiny("llama", tiny_config(*find_architecture(parse_json(R"({"model_type": "llama"})", ""))), DType::bf16);
  const SpaceMap there = rotated("value.0", math::make_random_orthogonal(6, 1));
  std::vector<double> q(36);
  for (std::size_t i = 0; i < 6; ++i) q[i * 7] = 1;
  there.matrices[0]->apply(q.data(), 6);  // rows of the transposed matrix
  const SpaceMap maps[] = {there, rotated("value.0", math::make_matrix_map(q, 6))};
  const MappedModel back = map_spaces(model.checkpoint, model.config, maps);
  const MappedModel once = map_spaces(model.checkpoint, model.config, std::span(&there, 1));
  const MappedModel twice = map_spaces(once.checkpoint, once.config, std::span(maps + 1, 1));
  for (const TensorInfo& tensor : model.checkpoint->tensors()) {
    std::vector<std::byte> before(tensor.size_bytes), after(tensor.size_bytes);
    model.checkpoint->read_bytes(tensor, 0, before);
    for (const MappedModel* mapped : {&back, &twice}) {
      mapped->checkpoint->read_bytes(mapped->checkpoint->tensor(tensor.name), 0, after);
      EXPECT_EQ(before, after) << tensor.name;
    }
  }
}

}  // namespace
}  // namespace weft::model
