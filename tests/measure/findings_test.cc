#include "measure/findings.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "measure/structure.h"
#include "support/safetensors_bytes.h"
#include "support/temporary_folder.h"
#include "weft/error.h"

namespace weft::measure {
namespace {

using testing::StoredTensor;

std::string normal_bytes(std::size_t count, double sigma, std::uint64_t seed) {
  std::vector<double> values(count);
  NormalStream(seed, "findings", 0).fill(values);
  std::vector<float> result;
  for (const double value : values) result.push_back(static_cast<float>(value * sigma));
  return testing::bytes_of(result);
}

bool has(const MeasureReport& report, const std::string& severity, const std::string& phrase, const std::string& where) {
  for (const MeasureFinding& finding : report.findings)
    if (finding.severity == severity && finding.what.find(phrase) != std::string::npos && finding.where.find(where) != std::string::npos) return true;
  return false;
}

MeasureReport measure_file(const testing::TemporaryFolder& folder, const std::vector<StoredTensor>& tensors, std::vector<std::string> what) {
  const std::filesystem::path file = folder / "m.safetensors";
  testing::write_file(file, testing::safetensors_of_types(tensors));
  const std::string models[] = {file};
  MeasureOptions options;
  options.what = std::move(what);
  return measure_models(models, options);
}

TEST(Findings, on_random_matrices_rules_fire_no_more_often_than_they_declare) {
  const testing::TemporaryFolder folder;
  std::vector<StoredTensor> tensors;
  const std::pair<std::int64_t, std::int64_t> shapes[] = {{64, 64}, {128, 64}, {96, 200}, {256, 128}};
  constexpr int kEach = 25;
  for (int i = 0; i < kEach; ++i)
    for (const auto& [rows, columns] : shapes)
      tensors.push_back({"w" + std::to_string(tensors.size()) + ".weight",
                         "F32",
                         {rows, columns},
                         normal_bytes(static_cast<std::size_t>(rows * columns), 0.02, tensors.size())});
  const MeasureReport report = measure_file(folder, tensors, {"moments", "weibull", "storage", "ranks", "powerlaw", "mp", "random", "conditioning"});
  for (const MeasureFinding& finding : report.findings) {
    EXPECT_NE(finding.what.find("random initialisation"), std::string::npos) << finding.what << " of " << finding.where;
  }
  ASSERT_EQ(report.findings.size(), 1u);
}

/// How often each rule fired, as a share of what it looked at.
std::map<std::string, double> rates_of(const MeasureReport& report, double looked_at) {
  std::map<std::string, double> rates;
  for (const MeasureFinding& finding : report.findings) rates[finding.rule] += static_cast<double>(finding.count) / looked_at;
  return rates;
}

/// What chance may add to a share of n.
double slack(double rate, double n) { return 3 * std::sqrt(std::max(rate, 1 / n) * (1 - std::min(rate, 0.5)) / n); }

TEST(Findings, every_rule_on_matrices_keeps_to_its_null_rate_on_random_ones) {
  const testing::TemporaryFolder folder;
  std::vector<StoredTensor> tensors;
  const std::pair<std::int64_t, std::int64_t> shapes[] = {{50, 50}, {64, 64}, {64, 192}, {160, 64}, {96, 96}};
  constexpr int kEach = 60;
  for (int i = 0; i < kEach; ++i)
    for (const auto& [rows, columns] : shapes)
      tensors.push_back({"w" + std::to_string(tensors.size()) + ".weight",
                         "F32",
                         {rows, columns},
                         normal_bytes(static_cast<std::size_t>(rows * columns), 0.02, 7000 + tensors.size())});
  const auto n = static_cast<double>(tensors.size());
  const MeasureReport report = measure_file(folder, tensors, {"moments", "weibull", "storage", "ranks", "powerlaw", "mp", "random", "conditioning"});
  const std::map<std::string, double> rates = rates_of(report, n);
  for (const FindingRule& rule : finding_rules()) {
    const auto found = rates.find(rule.name);
    const double rate = found == rates.end() ? 0 : found->second;
    EXPECT_LE(rate, rule.null_rate + (rule.null_rate > 0 ? slack(rule.null_rate, n) : 0)) << rule.name;
  }
  // The one that is meant for them fires on nearly all.
  EXPECT_GT(rates.at("random-like"), 0.95);
}

TEST(Findings, every_rule_on_changes_keeps_to_its_null_rate_on_random_ones) {
  const testing::TemporaryFolder folder;
  std::vector<StoredTensor> base, tuned, other;
  constexpr int kCount = 80;
  for (int i = 0; i < kCount; ++i) {
    const std::string name = "layers." + std::to_string(i) + ".w.weight";
    const std::size_t side = i % 2 == 0 ? 64 : 96;
    const auto rows = static_cast<std::int64_t>(side);
    std::vector<double> w(side * side), d(w.size()), e(w.size());
    NormalStream(static_cast<std::uint64_t>(i), "base", 0).fill(w);
    NormalStream(static_cast<std::uint64_t>(i), "change", 0).fill(d);
    NormalStream(static_cast<std::uint64_t>(i), "other", 0).fill(e);
    // Changes of a twentieth to half of the base's size.
    const double scale = 0.05 + 0.45 * i / kCount;
    std::vector<float> before, after, third;
    for (std::size_t k = 0; k < w.size(); ++k) {
      before.push_back(static_cast<float>(w[k]));
      after.push_back(static_cast<float>(w[k] + scale * d[k]));
      third.push_back(static_cast<float>(w[k] + scale * e[k]));
    }
    base.push_back({name, "F32", {rows, rows}, testing::bytes_of(before)});
    tuned.push_back({name, "F32", {rows, rows}, testing::bytes_of(after)});
    other.push_back({name, "F32", {rows, rows}, testing::bytes_of(third)});
  }
  testing::write_file(folder / "base.safetensors", testing::safetensors_of_types(base));
  testing::write_file(folder / "a.safetensors", testing::safetensors_of_types(tuned));
  testing::write_file(folder / "b.safetensors", testing::safetensors_of_types(other));
  const std::string models[] = {folder / "a.safetensors", folder / "b.safetensors"};
  MeasureOptions options;
  options.base = folder / "base.safetensors";
  options.what = {"difference", "intruders", "changed", "task_vectors"};
  const std::map<std::string, double> rates = rates_of(measure_models(models, options), 2 * kCount);
  for (const FindingRule& rule : finding_rules()) {
    const auto found = rates.find(rule.name);
    const double rate = found == rates.end() ? 0 : found->second;
    EXPECT_LE(rate, rule.null_rate + (rule.null_rate > 0 ? slack(rule.null_rate, 2 * kCount) : 0)) << rule.name;
  }
}

TEST(Findings, copies_are_told_and_zeros_are_not_called_copies) {
  const testing::TemporaryFolder folder;
  const std::string values = normal_bytes(64 * 64, 0.02, 11), zeros(64 * 64 * 4, '\0');
  const MeasureReport report = measure_file(folder,
                                            {{"layers.0.a.weight", "F32", {64, 64}, values},
                                             {"layers.1.b.weight", "F32", {64, 64}, values},
                                             {"layers.2.c.weight", "F32", {64, 64}, zeros},
                                             {"layers.3.d.weight", "F32", {64, 64}, zeros}},
                                            {"moments"});
  EXPECT_TRUE(has(report, "note", "the same bytes as another", "b of layer 1"));
  EXPECT_FALSE(has(report, "note", "the same bytes as another", "d of layer 3"));
}

TEST(Findings, what_is_wrong_with_a_model_is_said_with_its_place) {
  const testing::TemporaryFolder folder;
  std::string nan = normal_bytes(64 * 64, 0.02, 1), zero_row = normal_bytes(64 * 64, 0.02, 2), huge = normal_bytes(64 * 64, 0.02, 3);
  const float bad = std::nanf(""), large = 30;
  std::memcpy(nan.data() + 400, &bad, 4);
  std::memset(zero_row.data() + 64 * 4 * 5, 0, 64 * 4);
  std::memcpy(huge.data() + 800, &large, 4);
  const MeasureReport report = measure_file(folder,
                                            {{"layers.0.nan.weight", "F32", {64, 64}, nan},
                                             {"layers.1.zero.weight", "F32", {64, 64}, std::string(64 * 64 * 4, '\0')},
                                             {"layers.2.row.weight", "F32", {64, 64}, zero_row},
                                             {"layers.3.huge.weight", "F32", {64, 64}, huge},
                                             {"layers.4.copy.weight", "F32", {64, 64}, huge}},
                                            {});
  EXPECT_TRUE(has(report, "problem", "NaN or infinite", "nan of layer 0"));
  EXPECT_TRUE(has(report, "warning", "nothing but zeros", "zero of layer 1"));
  EXPECT_TRUE(has(report, "warning", "rows of zeros", "row of layer 2"));
  EXPECT_TRUE(has(report, "note", "single huge elements", "huge of layer 3"));
  EXPECT_EQ(report.findings.front().severity, "problem");
  EXPECT_EQ(*report.models[0].model.find("model.duplicate_matrices"), 1);
  EXPECT_EQ(report.models[0].tensors[4].notes.back(), "the same bytes as layers.3.huge.weight");
  EXPECT_EQ(*report.models[0].tensors[0].measures.find_skipped("powerlaw.alpha"), "non-finite");
  EXPECT_EQ(*report.models[0].tensors[1].measures.find_skipped("ranks.stable_rank"), "zero tensor");
}

TEST(Findings, tensors_that_are_no_matrices_of_numbers_say_what_was_done) {
  const testing::TemporaryFolder folder;
  const MeasureReport report = measure_file(folder,
                                            {{"codes", "I32", {8, 8}, std::string(256, '\1')},
                                             {"conv.weight", "F32", {16, 8, 3, 3}, normal_bytes(16 * 8 * 9, 0.1, 4)},
                                             {"empty", "F32", {0, 5}, ""},
                                             {"flat", "F8_E4M3", {16, 32}, std::string(512, '\x38')},
                                             {"h.0.attn.c_attn.weight", "F32", {32, 96}, normal_bytes(32 * 96, 0.1, 5)},
                                             {"scalar", "F32", {}, normal_bytes(1, 1, 6)},
                                             {"tiny", "BF16", {2, 2}, std::string("\x80\x3f\x00\x00\x00\x00\x80\x3f", 8)}},
                                            {"all"});
  std::map<std::string, const MeasuredTensor*> by_name;
  for (const MeasuredTensor& tensor : report.models[0].tensors) by_name[tensor.name] = &tensor;
  EXPECT_TRUE(by_name["codes"]->measures.find_skipped("moments.mean")->starts_with("integers"));
  EXPECT_TRUE(by_name["codes"]->measures.values.empty());
  EXPECT_EQ(by_name["conv.weight"]->notes[0], "4 axes: read as [16, 72]");
  EXPECT_EQ(*by_name["conv.weight"]->measures.find("weightwatcher.num_evals"), 8 * 9);
  EXPECT_EQ(*by_name["conv.weight"]->measures.find("weightwatcher.rf"), 9);
  EXPECT_EQ(*by_name["empty"]->measures.find_skipped("moments.mean"), "empty");
  EXPECT_EQ(*by_name["scalar"]->measures.find_skipped("ranks.stable_rank"), "vector");
  EXPECT_EQ(*by_name["flat"]->measures.find("ranks.numerical_rank"), 1);
  EXPECT_TRUE(by_name["flat"]->notes[0].starts_with("F8_E4M3 values are measured as stored"));
  EXPECT_EQ(*by_name["tiny"]->measures.find("ranks.condition"), 1);
  EXPECT_TRUE(by_name["tiny"]->measures.find_skipped("weightwatcher.alpha") != nullptr);
  for (const MeasuredTensor& tensor : report.models[0].tensors)
    for (const auto& [name, value] : tensor.measures.values) EXPECT_TRUE(std::isfinite(value)) << tensor.name << " " << name;
}

TEST(Findings, threads_change_no_bit_and_a_small_budget_is_refused_with_both_numbers) {
  const testing::TemporaryFolder folder;
  std::vector<StoredTensor> tensors;
  for (int i = 0; i < 6; ++i)
    tensors.push_back({"layers." + std::to_string(i) + ".w.weight", "F32", {96, 80}, normal_bytes(96 * 80, 0.02, static_cast<std::uint64_t>(i))});
  testing::write_file(folder / "m.safetensors", testing::safetensors_of_types(tensors));
  const std::string models[] = {folder / "m.safetensors"};
  MeasureOptions one, four, small;
  one.threads = 1;
  four.threads = 4;
  const MeasureReport a = measure_models(models, one), b = measure_models(models, four);
  for (std::size_t t = 0; t < a.models[0].tensors.size(); ++t)
    EXPECT_EQ(a.models[0].tensors[t].measures.values, b.models[0].tensors[t].measures.values);
  small.memory_bytes = 1 << 20;
  try {
    (void)measure_models(models, small);
    FAIL() << "measured in one megabyte";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
    EXPECT_NE(std::string(error.what()).find("1.05 MB"), std::string::npos) << error.what();
  }
}

TEST(Findings, an_expert_without_tokens_is_told_of_only_where_the_others_had_many) {
  for (const double tokens : {169.0, 171.0}) {  // of 4 experts one has none: 126.75 and 128.25 each, had they been spread evenly
    MeasureReport report;
    report.models.emplace_back();
    MeasuredBlock& block = report.models[0].blocks.emplace_back();
    for (int e = 0; e < 4; ++e) block.measures.values.emplace_back("channels.experts." + std::to_string(e) + ".tokens", e == 2 ? 0 : tokens);
    block.measures.values.emplace_back("channels.experts.unused", 1);
    EXPECT_EQ(find_findings(report).size(), tokens == 171 ? 1u : 0u);
  }
}

TEST(Findings, an_unknown_group_is_refused_with_the_nearest_one) {
  try {
    (void)Selection(std::vector<std::string>{"weibul"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_NE(error.advice().find("weibull"), std::string::npos);
  }
}

}  // namespace
}  // namespace weft::measure
