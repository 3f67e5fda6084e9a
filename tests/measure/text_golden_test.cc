// Compares what measuring with a text gives with shared/golden/measure, by the tolerances that are written there. They were made with torch and
// numpy: a float32 forward pass by transformers, sums in float64.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "support/golden.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/measure.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

const fs::path kShared = fs::path(WEFT_SOURCE_DIR) / "../shared";
const fs::path kGolden = kShared / "golden/measure";
const std::string kBase = (kShared / "zoo/lm/base").string();

#define NEEDS_SHARED_DATA() \
  if (!fs::exists(kGolden)) GTEST_SKIP() << "the reference data in ../shared are not here"

fs::path held(const std::string& name) { return kShared / "zoo/text/held" / (name + ".txt"); }

/// The tolerance of a field: its path without the numbers in it.
double tolerance_of(const Json& golden, const std::string& path) {
  std::string field;
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (part.find_first_not_of("0123456789") != std::string::npos) field += (field.empty() ? "" : ".") + part;
    begin = end + 1;
  }
  const Json& tolerances = *golden.find("tolerance");
  const Json* own = tolerances.find(field);
  return *(own != nullptr ? own : tolerances.find("default"))->number();
}

class Compare {
 public:
  explicit Compare(const Json& golden) : golden_(golden) {}
  void near(const Measures& got, const std::string& measure, double want, const std::string& path, double slack = 0) {
    ++compared;
    const double* value = got.find(measure);
    const double allowed = std::max(slack, tolerance_of(golden_, path));
    if (value == nullptr || !(std::abs(*value - want) <= allowed))
      wrong.push_back(
          fmt::format("{} is {}, should be {} within {}", measure, value == nullptr ? "absent" : fmt::format("{}", *value), want, allowed));
  }
  void count(const Measures& got, const std::string& measure, const Json& k) {
    ++compared;
    const double* value = got.find(measure);
    if (value == nullptr || *value < *k.find("low")->number() || *value > *k.find("high")->number())
      wrong.push_back(
          fmt::format("{} is {}, should be {}", measure, value == nullptr ? "absent" : fmt::format("{}", *value), *k.find("k")->number()));
  }
  std::vector<std::string> wrong;
  std::size_t compared = 0;

 private:
  const Json& golden_;
};

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(20, lines.size()); ++i) text += lines[i] + "\n";
  return text + fmt::format("{} in all", lines.size());
}

const Measures& tensor_measures(const MeasuredModel& model, std::size_t layer, const std::string& name) {
  const std::string full =
      fmt::format("model.layers.{}.{}.{}.weight", layer, name.find_first_of("qkvo") == 0 && name[1] == '_' ? "self_attn" : "mlp", name);
  for (const MeasuredTensor& tensor : model.tensors)
    if (tensor.name == full) return tensor.measures;
  throw std::runtime_error("no tensor " + full);
}

TEST(MeasureText, a_forward_pass_agrees_with_the_reference) {
  NEEDS_SHARED_DATA();
  const Json golden = read_json_file(kGolden / "forward-base.json");
  const Json& want = *golden.find("results");
  MeasureOptions options;
  options.texts = {held("english")};
  options.what = {"text", "channels", "spectral_alignment", "utilized_rank", "w_pca", "heads", "importance", "cka", "residual"};
  const std::vector<std::string> models = {kBase};
  const MeasureReport report = measure_models(models, options);
  const MeasuredModel& model = report.models.front();
  Compare compare(golden);
  compare.near(model.model, "text.loss", *want.find("loss")->number(), "loss");
  ASSERT_EQ(model.blocks.size(), 6u);
  for (const auto& [place, layers] : *want.find("channels")->object()) {
    for (std::size_t l = 0; l < layers.array()->size(); ++l) {
      const Json& layer = (*layers.array())[l];
      const Measures& block = model.blocks[l].measures;
      for (const char* field : {"sum_squares", "max_abs"})
        compare.near(block, fmt::format("channels.{}.{}", place, field), *layer.find(field)->number(), fmt::format("channels.{}.{}", place, field));
      for (std::size_t i = 0; i < 4; ++i)
        compare.near(block, fmt::format("channels.{}.top_channels.{}", place, i), *layer.find("top_channels")->array()->at(i).number(),
                     "top_channels");
    }
  }
  for (std::size_t l = 0; l < 6; ++l) {
    for (const auto& [name, fields] : *(*want.find("spectral_alignment")->array())[l].object()) {
      const Measures& got = tensor_measures(model, l, name);
      const double near_zero = *fields.find("near_zero")->number() / 2048;
      for (const auto& [field, value] : *fields.object()) {
        const std::string path = "spectral_alignment." + name + "." + field;
        if (field == "q05_q50_q95") {
          for (std::size_t i = 0; i < 3; ++i)
            compare.near(got, std::string("spectral_alignment.") + std::array{"q05", "q50", "q95"}[i], *value.array()->at(i).number(), path);
        } else {
          compare.near(got, "spectral_alignment." + field, *value.number(), path,
                       field == "positive"    ? near_zero
                       : field == "diversity" ? 2 * near_zero
                                              : 0);
        }
      }
    }
    for (const auto& [name, shares] : *(*want.find("utilized_rank")->array())[l].object()) {
      const Measures& got = tensor_measures(model, l, name);
      for (const auto& [share, fields] : *shares.object())
        for (const char* side : {"k_S", "k_T"}) compare.count(got, fmt::format("utilized_rank.{}.{}", share, side), *fields.find(side));
    }
    const Measures& block = model.blocks[l].measures;
    for (const auto& [eta, layers] : *want.find("w_pca")->find("components")->object())
      compare.count(block, "w_pca.components." + eta, (*layers.array())[l]);
    for (const auto& [rows, fields] : *(*want.find("heads")->array())[l].object()) {
      for (const auto& [field, value] : *fields.object()) {
        const std::string path = "heads." + rows + "." + field;
        if (value.array() == nullptr) {
          compare.near(block, path, *value.number(), path);
        } else {
          for (std::size_t h = 0; h < value.array()->size(); ++h)
            compare.near(block, fmt::format("{}.{}", path, h), *value.array()->at(h).number(), path);
        }
      }
    }
    for (const auto& [field, value] : *(*want.find("importance")->array())[l].object())
      compare.near(block, "importance." + field, *value.number(), "importance." + field);
  }
  for (const auto& [share, value] : *want.find("mean_utilisation")->object())
    compare.near(model.model, "utilized_rank.mean_utilisation." + share, *value.number(), "mean_utilisation", 0.005);
  compare.near(model.model, "w_pca.parameters", *want.find("w_pca")->find("parameters")->number(), "parameters");
  const Json::Array& layers = *want.find("cka_layers")->array();
  for (std::size_t a = 0; a < layers.size(); ++a)
    for (std::size_t b = a + 1; b < layers.size(); ++b)
      compare.near(model.model, fmt::format("cka.layers.{}.{}", a, b), *layers[a].array()->at(b).number(), "cka_layers");
  const Json::Array& residual = *want.find("residual")->array();
  for (std::size_t p = 0; p < residual.size(); ++p)
    for (const auto& [field, value] : *residual[p].object())
      compare.near(model.model, fmt::format("residual.{}.{}", p, field), *value.number(), "residual." + field);
  EXPECT_GT(compare.compared, 900u);
  EXPECT_TRUE(compare.wrong.empty()) << joined(compare.wrong);
}

TEST(MeasureText, two_models_over_one_text_agree_with_the_reference) {
  NEEDS_SHARED_DATA();
  const Json golden = read_json_file(kGolden / "forward-german-base.json");
  const Json& want = *golden.find("results");
  MeasureOptions options;
  options.texts = {held("english")};
  options.base = kBase;
  options.what = {"cka"};
  options.max_tokens = 2048;
  const std::vector<std::string> models = {(kShared / "zoo/lm/german").string()};
  const MeasureReport report = measure_models(models, options);
  ASSERT_EQ(report.comparisons.size(), 1u);
  const Measures& got = report.comparisons.front().total;
  Compare compare(golden);
  const auto list = [&](const char* field, const char* measure) {
    for (std::size_t i = 0; i < want.find(field)->array()->size(); ++i)
      compare.near(got, fmt::format("cka.{}.{}", measure, i), *want.find(field)->array()->at(i).number(), field);
  };
  list("cka", "plain");
  list("cka_debiased", "debiased");
  list("cka_debiased_batches_of_256", "debiased_batches_of_256");
  list("representation_alignment_down_inputs", "representation_alignment_down_inputs");
  const Json::Array& cross = *want.find("cka_cross")->array();
  for (std::size_t a = 0; a < cross.size(); ++a)
    for (std::size_t b = 0; b < cross[a].array()->size(); ++b)
      compare.near(got, fmt::format("cka.cross.{}.{}", a, b), *cross[a].array()->at(b).number(), "cka_cross");
  EXPECT_EQ(compare.compared, 3 * 8u + 6u + 64u);
  EXPECT_TRUE(compare.wrong.empty()) << joined(compare.wrong);
}

void compare_super_weights(const MeasuredModel& model, const Json& golden, const Json& want, const std::string& path, Compare& compare) {
  const Json::Array& found = *want.find("found")->array();
  compare.near(model.model, "super_weights.count", static_cast<double>(found.size()), "count");
  compare.near(model.model, "super_weights.rounds", *want.find("rounds")->number(), "rounds");
  for (std::size_t i = 0; i < found.size(); ++i)
    for (const auto& [field, value] : *found[i].object())
      compare.near(model.model, fmt::format("super_weights.found.{}.{}", i, field), *value.number(), path + "found." + field);
  const Json::Array& layers = *want.find("layers")->array();
  for (std::size_t l = 0; l < layers.size(); ++l)
    for (const auto& [field, value] : *layers[l].object())
      compare.near(model.blocks.at(l).measures, "super_weights." + field, *value.number(), path + "layers." + field);
  for (const auto& [field, value] : *want.find("median")->object())
    compare.near(model.model, "super_weights.median." + field, *value.number(), path + "median." + field);
  (void)golden;
}

MeasureOptions prompt_options() {
  MeasureOptions options;
  options.texts = {held("english")};
  options.what = {"super_weights"};
  options.max_tokens = 256;
  return options;
}

TEST(MeasureText, a_model_without_super_weights_says_so) {
  NEEDS_SHARED_DATA();
  const Json golden = read_json_file(kGolden / "super-weights.json");
  const std::vector<std::string> models = {kBase};
  const MeasureReport report = measure_models(models, prompt_options());
  Compare compare(golden);
  compare_super_weights(report.models.front(), golden, *golden.find("results")->find("plain"), "plain.", compare);
  EXPECT_TRUE(compare.wrong.empty()) << joined(compare.wrong);
  for (const MeasuredBlock& block : report.models.front().blocks) EXPECT_NE(block.measures.find("super_weights.loss_change"), nullptr);
}

TEST(MeasureText, planted_super_weights_are_found_where_they_are) {
  NEEDS_SHARED_DATA();
  const Json golden = read_json_file(kGolden / "super-weights.json");
  const testing::GoldenModel base = testing::read_safetensors(fs::path(kBase) / "model.safetensors");
  for (const Json& plant : *golden.find("results")->find("planted")->array()) {
    const auto number = [&plant](const char* key) { return static_cast<std::size_t>(*plant.find(key)->number()); };
    const std::string prefix = fmt::format("model.layers.{}.mlp.", number("layer"));
    std::vector<testing::StoredTensor> tensors;
    for (const auto& [name, tensor] : base) {
      testing::StoredTensor stored{name, tensor.dtype, tensor.shape, tensor.bytes};
      if (name == prefix + "up_proj.weight" || name == prefix + "down_proj.weight") {
        const std::vector<double> values = tensor.values();
        std::vector<float> floats(values.begin(), values.end());
        const auto columns = static_cast<std::size_t>(tensor.shape[1]);
        if (name == prefix + "up_proj.weight") {
          for (std::size_t j = 0; j < columns; ++j) floats[number("col") * columns + j] *= 200;
        } else {
          floats[number("row") * columns + number("col")] = static_cast<float>(*plant.find("value")->number());
        }
        stored.dtype = "F32";
        stored.bytes.assign(reinterpret_cast<const char*>(floats.data()), floats.size() * sizeof(float));
      }
      tensors.push_back(std::move(stored));
    }
    const testing::TemporaryFolder folder;
    testing::write_file(folder / "model.safetensors", testing::safetensors_of_types(tensors));
    for (const char* file : {"config.json", "tokenizer.json", "tokenizer_config.json"})
      if (fs::exists(fs::path(kBase) / file)) fs::copy_file(fs::path(kBase) / file, folder / file);
    const std::vector<std::string> models = {folder.path().string()};
    const MeasureReport report = measure_models(models, prompt_options());
    Compare compare(golden);
    compare_super_weights(report.models.front(), golden, *plant.find("result"), "planted.result.", compare);
    EXPECT_TRUE(compare.wrong.empty()) << joined(compare.wrong);
  }
}

TEST(MeasureText, distances_between_texts_agree_with_the_reference) {
  NEEDS_SHARED_DATA();
  const Json golden = read_json_file(kGolden / "language-geometry.json");
  const Json& want = *golden.find("results");
  MeasureOptions options;
  options.what = {"language_geometry"};
  const Json::Array& names = *want.find("texts")->array();
  for (std::size_t i = 0; i + 1 < names.size(); ++i) options.texts.push_back(held(*names[i].string()));
  const std::vector<std::string> models = {kBase};
  const MeasureReport report = measure_models(models, options);
  const Measures& got = report.models.front().model;
  Compare compare(golden);
  for (const char* share : {"0.5", "0.1"}) {
    compare.near(got, fmt::format("language_geometry.{}.elements", share), *want.find(share)->find("elements")->number(), "elements");
    for (const char* distance : {"hamming", "jaccard"}) {
      const Json::Array& lines = *want.find(share)->find(distance)->array();
      for (std::size_t a = 0; a < lines.size(); ++a)
        for (std::size_t b = a + 1; b < lines.size(); ++b)
          compare.near(got, fmt::format("language_geometry.{}.{}.{}.{}", share, distance, a, b), *lines[a].array()->at(b).number(), distance);
    }
  }
  EXPECT_EQ(compare.compared, 2u + 4u * 45u);
  EXPECT_TRUE(compare.wrong.empty()) << joined(compare.wrong);
  EXPECT_NEAR(*got.find("language_geometry.floor"), 0.021, 0.001);
  // The two samples of one text are joined first, then the families.
  EXPECT_EQ(*got.find("language_geometry.0.5.tree.0.a"), 0);
  EXPECT_EQ(*got.find("language_geometry.0.5.tree.0.b"), 9);
  EXPECT_NEAR(*got.find("language_geometry.0.5.tree.0.height"), *got.find("language_geometry.floor"), 1e-15);
  EXPECT_EQ(*got.find("language_geometry.0.5.tree.1.a"), 2);
  EXPECT_EQ(*got.find("language_geometry.0.5.tree.1.b"), 8);
  EXPECT_EQ(*got.find("language_geometry.0.5.tree.2.a"), 5);
  EXPECT_EQ(*got.find("language_geometry.0.5.tree.2.b"), 6);
  EXPECT_EQ(*got.find("language_geometry.0.5.tree.8.size"), 10);
}

TEST(MeasureText, held_neurons_agree_with_the_reference) {
  NEEDS_SHARED_DATA();
  const Json golden = read_json_file(kGolden / "clamp.json");
  MeasureOptions options;
  options.what = {"clamp"};
  options.texts = {held("english")};
  for (const Json& one : *golden.find("results")->array())
    options.clamps.push_back(
        {static_cast<int>(*one.find("layer")->number()), static_cast<std::uint64_t>(*one.find("neuron")->number()), *one.find("value")->number()});
  const std::vector<std::string> models = {kBase};
  const MeasureReport report = measure_models(models, options);
  Compare compare(golden);
  for (std::size_t c = 0; c < options.clamps.size(); ++c)
    for (const auto& [field, value] : *(*golden.find("results")->array())[c].object())
      compare.near(report.models.front().model, fmt::format("clamp.{}.{}", c, field), *value.number(), field);
  EXPECT_EQ(compare.compared, 18u);
  EXPECT_TRUE(compare.wrong.empty()) << joined(compare.wrong);
}

TEST(MeasureText, filters_as_word_rules_agree_with_the_reference) {
  NEEDS_SHARED_DATA();
  const Json golden = read_json_file(kGolden / "words.json");
  MeasureOptions options;
  options.what = {"word_rules"};
  const std::vector<std::string> models = {(kGolden / "words.safetensors").string()};
  const MeasureReport report = measure_models(models, options);
  const MeasuredModel& model = report.models.front();
  const Measures* got = nullptr;
  for (const MeasuredTensor& tensor : model.tensors)
    if (tensor.name == "filters") got = &tensor.measures;
  ASSERT_NE(got, nullptr);
  const Json::Array& filters = *golden.find("results")->array();
  for (std::size_t f = 0; f < filters.size(); ++f) {
    const double best = *filters[f].find("best_response")->number();
    EXPECT_NEAR(*got->find(fmt::format("word_rules.{}.best_response", f)), best, 1e-6 * std::abs(best));
    const Json::Array& slots = *filters[f].find("slots")->array();
    for (std::size_t p = 0; p < slots.size(); ++p) {
      for (std::size_t k = 0; k < slots[p].find("words")->array()->size(); ++k) {
        const std::string at = fmt::format("word_rules.{}.slots.{}.", f, p);
        EXPECT_EQ(*got->find(fmt::format("{}words.{}", at, k)), *slots[p].find("words")->array()->at(k).number());
        EXPECT_NEAR(*got->find(fmt::format("{}scores.{}", at, k)), *slots[p].find("scores")->array()->at(k).number(), 1e-6 * std::abs(best));
      }
    }
  }
}

}  // namespace
}  // namespace weft
