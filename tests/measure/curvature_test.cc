#include "measure/curvature.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "measure/structure.h"

namespace weft::measure {
namespace {

using Vector = std::vector<double>;

Vector normal(std::size_t n, std::uint64_t seed) {
  Vector values(n);
  NormalStream(seed, "curvature", 0).fill(values);
  return values;
}
double dot(const Vector& a, const Vector& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

HessianProduct diagonal(Vector values) {
  return [values = std::move(values)](std::span<const double> v, std::span<double> out) {
    for (std::size_t i = 0; i < v.size(); ++i) out[i] = values[i] * v[i];
  };
}

/// Reflections of a diagonal matrix: its eigenvalues are known, its eigenvectors are not those of the axes.
class Turned {
 public:
  explicit Turned(Vector values) : values_(std::move(values)), u_(normal(values_.size(), 5)) {
    const double size = std::sqrt(dot(u_, u_));
    for (double& value : u_) value /= size;
  }
  [[nodiscard]] Vector reflect(std::span<const double> v) const {
    Vector result(v.begin(), v.end());
    const double along = 2 * dot(result, u_);
    for (std::size_t i = 0; i < result.size(); ++i) result[i] -= along * u_[i];
    return result;
  }
  [[nodiscard]] HessianProduct product() const {
    return [this](std::span<const double> v, std::span<double> out) {
      Vector w = reflect(v);
      for (std::size_t i = 0; i < w.size(); ++i) w[i] *= values_[i];
      w = reflect(w);
      std::copy(w.begin(), w.end(), out.begin());
    };
  }

 private:
  Vector values_, u_;
};

TEST(Curvature, as_many_steps_as_dimensions_give_every_eigenvalue) {
  Vector values;
  for (int i = 0; i < 24; ++i) values.push_back(std::pow(-1.3, i) / 50);
  std::sort(values.begin(), values.end());
  const Turned matrix(values);
  const Vector start = random_signs(1, "hessian", 0, values.size());
  const Lanczos lanczos(matrix.product(), start, values.size(), values.size());
  ASSERT_EQ(lanczos.values().size(), values.size());
  const double largest = std::max(std::abs(values.front()), std::abs(values.back()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_NEAR(lanczos.values()[i], values[i], 1e-6 * largest) << i;
    EXPECT_EQ(lanczos.errors()[i], 0);
  }
  EXPECT_NEAR(std::accumulate(lanczos.weights().begin(), lanczos.weights().end(), 0.0), 1, 1e-12);
  EXPECT_LT(lanczos.asymmetry(), 1e-6);
  // Weights are the squared parts of the start vector along the eigenvectors.
  for (std::size_t i = 0; i < values.size(); ++i) {
    Vector axis(values.size());
    axis[i] = 1;
    const double along = dot(matrix.reflect(axis), start);
    EXPECT_NEAR(lanczos.weights()[i], along * along / static_cast<double>(values.size()), 1e-5) << i;
  }
}

TEST(Curvature, few_steps_find_the_outermost_and_say_how_far_they_may_be_off) {
  constexpr std::size_t kSide = 400;
  Vector values = normal(kSide, 2);
  values[7] = 12;
  values[8] = 9;
  values[300] = -7;
  const Turned matrix(values);
  const Lanczos lanczos(matrix.product(), random_signs(3, "hessian", 0, kSide), 30, 30);
  const std::size_t m = lanczos.values().size();
  ASSERT_EQ(m, 30u);
  for (const auto& [place, want] :
       {std::pair<std::size_t, double>(m - 1, 12), std::pair<std::size_t, double>(m - 2, 9), std::pair<std::size_t, double>(0, -7)}) {
    EXPECT_NEAR(lanczos.values()[place], want, 1e-5);
    EXPECT_LT(lanczos.errors()[place], 1e-3);
  }
  // The bound holds for those that have not converged too.
  std::sort(values.begin(), values.end());
  for (std::size_t i = 0; i < m; ++i) {
    double nearest = 1e9;
    for (const double value : values) nearest = std::min(nearest, std::abs(value - lanczos.values()[i]));
    EXPECT_LE(nearest, lanczos.errors()[i] + 1e-5) << i;
  }
  const Vector top = *lanczos.vector(m - 1);
  Vector axis(kSide);
  axis[7] = 1;
  EXPECT_NEAR(std::abs(dot(top, matrix.reflect(axis))), 1, 1e-5);
}

TEST(Curvature, a_part_of_the_basis_still_finds_the_largest_but_gives_no_directions) {
  Vector values = normal(200, 4);
  values[0] = 15;
  const Turned matrix(values);
  const Lanczos lanczos(matrix.product(), random_signs(0, "hessian", 0, 200), 40, 4);
  EXPECT_NEAR(lanczos.values().back(), 15, 1e-4);
  EXPECT_FALSE(lanczos.vector(0));
}

TEST(Curvature, a_start_within_a_few_directions_stops_when_they_are_seen) {
  Vector start(50);
  start[3] = 1;
  start[9] = 2;
  const Lanczos lanczos(diagonal(Vector(50, 2.0)), start, 20, 20);
  ASSERT_EQ(lanczos.values().size(), 1u);
  EXPECT_NEAR(lanczos.values()[0], 2, 1e-6);
  EXPECT_NEAR(lanczos.first_product(), 2, 1e-6);
  const Lanczos zero(diagonal(Vector(50, 0.0)), start, 20, 20);
  EXPECT_EQ(zero.values().size(), 1u);
  EXPECT_EQ(zero.values()[0], 0);
}

TEST(Curvature, products_that_are_not_symmetric_are_told) {
  // A rotation by a quarter: u . H v = - v . H u.
  const HessianProduct turn = [](std::span<const double> v, std::span<double> out) {
    for (std::size_t i = 0; i < v.size(); i += 2) {
      out[i] = v[i] - v[i + 1];
      out[i + 1] = v[i + 1] + v[i];
    }
  };
  Vector start = normal(20, 9);
  const Lanczos lanczos(turn, start, 5, 5);
  EXPECT_GT(lanczos.asymmetry(), 0.1);
}

TEST(Curvature, criteria_are_those_of_the_worked_example) {
  const Density density{{4, 1, -1}, {0.2, 0.5, 0.3}};
  EXPECT_DOUBLE_EQ(negative_ratio(density), 0.25);
  EXPECT_NEAR(negative_share(density), std::sqrt(0.3) / (std::sqrt(0.8) + std::sqrt(0.5)), 1e-15);
  EXPECT_NEAR(negative_share(density), 0.34199, 1e-5);
  const Lanczos lanczos(diagonal({4, 1, -1}), random_signs(0, "hessian", 0, 3), 3, 3);
  EXPECT_NEAR(negative_ratio({{lanczos.values().begin(), lanczos.values().end()}, {lanczos.weights().begin(), lanczos.weights().end()}}), 0.25, 1e-6);
}

TEST(Curvature, a_random_symmetric_matrix_curves_down_as_much_as_up) {
  // What the finding about negative curvature fires on without any meaning: its null rate is 1.
  constexpr std::size_t kSide = 120;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    const Vector a = normal(kSide * kSide, seed);
    const HessianProduct product = [&a](std::span<const double> v, std::span<double> out) {
      for (std::size_t i = 0; i < v.size(); ++i) {
        out[i] = 0;
        for (std::size_t j = 0; j < v.size(); ++j) out[i] += (a[i * v.size() + j] + a[j * v.size() + i]) * v[j];
      }
    };
    const Lanczos lanczos(product, random_signs(seed, "hessian", 0, kSide), 30, 30);
    const double ratio = negative_ratio({{lanczos.values().begin(), lanczos.values().end()}, {lanczos.weights().begin(), lanczos.weights().end()}});
    EXPECT_GT(ratio, 0.5);
    EXPECT_LT(ratio, 2);
  }
}

TEST(Curvature, the_trace_of_a_diagonal_matrix_is_exact_after_two_samples) {
  const TraceEstimate exact = estimate_trace(diagonal({4, 1, -1, 0.5}), 4, 100, 1e-3, 7);
  EXPECT_DOUBLE_EQ(exact.trace, 4.5);
  EXPECT_EQ(exact.samples, 2u);
  EXPECT_EQ(exact.error, 0);
}

TEST(Curvature, the_trace_of_any_matrix_lies_within_its_error) {
  const Vector values = normal(300, 6);
  const double want = std::accumulate(values.begin(), values.end(), 0.0);
  const TraceEstimate estimate = estimate_trace(Turned(values).product(), 300, 100, 1e-6, 1);
  EXPECT_EQ(estimate.samples, 100u);
  EXPECT_GT(estimate.error, 0);
  EXPECT_LT(std::abs(estimate.trace - want), 4 * estimate.error);
}

TEST(Curvature, the_smooth_density_holds_one_and_stands_at_the_nodes) {
  const MeasuredCurve curve = smooth_density({{-1, 2}, {0.25, 0.75}}, "d");
  double area = 0, best = 0, at = 0;
  for (std::size_t i = 1; i < curve.x.size(); ++i) {
    EXPECT_LE(curve.x[i - 1], curve.x[i]);
    area += static_cast<double>(curve.y[i] + curve.y[i - 1]) / 2 * static_cast<double>(curve.x[i] - curve.x[i - 1]);
    if (static_cast<double>(curve.y[i]) > best) {
      best = static_cast<double>(curve.y[i]);
      at = static_cast<double>(curve.x[i]);
    }
  }
  EXPECT_NEAR(area, 1, 0.05);
  EXPECT_NEAR(at, 2, 1e-6);
  // Of variance 1e-5 max(1, range).
  EXPECT_NEAR(best, 0.75 / std::sqrt(2 * 3.14159265358979 * 3e-5), 1);
}

TEST(Curvature, directions_become_as_long_as_the_weights_where_the_normalisation_says) {
  // A matrix of two rows, a vector, a matrix of one row.
  const std::vector<float> weights = {3, 4, 0, 0, 1, 1, 6, 8};
  const std::vector<Part> parts = {{0, 4, 2}, {4, 2, 0}, {6, 2, 1}};
  const auto fitted = [&](Normalisation normalisation) {
    Vector direction = {1, 0, 2, 2, 1, -1, 0, -2};
    normalise_direction(normalisation, weights, parts, direction);
    return direction;
  };
  EXPECT_EQ(fitted(Normalisation::none), (Vector{1, 0, 2, 2, 1, -1, 0, -2}));
  // Rows of zeros stay where they are; vectors too.
  EXPECT_EQ(fitted(Normalisation::filter), (Vector{5, 0, 0, 0, 0, 0, 0, -10}));
  EXPECT_EQ(fitted(Normalisation::weight), (Vector{3, 4, 0, 0, 1, -1, 6, -8}));
  const Vector layer = fitted(Normalisation::layer);
  EXPECT_NEAR(std::hypot(layer[0], layer[1], std::hypot(layer[2], layer[3])), 5, 1e-12);
  EXPECT_NEAR(std::hypot(layer[4], layer[5]), std::sqrt(2), 1e-12);
  const Vector model = fitted(Normalisation::model);
  EXPECT_NEAR(dot(model, model), 25 + 2 + 100, 1e-10);
  EXPECT_NEAR(model[2] / model[0], 2, 1e-12);
  for (const char* name : {"none", "weight", "layer", "filter", "model"}) EXPECT_STREQ(to_string(*normalisation_of(name)), name);
  EXPECT_FALSE(normalisation_of("filters"));
}

TEST(Curvature, a_line_over_a_quadratic_has_its_curvature) {
  // L(w) = 1/2 w' H w - b' w along d: curvature d' H d, wherever the middle is.
  const Vector h = {4, 1, -1}, d = {1, 2, 3};
  const double curvature = 4 + 4 - 9;
  for (const std::size_t points : {3u, 21u}) {
    const Vector positions = landscape_positions(points);
    EXPECT_EQ(positions.front(), -1);
    EXPECT_EQ(positions[points / 2], 0);
    EXPECT_EQ(positions.back(), 1);
    Vector losses;
    for (const double t : positions) {
      double loss = 2;
      for (std::size_t i = 0; i < 3; ++i) loss += 0.5 * h[i] * (0.3 + t * d[i]) * (0.3 + t * d[i]) - 0.1 * (0.3 + t * d[i]);
      losses.push_back(loss);
    }
    Measures out;
    measure_line("line", positions, losses, out);
    EXPECT_NEAR(*out.find("line.curvature"), curvature, 1e-10);
    EXPECT_NEAR(*out.find("line.rise"), 0.5 * curvature, 1e-12);
    EXPECT_EQ(out.values.size(), points + 3);
  }
}

TEST(Curvature, a_loss_that_is_not_finite_is_left_out_with_the_reason) {
  Measures out;
  measure_line("line", landscape_positions(5), Vector{INFINITY, 2, 1, 3, 4}, out);
  EXPECT_EQ(out.find("line.loss.0"), nullptr);
  EXPECT_NE(out.find_skipped("line.loss.0"), nullptr);
  EXPECT_EQ(*out.find("line.lowest_at"), 0);
  EXPECT_NEAR(*out.find("line.curvature"), (2 - 2 + 3) / 0.25, 1e-12);
  EXPECT_NE(out.find_skipped("line.rise"), nullptr);
}

}  // namespace
}  // namespace weft::measure
