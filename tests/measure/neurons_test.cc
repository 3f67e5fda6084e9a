#include "measure/neurons.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "math/beta.h"
#include "measure/pairs.h"
#include "measure/structure.h"

namespace weft::measure {
namespace {

std::vector<double> normal(std::size_t count, double sigma, std::uint64_t seed) {
  std::vector<double> values(count);
  NormalStream(seed, "neurons", 0).fill(values);
  for (double& value : values) value *= sigma;
  return values;
}

TEST(Neurons, the_band_of_random_directions_is_the_published_one) {
  EXPECT_NEAR(math::cosine_quantile(0.975, 64), 0.244148, 5e-7);
  EXPECT_NEAR(math::cosine_quantile(0.975, 256), 0.12240, 5e-6);
  EXPECT_NEAR(math::cosine_quantile(0.975, 4096), 0.03062, 5e-6);
  EXPECT_NEAR(math::cosine_quantile(0.5, 10), 0, 1e-14);
  EXPECT_NEAR(math::cosine_quantile(0.75, 3), 0.5, 1e-14);  // uniform in three dimensions
}

TEST(Neurons, a_neuron_that_writes_what_it_reads_strengthens_and_its_sign_does_not_matter) {
  // Neurons: in = out = gate; in = -out = gate; all orthogonal; dead.
  const std::vector<double> gate = {1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0}, up = {2, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0};
  std::vector<double> down(3 * 4);
  down[0 * 4 + 0] = 3;   // neuron 0 writes axis 0
  down[1 * 4 + 1] = -3;  // neuron 1 writes against axis 1
  down[1 * 4 + 2] = 1;
  down[0 * 4 + 3] = 1;
  Measures out;
  measure_gated({gate, 4, 3}, {up, 4, 3}, {down, 3, 4}, {}, out);
  EXPECT_EQ(*out.find("gated.classes.strengthening"), 1);
  EXPECT_EQ(*out.find("gated.classes.weakening"), 1);
  EXPECT_EQ(*out.find("gated.classes.orthogonal output"), 1);
  EXPECT_EQ(*out.find("gated.classes.dead"), 1);

  const std::vector<double> g = normal(32 * 16, 1, 1);
  std::vector<double> in = normal(32 * 16, 1, 2), o = normal(16 * 32, 1, 3);
  Measures before, after;
  measure_gated({g, 32, 16}, {in, 32, 16}, {o, 16, 32}, {}, before);
  for (double& value : in) value = -value;
  for (double& value : o) value = -value;
  measure_gated({g, 32, 16}, {in, 32, 16}, {o, 16, 32}, {}, after);
  for (const auto& [name, value] : before.values) {
    if (!name.starts_with("gated.classes.")) continue;
    EXPECT_EQ(*after.find(name), value) << name;
  }
}

TEST(Neurons, a_row_of_an_orthonormal_head_decodes_to_its_token) {
  std::vector<double> head(5 * 5);
  for (std::size_t i = 0; i < 5; ++i) head[i * 5 + (i + 2) % 5] = 1;
  Measures out;
  const std::vector<std::uint32_t> tokens = measure_decoding({head, 5, 5}, {head, 5, 5}, "up, raw", 2, out);
  EXPECT_EQ(tokens, (std::vector<std::uint32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(*out.find("decoding.up, raw.first.1.top.0"), 1);
}

TEST(Pairs, identical_matrices_have_no_intruder_and_no_difference) {
  const std::vector<double> w = normal(40 * 30, 1, 4);
  Measures out;
  measure_intruders({w, 40, 30}, {w, 40, 30}, out);
  for (const double bar : kIntruderBars) EXPECT_EQ(*out.find("intruders.count_left." + std::to_string(bar).substr(0, 3)), 0);
  measure_difference(w, w, 40, 30, out);
  EXPECT_EQ(*out.find("difference.norm"), 0);
  EXPECT_EQ(*out.find("difference.changed"), 0);
  EXPECT_NEAR(*out.find("difference.cos"), 1, 1e-14);
}

TEST(Pairs, a_planted_direction_is_an_intruder_and_a_random_change_is_none) {
  const std::size_t n = 256;
  const std::vector<double> base = normal(n * n, 1.0 / 16, 5), u = normal(n, 1.0 / 16, 6), v = normal(n, 1.0 / 16, 7),
                            change = normal(n * n, 1.0 / 256, 8);
  std::vector<double> planted = base, moved = base;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) planted[i * n + j] += 4 * u[i] * v[j];
  for (std::size_t i = 0; i < n * n; ++i) moved[i] += 4 * change[i];  // Frobenius norm 4
  Measures a, b;
  measure_intruders({base, 256, 256}, {planted, 256, 256}, a);
  EXPECT_EQ(*a.find("intruders.count_left.0.5"), 1);
  EXPECT_EQ(*a.find("intruders.outside_subspace"), 1);
  EXPECT_LT(*a.find("intruders.max_cos_left.0"), 0.3);
  EXPECT_GE(*a.find("intruders.max_cos_left.0"), 1.0 / 16);
  measure_intruders({base, 256, 256}, {moved, 256, 256}, b);
  EXPECT_EQ(*b.find("intruders.outside_subspace"), 0);
}

TEST(Pairs, task_vectors_of_known_elements_have_known_cosines_and_conflicts) {
  const std::vector<double> base = {0, 0, 0, 1};
  const std::vector<std::vector<double>> tuned = {{1, 0, 2, 1}, {-1, 3, 2, 1}};
  TaskVectorSums sums(2);
  sums.add(base, tuned);
  Measures out;
  put_cosines(sums, "all", out);
  put_signs(sums, out);
  EXPECT_NEAR(*out.find("task_vectors.cosine.all.0.1"), 3 / std::sqrt(5.0 * 14), 1e-15);
  EXPECT_EQ(*out.find("task_vectors.signs.both_changed.0.1"), 2);
  EXPECT_EQ(*out.find("task_vectors.signs.opposite.1.0"), 1);
  EXPECT_EQ(*out.find("task_vectors.signs.changed_by_any"), 3);
  EXPECT_EQ(*out.find("task_vectors.signs.conflicting"), 1);
}

}  // namespace
}  // namespace weft::measure
