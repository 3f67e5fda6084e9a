#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/gguf.h"
#include "engine/block_pass.h"
#include "engine/calibration_text.h"
#include "engine/running_model.h"
#include "model/tiny_networks.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/calibrate.h"
#include "weft/checkpoint.h"

// Statistics of random networks whose linear layers are stored in every way there is: as GPT-2's Conv1D, q, k and v in one, and experts, shared or
// not. The reference looks at a forward pass of the whole network, and sums in double.
namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using model::Role;
using testing::TemporaryFolder;
using testing::Tiny;
using testing::write_file;

constexpr const char* kArchitectures[] = {"mixtral", "qwen2_moe", "gpt2", "phi3", "gpt_neox", "qwen3_moe"};

Tiny tiny_of(const std::string& name, const std::vector<std::pair<const char*, Json>>& keys = {}) {
  for (const model::Architecture& architecture : model::architectures()) {
    if (architecture.name != name) continue;
    Json config = testing::tiny_config(architecture);
    for (const auto& [key, value] : keys) config.set(key, value);
    return testing::tiny(name, std::move(config));
  }
  ADD_FAILURE() << "no architecture " << name;
  return {};
}

RunningModel running(const Tiny& tiny) {
  ModelFiles files;
  files.checkpoint = tiny.checkpoint;
  files.config = tiny.config;
  return {std::move(files), {}};
}

std::string bytes_of_tensor(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::string bytes(static_cast<std::size_t>(tensor.size_bytes), '\0');
  checkpoint.read_bytes(tensor, 0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

template <class T>
std::vector<T> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& tensor = checkpoint.tensor(name);
  std::vector<T> values(static_cast<std::size_t>(tensor.num_elements));
  EXPECT_EQ(tensor.size_bytes, values.size() * sizeof(T)) << name;
  checkpoint.read_bytes(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

/// A model's folder, with a tokenizer of letters.
void write_model(const Tiny& tiny, const fs::path& folder) {
  std::vector<testing::StoredTensor> tensors;
  for (const TensorInfo& tensor : tiny.checkpoint->tensors()) {
    ASSERT_EQ(tensor.dtype, DType::f32);
    tensors.push_back({tensor.name, "F32", tensor.shape, bytes_of_tensor(*tiny.checkpoint, tensor)});
  }
  std::string vocab = R"(" ":0)";
  for (int i = 0; i < 26; ++i) vocab += ",\"" + std::string(1, static_cast<char>('a' + i)) + "\":" + std::to_string(i + 1);
  fs::create_directories(folder);
  write_file(folder / "model.safetensors", testing::safetensors_of_types(tensors));
  write_file(folder / "config.json", write_json(tiny.config));
  write_file(folder / "tokenizer.json", R"({"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{)" + vocab + R"(},"merges":[]}})");
}

std::string letters(std::size_t count) {
  std::string text;
  std::uint32_t state = 5;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;
    const std::uint32_t letter = (state >> 8) % 27;
    text += letter == 26 ? ' ' : static_cast<char>('a' + letter);
  }
  return text;
}

// ---- The reference

/// All rows that were read somewhere, by the name of the place.
class AllRows final : public model::NetworkTap {
 public:
  void linear_input(int layer, Role role, int expert, std::size_t, const model::Rows& rows) override {
    std::string place = "layers." + std::to_string(layer) + "." + place_of(role);
    if (expert >= 0) place += "." + std::to_string(expert);
    auto& all = places[place];
    for (std::size_t r = 0; r < rows.num_rows; ++r) all.emplace_back(rows.row(r), rows.row(r) + rows.num_columns);
  }
  std::map<std::string, std::vector<std::vector<float>>> places;

 private:
  static std::string place_of(Role role) {
    switch (role) {
      case Role::q:
      case Role::qkv:
        return "q";
      case Role::o:
        return "o";
      case Role::up:
      case Role::gate_up:
        return "up";
      case Role::down:
        return "down";
      case Role::router:
        return "router";
      case Role::shared_up:
        return "shared_up";
      case Role::shared_down:
        return "shared_down";
      default:
        ADD_FAILURE() << "the network told of another role";
        return "";
    }
  }
};

AllRows rows_of(RunningModel& model, const CalibrationTokens& tokens) {
  std::vector<model::TokenChunk> chunks;
  for (const auto& sequence : tokens.sequences) chunks.push_back({nullptr, sequence, {}});
  AllRows rows;
  (void)model.network().run(chunks, &rows);
  return rows;
}

/// How many tokens go to each expert, by the router's weights alone.
std::vector<std::size_t> expert_counts(const std::vector<std::vector<float>>& router_rows, const std::vector<float>& router, std::size_t num_experts,
                                       std::size_t chosen) {
  std::vector<std::size_t> counts(num_experts, 0);
  for (const std::vector<float>& row : router_rows) {
    std::vector<std::pair<double, std::size_t>> scores;
    for (std::size_t e = 0; e < num_experts; ++e) {
      double score = 0;
      for (std::size_t i = 0; i < row.size(); ++i) score += static_cast<double>(router[e * row.size() + i]) * static_cast<double>(row[i]);
      scores.emplace_back(-score, e);
    }
    std::sort(scores.begin(), scores.end());
    for (std::size_t k = 0; k < chosen; ++k) ++counts[scores[k].second];
  }
  return counts;
}

/// 256 additions in float32, then float64; and the rows themselves, which another shape of products may round otherwise.
constexpr double kBound = 256 * 6e-8;

void expect_sums(const std::vector<std::vector<float>>& rows, const std::vector<double>& sum, const std::vector<double>& sum_abs,
                 const std::vector<double>& sum_squares, const std::vector<float>& max_abs, const std::vector<float>& min,
                 const std::vector<float>& max, const std::vector<double>& gram) {
  ASSERT_FALSE(rows.empty());
  const std::size_t width = rows.front().size();
  for (const std::size_t size : {sum.size(), sum_abs.size(), sum_squares.size(), max_abs.size(), min.size(), max.size()}) ASSERT_EQ(size, width);
  ASSERT_EQ(gram.size(), width * width);
  for (std::size_t i = 0; i < width; ++i) {
    double want = 0, want_abs = 0;
    float least = INFINITY, most = -INFINITY;
    for (const auto& row : rows) {
      want += static_cast<double>(row[i]);
      want_abs += std::fabs(static_cast<double>(row[i]));
      least = std::min(least, row[i]);
      most = std::max(most, row[i]);
    }
    EXPECT_NEAR(sum[i], want, kBound * want_abs);
    EXPECT_NEAR(sum_abs[i], want_abs, kBound * want_abs);
    const float bound = 1e-5F * std::max(std::fabs(least), std::fabs(most));
    EXPECT_NEAR(min[i], least, bound);
    EXPECT_NEAR(max[i], most, bound);
    EXPECT_NEAR(max_abs[i], std::max(std::fabs(least), std::fabs(most)), bound);
    for (std::size_t j = 0; j < width; ++j) {
      double product = 0, size = 0;
      for (const auto& row : rows) {
        const double term = static_cast<double>(row[i]) * static_cast<double>(row[j]);
        product += term;
        size += std::fabs(term);
      }
      ASSERT_NEAR(gram[i * width + j], product, kBound * size) << i << ' ' << j;
      if (i == j) {
        EXPECT_NEAR(sum_squares[i], product, kBound * size);
      }
    }
  }
}

/// Matrices of blocks; each reads somewhere.
std::set<std::string> linear_names(const Checkpoint& checkpoint) {
  std::set<std::string> names;
  for (const TensorInfo& tensor : checkpoint.tensors())
    if (tensor.shape.size() == 2 &&
        (tensor.name.find("layers.") != std::string::npos || tensor.name.find("h.") == 0 || tensor.name.find(".h.") != std::string::npos))
      names.insert(tensor.name);
  return names;
}

TEST(CalibrateArchitectures, statistics_of_a_pass_are_those_of_the_whole_network) {
  for (const char* name : kArchitectures) {
    SCOPED_TRACE(name);
    const Tiny tiny = tiny_of(name);
    RunningModel model = running(tiny);
    auto tokens = std::make_shared<CalibrationTokens>();
    std::uint32_t state = 1;
    for (std::size_t s = 0; s < 6; ++s) {
      auto& sequence = tokens->sequences.emplace_back();
      for (std::size_t t = 0; t < 40 + 3 * s; ++t) sequence.push_back(((state = state * 1664525U + 1013904223U) >> 8) % 50);
    }
    const AllRows want = rows_of(model, *tokens);
    std::set<std::string> weights;
    std::size_t num_places = 0;
    BlockPass pass(model, tokens, {});
    (void)pass.run([&](Block& block) {
      for (const InputStatistics& own : block.statistics({.gram = true, .cross = false, .points = {}})) {
        const std::string place = "layers." + std::to_string(block.layer()) + "." + to_string(own.point);
        SCOPED_TRACE(place);
        ++num_places;
        ASSERT_TRUE(want.places.contains(place));
        const auto& rows = want.places.at(place);
        EXPECT_EQ(own.num_tokens, rows.size());
        if (own.point.expert < 0) {
          EXPECT_EQ(own.num_tokens, tokens->num_tokens());
        }
        expect_sums(rows, own.sum, own.sum_abs, own.sum_squares, own.max_abs, own.min, own.max, own.gram);
        for (const std::string& weight : own.weights) {
          EXPECT_TRUE(weights.insert(weight).second) << weight << " is said to read in two places";
          EXPECT_EQ(block.matrix(weight).columns, own.width) << weight;
        }
      }
    });
    EXPECT_EQ(num_places, want.places.size());
    EXPECT_EQ(weights, linear_names(*tiny.checkpoint));
  }
}

TEST(CalibrateArchitectures, a_row_of_a_matrix_is_one_output_however_it_is_stored) {
  class Output final : public BlockTap {
   public:
    void block_output(int, const model::Rows& rows) override {
      for (std::size_t r = 0; r < rows.num_rows; ++r) values.insert(values.end(), rows.row(r), rows.row(r) + rows.num_columns);
    }
    std::vector<float> values;
  };
  const std::map<std::string, std::string> down = {{"gpt2", "h.0.mlp.c_proj.weight"},
                                                   {"phi3", "model.layers.0.mlp.down_proj.weight"},
                                                   {"gpt_neox", "gpt_neox.layers.0.mlp.dense_4h_to_h.weight"},
                                                   {"mixtral", "model.layers.0.block_sparse_moe.experts.2.w2.weight"}};
  for (const auto& [name, ending] : down) {
    SCOPED_TRACE(name);
    const Tiny tiny = tiny_of(name);
    std::string weight;
    for (const TensorInfo& tensor : tiny.checkpoint->tensors())
      if (tensor.name.ends_with(ending)) weight = tensor.name;
    RunningModel model = running(tiny);
    auto tokens = std::make_shared<CalibrationTokens>();
    tokens->sequences.resize(1);
    for (std::uint32_t i = 0; i < 40; ++i) tokens->sequences[0].push_back((i * 7 + i * i) % 50);
    BlockPass pass(model, tokens, {});
    (void)pass.run([&](Block& block) {
      if (block.layer() != 0) return;
      Output before, after, again;
      block.run(before);
      LinearMatrix matrix = block.matrix(weight);
      ASSERT_EQ(matrix.rows, 24U);
      const LinearMatrix whole = matrix;
      std::fill_n(matrix.values.begin() + static_cast<std::ptrdiff_t>(5 * matrix.columns), matrix.columns, 0.0F);
      block.set_matrix(weight, matrix);
      block.run(after);
      std::size_t changed = 0;
      for (std::size_t i = 0; i < before.values.size(); ++i) {
        if (i % 24 == 5)
          changed += before.values[i] != after.values[i] ? 1 : 0;
        else
          ASSERT_EQ(before.values[i], after.values[i]) << i;
      }
      EXPECT_GT(changed, 5U);
      block.set_matrix(weight, whole);
      block.run(again);
      EXPECT_EQ(before.values, again.values);
    });
  }
}

TEST(CalibrateArchitectures, artefacts_of_the_command_hold_the_sums_of_the_whole_network_and_counts_of_each_expert) {
  for (const char* name : kArchitectures) {
    SCOPED_TRACE(name);
    const Tiny tiny = tiny_of(name);
    const TemporaryFolder folder;
    write_model(tiny, folder / "model");
    write_file(folder / "text.txt", letters(400));
    CalibrateOptions options;
    options.text.files = {folder / "text.txt"};
    options.text.num_sequences = 7;
    options.text.length = 48;
    options.gram = true;
    const CalibrateReport report = calibrate((folder / "model").string(), folder / "s.safetensors", options);
    const auto file = open_checkpoint((folder / "s.safetensors").string());

    RunningModel model((folder / "model").string(), {});
    const CalibrationData data = read_calibration_text(model, options.text, 0);
    ASSERT_EQ(data.tokens->num_tokens(), 7U * 48U);
    const AllRows want = rows_of(model, *data.tokens);
    EXPECT_EQ(file->tensors().size(), want.places.size() * 8);
    for (const auto& [place, rows] : want.places) {
      SCOPED_TRACE(place);
      EXPECT_EQ(values_of<std::int64_t>(*file, place + ".count"), std::vector<std::int64_t>{static_cast<std::int64_t>(rows.size())});
      expect_sums(rows, values_of<double>(*file, place + ".sum"), values_of<double>(*file, place + ".sum_abs"),
                  values_of<double>(*file, place + ".sum_squares"), values_of<float>(*file, place + ".max_abs"),
                  values_of<float>(*file, place + ".min"), values_of<float>(*file, place + ".max"), values_of<double>(*file, place + ".gram"));
    }
    std::set<std::string> names;
    for (const CalibratedLayer& layer : report.layers) EXPECT_TRUE(names.insert(layer.name).second) << layer.name;
    EXPECT_EQ(names, linear_names(*tiny.checkpoint));
    EXPECT_TRUE(report.warnings.empty()) << report.warnings.front();

    std::size_t routers = 0;
    for (const TensorInfo& tensor : tiny.checkpoint->tensors()) {
      if (tensor.shape != Shape{4, 24} || (!tensor.name.ends_with(".gate.weight"))) continue;
      const std::string layer = "layers." + std::to_string(routers++);
      const std::vector<std::size_t> counts = expert_counts(want.places.at(layer + ".router"), values_of<float>(*tiny.checkpoint, tensor.name), 4, 2);
      std::size_t all = 0;
      for (std::size_t e = 0; e < 4; ++e) {
        all += counts[e];
        for (const char* role : {".up.", ".down."})
          EXPECT_EQ(values_of<std::int64_t>(*file, layer + role + std::to_string(e) + ".count")[0], static_cast<std::int64_t>(counts[e]));
      }
      EXPECT_EQ(all, 2 * 7U * 48U);
    }
    EXPECT_EQ(routers, std::string(name).ends_with("moe") || std::string(name) == "mixtral" ? 2U : 0U);
  }
}

TEST(CalibrateArchitectures, an_expert_that_no_token_reaches_is_named_and_keeps_its_place) {
  // Of two scores and their mean, the mean is never the largest.
  Tiny tiny = tiny_of("mixtral", {{"num_experts_per_tok", Json(1)}});
  std::vector<testing::MemoryCheckpoint::Tensor> tensors;
  for (const TensorInfo& tensor : tiny.checkpoint->tensors()) {
    std::vector<float> values = values_of<float>(*tiny.checkpoint, tensor.name);
    if (tensor.name == "model.layers.1.block_sparse_moe.gate.weight")
      for (std::size_t i = 0; i < 24; ++i) values[24 + i] = (values[i] + values[48 + i]) / 2;
    tensors.push_back({tensor.name, tensor.dtype, tensor.shape, testing::stored_as(DType::f32, values)});
  }
  tiny.checkpoint = std::make_shared<testing::MemoryCheckpoint>(std::move(tensors));
  const TemporaryFolder folder;
  write_model(tiny, folder / "model");
  write_file(folder / "text.txt", letters(600));
  CalibrateOptions options;
  options.text.files = {folder / "text.txt"};
  options.text.num_sequences = 12;
  options.text.length = 48;
  const CalibrateReport report = calibrate((folder / "model").string(), folder / "s.safetensors", options);
  ASSERT_EQ(report.warnings.size(), 1U);
  std::size_t without = 0;
  for (const CalibratedLayer& layer : report.layers) {
    const bool is_it = layer.name.starts_with("model.layers.1.block_sparse_moe.experts.1.");
    EXPECT_EQ(layer.num_tokens == 0, is_it) << layer.name;
    EXPECT_EQ(report.warnings[0].find(layer.name) != std::string::npos, is_it) << report.warnings[0];
    without += is_it ? 1 : 0;
  }
  EXPECT_EQ(without, 3U);
  const auto file = open_checkpoint((folder / "s.safetensors").string());
  EXPECT_EQ(values_of<std::int64_t>(*file, "layers.1.up.1.count"), std::vector<std::int64_t>{0});
  EXPECT_EQ(values_of<double>(*file, "layers.1.up.1.sum_squares"), std::vector<double>(24, 0.0));
  EXPECT_EQ(values_of<float>(*file, "layers.1.down.1.max"), std::vector<float>(20, 0.0F));

  (void)calibrate((folder / "model").string(), folder / "s.gguf", options);
  const auto importance = open_checkpoint((folder / "s.gguf").string());
  const std::vector<float> counts = values_of<float>(*importance, "blk.1.ffn_up_exps.weight.counts");
  const std::vector<float> squares = values_of<float>(*importance, "blk.1.ffn_up_exps.weight.in_sum2");
  ASSERT_EQ(counts.size(), 4U);
  ASSERT_EQ(squares.size(), 4U * 24U);
  for (std::size_t e = 0; e < 4; ++e) {
    const std::string place = "layers.1.up." + std::to_string(e);
    EXPECT_EQ(counts[e], static_cast<float>(values_of<std::int64_t>(*file, place + ".count")[0]));
    const std::vector<double> own = values_of<double>(*file, place + ".sum_squares");
    for (std::size_t i = 0; i < 24; ++i) EXPECT_EQ(squares[e * 24 + i], static_cast<float>(own[i])) << e << ' ' << i;
  }
}

}  // namespace
}  // namespace weft::engine
