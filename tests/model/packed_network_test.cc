#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <string>

#include "checkpoint/packed_rows.h"
#include "math/blocks.h"
#include "math/packed_matrix.h"
#include "model/network.h"
#include "support/memory_checkpoint.h"

// Networks whose matrices stay packed, beside the same weights decoded.
namespace weft::model {
namespace {

using testing::MemoryCheckpoint;

const char* const kLlama = R"({"model_type": "llama", "vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5})";

enum class Kind { blocks, integers };

/// Rounds every matrix to Q8_0, or to 4-bit integers in groups of 32, and gives both what is packed and the values that it stands for.
class PackedInMemory final : public Checkpoint, public PackedSource {
 public:
  PackedInMemory(std::vector<MemoryCheckpoint::Tensor> tensors, Kind kind, std::set<std::string> plain = {})
      : kind_(kind), plain_(std::move(plain)), values_(std::make_shared<MemoryCheckpoint>(round(std::move(tensors)))) {
    container_ = "memory";
    path_ = "packed";
    files_.push_back({path_, 0});
    tensors_.assign(values_->tensors().begin(), values_->tensors().end());
    index_tensors();
  }
  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    values_->read_bytes(values_->tensor(tensor.name), offset, out);
  }
  bool read_packed_rows(const TensorInfo& tensor, std::uint64_t first, std::uint64_t count, PackedRows& out) const override {
    const auto found = packed_.find(tensor.name);
    if (found == packed_.end()) return false;
    const PackedRows& all = found->second;
    out = {};
    out.format = all.format;
    out.has_blocks = all.has_blocks;
    const std::size_t rows = static_cast<std::size_t>(tensor.shape[0]);
    const auto part = [&](const auto& from, auto& to) {
      const std::size_t width = from.size() / rows;
      to.assign(from.begin() + static_cast<std::ptrdiff_t>(first * width), from.begin() + static_cast<std::ptrdiff_t>((first + count) * width));
    };
    part(all.codes, out.codes);
    part(all.scales, out.scales);
    return true;
  }

 private:
  std::vector<MemoryCheckpoint::Tensor> round(std::vector<MemoryCheckpoint::Tensor> tensors) {
    for (MemoryCheckpoint::Tensor& tensor : tensors) {
      if (tensor.shape.size() != 2 || plain_.contains(tensor.name)) continue;
      std::vector<float> values(tensor.bytes.size() / sizeof(float));
      std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
      PackedRows& rows = packed_[tensor.name];
      if (kind_ == Kind::blocks) {
        EXPECT_TRUE(math::find_packed_format("Q8_0", rows.format));
        rows.has_blocks = true;
        rows.codes.resize(values.size() / 32 * 34);
        math::encode_q8_0(values.data(), values.size() / 32, rows.codes.data());
        math::decode_q8_0(rows.codes.data(), values.size() / 32, values.data());
      } else {
        rows.format.type = math::PackedType::integer;
        for (std::size_t g = 0; g < values.size(); g += 32) {
          rows.scales.push_back(0.0625F);
          for (std::size_t i = g; i < g + 32; ++i) {
            const float code = std::min(std::max(std::round(values[i] / 0.0625F) + 8, 0.0F), 15.0F);
            rows.codes.push_back(static_cast<std::uint8_t>(code));
            values[i] = (code - 8) * 0.0625F;
          }
        }
      }
      std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    }
    return tensors;
  }
  Kind kind_;
  std::set<std::string> plain_;
  std::map<std::string, PackedRows> packed_;
  std::shared_ptr<MemoryCheckpoint> values_;
};

std::shared_ptr<PackedInMemory> packed_model(const Json& config, Kind kind, std::set<std::string> plain = {}) {
  const Architecture* architecture = find_architecture(config);
  std::vector<MemoryCheckpoint::Tensor> tensors;
  std::uint64_t seed = 1;
  for (const TensorSlot& slot : tensor_slots(*architecture, config, num_layers(*architecture, config))) {
    if (!slot.expected) continue;
    std::size_t count = 1;
    for (const std::int64_t dim : *slot.shape) count *= static_cast<std::size_t>(dim);
    tensors.push_back({slot.name, DType::f32, *slot.shape, testing::stored_as(DType::f32, testing::random_values(count, seed++, 0.3F))});
  }
  return std::make_shared<PackedInMemory>(std::move(tensors), kind, std::move(plain));
}

std::vector<std::uint32_t> some_ids(std::size_t count) {
  std::vector<std::uint32_t> ids;
  for (std::size_t i = 0; i < count; ++i) ids.push_back(static_cast<std::uint32_t>(i * i + 3 * i) % 50);
  return ids;
}

std::vector<float> logits_of(Network& network, std::span<const std::uint32_t> ids) {
  const auto state = network.new_state(static_cast<std::int64_t>(ids.size()));
  const TokenChunk chunk{state.get(), ids, {}};
  const std::vector<float> x = network.run({&chunk, 1});
  const auto hidden = static_cast<std::size_t>(network.config().hidden);
  std::vector<float> out(ids.size() * static_cast<std::size_t>(network.config().vocab));
  network.logits({x.data(), ids.size(), hidden, hidden}, out);
  return out;
}

/// Root mean square of the difference over that of `a`.
double relative_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double squares = 0, differences = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    squares += std::pow(static_cast<double>(a[i]), 2);
    differences += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  }
  return std::sqrt(differences / squares);
}

TEST(PackedNetwork, blocks_give_logits_within_the_rounding_of_the_inputs) {
  const Json config = parse_json(kLlama, "");
  const auto model = packed_model(config, Kind::blocks);
  Network exact(model, config, {.threads = 2}), packed(model, config, {.precision = Precision::packed, .threads = 2});
  for (const std::size_t count : {1U, 5U, 40U, 200U}) {
    const std::vector<std::uint32_t> ids = some_ids(count);
    const std::vector<float> a = logits_of(exact, ids), b = logits_of(packed, ids);
    EXPECT_LT(relative_difference(a, b), 0.02) << count;
    EXPECT_NE(a, b) << "inputs were not rounded";
  }
  EXPECT_LT(packed.weight_bytes(), exact.weight_bytes() / 3);
}

TEST(PackedNetwork, integers_with_group_scales_give_the_logits_of_their_values) {
  const Json config = parse_json(kLlama, "");
  const auto model = packed_model(config, Kind::integers);
  Network exact(model, config, {.threads = 2}), packed(model, config, {.precision = Precision::packed, .threads = 2});
  for (const std::size_t count : {1U, 5U, 40U, 200U}) {
    const std::vector<std::uint32_t> ids = some_ids(count);
    EXPECT_LT(relative_difference(logits_of(exact, ids), logits_of(packed, ids)), 1e-5) << count;
  }
}

TEST(PackedNetwork, is_the_same_for_any_number_of_threads_and_read_block_by_block) {
  const Json config = parse_json(kLlama, "");
  for (const Kind kind : {Kind::blocks, Kind::integers}) {
    const auto model = packed_model(config, kind);
    const std::vector<std::uint32_t> ids = some_ids(70);
    Network one(model, config, {.precision = Precision::packed, .threads = 1}), three(model, config, {.precision = Precision::packed, .threads = 3});
    const std::vector<float> expected = logits_of(one, ids);
    EXPECT_EQ(logits_of(three, ids), expected);
    const std::uint64_t needed = one.weight_bytes() + one.sequence_bytes(70, 70);
    Network small(model, config, {.precision = Precision::packed, .threads = 2, .memory_bytes = needed - 100});
    EXPECT_EQ(logits_of(small, ids), expected);
    EXPECT_FALSE(small.is_resident());
  }
}

TEST(PackedNetwork, what_is_one_product_is_packed_as_a_whole_or_decoded) {
  const Json config = parse_json(kLlama, "");
  const auto model = packed_model(config, Kind::integers, {"model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.down_proj.weight"});
  Network exact(model, config, {.threads = 2}), packed(model, config, {.precision = Precision::packed, .threads = 2});
  const std::vector<std::uint32_t> ids = some_ids(30);
  EXPECT_LT(relative_difference(logits_of(exact, ids), logits_of(packed, ids)), 1e-5);
  const BlockWeights first = packed.read_block(0), second = packed.read_block(1);
  EXPECT_TRUE(first.qkv.packed.empty());
  EXPECT_EQ(first.o.packed.size(), 1U);
  EXPECT_EQ(second.qkv.packed.size(), 3U);
  EXPECT_TRUE(second.mlp.down.packed.empty());
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const BlockWeights block = packed.read_block(layer);
    std::uint64_t matrices = 0;
    for (const Linear* linear : {&block.qkv, &block.o, &block.mlp.up, &block.mlp.down}) matrices += linear->size_bytes();
    EXPECT_EQ(matrices + 2 * 64 * sizeof(float), packed.block_bytes(layer)) << "what is counted against the budget";
  }
}

TEST(PackedNetwork, changes_nothing_in_other_precisions) {
  const Json config = parse_json(kLlama, "");
  const auto model = packed_model(config, Kind::blocks);
  Network network(model, config, {.threads = 1});
  const BlockWeights block = network.read_block(0);
  EXPECT_TRUE(block.qkv.packed.empty());
  EXPECT_EQ(block.qkv.dtype, DType::f32);
}

}  // namespace
}  // namespace weft::model
