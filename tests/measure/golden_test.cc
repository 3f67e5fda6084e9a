// Compares measurements with those of shared/golden/measure, by the tolerances that are written there. They were made with numpy and scipy in float64
// and, for the tables of WeightWatcher, by that program.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "checkpoint/json.h"
#include "weft/measure.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

const fs::path kShared = fs::path(WEFT_SOURCE_DIR) / "../shared";
const fs::path kGolden = kShared / "golden/measure";

#define NEEDS_SHARED_DATA() \
  if (!fs::exists(kGolden)) GTEST_SKIP() << "the reference data in ../shared are not here"

using Walk = std::function<void(const std::string& path, const Json& leaf)>;
void walk_leaves(const std::string& path, const Json& value, const Walk& visit) {
  if (value.object() != nullptr) {
    for (const auto& [key, member] : *value.object()) walk_leaves(path.empty() ? key : path + "." + key, member, visit);
  } else if (value.array() != nullptr) {
    for (std::size_t i = 0; i < value.array()->size(); ++i) walk_leaves(path + "." + std::to_string(i), (*value.array())[i], visit);
  } else {
    visit(path, value);
  }
}

const std::string* find_label(const Measures& measures, const std::string& name) {
  for (const auto& [key, text] : measures.labels)
    if (key == name) return &text;
  return nullptr;
}

double number_at(const Json& object, std::initializer_list<const char*> path, double otherwise) {
  const Json* at = &object;
  for (const char* key : path)
    if (at != nullptr) at = at->find(key);
  return at != nullptr && at->number() ? *at->number() : otherwise;
}

/// What is wrong with the measures of one matrix; nothing when they agree.
std::vector<std::string> compare_matrix(const Measures& got, const Json& want) {
  std::vector<std::string> wrong;
  const double sum_abs = number_at(want, {"moments", "sum_abs"}, 0), n = number_at(want, {"moments", "n"}, 1);
  const double condition = number_at(want, {"ranks", "condition"}, 1), s1 = number_at(want, {"ranks", "spectral"}, 1);
  const double small_values = std::max(1e-8, 1e-14 * condition * condition);
  walk_leaves("", want, [&](const std::string& path, const Json& leaf) {
    const std::string group = path.substr(0, path.find('.'));
    if (group == "shape" || path.starts_with("weibull.tolerance") || path == "powerlaw.rule" || path.ends_with(".kept")) return;
    if (group == "spectral") {
      if (got.find_skipped("ranks.stable_rank") == nullptr || *got.find_skipped("ranks.stable_rank") != *leaf.string())
        wrong.push_back("ranks not skipped as " + *leaf.string());
      return;
    }
    if (path.ends_with(".reason")) {
      for (const auto& [name, value] : got.values)
        if (name.starts_with(group + ".") && !name.ends_with(".kept")) wrong.push_back(name + " is there, should be skipped: " + *leaf.string());
      return;
    }
    if (leaf.is_string()) {
      const std::string* label = find_label(got, path);
      if (label == nullptr || *label != *leaf.string()) wrong.push_back(path + " is " + (label ? *label : "absent") + ", not " + *leaf.string());
      return;
    }
    const double* value = got.find(path);
    if (leaf.is_null()) {
      if (value != nullptr) wrong.push_back(fmt::format("{} is {}, not undefined", path, *value));
      return;
    }
    if (value == nullptr) {
      const std::string* reason = got.find_skipped(path);
      wrong.push_back(path + " is absent: " + (reason ? *reason : "no reason"));
      return;
    }
    const double expected = *leaf.number();
    double relative = 1e-8, absolute = 0;
    if (group == "moments") relative = path.find("quantiles") != std::string::npos || path.find("_q") != std::string::npos ? 1e-12 : 1e-9;
    if (path == "moments.sum") absolute = 1e-12 * sum_abs;
    if (path == "moments.mean") absolute = 1e-12 * sum_abs / n;
    if (path == "moments.skewness" || path == "moments.excess_kurtosis") absolute = 1e-9;
    if (path.starts_with("weibull.")) {
      const std::string key = path.substr(8);
      const double tolerance = number_at(want, {"weibull", "tolerance", key.c_str()}, 0);
      (key == "lambda" ? relative : absolute) = tolerance;
      if (key != "lambda") relative = 1e-12;
      if (key == "bins") absolute = 1;
    }
    if (path == "ranks.smallest") relative = small_values, absolute = 1e-12 * s1;
    if (path == "ranks.condition" || path == "conditioning.before" || path == "conditioning.after") relative = small_values * 100;
    if (group.starts_with("powerlaw") || group == "clip_xmax") relative = 1e-6;
    if (group == "orthogonality") absolute = 1e-12;
    if (group == "detX") relative = 1e-6;
    if (group == "weight_space") relative = 1e-6, absolute = 1e-7;
    // Of vectors of nearly one length, and of those that are multiples of what was taken, any may come first.
    if (path.find("first_pivots") != std::string::npos) absolute = 1e9;
    if (!(std::abs(*value - expected) <= relative * std::abs(expected) + absolute))
      wrong.push_back(fmt::format("{} is {:.17g}, not {:.17g}", path, *value, expected));
  });
  return wrong;
}

void compare_file(const fs::path& golden, const std::string& model) {
  const Json reference = read_json_file(golden);
  const std::string models[] = {model};
  MeasureOptions options;
  options.what = {"moments", "weibull", "storage", "ranks", "powerlaw", "detX", "mp", "clip_xmax", "orthogonality", "conditioning", "weight_space"};
  const MeasureReport report = measure_models(models, options);
  std::size_t compared = 0;
  for (const auto& [name, want] : *reference.find("results")->object()) {
    for (const MeasuredTensor& tensor : report.models[0].tensors) {
      if (tensor.name != name) continue;
      ++compared;
      for (const std::string& wrong : compare_matrix(tensor.measures, want)) ADD_FAILURE() << name << ": " << wrong;
    }
  }
  EXPECT_EQ(compared, reference.find("results")->object()->size());
}

TEST(MeasureGolden, a_few_small_matrices_measure_as_numpy_and_scipy_say) {
  const fs::path data = fs::path(WEFT_SOURCE_DIR) / "tests/data/measure";
  compare_file(data / "matrices.json", data / "matrices.safetensors");
}

TEST(MeasureGolden, matrices_of_every_kind_measure_as_numpy_and_scipy_say) {
  NEEDS_SHARED_DATA();
  compare_file(kGolden / "matrices.json", kGolden / "matrices.safetensors");
}

TEST(MeasureGolden, every_matrix_of_a_tiny_model_measures_as_numpy_and_scipy_say) {
  NEEDS_SHARED_DATA();
  compare_file(kGolden / "weights-tiny-base.json", kShared / "zoo/lm/tiny-base");
}

TEST(MeasureGolden, every_matrix_of_a_model_measures_as_numpy_and_scipy_say) {
  NEEDS_SHARED_DATA();
  compare_file(kGolden / "weights-base.json", kShared / "zoo/lm/base");
}

// ---- WeightWatcher's tables ----

std::vector<std::map<std::string, std::string>> read_csv(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::vector<std::string> header;
  std::vector<std::map<std::string, std::string>> rows;
  while (std::getline(in, line)) {
    std::vector<std::string> cells;
    std::stringstream stream(line);
    for (std::string cell; std::getline(stream, cell, ',');) cells.push_back(cell);
    if (header.empty()) {
      header = cells;
      continue;
    }
    auto& row = rows.emplace_back();
    for (std::size_t i = 0; i < std::min(header.size(), cells.size()); ++i) row[header[i]] = cells[i];
  }
  return rows;
}

void compare_weightwatcher(const fs::path& csv, const std::string& model, bool whole_table, const WeightWatcherSettings& settings = {}) {
  const auto rows = read_csv(csv);
  const std::string models[] = {model};
  MeasureOptions options;
  options.what = {"weightwatcher", "powerlaw", "detX"};
  options.weightwatcher = settings;
  if (whole_table) options.what.insert(options.what.end(), {"mp_fit", "random"});
  const MeasureReport report = measure_models(models, options);
  ASSERT_FALSE(rows.empty());
  for (const auto& row : rows) {
    const std::string name = row.at("longname");
    const MeasuredTensor* tensor = nullptr;
    for (const MeasuredTensor& each : report.models[0].tensors)
      if (each.name == name || each.name == name + ".weight") tensor = &each;
    ASSERT_NE(tensor, nullptr) << name;
    const bool heavy = name == "heavy" || name == "low_rank" || name == "zero_rows";
    const auto compare = [&](const std::string& measure, const std::string& column, double relative, double absolute) {
      const auto cell = row.find(column);
      if (cell == row.end() || cell->second.empty()) return;
      const double expected = std::stod(cell->second);
      const double* value = tensor->measures.find(measure);
      if (value == nullptr) {
        ADD_FAILURE() << name << ": " << measure << " is absent, not " << expected;
        return;
      }
      EXPECT_LE(std::abs(*value - expected), relative * std::abs(expected) + absolute)
          << name << ": " << measure << " is " << *value << ", not " << expected;
    };
    std::vector<std::string> columns = {"raw_alpha", "num_fingers"};
    for (const MeasurementDescription& group : list_measurements())
      if (group.name == "weightwatcher") columns.insert(columns.end(), group.keys.begin(), group.keys.end());
    for (const std::string& column : columns) {
      if (column == "sigma") continue;
      compare("weightwatcher." + column, column, 1e-6, 1e-9);
    }
    // Its sigma of small samples is the negative of one that would be too large; ours is right.
    if (std::stod(row.at("sigma")) > 0) compare("weightwatcher.sigma", "sigma", 1e-6, 0);
    if (!whole_table) continue;
    for (const char* column : {"W_scale", "sigma_mp", "bulk_min", "bulk_max", "mp_softrank"})
      compare(std::string("mp_fit.") + column, column, std::string(column) == "W_scale" ? 1e-6 : 3e-3, 0);
    compare("mp_fit.num_spikes", "num_spikes", 0, 0);
    for (const char* column : {"max_rand_eval", "ww_softrank", "rand_bulk_max", "rand_sigma_mp", "rand_mp_softrank"})
      compare(std::string("random.") + column, column, heavy ? 0.3 : 0.08, 0);
    // Of 150 draws by numpy the distance of a 256 x 128 matrix had a standard deviation of 0.0018, that of a 10 x 14 one of 0.017.
    compare("random.rand_distance", "rand_distance", 0, heavy ? 0.02 : name == "few" ? 0.06 : 0.008);
    compare("random.rand_num_spikes", "rand_num_spikes", heavy ? 0.3 : 0, 1);
  }
}

TEST(MeasureGolden, weightwatchers_table_of_a_tiny_model_is_ours) {
  NEEDS_SHARED_DATA();
  compare_weightwatcher(kGolden / "weightwatcher/tiny-base-full.csv", kShared / "zoo/lm/tiny-base", true);
}

TEST(MeasureGolden, weightwatchers_table_of_a_model_is_ours) {
  NEEDS_SHARED_DATA();
  compare_weightwatcher(kGolden / "weightwatcher/base-full.csv", kShared / "zoo/lm/base", true);
}

TEST(MeasureGolden, weightwatchers_table_of_matrices_of_every_kind_is_ours) {
  NEEDS_SHARED_DATA();
  compare_weightwatcher(kGolden / "weightwatcher/matrices.csv", kGolden / "matrices.safetensors", true);
}

TEST(MeasureGolden, weightwatchers_tables_without_the_largest_eigenvalues_are_ours) {
  NEEDS_SHARED_DATA();
  compare_weightwatcher(kGolden / "weightwatcher/tiny-base-clip.csv", kShared / "zoo/lm/tiny-base", false, {.clip_fingers = true});
  compare_weightwatcher(kGolden / "weightwatcher/base-clip.csv", kShared / "zoo/lm/base", false, {.clip_fingers = true});
  compare_weightwatcher(kGolden / "weightwatcher/tiny-base-xmax-2.csv", kShared / "zoo/lm/tiny-base", false, {.drop_largest = 2});
}

TEST(MeasureGolden, weightwatchers_table_of_large_layers_alone_is_ours) {
  NEEDS_SHARED_DATA();
  const fs::path csv = kGolden / "weightwatcher/matrices-min-evals-50.csv";
  compare_weightwatcher(csv, kGolden / "matrices.safetensors", false, {.min_evals = 50});
  const std::string models[] = {kGolden / "matrices.safetensors"};
  MeasureOptions options;
  options.what = {"weightwatcher"};
  options.weightwatcher.min_evals = 50;
  const MeasureReport report = measure_models(models, options);
  for (const MeasuredTensor& tensor : report.models[0].tensors)
    EXPECT_EQ(tensor.measures.find("weightwatcher.alpha") != nullptr && std::min(tensor.shape[0], tensor.shape[1]) < 50, false) << tensor.name;
}

// ---- Layers and pairs ----

const MeasuredBlock& block_of(const std::vector<MeasuredBlock>& blocks, int number) {
  for (const MeasuredBlock& block : blocks)
    if (block.block == number) return block;
  throw std::runtime_error("no layer " + std::to_string(number));
}

TEST(MeasureGolden, neurons_are_classed_and_decoded_as_numpy_says) {
  NEEDS_SHARED_DATA();
  const Json reference = read_json_file(kGolden / "neurons-base.json");
  const std::string models[] = {kShared / "zoo/lm/base"};
  MeasureOptions options;
  options.what = {"gated", "decoding"};
  const MeasureReport report = measure_models(models, options);
  const auto compare = [](const Measures& got, const std::string& prefix, const Json& want, int layer) {
    walk_leaves("", want, [&](const std::string& path, const Json& leaf) {
      if (leaf.is_string()) return;
      const double* value = got.find(prefix + path);
      ASSERT_NE(value, nullptr) << prefix << path << " of layer " << layer;
      EXPECT_LE(std::abs(*value - *leaf.number()), 1e-9 * std::abs(*leaf.number()) + 1e-12) << prefix << path << " of layer " << layer;
    });
  };
  const Json::Array& gated = *reference.find("gated")->array();
  ASSERT_EQ(report.models[0].blocks.size(), gated.size());
  for (std::size_t layer = 0; layer < gated.size(); ++layer) {
    const Measures& got = block_of(report.models[0].blocks, static_cast<int>(layer)).measures;
    compare(got, "gated.", gated[layer], static_cast<int>(layer));
    for (const auto& [name, layers] : *reference.find("decoding")->object())
      compare(got, "decoding." + name + ".", (*layers.array())[layer], static_cast<int>(layer));
    EXPECT_NEAR(*got.find("decoding.null.median_max_abs"), number_at(reference, {"null", "median_max_abs"}, 0), 0.05);
  }
}

TEST(MeasureGolden, what_a_fine_tune_changed_is_what_numpy_says) {
  NEEDS_SHARED_DATA();
  const Json all = read_json_file(kGolden / "pairs.json");
  const Json& reference = *all.find("results")->find("python against base");
  const std::string models[] = {kShared / "zoo/lm/python"};
  MeasureOptions options;
  options.base = kShared / "zoo/lm/base";
  options.what = {"difference", "intruders", "changed", "agreement"};
  const MeasureReport report = measure_models(models, options);
  ASSERT_EQ(report.comparisons.size(), 1u);
  const ModelComparison& pair = report.comparisons[0];
  std::size_t compared = 0;
  for (const MeasuredTensor& tensor : pair.tensors) {
    const Json* gaps = reference.find("intruders")->find(tensor.name);
    gaps = gaps != nullptr ? gaps->find("relative_gap") : nullptr;
    for (const char* group : {"difference", "intruders"}) {
      const Json* want = reference.find(group)->find(tensor.name);
      if (want == nullptr) continue;
      walk_leaves("", *want, [&](const std::string& path, const Json& leaf) {
        const double* value = tensor.measures.find(std::string(group) + "." + path);
        ASSERT_NE(value, nullptr) << tensor.name << " " << path;
        double relative = 1e-8, absolute = 1e-12;
        if (path.starts_with("max_cos") || path.starts_with("subspace")) {
          const auto j = static_cast<std::size_t>(std::stoi(path.substr(path.rfind('.') + 1)));
          absolute = 1e-6 + 1e-13 / *(*gaps->array())[j].number();
        }
        if (path.starts_with("s.")) relative = 1e-9;
        EXPECT_LE(std::abs(*value - *leaf.number()), relative * std::abs(*leaf.number()) + absolute) << tensor.name << " " << path;
        ++compared;
      });
    }
  }
  EXPECT_GT(compared, 2000u);
  for (const char* side : {"left", "right"})
    for (const auto& [bar, count] : *reference.find("total_intruders")->find(side)->object())
      EXPECT_EQ(*pair.total.find(std::string("intruders.count_") + side + "." + bar), *count.number()) << side << " " << bar;
  for (const auto& [kind, count] : *reference.find("left_0.5_by_kind")->object())
    EXPECT_EQ(*pair.total.find("intruders.left_0.5_by_kind." + kind), *count.number()) << kind;

  const Json changed = read_json_file(kGolden / "changed.json");
  const Json& want = *changed.find("results")->find("base to python");
  EXPECT_EQ(*pair.total.find("changed.changed"), *want.find("changed")->number());
  for (const MeasuredTensor& tensor : pair.tensors)
    EXPECT_EQ(*tensor.measures.find("changed.changed"), *want.find("tensors")->find(tensor.name)->number()) << tensor.name;

  const Json neurons = read_json_file(kGolden / "neurons-base.json");
  for (const char* side : {"up", "down"}) {
    const Json::Array& shares = *neurons.find("agreement")->find("python")->find(side)->array();
    for (std::size_t layer = 0; layer < shares.size(); ++layer)
      EXPECT_NEAR(*block_of(pair.blocks, static_cast<int>(layer)).measures.find(std::string("agreement.") + side), *shares[layer].number(), 2.0 / 768)
          << side;
  }
}

TEST(MeasureGolden, the_steps_of_a_path_change_as_many_elements_as_their_bytes_say) {
  NEEDS_SHARED_DATA();
  const Json reference = read_json_file(kGolden / "changed.json");
  std::vector<std::string> models;
  for (const char* step : {"0000", "0050", "0150", "0350", "0700"}) models.push_back(kShared / ("zoo/lm/tiny-path/step-" + std::string(step)));
  MeasureOptions options;
  options.what = {"changed"};
  const MeasureReport report = measure_models(models, options);
  ASSERT_EQ(report.comparisons.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    const ModelComparison& step = report.comparisons[i];
    EXPECT_EQ(step.kind, "path");
    const std::string key =
        "tiny-path/" + models[i].substr(models[i].rfind('/') + 1) + " to tiny-path/" + models[i + 1].substr(models[i + 1].rfind('/') + 1);
    const Json* want = reference.find("results")->find(key);
    ASSERT_NE(want, nullptr) << key;
    EXPECT_EQ(*step.total.find("changed.changed"), *want->find("changed")->number());
    EXPECT_NEAR(*step.total.find("changed.share"), *want->find("share")->number(), 1e-15);
  }
}

TEST(MeasureGolden, task_vectors_meet_as_numpy_says) {
  NEEDS_SHARED_DATA();
  const Json all = read_json_file(kGolden / "task-vectors.json");
  const Json& reference = *all.find("results")->find("language models");
  std::vector<std::string> models;
  for (const Json& name : *reference.find("models")->array()) {
    const std::string path = kShared / ("zoo/lm/" + *name.string());
    models.push_back(name.string()->starts_with("lora") ? std::string(kShared / "zoo/lm/base") + "+" + path : path);
  }
  // An adapter is folded in float32, which moves its cosines and the signs of what it hardly changes.
  const std::size_t adapter = 4;
  MeasureOptions options;
  options.base = kShared / "zoo/lm/base";
  options.what = {"task_vectors"};
  const MeasureReport report = measure_models(models, options);
  ASSERT_EQ(report.comparisons.size(), 1u);
  const Measures& total = report.comparisons[0].total;
  std::size_t compared = 0;
  for (const auto& [set, rows] : *reference.find("cosine")->object()) {
    for (std::size_t i = 0; i < models.size(); ++i) {
      const double norm = *(*reference.find("norm")->find(set)->array())[i].number();
      EXPECT_NEAR(*total.find(fmt::format("task_vectors.norm.{}.{}", set, i)), norm, (i == adapter ? 1e-7 : 1e-9) * norm) << set;
      for (std::size_t j = 0; j < models.size(); ++j, ++compared)
        EXPECT_NEAR(*total.find(fmt::format("task_vectors.cosine.{}.{}.{}", set, i, j)), *(*(*rows.array())[i].array())[j].number(),
                    i == adapter || j == adapter ? 1e-7 : 1e-9)
            << set;
    }
  }
  EXPECT_GT(compared, 200u);
  const Json& signs = *reference.find("signs");
  for (const char* key : {"both_changed", "opposite"})
    for (std::size_t i = 0; i < models.size(); ++i)
      for (std::size_t j = 0; j < models.size(); ++j) {
        const double want = *(*(*signs.find(key)->array())[i].array())[j].number();
        EXPECT_NEAR(*total.find(fmt::format("task_vectors.signs.{}.{}.{}", key, i, j)), want, i == adapter || j == adapter ? 1e-4 * want : 0);
      }
  for (const char* key : {"changed_by_any", "changed_by_two_or_more", "conflicting"})
    EXPECT_NEAR(*total.find(std::string("task_vectors.signs.") + key), *signs.find(key)->number(), 1e-4 * *signs.find(key)->number()) << key;
  EXPECT_EQ(*total.find("task_vectors.signs.elements"), *signs.find("elements")->number());
}

TEST(MeasureGolden, a_low_rank_adapter_is_told_from_a_full_fine_tune) {
  NEEDS_SHARED_DATA();
  const Json all = read_json_file(kGolden / "pairs.json");
  const Json& reference = *all.find("results")->find("lora-python against base");
  const std::string base = kShared / "zoo/lm/base";
  const std::string models[] = {base + "+" + std::string(kShared / "zoo/lm/lora-python")};
  MeasureOptions options;
  options.base = base;
  options.what = {"difference", "intruders"};
  const MeasureReport report = measure_models(models, options);
  const ModelComparison& pair = report.comparisons[0];
  // The adapter is folded in float32: a cosine near the bar may fall to either side.
  for (const auto& [bar, count] : *reference.find("total_intruders")->find("left")->object())
    EXPECT_NEAR(*pair.total.find("intruders.count_left." + bar), *count.number(), 1) << bar;
  for (const MeasuredTensor& tensor : pair.tensors) {
    const Json& want = *reference.find("difference")->find(tensor.name);
    EXPECT_NEAR(*tensor.measures.find("difference.norm"), *want.find("norm")->number(), 1e-6 * *want.find("norm")->number() + 1e-12) << tensor.name;
    if (const Json* ranks = want.find("energy_rank")) {
      for (const auto& [share, rank] : *ranks->object())
        EXPECT_EQ(*tensor.measures.find("difference.energy_rank." + share), *rank.number()) << tensor.name;
    }
  }
  bool told = false;
  for (const MeasureFinding& finding : report.findings) told = told || finding.what.find("LoRA") != std::string::npos;
  EXPECT_TRUE(told);

  const std::string full[] = {std::string(kShared / "zoo/lm/python")};
  const MeasureReport of_full = measure_models(full, options);
  for (const MeasureFinding& finding : of_full.findings) EXPECT_EQ(finding.what.find("LoRA"), std::string::npos) << finding.where;
}

}  // namespace
}  // namespace weft
