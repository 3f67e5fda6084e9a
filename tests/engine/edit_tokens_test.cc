#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "checkpoint/json.h"
#include "model/tokenizer.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"
#include "weft/tokens.h"

namespace weft {
namespace {

using testing::read_all;
using testing::TemporaryFolder;
using testing::Tensors;

const std::string kData = WEFT_SOURCE_DIR "/tests/data/";
const std::string kModels = WEFT_SOURCE_DIR "/models/";

std::vector<float> f32(const Tensors& tensors, const std::string& name) { return testing::values_of(DType::f32, tensors.at(name)); }

TokensOptions transplant(const std::string& method) {
  TokensOptions options;
  options.tokenizer = kData + "merge/models/wide";
  options.method = method;
  return options;
}

TEST(EditTokens, rows_of_unknown_tokens_are_those_of_mergekit) {
  const Tensors expected = read_all(kData + "tokens/expected.safetensors");
  std::vector<std::int64_t> ids(expected.at("ids").size() / 8);
  std::memcpy(ids.data(), expected.at("ids").data(), expected.at("ids").size());
  const auto with = [](TokensOptions options, std::uint64_t k, const char* weights, const char* subwords, bool cosine) {
    options.k = k;
    options.weights = weights;
    options.subwords = subwords;
    options.cosine = cosine;
    return options;
  };
  const std::vector<std::pair<std::string, TokensOptions>> cases = {
      {"omp", with(transplant("omp"), 8, "distance_proportional", "mean", false)},
      {"ci", with(transplant("common_interpolation"), 5, "distance_proportional", "mean", false)},
      {"cic", with(transplant("common_interpolation"), 5, "distance_proportional", "mean", true)},
      {"cil", with(transplant("common_interpolation"), 5, "least_squares", "mean", false)},
      {"cib", with(transplant("common_interpolation"), 5, "barycentric", "mean", false)},
      {"sub", with(transplant("subword"), 5, "distance_proportional", "mean", false)},
      {"subw", with(transplant("subword"), 5, "distance_proportional", "weighted_mean", false)},
      {"subf", with(transplant("subword"), 5, "distance_proportional", "first_last", false)},
      {"mean", transplant("mean")},
  };
  for (const auto& [name, options] : cases) {
    TemporaryFolder folder;
    static_cast<void>(edit_tokens(kData + "merge/models/a", folder / "out", options));
    const Tensors out = read_all(folder / "out");
    for (const auto& [matrix, tensor] : {std::pair{".embed", "model.embed_tokens.weight"}, {".head", "lm_head.weight"}}) {
      if (!expected.contains(name + matrix)) continue;
      const std::vector<float> want = f32(expected, name + matrix), got = f32(out, tensor);
      ASSERT_EQ(want.size(), ids.size() * 32);
      for (std::size_t i = 0; i < want.size(); ++i) {
        const float value = got[static_cast<std::size_t>(ids[i / 32]) * 32 + i % 32];
        // Rows are of the size 0.3; theirs are worked out in float32 throughout.
        ASSERT_NEAR(value, want[i], 2e-6) << name << matrix << " token " << ids[i / 32];
      }
    }
  }
}

TEST(EditTokens, shared_tokens_keep_their_rows_and_the_files_are_the_other_models) {
  TemporaryFolder folder;
  const TokensReport report = edit_tokens(kData + "merge/models/a", folder / "out", transplant("zero"));
  EXPECT_EQ(report.notes.size(), 2u);
  const model::Tokenizer old_one = model::Tokenizer::open(kData + "merge/models/a"), new_one = model::Tokenizer::open(folder / "out");
  const std::vector<float> before = f32(read_all(kData + "merge/models/a"), "model.embed_tokens.weight"),
                           after = f32(read_all(folder / "out"), "model.embed_tokens.weight");
  ASSERT_EQ(after.size(), new_one.num_ids() * 32);
  int shared = 0;
  for (std::uint32_t id = 0; id < new_one.num_ids(); ++id) {
    const auto old_id = old_one.find(*new_one.token(id));
    for (std::size_t c = 0; c < 32; ++c) ASSERT_EQ(after[id * 32 + c], old_id ? before[*old_id * 32 + c] : 0.0F) << *new_one.token(id);
    shared += old_id.has_value();
  }
  EXPECT_GT(shared, 60);
  EXPECT_EQ(testing::read_file(folder / "out/tokenizer.json"), testing::read_file(kData + "merge/models/wide/tokenizer.json"));
  EXPECT_EQ(read_json_file(folder / "out/config.json").find("vocab_size")->unsigned_integer(), new_one.num_ids());
}

TEST(EditTokens, rows_by_way_of_the_other_space_are_about_as_large_as_others_and_do_not_depend_on_threads) {
  const std::vector<float> before = f32(read_all(kData + "merge/models/a"), "model.embed_tokens.weight");
  double usual = 0;
  for (const float x : before) usual += static_cast<double>(x) * static_cast<double>(x) / static_cast<double>(before.size());
  const Tensors expected = read_all(kData + "tokens/expected.safetensors");
  std::vector<std::int64_t> ids(expected.at("ids").size() / 8);
  std::memcpy(ids.data(), expected.at("ids").data(), expected.at("ids").size());
  for (const char* method : {"landmark_pca", "stb", "john_hewitt"}) {
    TemporaryFolder folder;
    TokensOptions options = transplant(method);
    options.k = 32;
    for (options.threads = 1; options.threads <= 2; ++options.threads)
      static_cast<void>(edit_tokens(kData + "merge/models/a", folder / std::to_string(options.threads), options));
    const Tensors out = read_all(folder / "1");
    EXPECT_EQ(out, read_all(folder / "2")) << method;
    const std::vector<float> rows = f32(out, "model.embed_tokens.weight");
    double squares = 0;
    for (const std::int64_t id : ids)
      for (std::size_t c = 0; c < 32; ++c)
        squares += std::pow(static_cast<double>(rows[static_cast<std::size_t>(id) * 32 + c]), 2) / static_cast<double>(32 * ids.size());
    EXPECT_GT(squares, usual / 4) << method;
    // Unlike a turn and a draw, coefficients in a basis that is far from orthogonal may grow; these two models know nothing of each other.
    EXPECT_LT(squares, usual * (std::string(method) == "stb" ? 100 : 4)) << method;
  }
}

TEST(EditTokens, threads_change_nothing) {
  TemporaryFolder folder;
  TokensOptions options = transplant("omp");
  options.k = 8;
  for (options.threads = 1; options.threads <= 3; ++options.threads)
    static_cast<void>(edit_tokens(kData + "merge/models/a", folder / std::to_string(options.threads), options));
  EXPECT_EQ(read_all(folder / "1"), read_all(folder / "2"));
  EXPECT_EQ(read_all(folder / "1"), read_all(folder / "3"));
}

TEST(EditTokens, a_larger_vocabulary_is_filled_with_the_mean_and_a_smaller_one_must_hold_all_tokens) {
  TemporaryFolder folder;
  TokensOptions options;
  options.resize = 96;
  static_cast<void>(edit_tokens(kData + "merge/models/a", folder / "out", options));
  const std::vector<float> before = f32(read_all(kData + "merge/models/a"), "lm_head.weight"),
                           after = f32(read_all(folder / "out"), "lm_head.weight");
  ASSERT_EQ(after.size(), 96u * 32);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), after.begin()));
  double mean = 0;
  for (std::size_t row = 0; row < 80; ++row) mean += static_cast<double>(before[row * 32 + 5]) / 80;
  EXPECT_NEAR(after[95 * 32 + 5], mean, 1e-7);
  EXPECT_EQ(read_json_file(folder / "out/config.json").find("vocab_size")->integer(), 96);
  options.resize = 79;
  EXPECT_WEFT_ERROR(edit_tokens(kData + "merge/models/a", folder / "small", options), invalid_argument, "ids up to 79, so 79 rows are too few");
}

TEST(EditTokens, a_trimmed_model_cuts_the_text_as_before_and_can_still_write_any_other) {
  TemporaryFolder folder;
  const std::string text = "The sun is shining.\nDie Sonne scheint heute.\n";
  testing::write_file(folder / "text", text);
  TokensOptions options;
  options.trim_text = folder / "text";
  static_cast<void>(edit_tokens(kModels + "tiny-base", folder / "out", options));
  const model::Tokenizer before = model::Tokenizer::open(kModels + "tiny-base"), after = model::Tokenizer::open(folder / "out");
  EXPECT_LT(after.vocab_size(), before.vocab_size() / 2);
  const std::vector<std::uint32_t> old_ids = before.ids(text, true), new_ids = after.ids(text, true);
  ASSERT_EQ(old_ids.size(), new_ids.size());
  const Tensors old_rows = read_all(kModels + "tiny-base"), new_rows = read_all(folder / "out");
  const std::vector<float> old_embed = testing::values_of(DType::bf16, old_rows.at("model.embed_tokens.weight")),
                           new_embed = testing::values_of(DType::bf16, new_rows.at("model.embed_tokens.weight"));
  for (std::size_t i = 0; i < old_ids.size(); ++i) {
    EXPECT_EQ(*before.token(old_ids[i]), *after.token(new_ids[i]));
    for (std::size_t c = 0; c < 256; ++c) ASSERT_EQ(old_embed[old_ids[i] * 256 + c], new_embed[new_ids[i] * 256 + c]);
  }
  const std::string other = "Etwas v\xC3\xB6llig anderes: 42 \xE2\x82\xAC!";
  EXPECT_EQ(after.decode(after.ids(other, false)), other);
}

TEST(EditTokens, bad_requests_say_what_is_wrong) {
  TemporaryFolder folder;
  const std::string model = kData + "merge/models/a";
  TokensOptions options;
  EXPECT_WEFT_ERROR(edit_tokens(model, folder / "out", options), invalid_argument, "nothing is to be done");
  options.resize = 100;
  options.trim_text = "x";
  EXPECT_WEFT_ERROR(edit_tokens(model, folder / "out", options), invalid_argument, "one way at a time");
  EXPECT_WEFT_ERROR(edit_tokens(model, folder / "out", transplant("opm")), invalid_argument, "unknown method");
  EXPECT_WEFT_ERROR(edit_tokens(model, folder / "out", transplant("mp_rope")), unsupported, "is not built");
  options = transplant("omp");
  options.k = 1000;
  EXPECT_WEFT_ERROR(edit_tokens(model, folder / "out", options), invalid_argument, "1000 points are asked for");
  options = transplant("omp");
  options.memory_bytes = 20'000;
  EXPECT_WEFT_ERROR(edit_tokens(model, folder / "out", options), out_of_memory, "the budget is 20000");
  options = {};
  options.trim_text = folder / "absent";
  EXPECT_WEFT_ERROR(edit_tokens(model, folder / "out", options), not_found, "absent");
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

}  // namespace
}  // namespace weft
