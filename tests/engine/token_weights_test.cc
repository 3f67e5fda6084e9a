#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/attention_received.h"
#include "engine/block_pass.h"
#include "engine/running_model.h"
#include "model/tiny_networks.h"

// What tokens receive of attention, and statistics in which they count unequally, against sums over single sequences in double.
namespace weft::engine {
namespace {

using model::Role;

const std::string kModel = std::string(WEFT_SOURCE_DIR) + "/models/tiny-base";

std::shared_ptr<const CalibrationTokens> tokens_of(const std::vector<std::size_t>& lengths, std::uint32_t vocab) {
  auto tokens = std::make_shared<CalibrationTokens>();
  std::uint32_t state = 7;
  for (const std::size_t length : lengths) {
    auto& sequence = tokens->sequences.emplace_back();
    for (std::size_t t = 0; t < length; ++t) {
      state = state * 1664525U + 1013904223U;
      sequence.push_back((state >> 8) % vocab);
    }
  }
  return tokens;
}

/// Sums the shares of one sequence in every layer.
class Shares final : public model::NetworkTap, public model::MixerTap {
 public:
  explicit Shares(std::size_t tokens, std::size_t layers) : received(layers, std::vector<double>(tokens)) {}
  model::MixerTap* mixer(int layer) override {
    layer_ = static_cast<std::size_t>(layer);
    return this;
  }
  void attention(std::size_t run, std::size_t, std::size_t, std::int64_t first_key, std::span<const float> shares) override {
    EXPECT_EQ(run, 0U);
    const std::lock_guard guard(lock_);
    for (std::size_t i = 0; i < shares.size(); ++i) received[layer_][static_cast<std::size_t>(first_key) + i] += static_cast<double>(shares[i]);
  }
  std::vector<std::vector<double>> received;

 private:
  std::size_t layer_ = 0;
  std::mutex lock_;
};

TEST(AttentionReceived, is_the_sum_of_all_shares_of_each_token_in_its_own_sequence) {
  // Some sequences begin in the middle of a slice of 512 rows, one goes across, one spans several.
  const auto tokens = tokens_of({300, 500, 1, 40, 1300, 77}, 1000);
  RunningModel model(kModel, {});
  std::vector<std::vector<double>> expected(static_cast<std::size_t>(model.config().layers.size()));
  for (const auto& sequence : tokens->sequences) {
    Shares shares(sequence.size(), expected.size());
    const model::TokenChunk chunk{nullptr, sequence, {}};
    (void)model.network().run(std::span(&chunk, 1), &shares);
    for (std::size_t l = 0; l < expected.size(); ++l) expected[l].insert(expected[l].end(), shares.received[l].begin(), shares.received[l].end());
  }
  std::vector<std::vector<double>> first;
  for (const int threads : {1, 2}) {
    BlockPassOptions options;
    options.threads = threads;
    RunningModel own(kModel, options);
    BlockPass pass(own, tokens, options);
    (void)pass.run([&](Block& block) {
      AttentionReceived tap(*tokens);
      block.run(tap);
      const std::vector<double> received = tap.received();
      const std::vector<double>& want = expected[static_cast<std::size_t>(block.layer())];
      ASSERT_EQ(received.size(), want.size());
      double total = 0;
      for (std::size_t t = 0; t < want.size(); ++t) {
        EXPECT_NEAR(received[t], want[t], 2e-4 * (1 + want[t])) << block.layer() << ' ' << t;
        total += received[t];
      }
      // Every query gives 1 in every head.
      EXPECT_NEAR(total, static_cast<double>(tokens->num_tokens()) * static_cast<double>(own.config().heads), 1e-4 * total);
      if (threads == 1)
        first.push_back(received);
      else
        EXPECT_EQ(received, first[static_cast<std::size_t>(block.layer())]) << "threads change what is received";
    });
  }
}

std::shared_ptr<const std::vector<double>> weights_for(const CalibrationTokens& tokens) {
  auto weights = std::make_shared<std::vector<double>>();
  for (std::size_t t = 0; t < tokens.num_tokens(); ++t) weights->push_back(0.01 + static_cast<double>((t * 37) % 11));
  return weights;
}

/// Rows of every linear layer, with the tokens that they belong to.
class Rows final : public BlockTap {
 public:
  void batch(std::size_t, std::size_t, std::uint64_t first_token) override { first_token_ = first_token; }
  void linear_input(int, Role role, int expert, std::size_t first_row, const model::Rows& rows) override {
    auto& all = inputs[input_point(role, expert)];
    for (std::size_t r = 0; r < rows.num_rows; ++r)
      all.emplace_back(first_token_ + first_row + (rows.places == nullptr ? r : rows.places[r]),
                       std::vector<float>(rows.row(r), rows.row(r) + rows.num_columns));
  }
  std::map<InputPoint, std::vector<std::pair<std::size_t, std::vector<float>>>> inputs;

 private:
  std::size_t first_token_ = 0;
};

TEST(TokenWeightsOfStatistics, count_each_token_in_products_and_not_in_sums) {
  const auto tokens = tokens_of({700, 900, 800, 33}, 1000);
  const auto weights = weights_for(*tokens);
  RunningModel model(kModel, {});
  BlockPass pass(model, tokens, {});
  (void)pass.run([&](Block& block) {
    if (block.layer() > 0) return;
    Rows rows;
    block.run(rows);
    StatisticsRequest request;
    request.gram = true;
    const std::vector<InputStatistics> plain = block.statistics(request);
    request.token_weights = weights;
    const std::vector<InputStatistics> weighted = block.statistics(request);
    ASSERT_EQ(weighted.size(), plain.size());
    for (std::size_t p = 0; p < plain.size(); ++p) {
      EXPECT_EQ(weighted[p].sum, plain[p].sum);
      EXPECT_EQ(weighted[p].max_abs, plain[p].max_abs);
      EXPECT_EQ(weighted[p].num_tokens, plain[p].num_tokens);
      const std::size_t width = plain[p].width;
      for (std::size_t i = 0; i < width; i += 41)
        for (std::size_t j = 0; j < width; j += 59) {
          double expected = 0, size = 0;
          for (const auto& [token, row] : rows.inputs.at(plain[p].point)) {
            const double term = weights->at(token) * static_cast<double>(row[i]) * static_cast<double>(row[j]);
            expected += term;
            size += std::fabs(term);
          }
          EXPECT_NEAR(weighted[p].gram[i * width + j], expected, 256 * 1e-7 * size) << i << ' ' << j;
        }
    }
    request.token_weights = std::make_shared<std::vector<double>>(tokens->num_tokens(), 1.0);
    const std::vector<InputStatistics> alike = block.statistics(request);
    for (std::size_t p = 0; p < plain.size(); ++p) EXPECT_EQ(alike[p].gram, plain[p].gram);
  });
}

TEST(TokenWeightsOfStatistics, follow_tokens_to_their_experts) {
  for (const model::Architecture& architecture : model::architectures()) {
    if (architecture.name != "mixtral") continue;
    Json config = testing::tiny_config(architecture);
    config.set("num_experts_per_tok", Json(1));
    const testing::Tiny tiny = testing::tiny("mixtral", std::move(config));
    ModelFiles files;
    files.checkpoint = tiny.checkpoint;
    files.config = tiny.config;
    RunningModel model(std::move(files), {});
    const auto tokens = tokens_of({600, 300, 9}, 20);
    const auto weights = weights_for(*tokens);
    BlockPass pass(model, tokens, {});
    (void)pass.run([&](Block& block) {
      StatisticsRequest request;
      request.gram = true;
      request.token_weights = weights;
      std::vector<double> experts, all;
      std::size_t num_experts = 0;
      for (const InputStatistics& own : block.statistics(request)) {
        if (own.point.role == Role::router) all = own.gram;
        if (own.point.role != Role::up || own.num_tokens == 0) continue;
        ++num_experts;
        experts.resize(own.gram.size());
        for (std::size_t i = 0; i < experts.size(); ++i) experts[i] += own.gram[i];
      }
      // Each token goes to one expert, which reads what the router reads.
      ASSERT_GT(num_experts, 1U);
      ASSERT_EQ(experts.size(), all.size());
      for (std::size_t i = 0; i < all.size(); ++i) EXPECT_NEAR(experts[i], all[i], 1e-4 * (1 + std::fabs(all[i]))) << i;
    });
  }
}

}  // namespace
}  // namespace weft::engine
