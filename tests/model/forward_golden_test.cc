#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "model/network.h"
#include "support/golden.h"

// What transformers computes on small models of every architecture.
namespace weft::model {
namespace {

using testing::golden_text;
using testing::GoldenModel;
using testing::GoldenTensor;

const std::filesystem::path kGolden = std::filesystem::path(WEFT_SOURCE_DIR) / "../shared/golden/logits";
const std::filesystem::path kZoo = std::filesystem::path(WEFT_SOURCE_DIR) / "../shared/zoo";

std::vector<std::uint32_t> ids_of(const Json& list) {
  std::vector<std::uint32_t> ids;
  for (const Json& id : *list.array()) ids.push_back(static_cast<std::uint32_t>(*id.integer()));
  return ids;
}

/// Empty when max |got - want| <= 2e-4 max |want|.
std::string compare(const float* got, std::size_t count, const GoldenTensor& golden, double bound) {
  const std::vector<double> want = golden.values();
  if (want.size() != count) return "got " + std::to_string(count) + " numbers, not " + std::to_string(want.size());
  double largest = 0, worst = 0;
  std::size_t where = 0;
  for (std::size_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::abs(want[i]));
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(error <= worst)) {
      worst = error;
      where = i;
    }
  }
  if (worst <= bound * largest) return {};
  return "element " + std::to_string(where) + ": got " + std::to_string(got[where]) + ", want " + std::to_string(want[where]) + ", bound " +
         std::to_string(bound * largest);
}

std::vector<float> logits_of(Network& network, std::span<const float> x) {
  const auto hidden = static_cast<std::size_t>(network.config().hidden);
  const std::size_t rows = x.size() / hidden;
  std::vector<float> out(rows * static_cast<std::size_t>(network.config().vocab));
  network.logits({x.data(), rows, hidden, hidden}, out);
  return out;
}

std::vector<std::uint32_t> greedy(Network& network, std::vector<std::uint32_t> ids, std::size_t count) {
  const auto state = network.new_state();
  std::vector<std::uint32_t> out;
  const auto hidden = static_cast<std::size_t>(network.config().hidden);
  while (out.size() < count) {
    const TokenChunk chunk{state.get(), ids, {}};
    const std::vector<float> x = network.run({&chunk, 1});
    const std::vector<float> logits = logits_of(network, std::span(x).last(hidden));
    ids = {static_cast<std::uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
    out.push_back(ids.front());
  }
  return out;
}

class Blocks final : public NetworkTap {
 public:
  std::vector<std::vector<float>> outputs;
  void block_output(int, const Rows& rows) override { outputs.emplace_back(rows.data, rows.data + rows.num_rows * rows.num_columns); }
};

struct Golden {
  Json index;
  static const Golden* get() {
    static const Golden golden = [] {
      Golden g;
      if (std::filesystem::exists(kGolden / "index.json")) g.index = read_json_file(kGolden / "index.json");
      return g;
    }();
    return golden.index.is_object() ? &golden : nullptr;
  }
};

Network open_network(const std::filesystem::path& folder, const NetworkOptions& options = {}) {
  return Network(open_checkpoint(folder.string()), read_json_file(folder / "config.json"), options);
}

TEST(ForwardGolden, every_decoder_gives_the_logits_blocks_and_greedy_tokens_of_transformers) {
  const Golden* golden = Golden::get();
  if (golden == nullptr) GTEST_SKIP() << "no golden data";
  for (const Json& model : *golden->index.find("nano")->array()) {
    SCOPED_TRACE(golden_text(model, "name"));
    const GoldenModel expected = testing::read_safetensors(kGolden / golden_text(model, "expected"));
    Network network = open_network(kGolden / golden_text(model, "folder"), {.threads = 2});
    if (network.config().kind != NetworkKind::decoder) continue;
    const Json::Array& prompts = *model.find("prompts")->array();
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      const std::vector<std::uint32_t> ids = ids_of(*prompts[p].find("ids"));
      const TokenChunk chunk{nullptr, ids, {}};
      Blocks blocks;
      const std::vector<float> x = network.run({&chunk, 1}, &blocks);
      const std::vector<float> logits = logits_of(network, x);
      const std::string prefix = "p" + std::to_string(p) + ".";
      EXPECT_EQ(compare(logits.data(), logits.size(), expected.at(prefix + "logits"), 2e-4), "") << prefix;
      for (std::size_t b = 0; b < blocks.outputs.size(); ++b)
        if (const auto found = expected.find(prefix + "block" + std::to_string(b)); found != expected.end()) {
          EXPECT_EQ(compare(blocks.outputs[b].data(), blocks.outputs[b].size(), found->second, 2e-4), "") << prefix << "block" << b;
        }
      const std::vector<std::uint32_t> tokens = greedy(network, ids, 16);
      const Json* recomputed = prompts[p].find("greedy_recomputed");
      EXPECT_TRUE(tokens == ids_of(*prompts[p].find("greedy")) || (recomputed != nullptr && tokens == ids_of(*recomputed))) << prefix << "greedy";
    }
  }
}

TEST(ForwardGolden, encoders_give_hidden_states_pooler_and_embedding_whether_run_alone_or_together) {
  const Golden* golden = Golden::get();
  if (golden == nullptr) GTEST_SKIP() << "no golden data";
  for (const Json& model : *golden->index.find("nano")->array()) {
    SCOPED_TRACE(golden_text(model, "name"));
    const GoldenModel expected = testing::read_safetensors(kGolden / golden_text(model, "expected"));
    Network network = open_network(kGolden / golden_text(model, "folder"), {.threads = 2});
    if (network.config().kind != NetworkKind::encoder) continue;
    const auto hidden = static_cast<std::size_t>(network.config().hidden);
    std::vector<std::vector<std::uint32_t>> texts;
    std::vector<std::string> names;
    const Json::Array& prompts = *model.find("prompts")->array();
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      const Json::Array& batch = *prompts[p].find("ids")->array();
      for (std::size_t i = 0; i < batch.size(); ++i) {
        texts.push_back(ids_of(batch[i]));
        names.push_back("p" + std::to_string(p) + "." + std::to_string(i) + ".");
      }
    }
    std::vector<TokenChunk> chunks;
    for (const auto& ids : texts) chunks.push_back({nullptr, ids, {}});
    Blocks blocks;
    const std::vector<float> all = network.run(chunks, &blocks);
    std::size_t row = 0;
    for (std::size_t t = 0; t < texts.size(); ++t) {
      const std::span<const float> of_text(all.data() + row * hidden, texts[t].size() * hidden);
      EXPECT_EQ(compare(of_text.data(), of_text.size(), expected.at(names[t] + "hidden"), 2e-4), "") << names[t];
      for (std::size_t b = 0; b < blocks.outputs.size(); ++b)
        if (const auto found = expected.find(names[t] + "block" + std::to_string(b)); found != expected.end()) {
          EXPECT_EQ(compare(blocks.outputs[b].data() + row * hidden, of_text.size(), found->second, 2e-4), "") << names[t] << b;
        }
      const std::vector<float> alone = network.run({&chunks[t], 1});
      // The order of sums may follow the number of rows, so the two are alike, not the same.
      EXPECT_EQ(compare(alone.data(), alone.size(), expected.at(names[t] + "hidden"), 2e-4), "") << names[t] << "alone";
      const std::vector<float> pooled = network.pool(of_text.first(hidden));
      EXPECT_EQ(compare(pooled.data(), pooled.size(), expected.at(names[t] + "pooler"), 2e-4), "") << names[t] << "pooler";
      row += texts[t].size();
    }
  }
}

TEST(ForwardGolden, the_bundled_model_gives_the_logits_and_greedy_tokens_of_transformers_in_every_precision) {
  const std::filesystem::path data = std::filesystem::path(WEFT_SOURCE_DIR) / "tests/data/forward";
  const Json index = read_json_file(data / "tiny-base.json");
  const GoldenModel expected = testing::read_safetensors(data / "tiny-base.safetensors");
  const auto worst_error = [&](Network& network, std::size_t p, const std::vector<std::uint32_t>& ids) {
    const auto hidden = static_cast<std::size_t>(network.config().hidden);
    const TokenChunk chunk{nullptr, ids, {}};
    const std::vector<float> x = network.run({&chunk, 1});
    const std::vector<float> logits = logits_of(network, std::span(x).last(std::min<std::size_t>(ids.size(), 4) * hidden));
    const std::vector<double> want = expected.at("p" + std::to_string(p) + ".last4").values();
    EXPECT_EQ(logits.size(), want.size());
    double largest = 0, worst = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      largest = std::max(largest, std::abs(want[i]));
      worst = std::max(worst, std::abs(static_cast<double>(logits[i]) - want[i]));
    }
    return worst / largest;
  };
  Network exact = open_network(std::filesystem::path(WEFT_SOURCE_DIR) / "models/tiny-base", {.threads = 2});
  Network fast = open_network(std::filesystem::path(WEFT_SOURCE_DIR) / "models/tiny-base", {.precision = Precision::fast, .threads = 2});
  Network rounded = open_network(std::filesystem::path(WEFT_SOURCE_DIR) / "models/tiny-base", {.precision = Precision::int8, .threads = 2});
  const Json::Array& prompts = *index.find("prompts")->array();
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    SCOPED_TRACE(p);
    const std::vector<std::uint32_t> ids = ids_of(*prompts[p].find("ids"));
    EXPECT_LE(worst_error(exact, p, ids), 2e-4);
    EXPECT_EQ(greedy(exact, ids, 16), ids_of(*prompts[p].find("greedy")));
    // Nine roundings in a row (two blocks of four matrices, and the head), each of 2^-9 of a number, or of half a step of 1/127 of the largest beside
    // it.
    EXPECT_LE(worst_error(fast, p, ids), 9 * 0x1p-9);
    EXPECT_LE(worst_error(rounded, p, ids), 9 * 0.5 / 127);
  }
}

TEST(ForwardGolden, the_zoo_s_models_give_their_last_logits_and_greedy_tokens) {
  const Golden* golden = Golden::get();
  if (golden == nullptr || !std::filesystem::exists(kZoo)) GTEST_SKIP() << "no golden data";
  for (const Json& run : *golden->index.find("zoo")->array()) {
    if (run.find("adapter")->string() != nullptr) continue;
    SCOPED_TRACE(golden_text(run, "name"));
    const GoldenModel expected = testing::read_safetensors(kGolden / golden_text(run, "expected"));
    Network network = open_network(kZoo / golden_text(run, "model"), {.threads = 2});
    const auto hidden = static_cast<std::size_t>(network.config().hidden);
    const Json::Array& prompts = *run.find("prompts")->array();
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      const std::vector<std::uint32_t> ids = ids_of(*prompts[p].find("ids"));
      const TokenChunk chunk{nullptr, ids, {}};
      const std::vector<float> x = network.run({&chunk, 1});
      const std::size_t kept = std::min<std::size_t>(ids.size(), 4);
      const std::vector<float> logits = logits_of(network, std::span(x).last(kept * hidden));
      EXPECT_EQ(compare(logits.data(), logits.size(), expected.at("p" + std::to_string(p) + ".last4"), 2e-4), "") << p;
      EXPECT_EQ(greedy(network, ids, 16), ids_of(*prompts[p].find("greedy"))) << p;
    }
  }
}

}  // namespace
}  // namespace weft::model
