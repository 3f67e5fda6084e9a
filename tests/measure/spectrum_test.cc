#include "measure/spectrum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "measure/marchenko_pastur.h"
#include "measure/powerlaw.h"
#include "measure/structure.h"
#include "measure/weightwatcher.h"

namespace weft::measure {
namespace {

std::vector<double> normal(std::size_t count, double sigma, std::uint64_t seed) {
  std::vector<double> values(count);
  NormalStream(seed, "spectrum", 0).fill(values);
  for (double& value : values) value *= sigma;
  return values;
}

TEST(Spectrum, ranks_of_one_two_three_four_are_the_published_ones) {
  const Spectrum spectrum{{4, 3, 2, 1}, 4, 4};
  Measures out;
  measure_ranks(spectrum, "ranks", out);
  EXPECT_NEAR(*out.find("ranks.stable_rank"), 1.875, 1e-12);
  EXPECT_NEAR(*out.find("ranks.participation"), 2.54237, 5e-6);
  EXPECT_NEAR(*out.find("ranks.entropy_rank_s"), 3.59612, 5e-6);
  EXPECT_NEAR(*out.find("ranks.entropy_rank_s2"), 2.94020, 5e-6);
  EXPECT_NEAR(*out.find("ranks.entropy"), 0.77796, 5e-6);
  EXPECT_NEAR(*out.find("ranks.log_norm"), 1.47712, 5e-6);
  EXPECT_NEAR(*out.find("ranks.log_spectral_norm"), 1.20412, 5e-6);
}

TEST(Spectrum, of_a_matrix_of_rank_one_every_rank_is_one) {
  std::vector<double> values(12 * 8);
  for (std::size_t i = 0; i < 12; ++i)
    for (std::size_t j = 0; j < 8; ++j) values[i * 8 + j] = static_cast<double>((i + 1) * (j + 1));
  Measures out;
  measure_ranks(spectrum_of({values, 12, 8}), "ranks", out);
  for (const char* name :
       {"ranks.stable_rank", "ranks.participation", "ranks.entropy_rank_s2", "ranks.energy_rank.0.99", "ranks.numerical_rank", "ranks.rank_1e-6"})
    EXPECT_NEAR(*out.find(name), 1, 1e-12) << name;
  EXPECT_EQ(*out.find_skipped("ranks.condition"), "undefined (singular to working precision)");
}

TEST(Spectrum, scaling_and_transposing_keep_what_they_should) {
  const std::vector<double> values = normal(30 * 50, 1, 1);
  std::vector<double> scaled = values, flipped(values.size());
  for (double& value : scaled) value *= 8;
  for (std::size_t i = 0; i < 30; ++i)
    for (std::size_t j = 0; j < 50; ++j) flipped[j * 30 + i] = values[i * 50 + j];
  const Spectrum a = spectrum_of({values, 30, 50}), b = spectrum_of({scaled, 30, 50}), c = spectrum_of({flipped, 50, 30});
  for (std::size_t i = 0; i < 30; ++i) {
    EXPECT_NEAR(b.s[i], 8 * a.s[i], 1e-11);
    EXPECT_NEAR(c.s[i], a.s[i], 1e-12);
  }
}

TEST(PowerLaw, powers_of_two_fit_as_worked_out_by_hand) {
  const std::vector<double> x = {1, 2, 4, 8, 16};
  const PowerLawFit plain = fit_powerlaw(x, 0, SmallRule::never);
  EXPECT_NEAR(plain.alpha, 1.72135, 5e-6);
  EXPECT_NEAR(plain.D, 0.23212, 5e-6);
  EXPECT_EQ(plain.xmin, 1);
  EXPECT_NEAR(plain.sigma, 0.32260, 5e-6);
  const PowerLawFit small = fit_powerlaw(x, 0);
  EXPECT_TRUE(small.small);
  EXPECT_NEAR(small.alpha, 1.57708, 5e-6);
  EXPECT_NEAR(small.D, 0.15067, 5e-6);
  EXPECT_NEAR(small.sigma, 0.25808, 5e-6);
}

TEST(PowerLaw, a_pareto_law_is_found_and_the_quick_search_finds_what_the_slow_one_does) {
  std::vector<double> x;
  for (int i = 0; i < 200; ++i) x.push_back(1 / std::sqrt(1 - (i + 0.5) / 200));
  for (const RunnerUp runner_up : {RunnerUp::wanted, RunnerUp::not_wanted}) {
    const PowerLawFit fit = fit_powerlaw(x, 0, SmallRule::as_weightwatcher, 0, runner_up);
    EXPECT_NEAR(fit.alpha, 3.00851, 5e-6);
    EXPECT_NEAR(fit.D, 0.00336, 5e-6);
    EXPECT_NEAR(fit.sigma, 0.14202, 5e-6);
  }
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<double> l = spectrum_of({normal(90 * 70, 1, seed), 90, 70}).eigenvalues();
    const PowerLawFit slow = fit_powerlaw(l, kAbsoluteCut, SmallRule::as_weightwatcher, 0, RunnerUp::wanted);
    const PowerLawFit quick = fit_powerlaw(l, kAbsoluteCut);
    EXPECT_EQ(slow.alpha, quick.alpha);
    EXPECT_EQ(slow.D, quick.D);
    EXPECT_EQ(slow.xmin, quick.xmin);
  }
}

TEST(PowerLaw, equal_values_and_too_few_have_no_law) {
  EXPECT_NE(fit_powerlaw(std::vector<double>{2, 2, 2, 2}, 0).reason, nullptr);
  EXPECT_NE(fit_powerlaw(std::vector<double>{2}, 0).reason, nullptr);
  EXPECT_NE(fit_powerlaw({}, 0).reason, nullptr);
}

TEST(PowerLaw, a_true_law_has_a_large_p_value_and_a_random_matrix_none) {
  std::vector<double> x;
  for (int i = 0; i < 200; ++i) x.push_back(std::pow(1 - (i + 0.5) / 200, -0.5));
  EXPECT_GT(powerlaw_p_value(x, fit_powerlaw(x, 0), 0), 0.5);
}

TEST(MarchenkoPastur, medians_and_edges_are_the_published_ones) {
  EXPECT_NEAR(mp_median(1), 0.652776, 1e-6);
  EXPECT_NEAR(mp_median(1.5), 0.772376, 1e-6);
  EXPECT_NEAR(mp_median(2), 0.830466, 1e-6);
  EXPECT_NEAR(mp_median(3), 0.887681, 1e-6);
  EXPECT_NEAR(mp_median(16), 0.979127, 1e-6);
  for (const double Q : {1.0, 1.7, 4.0}) EXPECT_NEAR(mp_cdf(mp_median(Q), Q), 0.5, 1e-12);
}

TEST(MarchenkoPastur, a_random_matrix_has_no_spike_and_a_planted_direction_is_one) {
  const std::vector<double> noise = normal(768 * 256, 0.02, 5);
  const Spectrum spectrum = spectrum_of({noise, 768, 256});
  const MpRobust fit = fit_mp_robust(spectrum);
  EXPECT_EQ(fit.spikes, 0u);
  EXPECT_NEAR(fit.sigma, 0.02, 0.0002);
  EXPECT_NEAR(fit.softrank, 1, 0.03);
  const double n = 768 * 0.02 * 0.02;
  EXPECT_NEAR(spectrum.s.front() * spectrum.s.front() / n, 2.462, 0.06);
  EXPECT_NEAR(spectrum.s.back() * spectrum.s.back() / n, 0.191, 0.03);

  // Noise of spectral edge 2 plus c u v': the spike stands at c + 1/c.
  std::vector<double> square = normal(256 * 256, 1.0 / 16, 6);
  const std::vector<double> u = normal(256, 1, 7), v = normal(256, 1, 8);
  double uu = 0, vv = 0;
  for (std::size_t i = 0; i < 256; ++i) {
    uu += u[i] * u[i];
    vv += v[i] * v[i];
  }
  for (std::size_t i = 0; i < 256; ++i)
    for (std::size_t j = 0; j < 256; ++j) square[i * 256 + j] += 2 * u[i] * v[j] / std::sqrt(uu * vv);
  const Spectrum planted = spectrum_of({square, 256, 256});
  EXPECT_NEAR(planted.s.front(), 2.5, 0.12);
  EXPECT_EQ(fit_mp_robust(planted).spikes, 1u);
}

TEST(DetX, four_eigenvalues_have_the_tail_worked_out_by_hand) {
  const std::vector<double> l = {0.1, 0.5, 1, 3};
  const DetX found = find_detx(l);
  ASSERT_TRUE(found.found);
  EXPECT_EQ(found.num, 3u);
  EXPECT_EQ(found.value, 0.5);
  EXPECT_NEAR(found.rescaled, 0.43478, 5e-6);
  EXPECT_FALSE(find_detx(std::vector<double>{2, 2, 2}).found);
}

TEST(WeightWatcher, columns_of_a_known_spectrum_are_the_published_ones) {
  // 1, 4, 9, 16 as eigenvalues: log_alpha_norm and alpha_weighted follow from the exponent.
  const std::vector<double> l = {1, 4, 9, 16};
  double sum = 0;
  for (const double value : l) sum += std::pow(value, 2.5);
  EXPECT_NEAR(std::log10(sum), 3.11394, 5e-6);
  const Spectrum few{{4, 3, 2, 1}, 4, 4};
  Measures out;
  measure_weightwatcher(std::span(&few, 1), {.min_evals = 2}, out);
  EXPECT_NEAR(*out.find("weightwatcher.log_norm"), 1.47712, 5e-6);
  EXPECT_NEAR(*out.find("weightwatcher.stable_rank"), 1.875, 1e-12);
  EXPECT_NEAR(*out.find("weightwatcher.entropy"), 0.77796, 5e-6);
  Measures skipped;
  measure_weightwatcher(std::span(&few, 1), {}, skipped);
  EXPECT_EQ(*skipped.find_skipped("weightwatcher.alpha"), "fewer than 8 eigenvalues (min_evals)");
}

TEST(Structure, orthonormal_vectors_have_no_penalty_and_zeros_that_of_the_identity) {
  const std::vector<double> orthonormal = {0.6, 0.8, 0, 0.8, -0.6, 0}, zero(12);
  Measures a, b;
  measure_orthogonality({orthonormal, 2, 3}, "orthogonality", a);
  EXPECT_NEAR(*a.find("orthogonality.penalty"), 0, 1e-15);
  EXPECT_NEAR(*a.find("orthogonality.mean_abs_cos_rows"), 0, 1e-15);
  measure_orthogonality({zero, 4, 3}, "orthogonality", b);
  EXPECT_NEAR(*b.find("orthogonality.penalty"), std::sqrt(3.0), 1e-15);
  EXPECT_EQ(*b.find_skipped("orthogonality.error"), "undefined (zero tensor)");
}

TEST(Structure, half_of_the_columns_of_a_repeated_matrix_generate_the_rest) {
  std::vector<double> values = normal(20 * 16, 1, 9);
  std::vector<double> doubled(20 * 32);
  for (std::size_t i = 0; i < 20; ++i)
    for (std::size_t j = 0; j < 32; ++j) doubled[i * 32 + j] = values[i * 16 + j % 16];
  const Matrix matrix{doubled, 20, 32};
  Measures out;
  measure_weight_space(matrix, spectrum_of(matrix), out);
  // M = 20: k = 5, 10, 15, and the rank is 16.
  EXPECT_GE(*out.find("weight_space.k.10.col"), *out.find("weight_space.k.10.svd"));
  EXPECT_GE(*out.find("weight_space.k.10.row"), *out.find("weight_space.k.10.svd"));
  std::vector<double> wide(8 * 16);
  for (std::size_t i = 0; i < 8; ++i)
    for (std::size_t j = 0; j < 16; ++j) wide[i * 16 + j] = i < 4 ? values[i * 16 + j] : values[(i - 4) * 16 + j];
  Measures half;
  measure_weight_space({wide, 8, 16}, spectrum_of({wide, 8, 16}), half);
  EXPECT_NEAR(*half.find("weight_space.k.4.row"), 0, 1e-12);
  EXPECT_NEAR(*half.find("weight_space.k.4.col"), 0, 1e-12);
}

TEST(Structure, rows_of_one_length_are_conditioned_as_well_after_scaling_as_before) {
  const std::vector<double> values = {3, 4, -4, 3};
  Measures out;
  measure_conditioning({values, 2, 2}, spectrum_of({values, 2, 2}), out);
  EXPECT_NEAR(*out.find("conditioning.before"), 1, 1e-12);
  EXPECT_NEAR(*out.find("conditioning.after"), 1, 1e-12);
  EXPECT_EQ(*out.find("conditioning.row_norm_min"), 5);
}

}  // namespace
}  // namespace weft::measure
