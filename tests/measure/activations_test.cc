#include "measure/activations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "measure/structure.h"

namespace weft::measure {
namespace {

std::vector<double> normal(std::size_t count, std::uint64_t seed) {
  std::vector<double> values(count);
  NormalStream(seed, "activations", 0).fill(values);
  return values;
}
std::vector<float> floats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

TEST(Activations, cosines_with_the_top_direction_are_those_of_the_worked_example) {
  const std::vector<double> w = {2, 0, 0, 1};
  const std::vector<float> x = {1, 1, -1, 1, 2, 0, -3, 4, 0, 0};
  Measures out;
  measure_alignment({w, 2, 2}, {x, 5, 2}, out);
  EXPECT_DOUBLE_EQ(*out.find("spectral_alignment.positive"), 0.5);
  EXPECT_DOUBLE_EQ(*out.find("spectral_alignment.diversity"), 1);
  EXPECT_NEAR(*out.find("spectral_alignment.mean_abs"), (0.70711 + 0.70711 + 1 + 0.6) / 4, 1e-5);
  EXPECT_NEAR(*out.find("spectral_alignment.s2_over_s1"), 0.5, 1e-15);
}

TEST(Activations, the_top_direction_is_the_same_from_either_side) {
  const std::vector<double> w = normal(12 * 7, 1);
  std::vector<double> turned(w.size());
  for (std::size_t i = 0; i < 12; ++i)
    for (std::size_t j = 0; j < 7; ++j) turned[j * 12 + i] = w[i * 7 + j];
  // Rows of x along v1 of w: take w itself, whose rows have cosines u1 s1 / |row| with it.
  Measures tall, wide;
  measure_alignment({w, 12, 7}, {floats(w), 12, 7}, tall);
  measure_alignment({turned, 7, 12}, {floats(turned), 7, 12}, wide);
  EXPECT_NEAR(*tall.find("spectral_alignment.s2_over_s1"), *wide.find("spectral_alignment.s2_over_s1"), 1e-12);
  EXPECT_GT(*tall.find("spectral_alignment.mean_abs"), 0.2);
  EXPECT_GT(*wide.find("spectral_alignment.mean_abs"), 0.2);
}

TEST(Activations, inputs_in_three_dimensions_use_three_of_eight) {
  const std::vector<double> w = normal(8 * 10, 2), basis = normal(3 * 10, 3);
  std::vector<double> moment(100);
  for (std::size_t i = 0; i < 10; ++i)
    for (std::size_t j = 0; j < 10; ++j)
      for (std::size_t k = 0; k < 3; ++k) moment[i * 10 + j] += basis[k * 10 + i] * basis[k * 10 + j];
  Measures out;
  measure_utilized({w, 8, 10}, SecondMoment(moment, 10), out);
  EXPECT_LE(*out.find("utilized_rank.0.999.k_S"), 3);
  EXPECT_LE(*out.find("utilized_rank.0.999.k_T"), 3);
  EXPECT_LE(*out.find("utilized_rank.0.999.utilisation"), 3.0 / 8);
}

TEST(Activations, spectra_behind_a_matrix_are_those_of_the_product) {
  for (const auto& [rows, n] : {std::pair(5, 9), std::pair(9, 5)}) {
    const auto r = static_cast<std::size_t>(rows), c = static_cast<std::size_t>(n);
    const std::vector<double> w = normal(r * c, 4), x = normal(20 * c, 5);
    std::vector<double> moment(c * c);
    double trace = 0;
    for (std::size_t t = 0; t < 20; ++t) {
      for (std::size_t i = 0; i < c; ++i)
        for (std::size_t j = 0; j < c; ++j) moment[i * c + j] += x[t * c + i] * x[t * c + j];
      for (std::size_t o = 0; o < r; ++o) {
        double y = 0;
        for (std::size_t i = 0; i < c; ++i) y += w[o * c + i] * x[t * c + i];
        trace += y * y;
      }
    }
    double sum = 0;
    for (const double value : SecondMoment(moment, n).eigenvalues_behind({w, rows, n})) sum += value;
    EXPECT_NEAR(sum, trace, 1e-10 * trace);
  }
}

TEST(Activations, shares_are_reached_or_passed) {
  EXPECT_EQ(count_for_share({3, 6, 1}, 0.8, Bar::passed), 2u);
  EXPECT_EQ(count_for_share({3, 6, 1}, 0.9 + 1e-12, Bar::passed), 3u);
  EXPECT_EQ(count_for_share({3, 6, 1}, 0.6, Bar::reached), 1u);
}

TEST(Activations, cka_is_that_of_the_worked_example_and_does_not_see_turns_and_scales) {
  const std::vector<float> x = {1, 0, 0, 1, -1, 0, 0, -1}, y = {1, 0, 0, 2, -1, 0, 0, -2};
  EXPECT_NEAR(cka({x, 4, 2}, {y, 4, 2}), 0.857493, 1e-6);
  const std::vector<float> turned = {0, 3, -3, 0, 0, -3, 3, 0};
  EXPECT_NEAR(cka({x, 4, 2}, {turned, 4, 2}), 1, 1e-12);
  EXPECT_NEAR(representation_alignment({x, 4, 2}, {x, 4, 2}), 1, 1e-12);
}

TEST(Activations, independent_states_are_alike_only_without_debiasing) {
  const std::vector<float> x = floats(normal(100 * 256, 6)), y = floats(normal(100 * 256, 7));
  EXPECT_NEAR(cka({x, 100, 256}, {y, 100, 256}), 0.72, 0.03);
  EXPECT_NEAR(cka_debiased({x, 100, 256}, {y, 100, 256}), 0, 0.06);
  EXPECT_NEAR(cka_debiased({x, 100, 256}, {x, 100, 256}, 25), 1, 1e-12);
}

TEST(Activations, heads_are_those_of_the_worked_example) {
  HeadMaps maps;
  maps.heads = 2;
  maps.sequences = 1;
  maps.tokens = 2;
  maps.shares = {1, 0, 0.5F, 0.5F, 1, 0, 0.9F, 0.1F};
  Measures out;
  measure_heads(maps, out);
  EXPECT_NEAR(*out.find("heads.all.head_cosine"), 0.90784, 1e-5);
  EXPECT_NEAR(*out.find("heads.all.entropy.0"), 0.69315, 1e-5);
  EXPECT_NEAR(*out.find("heads.all.entropy.1"), 0.32508, 1e-5);
  EXPECT_NEAR(*out.find("heads.all.entropy_std"), 0.18403, 1e-5);
  EXPECT_NE(out.find_skipped("heads.without_first_two.head_cosine"), nullptr);
}

TEST(Activations, masks_keep_the_largest_of_each_row_and_the_later_of_equals) {
  const std::vector<double> w = {1, 1, 1, 1};
  const ImportanceMask a({w, 1, 4}, std::vector<double>{2, 2, 1, 1}, 0.5), b({w, 1, 4}, std::vector<double>{2, 1, 2, 1}, 0.5);
  EXPECT_EQ(a.bits()[0], 0b0011u);
  EXPECT_EQ(b.bits()[0], 0b0101u);
  const MaskCounts counts = compare_masks(a, b);
  EXPECT_EQ(counts.differ, 2u);  // Hamming 2 / 4
  EXPECT_EQ(counts.both, 1u);    // Jaccard distance 2 / 3
  EXPECT_EQ(ImportanceMask({w, 1, 4}, std::vector<double>{1, 1, 1, 1}, 0.5).bits()[0], 0b1100u);
}

TEST(Activations, the_best_words_maximise_the_response_over_all_ngrams) {
  const std::vector<double> embeddings = normal(6 * 4, 8), filter = normal(2 * 4, 9);
  const WordRule rule = word_rules({embeddings, 6, 4}, filter, 1, 2, 3).front();
  double best = -1e9;
  for (std::size_t a = 0; a < 6; ++a) {
    for (std::size_t b = 0; b < 6; ++b) {
      double response = 0;
      for (std::size_t j = 0; j < 4; ++j) response += embeddings[a * 4 + j] * filter[j] + embeddings[b * 4 + j] * filter[4 + j];
      best = std::max(best, response);
    }
  }
  EXPECT_NEAR(rule.best_response, best, 1e-12);
  EXPECT_EQ(rule.words[0].size(), 3u);
}

}  // namespace
}  // namespace weft::measure
