#include "measure/distances.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "measure/phases.h"

namespace weft::measure {
namespace {

TEST(Distances, points_of_a_plane_are_found_again_up_to_a_turn) {
  const std::vector<std::pair<double, double>> points = {{0, 0}, {4, 0}, {4, 3}, {-1, 7}, {2, 2}};
  const std::size_t n = points.size();
  std::vector<double> distances;
  for (const auto& [x, y] : points)
    for (const auto& [u, v] : points) distances.push_back(std::hypot(x - u, y - v));
  const Map map = classical_map(distances, n, 3);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j)
      EXPECT_NEAR(std::hypot(map.points[i * 3] - map.points[j * 3], map.points[i * 3 + 1] - map.points[j * 3 + 1]), distances[i * n + j], 1e-9);
  EXPECT_NEAR(map.spread[0] + map.spread[1], 1, 1e-12);
  EXPECT_GT(map.spread[0], map.spread[1]);
  for (std::size_t i = 0; i < n; ++i) EXPECT_NEAR(map.points[i * 3 + 2], 0, 1e-6);
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += map.points[i * 3];
  EXPECT_NEAR(sum, 0, 1e-9);
}

TEST(Distances, equal_points_lie_together_and_one_axis_may_be_all_there_is) {
  const Map none = classical_map(std::vector<double>(9), 3, 2);
  for (const double value : none.points) EXPECT_EQ(value, 0);
  const Map line = classical_map(std::vector<double>{0, 1, 1, 0}, 2, 2);
  EXPECT_NEAR(std::abs(line.points[0] - line.points[2]), 1, 1e-12);
  EXPECT_NEAR(line.spread[0], 1, 1e-12);
}

TEST(Distances, the_nearest_groups_are_joined_at_their_mean_distance) {
  // Points 0, 1, 5, 6.5 and 20 on a line.
  const std::vector<double> at = {0, 5, 1, 20, 6.5};
  std::vector<double> distances;
  for (const double a : at)
    for (const double b : at) distances.push_back(std::abs(a - b));
  const std::vector<Merge> tree = average_linkage(distances, 5);
  ASSERT_EQ(tree.size(), 4u);
  EXPECT_EQ(tree[0].a, 0u);
  EXPECT_EQ(tree[0].b, 2u);
  EXPECT_DOUBLE_EQ(tree[0].height, 1);
  EXPECT_EQ(tree[1].a, 1u);
  EXPECT_EQ(tree[1].b, 4u);
  EXPECT_DOUBLE_EQ(tree[1].height, 1.5);
  EXPECT_EQ(tree[2].a, 5u);
  EXPECT_EQ(tree[2].b, 6u);
  EXPECT_DOUBLE_EQ(tree[2].height, (5 + 6.5 + 4 + 5.5) / 4);
  EXPECT_EQ(tree[2].size, 4u);
  EXPECT_EQ(tree[3].a, 3u);
  EXPECT_EQ(tree[3].b, 7u);
  EXPECT_DOUBLE_EQ(tree[3].height, (20 + 19 + 15 + 13.5) / 4);
  EXPECT_EQ(tree[3].size, 5u);
}

ModelComparison compared(const std::string& model, double connectivity, double similarity) {
  ModelComparison comparison;
  comparison.kind = "path";
  comparison.models = {model};
  comparison.base = "before";
  // The loss falls by one from end to end; what lies off that line is what connects or parts.
  comparison.total.values = {{"barrier.loss.0", 4},      {"barrier.loss.1", 3.75}, {"barrier.loss.2", 3.5 - connectivity},
                             {"barrier.loss.3", 3.25},   {"barrier.loss.4", 3},    {"cka.plain.0", 0.1},
                             {"cka.plain.1", similarity}};
  return comparison;
}

TEST(Phases, each_corner_of_the_landscape_has_its_name) {
  EXPECT_STREQ(phase_of({5, -1, 0.9}, 3, 0.5), "I");
  EXPECT_STREQ(phase_of({5, 0, 0.9}, 3, 0.5), "II");
  EXPECT_STREQ(phase_of({5, 1, 0.1}, 3, 0.5), "II");
  EXPECT_STREQ(phase_of({2, -1, 0.9}, 3, 0.5), "III");
  EXPECT_STREQ(phase_of({2, 0.001, 0.4}, 3, 0.5), "IV-A");
  EXPECT_STREQ(phase_of({2, -0.001, 0.6}, 3, 0.5), "IV-B");
}

TEST(Phases, bars_are_the_medians_of_the_models_and_two_have_none) {
  MeasureReport report;
  const std::vector<std::pair<std::string, double>> losses = {{"a", 4}, {"b", 3}, {"c", 2}};
  for (const auto& [path, loss] : losses) {
    MeasuredModel& model = report.models.emplace_back();
    model.path = path;
    model.model.values = {{"text.loss", loss}};
  }
  report.comparisons = {compared("a", -0.5, 0.2), compared("b", 0, 0.5), compared("c", 0.3, 0.9), compared("unknown", 0, 0.5)};
  find_phases(report);
  const std::vector<const char*> want = {"I", "IV-B", "IV-B"};
  for (std::size_t i = 0; i < want.size(); ++i) {
    const Measures& total = report.comparisons[i].total;
    ASSERT_EQ(total.labels.size(), 1u);
    EXPECT_EQ(total.labels[0].second, want[i]);
    EXPECT_NEAR(*total.find("phases.connectivity"), std::vector<double>({-0.5, 0, 0.3})[i], 1e-12);
    EXPECT_EQ(*total.find("phases.bar.loss"), 3);
    EXPECT_EQ(*total.find("phases.bar.similarity"), 0.5);
  }
  EXPECT_NE(report.comparisons[3].total.find_skipped("phases"), nullptr);
  MeasureReport two;
  two.models = {report.models[0], report.models[1]};
  two.comparisons = {compared("a", 0, 0.2), compared("b", 0, 0.5)};
  find_phases(two);
  for (const ModelComparison& comparison : two.comparisons)
    EXPECT_NE(comparison.total.find_skipped("phases")->find("there are 2"), std::string::npos);
}

}  // namespace
}  // namespace weft::measure
