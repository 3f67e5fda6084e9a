#include "engine/merge_by_data.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "engine/block_pass.h"
#include "engine/calibration_text.h"
#include "support/errors.h"
#include "support/memory_checkpoint.h"
#include "support/read_all.h"
#include "support/temporary_folder.h"
#include "weft/checkpoint.h"
#include "weft/merge.h"

namespace weft::engine {
namespace {

namespace fs = std::filesystem;
using testing::read_all;
using testing::TemporaryFolder;
using testing::Tensors;
using testing::write_file;

const std::string kModels = WEFT_SOURCE_DIR "/models/";

class MergeByData : public ::testing::Test {
 protected:
  MergeByData() {
    // Varied, so that the texts reach many directions.
    std::string a, b;
    std::uint32_t state = 1;
    const auto next = [&state](std::uint32_t n) {
      state = state * 1664525U + 1013904223U;
      return (state >> 8) % n;
    };
    const char* german[] = {"der", "Mann", "ging", "und", "es", "war", "gut", "dass", "er", "Haus", "sprach", "nicht", "Zeit", "in", "das", "mit"};
    const char* python[] = {"def ",    "return ", "self.", "for ", "in ", "import ", "print(", ")\n",
                            ":\n    ", " = ",     "if ",   "None", "[",   "]",       "'",      "x"};
    for (int i = 0; i < 2500; ++i) {
      a += next(3) == 0 ? std::string(1 + next(6), static_cast<char>('a' + next(26))) : german[next(16)];
      a += next(9) == 0 ? ". " : " ";
      b += python[next(16)];
      if (next(3) == 0) b += static_cast<char>(33 + next(90));
    }
    write_file(folder_ / "a.txt", a);
    write_file(folder_ / "b.txt", b);
  }

  std::string config(const std::string& method, const std::string& first, const std::string& second, const std::string& more = "") const {
    return "merge_method: " + method + "\nmodels:\n- {model: " + kModels + first + ", text: " + (folder_ / "a.txt").string() +
           "}\n- {model: " + kModels + second + ", text: " + (folder_ / "b.txt").string() + "}\nparameters: {samples: 24, length: 64" + more + "}\n";
  }
  Tensors merge(const std::string& text, const std::string& name, int threads = 0) const {
    MergeOptions options;
    options.threads = threads;
    (void)merge_models(text, "regmean.yml", folder_ / name, options);
    return read_all(folder_ / name);
  }

  TemporaryFolder folder_;
};

TEST_F(MergeByData, a_model_with_itself_returns_itself) {
  const Tensors want = read_all(kModels + "tiny-german");
  for (const char* method : {"regmean", "regmean_plusplus"})
    EXPECT_TRUE(merge(config(method, "tiny-german", "tiny-german"), method) == want) << method;
}

TEST_F(MergeByData, threads_change_nothing) {
  const std::string text = config("regmean_plusplus", "tiny-german", "tiny-python");
  EXPECT_TRUE(merge(text, "one", 1) == merge(text, "three", 3));
}

TEST_F(MergeByData, each_layer_reproduces_answers_better_than_the_mean) {
  const Tensors merged = merge(config("regmean", "tiny-german", "tiny-python"), "out");
  const std::vector<std::string> models = {kModels + "tiny-german", kModels + "tiny-python"};
  // Second moments of each model's own activations, gathered apart from the merge.
  std::map<std::string, double> at_merged, at_mean;
  const std::vector<Tensors> own = {read_all(models[0]), read_all(models[1])};
  for (std::size_t k = 0; k < 2; ++k) {
    RunningModel model(models[k], {});
    const CalibrationData data = read_calibration_text(model,
                                                       {.files = {folder_ / (k == 0 ? "a.txt" : "b.txt")},
                                                        .num_sequences = 24,
                                                        .length = 64,
                                                        .order = CalibrationText::Order::first,
                                                        .separate = false},
                                                       0);
    BlockPass pass(model, data.tokens, {});
    (void)pass.run([&](Block& block) {
      for (const InputStatistics& seen : block.statistics({.gram = true, .cross = false, .points = {}, .last = true}))
        for (const std::string& name : seen.weights) {
          const auto values = [&](const Tensors& of) { return testing::values_of(DType::bf16, of.at(name)); };
          const std::vector<float> w = values(merged), a = values(own[0]), b = values(own[1]), mine = values(own[k]);
          const std::size_t n = seen.width;
          for (std::size_t r = 0; r < 4; ++r)  // a few outputs tell
            for (std::size_t i = 0; i < n; ++i)
              for (std::size_t j = 0; j < n; ++j) {
                const auto at = [&](const std::vector<float>& x, std::size_t c) { return static_cast<double>(x[r * n + c]); };
                const auto mean = [&](std::size_t c) { return (at(a, c) + at(b, c)) / 2; };
                const double moment = seen.gram[i * n + j] / static_cast<double>(seen.num_tokens);
                at_merged[name] += (at(w, i) - at(mine, i)) * moment * (at(w, j) - at(mine, j));
                at_mean[name] += (mean(i) - at(mine, i)) * moment * (mean(j) - at(mine, j));
              }
        }
    });
  }
  ASSERT_EQ(at_mean.size(), 14U);
  for (const auto& [name, loss] : at_mean) EXPECT_LT(at_merged[name], loss) << name;
}

TEST_F(MergeByData, bad_configs_are_named_with_their_place) {
  const auto refused = [&](const std::string& text) { return merge(text, "none"); };
  EXPECT_WEFT_ERROR(refused("merge_method: regmean\nmodels:\n- {model: a}\n- {model: b, text: c}\n"), invalid_argument, "line 3");
  EXPECT_WEFT_ERROR(refused("merge_method: regmean\nmodels:\n- {model: a, text: c}\n"), invalid_argument, "at least two");
  EXPECT_WEFT_ERROR(refused(config("regmean", "tiny-german", "tiny-python", ", off_diagonal: 2")), invalid_argument, "off_diagonal");
  EXPECT_WEFT_ERROR(refused(config("regmean", "tiny-german", "tiny-python", ", weight: 2")), invalid_argument, "'weight'");
  EXPECT_WEFT_ERROR(refused(config("regmean", "tiny-german", "tiny-python") + "slices: []\n"), invalid_argument, "'slices'");
  EXPECT_WEFT_ERROR(refused(config("regmean", "tiny-german", "nothing-here")), not_found, "nothing-here");
}

}  // namespace
}  // namespace weft::engine
