#include "engine/block_pass.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "engine/running_model.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "weft/error.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using model::Role;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";
constexpr std::size_t kHidden = 256;

std::shared_ptr<const CalibrationTokens> some_tokens(std::size_t num_sequences, std::size_t length) {
  auto tokens = std::make_shared<CalibrationTokens>();
  std::uint32_t state = 1;
  for (std::size_t s = 0; s < num_sequences; ++s) {
    auto& sequence = tokens->sequences.emplace_back();
    for (std::size_t t = 0; t < length + s; ++t) {
      state = state * 1664525U + 1013904223U;
      sequence.push_back((state >> 8) % 1000);
    }
  }
  return tokens;
}

/// Rows of every linear layer of a block, and what it gives.
class Everything final : public BlockTap {
 public:
  void linear_input(int, Role role, int expert, std::size_t, const model::Rows& rows) override {
    auto& all = inputs[input_point(role, expert)];
    for (std::size_t r = 0; r < rows.num_rows; ++r) all.emplace_back(rows.row(r), rows.row(r) + rows.num_columns);
  }
  void block_output(int, const model::Rows& rows) override {
    for (std::size_t r = 0; r < rows.num_rows; ++r) outputs.insert(outputs.end(), rows.row(r), rows.row(r) + rows.num_columns);
  }
  std::map<InputPoint, std::vector<std::vector<float>>> inputs;
  std::vector<float> outputs;
};

struct Gathered {
  std::vector<std::vector<InputStatistics>> layers;
  std::vector<float> last_output;
};

Gathered gather(const std::shared_ptr<const CalibrationTokens>& tokens, BlockPassOptions options, bool last) {
  RunningModel model(kModel, options);
  BlockPass pass(model, tokens, options);
  Gathered gathered;
  (void)pass.run([&](Block& block) {
    if (!options.folder.empty()) {
      EXPECT_TRUE(fs::exists(options.folder / "changed")) << "the memory was enough for all";
    }
    if (block.layer() + 1 == block.num_layers()) {
      Everything everything;
      block.run(everything);
      gathered.last_output = everything.outputs;
    }
    gathered.layers.push_back(block.statistics({.gram = true, .cross = false, .points = {}, .last = last}));
  });
  return gathered;
}

TEST(BlockPass, statistics_are_the_sums_over_what_linear_layers_read) {
  const auto tokens = some_tokens(5, 70);
  RunningModel model(kModel, {});
  BlockPass pass(model, tokens, {});
  (void)pass.run([&](Block& block) {
    Everything everything;
    block.run(everything);
    const std::vector<InputStatistics> statistics = block.statistics({.gram = true, .cross = false, .points = {}});
    ASSERT_EQ(statistics.size(), 4U);
    for (const InputStatistics& own : statistics) {
      const auto& rows = everything.inputs.at(own.point);
      ASSERT_EQ(own.num_tokens, tokens->num_tokens());
      ASSERT_EQ(own.num_skipped, 0U);
      ASSERT_EQ(own.width, rows.front().size());
      EXPECT_EQ(own.weights.size(), own.point.role == Role::q ? 3U : own.point.role == Role::up ? 2U : 1U);
      for (std::size_t i = 0; i < own.width; i += 37) {
        double sum = 0, sum_abs = 0;
        float most = 0;
        for (const auto& row : rows) {
          sum += static_cast<double>(row[i]);
          sum_abs += std::fabs(static_cast<double>(row[i]));
          most = std::max(most, std::fabs(row[i]));
        }
        // 256 additions in float32, then float64.
        EXPECT_NEAR(own.sum[i], sum, 256 * 6e-8 * sum_abs);
        EXPECT_NEAR(own.sum_abs[i], sum_abs, 256 * 6e-8 * sum_abs);
        EXPECT_EQ(own.max_abs[i], most);
        for (std::size_t j = 0; j < own.width; j += 53) {
          double product = 0, size = 0;
          for (const auto& row : rows) {
            const double term = static_cast<double>(row[i]) * static_cast<double>(row[j]);
            product += term;
            size += std::fabs(term);
          }
          EXPECT_NEAR(own.gram[i * own.width + j], product, 256 * 6e-8 * size) << i << ' ' << j;
          EXPECT_EQ(own.gram[i * own.width + j], own.gram[j * own.width + i]);
          if (i == j) {
            EXPECT_NEAR(own.sum_squares[i], product, 256 * 6e-8 * size);
          }
        }
      }
    }
  });
}

TEST(BlockPass, unchanged_blocks_give_what_the_whole_network_gives) {
  const auto tokens = some_tokens(3, 40);
  RunningModel model(kModel, {});
  std::vector<model::TokenChunk> chunks;
  for (const auto& sequence : tokens->sequences) chunks.push_back({nullptr, sequence, {}});
  const std::vector<float> want = model.network().run(chunks);
  EXPECT_EQ(gather(tokens, {}, false).last_output, want);
}

TEST(BlockPass, results_do_not_depend_on_threads_memory_or_whether_the_last_look_runs_on) {
  const auto tokens = some_tokens(9, 240);
  BlockPassOptions options;
  options.threads = 1;
  const Gathered one = gather(tokens, options, false);
  options.threads = 3;
  const Gathered three = gather(tokens, options, true);
  const testing::TemporaryFolder folder;
  options.folder = folder.path() / "blocks";
  options.memory_bytes = 22'000'000;
  const Gathered in_file = gather(tokens, options, true);
  for (const Gathered* other : {&three, &in_file}) {
    EXPECT_EQ(other->last_output, one.last_output);
    for (std::size_t l = 0; l < one.layers.size(); ++l)
      for (std::size_t p = 0; p < one.layers[l].size(); ++p) {
        EXPECT_EQ(other->layers[l][p].gram, one.layers[l][p].gram);
        EXPECT_EQ(other->layers[l][p].sum, one.layers[l][p].sum);
      }
  }
}

TEST(BlockPass, looks_at_one_point_after_another_see_what_changes_before_them_made_whether_the_block_goes_on_or_runs_anew) {
  const auto tokens = some_tokens(7, 200);
  const std::vector<Role> way = {Role::q, Role::o, Role::up, Role::down};
  const auto look = [&](bool goes_on, bool two_streams) {
    BlockPassOptions options;
    options.two_streams = two_streams;
    RunningModel model(kModel, options);
    BlockPass pass(model, tokens, options);
    Gathered gathered;
    (void)pass.run([&](Block& block) {
      for (const Role role : way) {
        if (!goes_on) {
          // A change of the first norm that is taken back: nothing that was kept is of use any more.
          for (const model::BlockTensor& tensor : block.tensors())
            if (tensor.slot.role == Role::norm && tensor.slot.site == model::Site::attention_in) {
              const std::vector<float> was = block.values(tensor.tensor->name);
              block.set_values(tensor.tensor->name, was);
            }
        }
        gathered.layers.push_back(block.statistics({.gram = true, .cross = two_streams, .points = {{role, -1}}}));
        for (const std::string& name : gathered.layers.back().front().weights) {
          LinearMatrix matrix = block.matrix(name);
          for (float& value : matrix.values) value = std::round(value * 16) / 16;
          block.set_matrix(name, matrix);
        }
      }
      if (block.layer() + 1 == block.num_layers()) {
        Everything everything;
        block.run(everything);
        gathered.last_output = everything.outputs;
      }
    });
    return gathered;
  };
  for (const bool two_streams : {false, true}) {
    const Gathered on = look(true, two_streams), anew = look(false, two_streams);
    EXPECT_EQ(on.last_output, anew.last_output);
    ASSERT_EQ(on.layers.size(), anew.layers.size());
    for (std::size_t l = 0; l < on.layers.size(); ++l) {
      ASSERT_EQ(on.layers[l].size(), 1U);
      EXPECT_EQ(on.layers[l][0].num_tokens, tokens->num_tokens());
      EXPECT_EQ(on.layers[l][0].gram, anew.layers[l][0].gram) << l;
      EXPECT_EQ(on.layers[l][0].cross, anew.layers[l][0].cross) << l;
    }
  }
}

TEST(BlockPass, a_changed_block_flows_on_and_the_other_stream_does_not_see_it) {
  const auto tokens = some_tokens(4, 60);
  RunningModel model(kModel, {});
  BlockPassOptions options;
  options.two_streams = true;
  BlockPass pass(model, tokens, options);
  (void)pass.run([&](Block& block) {
    Everything changed, original;
    block.run(changed, Stream::changed);
    block.run(original, Stream::original);
    const auto q = InputPoint{Role::q, -1};
    if (block.layer() == 0) {
      EXPECT_EQ(changed.inputs[q], original.inputs[q]);
      for (const InputStatistics& own : block.statistics({.gram = false, .cross = true, .points = {}}))
        for (const double value : own.cross) ASSERT_EQ(value, 0.0);
      const std::string down = "model.layers.0.mlp.down_proj.weight";
      LinearMatrix matrix = block.matrix(down);
      for (float& value : matrix.values) value *= 0.5F;
      block.set_matrix(down, matrix);
      EXPECT_EQ(block.matrix(down).values, matrix.values);
      EXPECT_EQ(block.matrix(down, Stream::original).values[7] * 0.5F, matrix.values[7]);
      return;
    }
    EXPECT_NE(changed.inputs[q], original.inputs[q]);
    const std::vector<InputStatistics> statistics = block.statistics({.gram = false, .cross = true, .points = {{q}}, .last = true});
    ASSERT_EQ(statistics.size(), 1U);
    for (const auto& [i, j] : {std::pair<std::size_t, std::size_t>{0, 5}, {17, 3}, {255, 128}}) {
      double want = 0, size = 0;
      for (std::size_t r = 0; r < changed.inputs[q].size(); ++r) {
        const float difference = original.inputs[q][r][i] - changed.inputs[q][r][i];
        const double term = static_cast<double>(difference) * static_cast<double>(changed.inputs[q][r][j]);
        want += term;
        size += std::fabs(term);
      }
      EXPECT_NEAR(statistics.front().cross[i * kHidden + j], want, 256 * 6e-8 * size);
    }
  });
}

TEST(BlockPass, goes_on_behind_the_last_finished_block) {
  const auto tokens = some_tokens(4, 60);
  const testing::TemporaryFolder folder;
  BlockPassOptions options;
  options.folder = folder.path() / "blocks";
  options.journal_seconds = 0;
  const std::string down = "model.layers.0.mlp.down_proj.weight";
  std::vector<double> want;
  const auto visit = [&](int stop_at, std::vector<int>& seen) {
    RunningModel model(kModel, {});
    BlockPass pass(model, tokens, options);
    return pass.run([&, stop_at](Block& block) {
      if (block.layer() == stop_at) throw Error(ErrorCode::interrupted, "stopped");
      seen.push_back(block.layer());
      if (block.layer() == 0) {
        LinearMatrix matrix = block.matrix(down);
        for (float& value : matrix.values) value *= 0.25F;
        block.set_matrix(down, matrix);
        block.emit(down, DType::bf16, {static_cast<std::int64_t>(matrix.rows), static_cast<std::int64_t>(matrix.columns)}, matrix.values);
        block.note("loss", "0.5");
      } else {
        want = block.statistics({.gram = true, .cross = false, .points = {}}).front().gram;
      }
    });
  };
  std::vector<int> seen;
  EXPECT_THROW((void)visit(1, seen), Error);
  EXPECT_EQ(seen, std::vector<int>({0}));
  seen.clear();
  const BlockPassResult resumed = visit(-1, seen);
  EXPECT_EQ(seen, std::vector<int>({1}));
  EXPECT_EQ(resumed.num_resumed, 1U);
  ASSERT_EQ(resumed.notes.size(), 2U);
  EXPECT_EQ(resumed.notes[0].at("loss"), "0.5");
  ASSERT_NE(resumed.tensors, nullptr);
  EXPECT_EQ(resumed.tensors->tensor(down).dtype, DType::bf16);
  const std::vector<double> of_resumed = want;

  options.folder = folder.path() / "another";
  seen.clear();
  (void)visit(-1, seen);
  EXPECT_EQ(seen, std::vector<int>({0, 1}));
  EXPECT_EQ(of_resumed, want);

  options.ingredients = {{"--bits", "4"}};
  try {
    (void)visit(-1, seen);
    FAIL() << "another pass's folder was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_NE(std::string(error.what()).find("--bits"), std::string::npos) << error.what();
  }
}

TEST(BlockPass, bad_tokens_and_too_little_memory_are_refused_before_any_work) {
  RunningModel model(kModel, {});
  const auto refused = [&](std::vector<std::vector<std::uint32_t>> sequences, BlockPassOptions options, ErrorCode code, const char* phrase) {
    auto tokens = std::make_shared<CalibrationTokens>();
    tokens->sequences = std::move(sequences);
    try {
      const BlockPass pass(model, tokens, options);
      ADD_FAILURE() << "not refused: " << phrase;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      EXPECT_NE(std::string(error.what()).find(phrase), std::string::npos) << error.what();
    }
  };
  refused({}, {}, ErrorCode::invalid_argument, "no calibration sequences");
  refused({{1, 2}, {}}, {}, ErrorCode::invalid_argument, "sequence 1 has no tokens");
  refused({{1, 2}, {3, 99999}}, {}, ErrorCode::invalid_argument, "token id 99999 of calibration sequence 1");
  BlockPassOptions small;
  small.memory_bytes = 1'000'000;
  refused({{1, 2}}, small, ErrorCode::out_of_memory, "the budget is");
}

TEST(BlockPass, activations_that_overflow_are_named_by_layer_and_token) {
  const auto tokens = some_tokens(2, 20);
  RunningModel model(kModel, {});
  BlockPass pass(model, tokens, {});
  try {
    (void)pass.run([&](Block& block) {
      std::vector<float> values = block.values("model.layers.0.post_attention_layernorm.weight");
      for (float& value : values) value = 3e38F;
      block.set_values("model.layers.0.post_attention_layernorm.weight", values);
    });
    FAIL() << "infinite activations went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::corrupt);
    EXPECT_NE(std::string(error.what()).find("layer 0, first for token 0 of sequence 0"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace weft::engine
